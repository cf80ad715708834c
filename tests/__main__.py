"""`python -m tests [PYTEST ARGUMENTS]`: every check there is, the quick ones first; exit code 1 if one fails."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = [
    ("lint", ["ruff", "check", "tunnel", "tests"]),
    ("format", ["ruff", "format", "--check", "tunnel", "tests"]),
    ("types", ["mypy"]),
    ("import layers", ["lint-imports"]),
]
PARALLEL = ["-n", "2", "--dist", "loadfile"]  # most of what takes long waits; `-n 0` is one after the other


def run(name: str, command: list[str]) -> bool:
    """Run one check, its output only if it fails."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(f"{'ok' if done.returncode == 0 else 'FAILED':8}{name} ({time.monotonic() - began:.1f} s)", flush=True)
    if done.returncode:
        print(done.stdout + done.stderr, flush=True)
    return done.returncode == 0


def main() -> int:
    tools = Path(sys.executable).parent
    good = [run(name, [str(tools / command[0]), *command[1:]]) for name, command in CHECKS]
    tests = subprocess.run([sys.executable, "-m", "pytest", *PARALLEL, *sys.argv[1:]], cwd=ROOT).returncode
    return 0 if all(good) and tests == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
