"""Makes `deploy/docs/configuration.md`: every key as its reader takes it, and what a reload makes of a change."""

import tempfile
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from tunnel.backoff import LinearPolicy
from tunnel.certificates import make_self_signed
from tunnel.config.actions import NeedsRestart
from tunnel.config.diff import diff
from tunnel.config.file import load_client, load_server

from . import meanings
from .meanings import BOTH, CLIENT, ENTRIES, POLICIES, POLICY, POOL, SERVER, Key
from .recorder import _ABSENT, OBJECTS, Row, read_keys

POOLS = ("data_channels", "proxies[].pool")
SECRETS = {
    "home.token": "s3cret-Token_of-43-characters-0123456789abcd",
    "proxy.auth": "me:secret",
    "url": "https://hooks.example/3",
    "secret": "0123456789abcdef",
    "headers": "Authorization: Bearer x",
    "password": "secret",
    "password2": "secret2",
}
HEAD = """\
# Configuration reference

*Generated from the readers of the files by `python -m tests.docs`; a test fails when it is stale.*

`trio-tunnel init server|client` prints a commented file to start from, `trio-tunnel check FILE` names every mistake
with its line, key, value and remedy. Files are TOML. Relative paths start at the directory of the file. Times are in
seconds. An unknown key is a mistake, never ignored. Numbers are not written as texts, nor `true` as 1.

A file that holds a secret or a private key and can be read by others is refused (`chmod 600`); what systemd passes by
`LoadCredential=` is found under `$CREDENTIALS_DIRECTORY`. What the command line says goes over the file.

**Reload** tells what a changed file does in a process that runs (after SIGHUP, or when the change is seen): *at once*,
or *restart*: the log names the key, and all else in the file is taken over.
"""


def make_reference() -> str:
    """The whole page."""
    server, client = read_keys("server"), read_keys("client")
    _check_told(server, client)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        parts = [HEAD, "## server.toml"]
        parts += _sections(server, SERVER, "server", trial)
        parts += ["## client.toml", *_sections(client, CLIENT, "client", trial)]
        parts += ["## Both files", *_sections({**server, **client}, BOTH, "", trial)]
        parts += [_pools(client, trial), _policies(client, trial), ENVIRONMENT]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


ENVIRONMENT = """\
## Environment

| variable | meaning |
|---|---|
| `TRIO_TUNNEL_TOKEN` | The token, where no file is named. |
| `TRIO_TUNNEL_PROXY_AUTH` | `user:password` for the forward proxy, where no file is named. |
| `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` | Honoured only with `proxy = "env"` or `--via env`. |
| `CREDENTIALS_DIRECTORY` | Set by systemd: where the files are that it passes to the service. |
| `XDG_STATE_HOME` | Base of the state directory of a user who is not root. |
| `SSL_CERT_FILE`, `SSL_CERT_DIR` | OpenSSL's own: where the system's CAs are. |
"""


def _check_told(server: dict[str, Row], client: dict[str, Row]) -> None:
    """Every key has a meaning, and every meaning a key."""
    for kind, rows, own in (("server", server, SERVER), ("client", client, CLIENT)):
        known = {path for path in rows if not _is_general(path)}
        untold, gone = known - own.keys() - BOTH.keys(), own.keys() - known
        assert not untold, f"tests/docs/meanings.py says nothing of {sorted(untold)} of {kind}.toml"
        assert not gone, f"tests/docs/meanings.py tells of {sorted(gone)}, which {kind}.toml has not"
    gone = BOTH.keys() - (server.keys() & client.keys())
    assert not gone, f"tests/docs/meanings.py tells of {sorted(gone)}, which the files have not"
    general = {path for path in {**server, **client} if _is_general(path)}
    for path in general:
        section, _, key = path.rpartition(".")
        assert section in POLICIES or section in POOLS, f"{section} is told of nowhere"
        assert key in (POLICY if section in POLICIES else POOL), f"tests/docs/meanings.py says nothing of {path}"


def _is_general(path: str) -> bool:
    return path.rpartition(".")[0] in (*POLICIES, *POOLS)


def _sections(rows: dict[str, Row], told: dict[str, Key], kind: str, trial: "Trial") -> Iterable[str]:
    """A table for each section, in the order of `told`."""
    groups: dict[str, list[str]] = {}
    for path in told:
        groups.setdefault(path.rpartition(".")[0], []).append(path)
    for section, paths in groups.items():
        if section:
            yield f"### {_header(section)}"
        lines = ["| key | value | default | reload | meaning |", "|---|---|---|---|---|"]
        for path in paths:
            key, row = told[path], rows[path]
            cells = (f"`{path.rpartition('.')[2]}`", row.words, _default(row, key), trial.reload(path, key, kind))
            lines.append(f"| {' | '.join(cells)} | {key.meaning} |")
        yield "\n".join(lines)


def _header(section: str) -> str:
    """``proxies[].health_check`` as it is written in a file."""
    plain = section.replace("[]", "")
    if section.endswith("[]"):
        return f"`{plain} = [{{ … }}]`" if section.count("[]") > 1 else f"`[[{plain}]]`"
    return f"`[{plain}]`"


