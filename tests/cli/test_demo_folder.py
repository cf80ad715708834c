"""The demo where nothing can be written."""

import tempfile
from pathlib import Path

import pytest

from tunnel.cli.demo import run_demo
from tunnel.errors import TunnelError


def test_without_a_place_for_temporary_files_it_says_what_to_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "is not there"))
    with pytest.raises(TunnelError, match=r"\(No such file or directory\); name one in TMPDIR, or .* --tmpfs /tmp"):
        run_demo(check=True, verbose=0)
