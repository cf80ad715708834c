"""From nothing to a working tunnel, and every way of being told no: B3, B4, B5."""

import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from processes import (
    LOOPBACK,
    Client,
    Process,
    Server,
    Stage,
    ask_echo,
    can_listen,
    free_port,
    held_port,
    http_get,
    proxy_toml,
)
from services import Services, echo

from tunnel.certificates import make_self_signed

WRONG_TOKEN = "tt_" + "A" * 43
WRONG_PIN = "sha256:" + "0" * 64


# serve


@pytest.mark.slow
def test_first_start_prints_the_line_to_paste_and_then_where_it_listens(stage: Stage) -> None:
    server = stage.serve()
    line = (
        rf"TRIO_TUNNEL_TOKEN=tt_[\w-]{{43}} trio-tunnel connect 127\.0\.0\.1:{server.port} --pin sha256:[0-9a-f]{{64}}"
    )
    assert len(server.out) == 2
    assert re.fullmatch(line, server.out[0])
    assert server.out[1] == f"listening on 127.0.0.1:{server.port}"
    assert server.token not in server.stderr


@pytest.mark.slow
def test_state_is_for_its_owner_only_and_holds_the_token_as_sha256(stage: Stage) -> None:
    server = stage.serve()
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700
    stage.until(lambda: (server.state / "history.sqlite-wal").exists(), "the history is open")
    files = {path.name: path for path in server.state.iterdir() if not path.name.endswith("-journal")}
    assert {"server.key", "server.crt", "tokens.json", "admin.token"} <= set(files)
    assert {name: stat.S_IMODE(path.stat().st_mode) for name, path in files.items()} == dict.fromkeys(files, 0o600)
    assert json.loads(files["tokens.json"].read_text())["default"]["sha256"] == (
        hashlib.sha256(server.token.encode()).hexdigest()
    )
    assert not [name for name, path in files.items() if server.token.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_later_start_keeps_key_pin_and_tokens_and_shows_no_token(stage: Stage, echo_port: int) -> None:
    first = stage.serve()
    first.terminate()
    assert first.wait() == 0
    second = stage.serve(state=first.state)
    line, hint, listening = second.out
    assert line == f"trio-tunnel connect {second.where} --pin {first.pin}"
    assert "trio-tunnel token new NAME" in hint
    assert hint.startswith("#")  # pasted with the rest it does no harm
    assert listening == f"listening on {second.where}"
    client = stage.connect(second, f"web=127.0.0.1:0:{echo_port}", token=first.token)
    ask_echo(*client.wait_healthy("web"))


@pytest.mark.slow
def test_with_a_config_no_line_and_no_token_is_printed(stage: Stage) -> None:
    server = stage.serve(config="bind_port = 0\n")
    assert server.out == [f"listening on {server.where}"]
    assert "tt_" not in server.stderr
    assert not (server.state / "tokens.json").exists()


@pytest.mark.slow
def test_the_pasted_line_with_a_proxy_appended_is_a_working_tunnel(stage: Stage, services: Services) -> None:
    server = stage.serve()
    public, target = free_port(), services.add(services.http)
    client = stage.shell(f"{server.paste} -p web=127.0.0.1:{public}:127.0.0.1:{target}")
    client.wait_line(rf"web: healthy at 127\.0\.0\.1:{public} -> 127\.0\.0\.1:{target}")
    assert http_get(public) == (200, services.page)
    if curl := shutil.which("curl"):
        got = subprocess.run([curl, "-sS", f"http://127.0.0.1:{public}/"], capture_output=True, timeout=10, check=True)
        assert got.stdout == services.page
    assert server.token not in Path(f"/proc/{client.pid}/cmdline").read_text()
    assert server.token not in client.stderr + client.stdout + server.stderr  # B43


@pytest.mark.slow
def test_the_line_of_an_ipv6_server_works_in_a_shell(stage: Stage, echo_port: int) -> None:
    """Brackets are a pattern to a shell."""
    if not can_listen(0, "::1"):
        pytest.skip("this host has no IPv6")
    server = stage.start("serve", "--listen", "[::1]:0", "--admin", "off", "--state-dir", stage.path("s"), kind=Server)
    server.wait_listening()
    public = free_port()
    client = stage.shell(f"{server.paste} -p web=127.0.0.1:{public}:{echo_port}")
    client.wait_line("web: healthy")
    ask_echo(public)


@pytest.mark.slow
def test_the_public_host_is_what_the_line_names(stage: Stage) -> None:
    server = stage.serve("--public-host", "tunnel.example.com")
    assert f" trio-tunnel connect tunnel.example.com:{server.port} --pin " in server.paste


@pytest.mark.slow
def test_several_addresses_are_all_served_and_all_in_the_line_to_paste(stage: Stage, echo_port: int) -> None:
    server = stage.serve("--listen", "127.0.0.2:0")
    second = server.wait_line(r"^listening on (127\.0\.0\.2:\d+)$").group(1)
    assert server.out[1:] == [f"listening on {server.where}", f"listening on {second}"]
    assert f" trio-tunnel connect {server.where} {second} --pin " in server.paste
    pasted = stage.shell(f"{server.paste} -p web=127.0.0.1:0:{echo_port}")
    pasted.wait_line("web: healthy")
    pasted.terminate()
    assert pasted.wait() == 0
    by_second = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", where=second)
    ask_echo(*by_second.wait_healthy("web"))


@pytest.mark.slow
def test_token_new_works_at_once_and_revoked_no_more(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    secret = stage.run("token", "new", "lab", "--state-dir", server.state).stdout
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", token=secret)
    client.wait_healthy("web")
    assert server.stats()["sessions"][0]["client"] == "lab"
    client.terminate()
    assert client.wait() == 0
    stage.run("token", "revoke", "lab", "--state-dir", server.state)
    again = stage.connect(server, token=secret, more=["--once"])
    assert again.wait() == 3


@pytest.mark.slow
def test_a_port_that_is_taken_is_a_failure_that_names_it(stage: Stage) -> None:
    with held_port() as holder:
        port = holder.getsockname()[1]
        process = stage.run(
            "serve", "--listen", f"127.0.0.1:{port}", "--admin", "off", "--state-dir", stage.path("s"), code=1
        )
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in process.stderr
    assert "listening" not in process.stdout
    assert stage.serve(state=stage.path("s")).token  # the start that failed did not use it up


@pytest.mark.slow
def test_of_several_addresses_one_that_is_taken_is_named_and_none_is_served(stage: Stage) -> None:
    free = free_port()
    with held_port() as holder:
        port = holder.getsockname()[1]
        process = stage.run(
            "serve", "--listen", f"127.0.0.1:{free}", "--listen", f"127.0.0.1:{port}", "--admin", "off",
            "--state-dir", stage.path("s"), code=1,
        )  # fmt: skip
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in process.stderr
    assert process.stdout == ""
    assert can_listen(free)


@pytest.mark.slow
def test_the_admin_address_taken_ends_the_start_only_if_it_was_asked_for(stage: Stage) -> None:
    with held_port() as holder:
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        common = ["--listen", "127.0.0.1:0", "--state-dir", stage.path("s")]
        asked = stage.run("serve", *common, "--admin", taken, code=1)
        assert f"admin address {taken} is already in use" in asked.stderr
        assert "--admin" in asked.stderr
        client = stage.run(
            "connect", "127.0.0.1:1", "--admin", taken, "--state-dir", stage.path("s"), code=1,
            env={"TRIO_TUNNEL_TOKEN": WRONG_TOKEN},
        )  # fmt: skip
        assert f"admin address {taken} is already in use" in client.stderr
    with socket.socket() as default:  # whoever else holds it does as well
        default.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            default.bind((LOOPBACK, 8480))
            default.listen()
        except OSError:
            pass
        server = stage.start("serve", *common)
        server.wait_line("^listening on ")
        server.wait_log(r"WARNING .*127\.0\.0\.1:8480")
        server.terminate()
        assert server.wait() == 0


# Refusals


def refused(stage: Stage, *words: object, code: int, token: str = WRONG_TOKEN) -> str:
    """What `connect --once` says as it ends."""
    return stage.run("connect", *words, "--once", code=code, env={"TRIO_TUNNEL_TOKEN": token}).stderr


@pytest.mark.slow
def test_each_refusal_has_its_own_message_and_exit_code(stage: Stage) -> None:
    server = stage.serve()
    messages = {
        "token": refused(stage, server.where, "--pin", server.pin, code=3),
        "pin": refused(stage, server.where, "--pin", WRONG_PIN, code=3, token=server.token),
        "certificate": refused(stage, server.where, code=3, token=server.token),
        "host": refused(stage, "no-such-host.invalid", "--pin", server.pin, code=1),
        "nothing": refused(stage, f"127.0.0.1:{free_port()}", "--pin", server.pin, code=1),
    }
    assert "does not know this token" in messages["token"]
    assert server.pin in messages["pin"]  # what it found, to compare
    assert "--pin" in messages["certificate"]
    assert "not trusted" in messages["certificate"]
    assert "no-such-host.invalid" in messages["host"]
    assert "refused" in messages["nothing"]
    assert len({message.split(": ", 1)[-1] for message in messages.values()}) == 5
    for message in messages.values():
        assert "Traceback" not in message
        assert server.token not in message


@pytest.mark.slow
def test_without_once_a_refused_client_stays_and_says_why_and_when(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    clients = [
        (stage.connect(server, f"web=127.0.0.1:0:{echo_port}", token=WRONG_TOKEN), "does not know this token"),
        (stage.connect(server, f"web=127.0.0.1:0:{echo_port}", pin=WRONG_PIN), "pin"),
    ]
    for client, why in clients:
        status = client.until(
            lambda client=client, why=why: next(
                (one for one in client.statuses if why in (one["error_message"] or "")), None
            ),
            f"a status that says {why!r}",
        )
        assert status["status"] == "unhealthy"
        assert status["retry_after_seconds"] == 30
        client.wait_log("trying again in 30 s")
        assert client.popen.poll() is None


@pytest.mark.slow
def test_no_secret_is_sent_before_the_server_is_verified(stage: Stage) -> None:
    """An impostor with a certificate of its own gets a handshake and not one byte more; without TLS not even that."""
    cert, key = make_self_signed([LOOPBACK])
    files = stage.path("cert.pem"), stage.path("key.pem")
    files[0].write_bytes(cert)
    files[1].write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    got: list[bytes] = []

    def pose(listener: socket.socket) -> None:
        for _ in range(2):
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(5)
                try:
                    with context.wrap_socket(sock, server_side=True) as tls:
                        got.append(tls.recv(65536))
                except (ssl.SSLError, OSError):
                    got.append(b"")

    with held_port() as listener:
        posing = threading.Thread(target=pose, args=(listener,))
        posing.start()
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        refused(stage, where, "--pin", WRONG_PIN, code=3)
        refused(stage, where, code=3)
        posing.join(10)
    assert got == [b"", b""]


@pytest.mark.slow
def test_a_ca_that_is_given_verifies_the_server_and_its_name(stage: Stage, echo_port: int) -> None:
    import trustme

    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(stage.path("ca.pem"))
    other.cert_pem.write_to_path(stage.path("other.pem"))
    issued = ca.issue_cert("localhost")
    stage.write("key.pem", issued.private_key_pem.bytes().decode())
    stage.path("cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    token = "lab-token-" + "x" * 30
    server = stage.serve(
        config=f'[tls]\ncert_file = "cert.pem"\nkey_file = "key.pem"\n[[clients]]\nname = "lab"\n'
        f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\nallow_ports = ["1-65535"]\n'
    )

    def connect(host: str, ca_file: str) -> Process:
        proxy = proxy_toml("web", 0, echo_port)
        path = stage.new_path("client")
        stage.write(path.name, f'ca_file = "{ca_file}"\n{proxy}')
        words = ["connect", f"{host}:{server.port}", "-c", path, "--json", "--once"]
        return stage.start(*words, kind=Client, env={"TRIO_TUNNEL_TOKEN": token})

    good = connect("localhost", "ca.pem")
    ask_echo(*good.wait_healthy("web"))
    unknown_ca, wrong_name = connect("localhost", "other.pem"), connect("127.0.0.1", "ca.pem")
    assert (unknown_ca.wait(), wrong_name.wait()) == (3, 3)
    assert "unable to get local issuer" in unknown_ca.stderr
    assert "mismatch" in wrong_name.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("tt_" + "A" * 43 + "\n", 0o644, "can be read by others (mode 0644)"),
        ("", 0o600, "holds no token"),
        (None, 0o600, "there is no such file"),
    ],
    ids=["readable by others", "empty", "missing"],
)
def test_a_token_file_that_is_no_secret_is_refused_by_name(
    stage: Stage, content: str | None, mode: int, problem: str
) -> None:
    if content is not None:
        stage.write("home.token", content, mode=mode)
    stage.write("client.toml", 'server = "127.0.0.1:1"\ntoken_file = "home.token"\n')
    for words in (["127.0.0.1:1", "--token-file", "home.token"], ["-c", "client.toml"]):
        message = stage.run("connect", *words, code=2).stderr
        assert "home.token" in message
        assert problem in message


@pytest.mark.slow
def test_no_token_and_a_blank_one_are_mistakes_and_never_no_authentication(stage: Stage) -> None:
    assert "TRIO_TUNNEL_TOKEN" in stage.run("connect", "127.0.0.1:1", code=2).stderr
    blank = stage.run("connect", "127.0.0.1:1", code=2, env={"TRIO_TUNNEL_TOKEN": " "})
    assert "holds no token" in blank.stderr


@pytest.mark.slow
def test_a_good_token_file_lets_one_in(stage: Stage, services: Services) -> None:
    server = stage.serve()
    stage.write("home.token", server.token + "\n")
    client = stage.start(
        "connect", server.where, "--pin", server.pin, "--token-file", "home.token", "--json",
        "-p", f"web=127.0.0.1:0:{services.add(echo)}", kind=Client,
    )  # fmt: skip
    ask_echo(*client.wait_healthy("web"))
    environ = Path(f"/proc/{client.pid}/environ")
    assert not os.path.exists(environ) or server.token not in environ.read_text()
