"""Pools and targets in `client.toml`: what every key gives, what follows what is not written, and each mistake."""

import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck as Health
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.addresses import HostPort, Target
from tunnel.backoff import RetryPolicy
from tunnel.config import DATA_CHANNELS, HOT_TARGETS, ClientConfig, PoolConfig, ProxyConfig
from tunnel.config.file import check_file, load_client
from tunnel.config.templates import init_text

SERVER = 'server = "tunnel.example.com"\n'
BARE = SERVER + '[[proxies]]\nname = "web"\npublish_port = 8001\n'
PROXY = BARE + 'target = "8080"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "client.toml"
    path.write_text(text)
    return path


def load(folder: Path, text: str) -> ClientConfig:
    return load_client(write(folder, text), need_token=False)


def proxy_of(folder: Path, text: str) -> ProxyConfig:
    (proxy,) = load(folder, text).proxies
    return proxy


def mistakes(folder: Path, text: str) -> list[tuple[int, str, str]]:
    return [(found.line, found.path, found.problem) for found in check_file(write(folder, text), "client").mistakes]


# Targets

MANY = (
    Target("tcp", "127.0.0.1", 8080),
    Target("tls", "nas.local", 443, 3, True, HostPort("10.0.0.9", 443), "files.local"),
    Target("unix", "/run/web", weight=2),
)
INLINE = """targets = [
  "8080",
  { target = "tls://nas.local:443", weight = 3, backup = true, connect_to = "10.0.0.9:443",server_name="files.local" },
  { target = "unix:/run/web", weight = 2 },
]
"""
HEADERS = """[[proxies.targets]]
target = "8080"
[[proxies.targets]]
target = "tls://nas.local:443"
weight = 3
backup = true
connect_to = "10.0.0.9:443"
server_name = "files.local"
[[proxies.targets]]
target = "unix:/run/web"
weight = 2
"""


@pytest.mark.parametrize("text", [INLINE, HEADERS])
def test_targets_can_be_texts_and_tables_and_have_all_their_keys(tmp_path: Path, text: str) -> None:
    assert proxy_of(tmp_path, BARE + text).targets == MANY


TARGET_MISTAKES = [
    ('targets = ["1", 2]', 5, "targets[1]", "is a number, not a text"),
    ('targets = ["1",\n[]]', 6, "targets[1]", "is a list, not a text"),
    ('target = { target = "1" }', 5, "target", "is a table, not a text"),
    ("targets = [{ weight = 2 }]", 5, "targets[0].target", "is missing"),
    ('targets = [{ target = "x" }]', 5, "targets[0].target", "has no port"),
    ('targets = [{ target = "1", weight = 0 }]', 5, "targets[0].weight", "is out of range"),
    ('targets = [{ target = "1", weight = 1001 }]', 5, "targets[0].weight", "is out of range"),
    ('targets = [{ target = "1", backup = "yes" }]', 5, "targets[0].backup", "is a text, not true or false"),
    ('targets = [{ target = "1", wieght = 2 }]', 5, "targets[0].wieght", "is not a key here"),
    ('targets = [{ target = "1", connect_to = "10.0.0.9" }]', 5, "targets[0].connect_to", "has no port"),
    ('targets = [{ target = "1", connect_to = "nas:1" }]', 5, "targets[0].connect_to", "is not an IP address with"),
    ('targets = [{ target = "1", connect_to = "1.1.1.1:0" }]', 5, "targets[0].connect_to", "'0' is not a port"),
    (
        'targets = [{ target = "unix:/a", connect_to = "1.1.1.1:1" }]',
        5,
        "targets[0].connect_to",
        "means nothing to a Unix socket",
    ),
    ('targets = [{ target = "a:1", server_name = "b" }]', 5, "targets[0].server_name", "means nothing without TLS"),
    ('targets = [{ target = "tls://a:1", server_name = "b c" }]', 5, "targets[0].server_name", "is not a host"),
    ('targets = [{ target = "1", backup = true }]', 5, "targets", "are all backup"),
    ('targets = ["1", "127.0.0.1:1"]', 5, "targets[1]", "is the target at proxies[0].targets[0] (line 5) too"),
    (
        'targets = ["tls://a:1",\n{ target = "tls://a:1", weight = 2 }]',
        6,
        "targets[1].target",
        "is the target at proxies[0].targets[0] (line 5) too",
    ),
    ('targets = ["tls://a:1", { target = "tls://a:1", connect_to = "1.1.1.1:1" }]', None, None, None),
    ('target = "1"\n[[proxies.targets]]\ntarget = "2"', 6, "targets", "stands beside target"),
    ('[proxies.targets]\ntarget = "2"', 5, "targets", "stands once, but is a list of tables"),
]


