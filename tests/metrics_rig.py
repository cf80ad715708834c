"""Meters made by hand, and what the library's own parsers read in the text that is made of them."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tunnel.admin.counts import EventCounts
from tunnel.admin.families import Scrape
from tunnel.histogram import Histogram
from tunnel.meters import BindMeters, Distribution, GateMeters, Meters, PoolMeters, RelayMeters, SessionMeters
from tunnel.snapshot import EventStream, ProxyView

EMPTY = Distribution.of(Histogram())
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def view(name: str, *, status: str = "healthy", number: int = 0, addr: str = "0.0.0.0") -> ProxyView:
    return ProxyView(
        name=name, status=status, reason=None if status == "healthy" else "addr_in_use", error_message=None,
        retry_after_seconds=None, attempt=0 if status == "healthy" else 3, max_retries=10, publish_addr=addr,
        publish_port=8001, target="127.0.0.1:80", visitors=number, visitors_total=number, bytes_in=number,
        bytes_out=number, since="2026-01-01T00:00:00.000Z", refused={"dial_refused": 1, "target_down": 2},
    )  # fmt: skip


def relay() -> RelayMeters:
    return RelayMeters(
        visitors=0, visitors_limit=100, visitors_total=7, refused={"dial_refused": 1}, cut={"reset": 2}, read=10,
        written=20, dials=EMPTY, first_bytes=EMPTY, channels={"open": 2}, channels_opened=3,
        channels_ended={"lost": 1}, turns=5, errors=0, buffer_bytes=0, buffer_limit=1024, paused_listeners=0,
    )  # fmt: skip


def pool(proxy: str = "") -> PoolMeters:
    return PoolMeters(
        kind="targets" if proxy else "data_channels", proxy=proxy, states={"available": 2}, waiting=0, lent=1,
        leases=4, hits=3, misses=1, timeouts=0, opened=5, failures={"dial.refused": 1}, retired={"age": 1},
        quarantines=0,
    )  # fmt: skip


def meters(*proxies: tuple[str, ProxyView], role: str = "server") -> Meters:
    is_server = role == "server"
    return Meters(
        role=role, version="1.2.3", is_ready=True, is_draining=False, client="" if is_server else "home",
        clients=frozenset(["home", "gone"]) if is_server else None,
        relay=relay(),
        sessions=(SessionMeters(client="home", since="2026-01-01T00:00:00.000Z", channels=2, round_trip=0.02),),
        proxies=iter(proxies),
        pools=iter(() if is_server else (pool(), pool("web"))),
        binds=BindMeters(attempts=3, retries=2, failures={"addr_in_use": 2}) if is_server else None,
        gate=GateMeters(strangers=0, handshakes=0, penalised_sources=0, logins=1, refusals={"tls": 4})
        if is_server else None,
        certificate_ends=2e9,
    )  # fmt: skip


def notices() -> dict[str, dict[str, object]]:
    figures = {"type": "webhook", "sent": 5, "failed": 1, "dropped": 0, "retried": 2, "waiting": 0, "last": None}
    return {"ops": figures}


class HandMade:
    """A source whose proxies are these, again for each scrape."""

    def __init__(self, *proxies: tuple[str, ProxyView], role: str = "server") -> None:
        self.events = EventStream()
        self._proxies, self._role = proxies, role

    def meters(self) -> Meters:
        return meters(*self._proxies, role=self._role)


def scrape(*proxies: tuple[str, ProxyView], role: str = "server", counts: EventCounts | None = None) -> Scrape:
    found = meters(role=role)
    return Scrape(
        meters=found, proxies=list(proxies), pools=list(found.pools),
        states=Counter(one.status for _, one in proxies), untold=0, counts=counts or EventCounts(), lateness=EMPTY,
        notices={},
    )  # fmt: skip


def read(text: bytes | str, *, openmetrics: bool = False) -> Samples:
    """Every sample by its name and labels; raises for what is no such text, and for a sample told twice."""
    if isinstance(text, bytes):
        text = text.decode()
    families: Iterator[Metric] = (parse_openmetrics if openmetrics else parse_text)(text)
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name}{labels} is told twice"
            found[sample.name][labels] = sample.value
    return found
