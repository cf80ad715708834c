"""Reads a history file, whether a process writes to it or none does, and says what happened in a window.

Called by `trio-tunnel history`; blocks. Nothing is ever written, and a row at a time is held where there may be many.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import frozen

from tunnel.errors import TunnelError
from tunnel.history.figures import Figures, Interval, figures
from tunnel.history.life import may_live
from tunnel.history.store import MIGRATIONS, check_ours

ALIVE_SECONDS = 90.0  # a process that has told nothing for so long has ended: two signs of life were due
# Where a run's moments stand in the wall clock's time, and until when it is known: now, if it is alive.
_PLACED = """
    WITH told AS MATERIALIZED (
        SELECT *, last_at - last AS start,
            NOT stopped AND abs(:until - last_at) <= :alive AND may_live(life) AS alive
        FROM runs
    ), placed AS MATERIALIZED (SELECT *, CASE WHEN alive THEN :until ELSE last_at END AS known FROM told)
"""


@frozen
class Run:
    """A process that kept the record, in Unix seconds. `end`: ``running``, ``stopped`` or ``lost`` (killed, or its
    machine)."""

    role: str
    version: str
    began: float
    ended: float
    end: str
    lost: int


@frozen
class ProxyReport:
    """`status` is the last one known, with its reason; `is_now` where the process that says so is alive."""

    role: str
    client: str
    name: str
    addr: str
    port: int
    status: str
    reason: str | None
    is_now: bool
    figures: Figures


@frozen
class SessionReport:
    """A session, in Unix seconds. `end` is empty while it lasts; ``stopped`` where its process was stopped with it, and
    ``unknown`` where that was killed, or its machine."""

    role: str
    client: str
    peer: str
    began: float
    seconds: float
    end: str
    message: str
    tries: int


@frozen
class Report:
    """All of a window. `lost` counts changes that could not be kept."""

    file: Path
    since: float
    until: float
    lost: int
    runs: tuple[Run, ...]
    proxies: tuple[ProxyReport, ...]
    sessions: tuple[SessionReport, ...]


@frozen
class Moment:
    """Something that happened, Unix seconds; `fields` as JSON can hold them."""

    at: float
    kind: str
    client: str
    proxy: str
    fields: dict[str, Any]


@frozen
class Wanted:
    """A window, Unix seconds, and what of it: one `client`'s, or proxies called `name` (NAME or CLIENT/NAME)."""

    since: float
    until: float
    client: str = ""
    name: str = ""

    def has(self, client: str, proxy: str) -> bool:
        return self.client in ("", client) and self.name in ("", proxy, f"{client}/{proxy}")

    @property
    def moments(self) -> dict[str, float]:
        return {"since": self.since, "until": self.until, "alive": ALIVE_SECONDS}


def read_report(file: Path, wanted: Wanted, *, keep: int = 10) -> Report:
    """The figures of the proxies wanted, with `keep` outages of each, and the sessions of their clients.

    `TunnelError` where there is no history that can be read.
    """
    with _reading(file) as db:
        runs = tuple(_runs(db, wanted))
        proxies = tuple(_proxies(db, wanted, keep))
        owners = {(one.role, one.client) for one in proxies}
        sessions = tuple(
            one
            for one in _sessions(db, wanted)
            if wanted.client in ("", one.client) and (not wanted.name or (one.role, one.client) in owners)
        )
        return Report(file, wanted.since, wanted.until, sum(run.lost for run in runs), runs, proxies, sessions)


def read_moments(file: Path, wanted: Wanted) -> Iterator[Moment]:
    """All that is recorded of what is wanted, oldest first."""
    with _reading(file) as db:
        yield from (one for one in _moments(db, wanted) if wanted.has(one.client, one.proxy))


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    if not file.exists():
        raise TunnelError(
            f"there is no history in {file}; name the state directory of the process with --state-dir, or its "
            "history file with --file (a client keeps one where it has a state directory)"
        )
    try:
        with closing(_open(file)) as db:
            db.create_function("may_live", 1, may_live)
            db.execute("BEGIN")  # all that is read is of one moment
            version = check_ours(db, file)
            if not version:
                raise TunnelError(f"the history in {file} is empty so far; ask again in a moment")
            if version < len(MIGRATIONS):
                raise TunnelError(f"{file} was made by an older trio-tunnel; start a process with it, which renews it")
            yield db
    except sqlite3.Error as exc:
        raise TunnelError(f"the history in {file} cannot be read: {exc}") from exc


def _open(file: Path) -> sqlite3.Connection:
    """Read-only. Where nothing may be written beside the file and nobody writes to it, SQLite must be told so."""
    uri = f"file:{quote(str(file.absolute()))}?mode=ro"
    for more in ("", "&immutable=1"):
        db = sqlite3.connect(uri + more, uri=True, timeout=5.0, isolation_level=None)
        try:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError as exc:
            db.close()
            if more or exc.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
        except BaseException:
            db.close()
            raise
        else:
            return db
    raise AssertionError("one of the two has returned or raised")


