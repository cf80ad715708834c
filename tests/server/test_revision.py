"""A proxy set that changes, and a target that falls, over real sockets: what keeps the listener and who is inside."""

import socket
from contextlib import suppress

from attrs import evolve
from gate_rig import receive, until
from test_entrances import config, login

from tunnel.messages import ProxySet, ProxySpec, ProxyStatusUpdate, Reason, Status, TargetHealth
from tunnel.server.app import open_server

WEB = ProxySpec("web", "127.0.0.1", 0, target="127.0.0.1:80", checked=True)
OTHER = ProxySpec("other", "127.0.0.1", 0)
UP, DOWN = TargetHealth("web", True), TargetHealth("web", False, "connection refused", 5)


class Guest:
    """A hand-made client's session, from both sides."""

    def __init__(self, server, control):
        self.control = control
        (self.session,) = server._gate.sessions

    async def publish(self, version, *specs):
        await self.control.send(ProxySet(version, specs))

    async def status(self, proxy="web"):
        """The next one of a proxy."""
        while (update := await receive(self.control, ProxyStatusUpdate)).proxy_name != proxy:
            pass
        return update

    def listener(self, proxy="web"):
        (listener,) = [one for one, name in self.session._published._listeners.items() if name == proxy]
        return listener

    async def visit(self, port, inside=1):
        """A visitor that the server has taken in; without a data channel it waits there."""
        visitor = socket.create_connection(("127.0.0.1", port))
        visitor.setblocking(False)
        await until(lambda: self.session.proxies["web"].tally.visitors == inside)
        return visitor

    def has_inside(self, visitor):
        """Whether a visitor is still there, and nothing has been told to it."""
        with suppress(BlockingIOError):
            visitor.recv(1)
            return False
        return len(self.session.relay.streams) == 1


def listens(port):
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


async def test_changed_targets_keep_the_listening_socket_and_the_visitors_inside(files):
    async with open_server(config(files)) as server, login(server.where) as control:
        guest = Guest(server, control)
        await guest.publish(1, WEB)
        port = (await guest.status()).publish_port
        before, proxy = guest.listener(), guest.session.proxies["web"]
        with await guest.visit(port) as visitor:
            await guest.publish(2, OTHER, evolve(WEB, target="127.0.0.1:81, 127.0.0.1:82", when_down="close"))
            assert (
                await receive(control, ProxyStatusUpdate)
            ).proxy_name == "other"  # of "web" there is nothing to tell
            assert guest.listener() is before
            assert (before.index, before.version, before._sock.getsockname()[1]) == (1, 2, port)
            assert guest.session.proxies["web"] is proxy
            assert proxy.view().target == "127.0.0.1:81, 127.0.0.1:82"
            assert guest.has_inside(visitor)


async def test_a_changed_port_is_another_listener_with_what_is_known_of_the_target(files):
    async with open_server(config(files)) as server, login(server.where) as control:
        guest = Guest(server, control)
        await guest.publish(1, WEB)
        port = (await guest.status()).publish_port
        await control.send(DOWN)
        assert (await guest.status()).reason is Reason.TARGET_DOWN
        moved = evolve(WEB, publish_addr="127.0.0.2")
        await guest.publish(2, moved)
        update = await guest.status()
        assert (update.publish_addr, update.reason) == ("127.0.0.2", Reason.TARGET_DOWN)
        assert not listens(port)


async def test_a_released_port_is_free_at_once_and_who_is_inside_stays(files):
    async with open_server(config(files)) as server, login(server.where) as control:
        guest = Guest(server, control)
        await guest.publish(1, evolve(WEB, when_down="close"))
        assert (await guest.status()).reason is Reason.PENDING
        await control.send(UP)
        update = await guest.status()
        port = update.publish_port
        assert update.status is Status.HEALTHY
        with await guest.visit(port) as visitor:
            await control.send(DOWN)
            update = await guest.status()
            assert (update.status, update.reason, update.publish_port) == (Status.UNHEALTHY, Reason.TARGET_DOWN, port)
            assert not listens(port)
            assert guest.has_inside(visitor)
            await control.send(UP)
            update = await guest.status()
            assert (update.status, update.publish_port) == (Status.HEALTHY, port)
            assert guest.has_inside(visitor)
            (await guest.visit(port, inside=2)).close()


async def test_what_is_published_while_draining_is_told_to_be_draining(files):
    async with open_server(config(files)) as server, login(server.where) as control:
        guest = Guest(server, control)
        await guest.publish(1, OTHER)
        await guest.status("other")
        guest.session.drain()
        await guest.publish(2, OTHER, WEB)
        await until(lambda: len(guest.session.proxies) == 2)
        reasons = {proxy.name: proxy.reason for proxy in guest.session.view().proxies}
        assert reasons == {"other": Reason.DRAINING, "web": Reason.DRAINING}
