"""The file: intervals in SQLite, WAL, for one writing thread of each process and any reader.

    runs      a process's life: `last` is the newest moment it is known of, monotonic, and `last_at` the wall clock
              then, so that all else of the run can be placed: last_at - last + began
    spans     `ledger.Span`
    sessions  `ledger.SessionSpan`

A power cut loses the last seconds and never the file (synchronous=NORMAL under WAL); a killed process loses nothing
that was committed.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define

from tunnel.errors import TunnelError
from tunnel.history.ledger import SessionSpan, Span

APPLICATION_ID = 0x54544831  # "TTH1", so that nobody else's database is taken for ours
BUSY_SECONDS = 5.0  # for another process's transaction, which takes milliseconds
PRUNE_ROWS = 5000  # in one transaction, so that it is short
SLACK = 0.05  # pruned to so much below the bound, lest it be done for each row
CACHE_KIB = 256
MIGRATIONS = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, role TEXT NOT NULL, version TEXT NOT NULL, life TEXT NOT NULL,
        began_at REAL NOT NULL, last REAL NOT NULL, last_at REAL NOT NULL,
        lost INTEGER NOT NULL DEFAULT 0, stopped INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE spans (
        run INTEGER NOT NULL, n INTEGER NOT NULL, client TEXT NOT NULL, proxy TEXT NOT NULL, began REAL NOT NULL,
        ended REAL, at REAL NOT NULL, status TEXT NOT NULL, reason TEXT, message TEXT, addr TEXT NOT NULL,
        port INTEGER NOT NULL, failed INTEGER NOT NULL, binds INTEGER NOT NULL, PRIMARY KEY (run, n)
    ) WITHOUT ROWID;
    CREATE TABLE sessions (
        run INTEGER NOT NULL, n INTEGER NOT NULL, client TEXT NOT NULL, peer TEXT NOT NULL, began REAL NOT NULL,
        ended REAL, at REAL NOT NULL, tries INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
        PRIMARY KEY (run, n)
    ) WITHOUT ROWID;
    """,
)  # the one at index i makes version i + 1 of what came before

_SPAN = """
    INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET client = excluded.client, ended = excluded.ended, message = excluded.message,
        failed = excluded.failed
"""
_SESSION = """
    INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET ended = excluded.ended, reason = excluded.reason, message = excluded.message
"""


@define
class Run:
    """The row of this process. `id` is None until the file knows it; times as in the table, `life` as in `life`."""

    role: str
    version: str
    began_at: float
    life: str = ""
    last: float = 0.0
    last_at: float = 0.0
    lost: int = 0
    stopped: bool = False
    id: int | None = None


