"""What a pool counts, and each of its addresses. Everything only grows."""

from collections import Counter

from attrs import Factory, define

from tunnel.faults import Fault
from tunnel.histogram import Histogram

MAX_OWNERS = 50  # named among the leaks; a label set that grows with its users would be a leak itself


@define(eq=False)
class Counts:
    """What is counted of one address. Durations are histograms in seconds."""

    hits: int = 0  # leases on a member that was ready
    reused: int = 0  # leases on a member that had been lent before
    leases: int = 0
    cold_dials: int = 0  # opened because somebody waited
    opened: int = 0  # connections made, handshakes done
    waits: Histogram = Factory(Histogram)
    validation_failures: Counter[str] = Factory(Counter)  # by kind
    retries: Counter[str] = Factory(Counter)  # by phase.kind of what is retried


@define(eq=False)
class Figures(Counts):
    """Totals of one pool, of addresses that it has forgotten, too."""

    misses: int = 0  # had to wait
    openings: Histogram = Factory(Histogram)
    timeouts: int = 0  # waits that ended at their deadline
    faults: Counter[str] = Factory(Counter)  # openings that failed, by phase.kind
    denied_retries: int = 0  # by the retry budget
    quarantines: int = 0
    retired: Counter[str] = Factory(Counter)  # by cause: age, idle, dead, lost, used, removed, bad
    leaks: Counter[str] = Factory(Counter)  # by owner

    def failed(self, fault: Fault) -> None:
        self.faults[f"{fault.phase}.{fault.kind}"] += 1

    def leaked(self, owner: str) -> None:
        self.leaks[owner if owner in self.leaks or len(self.leaks) < MAX_OWNERS else "others"] += 1
