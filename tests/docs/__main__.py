"""`python -m tests.docs` writes the generated pages of deploy/docs; `--check` only says whether they are stale."""

import sys
from pathlib import Path

from .figures import with_figures
from .metrics import make_metrics
from .reference import make_reference

DOCS = Path(__file__).parent.parent.parent / "deploy" / "docs"
PAGES = {
    "configuration.md": make_reference,
    "metrics.md": make_metrics,
    "comparison.md": lambda: with_figures(DOCS / "comparison.md", DOCS / "bench" / "loopback.json"),
}


def stale() -> list[str]:
    """The pages that are not as they would be written now."""
    return [name for name, make in PAGES.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != make()]


def main() -> int:
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{name} is stale: python -m tests.docs" for name in stale()) or "fresh")
        return bool(stale())
    for name, make in PAGES.items():
        (DOCS / name).write_text(make())
        print(f"wrote {DOCS / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
