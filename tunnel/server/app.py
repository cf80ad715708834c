"""`serve`: the root nursery of a server, from its listening sockets to its drained end."""

import logging
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

from tunnel.activation import Passed
from tunnel.addresses import HostPort
from tunnel.attached import Attached
from tunnel.config import ServerConfig
from tunnel.errors import TunnelError
from tunnel.limits import socket_bound, visitor_bound
from tunnel.messages import Farewell
from tunnel.meters import Meters
from tunnel.relay import Engine, Room
from tunnel.server.acquaintances import Acquaintances
from tunnel.server.certificate import Certificate, find_files, tls_part
from tunnel.server.entrance import Entrance, bind_entrances
from tunnel.server.expiry import watch_expiry
from tunnel.server.gate import Gate
from tunnel.server.identities import Identities
from tunnel.server.meters import server_meters
from tunnel.server.registry import Address, BindFigures, Registry
from tunnel.server.session import Session
from tunnel.snapshot import EventStream, SessionView, Snapshot
from tunnel.state import StateDir
from tunnel.version import __version__
from tunnel.wording import listed, no_such_proxy

log = logging.getLogger(__name__)


class Server:
    """A running server, as `open_server` yields it. Safe to use from the task that opened it or its children."""

    def __init__(
        self,
        gate: Gate,
        engine: Engine,
        *,
        config: ServerConfig,
        events: EventStream,
        entrances: tuple[Entrance, ...],
        certificate: Certificate,
        identities: Identities,
        binds: BindFigures,
        state: StateDir | None,
    ) -> None:
        self.events = events
        self.attached: Attached[ServerConfig] = Attached()  # what runs beside it
        self.where = entrances[0].where  # as bound: the port is never 0
        self.engine = engine
        self._certificate = certificate
        self._identities = identities
        self._binds = binds
        self._state = state
        self._config = config
        self._gate = gate
        self._entrances = entrances
        self._accepting = trio.CancelScope()

    @property
    def cert_file(self) -> Path:
        """Where the certificate is that new connections get."""
        return self._certificate.files.cert_file

    @property
    def addresses(self) -> tuple[HostPort, ...]:
        """All at which clients may connect, as bound; one that is lost for now among them."""
        return tuple(entrance.where for entrance in self._entrances)

    def snapshot(self) -> Snapshot:
        return Snapshot("server", __version__, tuple(self.views()))

    def views(self) -> Iterator[SessionView]:
        """The sessions of a snapshot one at a time: with many thousand proxies, others get their turn between them."""
        for session in self._gate.sessions:
            yield session.view()

    def stats(self) -> dict[str, Any]:
        """The data channels of each client (it is the clients that keep pools of them), and what came to the gate."""
        clients = {session.client: session.relay.describe() for session in self._gate.sessions}
        return {"connection_pool": {"clients": clients}, "gate": self._gate.stats(), **self.attached.stats()}

    def meters(self) -> Meters:
        """What is counted here, for the metrics."""
        return server_meters(
            self._gate, self.engine, grants=self._identities.grants(), binds=self._binds,
            certificate=self._certificate, is_ready=self.is_ready(),
        )  # fmt: skip

    def is_ready(self) -> bool:
        """Whether a new client would be served."""
        return not self._gate.is_draining and any(entrance.is_open for entrance in self._entrances)

    @property
    def config(self) -> ServerConfig:
        """What it goes by now."""
        return self._config

    def why_not_ready(self) -> str:
        """In words; empty when it is ready."""
        if self._gate.is_draining:
            return "the server is stopping"
        return "" if self.is_ready() else "no address is listened on; the log says why"

    def leave(self, where: HostPort) -> None:
        """Accept no more connections at this one of `addresses`; those that came there go on. `LookupError` if none."""
        for entrance in self._entrances:
            if entrance.where == where:
                entrance.leave()
                self._entrances = tuple(other for other in self._entrances if other is not entrance)
                return
        raise LookupError(f"the server does not listen on {where}")

    def apply(self, config: ServerConfig) -> list[str]:
        """Take over of a new configuration what can change in a running server; says in words what did.

        That is the default of `bind_retry`, the `clients`, the `limits`, all about TLS, and the notices. No await: all
        of it holds from now on. What else differs is as before. `TunnelError`, and nothing has changed, where a
        certificate is unusable.
        """
        done: list[str] = []
        if tls_part(config) != tls_part(self._config):
            self._certificate.use(find_files(config, self._state))  # alone can fail, and so comes first
            done.append("tls: connections from now on get the new certificate and rules")
        if config.client_ca_file not in (None, self._config.client_ca_file):
            self._ask_for_certificates()
            done.append("tls: all sessions have ended, for their clients came without a certificate of the new CA")
        if config.bind_retry != self._config.bind_retry:
            self._gate.apply(config.bind_retry)
            done.append("bind_retry: counts for proxies without one of their own, from their next round of attempts on")
        if config.limits != self._config.limits:
            self.engine.apply(visitor_bound(config.limits))
            self._gate.limit(config.limits)
            done.append("limits: for all that begins from now on; nobody inside is sent away")
        if config.clients != self._config.clients:
            self._identities.replace(config.clients)
            self._identities.review(self._gate.sessions)
            done.append("clients: sessions are held to what they may do now; those of tokens that are gone have ended")
        self._config = evolve(
            self._config, bind_retry=config.bind_retry, clients=config.clients, cert_file=config.cert_file,
            key_file=config.key_file, client_ca_file=config.client_ca_file, tls_min_version=config.tls_min_version,
            notices=config.notices, limits=config.limits,
        )  # fmt: skip
        self.attached.apply(self._config)
        return done

    def _ask_for_certificates(self) -> None:
        """Nobody stays who came by less: who has a certificate of the new CA is back at once."""
        word = "the server wants a certificate of another CA from its clients now; come back with one"
        for session in self._gate.sessions:
            session.close(Farewell.STOPPING, word)

    def watched_files(self) -> tuple[Path, ...]:
        """Those that it watches by itself, and takes over when they change."""
        files = self._certificate.files
        return tuple(path for path in (files.cert_file, files.key_file, files.client_ca_file) if path is not None)

    def look_at_certificate(self) -> None:
        """Its files were changed, and are whole: take them over now, not when they have stood still for a while."""
        self._certificate.look_now()

    def retry(self, name: str) -> list[str]:
        """Start a proxy's bind retry afresh. `name` is NAME or CLIENT/NAME.

        Returns what was restarted. `LookupError` if nothing matches, `ValueError` if several do.
        """
        found = [
            (session.client, proxy)
            for session in self._gate.sessions
            for proxy in session.proxies.values()
            if name in (proxy.spec.name, f"{session.client}/{proxy.spec.name}")
        ]
        if not found:
            there = [f"{session.client}/{proxy}" for session in self._gate.sessions for proxy in session.proxies]
            raise LookupError(no_such_proxy(name, there))
        if len(found) > 1:
            options = listed([f"{client}/{proxy.spec.name}" for client, proxy in found])
            raise ValueError(f"several proxies are named {name!r}; say which: {options}")
        return [f"{client}/{proxy.spec.name}" for client, proxy in found if proxy.retry()]

    def close_session(self, client: str) -> list[str]:
        """End a client's session now, its visitors with it; returns the names of those ended.

        The client is told why, and comes back after its normal delay (at first none): it stays away only when its
        token is revoked, too. `LookupError` if no client of that name is connected.
        """
        found = [session for session in self._gate.sessions if session.client == client]
        if not found:
            there = listed(sorted({session.client for session in self._gate.sessions}))
            raise LookupError(f"no client {client!r} is connected, {f'only {there}' if there else 'and no other'}")
        for session in found:
            log.info("the session of client '%s' is closed on request", client)
            session.close(Farewell.STOPPING, "the server's operator closed this session", known_as="closed")
        return [session.client for session in found]

    async def drain(self, grace_seconds: float) -> None:
        """Stop gracefully: tell the clients, take no new visitor, let those inside finish, at most so long."""
        self._gate.is_draining = True
        self._accepting.cancel(reason="draining")
        sessions = self._gate.sessions
        for session in sessions:
            session.drain()
        async with trio.open_nursery() as waits:
            for session in sessions:
                waits.start_soon(self._end_when_empty, session, grace_seconds)

    async def _end_when_empty(self, session: Session, grace_seconds: float) -> None:
        with trio.move_on_after(grace_seconds):
            await session.relay.wait_empty()
        session.close(Farewell.DRAINING, "the server is stopping; come back when it listens again")
        await session.ended.wait()


