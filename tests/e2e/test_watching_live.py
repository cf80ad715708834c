"""Changed files at living processes, without any signal: what changed is in force, a download loses not one byte (B35,
B42, B43)."""

import shutil
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from processes import LOOPBACK, Client, Server, Stage, ask_echo, dial, free_port, proxy_toml
from services import Services
from test_reload_live import MIB, Download, send_file

from tunnel.state import hash_token

OTHER = "tt_" + "o" * 43


def shown_certificate(port: int) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((LOOPBACK, port), 10) as sock, context.wrap_socket(sock) as secured:
        return secured.getpeercert(binary_form=True)


def put_pair(ca: trustme.CA, folder: Path) -> None:
    """A new pair, as certbot puts it: the files one after the other, each by a rename."""
    pair = ca.issue_cert(LOOPBACK)
    for name, blobs in (("cert.pem", pair.cert_chain_pems), ("key.pem", [pair.private_key_pem])):
        (folder / "new").write_bytes(b"".join(blob.bytes() for blob in blobs))
        (folder / "new").chmod(0o600)
        (folder / "new").rename(folder / name)


@pytest.mark.slow
def test_a_download_goes_on_to_the_byte_through_eleven_reloads_of_all_else(
    stage: Stage, services: Services, echo_port: int
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(stage.path("ca.pem"))
    put_pair(ca, stage.folder)
    tls = f'[tls]\ncert_file = "{stage.path("cert.pem")}"\nkey_file = "{stage.path("key.pem")}"\n'
    home = f'[[clients]]\nname = "home"\ntoken_sha256 = "{hash_token("home-token").hex()}"\nallow_ports = ["1-65535"]\n'
    lab = f'[[clients]]\nname = "lab"\ntoken_sha256 = "{hash_token(OTHER).hex()}"\n'
    server = stage.serve(config=tls + home)
    files, public = services.add(send_file), free_port()
    more = proxy_toml("more", free_port(), echo_port)
    web = proxy_toml("web", public, files)
    first = f'ca_file = "{stage.path("ca.pem")}"\n' + web
    server.pin = "sha256:" + "0" * 64
    client: Client = stage.start(
        "connect", server.where, "-c", stage.write("home.toml", first), "--json", kind=Client,
        env={"TRIO_TUNNEL_TOKEN": "home-token"},
    )  # fmt: skip
    client.config = stage.path("home.toml")
    client.wait_healthy("web")
    limits = "[limits]\nhead_seconds = 4\nmax_visitors = 900\nbuffer_budget = 67108864\n"
    steps = [
        (server, tls + home + limits, "limits: max_visitors is 900"),
        (client, first + more, "proxy 'more' is new"),
        (server, tls + home + lab, "clients: new: lab"),
        (client, first + more + "hot = 1\n", "proxy 'more' keeps its listener"),
        (server, 'log_level = "debug"\n' + tls + home + lab, "log level: debug"),
        (client, first + more + "hot = 1\n[limits]\ndial_seconds = 3\n", "limits: dial_seconds is 3"),
        (server, tls + lab + home + '[bind_retry]\nmax_retries = "forever"\n', "bind retry: for ever"),
        (client, first, "proxy 'more' is closed"),
        (server, tls + home, "clients: removed: lab"),
        (client, 'log_level = "debug"\n' + first, "log level: debug"),
    ]

    def put(process: Server | Client, text: str) -> int:
        """Rename a new file over the old one; returns where the log stands."""
        start, path = len(process.err), process.config
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").rename(path)
        return start

    with dial(public) as visitor:
        download = Download(visitor)
        download.read(MIB)
        since = server.proxies()["web"]["since"]
        for both in zip(steps[::2], steps[1::2], strict=True):  # at both ends at once, which takes half the time
            starts = [put(process, text) for process, text, _ in both]
            for (process, _, word), start in zip(both, starts, strict=True):
                process.wait_log(word, start=start)
                process.wait_log("the configuration was read again", start=start)
            download.read(MIB)
        before = shown_certificate(server.port)
        put_pair(ca, stage.folder)
        server.wait_log("new connections get the certificate")
        assert shown_certificate(server.port) != before
        assert server.proxies()["web"]["since"] == since
        download.finish()
    assert "needs a restart" not in server.stderr + client.stderr
    assert "not changed" not in server.stderr + client.stderr


@pytest.mark.slow
def test_a_new_token_is_taken_at_once_and_a_mistake_changes_nothing(stage: Stage, echo_port: int) -> None:
    server = stage.serve(config="[bind_retry]\n")
    old, new = (
        stage.run("token", "new", name, "--state-dir", server.state).out[0].split()[-1] for name in ("old", "new")
    )
    token = stage.write("home.token", old)
    public = free_port()
    path = stage.write(
        "home.toml", f'token_file = "home.token"\npin = "{server.pin}"\n' + proxy_toml("web", public, echo_port)
    )
    client: Client = stage.start("connect", server.where, "-c", path, "--json", kind=Client)
    client.wait_healthy("web")
    token.write_text("two\nlines\n")
    client.wait_log("holds more than one line; leave only the token")
    client.wait_log("the configuration was not changed: 1 mistake to mend")
    ask_echo(public)
    start = len(client.out)
    token.write_text(new)
    client.wait_log("the token is another one: a new session begins with it, at once")
    client.wait_healthy("web", start=start)
    ask_echo(public)
    stage.until(
        lambda: [session["client"] for session in server.stats()["sessions"]] == ["new"], "the old one's has ended"
    )
    folder = stage.path("away")
    folder.mkdir()
    start = len(client.err)
    shutil.move(path, folder / "home.toml")
    client.wait_log("cannot be read: No such file or directory", start=start)
    shutil.move(folder / "home.toml", path)
    client.wait_log("read again: nothing to change", start=start)
    ask_echo(public)
    assert new not in client.stderr
    assert old not in client.stderr
