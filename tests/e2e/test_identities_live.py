"""Tokens, entries and certificates that change beside running processes, and secrets that never show (B3, B4, B43)."""

import hashlib
import json
import signal
import socket
import ssl
import time
from pathlib import Path

import pytest
import trustme
from processes import (
    LOOPBACK,
    Client,
    Process,
    Server,
    Stage,
    allowed,
    ask_echo,
    can_listen,
    dial,
    free_port,
    http_get,
    proxy_toml,
)

CHOSEN = "correct-horse-battery-staple"  # a token that does not look like one, which no filter could know
WRONG = "wrong-donkey-battery-staple"
ENTRY = '[[clients]]\nname = "lab"\ntoken_sha256 = "{}"\n{}'


def entry(more: str = 'allow_ports = ["1-65535"]\n', token: str = CHOSEN) -> str:
    return ENTRY.format(hashlib.sha256(token.encode()).hexdigest(), more)


def reload(process: Process, wanted: str) -> None:
    start = len(process.err)
    process.send(signal.SIGHUP)
    process.wait_log(wanted, start=start)


@pytest.mark.slow
def test_a_revoked_token_ends_its_session_within_a_second_and_the_client_says_why(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    tokens = [stage.run("token", "new", name, "--state-dir", server.state).stdout for name in ("lab", "home")]
    ports = [free_port(), free_port(), free_port()]
    staying: Client = stage.connect(server, f"web={LOOPBACK}:{ports[0]}:{echo_port}")
    once: Client = stage.connect(server, f"web={LOOPBACK}:{ports[1]}:{echo_port}", token=tokens[0], more=["--once"])
    ever: Client = stage.connect(server, f"web={LOOPBACK}:{ports[2]}:{echo_port}", token=tokens[1])
    for client in (staying, once, ever):
        client.wait_healthy("web")
    with dial(ports[0]) as visitor:
        for name in ("lab", "home"):
            told = stage.run("token", "revoke", name, "--state-dir", server.state)
            assert (
                told.stdout
                == f"the token of client '{name}' is revoked; a server that runs ends its session within a second"
            )
        revoked = time.monotonic()
        assert once.wait(3) == 3
        lost = ever.wait_status("web", reason="session_lost")
        assert time.monotonic() - revoked < allowed(1.5)
        assert can_listen(ports[1])
        assert can_listen(ports[2])
        why = "the token was revoked: the server knows no client 'lab' with this token any more; ask there for another"
        assert f"trio-tunnel: {why}: trio-tunnel token new NAME" in once.stderr
        assert lost["retry_after_seconds"] == 30
        server.wait_log("client 'lab': its token is good no more, and its session ends")
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x"  # of another client: it never noticed
    ask_echo(ports[0])


@pytest.mark.slow
def test_an_entry_that_changes_is_in_force_after_sighup_and_a_bad_certificate_changes_nothing(
    stage: Stage, echo_port: int
) -> None:
    ca, one, other = trustme.CA(), free_port(), free_port()
    stage.write("cert.pem", "").write_bytes(chain(ca, first := ca.issue_cert("localhost")))
    stage.write("key.pem", "").write_bytes(first.private_key_pem.bytes())
    tls = '[tls]\ncert_file = "cert.pem"\nkey_file = "key.pem"\n'
    ca.cert_pem.write_to_path(stage.path("ca.pem"))
    server = stage.serve(config=tls + entry())
    proxies = "".join(proxy_toml(name, port, echo_port) for name, port in (("a", one), ("b", other)))
    path = stage.write("c.toml", f'server = "localhost:{server.port}"\nca_file = "ca.pem"\n{proxies}')
    client: Client = stage.start("connect", "-c", path, "--json", kind=Client, env={"TRIO_TUNNEL_TOKEN": CHOSEN})
    client.wait_healthy("a", "b")
    with dial(one) as visitor:
        # Fewer ports: the one is closed with its reason, the other never blinks.
        server.config.write_text(tls + entry(f'allow_ports = ["{one}"]\nmax_visitor_rate = 100\n'))
        reload(server, "read again: 1 change$")
        client.wait_status("b", reason="not_allowed", status="bind_failed")
        assert can_listen(other)
        server.wait_log("clients: changed: lab")

        # A new certificate on disk: new handshakes get it, the session stays.
        before = serial(server, ca)
        second = ca.issue_cert("localhost")
        stage.path("key.pem").write_bytes(second.private_key_pem.bytes())
        stage.path("cert.pem").write_bytes(chain(ca, second))
        server.wait_log("new connections get the certificate that .*cert.pem holds now, good until")
        assert serial(server, ca) != before

        # A pair that is none, by SIGHUP and another file: nothing of the file counts.
        stage.write("new.pem", "").write_bytes(chain(ca, ca.issue_cert("localhost")))
        server.config.write_text(tls.replace("cert.pem", "new.pem") + entry())
        reload(server, "the configuration was not changed: 1 mistake to mend")
        assert "they do not belong together, or one is damaged; put both there as they were issued" in server.stderr
        assert client.statuses[-1]["reason"] == "not_allowed"
        assert serial(server, ca) != before

        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x"
    # The entry is gone: so is the session.
    server.config.write_text(tls)
    reload(server, "read again: 1 change$")
    client.wait_status("a", reason="session_lost")
    client.wait_log("the token was revoked: the server knows no client 'lab' with this token any more")


def chain(ca: trustme.CA, issued: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in issued.cert_chain_pems)


def serial(server: Server, ca: trustme.CA) -> object:
    """What tells the certificate that the server shows now."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    sock = socket.create_connection((LOOPBACK, server.port))
    with context.wrap_socket(sock, server_hostname="localhost") as tls:
        assert tls.version() == "TLSv1.3"
        return tls.getpeercert()["serialNumber"]


@pytest.mark.slow
def test_a_server_that_wants_client_certificates_says_so_and_takes_good_ones(stage: Stage, echo_port: int) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(stage.path("ca.pem"))
    issued = ca.issue_cert("lab.example")
    stage.write("lab.pem", "").write_bytes(chain(ca, issued))
    stage.write("lab.key", "").write_bytes(issued.private_key_pem.bytes())
    server = stage.serve(config='[tls]\nclient_ca_file = "ca.pem"\n' + entry())
    none: Client = stage.connect(server, token=CHOSEN, more=["--once"])
    assert none.wait() == 3
    assert "does not take this client's certificate: it wants one, and none was given; give one that" in none.stderr
    shown = ["--cert-file", "lab.pem", "--key-file", "lab.key"]
    good: Client = stage.connect(server, f"web={LOOPBACK}:0:{echo_port}", token=CHOSEN, more=shown)
    ask_echo(*good.wait_healthy("web"))
    wrong: Client = stage.connect(server, token=WRONG, more=["--once", *shown])
    assert wrong.wait() == 3
    assert "does not know this token" in wrong.stderr
    stage.path("lab.key").chmod(0o644)
    refused: Client = stage.connect(server, token=CHOSEN, more=["--once", *shown])
    assert refused.wait() == 2
    assert "--key-file: lab.key: can be read by others (mode 0644); run: chmod 600 lab.key" in refused.stderr


# Secrets


OPTION, CONFIG, VARIABLE = "--token-file", "token_file", "TRIO_TUNNEL_TOKEN"
# What is in the file, its mode, what is in the environment, and what comes of it.
FILES = [
    ("wrong", WRONG, 0o600, None, 3, "does not know this token"),
    ("empty", "", 0o600, None, 2, "holds no token"),
    ("blank", " \n", 0o600, None, 2, "holds no token"),
    ("missing", None, 0, None, 2, "there is no such file"),
    ("open to the group", CHOSEN, 0o640, None, 2, "can be read by others (mode 0640); run: chmod 600"),
    ("open to all", CHOSEN, 0o604, None, 2, "can be read by others (mode 0604); run: chmod 600"),
    ("empty beside a good variable", "", 0o600, CHOSEN, 2, "holds no token"),
]
VARIABLES = [
    ("wrong", None, 0, WRONG, 3, "does not know this token"),
    ("empty", None, 0, "", 2, "TRIO_TUNNEL_TOKEN: holds no token"),
    ("blank", None, 0, " ", 2, "TRIO_TUNNEL_TOKEN: holds no token"),
    ("missing", None, 0, None, 2, "token_file: is missing"),
]
WAYS = [(way, *what) for way in (OPTION, CONFIG) for what in FILES] + [(VARIABLE, *what) for what in VARIABLES]


@pytest.mark.slow
def test_every_way_to_give_a_token_refuses_what_is_no_good(stage: Stage) -> None:
    """B4"""
    server = stage.serve(config=entry())
    started: list[Process] = []
    for number, (way, _what, text, mode, variable, _code, _said) in enumerate(WAYS):
        if text is not None:
            stage.write(f"{number}.token", text, mode=mode)
        named = f'token_file = "{number}.token"\n' if way == CONFIG else ""
        path = stage.write(f"{number}.toml", f'server = "{server.where}"\npin = "{server.pin}"\n{named}')
        words = [OPTION, f"{number}.token"] if way == OPTION else []
        env = {} if variable is None else {VARIABLE: variable}
        started.append(stage.start("connect", "-c", path, *words, "--once", env=env))
    for (way, what, *_, code, said), process in zip(WAYS, started, strict=True):
        assert process.wait(20) == code, f"{way}, {what}\n{process.report()}"
        assert said in process.stderr, f"{way}, {what}\n{process.report()}"
        assert not [secret for secret in (CHOSEN, WRONG) if secret in process.stderr + process.stdout], (way, what)
    assert server.stats()["sessions"] == []


@pytest.mark.slow
def test_every_way_to_tell_a_server_its_tokens_refuses_what_is_no_good(stage: Stage) -> None:
    """B4: and none of them leaves it open to anybody."""
    for text, said in (
        (ENTRY.format("", ""), "is blank or has control characters"),
        (ENTRY.format(hashlib.sha256(b"").hexdigest(), ""), "is the SHA-256 of nothing at all"),
        (ENTRY.format(CHOSEN, ""), "is no SHA-256 (28 characters)"),
        ('[[clients]]\nname = "lab"\n', "token_sha256: is missing"),
    ):
        path = stage.write("server.toml", text)
        process = stage.run("serve", "-c", path, "--state-dir", stage.path("s"), "--listen", f"{LOOPBACK}:0", code=2)
        assert said in process.stderr
        assert CHOSEN not in process.stderr
    server = stage.serve(config="")  # knows nobody: nobody gets in
    for token in (CHOSEN, "x"):
        assert stage.connect(server, token=token, more=["--once"]).wait() == 3
    for name, content, mode, said in (
        ("tokens.json", "", 0o600, "tokens.json is damaged"),
        ("tokens.json", "{}", 0o644, "other users may read or write"),
        ("admin.token", "", 0o600, "admin.token is damaged: it holds no token"),
        ("admin.token", "tt_" + "x" * 43, 0o640, "other users may read or write"),
    ):
        state = stage.new_path("state")
        state.mkdir(mode=0o700)
        stage.write(f"{state.name}/{name}", content, mode=mode)
        process = stage.run("serve", "--state-dir", state, "--listen", f"{LOOPBACK}:0", code=1)
        assert said in process.stderr


@pytest.mark.slow
def test_no_secret_shows_anywhere_at_any_verbosity(stage: Stage, echo_port: int) -> None:
    """B43: logs, argv, figures, states, dumps and tracebacks, through logins, failures and reloads."""
    dumps = stage.path("dumps")
    dumps.mkdir()
    server = stage.serve("-vv", "--profile-dir", dumps, config=entry())
    made = stage.run("token", "new", "home", "--state-dir", server.state).stdout.strip()
    admin_token = (server.state / "admin.token").read_text().strip()
    stage.write("home.token", CHOSEN)
    trust = f'server = "{server.where}"\npin = "{server.pin}"\ntoken_file = "home.token"\n'
    proxies = proxy_toml("web", 0, echo_port)
    path = stage.write("lab.toml", trust + proxies)
    admin = free_port()
    common = ["--json", "-vv", "--profile-dir", dumps]
    lab: Client = stage.start(
        "connect", "-c", path, "--admin", f"{LOOPBACK}:{admin}", "--state-dir", stage.path("lab-state"),
        "--log-format", "json", *common, kind=Client,
    )  # fmt: skip
    home: Client = stage.connect(server, f"web={LOOPBACK}:0:{echo_port}", token=made, more=common[1:])
    ports = [*lab.wait_healthy("web"), *home.wait_healthy("web")]
    others = [
        stage.connect(server, token=WRONG, more=["-vv", "--once"]),
        stage.connect(server, token=CHOSEN, more=["-vv", "--once"]),  # held by the first
        stage.connect(server, token=made, pin="sha256:" + "0" * 64, more=["-vv", "--once"]),
    ]
    for port in ports:
        ask_echo(port)
    assert [process.wait() for process in others] == [3, 3, 3]
    for process, changed in (
        (server, entry('allow_ports = ["1-65535"]\nmax_proxies = 2\n')),
        (lab, trust + proxies + "hot = 1\n"),
    ):
        config = server.config if process is server else path
        config.write_text(changed)
        reload(process, "read again: 1 change")
        config.write_text(changed + f'token = "{CHOSEN}"\nname2 = "{made}"\n')  # pasted where it makes no sense
        process.send(signal.SIGHUP)
        process.wait_log("the configuration was not changed")
        config.write_text(changed)
    argv = [Path(f"/proc/{process.pid}/cmdline").read_text() for process in (server, lab, home)]
    for process in (server, lab, home):
        process.send(signal.SIGUSR2)
        process.wait_log("wrote the dump")
    asked = [
        http_get(port, where)[1].decode() for port in (server.admin, admin) for where in ("/stats", "/metrics", "/")
    ]
    told = [
        stage.run("status", "--admin", f"{LOOPBACK}:{server.admin}", *json_or_not).stdout
        for json_or_not in ([], ["--json"])
    ]
    stage.run_retry("lab/web", server.admin, server.state)
    told += [
        stage.run(
            "token",
            "list",
            "-c",
            server.config,
            "--state-dir",
            server.state,
            "--admin",
            f"{LOOPBACK}:{server.admin}",
            *more,
        ).stdout
        for more in ([], ["--json"])
    ]
    stage.run("token", "revoke", "home", "--state-dir", server.state)
    home.wait_status("web", reason="session_lost")
    for process in (lab, home, server):
        process.terminate()
        assert process.wait() == 0
    outputs = [text for process in (server, lab, home, *others) for text in (process.stdout, process.stderr)]
    files = [file.read_text() for file in dumps.iterdir()]
    kept = [file.read_text() for file in server.state.iterdir() if file.suffix == ".json"]
    assert len(files) == 3
    assert all("DEBUG" in text or '"debug"' in text for text in outputs[1:6:2])
    for secret in (CHOSEN, made, WRONG, admin_token):
        places = {"argv": argv, "outputs": outputs, "answers": asked, "commands": told, "dumps": files, "state": kept}
        shown = {place: [text for text in texts if secret in text] for place, texts in places.items()}
        assert not any(shown.values()), f"{secret}: {shown}"
    (listed,) = [row for row in json.loads(told[-1]) if row["name"] == "home"]
    assert (listed["entry"], listed["allow_ports"], bool(listed["connected"])) == (False, None, True)
    assert "lab" in told[-2]
