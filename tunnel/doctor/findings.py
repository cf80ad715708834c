"""What a check came to, and what all of them come to. Pure."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from attrs import define, field, frozen

FAILED, REFUSED = 1, 3  # exit codes, as everywhere
STEP_SECONDS = 10.0  # for each look-up, connection, handshake, answer


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"  # works, and is to be looked at
    FAIL = "fail"
    SKIP = "skip"  # could not be looked at; the message says why


@frozen
class Finding:
    """One line. `seconds` is how long it took, where that tells something; `is_trust` marks what ends with exit code 3:
    somebody does not trust somebody."""

    check: str
    verdict: Verdict
    message: str
    remedy: str = ""
    seconds: float | None = None
    is_trust: bool = False

    def to_json(self) -> dict[str, Any]:
        took = None if self.seconds is None else round(self.seconds * 1000, 3)
        return {
            "check": self.check, "verdict": self.verdict.value, "message": self.message, "remedy": self.remedy or None,
            "milliseconds": took,
        }  # fmt: skip


@define
class Report:
    """All findings so far; `say` is called with each as it comes, `skipped` with those that share a reason."""

    say: Callable[[Finding], None] = field(default=lambda _finding: None)
    skipped: Callable[[str, tuple[str, ...]], None] = field(default=lambda _why, _checks: None)
    findings: list[Finding] = field(factory=list)

    def add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.say(finding)

    def ok(self, check: str, message: str, *, seconds: float | None = None) -> None:
        self.add(Finding(check, Verdict.OK, message, seconds=seconds))

    def warn(self, check: str, message: str, remedy: str = "", *, seconds: float | None = None) -> None:
        self.add(Finding(check, Verdict.WARN, message, remedy, seconds))

    def fail(self, check: str, message: str, remedy: str = "", *, is_trust: bool = False) -> None:
        self.add(Finding(check, Verdict.FAIL, message, remedy, is_trust=is_trust))

    def skip(self, why: str, *checks: str) -> None:
        self.findings += (Finding(check, Verdict.SKIP, why) for check in checks)
        self.skipped(why, checks)

    def count(self, verdict: Verdict) -> int:
        return sum(finding.verdict is verdict for finding in self.findings)

    @property
    def exit_code(self) -> int:
        failures = [finding for finding in self.findings if finding.verdict is Verdict.FAIL]
        if any(finding.is_trust for finding in failures):
            return REFUSED
        return FAILED if failures else 0

    @property
    def summary(self) -> str:
        failed, warned, skipped = map(self.count, (Verdict.FAIL, Verdict.WARN, Verdict.SKIP))
        words = [
            f"{failed} failed" if failed else "",
            _plural(warned, "warning"),
            f"{skipped} skipped" if skipped else "",
        ]
        told = ", ".join(filter(None, words))
        return told if failed else f"all is well{f' ({told})' if told else ''}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}" if count else ""


def parts(problem: BaseException) -> tuple[str, str]:
    """Problem and remedy, of the words of an exception of ours."""
    message, _, remedy = (str(problem) or type(problem).__name__).partition("; ")
    return message, remedy
