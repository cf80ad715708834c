"""Options of the command line over what a file says, and what no message of either shows."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config_file import (
    CLIENT,
    DIGEST,
    FULL_CLIENT,
    FULL_SERVER,
    PIN,
    PROXY,
    SERVER,
    TOKEN,
    error_of,
    folder,
    write,
    write_token,
)

from tunnel.addresses import HostPort
from tunnel.config.file import (
    MAX_LISTEN,
    MAX_SERVERS,
    ClientOptions,
    ServerOptions,
    check_file,
    load_client,
    load_server,
)
from tunnel.config.token_file import check_token, read_token_file
from tunnel.errors import ConfigError, Mistake

__all__ = ["folder"]  # the fixture

# Options over the file


def test_options_of_connect_go_over_the_file(folder: Path) -> None:
    other = folder / "other.token"
    other.touch(0o600)
    other.write_text("another")
    options = ClientOptions(
        servers=("[::1]",), proxies=("web=9001:9000", "db=0:unix:/run/db"), token_file=other, pin=PIN, admin="off"
    )
    text = FULL_CLIENT.replace('"home.token"', '"missing.token"')
    config = load_client(write(folder, text), options)
    assert (config.servers[0], config.token, config.admin) == (HostPort("::1", 8443), "another", None)
    assert [(proxy.name, str(proxy.publish), *map(str, proxy.targets)) for proxy in config.proxies] == [
        ("ssh", "0.0.0.0:0", "127.0.0.1:22"),
        ("web", "0.0.0.0:9001", "127.0.0.1:9000"),
        ("db", "0.0.0.0:0", "unix:/run/db"),
    ]


def test_connect_needs_no_file() -> None:
    config = load_client(None, ClientOptions(servers=("a",), proxies=("web=1:2",), token=TOKEN))
    assert (config.servers[0], config.token, config.admin) == (HostPort("a", 8443), TOKEN, None)


def test_options_of_serve_go_over_the_file(folder: Path) -> None:
    options = ServerOptions(listen=("localhost:0",), admin="off", state_dir=folder)
    config = load_server(write(folder, FULL_SERVER), options)
    assert (config.listen, config.admin, config.state_dir) == ((HostPort("localhost", 0),), None, folder)
    asked = load_server(None, ServerOptions(admin="127.0.0.1:8480"))
    assert (asked.admin, asked.admin_required) == (HostPort("127.0.0.1", 8480), True)


def test_several_addresses_replace_those_of_the_file(folder: Path) -> None:
    listen = ServerOptions(listen=("127.0.0.1:0", "127.0.0.1:0", "[::1]:8444"))
    assert load_server(write(folder, 'listen = ["127.0.0.1:1", "127.0.0.2:2"]'), listen).listen == (
        HostPort("127.0.0.1", 0), HostPort("127.0.0.1", 0), HostPort("::1", 8444),
    )  # fmt: skip
    text = 'servers = ["c", "d", "e"]\n'
    assert load_client(write(folder, text), ClientOptions(servers=("a", "b:1"), token=TOKEN)).servers == (
        HostPort("a", 8443), HostPort("b", 1),
    )  # fmt: skip


def test_each_mistake_in_several_addresses_is_told(folder: Path) -> None:
    options = ClientOptions(servers=("a", "b:x", "a:8443", "c:0"), token=TOKEN)
    assert [str(mistake) for mistake in error_of(load_client, None, options)] == [
        "SERVER: b:x: 'x' is not a port; write a number from 1 to 65535",
        "SERVER: c:0: '0' is not a port; write a number from 1 to 65535",
        "SERVER: a:8443: is the address at SERVER a too; write each once",
    ]
    (mistake,) = error_of(load_server, None, ServerOptions(listen=("127.0.0.1:1", "127.0.0.1:1")))
    assert str(mistake) == "--listen: 127.0.0.1:1: is the address at --listen 127.0.0.1:1 too; write each once"


def test_there_are_at_most_so_many_addresses() -> None:
    many = tuple(f"127.0.0.1:{port}" for port in range(1, MAX_SERVERS + 2))
    (mistake,) = error_of(load_client, None, ClientOptions(servers=many, token=TOKEN))
    assert str(mistake) == f"SERVER: is there {MAX_SERVERS + 1} times; give at most {MAX_SERVERS}"
    (mistake,) = error_of(load_server, None, ServerOptions(listen=many))
    assert str(mistake) == f"--listen: is there {MAX_LISTEN + 1} times; give at most {MAX_LISTEN}"


def test_mistakes_of_options_and_file_come_together(folder: Path) -> None:
    path = write(folder, SERVER + "data_channels = 0\n" + PROXY)
    options = ClientOptions(
        servers=("a:x",), proxies=("b", "c=8001:1", "c=1:300.1.1.1:1"), pin="q", admin="", token=TOKEN
    )
    assert [str(mistake) for mistake in error_of(load_client, path, options)] == [
        "SERVER: a:x: 'x' is not a port; write a number from 1 to 65535",
        "--pin: q: is not a pin; write sha256: and 64 hexadecimal digits, as `serve` prints it",
        "--admin: is blank or has control characters; write a plain text",
        "-p: b: is not a proxy; write NAME=PUBLISH:TARGET, such as web=8001:127.0.0.1:8080",
        "-p: c=1:300.1.1.1:1: '300.1.1.1' is not a host; write an IP address or a host name",
        "-p: c=8001:1: publishes 0.0.0.0:8001, which proxies[0].publish_port (line 5) has with 0.0.0.0:8001; "
        "choose another port, or two addresses that do not overlap",
        f"{path}:2: data_channels: 0: is out of range; write a whole number from 1 to 64",
    ]


def test_two_options_of_one_name_are_a_mistake() -> None:
    (mistake,) = error_of(load_client, None, ClientOptions(servers=("a",), proxies=("w=1:1", "w=2:2"), token=TOKEN))
    assert str(mistake) == "-p: w=2:2: is the name at -p w=1:1 too; give each proxy a name of its own"


def test_without_server_and_token_connect_says_how_to_give_them() -> None:
    assert [str(mistake) for mistake in error_of(load_client, None)] == [
        "SERVER: is missing; give HOST:PORT, or a file with -c",
        "TRIO_TUNNEL_TOKEN: is missing; put the token there, or give a file of it with --token-file",
    ]


# Secrets


def test_a_tokens_file_goes_before_the_environment(folder: Path) -> None:
    text = SERVER + 'token_file = "home.token"\n'
    assert load_client(write(folder, text), ClientOptions(token="other")).token == TOKEN
    assert load_client(write(folder, SERVER), ClientOptions(token="other\n")).token == "other"


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("", 0o600, "holds no token"),
        (" \n\n", 0o600, "holds no token"),
        (f"{TOKEN}\n{TOKEN}\n", 0o600, "holds more than one line"),
        ("to ken", 0o600, "holds characters that no token has"),
        ("t\u00f6ken", 0o600, "holds characters that no token has"),
        ("t\0ken", 0o600, "holds characters that no token has"),
        ("x" * 5000, 0o600, "is longer than any token"),
        (TOKEN, 0o640, "can be read by others (mode 0640)"),
        (TOKEN, 0o604, "can be read by others (mode 0604)"),
        (TOKEN, 0o660, "can be read by others (mode 0660)"),
    ],
)
def test_a_token_file_that_is_no_secret_is_refused_everywhere(
    folder: Path, content: str, mode: int, problem: str
) -> None:
    path = write_token(folder, content, mode)
    config = write(folder, SERVER + 'token_file = "home.token"\n')
    (by_itself,) = error_of(read_token_file, path)
    (by_option,) = error_of(load_client, None, ClientOptions(servers=("a",), token_file=path))
    (in_file,) = error_of(load_client, config, ClientOptions(token=TOKEN))
    (checked,) = check_file(config).mistakes
    assert all(each.problem.startswith(problem) for each in (by_itself, by_option, in_file, checked))
    assert (by_itself.file, by_option.file, by_option.value) == (str(path), "--token-file", str(path))
    assert (in_file.line, in_file.path) == (checked.line, checked.path) == (2, "token_file")


@pytest.mark.parametrize(
    ("mode", "named", "is_good"),
    [
        (0o440, "credentials", True),
        (0o444, "credentials", False),
        (0o460, "credentials", False),
        (0o440, "credentials/deeper", False),
        (0o440, "cred", False),
        (0o440, "", False),
        (0o440, ".", False),
    ],
)
def test_a_credential_of_systemd_may_show_the_groups_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int, named: str, is_good: bool
) -> None:
    """LoadCredential= makes files of mode 0400 with an ACL for the service's user, which looks like 0440."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", named if named in ("", ".") else str(folder / named))
    (folder / "credentials").mkdir()
    path = write_token(folder / "credentials", TOKEN, mode)
    link = folder / "link.token"
    link.symlink_to(path)
    for way in (path, link, path.relative_to(folder)):
        if is_good:
            assert read_token_file(way) == TOKEN
        else:
            (mistake,) = error_of(read_token_file, way)
            assert mistake.problem == f"can be read by others (mode {mode:04o})"


