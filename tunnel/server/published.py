"""What a session publishes: its client's proxy set, carried out under what the client may do."""

from collections.abc import Callable
from typing import Any

import trio

from tunnel.addresses import HostPort
from tunnel.backoff import Policy
from tunnel.config import Grant, ServerConfig
from tunnel.messages import ProxySet, ProxySpec, Reason
from tunnel.relay import Listener, RelaySession, Tally
from tunnel.server.allowance import bound, hold_to
from tunnel.server.asked_policy import policy_of
from tunnel.server.binding import BindFailed
from tunnel.server.outbox import Outbox
from tunnel.server.proxy import Proxy
from tunnel.server.publication import Publication, take_address
from tunnel.server.registry import Registry
from tunnel.snapshot import EventStream
from tunnel.sockets import listen


class Published:
    """One for a session, which alone starts its proxies' tasks. Statuses go to `outbox` and `events`."""

    def __init__(
        self,
        grant: Grant,
        config: ServerConfig,
        *,
        registry: Registry[Any],
        relay: RelaySession,
        outbox: Outbox,
        events: EventStream,
        remember_port: Callable[[str, str, int], None] | None,
    ) -> None:
        self.grant = grant
        self.proxies: dict[str, Proxy] = {}
        self.is_draining = False
        self.bind_retry = config.bind_retry  # where a proxy brings no policy of its own
        self._client = grant.name
        self._max_visitors = config.limits.max_visitors_per_proxy
        self._registry = registry
        self._relay = relay
        self._outbox = outbox
        self._events = events
        self._remember_port = remember_port
        self._version = 0  # of the client's proxy set
        self._index: dict[str, int] = {}  # of each proxy in it
        self._listeners: dict[Listener, str] = {}
        bound(relay, grant)

    def take(self, wanted: ProxySet, nursery: trio.Nursery) -> None:
        """Close what is no longer wanted, start what is new or elsewhere now, revise the rest where it is.

        No await: a visitor accepted now goes by the old set or by the new one, never by half of each.
        """
        self._version = wanted.version
        self._index = {spec.name: index for index, spec in enumerate(wanted.proxies)}
        specs = {spec.name: spec for spec in wanted.proxies}
        moved: dict[str, Proxy] = {}
        for name, proxy in list(self.proxies.items()):
            spec = specs.get(name)
            if spec is not None and proxy.is_at(spec):
                proxy.revise(spec)
                continue
            proxy.stop("removed from the proxy set, or its address changed")
            moved[name] = self.proxies.pop(name)
            self._outbox.forget(name)
            if spec is None:
                self._events.publish("proxy.removed", client=self._client, proxy=name)
        for listener, name in self._listeners.items():
            if name in self.proxies:
                listener.index, listener.version = self._index[name], self._version
        for spec in wanted.proxies:
            if spec.name not in self.proxies:
                self._start(spec, moved.get(spec.name), nursery)

    def regrant(self, grant: Grant) -> None:
        """What the client may not publish any more is closed with its reason, what it may again is tried again."""
        self.grant = grant
        bound(self._relay, grant)
        hold_to(grant, self.proxies.values())

    def limit(self, max_visitors: int | None) -> None:
        """So many visitors to each proxy from now on; those inside stay."""
        self._max_visitors = max_visitors
        for listener in self._listeners:
            listener.max_visitors = max_visitors

    def drain(self) -> None:
        """Take no new visitors, for good; those inside go on."""
        self.is_draining = True
        for proxy in self.proxies.values():
            proxy.drain()

    def stop(self, why: str) -> None:
        """Free all addresses. Again is nothing."""
        for proxy in self.proxies.values():
            proxy.stop(why)

    def _start(self, spec: ProxySpec, before: Proxy | None, nursery: trio.Nursery) -> None:
        proxy = Proxy(spec, policy=self._policy_of, take=self._take, report=self._report)
        if before is not None and spec.checked:
            proxy.target_health = before.target_health  # the client tells what changes, not what it has told
        self.proxies[spec.name] = proxy
        if self.is_draining:
            proxy.drain()
        else:
            nursery.start_soon(proxy.run, name=f"proxy {self._client}/{spec.name}")

    def _policy_of(self, spec: ProxySpec) -> Policy:
        return self.bind_retry if spec.bind_retry is None else policy_of(spec.bind_retry)

    def _take(self, spec: ProxySpec, tally: Tally) -> Publication:
        """One bind attempt for one of our proxies, counted."""
        binds = self._registry.binds
        binds.attempts += 1
        binds.retries += self.proxies[spec.name].attempt > 0
        try:
            return self._try_to_take(spec, tally)
        except BindFailed as failure:
            binds.failures[failure.reason] += 1
            raise

    def _try_to_take(self, spec: ProxySpec, tally: Tally) -> Publication:
        if len(self._listeners) >= self.grant.max_proxies:
            word = (
                f"client '{self._client}' already has {self.grant.max_proxies} proxies; raise max_proxies at the server"
            )
            raise BindFailed(Reason.NOT_ALLOWED, word, final=True)
        if not self._relay.may_hold_more:
            word = (
                f"client '{self._client}' has {len(self._listeners)} proxies, and the server no descriptors for more; "
                "raise its limit there (ulimit -n, LimitNOFILE=)"
            )
            raise BindFailed(Reason.OUT_OF_DESCRIPTORS, word)
        sock, address = take_address(self.grant, spec, self._registry, listen)
        publication = Publication(address, HostPort(address.addr, address.port), self._registry)
        listener = self._relay.listen(
            sock, index=self._index[spec.name], version=self._version, tally=tally, on_lost=publication.on_lost
        )
        listener.max_visitors = self._max_visitors
        publication.listener = listener
        self._listeners[listener] = spec.name
        listener.on_closed = lambda: self._listeners.pop(listener, None)
        remember = None if spec.publish_port else self._remember_port
        if remember is not None and self._registry.choose_port(self._client, spec.name, address.port):
            remember(self._client, spec.name, address.port)
        return publication

    def _report(self, proxy: Proxy) -> None:
        """A proxy's status changed: the client gets the newest, in the order of first change."""
        if self.proxies.get(proxy.spec.name) is not proxy:
            return  # the last word of one that was stopped must not overtake its successor's
        self._outbox.post(proxy)
        self._events.publish("proxy.status", client=self._client, proxy=proxy.spec.name, update=proxy.update(0))
