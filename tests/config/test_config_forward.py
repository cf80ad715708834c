"""The forward proxy in files, options and environment: what is read, what is refused, and that no password is shown."""

from pathlib import Path
from typing import Any

import pytest

from tunnel.addresses import HostPort
from tunnel.config import ForwardProxy
from tunnel.config.file import ClientOptions, check_file, load_client
from tunnel.config.forward import AUTH_VARIABLE, forward_variables, parse_forward_proxy
from tunnel.errors import ConfigError, Mistake

PASSWORD = "s3cret-Password"
SERVER = 'server = "tunnel.example.com"\n'


def load(tmp_path: Path, text: str, *, mode: int = 0o600, via: str | None = None, **environ: str) -> Any:
    path = tmp_path / "client.toml"
    path.touch(mode)
    path.write_text(SERVER + text)
    path.chmod(mode)
    return load_client(path, ClientOptions(via=via, environ=environ), need_token=False).via


def auth_file(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "proxy.auth"
    path.touch(mode)
    path.write_text(text)
    path.chmod(mode)
    return 'proxy_auth_file = "proxy.auth"\n'


def mistake_of(tmp_path: Path, *args: Any, **kwargs: Any) -> Mistake:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *args, **kwargs)
    assert PASSWORD not in str(caught.value)
    (mistake,) = caught.value.mistakes
    return mistake


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://proxy.example", ForwardProxy("http", HostPort("proxy.example", 3128))),
        ("http://proxy.example:8080/", ForwardProxy("http", HostPort("proxy.example", 8080))),
        ("socks5://127.0.0.1", ForwardProxy("socks5", HostPort("127.0.0.1", 1080))),
        ("socks5h://[::1]:9050", ForwardProxy("socks5h", HostPort("::1", 9050))),
        ("HTTP://me:a%40b%3Ac@p:1", ForwardProxy("http", HostPort("p", 1), "me", "a@b:c")),
    ],
)
def test_a_url_says_scheme_place_and_credentials(url: str, found: ForwardProxy) -> None:
    assert parse_forward_proxy(url) == found
    assert found.password not in repr(found) or not found.password
    assert found.resolves is (found.scheme != "socks5")


@pytest.mark.parametrize(
    "url",
    ["proxy.example:3128", "https://proxy.example", "ftp://p", "http://", "http://p:0", "http://p:99999", "http://p/x",
     "http://p?q", "http://:pw@p", "http://a b", f"http://{'u' * 256}:p@p", "http://u%0a:p@p", "socks4://p", "http://%3a:x@p"],
)  # fmt: skip
def test_what_is_no_proxys_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"; |ASCII"):
        parse_forward_proxy(url)


def test_without_a_word_there_is_no_proxy_whatever_the_environment_says(tmp_path: Path) -> None:
    assert load(tmp_path, "", HTTPS_PROXY="http://p:1", **{AUTH_VARIABLE: "me:pw"}) is None


def test_the_option_goes_over_the_file(tmp_path: Path) -> None:
    assert str(load(tmp_path, 'proxy = "http://p:1"\n', via="socks5h://q")) == "socks5h://q:1080"


def test_credentials_come_from_the_file_else_from_the_variable(tmp_path: Path) -> None:
    key = auth_file(tmp_path, f"me:{PASSWORD}:x\n")
    found = load(tmp_path, 'proxy = "http://p:1"\n' + key, **{AUTH_VARIABLE: "you:other"})
    assert (found.username, found.password) == ("me", f"{PASSWORD}:x")
    found = load(tmp_path, 'proxy = "http://p:1"\n', **{AUTH_VARIABLE: "you:other"})
    assert (found.username, found.password) == ("you", "other")


