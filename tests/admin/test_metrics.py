"""B33: the text of /metrics, read by Prometheus' own parsers; many proxies, odd names and busy scrapers."""

import subprocess
import sys

import pytest
import trio
from attrs import evolve
from metrics_rig import HandMade, notices, read, scrape, view
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.admin import exposition
from tunnel.admin.counts import EventCounts
from tunnel.admin.exposition import Part, render
from tunnel.admin.families import families
from tunnel.admin.http import Request, Response
from tunnel.admin.lateness import Lateness
from tunnel.admin.metrics import IMPORTED, Metrics
from tunnel.histogram import Histogram
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.meters import Distribution
from tunnel.snapshot import EventStream

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
ODD = ["<script>alert(1)</script>", 'a"b', "back\\slash", "new\nline", "ünï–✓", "{}=,", ""]


async def ask(source: HandMade, accept: str = "") -> Response:
    request = Request("GET", "/metrics", "", {"accept": accept} if accept else {}, b"")
    return await Metrics(source, {"notices": notices}).route.handler(request)


async def text_of(source: HandMade, accept: str = "") -> bytes:
    return (await ask(source, accept)).body


class Whole:
    """All families in one piece, as any other use of the library would tell them."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    def collect(self):
        for part in self._parts:
            yield from part.collect()


@pytest.mark.parametrize("role", ["server", "client"])
async def test_both_parsers_read_the_same_figures(role: str) -> None:
    source = HandMade(("home", view("web", number=3)), ("home", view("ssh", status="unhealthy")), role=role)
    plain = read(await text_of(source))
    strict = read(await text_of(source, OPENMETRICS), openmetrics=True)
    changing = "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"
    passing = {*changing, "trio_tunnel_config_last_reload_success_timestamp_seconds", "process_virtual_memory_bytes"}
    assert {name: plain[name] for name in plain.keys() - passing} == {
        name: strict[name] for name in strict.keys() - passing
    }
    assert plain.keys() == strict.keys()
    web, ssh = (("client", "home"), ("proxy", "web")), (("client", "home"), ("proxy", "ssh"))
    assert plain["trio_tunnel_proxy_up"] == {web: 1, ssh: 0}
    assert plain["trio_tunnel_proxy_visitors_refused_total"][web] == 3  # of all reasons
    assert plain["trio_tunnel_proxy_failed_attempts"][ssh] == 3
    assert plain["trio_tunnel_proxies"][("status", "healthy"),] == 1
    received = 10 if role == "server" else 20  # what a client writes came from visitors
    assert plain["trio_tunnel_received_bytes_total"] == {(): received}


@pytest.mark.parametrize("accept", ["", OPENMETRICS, "text/plain;version=1.0.0;escaping=allow-utf-8"])
async def test_text_made_in_slices_is_the_text_made_in_one_go(accept: str) -> None:
    proxies = [("home", view(f"p{number}", number=number)) for number in range(1000)]
    encode, _ = choose_encoder(accept)
    in_one_go = encode(Whole(*map(Part, families(scrape(*proxies)))))
    in_slices = await render(families(scrape(*proxies)), encode)
    assert in_slices.count(b"\n") > 8000
    mine, theirs = (text.split(b"trio_tunnel_config_last_reload_success", 1) for text in (in_slices, in_one_go))
    assert mine[0] == theirs[0]
    assert mine[1].partition(b"trio_tunnel_event")[2] == theirs[1].partition(b"trio_tunnel_event")[2]


@pytest.mark.parametrize(
    "accept", ["text/plain;version=new", "text/plain;version==", "application/openmetrics-text;version=1.x"]
)
async def test_who_accepts_nonsense_gets_plain_text_and_no_line_in_the_log(accept: str) -> None:
    answer = await ask(HandMade(("home", view("web"))), accept)
    assert answer.status == 200
    assert answer.content_type.startswith("text/plain")


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
async def test_odd_names_come_out_as_they_went_in(accept: str) -> None:
    text = await text_of(HandMade(*(('cli"ent\\\n', view(name)) for name in ODD)), accept)
    told = {dict(labels)["proxy"] for labels in read(text, openmetrics=bool(accept))["trio_tunnel_proxy_up"]}
    assert told == set(ODD)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"),
    ],
)
async def test_the_scraper_gets_the_format_it_asks_for(accept: str, content_type: str) -> None:
    answer = await ask(HandMade(), accept)
    assert (answer.status, answer.content_type) == (200, content_type)
    assert answer.body.endswith(b"# EOF\n") is ("openmetrics" in content_type)


async def test_an_ipv6_address_is_told_in_brackets() -> None:
    text = await text_of(HandMade(("home", view("web", addr="::1"))))
    (labels,) = read(text)["trio_tunnel_proxy_status_info"]
    assert dict(labels)["address"] == "[::1]:8001"


async def test_notices_are_told_by_their_names() -> None:
    found = read(await text_of(HandMade()))
    assert found["trio_tunnel_notices_sent_total"] == {(("notice", "ops"),): 5}
    assert found["trio_tunnel_notices_failed_total"] == {(("notice", "ops"),): 1}


# Many proxies


@pytest.mark.slow
async def test_ten_thousand_proxies_are_told_and_others_have_their_turn_all_along() -> None:
    """The longest step is what visitors would wait for; not asserted in seconds, as machines differ."""
    proxies = [("home", view(f"p{number}")) for number in range(10_000)]
    turns = 0

    async def be_busy() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_busy)
        with trio.fail_after(60):
            text = await text_of(HandMade(*proxies))
        nursery.cancel_scope.cancel()
    samples = text.count(b"\n")
    assert samples > 80_000
    assert turns > samples / exposition.SLICE


async def test_proxies_beyond_the_bound_are_counted_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "MAX_PROXIES", 3)
    source = HandMade(*(("home", view(f"p{number}", status="bind_failed")) for number in range(5)))
    found = read(await text_of(source))
    assert len(found["trio_tunnel_proxy_up"]) == 3
    assert found["trio_tunnel_proxies_untold"] == {(): 2}
    assert found["trio_tunnel_proxies"][("status", "bind_failed"),] == 5


async def test_two_scrapers_at_once_both_get_all(nursery: trio.Nursery) -> None:
    source = HandMade(*(("home", view(f"p{number}")) for number in range(200)))
    serving = Metrics(source)
    bodies: list[bytes] = []

    async def scrape_once() -> None:
        bodies.append((await serving.route.handler(Request("GET", "/metrics", "", {}, b""))).body)

    async with trio.open_nursery() as scrapers:
        for _ in range(2):
            scrapers.start_soon(scrape_once)
    assert [len(read(body)["trio_tunnel_proxy_up"]) for body in bodies] == [200, 200]


async def test_a_scraper_that_leaves_in_the_middle_blocks_no_other() -> None:
    serving = Metrics(HandMade(*(("home", view(f"p{number}")) for number in range(2000))))
    request = Request("GET", "/metrics", "", {}, b"")
    with trio.CancelScope() as leaving:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serving.route.handler, request)
            await trio.lowlevel.checkpoint()
            leaving.cancel()
    with trio.fail_after(60):
        assert (await serving.route.handler(request)).status == 200


async def test_it_needs_no_registry_of_the_process() -> None:
    """Whoever runs a tunnel inside a program of theirs finds nothing of ours among their own metrics."""
    registry = CollectorRegistry()
    await text_of(HandMade())
    assert list(registry.collect()) == []


# Histograms


async def test_a_histogram_counts_and_its_buckets_add_up() -> None:
    histogram = Histogram()
    for seconds in (1e-6, 0.001, 0.5, 2.0, 500.0):
        histogram.add(seconds)
    encode, _ = choose_encoder("")
    samples = read(await render(families(evolve(scrape(), lateness=Distribution.of(histogram))), encode))
    buckets = {
        float(dict(labels)["le"]): n for labels, n in samples["trio_tunnel_event_loop_delay_seconds_bucket"].items()
    }
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets[0.0001], buckets[0.1], buckets[1.0], buckets[100.0], buckets[float("inf")]) == (1, 2, 3, 4, 5)
    assert samples["trio_tunnel_event_loop_delay_seconds_count"] == {(): 5}
    assert samples["trio_tunnel_event_loop_delay_seconds_sum"][()] == pytest.approx(502.501001)


async def test_the_loops_delay_is_how_late_it_wakes(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    lateness = Lateness()
    nursery.start_soon(lateness.run)
    for jump, late in ((0.5, 0.0), (0.75, 0.25), (3.0, 2.5)):
        await wait_all_tasks_blocked()
        before = lateness.seconds.sum
        mock_clock.jump(jump)
        await wait_all_tasks_blocked()
        assert lateness.seconds.sum - before == pytest.approx(late)
    assert lateness.seconds.count == 3
    nursery.cancel_scope.cancel()


# What events tell


def status(status: Status, reason: Reason | None) -> ProxyStatusUpdate:
    return ProxyStatusUpdate(
        proxy_name="web", status=status, error_message=None, retry_after_seconds=None, seq=1, reason=reason, attempt=0,
        max_retries=None, publish_addr="0.0.0.0", publish_port=8001, since="2026-01-01T00:00:00.000Z",
    )  # fmt: skip


def test_events_before_and_after_are_counted_once_each() -> None:
    events, counts = EventStream(), EventCounts()
    events.publish("session.started", client="home", peer="127.0.0.1")
    with counts.follow(events):
        for number in range(2000):  # more than a follower keeps
            events.publish("proxy.status", client="home", proxy="web", update=status(Status.UNHEALTHY, Reason.PENDING))
            assert counts.status_changes["unhealthy", "pending"] == number + 1
        events.publish("proxy.status", client="home", proxy="web", update=status(Status.HEALTHY, None))
        events.publish("session.ended", client="home", reason="lost", message="", seconds=1.0)
    events.publish("session.started", client="home", peer="127.0.0.1")
    assert (counts.sessions_started, dict(counts.sessions_ended)) == (1, {"lost": 1})
    assert counts.status_changes["healthy", ""] == 1


def test_a_client_that_left_is_told_as_down_and_one_whose_token_is_gone_not_at_all() -> None:
    events, counts = EventStream(), EventCounts()
    with counts.follow(events):
        for client, reason in (("home", "lost"), ("lab", "lost"), ("gone", "goodbye")):
            events.publish("session.started", client=client, peer="")
            events.publish("session.ended", client=client, reason=reason, message="", seconds=1.0)
    found = {family.name: list(family.samples) for family in families(scrape(counts=counts))}
    up = {labels["client"]: value for _, labels, value in found["trio_tunnel_session_up"]}
    assert up == {"home": 1, "gone": 0}  # the scrape has a session of "home"


def test_an_event_that_cannot_be_counted_hurts_nobody_who_publishes(caplog: pytest.LogCaptureFixture) -> None:
    events, counts = EventStream(), EventCounts()
    with counts.follow(events):
        events.publish("session.ended", client="home")  # without its reason
        events.publish("session.started", client="home", peer="")
    assert counts.sessions_started == 1
    assert caplog.messages == ["an event was not counted"]


def test_a_clients_attempts_that_were_no_sessions_end_none() -> None:
    events, counts = EventStream(), EventCounts()
    with counts.follow(events):
        for kind in ("lost", "connecting", "connected", "lost", "connecting", "lost", "connected"):
            events.publish(f"session.{kind}", client="home", detail="", retry_in=None)
    assert (counts.sessions_started, dict(counts.sessions_ended)) == (2, {"lost": 1})


def test_a_refused_reload_is_told_until_one_works() -> None:
    events, counts = EventStream(), EventCounts()
    begun = counts.last_load_at
    with counts.follow(events):
        events.publish("config.refused", mistakes=[])
        assert (counts.last_reload_worked, counts.last_load_at) == (False, begun)
        events.publish("config.reloaded", changes=[])
    assert counts.last_reload_worked
    assert counts.last_load_at >= begun
    assert counts.reloads == {"applied": 1, "refused": 1}


def test_names_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.admin.counts.MAX_CLIENTS", 2)
    events, counts = EventStream(), EventCounts()
    with counts.follow(events):
        for number in range(5):
            events.publish("session.started", client=f"c{number}", peer="")
    assert list(counts.clients) == ["c0", "c1"]
    assert counts.sessions_started == 5


# At rest


@pytest.mark.slow  # a Python of its own
def test_who_is_never_scraped_has_nothing_of_it_in_memory() -> None:
    code = f"import sys, tunnel.cli.main, tunnel.api; print([name for name in {IMPORTED} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "[]\n"
