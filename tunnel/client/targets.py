"""Where streams go on the client's side. Only this config names a target; the server names a proxy by index."""

import errno
import logging
import socket
from collections import OrderedDict

import trio

from tunnel.addresses import Target
from tunnel.backoff import LinearPolicy
from tunnel.client.target_dial import dial_target, shake_hands
from tunnel.config import ProxyConfig
from tunnel.errors import PeerLost
from tunnel.frames import Abort
from tunnel.messages import MAX_TEXT, ProxySet, ProxySpec, Retry
from tunnel.relay import Stream, Tally
from tunnel.relay.tls_leg import TlsLeg
from tunnel.sockets import family_of

log = logging.getLogger(__name__)

SETS_KEPT = 16  # versions of the proxy set an OPEN may still name: it can cross a change, hardly sixteen


class ProxyRoute:
    """One proxy's way to its targets. `dials` is the session's nursery for dials that have to wait."""

    def __init__(self, config: ProxyConfig, *, dial_seconds: float) -> None:
        self.config = config
        self.tally = Tally()
        self.dials: trio.Nursery | None = None
        self._dial_seconds = dial_seconds
        self._said = ""  # why the last dial failed, as it was logged
        target = config.targets[0]
        self._literal: tuple[int, tuple[str, int] | str] | None = None
        if len(config.targets) == 1 and target.is_literal:
            self._literal = family_of(target.where.host), (target.where.host, target.where.port)
        elif len(config.targets) == 1 and target.kind == "unix":
            self._literal = socket.AF_UNIX, target.host

    def dial(self, stream: Stream) -> None:
        """A literal address is dialled in the relay; what must wait is a short task that ends in a connected socket."""
        if self._literal is not None and stream.dial(*self._literal):
            return
        if self.dials is not None:
            stream.dialling = trio.CancelScope()  # before the task begins: its stream may be over by then
            self.dials.start_soon(self._dial_slowly, stream, stream.dialling, name=f"dial for {self.config.name}")
        else:
            stream.refuse(Abort.SESSION_ENDED)

    async def _dial_slowly(self, stream: Stream, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._first_that_answers(stream)
            except Exception as exc:
                stream.session.engine.wall(stream, exc)
            stream.session.engine.wake()
        stream.dialling = None

    async def _first_that_answers(self, stream: Stream) -> None:
        reason, problem = Abort.DIAL_FAILED, ""
        targets = self.config.targets
        deadline = trio.current_time() + self._dial_seconds
        for left, target in zip(range(len(targets), 0, -1), targets, strict=True):
            seconds = (
                max(deadline - trio.current_time(), 0.0) / left
            )  # one that is silent leaves the others their share
            try:
                with trio.fail_after(seconds):
                    await connect_target(target, stream)
                self._said = ""
                return
            except trio.TooSlowError:
                reason, problem = Abort.DIAL_TIMEOUT, f"{target}: no answer in {seconds:.3g} s"
            except trio.BrokenResourceError as exc:
                reason, problem = Abort.DIAL_FAILED, f"{target}: {exc}"
            except (PeerLost, OSError) as exc:
                reason = Abort.DIAL_REFUSED if exc.errno == errno.ECONNREFUSED else Abort.DIAL_FAILED
                problem = f"{target}: {exc}"
        if problem != self._said:  # not once for each visitor
            self._said = problem
            log.warning("a visitor of proxy '%s' was refused: %s", self.config.name, problem)
        stream.refuse(reason)


async def connect_target(target: Target, stream: Stream) -> None:
    """Dial `target` and hand the connection to `stream`. Raises `PeerLost` or `OSError`; deadline by the caller."""
    sock = await dial_target(target)
    if target.kind != "tls":
        stream.connected(sock)
        return
    leg = TlsLeg((await shake_hands(sock, target)).detach(), stream)
    stream.connected(leg, leg)


class RouteTable:
    """What the server may ask for: the proxy sets sent lately, by version and index; anything else is unknown."""

    def __init__(self, proxies: tuple[ProxyConfig, ...], *, dial_seconds: float) -> None:
        self._dial_seconds = dial_seconds
        self._dials: trio.Nursery | None = None
        self.routes: dict[str, ProxyRoute] = {}
        self.replace(proxies)
        self._sets: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._version = 0

    def replace(self, proxies: tuple[ProxyConfig, ...]) -> None:
        """Publish these from the next set on. A proxy that stays as it is keeps its route and figures."""
        before, self.routes = self.routes, {}
        for proxy in proxies:
            same = before.get(proxy.name)
            if same is None or same.config != proxy:
                same = ProxyRoute(proxy, dial_seconds=self._dial_seconds)
                same.dials = self._dials
            self.routes[proxy.name] = same

    def next_set(self) -> ProxySet:
        """The set to send: a version of its own, so that OPEN frames can never be taken for another's."""
        self._version += 1
        self._sets[self._version] = tuple(self.routes)
        if len(self._sets) > SETS_KEPT:
            self._sets.popitem(last=False)
        return ProxySet(self._version, tuple(_spec(route.config) for route in self.routes.values()))

    def empty_set(self) -> ProxySet:
        """The set of a client that is stopping. OPEN frames under way still name the sets before."""
        self._version += 1
        return ProxySet(self._version, ())

    def find(self, index: int, version: int) -> ProxyRoute | None:
        names = self._sets.get(version, ())
        return self.routes.get(names[index]) if index < len(names) else None

    def use(self, dials: trio.Nursery | None) -> None:
        """Let dials that wait live in `dials` from now on."""
        self._dials = dials
        for route in self.routes.values():
            route.dials = dials


def _spec(proxy: ProxyConfig) -> ProxySpec:
    policy = proxy.bind_retry
    retry = None
    if isinstance(policy, LinearPolicy):
        step = policy.step
        retry = Retry(max(step, 0.1), 2.0, max(10 * step, 0.1), policy.max_retries, 0.0, step)
    elif policy is not None:
        retry = Retry(policy.initial_delay, policy.factor, policy.max_delay, policy.max_retries, policy.jitter)
    return ProxySpec(
        name=proxy.name,
        publish_addr=proxy.publish.host,
        publish_port=proxy.publish.port,
        bind_retry=retry,
        checked=proxy.health_check is not None,
        target=", ".join(map(str, proxy.targets))[:MAX_TEXT],
        when_down=proxy.when_down,
    )