def _runs(db: sqlite3.Connection, wanted: Wanted) -> Iterator[Run]:
    sql = f"{_PLACED} SELECT role, version, start, known, stopped, alive, lost FROM placed WHERE known >= :since"  # noqa: S608
    for role, version, start, known, stopped, alive, lost in db.execute(sql, wanted.moments):
        end = "stopped" if stopped else "running" if alive else "lost"
        yield Run(role, version, start, known, end, lost)


def _proxies(db: sqlite3.Connection, wanted: Wanted, keep: int) -> Iterator[ProxyReport]:
    sql = (
        f"{_PLACED} SELECT role, s.client, s.proxy, start + s.began, coalesce(start + s.ended, known) AS until_, "  # noqa: S608
        "status, reason, message, addr, port, failed, binds, s.ended IS NULL AND alive FROM spans s "
        "JOIN placed p ON p.id = s.run WHERE until_ >= :since ORDER BY role, s.client, s.proxy, 4, s.run, s.n"
    )
    rows = db.execute(sql, wanted.moments)
    for (role, client, name), group in groupby(rows, key=itemgetter(0, 1, 2)):
        if wanted.has(client, name):
            yield _proxy(role, client, name, list(group), wanted, keep)


def _proxy(
    role: str, client: str, name: str, rows: Sequence[tuple[Any, ...]], wanted: Wanted, keep: int
) -> ProxyReport:
    intervals = [Interval(row[3], row[4], row[5], row[6], row[7], row[10], row[11]) for row in rows]
    last = rows[-1]
    found = figures(intervals, since=wanted.since, until=wanted.until, keep=keep)
    return ProxyReport(role, client, name, last[8], last[9], last[5], last[6], bool(last[12]), found)


def _sessions(db: sqlite3.Connection, wanted: Wanted) -> Iterator[SessionReport]:
    sql = (
        f"{_PLACED} SELECT role, s.client, peer, start + s.began, coalesce(start + s.ended, known) AS until_, "  # noqa: S608
        "CASE WHEN s.ended IS NOT NULL THEN reason WHEN stopped THEN 'stopped' WHEN alive THEN '' ELSE 'unknown' END, "
        "message, tries "
        "FROM sessions s JOIN placed p ON p.id = s.run WHERE until_ >= :since ORDER BY 4"
    )
    for role, client, peer, began, ended, end, message, tries in db.execute(sql, wanted.moments):
        yield SessionReport(role, client, peer, began, ended - began, end, message, tries)


def _moments(db: sqlite3.Connection, wanted: Wanted) -> Iterator[Moment]:
    """One statement for all, so that SQLite sorts them, on disk if need be."""
    sql = f"""
        {_PLACED}
        SELECT start + s.began AS at_, 'proxy.' || status, s.client, s.proxy, reason, message, addr, port, failed,
            coalesce(start + s.ended, known) - start - s.began, s.run, s.n
        FROM spans s JOIN placed p ON p.id = s.run WHERE at_ BETWEEN :since AND :until
        UNION ALL
        SELECT start + s.began AS at_, 'session.started', s.client, '', peer, '', '', tries, 0, NULL, s.run, s.n
        FROM sessions s JOIN placed p ON p.id = s.run WHERE at_ BETWEEN :since AND :until
        UNION ALL
        SELECT start + s.ended AS at_, 'session.ended', s.client, '', reason, message, '', 0, 0, s.ended - s.began,
            s.run, s.n
        FROM sessions s JOIN placed p ON p.id = s.run WHERE at_ BETWEEN :since AND :until
        UNION ALL
        SELECT start AS at_, role || '.started', '', '', version, '', '', 0, 0, NULL, id, -1
        FROM placed WHERE at_ BETWEEN :since AND :until
        UNION ALL
        SELECT known AS at_, role || CASE WHEN stopped THEN '.stopped' ELSE '.lost' END, '', '', NULL, '', '', lost, 0,
            known - start, id, 1e18
        FROM placed WHERE at_ BETWEEN :since AND :until AND NOT alive
        ORDER BY 1, 11, 12
    """  # noqa: S608
    for row in db.execute(sql, wanted.moments):
        yield Moment(row[0], row[1], row[2], row[3], _fields(row[1], row[4:]))


def _fields(kind: str, row: Sequence[Any]) -> dict[str, Any]:
    reason, message, addr, number, failed, seconds = row[:6]
    what, _, event = kind.partition(".")
    if what == "proxy":
        found = {"reason": reason, "message": message, "addr": addr, "port": number, "failed_attempts": failed}
        return {**found, "seconds": seconds}
    if what == "session":
        started = {"peer": reason, "failed_tries": number}
        return started if event == "started" else {"reason": reason, "message": message, "seconds": seconds}
    return {"version": reason} if event == "started" else {"seconds": seconds, "lost_changes": number}


def clients(sessions: Iterable[SessionReport]) -> dict[tuple[str, str], list[SessionReport]]:
    """By role and client."""
    found: dict[tuple[str, str], list[SessionReport]] = {}
    for one in sessions:
        found.setdefault((one.role, one.client), []).append(one)
    return found
