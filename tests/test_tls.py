"""`TlsStream` on real sockets: handshake and pin, clean ends and cuts, cancellation, and being taken apart."""

import hashlib
import os
import socket
import ssl
from contextlib import asynccontextmanager
from functools import cache

import pytest
import trio
import trustme
from trio.testing import check_one_way_stream, wait_all_tasks_blocked

from tunnel.certificates import spki_pin
from tunnel.errors import Refused
from tunnel.sockets import ENDED, UNREAD, listen, peek
from tunnel.tls import TlsStream, client_context, pin_check, server_context
from tunnel.upgrade import refuse

MIB = 1024 * 1024


@cache
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls")
    certificate = authority().issue_cert("localhost")
    certificate.private_key_pem.write_to_path(path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(path / "cert.pem")
    authority().cert_pem.write_to_path(path / "ca.pem")
    return path


def pin_of(files):
    return spki_pin(ssl.PEM_cert_to_DER_cert((files / "cert.pem").read_text()))


def sockets():
    with listen("127.0.0.1", 0) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@asynccontextmanager
async def pair(files, *, shake=True, pinned=False, check=None, tickets=0):
    """(server, client); afterwards no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = sockets()
    serving = server_context(files / "cert.pem", files / "key.pem")
    serving.num_tickets = tickets
    server = TlsStream(ours, serving, server_side=True)
    context = client_context(ca_file=None if pinned else files / "ca.pem", pinned=pinned)
    client = TlsStream(theirs, context, server_side=False, server_hostname="localhost")
    with trio.fail_after(20):
        try:
            if shake:
                await hand_shake(server, client, check)
            yield server, client
        finally:
            server.close()
            client.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def hand_shake(server, client, check=None):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake, check)


async def test_with_the_right_pin_and_no_ca_bytes_go_both_ways(files):
    async with pair(files, pinned=True, check=pin_check(pin_of(files))) as (server, client):
        await client.send_all(b"ping")
        assert await server.receive_some() == b"ping"
        await server.send_all(b"pong")
        assert await client.receive_some() == b"pong"
        assert client._tls.version() == "TLSv1.3"


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_with_the_wrong_pin_the_server_sees_an_end_and_nothing_of_ours(files, end):
    async with pair(files, shake=False, pinned=True) as (server, client):
        outcome = []

        async def serve():
            try:
                await server.do_handshake()
            except (ssl.SSLError, trio.BrokenResourceError) as exc:
                outcome.append(exc)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(Refused, match="not the pinned") as caught:
                await client.do_handshake(pin_check(bytes(32)))
            before = client._outgoing.pending, client._unsent
            (client.close if end == "close" else client.abort)()
        assert caught.value.reason == "pin_mismatch"
        assert before == (0, b"")
        assert len(outcome) == 1
        if end == "close":
            assert isinstance(outcome[0], ssl.SSLEOFError)


@pytest.mark.parametrize("fault", ["unknown CA", "wrong name", "old TLS"])
async def test_without_a_good_certificate_there_is_no_handshake(files, fault):
    ours, theirs = sockets()
    server = TlsStream(ours, server_context(files / "cert.pem", files / "key.pem"), server_side=True)
    context = client_context(ca_file=None if fault == "unknown CA" else files / "ca.pem", pinned=False)
    if fault == "old TLS":
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    name = "elsewhere" if fault == "wrong name" else "localhost"
    client = TlsStream(theirs, context, server_side=False, server_hostname=name)
    errors = []

    async def shake(stream):
        try:
            await stream.do_handshake()
        except (ssl.SSLError, trio.BrokenResourceError) as exc:
            errors.append(exc)
        stream.close()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake, client)
            nursery.start_soon(shake, server)
    assert len(errors) == 2
    if fault != "old TLS":
        assert any(isinstance(exc, ssl.SSLCertVerificationError) for exc in errors)


async def test_a_clean_end_is_told_from_a_cut(files):
    async with pair(files) as (server, client):
        await client.send_all(b"last")
        await client.aclose()
        assert await server.receive_some() == b"last"
        assert await server.receive_some() == b""
        assert await server.receive_some() == b""
    async with pair(files) as (server, client):
        await client.send_all(b"last")
        client.socket.shutdown(socket.SHUT_WR)
        assert await server.receive_some() == b"last"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await server.receive_some()
    async with pair(files) as (server, client):
        client.abort()
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()


async def test_a_client_that_only_writes_and_closes_loses_no_byte(files):
    """TLS 1.3 tickets would be unread input there, and its close a reset."""
    async with pair(files) as (server, client), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def write():
            await client.send_all(bytes(100_000))
            client.close()

        total = 0
        while chunk := await server.receive_some():
            total += len(chunk)
        assert total == 100_000


async def test_big_transfers_both_ways_are_exact(files):
    block = os.urandom(MIB)
    digests = {}

    async def send(stream):
        for _ in range(8):
            await stream.send_all(block)

    async def receive(stream, name):
        digest, left = hashlib.sha256(), 8 * MIB
        while left:
            chunk = await stream.receive_some(min(left, 50_000))
            left -= len(chunk)
            digest.update(chunk)
        digests[name] = digest.hexdigest()

    async with pair(files) as (server, client):
        async with trio.open_nursery() as nursery:
            for name, stream in (("server", server), ("client", client)):
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, stream, name)
        assert set(digests.values()) == {hashlib.sha256(block * 8).hexdigest()}


async def test_a_cancelled_receive_loses_nothing(files):
    async with pair(files) as (server, client):
        for number in range(20):
            with trio.move_on_after(0.001):
                await server.receive_some()
            await client.send_all(bytes([number]))
            assert await server.receive_some() == bytes([number])


async def test_after_a_cancelled_send_the_stream_goes_on_in_order(files):
    """The rest of what was taken follows; nothing is torn or repeated."""
    async with pair(files) as (server, client):
        sent = b""
        with trio.move_on_after(0.2) as scope:
            for number in range(10_000):
                sent += bytes([number % 256]) * 65_536
                await client.send_all(bytes([number % 256]) * 65_536)
        assert scope.cancelled_caught
        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"the end")
            while not got.endswith(b"the end"):
                got += await server.receive_some()
        body = bytes(got[:-7])
        assert body == sent[: len(body)]
        assert len(sent) - len(body) in (0, 65_536)


async def test_detach_gives_all_that_was_read_and_refuses_while_in_use(files):
    async with pair(files) as (server, client), trio.open_nursery() as nursery:
        nursery.start_soon(server.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            server.detach()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            await client.send_all(b"head")
            client._tls.write(b"frame one")
            client._tls.write(b"frame two")
            await client.send_all(b"")
            assert await server.receive_some() == b"head"
            server.push_back(b"ad")
            server.push_back(b"he")
            parts = server.detach()
            assert parts.plaintext == b"head"
            while True:
                try:
                    parts.incoming.write(parts.sock.recv(65536))
                except BlockingIOError:
                    break
            assert (parts.tls.read(100), parts.tls.read(100)) == (b"frame one", b"frame two")
            with pytest.raises(trio.ClosedResourceError):
                server.detach()
            with pytest.raises(trio.ClosedResourceError):
                await server.receive_some()
            await server.aclose()  # harmless: the parts are not its own any more
            assert parts.sock.fileno() >= 0
            parts.sock.close()


async def test_detach_keeps_ciphertext_the_kernel_had_no_room_for(files):
    async with pair(files) as (server, client):
        with trio.move_on_after(0.1):
            while True:
                await server.send_all(bytes(65_536))
        parts = server.detach()
        assert len(parts.unsent) + parts.outgoing.pending > 0
        parts.sock.close()
        client.abort()


async def test_closing_wakes_who_waits(files):
    async with pair(files) as (server, _), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read():
            with pytest.raises(trio.ClosedResourceError):
                await server.receive_some()

        await wait_all_tasks_blocked()
        server.close()
        server.close()


async def test_a_refusal_arrives_though_much_is_unread(files):
    """Closing over unread input is a reset, which would overtake the answer."""
    async with pair(files) as (server, client), trio.open_nursery() as nursery:
        await client.send_all(bytes(100_000))

        @nursery.start_soon
        async def answer():
            with trio.move_on_after(2):
                await refuse(server, 401, "token_refused", "no")
            server.close()

        data = b""
        while chunk := await client.receive_some():
            data += chunk
        client.close()
        assert data.startswith(b"HTTP/1.1 401 ")


async def test_it_keeps_trios_rules_for_streams(files):
    """All but one: two tasks may send at once (they take turns), where Trio would rather be told of it."""
    contexts = (
        server_context(files / "cert.pem", files / "key.pem"),
        client_context(ca_file=files / "ca.pem", pinned=False),
    )

    class OneSender(TlsStream):
        _sending = False

        async def send_all(self, data):
            if self._sending:
                raise trio.BusyResourceError
            self._sending = True
            try:
                await super().send_all(data)
            finally:
                self._sending = False

        async def wait_send_all_might_not_block(self):
            if self._sending:
                raise trio.BusyResourceError
            self._sending = True
            try:
                await super().wait_send_all_might_not_block()
            finally:
                self._sending = False

    async def make():
        ours, theirs = sockets()
        server = OneSender(ours, contexts[0], server_side=True)
        client = OneSender(theirs, contexts[1], server_side=False, server_hostname="localhost")
        await hand_shake(server, client)
        return client, server

    with trio.fail_after(30):
        await check_one_way_stream(make, None)


@pytest.mark.parametrize("tickets", [0, 2])
async def test_an_idle_connection_passes_a_peek_with_or_without_session_tickets(files, tickets):
    async with pair(files, tickets=tickets) as (server, client):
        if tickets:
            await trio.lowlevel.wait_readable(client.socket)
        assert client.peek() is None
        await server.send_all(b"later")
        assert await client.receive_some() == b"later"
        assert client.peek() is None


async def test_a_peek_sees_bytes_nobody_asked_for_and_loses_none(files):
    async with pair(files) as (server, client):
        await server.send_all(b"unasked")
        await trio.lowlevel.wait_readable(client.socket)
        assert client.peek() == client.peek() == UNREAD
        assert await client.receive_some() == b"unasked"
        assert client.peek() is None


@pytest.mark.parametrize("how", ["close_notify", "FIN alone", "RST"])
async def test_a_peek_sees_how_the_peer_left(files, how):
    async with pair(files, tickets=2) as (server, client):
        assert client.peek() is None
        if how == "close_notify":
            server.close()
        elif how == "FIN alone":
            server.socket.shutdown(socket.SHUT_WR)
        else:
            server.abort()
        await trio.lowlevel.wait_readable(client.socket)
        assert client.peek() == ENDED
    assert client.peek() == ENDED


async def test_a_peek_sees_the_rest_of_an_answer_that_was_read_in_part(files):
    async with pair(files) as (server, client):
        await server.send_all(b"first")
        await server.send_all(b"second")
        assert await client.receive_some(3) == b"fir"
        assert client.peek() == UNREAD
        assert await client.receive_some() + await client.receive_some() == b"stsecond"
        assert client.peek() is None


async def test_a_peek_at_nonsense_is_an_end(files):
    async with pair(files) as (server, client):
        server.socket.send(b"this is no TLS record")
        await trio.lowlevel.wait_readable(client.socket)
        assert client.peek() == ENDED


async def test_a_peek_at_a_plain_socket_takes_nothing_from_it():
    ours, theirs = sockets()
    with ours, theirs:
        assert peek(ours) is None
        theirs.send(b"hello")
        await trio.lowlevel.wait_readable(ours)
        assert peek(ours) == UNREAD
        assert ours.recv(100) == b"hello"
        theirs.close()
        await trio.lowlevel.wait_readable(ours)
        assert peek(ours) == ENDED
    assert peek(ours) == ENDED
