"""Which health checks a session runs, before and after its proxies change; a real server on loopback."""

from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

import tunnel
from tunnel.client import checks as checks_module
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.messages import TargetHealth

SECRET = "a token of these tests alone"
ANYWHERE = tunnel.HostPort("127.0.0.1", 0)


def proxy(name: str, *targets: str, **check: Any) -> ProxyConfig:
    wanted = tuple(map(tunnel.parse_target, targets or ("8080",)))
    return ProxyConfig(name, ANYWHERE, wanted, health_check=HealthCheck(**check))


@pytest.mark.slow
async def test_a_change_of_one_proxys_checks_or_targets_restarts_no_other_proxys_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """B35"""
    seen: list[tuple[str, str]] = []

    async def watch_targets(proxy: ProxyConfig, *, changed: Any, tell: Any) -> None:
        seen.append(("begun", proxy.name))
        tell(TargetHealth(proxy.name, True))
        try:
            await trio.sleep_forever()
        finally:
            seen.append(("ended", proxy.name))

    monkeypatch.setattr(checks_module, "watch_targets", watch_targets)
    grant = tunnel.Grant("home", tunnel.hash_token(SECRET), allow_ports=None)
    server = await nursery.start(
        tunnel.serve, tunnel.ServerConfig(listen=(ANYWHERE,), state_dir=tmp_path, clients=(grant,))
    )
    before = proxy("web"), proxy("ssh"), proxy("dns"), proxy("mail")
    config = tunnel.ClientConfig(servers=(server.where,), token=SECRET, ca_file=server.cert_file, proxies=before)
    with trio.fail_after(30):
        async with tunnel.connect(config) as client:
            await client.wait_healthy()
            assert sorted(seen) == [("begun", name) for name in ("dns", "mail", "ssh", "web")]
            seen.clear()
            unchecked = evolve(proxy("mail"), health_check=None)
            client.publish(proxy("web", interval=7.0), proxy("ssh"), proxy("dns", "8080", "8081"), unchecked)
            await wait_all_tasks_blocked()
            assert sorted(seen) == [
                ("begun", "dns"), ("begun", "web"), ("ended", "dns"), ("ended", "mail"), ("ended", "web"),
            ]  # fmt: skip
            seen.clear()
        assert sorted(seen) == [("ended", name) for name in ("dns", "ssh", "web")]
    nursery.cancel_scope.cancel()