def _default(row: Row, key: Key) -> str:
    if key.usual:
        return key.usual
    if row.is_required:
        return "**required**"
    assert row.default is not _ABSENT, f"{row.path} has no default; say it in tests/docs/meanings.py"
    assert row.default is not None, f"{row.path} has None by default; say what that is in tests/docs/meanings.py"
    return _show(row.default)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(map(_show, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return str(value)
    return f"`{value}`" if str(value) else "–"


def _pools(rows: dict[str, Row], trial: "Trial") -> str:
    table = ["| key | value | `data_channels` | `proxies.pool` | reload | meaning |", "|---|---|---|---|---|---|"]
    for name, key in POOL.items():
        ours, theirs = (rows[f"{pool}.{name}"] for pool in POOLS)
        words = ours.words if ours.words == theirs.words else f"{ours.words}; pool: {theirs.words}"
        defaults = " | ".join("`never`" if row.default is None else _show(row.default) for row in (ours, theirs))
        reload = trial.reload(ours.path, key, "client")
        table.append(f"| `{name}` | {words} | {defaults} | {reload} | {key.meaning} |")
    return "\n\n".join(["## Pools", POOLS_HEAD, "\n".join(table)])


POOLS_HEAD = """\
`[data_channels]` are the connections kept to the server (a number at the top of the file, `data_channels = 2`, is short
for `min`), `[proxies.pool]` those to a proxy's targets. Counts that are not written follow those that are. Where a
round trip to the server takes 40 ms or more, `min` of `data_channels` is 4 at least, if `max` allows it."""


def _policies(rows: dict[str, Row], trial: "Trial") -> str:
    first = next(path for path in POLICIES if path != "bind_retry" and f"{path}.type" in rows)
    lines = ["| key | value | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {rows[f'{first}.{name}'].words} | {key.meaning} |" for name, key in POLICY.items()]
    places = ["| table | default | reload | of what |", "|---|---|---|---|"]
    for path, what in POLICIES.items():
        kind = "server" if path == "bind_retry" else "client"
        reload = trial.reload(f"{path}.max_retries", POLICY["max_retries"], kind)
        places.append(f"| {_header(path)} | {_summary(OBJECTS[path])} | {reload} | {what} |")
    return "\n\n".join(["## Retry policies", "\n".join(lines), "\n".join(places)])


def _summary(policy: Any) -> str:
    retries = "for ever" if policy.max_retries is None else f"{policy.max_retries} retries"
    if isinstance(policy, LinearPolicy):
        return f"linear, steps of {policy.step:g} s, {retries}"
    jitter = f", jitter {policy.jitter:g}" if policy.jitter else ""
    return f"{policy.initial_delay:g} s, × {policy.factor:g}, up to {policy.max_delay:g} s, {retries}{jitter}"


class Trial:
    """Files that differ by one key, and what a process would do about it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, other in (("cert.pem", "key.pem"), ("other.pem", "other.key")):
            for path, pem in zip((name, other), make_self_signed(()), strict=True):
                self._write(path, pem.decode())
        self._write("ca.pem", (folder / "cert.pem").read_text())
        for name, secret in SECRETS.items():
            self._write(name, secret)
        (folder / "state").mkdir()

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.touch(0o600)
        path.write_text(text)
        return path

    def reload(self, path: str, key: Key, kind: str) -> str:
        """In words; where the two kinds of file differ, both."""
        if key.reload:
            return key.reload
        if kind:
            return self._try(path, key, kind)
        found = {kind: self._try(path, key, kind) for kind in ("server", "client")}
        if len(set(found.values())) == 1:
            return found["server"]
        return "; ".join(f"{kind}: {word}" for kind, word in found.items())

    def _try(self, path: str, key: Key, kind: str) -> str:
        base: dict[str, Any] = {"server": "a.example"} if kind == "client" else {}
        if kind == "client":
            base["proxies"] = [dict(meanings.PROXY_ENTRY)]
        if path.startswith(("tls.cert_file", "tls.key_file")) or path in ("cert_file", "key_file"):
            return self._try_pair(path, kind, base)
        section = path.rpartition(".")[0]
        if section and not any(beside == section for beside in key.beside):
            _put(base, f"{section}.", None)  # what it stands in
        for beside, value in key.beside.items():
            _put(base, beside, value)
        changed = deepcopy(base)
        _put(changed, path, key.example)
        if key.instead:
            _put(changed, key.instead, None)
        if path in ("notices[].clients", "notices[].expected") and kind == "client":
            return "–"
        return self._compare(path, kind, base, changed)

    def _try_pair(self, path: str, kind: str, base: dict[str, Any]) -> str:
        section = "tls." if kind == "server" else ""
        both = []
        for names in (("cert.pem", "key.pem"), ("other.pem", "other.key")):
            one = deepcopy(base)
            for name, file in zip(("cert_file", "key_file"), names, strict=True):
                _put(one, section + name, file)
            both.append(one)
        return self._compare(path, kind, *both)

    def _compare(self, path: str, kind: str, before: dict[str, Any], after: dict[str, Any]) -> str:
        configs = []
        for number, document in enumerate((before, after)):
            file = self._write(
                f"{kind}{number}.toml", "\n".join(f"{name} = {_toml(v)}" for name, v in document.items())
            )
            configs.append(load_server(file) if kind == "server" else load_client(file, need_token=False))
        actions = diff(*configs)
        assert actions, f"the example of {path} in tests/docs/meanings.py changes nothing in {kind}.toml"
        return "restart" if all(isinstance(action, NeedsRestart) for action in actions) else "at once"


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set it, making what it stands in; None takes it away."""
    *sections, last = path.split(".")
    here, so_far = document, ""
    for section in sections:
        so_far = f"{so_far}.{section}" if so_far else section
        name = section.removesuffix("[]")
        if section.endswith("[]"):
            here = here.setdefault(name, [dict(ENTRIES.get(so_far, {}))])[0]
        else:
            here = here.setdefault(name, {})
    if not last:
        return
    if last.endswith("[]"):
        here[last.removesuffix("[]")] = [dict(value)]
    elif value is None:
        here.pop(last, None)
    else:
        here[last] = deepcopy(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
