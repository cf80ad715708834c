"""``[history]`` of both files: what it says, what is wrong in it, and where a history is kept by default."""

from pathlib import Path

import pytest
import trustme
from attrs import evolve

from tunnel.addresses import HostPort
from tunnel.config import ClientConfig, HistoryConfig, ServerConfig
from tunnel.config.actions import NeedsRestart
from tunnel.config.diff import diff
from tunnel.config.file import ClientOptions, check_file, load_client, load_server
from tunnel.errors import ConfigError
from tunnel.history.place import history_file

SERVER = ServerConfig()
CLIENT = ClientConfig((HostPort("a", 1),), "token")


def write(folder: Path, text: str) -> Path:
    path = folder / "server.toml"
    path.write_text(text)
    return path


def test_all_of_it_is_read_and_a_path_starts_at_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[history]\nenabled = true\nfile = "kept.sqlite"\nmax_age_days = 0.5\nmax_rows = 1000\n')
    assert load_server(path).history == HistoryConfig(True, tmp_path / "kept.sqlite", 0.5, 1000)


def test_without_a_section_it_is_kept_where_there_is_a_state_directory(tmp_path: Path) -> None:
    assert load_server(write(tmp_path, "")).history == HistoryConfig(None, None, 90.0, 1_000_000)
    for config in (SERVER, CLIENT):
        assert history_file(config) is None
        assert history_file(evolve(config, state_dir=tmp_path)) == tmp_path / "history.sqlite"
        off = evolve(config, state_dir=tmp_path, history=HistoryConfig(enabled=False))
        assert history_file(off) is None
        assert history_file(evolve(config, history=HistoryConfig(file=tmp_path / "x"))) == tmp_path / "x"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_rows = 999", "history.max_rows: 999: is out of range; write a whole number from 1000 to"),
        ("max_age_days = 0", "history.max_age_days: 0: is out of range"),
        ('enabled = "yes"', 'history.enabled: "yes": is a text, not true or false'),
        ('file = "."', 'history.file: ".": is a directory; name a file in it'),
        ('file = "none/x"', 'history.file: "none/x": is in a directory that is not there; make '),
        ("max_age = 3", "history.max_age: 3: is not a key here; did you mean max_age_days?"),
    ],
)
def test_each_mistake_has_its_line_and_its_remedy(line: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"[history]\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    assert [str(mistake).startswith(f"{path}:2: {said}") for mistake in caught.value.mistakes] == [True]


def test_a_directory_that_another_machine_may_have_is_a_doubt_to_check(tmp_path: Path) -> None:
    report = check_file(write(tmp_path, '[history]\nfile = "none/x"\n'), "server")
    assert (report.mistakes, [one.path for one in report.warnings]) == ((), ["history.file"])


def test_a_change_of_it_waits_for_a_restart_and_says_so_in_words() -> None:
    (action,) = diff(SERVER, evolve(SERVER, history=HistoryConfig(enabled=False)))
    assert action == NeedsRestart("history", "", "")
    assert diff(CLIENT, evolve(CLIENT, history=HistoryConfig(max_rows=5000))) == (action,)


def test_what_concerns_the_process_is_read_in_both_files(tmp_path: Path) -> None:
    path = write(tmp_path, 'watch = false\nlog_level = "debug"\n')
    assert (load_server(path).watch, load_server(path).log_level) == (False, "debug")
    path.write_text('server = "a"\nlog_level = "loud"\n')
    (mistake,) = check_file(path).mistakes
    assert str(mistake) == (f'{path}:2: log_level: "loud": is no log level; write one of debug, info, warning, error')


def test_a_client_s_stamp_changes_with_what_its_certificates_hold(tmp_path: Path) -> None:
    path, ca = tmp_path / "client.toml", tmp_path / "ca.pem"
    stamps = []
    path.write_text('server = "a"\nca_file = "ca.pem"\n')
    for _ in range(2):
        trustme.CA().cert_pem.write_to_path(ca)
        config = load_client(path, ClientOptions(token="home-token"))
        stamps.append(config.tls_stamp)
    assert len(set(stamps)) == 2
    (action,) = diff(evolve(config, tls_stamp=stamps[0]), config)
    assert str(action) == (
        "connections to the server from now on go by another content of ca_file, cert_file or key_file"
    )