def test_a_missing_token_file_is_a_warning_for_check_and_a_mistake_for_connect(folder: Path) -> None:
    config = write(folder, SERVER + 'token_file = "none.token"\n')
    report = check_file(config)
    assert report.mistakes == ()
    assert [(warning.line, warning.path) for warning in report.warnings] == [(2, "token_file")]
    assert error_of(load_client, config) == report.warnings
    assert load_client(config, need_token=False).token == ""


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_variable_never_means_no_authentication(folder: Path, blank: str) -> None:
    (mistake,) = error_of(load_client, write(folder, SERVER), ClientOptions(token=blank))
    assert (mistake.file, mistake.problem) == ("TRIO_TUNNEL_TOKEN", "holds no token")
    assert str(error_of(check_token, blank, "stdin")[0]).startswith("stdin: holds no token")


@given(st.text())
@settings(max_examples=100)
def test_a_token_is_one_line_of_visible_ascii_or_refused(text: str) -> None:
    try:
        token = check_token(text, "here")
    except ConfigError:
        return
    assert token == text.strip()
    assert re.fullmatch(r"[!-~]+", token)


def test_no_secret_is_ever_shown(folder: Path) -> None:
    path = write(
        folder,
        f'server = "a:x"\ntoken = "{TOKEN}"\ntoken_file = "{TOKEN}"\nclients = [{{ token = "{TOKEN}" }}]\n'
        f'[[proxies]]\nPassword = "{TOKEN}"\n',
    )
    server = write_token(folder, CLIENT.replace(DIGEST, TOKEN))
    found = [
        *error_of(load_client, path, ClientOptions(token=TOKEN + "\n2")),
        *error_of(load_client, None, ClientOptions(servers=("a",), token_file=Path(TOKEN))),
        *error_of(load_client, None, ClientOptions(servers=("a",), token=TOKEN + "\n2")),
        *error_of(read_token_file, Path(TOKEN)),
        *check_file(server).mistakes,
    ]
    assert len(found) > 8
    assert TOKEN not in repr(found)
    assert TOKEN not in repr(ClientOptions(token=TOKEN))


