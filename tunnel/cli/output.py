"""What can be written to a terminal, a pipe or a file, whatever its encoding."""

import os
from typing import TextIO


def is_drawable(out: TextIO) -> bool:
    """Whether it is a terminal on which what was written can be drawn anew."""
    return out.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def is_unicode(out: TextIO) -> bool:
    return (out.encoding or "").lower().replace("-", "").startswith("utf")


def writable(text: str, out: TextIO) -> str:
    """`text` without what `out` has no character for."""
    encoding = out.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
