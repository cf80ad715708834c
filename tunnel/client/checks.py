"""The health checks of one session: a task for each proxy that has one, as long as it stays as it is."""

from collections.abc import Callable, Iterable

import trio

from tunnel.client.health import watch_targets
from tunnel.client.targets import ProxyRoute
from tunnel.config import ProxyConfig
from tunnel.messages import TargetHealth


class Checks:
    """`tell` takes what the server should know; a route hears what concerns its targets."""

    def __init__(self, tell: Callable[[TargetHealth], None]) -> None:
        self._tell = tell
        self._running: dict[str, tuple[ProxyConfig, trio.CancelScope]] = {}

    def keep(self, routes: Iterable[ProxyRoute], tasks: trio.Nursery) -> None:
        """Check exactly these in `tasks` from now on; what is checked as it should be goes on."""
        wanted = {route.config.name: route for route in routes if route.config.health_check is not None}
        for name, (proxy, scope) in list(self._running.items()):
            if name not in wanted or wanted[name].config != proxy:
                scope.cancel(reason="the proxy has changed")
                del self._running[name]
        for name, route in wanted.items():
            if name not in self._running:
                scope = trio.CancelScope()
                self._running[name] = route.config, scope
                tasks.start_soon(self._check, route, route.config, scope, name=f"health checks of {name}")

    async def _check(self, route: ProxyRoute, proxy: ProxyConfig, scope: trio.CancelScope) -> None:
        if scope.cancel_called:
            return  # changed again before it began
        route.forget_verdicts()
        with scope:
            await watch_targets(proxy, changed=route.hear, tell=self._tell)
