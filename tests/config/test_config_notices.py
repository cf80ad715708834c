"""What a file says of notices: every key, every mistake with its line, and secrets only from files of their own."""

from pathlib import Path
from typing import Any

import pytest

from tunnel.addresses import HostPort
from tunnel.backoff import RetryPolicy
from tunnel.certificates import make_self_signed
from tunnel.config.file import check_file, load_client, load_server
from tunnel.config.notice_receivers import MAX_RECIPIENTS
from tunnel.config.notices import MAX_NOTICES
from tunnel.config.receivers import Email, NoticeConfig, Webhook
from tunnel.errors import ConfigError

KEY = "s3cret-s3cret-s3cret"
HOOK = '[[notices]]\nname = "ops"\ntype = "webhook"\nurl = "https://hooks.example/T0/s3cret"\n'
MAIL = '[[notices]]\nname = "mail"\ntype = "email"\nhost = "smtp.example"\nfrom = "t@example.com"\nto = ["o@example.com"]\n'  # noqa: E501
SERVER = "bind_port = 1\n"
CA = make_self_signed(["ca.example"])[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ca.pem").write_bytes(CA)
    for name, text in {
        "key": f"{KEY}\n", "standard": "whsec_AAECAwQFBgcICQ==\n", "short": "s3cret\n", "lines": f"{KEY}\n{KEY}\n",
        "bad64": "whsec_!!!!!!!!!!!!!!!\n", "headers": f"# ours\nAuthorization: Bearer {KEY}\n\nX-Team:  ops \n",
        "noheaders": "# none\n", "badheaders": f"Authorization {KEY}\n", "host": "Host: x\n", "signature": "Webhook-Id: 1\n",  # noqa: E501
        "url": f"https://hooks.example/{KEY}\n", "badurl": f"hooks.example/{KEY}\n", "empty": "",
        "umlaut": "pässword\n",
    }.items():  # fmt: skip
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(text)
    (tmp_path / "open").write_text(KEY)
    (tmp_path / "open").chmod(0o644)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def server(folder: Path, text: str) -> tuple[NoticeConfig, ...]:
    return load_server(write(folder, SERVER + text)).notices


def test_a_webhook_with_every_key_gives_just_that(folder: Path) -> None:
    (found,) = server(
        folder,
        HOOK
        + """
secret_file = "key"
headers_file = "headers"
ca_file = "ca.pem"
proxy = "http://proxy.example:3128"
format = "slack"
timeout = 2.5
events = ["unhealthy", "recovered", "unhealthy"]
after = 0
interval = 1
gather = 0
days = 30
clients = ["home", "lab-*"]
proxies = ["web"]
expected = ["home"]
[notices.retry]
max_retries = 2
""",
    )
    headers = (("Authorization", f"Bearer {KEY}"), ("X-Team", "ops"))
    to = Webhook(
        "https://hooks.example/T0/s3cret", KEY.encode(), headers, folder / "ca.pem", "http://proxy.example:3128",
        "slack", 2.5,
    )  # fmt: skip
    retry = RetryPolicy(initial_delay=2.0, factor=3.0, max_delay=180.0, max_retries=2, jitter=0.2)
    assert found == NoticeConfig(
        "ops", to, ("unhealthy", "recovered"), 0, 1, 0, 30, ("home", "lab-*"), ("web",), ("home",), retry
    )


def test_a_mail_with_every_key_gives_just_that(folder: Path) -> None:
    (found,) = server(
        folder,
        MAIL
        + """
port = 2525
security = "tls"
username = "me"
password_file = "key"
ca_file = "ca.pem"
timeout = 5
""",
    )
    assert found.to == Email(
        HostPort("smtp.example", 2525), "t@example.com", ("o@example.com",), "tls", "me", KEY, folder / "ca.pem", 5.0
    )


@pytest.mark.parametrize(("security", "port"), [("starttls", 587), ("tls", 465), ("none", 25)])
def test_the_usual_port_goes_with_the_security(folder: Path, security: str, port: int) -> None:
    (found,) = server(folder, MAIL + f'security = "{security}"\n')
    assert isinstance(found.to, Email)
    assert found.to.where.port == port


def test_a_client_has_notices_too_and_what_is_not_written_is_as_usual(folder: Path) -> None:
    (folder / "key").write_text("token")
    config = load_client(write(folder, f'server = "a"\ntoken_file = "key"\n{HOOK}'))
    assert config.notices == (NoticeConfig("ops", Webhook("https://hooks.example/T0/s3cret")),)


def test_a_secret_as_receivers_of_standard_webhooks_show_it_is_decoded(folder: Path) -> None:
    (found,) = server(folder, HOOK + 'secret_file = "standard"\n')
    assert isinstance(found.to, Webhook)
    assert found.to.secret == bytes(range(10))


def test_a_url_may_stand_in_a_file_of_its_own(folder: Path) -> None:
    (found,) = server(folder, HOOK.replace('url = "https://hooks.example/T0/s3cret"', 'url_file = "url"'))
    assert isinstance(found.to, Webhook)
    assert found.to.url == f"https://hooks.example/{KEY}"


NEAR = HOOK.replace("https://hooks.example", "http://127.0.0.1:9")
MISTAKES = [
    ("[[notices]]\n", "notices[0].name", "is missing"),
    ('[[notices]]\nname = "a"\n', "notices[0].type", "is missing"),
    ('[[notices]]\nname = "a"\ntype = "pigeon"\nurl = "x"\n', "notices[0].type", "is no type of notice"),
    ('[[notices]]\nname = "a b"\ntype = "webhook"\nurl = "https://a"\n', "notices[0].name", None),
    ('[[notices]]\nname = "a"\ntype = "webhook"\n', "notices[0].url", "is missing"),
    ('[notices]\nname = "a"\ntype = "webhook"\nurl = "https://a"\n', "notices", "stands once, but is a list of tables"),
    (HOOK + HOOK, "notices[1].name", "is the name at notices[0].name (line 3) too"),
    (HOOK * (MAX_NOTICES + 1), "notices", f"has {MAX_NOTICES + 1} members"),
    (HOOK + 'urk = "x"\n', "notices[0].urk", "is not a key here"),
    (HOOK + 'host = "a"\n', "notices[0].host", "means nothing to a notice of type webhook"),
    (MAIL + 'url = "https://a"\n', "notices[0].url", "means nothing to a notice of type email"),
    (HOOK + 'url_file = "url"\n', "notices[0].url_file", "stands beside url"),
    (HOOK + "events = []\n", "notices[0].events", "is empty"),
    (HOOK + 'events = ["bind_failed", "birthday"]\n', "notices[0].events[1]", "is no event that is told"),
    (HOOK + "after = -1\n", "notices[0].after", "is out of range"),
    (HOOK + "days = 31\n", "notices[0].days", "is out of range"),
    (HOOK + 'proxies = ["a b"]\n', "notices[0].proxies[0]", "is no name, nor a pattern of names"),
    (HOOK + 'format = "xml"\n', "notices[0].format", "is no format"),
    (HOOK + 'proxy = "socks5://a"\n', "notices[0].proxy", "is no URL of http or https"),
    (HOOK + 'proxy = "http://a/path"\n', "notices[0].proxy", "has a path, which a proxy has not"),
    (HOOK + '[notices.retry]\nmax_retries = "forever"\n', "notices[0].retry", "never gives up, and later notices would wait for ever"),  # noqa: E501
    *[
        (HOOK.replace("https://hooks.example/T0/s3cret", url), "notices[0].url", problem)
        for url, problem in [
            ("ftp://a/s3cret", "is no URL of https or http"),
            ("https:///s3cret", "is no URL of https or http"),
            ("https://a..b/s3cret", "names no host"),
            ("https://a:99999/s3cret", "is no URL"),
            ("https://a:0/s3cret", "has port 0"),
            ("https://[::1/s3cret", "is no URL"),
            ("https://a/s3cret#there", "has a fragment (#), which is never sent"),
            ("https://a/s3 cret", "is no URL of https or http"),
            ("https://me:s3cret@a/", "has a user name in it"),
        ]
    ],
    *[
        (HOOK + f'secret_file = "{name}"\n', "notices[0].secret_file", problem)
        for name, problem in [
            ("gone", "there is no such file"), ("open", "can be read by others (mode 0644)"),
            ("short", "holds no secret of one line with 16 characters at least"),
            ("lines", "holds no secret of one line with 16 characters at least"),
            ("bad64", "begins with whsec_ and goes on as no Base64"),
        ]
    ],
    *[
        (HOOK + f'headers_file = "{name}"\n', "notices[0].headers_file", problem)
        for name, problem in [
            ("noheaders", "holds no header"), ("badheaders", "has no header in line 1"),
            ("host", "has Host in line 1, which is set for each notice"),
            ("signature", "has Webhook-Id in line 1, which is set for each notice"),
        ]
    ],
    (HOOK.replace("https", "http") + 'headers_file = "headers"\n', "notices[0].headers_file", "would be sent over http, for everybody on the way to read"),  # noqa: E501
    ('[[notices]]\nname = "a"\ntype = "webhook"\nurl_file = "badurl"\n', "notices[0].url_file", "is no URL of https or http"),  # noqa: E501
    ('[[notices]]\nname = "a"\ntype = "email"\n', "notices[0].host", "is missing"),
    (MAIL.replace("t@example.com", "Tunnel <t@example.com>"), "notices[0].from", "is no mail address"),
    (MAIL.replace("o@example.com", "o@example.com\\r\\nBcc: x@y"), "notices[0].to[0]", "is blank or has control characters"),  # noqa: E501
    (MAIL.replace('["o@example.com"]', "[]"), "notices[0].to", "is empty"),
    (MAIL.replace('["o@example.com"]', str([f"o{n}@e.com" for n in range(MAX_RECIPIENTS + 1)])), "notices[0].to", f"has {MAX_RECIPIENTS + 1} members"),  # noqa: E501
    (MAIL + 'username = "me"\n', "notices[0].password_file", "is missing"),
    (MAIL + 'password_file = "key"\n', "notices[0].username", "is missing"),
    (MAIL + 'username = "me"\npassword_file = "empty"\n', "notices[0].password_file", "holds no password of one line in ASCII"),  # noqa: E501
    (MAIL + 'username = "me"\npassword_file = "umlaut"\n', "notices[0].password_file", "holds no password of one line in ASCII"),  # noqa: E501
    (MAIL + 'security = "none"\nusername = "me"\npassword_file = "key"\n', "notices[0].security", "would send the password for everybody on the way to read"),  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize(("text", "path", "problem"), MISTAKES)
def test_each_mistake_is_told_with_its_place_and_shows_no_secret(
    folder: Path, text: str, path: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        server(folder, text)
    found = {mistake.path: mistake for mistake in caught.value.mistakes}
    assert path in found
    assert problem is None or found[path].problem == problem
    assert found[path].line > 1
    assert found[path].remedy
    assert "s3cret" not in str(caught.value)
    assert "s3 cret" not in str(caught.value)


def test_one_mistake_hides_no_other(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        server(folder, HOOK + "after = -1\ndays = 0\n" + MAIL.replace("smtp.example", "a b") + "port = 0\n")
    assert [mistake.path for mistake in caught.value.mistakes] == [
        "notices[0].after", "notices[0].days", "notices[1].host", "notices[1].port",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["clients", "expected"])
def test_clients_mean_nothing_at_a_client(folder: Path, key: str) -> None:
    (folder / "key").write_text("token")
    with pytest.raises(ConfigError, match="means nothing at a client"):
        load_client(write(folder, f'server = "a"\ntoken_file = "key"\n{HOOK}{key} = ["home"]\n'))


@pytest.mark.parametrize("text", [HOOK + 'secret_file = "gone"\n', MAIL + 'username = "a"\npassword_file = "gone"\n',
                                  '[[notices]]\nname = "a"\ntype = "webhook"\nurl_file = "gone"\n'])  # fmt: skip
def test_a_check_on_another_machine_only_warns_of_a_secret_that_is_not_there(folder: Path, text: str) -> None:
    report = check_file(write(folder, SERVER + text))
    assert report.mistakes == ()
    assert [warning.problem for warning in report.warnings] == ["there is no such file"]


@pytest.mark.parametrize(
    "text",
    [
        NEAR + 'headers_file = "headers"\n',
        MAIL.replace("smtp.example", "localhost") + 'security = "none"\nusername = "me"\npassword_file = "key"\n',
    ],
)
def test_what_stays_on_this_machine_may_be_in_the_clear(folder: Path, text: str) -> None:
    assert len(server(folder, text)) == 1


def test_a_configuration_shows_no_secret_of_its_notices(folder: Path) -> None:
    found: Any = server(
        folder,
        HOOK + 'secret_file = "key"\nheaders_file = "headers"\n' + MAIL + 'username = "me"\npassword_file = "key"\n',
    )
    assert "s3cret" not in repr(found)
