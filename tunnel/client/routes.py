"""What the server may ask for: the proxy sets sent lately, by version and index; anything else is unknown."""

from collections import OrderedDict
from typing import Any

import trio

from tunnel.backoff import LinearPolicy
from tunnel.client.targets import ProxyRoute
from tunnel.config import ProxyConfig
from tunnel.messages import MAX_TEXT, ProxySet, ProxySpec, Retry

SETS_KEPT = 16  # versions of the proxy set an OPEN may still name: it can cross a change, hardly sixteen


class RouteTable:
    """The client's proxies. `run` keeps their pools of connections to targets, in and between sessions."""

    def __init__(self, proxies: tuple[ProxyConfig, ...], *, dial_seconds: float) -> None:
        self._dial_seconds = dial_seconds
        self._tasks: trio.Nursery | None = None
        self.routes: dict[str, ProxyRoute] = {}
        self.replace(proxies)
        self._sets: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._version = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Dials that wait live here, and end with their streams."""
        try:
            async with trio.open_nursery() as self._tasks:
                for route in self.routes.values():
                    route.start(self._tasks)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._tasks = None
            for route in self.routes.values():
                route.stop()

    def replace(self, proxies: tuple[ProxyConfig, ...]) -> None:
        """Publish these from the next set on. A proxy published where it was keeps its route, figures and streams."""
        before, self.routes = dict(self.routes), {}
        for proxy in proxies:
            route = before.get(proxy.name)
            if route is not None and route.config.publish == proxy.publish:
                del before[proxy.name]
                route.apply(proxy)
            else:
                route = ProxyRoute(proxy, dial_seconds=self._dial_seconds)
                if self._tasks is not None:
                    route.start(self._tasks)
            self.routes[proxy.name] = route
        for route in before.values():
            route.stop()

    def limit(self, dial_seconds: float) -> None:
        """So long for a dial that begins from now on."""
        self._dial_seconds = dial_seconds
        for route in self.routes.values():
            route.limit(dial_seconds)

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

    def stats(self) -> dict[str, Any]:
        """The figures of each proxy's pool of connections to targets, where it has one."""
        return {name: route.pool.stats() for name, route in self.routes.items() if route.pool is not None}


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