@pytest.mark.parametrize(("text", "line", "path", "problem"), TARGET_MISTAKES)
def test_each_mistake_in_targets_is_told(tmp_path: Path, text: str, line: Any, path: Any, problem: Any) -> None:
    check_one(mistakes(tmp_path, BARE + text), line, f"proxies[0].{path}", problem)


def check_one(found: list[tuple[int, str, str]], line: int | None, path: str, problem: str | None) -> None:
    if problem is None:
        assert found == []
        return
    assert [place[:2] for place in found] == [(line, path)]
    assert found[0][2].startswith(problem)


def test_a_wrong_target_hides_no_mistake_in_the_others(tmp_path: Path) -> None:
    text = 'targets = [7,\n"1",\n{ target = 8, weight = 0, backup = true },\n{ target = "1" }]'
    assert mistakes(tmp_path, BARE + text) == [
        (5, "proxies[0].targets[0]", "is a number, not a text"),
        (7, "proxies[0].targets[2].target", "is a number, not a text"),
        (7, "proxies[0].targets[2].weight", "is out of range"),
        (8, "proxies[0].targets[3].target", "is the target at proxies[0].targets[1] (line 6) too"),
    ]


def test_what_could_not_be_read_is_not_counted_as_a_backup(tmp_path: Path) -> None:
    assert mistakes(tmp_path, BARE + 'targets = [7, { target = "1", backup = true }]') == [
        (5, "proxies[0].targets[0]", "is a number, not a text")
    ]


# When no target is there

CHECK = "[proxies.health_check]\n"


@pytest.mark.parametrize("word", ["keep", "close"])
def test_when_down_says_what_becomes_of_the_public_port(tmp_path: Path, word: str) -> None:
    assert proxy_of(tmp_path, f'{PROXY}when_down = "{word}"\n{CHECK}').when_down == word


WHEN_DOWN_MISTAKES = [
    ('when_down = "drop"\n' + CHECK, 6, "when_down", "is no answer to a target that is down"),
    ('when_down = "keep"\n', 6, "when_down", "means nothing without a health check"),
    ("when_down = 1\nhealth_check = 1\n", 6, "when_down", "is a number, not a text"),
    (CHECK + "jitter = 1.5", 7, "health_check.jitter", "is out of range"),
]


@pytest.mark.parametrize(("text", "line", "path", "problem"), WHEN_DOWN_MISTAKES)
def test_each_mistake_in_when_down_is_told(tmp_path: Path, text: str, line: Any, path: Any, problem: Any) -> None:
    check_one(mistakes(tmp_path, PROXY + text)[:1], line, f"proxies[0].{path}", problem)


def test_a_check_has_its_jitter(tmp_path: Path) -> None:
    check = proxy_of(tmp_path, PROXY + CHECK + "jitter = 0").health_check
    assert check is not None
    assert check.jitter == 0


# Pools

EVERY_KEY = """min = 4
min_per_address = 2
max = 12
max_per_address = 6
fill_rate = 2.5
fill_concurrency = 3
max_age = 100
age_jitter = 0.3
idle_limit = 7
probe_interval = 3
open_seconds = 4
validate_seconds = 2
wait_seconds = 9
lease_seconds = 600
choice = "round_robin"
"""
AS_SAID: dict[str, Any] = {
    "min": 4, "min_per_address": 2, "max": 12, "max_per_address": 6, "fill_rate": 2.5, "fill_concurrency": 3,
    "max_age": 100.0, "age_jitter": 0.3, "idle_limit": 7.0, "probe_interval": 3.0, "open_seconds": 4.0,
    "validate_seconds": 2.0, "wait_seconds": 9.0, "lease_seconds": 600.0, "choice": "round_robin",
}  # fmt: skip


def test_data_channels_and_a_proxys_pool_have_the_same_keys(tmp_path: Path) -> None:
    config = load(
        tmp_path, f"{SERVER}[data_channels]\n{EVERY_KEY}{PROXY.removeprefix(SERVER)}[proxies.pool]\n{EVERY_KEY}"
    )
    assert config.data_channels == attrs.evolve(DATA_CHANNELS, **AS_SAID)
    assert config.proxies[0].pool == attrs.evolve(HOT_TARGETS, **AS_SAID)


