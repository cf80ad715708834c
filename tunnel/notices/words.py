"""A notice in words, for somebody who is woken by it: what, since when, why, and what to do next. Pure."""

from collections.abc import Iterator
from datetime import UTC, datetime

from tunnel.notices.notice import (
    BIND_FAILED,
    CERTIFICATE_EXPIRING,
    CONFIG_REFUSED,
    RECOVERED,
    SESSION_LOST,
    TEST,
    UNHEALTHY,
    Group,
    Notice,
    Subject,
)
from tunnel.wording import human_seconds

MAX_IN_TITLE = 3  # names; the text has more

_TROUBLE = {
    BIND_FAILED: "has no public port",
    UNHEALTHY: "cannot be reached",
    SESSION_LOST: "is gone",
    CERTIFICATE_EXPIRING: "is about to end",
    CONFIG_REFUSED: "was refused",
}
_PLURALS = {"has": "have", "is": "are", "was": "were"}
# What to do next, by the reason of a proxy's trouble, else by the kind of notice.
_REMEDIES = {
    "addr_in_use": "On the server's host, see who has the port ({port_hint}); free it, or publish another one.{retry}",
    "permission_denied": "Ports below 1024 need a privilege: AmbientCapabilities=CAP_NET_BIND_SERVICE in the server's "
    "unit, or publish a port of 1024 or above.{retry}",
    "addr_not_available": "The server's host has no such address; see `ip addr` there, and mend publish_addr.{retry}",
    "not_allowed": "The client's token does not allow it; see its [[clients]] entry in the server's file.",
    "malformed_addr": "Mend publish_addr in the client's file.",
    "family_not_supported": "The server's host does not speak this kind of address; mend publish_addr.",
    "out_of_descriptors": "Raise the server's limit of open files (LimitNOFILE=, ulimit -n).{retry}",
    "target_down": "Beside the client, see whether the service runs and answers its health check.",
    "pending": "See the server's log for what keeps it.",
}
_BY_KIND = {
    BIND_FAILED: "See the server's log.{retry}",
    UNHEALTHY: "Ask the server: trio-tunnel status",
    SESSION_LOST: "See whether the client's host is up and reaches the server: there, `trio-tunnel doctor SERVER` says "
    "what is wrong, and its log why the session ended.",
    CERTIFICATE_EXPIRING: "Renew it; the server takes new files over by itself within seconds. After its end clients "
    "that verify it cannot connect.",
    CONFIG_REFUSED: "The process goes on with the configuration it had. `trio-tunnel check FILE` lists every mistake; "
    "mend them, and reload.",
}
_OWN_SESSION = (
    "See whether the server is up and can be reached from here: `trio-tunnel doctor SERVER` says what is wrong."
)


def title(notice: Notice) -> str:
    """One line: what, and of whom."""
    group = notice.group
    if group.kind == TEST:
        return f"test notice of '{notice.to}'"
    what = _names(group, notice.sender.role)
    if group.kind != RECOVERED:
        one = group.subjects[0]
        if group.count == 1 and one.status == "healthy":
            return f"{what} was in trouble, and is fine now"
        verb = _TROUBLE[group.kind]
        return f"{what} {verb if group.count == 1 else _plural(verb)}"
    return f"{what} {'is' if group.count == 1 else 'are'} {_state(group)}"


def text(notice: Notice) -> str:
    """Plain text, to be read at 3 a.m.: a block for each subject, and the next step."""
    group = notice.group
    if group.kind == TEST:
        return "This is a test. Somebody ran `trio-tunnel notify test`, and this notice has reached you.\n"
    blocks = [_capital(title(notice)) + "."]
    blocks += ["\n".join(_lines(group.kind, subject)) for subject in group.subjects]
    if (more := group.count - len(group.subjects)) > 0:
        blocks.append(f"and {more} more: `trio-tunnel status` at the {notice.sender.role} shows all of them")
    if step := next_step(notice):
        blocks.append(f"What to do next: {step}")
    return "\n\n".join(blocks) + "\n"


def next_step(notice: Notice) -> str:
    group = notice.group
    if group.kind in (RECOVERED, TEST) or not group.subjects:
        return ""
    one = group.subjects[0]
    if one.status == "healthy":
        return "Nothing at once. It comes and goes: `trio-tunnel history` shows how often."
    if group.kind == SESSION_LOST and notice.sender.role == "client":
        return _OWN_SESSION
    name = f"{one.client}/{one.proxy}" if one.client else one.proxy
    retry = f" Then: trio-tunnel retry {name}" if group.kind == BIND_FAILED and group.count == 1 else ""
    port = one.where.rpartition(":")[2]
    port_hint = f"ss -ltnp 'sport = :{port}'" if port else "ss -ltnp"
    step = _REMEDIES.get(one.reason) or _BY_KIND.get(group.kind, "")
    return step.format(retry=retry, port_hint=port_hint)


def name_of(subject: Subject) -> str:
    """As people name it: ``proxy 'web' of 'home'``."""
    if subject.proxy:
        return f"proxy '{subject.proxy}'" + (f" of '{subject.client}'" if subject.client else "")
    return f"client '{subject.client}'" if subject.client else ""


def _names(group: Group, role: str) -> str:
    if group.count == 1:
        one = group.subjects[0]
        kind = one.was if group.kind == RECOVERED else group.kind
        if kind == CERTIFICATE_EXPIRING:
            return "the server's certificate"
        if kind == CONFIG_REFUSED:
            return "a changed configuration"
        if kind == SESSION_LOST and role == "client":
            return "the session with the server"
        return name_of(one)
    are_proxies = all(subject.proxy for subject in group.subjects)
    are_clients = not any(subject.proxy for subject in group.subjects)
    what = "proxies" if are_proxies else "clients" if are_clients else "proxies and clients"
    first = ", ".join(subject.proxy or subject.client for subject in group.subjects[:MAX_IN_TITLE])
    return f"{group.count} {what} ({first}{', …' if group.count > MAX_IN_TITLE else ''})"


def _plural(verb: str) -> str:
    first, _, rest = verb.partition(" ")
    return f"{_PLURALS.get(first, first)} {rest}"


def _state(group: Group) -> str:
    states = {subject.status for subject in group.subjects}
    words = {"removed": "published no longer", "connected": "connected again", "renewed": "new"}
    state = states.pop() if len(states) == 1 else "fine"
    return words.get(state, f"{state} again" if state == "healthy" else state)


def _lines(kind: str, subject: Subject) -> Iterator[str]:
    if name := name_of(subject):
        yield f"{_capital(name)}{f' at {subject.where}' if subject.where else ''}: {subject.status}"
    since = f"Since: {_when(subject.since)}"
    if subject.seconds is not None:
        since += f", for {human_seconds(subject.seconds)}"
    yield since
    if subject.message:
        was = "Why it was" if kind == RECOVERED or subject.status == "healthy" else "Why"
        yield f"{was}: {subject.message}" + (f" ({subject.reason})" if subject.reason else "")
    if subject.times > 1:
        yield f"How often: {subject.times} times since the notice before"
    if subject.proxies_total:
        more = ", …" if subject.proxies_total > len(subject.proxies) else ""
        yield f"With it: {_count(subject.proxies_total)} ({', '.join(subject.proxies)}{more})"


def _when(since: str) -> str:
    try:
        return f"{datetime.fromisoformat(since).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError):
        return since


def _count(proxies: int) -> str:
    return f"{proxies} prox{'y' if proxies == 1 else 'ies'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
