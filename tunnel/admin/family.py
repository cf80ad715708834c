"""A metric of one name: what kind it is, what it says, and its samples. Pure."""

from collections.abc import Iterable, Mapping
from typing import Literal

from attrs import frozen

from tunnel.meters import Distribution

PREFIX = "trio_tunnel_"
BOUNDS = (1e-4, 100.0)  # seconds; buckets beyond them are left out, for they are empty or all say the same

Kind = Literal["counter", "gauge", "histogram", "info"]
Sample = tuple[str, Mapping[str, str], float]  # what is added to the family's name, labels, value
Values = Iterable[tuple[Mapping[str, str], float]]


@frozen
class Family:
    """`samples` may be made one by one: there are as many as proxies."""

    name: str
    kind: Kind
    text: str
    samples: Iterable[Sample]


def info(name: str, text: str, labels: Iterable[Mapping[str, str]]) -> Family:
    return Family(PREFIX + name, "info", text, (("_info", words, 1) for words in labels))


def gauge(name: str, text: str, value: float) -> Family:
    return Family(PREFIX + name, "gauge", text, [("", {}, value)])


def gauges(name: str, text: str, values: Values) -> Family:
    return Family(PREFIX + name, "gauge", text, (("", labels, value) for labels, value in values))


def counter(name: str, text: str, value: float) -> Family:
    return Family(PREFIX + name, "counter", text, [("_total", {}, value)])


def counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Family:
    return labelled_counter(name, text, (({label: word}, number) for word, number in sorted(values.items())))


def labelled_counter(name: str, text: str, values: Values) -> Family:
    return Family(PREFIX + name, "counter", text, (("_total", labels, value) for labels, value in values))


def histogram(name: str, text: str, found: Distribution) -> Family:
    samples: list[Sample] = []
    for bound, below in found.buckets:
        if BOUNDS[0] * 0.99 < bound < BOUNDS[1] * 1.01:
            samples.append(("_bucket", {"le": f"{bound:.3g}"}, below))
    count = found.buckets[-1][1]
    samples += [("_bucket", {"le": "+Inf"}, count), ("_count", {}, count), ("_sum", {}, found.sum)]
    return Family(PREFIX + name, "histogram", text, samples)