@asynccontextmanager
async def open_server(
    config: ServerConfig, *, linger: bool = False, passed: Sequence[Passed] = ()
) -> AsyncIterator[Server]:
    """Run a server inside the caller's task until the body ends or is cancelled.

    Sockets that systemd has `passed` are used in place of binding their addresses, and closed with the rest.

    Raises `TunnelError` when it cannot start: the state directory, the certificate, or an address that is taken.
    Leaving the body cuts every session at once; `Server.drain` first ends them gracefully.
    """
    state = StateDir.open(config.state_dir) if config.state_dir is not None else None
    certificate = Certificate(await trio.to_thread.run_sync(find_files, config, state))  # may make a key first
    identities = Identities(config.clients, state)
    if state is not None:
        state.port_for("", "")  # a damaged file shows now, not at the first proxy that needs it
    registry: Registry[Session] = Registry()
    if state is not None:
        registry.recall = lambda client, proxy: state.port_for(client, proxy) or 0
    with bind_entrances(config.listen, registry, passed=passed) as entrances:  # before all that would have to end
        if config.admin is not None:
            registry.publish(Address(config.admin.host, config.admin.port, "", "its admin address"))
        events = EventStream()
        engine = Engine(visitor_bound(config.limits), linger=linger, room=Room(socket_bound()))
        gate = Gate(
            config,
            context=lambda: certificate.context,
            grants=identities.grants,
            engine=engine,
            registry=registry,
            events=events,
            remember_port=lambda client, proxy, port: root.start_soon(_remember_port, state, client, proxy, port),
        )
        server = Server(
            gate, engine, config=config, events=events, entrances=entrances, certificate=certificate,
            identities=identities, binds=registry.binds, state=state,
        )  # fmt: skip
        acquaintances = Acquaintances(gate.strangers, state)
        acquaintances.recall()
        async with trio.open_nursery() as root:
            await root.start(engine.run, name="relay")
            async with trio.open_nursery() as connections:
                connections.start_soon(_accept, server, gate, entrances, connections, name="gate")
                root.start_soon(certificate.watch, name="certificate")
                root.start_soon(watch_expiry, certificate, events, name="certificate's end")
                root.start_soon(acquaintances.watch, name="known sources")
                root.start_soon(identities.watch, lambda: gate.sessions, name="identities")
                yield server
                acquaintances.write_last()
                connections.cancel_scope.cancel(reason="the server is closing")
            root.cancel_scope.cancel(reason="the server is closing")


async def _accept(server: Server, gate: Gate, entrances: tuple[Entrance, ...], connections: trio.Nursery) -> None:
    async def accept(listener: socket.socket) -> None:
        await gate.serve(listener, connections)

    with server._accepting:
        async with trio.open_nursery() as accepting:
            for entrance in entrances:
                accepting.start_soon(entrance.run, accept, name=f"gate at {entrance.where}")


async def _remember_port(state: StateDir | None, client: str, proxy: str, port: int) -> None:
    if state is None:
        return
    try:
        await trio.to_thread.run_sync(state.remember_port, client, proxy, port)
    except TunnelError as exc:  # a full disk costs the port's memory, not the proxy
        log.warning("the chosen port %d of %s/%s was not kept: %s", port, client, proxy, exc)
