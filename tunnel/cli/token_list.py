"""`trio-tunnel token list`: who has a token, since when, what it allows, and who is connected. Used by `cli`."""

from collections.abc import Iterable
from typing import Any

from attrs import asdict, frozen

from tunnel.addresses import HostPort, PortRange
from tunnel.cli.asking import fetch_stats
from tunnel.config import Grant
from tunnel.errors import TunnelError
from tunnel.state import StateDir
from tunnel.wording import clean

ANY = "any"


@frozen
class Row:
    """One client. `made` is when its token was made in the state directory, None where only a file's entry knows it;
    `allow_…` None means any; `connected` is None where no server could be asked, else since when, or "" for not now."""

    name: str
    made: str | None
    entry: bool  # of the configuration file, which alone says then what is allowed
    revoked: bool
    allow_ports: list[str] | None
    allow_addrs: list[str] | None
    allow_names: list[str] | None
    max_proxies: int
    max_visitors: int | None
    max_visitor_rate: float | None
    connected: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rows(state: StateDir, entries: Iterable[Grant], admin: HostPort | None) -> list[Row]:
    """All clients of the state directory, and the `entries` of a server's configuration.

    `admin` is where a running server may be asked who is connected. `TunnelError` when the directory cannot be used.
    """
    made, revoked = state.made(), state.revoked()
    names, tokens = {grant.name for grant in entries}, {grant.token_sha256 for grant in entries}
    ours = [grant for grant in state.grants() if grant.name not in names and grant.token_sha256 not in tokens]
    sessions = None if admin is None else connected(admin)
    found = [_row(grant, made, revoked, sessions, entry=True) for grant in entries]
    found += [_row(grant, made, revoked, sessions, entry=False) for grant in ours]
    return sorted(found, key=lambda row: row.name)


def connected(admin: HostPort) -> dict[str, str] | None:
    """Which clients a running server has, and since when; None where none answers."""
    try:
        stats = fetch_stats(admin)
    except TunnelError:
        return None
    if stats.get("role") != "server":
        return None
    sessions = [session for session in stats["sessions"] if isinstance(session, dict)]
    return {str(session.get("client")): clean(str(session.get("since"))) for session in sessions}


def _row(
    grant: Grant, made: dict[str, str], revoked: frozenset[bytes], sessions: dict[str, str] | None, *, entry: bool
) -> Row:
    return Row(
        name=grant.name,
        made=made.get(grant.name),
        entry=entry,
        revoked=grant.token_sha256 in revoked,
        allow_ports=_words(grant.allow_ports),
        allow_addrs=_words(grant.allow_addrs),
        allow_names=_words(grant.allow_names),
        max_proxies=grant.max_proxies,
        max_visitors=grant.max_visitors,
        max_visitor_rate=grant.max_visitor_rate,
        connected=None if sessions is None else sessions.get(grant.name, ""),
    )


def _words(allowed: Iterable[PortRange | str] | None) -> list[str] | None:
    return None if allowed is None else [str(one) for one in allowed]


def lines(found: list[Row]) -> list[str]:
    """A table for people."""
    table = [("CLIENT", "TOKEN", "CONNECTED", "ALLOWS"), *(_cells(row) for row in found)]
    widths = [max(len(cells[column]) for cells in table) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths)), cells[3]]) for cells in table]  # noqa: B905


def _cells(row: Row) -> tuple[str, str, str, str]:
    source = f"made {row.made[:10]}" if row.made is not None else "in the file"
    said = {None: "unknown", "": "no"}
    return (
        row.name,
        "revoked" if row.revoked else source,
        said.get(row.connected) or f"since {row.connected}",
        _allows(row),
    )


def _allows(row: Row) -> str:
    parts = [f"ports {_or_any(row.allow_ports)}"]
    if row.allow_addrs is not None:
        parts.append(f"addresses {_or_any(row.allow_addrs)}")
    if row.allow_names is not None:
        parts.append(f"names {_or_any(row.allow_names)}")
    parts.append(f"{row.max_proxies} proxies")
    if row.max_visitors is not None:
        parts.append(f"{row.max_visitors} visitors")
    if row.max_visitor_rate is not None:
        parts.append(f"{row.max_visitor_rate:g} new ones a second")
    return "; ".join(parts)


def _or_any(words: list[str] | None) -> str:
    return ANY if words is None else ", ".join(words) or "none"