def test_without_a_word_pools_are_as_they_are_by_default(tmp_path: Path) -> None:
    config = load(tmp_path, PROXY)
    assert (config.data_channels, config.proxies[0].pool) == (DATA_CHANNELS, HOT_TARGETS)
    empty = load(tmp_path, f"{PROXY}[proxies.pool]\n[data_channels]\n")
    assert (empty.data_channels, empty.proxies[0].pool) == (DATA_CHANNELS, HOT_TARGETS)


@pytest.mark.parametrize("key", ["max_age", "idle_limit", "probe_interval", "lease_seconds"])
def test_what_need_not_happen_can_be_never(tmp_path: Path, key: str) -> None:
    assert getattr(proxy_of(tmp_path, f'{PROXY}pool.{key} = "never"').pool, key) is None


def test_quarantine_and_retry_are_policies(tmp_path: Path) -> None:
    text = (
        SERVER
        + """
[data_channels.quarantine]
max_delay = 5
[data_channels.retry]
type = "exponential"
initial_delay = 1
max_retries = "forever"
"""
    )
    pool = load(tmp_path, text).data_channels
    assert pool.quarantine == attrs.evolve(DATA_CHANNELS.quarantine, max_delay=5.0)
    assert pool.retry == RetryPolicy(initial_delay=1.0, max_retries=None)
    proxy = proxy_of(tmp_path, PROXY + "[proxies.pool.retry]\nmax_retries = 9")
    assert proxy.pool == attrs.evolve(HOT_TARGETS, retry=attrs.evolve(HOT_TARGETS.retry, max_retries=9))


def test_what_init_writes_shows_the_pools_as_they_are_by_default(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=[\[a-z])", "", init_text("client"), flags=re.MULTILINE)
    text = re.sub(r"^(\w+_file|username) = ", "#", text, flags=re.MULTILINE)  # files that are not here
    config = load(tmp_path, text)
    assert (config.data_channels, config.proxies[0].pool) == (DATA_CHANNELS, HOT_TARGETS)
    shown = tomllib.loads(text)["data_channels"]
    assert shown.keys() == {key.name for key in attrs.fields(PoolConfig)}


def test_hot_and_balance_are_short_for_the_pools_min_and_choice(tmp_path: Path) -> None:
    short = proxy_of(tmp_path, PROXY + 'hot = 3\nbalance = "round_robin"\n[proxies.pool]\nmax = 5').pool
    long = proxy_of(tmp_path, PROXY + '[proxies.pool]\nmin = 3\nchoice = "round_robin"\nmax = 5').pool
    assert short == long == attrs.evolve(HOT_TARGETS, min=3, choice="round_robin", max=5, max_per_address=5)


def counts(pool: PoolConfig) -> tuple[int, int, int, int]:
    return pool.min, pool.min_per_address, pool.max, pool.max_per_address


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("data_channels = 1", (1, 1, 32, 8)),
        ("data_channels = 64", (64, 2, 64, 64)),
        ("data_channels.max = 1", (1, 1, 1, 1)),
        ("data_channels.min_per_address = 9", (2, 9, 32, 9)),
        ("data_channels.min_per_address = 20", (2, 20, 32, 20)),
        ("data_channels.max_per_address = 20", (2, 2, 32, 20)),
        ("data_channels = { min = 12, max = 14 }", (12, 2, 14, 12)),
        ("data_channels = { min = 12, max_per_address = 4 }", (12, 2, 32, 4)),
    ],
)
def test_counts_that_are_not_written_follow_those_that_are(tmp_path: Path, text: str, found: Any) -> None:
    assert counts(load(tmp_path, SERVER + text).data_channels) == found


COUNT = st.one_of(st.none(), st.integers(1, 64))


@given(COUNT, COUNT, COUNT, COUNT)
@settings(max_examples=90, deadline=None, suppress_health_check=[Health.function_scoped_fixture])
def test_whatever_counts_are_written_they_are_blamed_or_agree(
    tmp_path: Path, low: int | None, low_each: int | None, high: int | None, high_each: int | None
) -> None:
    said = {"min": low, "min_per_address": low_each, "max": high, "max_per_address": high_each}
    lines = [f"{key} = {value}" for key, value in said.items() if value is not None]
    path = write(tmp_path, SERVER + "[data_channels]\n" + "\n".join(lines))
    if check_file(path).mistakes:
        assert (
            (low or 0) > (high or 64) or (low_each or 0) > (high_each or high or 64) or (high_each or 0) > (high or 64)
        )
        return
    pool = load_client(path, need_token=False).data_channels
    assert pool.min <= pool.max
    assert pool.min_per_address <= pool.max_per_address <= pool.max
    assert all(getattr(pool, key) == value for key, value in said.items() if value is not None)


