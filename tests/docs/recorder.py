"""Learns the keys of a configuration file from what reads them: a table that has everything and notes what it is asked.

So no key, bound or default can be documented that the readers do not have, and none of theirs can be forgotten.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import fields, frozen

from tunnel.config import DATA_CHANNELS, HOT_TARGETS, Limits
from tunnel.config.file import ClientOptions, _read_client, _understand
from tunnel.config.receivers import NOTICE_RETRY
from tunnel.config.sections import _POLICIES
from tunnel.config.server_file import read_server
from tunnel.config.table import Findings, Table

# What stands in each element of a list of tables that decides which other keys are read.
VARIANTS: dict[str, list[dict[str, Any]]] = {"notices[]": [{"type": "webhook"}, {"type": "email"}]}
OBJECTS = {
    "limits": Limits(),
    "data_channels": DATA_CHANNELS,
    "data_channels.quarantine": DATA_CHANNELS.quarantine,
    "data_channels.retry": DATA_CHANNELS.retry,
    "proxies[].pool": HOT_TARGETS,
    "proxies[].pool.quarantine": HOT_TARGETS.quarantine,
    "proxies[].pool.retry": HOT_TARGETS.retry,
    "proxies[].bind_retry": _POLICIES["exponential"][0],
    "bind_retry": _POLICIES["exponential"][0],
    "notices[].retry": NOTICE_RETRY,
}
WORDS = {  # of readers that are functions of their own
    "text": "text",
    "flag": "`true` or `false`",
    "name": "name: letters, digits, `.`, `_`, `-`; at most 63",
    "publish_addr": "numeric address",
    "network": "address or CIDR",
    "host": "address or host name",
    "admin_listen": "`HOST:PORT` or `off`",
    "_pin": "`sha256:` and 64 hexadecimal digits",
    "_digest": "64 hexadecimal digits",
    "_port_range": "port or range, as text",
    "target": "`PORT`, `HOST:PORT`, `tls://HOST:PORT` or `unix:/path`",
    "_literal": "numeric `ADDR:PORT`",
    "_http_path": "path",
    "_http_host": "host",
    "_url": "URL",
    "_proxy": "URL",
    "_mailbox": "mail address",
    "_pattern": "name or pattern (`*`, `?`, `[…]`)",
}
_ABSENT = object()


@frozen
class Row:
    """A key as it is read. `default` is `_ABSENT` where the reader has none."""

    path: str
    words: str
    default: Any
    is_required: bool = False


class Recorder(Table):
    """Answers every question with its default, except those that `answers` tell."""

    def __init__(self, path: str, findings: Findings, rows: dict[str, Row], answers: dict[str, Any]) -> None:
        super().__init__(dict(answers), (), "file", {}, findings)
        self._path = path
        self._rows = rows

    def _note(self, key: str, words: str, default: Any, *, is_required: bool = False) -> None:
        path = f"{self._path}.{key}" if self._path else key
        owner = OBJECTS.get(self._path)
        if owner is not None and key in {one.name for one in fields(type(owner))}:
            default = getattr(owner, key)
        elif type(default) is object:
            default = _ABSENT
        self._rows.setdefault(path, Row(path, words, default, is_required))

    def _child(self, key: str, answers: dict[str, Any]) -> "Recorder":
        self.known.append(key)
        return Recorder(f"{self._path}.{key}" if self._path else key, self.findings, self._rows, answers)

    def take(self, key: str, read: Any, default: Any) -> Any:
        self._note(key, describe(read), default)
        return self.data.get(key, default)

    def need(self, key: str, read: Any, example: str) -> Any:
        self._note(key, describe(read), _ABSENT, is_required=True)
        return self.data.get(key)

    def many(self, key: str, read: Any, default: Any) -> Any:
        self._note(key, f"list of: {describe(read)}", default)
        return default

    def placed(self, key: str, read: Any) -> Any:
        self._note(key, f"list of: {describe(read)}", _ABSENT)

    def mixed(self, key: str, read: Any) -> Any:
        self._note(key, f"list of: {describe(read)}, or tables", _ABSENT)
        return [(0, self._child(f"{key}[]", {}))]

    def table(self, key: str) -> "Recorder":
        child = self._child(key, {})
        child._note_other_policies()
        return child

    def _note_other_policies(self) -> None:
        """A policy's `type` decides which keys are read; those of the others are keys, too."""
        usual = OBJECTS.get(self._path)
        if not isinstance(usual, tuple(type(policy) for policy, _ in _POLICIES.values())):
            return
        for policy, readers in _POLICIES.values():
            for name in readers.keys() - {one.name for one in fields(type(usual))}:
                self._rows[f"{self._path}.{name}"] = Row(
                    f"{self._path}.{name}", describe(readers[name]), getattr(policy, name)
                )

    def tables(self, key: str) -> "list[Recorder]":
        path = f"{self._path}.{key}[]" if self._path else f"{key}[]"
        return [self._child(f"{key}[]", answers) for answers in VARIANTS.get(path, [{}])]


def describe(read: Callable[..., Any]) -> str:
    """What a reader takes, in words; bounds are those it checks."""
    maker = read.__qualname__.partition(".")[0]
    inside = inspect.getclosurevars(read).nonlocals
    match maker:
        case "whole":
            return f"whole number, {inside['low']:,} to {inside['high']:,}"
        case "number":
            words = "above " if inside["above"] else ""
            return f"number, {words}{inside['low']:,.10g} to {inside['high']:,.10g}"
        case "one_of":
            return " or ".join(f"`{word}`" for word in inside["words"])
        case "or_word":
            return f"{describe(inside['read'])}, or `{inside['word']}`"
        case "host_port":
            return "`HOST:PORT`"
        case "path_from":
            return "path"
        case _:
            return WORDS[read.__name__]


def read_keys(kind: str) -> dict[str, Row]:
    """All keys of `server.toml` or `client.toml`, by path; lists of tables are spelled ``proxies[].name``."""
    findings, rows = Findings(lenient=True), {}
    root = Recorder("", findings, rows, {"data_channels": {}})
    if kind == "server":
        read_server(root, Path())
    else:
        _read_client(root, Path(), _understand(findings, ClientOptions()), need_token=False)
    return rows
