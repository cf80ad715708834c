"""What the state directory holds about tokens: those made here, and those revoked. Used by `state`.

A file that says anything else is damaged, which is a TunnelError with a remedy: never as if there were none.
"""

import re
from datetime import datetime
from typing import Any

from tunnel.addresses import check_name
from tunnel.state_files import StateFiles

TOKENS_FILE, REVOKED_FILE = "tokens.json", "revoked.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_tokens(files: StateFiles) -> dict[str, dict[str, str]]:
    """By client: `sha256` of its token, and when it was `created`."""
    remedy = "put back a copy of it, or move it away and make new tokens with `trio-tunnel token new NAME`"
    tokens: dict[str, dict[str, str]] = {}
    for name, record in files.read_json(TOKENS_FILE, remedy).items():
        if not isinstance(record, dict) or set(record) != {"sha256", "created"}:
            raise files.damaged(TOKENS_FILE, f"{name!r:.80} is not an entry with sha256 and created", remedy)
        digest, created = record["sha256"], record["created"]
        if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise files.damaged(TOKENS_FILE, f"sha256 of {name!r:.80} is not 64 hexadecimal digits", remedy)
        try:
            check_name(name)
            datetime.fromisoformat(created)
        except (ValueError, TypeError) as exc:
            raise files.damaged(TOKENS_FILE, str(exc)[:200], remedy) from exc
        tokens[name] = record
    return tokens


def read_revoked(files: StateFiles) -> dict[str, Any]:
    """By the SHA-256 of a token: whose it was, and when it was revoked; the oldest first."""
    remedy = "put back a copy of it; without it a revoked token counts again wherever a configuration names it"
    revoked = files.read_json(REVOKED_FILE, remedy)
    for digest in revoked:
        if not _DIGEST.fullmatch(digest):
            raise files.damaged(REVOKED_FILE, f"{digest!r:.80} is not 64 hexadecimal digits", remedy)
    return revoked