POOL_MISTAKES = [
    ("data_channels = 65", 2, "data_channels", "is out of range"),
    ('data_channels = "2"', 2, "data_channels", "is a text, not a whole number"),
    ("[data_channels]\nmin = 0", 3, "data_channels.min", "is out of range"),
    ("[data_channels]\nmax = 65", 3, "data_channels.max", "is out of range"),
    ("[data_channels]\nmax_per_address = 0", 3, "data_channels.max_per_address", "is out of range"),
    ("[data_channels]\nmin = 4\nmax = 3", 3, "data_channels.min", "is more than max (3)"),
    (
        "[data_channels]\nmax_per_address = 2\nmin_per_address = 3",
        4,
        "data_channels.min_per_address",
        "is more than max_per_address (2)",
    ),
    ("[data_channels]\nmin_per_address = 3\nmax = 2", 3, "data_channels.min_per_address", "is more than max (2)"),
    ("[data_channels]\nmax_per_address = 3\nmax = 2", 3, "data_channels.max_per_address", "is more than max (2)"),
    ('[data_channels]\nmin = 4\nmax = "3"', 4, "data_channels.max", "is a text, not a whole number"),
    ("[data_channels]\nfill_rate = 0", 3, "data_channels.fill_rate", "is out of range"),
    ("[data_channels]\nfill_concurrency = 0", 3, "data_channels.fill_concurrency", "is out of range"),
    ("[data_channels]\nmax_age = 0", 3, "data_channels.max_age", "is out of range"),
    ('[data_channels]\nmax_age = "ever"', 3, "data_channels.max_age", "is a text, not a number"),
    ("[data_channels]\nage_jitter = 1.1", 3, "data_channels.age_jitter", "is out of range"),
    ('[data_channels]\nopen_seconds = "never"', 3, "data_channels.open_seconds", "is a text, not a number"),
    ("[data_channels]\nlease_seconds = 0", 3, "data_channels.lease_seconds", "is out of range"),
    ('[data_channels]\nlease_seconds = "ever"', 3, "data_channels.lease_seconds", "is a text, not a number"),
    ('[data_channels]\nchoice = "random"', 3, "data_channels.choice", "is no choice"),
    ("data_channels.retry = 3", 2, "data_channels.retry", "is a number, not a table"),
    ("data_channels.quarantine.factor = 0", 2, "data_channels.quarantine.factor", "is out of range"),
    ("[data_channels]\nmaxage = 1", 3, "data_channels.maxage", "is not a key here"),
    ("[data_channels]\nhot = 1", 3, "data_channels.hot", "is not a key here"),
]


@pytest.mark.parametrize(("text", "line", "path", "problem"), POOL_MISTAKES)
def test_each_mistake_in_data_channels_is_told(tmp_path: Path, text: str, line: Any, path: Any, problem: Any) -> None:
    check_one(mistakes(tmp_path, SERVER + text), line, path, problem)


HOT_MISTAKES = [
    ("hot = 256", None, None, None),
    ("hot = 0", None, None, None),
    ("hot = 257", 6, "hot", "is out of range"),
    ("hot = -1", 6, "hot", "is out of range"),
    ("hot = true", 6, "hot", "is true or false, not a whole number"),
    ('balance = "least-load"', 6, "balance", "is no choice"),
    ("hot = 4\n[proxies.pool]\nmin = 4", 6, "hot", "stands beside pool.min"),
    ('balance = "least_load"\npool.choice = "least_load"', 6, "balance", "stands beside pool.choice"),
    ("hot = 4\npool = { max = 3 }", 6, "hot", "is more than max (3)"),
    ("pool = 4", 6, "pool", "is a number, not a table"),
    ("pool.max = 257", 6, "pool.max", "is out of range"),
]


@pytest.mark.parametrize(("text", "line", "path", "problem"), HOT_MISTAKES)
def test_each_mistake_in_a_proxys_pool_is_told(tmp_path: Path, text: str, line: Any, path: Any, problem: Any) -> None:
    check_one(mistakes(tmp_path, PROXY + text), line, f"proxies[0].{path}", problem)


def test_a_wrong_number_may_also_have_been_meant_as_never(tmp_path: Path) -> None:
    (mistake,) = check_file(write(tmp_path, f"{SERVER}[data_channels]\nmax_age = 0\n")).mistakes
    assert mistake.remedy == 'write a number above 0 and up to 86400, or "never"'