def test_a_password_in_an_argument_is_refused(tmp_path: Path) -> None:
    mistake = mistake_of(tmp_path, "", via=f"http://me:{PASSWORD}@p:1")
    assert (mistake.file, mistake.value) == ("--via", "(not shown)")
    assert "list of processes" in mistake.problem
    assert AUTH_VARIABLE in mistake.remedy


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_password_in_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    text = f'proxy = "http://me:{PASSWORD}@p:1"\n'
    assert load(tmp_path, text).password == PASSWORD
    mistake = mistake_of(tmp_path, text, mode=mode)
    assert (mistake.line, mistake.value) == (2, "(not shown)")
    assert "chmod 600" in mistake.remedy
    assert load(tmp_path, 'proxy = "http://me@p:1"\n', mode=mode).username == "me"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not user:password"),
        ("\n", "not user:password"),
        (PASSWORD, "not user:password"),
        (f":{PASSWORD}", "not user:password"),
        ("me:", "not user:password"),
        (f"me:{PASSWORD}\nmore", "cannot be sent"),
        (f"me:{PASSWORD}\u00e9", "cannot be sent"),
    ],
)
def test_an_auth_file_holds_one_user_and_one_password_or_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    mistake = mistake_of(tmp_path, 'proxy = "http://p:1"\n' + auth_file(tmp_path, text))
    assert problem in mistake.problem
    assert mistake.line == 3


def test_an_auth_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    mistake = mistake_of(tmp_path, 'proxy = "http://p:1"\n' + auth_file(tmp_path, f"me:{PASSWORD}", 0o644))
    assert "read by others" in mistake.problem


def test_one_user_too_many_is_told(tmp_path: Path) -> None:
    key = auth_file(tmp_path, f"me:{PASSWORD}")
    assert "another user" in mistake_of(tmp_path, 'proxy = "http://you@p:1"\n' + key).problem
    assert "beside a password" in mistake_of(tmp_path, 'proxy = "http://you:pw@p:1"\n' + key).problem
    assert "without a proxy" in mistake_of(tmp_path, key).problem


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, "None"),
        ({"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "socks5://b"}, "http://a:1"),
        ({"all_proxy": "socks5h://b"}, "socks5h://b:1080"),
        ({"https_proxy": "c:8080"}, "http://c:8080"),
        ({"HTTPS_PROXY": f"http://me:{PASSWORD}@a"}, "http://a:3128"),
        ({"HTTPS_PROXY": "http://a", "NO_PROXY": "tunnel.example.com"}, "None"),
        ({"HTTPS_PROXY": "http://a", "NO_PROXY": "localhost, .Example.com"}, "None"),
        ({"HTTPS_PROXY": "http://a", "no_proxy": "*"}, "None"),
        ({"HTTPS_PROXY": "http://a", "NO_PROXY": "other.com,ample.com"}, "http://a:3128"),
    ],
)
def test_env_takes_the_proxy_of_the_environment(tmp_path: Path, environ: dict[str, str], found: str) -> None:
    assert str(load(tmp_path, 'proxy = "env"\n', mode=0o644, **environ)) == found


def test_servers_on_both_sides_of_no_proxy_are_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('servers = ["a.example", "b.example"]\nproxy = "env"\n')
    options = ClientOptions(environ={"HTTPS_PROXY": "http://p", "NO_PROXY": "a.example"})
    with pytest.raises(ConfigError, match="past it"):
        load_client(path, options, need_token=False)


def test_a_bad_url_in_the_environment_is_told_without_its_password(tmp_path: Path) -> None:
    assert "HTTPS_PROXY" in mistake_of(tmp_path, 'proxy = "env"\n', HTTPS_PROXY=f"https://me:{PASSWORD}@p").problem


def test_a_table_in_its_place_is_told_what_is_meant(tmp_path: Path) -> None:
    assert "[[proxies]]" in str(mistake_of(tmp_path, '[proxy]\nname = "web"\n'))


def test_check_sees_it_all_without_the_environment(tmp_path: Path) -> None:
    (tmp_path / "client.toml").write_text(SERVER + 'proxy = "env"\nproxy_auth_file = "gone"\n')
    report = check_file(tmp_path / "client.toml")
    assert (report.kind, report.mistakes) == ("client", ())


def test_of_the_environment_only_what_is_needed_is_kept() -> None:
    kept = {"ALL_PROXY": "socks5://a", "no_proxy": "b", AUTH_VARIABLE: "me:pw"}
    assert forward_variables({**kept, "HOME": "/root"}) == kept
    assert PASSWORD not in repr(ClientOptions(environ={AUTH_VARIABLE: f"me:{PASSWORD}"}))