class Store:
    """An open file to write to. All may raise sqlite3.Error, and then nothing of that call is in the file."""

    def __init__(self, path: Path) -> None:
        """Makes the file where there is none, readable by its owner alone. OSError, sqlite3.Error, `TunnelError`."""
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        self._path = path
        self._identity = _identity(path)
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        db = self._db
        db.execute("BEGIN")  # of one moment: another process may be making it
        version = check_ours(db, self._path)
        db.execute("COMMIT")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        if not version:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 4194304")
        if version < len(MIGRATIONS):
            self._migrate()

    def _migrate(self) -> None:
        """To the newest version, whole steps of it; another process may be at it as well."""
        db = self._db
        while True:
            with self._transaction():
                version = _version(db)
                if version == len(MIGRATIONS):
                    return
                for statement in MIGRATIONS[version].split(";"):  # `executescript` would commit first
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {version + 1}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                with suppress(sqlite3.Error):  # the first error is the one to tell
                    self._db.execute("ROLLBACK")
            raise

    def write(self, run: Run, spans: Iterable[Span], sessions: Iterable[SessionSpan], *, renamed: str = "") -> None:
        """One transaction: the run as it is now, its new and changed rows; with `renamed` the client's name goes to the
        rows that have none."""
        with self._transaction():
            number = self._write_run(run)
            self._db.executemany(_SPAN, [_span_row(number, span) for span in spans])
            self._db.executemany(_SESSION, [_session_row(number, session) for session in sessions])
            if renamed:
                self._db.execute("UPDATE spans SET client = ? WHERE run = ? AND client = ''", (renamed, number))
        run.id = number

    def _write_run(self, run: Run) -> int:
        if run.id is not None:
            values = (run.last, run.last_at, run.lost, run.stopped, run.id)
            sql = "UPDATE runs SET last = ?, last_at = ?, lost = ?, stopped = ? WHERE id = ?"
            if self._db.execute(sql, values).rowcount:
                return run.id
        sql = (
            "INSERT INTO runs (role, version, life, began_at, last, last_at, lost, stopped) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        row = (run.role, run.version, run.life, run.began_at, run.last, run.last_at, run.lost, run.stopped)
        number = self._db.execute(sql, row).lastrowid
        assert number is not None
        return number

    def knows(self, run: Run) -> bool:
        """Whether this is the file that `run` was written to."""
        found = self._db.execute(
            "SELECT 1 FROM runs WHERE (id, began_at, life) = (?, ?, ?)", (run.id, run.began_at, run.life)
        )
        return found.fetchone() is not None

    def is_gone(self) -> bool:
        """Whether another file, or none, stands at the path now."""
        return _identity(self._path) != self._identity

    def prune(self, *, before: float | None, max_rows: int, run: int | None, most: int = PRUNE_ROWS) -> int:
        """Delete what ended `before` that moment (wall clock; None: whenever) and the oldest beyond `max_rows`, `most`
        of either at a time; what lasts stays. Returns how many rows; 0 when there is nothing left to prune. `run` is
        ours."""
        deleted = 0
        if before is not None:
            deleted += self._prune_age(before, run, most)
        (rows,) = self._db.execute("SELECT (SELECT count(*) FROM spans) + (SELECT count(*) FROM sessions)").fetchone()
        if rows > max_rows:
            deleted += self._prune_oldest(min(rows - int(max_rows * (1 - SLACK)), most))
        if deleted:
            self._db.execute("PRAGMA incremental_vacuum(500)").fetchall()
        return deleted

    def _prune_age(self, before: float, run: int | None, most: int) -> int:
        deleted = 0
        for table in ("spans", "sessions"):
            sql = (
                f"DELETE FROM {table} WHERE (run, n) IN (SELECT t.run, t.n FROM {table} t JOIN runs r ON r.id = t.run "  # noqa: S608
                "WHERE coalesce(t.ended, CASE WHEN r.last_at < ?1 THEN r.last END) + r.last_at - r.last < ?1 LIMIT ?2)"
            )
            deleted += self._db.execute(sql, (before, most)).rowcount
        self._db.execute(
            "DELETE FROM runs WHERE last_at < ?1 AND id IS NOT ?2 AND NOT EXISTS (SELECT 1 FROM spans WHERE run = id) "
            "AND NOT EXISTS (SELECT 1 FROM sessions WHERE run = id)", (before, run),
        )  # fmt: skip
        return deleted

    def _prune_oldest(self, count: int) -> int:
        sql = (
            "DELETE FROM spans WHERE (run, n) IN (SELECT run, n FROM spans s WHERE ended IS NOT NULL "
            "OR run NOT IN (SELECT id FROM runs WHERE NOT stopped) ORDER BY at LIMIT ?)"
        )
        deleted = self._db.execute(sql, (count,)).rowcount
        if deleted < count:  # few proxies, many sessions
            sql = (
                "DELETE FROM sessions WHERE (run, n) IN "
                "(SELECT run, n FROM sessions WHERE ended IS NOT NULL ORDER BY at LIMIT ?)"
            )
            deleted += self._db.execute(sql, (count - deleted,)).rowcount
        return deleted

    def close(self) -> None:
        with suppress(sqlite3.Error):  # a disk that fails; the file is as it was committed
            self._db.close()


def check_ours(db: sqlite3.Connection, path: Path) -> int:
    """The version of a database of ours, 0 for an empty one. `TunnelError` for any other."""
    version = _version(db)
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (tables or version):
        raise TunnelError(f"{path} is the database of another program; name another file for the history")
    if version > len(MIGRATIONS):
        raise TunnelError(f"{path} was made by a newer trio-tunnel; use that, or name another file for the history")
    return version


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _identity(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _span_row(run: int, one: Span) -> tuple[object, ...]:
    return (
        run, one.n, one.client, one.proxy, one.began, one.ended, one.at, one.status, one.reason, one.message, one.addr,
        one.port, one.failed, one.binds,
    )  # fmt: skip


def _session_row(run: int, one: SessionSpan) -> tuple[object, ...]:
    return run, one.n, one.client, one.peer, one.began, one.ended, one.at, one.tries, one.reason, one.message
