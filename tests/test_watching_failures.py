"""What cannot even be looked at costs the watching nothing, and the tunnel least of all (B35)."""

import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tunnel import watching
from tunnel.watching import AGAIN_SECONDS, Watch, folders


def test_a_name_that_may_not_be_looked_at_has_the_folder_above_that_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    look = watching.os.stat

    def refuse(path: object, **more: object) -> object:
        if str(path).startswith(f"{closed}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(watching.os, "stat", refuse)  # root may look everywhere, so that no mode would do
    assert list(folders([closed / "inner" / "server.toml"])) == [closed]


def test_a_name_that_no_disk_takes_has_the_folder_above(tmp_path: Path) -> None:
    assert list(folders([tmp_path / ("x" * 300) / "server.toml"])) == [tmp_path]


async def test_a_look_that_fails_is_told_and_done_again(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    looks: list[float] = []

    def files() -> dict[Path, object]:
        looks.append(trio.current_time())
        if len(looks) < 3:
            raise RuntimeError("a bug")
        raise KeyboardInterrupt  # ends the test, as nothing else would

    with caplog.at_level(logging.ERROR), pytest.raises(BaseExceptionGroup) as ended:
        await Watch(files, lambda: None).run()
    assert ended.group_contains(KeyboardInterrupt)
    assert [at - looks[0] for at in looks] == [0, AGAIN_SECONDS, 2 * AGAIN_SECONDS]
    assert "changed files are not looked for" in caplog.text