AS_ISSUED = "put both there as they were issued"


@pytest.mark.parametrize(
    ("cert", "key", "problem", "remedy"),
    [
        ("cert.pem", "other.pem", "they do not belong together, or one is damaged", AS_ISSUED),
        ("key.pem", "key.pem", "{cert} holds no certificate", "put one there in PEM form, this side's own first"),
        ("cert.pem", "cert.pem", "{key} holds no private key", "put the certificate's there, in PEM form"),
    ],
)
def test_a_certificate_and_a_key_that_do_not_match_are_a_mistake_of_the_file(
    cert: str, key: str, problem: str, remedy: str, folder: Path
) -> None:
    (folder / "cert.pem").chmod(0o600)
    path = write(folder, f'[tls]\ncert_file = "{cert}"\nkey_file = "{key}"\n')
    pair = f"the certificate {folder / cert} cannot be used with the key {folder / key}"
    told = f"{pair}: {problem.format(cert=folder / cert, key=folder / key)}"
    expected = Mistake(str(path), 3, "tls.key_file", f'"{key}"', told, remedy)
    assert check_file(path, "server").mistakes == (expected,)
    assert error_of(load_server, path) == (expected,)


def test_a_key_this_user_cannot_read_is_only_a_warning_for_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: "key.pem" not in str(path))
    path = write(folder, FULL_SERVER)
    assert [warning.path for warning in check_file(path).warnings] == ["tls.key_file"]
    assert [mistake.path for mistake in error_of(load_server, path)] == ["tls.key_file"]
