"""What can be told without the server: this interpreter, its descriptors, and the services beside it."""

import platform
import ssl
import sys

import trio
from attrs import evolve

from tunnel.addresses import Target
from tunnel.client.health import find_problem
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.doctor.findings import Report
from tunnel.limits import RESERVED
from tunnel.version import __version__

FEW_DESCRIPTORS = 1024  # with fewer, some hundred visitors are the most there can be
TARGET_SECONDS = 5.0
MAX_AT_ONCE = 32  # of a thousand proxies' targets
_AT_OPENSSL_3 = (3, 0)


def check_program(report: Report) -> None:
    words = f"trio-tunnel {__version__}, Python {platform.python_version()}, {ssl.OPENSSL_VERSION}"
    if not ssl.HAS_TLSv1_3:
        report.fail("program", f"{words}: without TLS 1.3", "use a Python that is built with OpenSSL 1.1.1 or newer")
    elif ssl.OPENSSL_VERSION_INFO[:2] < _AT_OPENSSL_3:
        report.warn("program", f"{words}: nobody mends this OpenSSL any more", "use a newer Python or system")
    else:
        report.ok("program", words)


def check_descriptors(report: Report) -> None:
    if sys.platform == "win32":
        report.skip("this system has no such limit", "descriptors")
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        report.ok("descriptors", "as many as there are")
        return
    words = f"{hard} ({soft} before a start raises it): {max(hard - RESERVED, hard // 2)} visitors or so"
    if hard < FEW_DESCRIPTORS:
        report.warn("descriptors", words, "raise the hard limit: ulimit -Hn, or LimitNOFILE= of the service")
    else:
        report.ok("descriptors", words)


async def check_targets(proxies: tuple[ProxyConfig, ...], report: Report) -> None:
    """Each target as a visitor's connection would find it, and as its health check does."""
    if not proxies:
        report.skip("no proxy is named; give -c client.toml, or -p NAME=PUBLISH:TARGET", "target")
        return
    problems: dict[tuple[str, Target], tuple[str | None, float]] = {}
    places = trio.CapacityLimiter(MAX_AT_ONCE)

    async def look(proxy: ProxyConfig, target: Target) -> None:
        async with places:
            began = trio.current_time()
            problem = await find_problem(target, _check_of(proxy))
            problems[proxy.name, target] = problem, trio.current_time() - began

    async with trio.open_nursery() as looks:
        for proxy in proxies:
            for target in dict.fromkeys(proxy.targets):
                looks.start_soon(look, proxy, target)
    for proxy in proxies:
        _report_targets(proxy, {target: problems[proxy.name, target] for target in proxy.targets}, report)


def _check_of(proxy: ProxyConfig) -> HealthCheck:
    return proxy.health_check or evolve(HealthCheck(), timeout=TARGET_SECONDS)


def _report_targets(proxy: ProxyConfig, found: dict[Target, tuple[str | None, float]], report: Report) -> None:
    how = "" if proxy.health_check is None else f", {proxy.health_check.type} check passed"
    one_is_up = any(problem is None for problem, _ in found.values())
    for target, (problem, seconds) in found.items():
        name = f"{proxy.name}: {target}"
        if problem is None:
            report.ok("target", f"{name} answers{how}", seconds=seconds)
            continue
        message, _, remedy = problem.partition("; ")
        words = f"{name}: {message}" if str(target.where) not in message else f"{proxy.name}: {message}"
        remedy = remedy or "start the service there, or name where it listens"
        if one_is_up:
            report.warn("target", f"{words}; another target of it is up", remedy)
        else:
            report.fail("target", words, remedy)
