"""`python -m tests.hostile [--connections 10000] [--seconds 300]`: exit code 1 if the healthy lost anything.

A server, a client and two small services run as real processes; a process of attackers sends connections of every kind,
from thousands of loopback addresses, with and without a good token, to the server's port and to a proxy's. Meanwhile
visitors and honest newcomers are served and timed, alone first and then beside the attack.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from .house import open_house
from .report import render, violations
from .run import Options, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000, help="hostile ones, in all (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="at most (default: %(default)s)")
    parser.add_argument("--alone", type=float, default=10.0, help="seconds without the attack (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the attackers' dice (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="attacks whose name it is found in")
    parser.add_argument("--rounds", type=int, default=1, help="so many such runs, of one server (default: %(default)s)")
    told = parser.parse_args()
    all_wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, open_house(Path(folder)) as house:
        for number in range(told.rounds):
            found = run(house, Options(told.connections, told.seconds, told.alone, told.seed + number, told.only))
            wrong = violations(found, is_warm=number > 0)
            print(render(found))
            print("\n" + ("\n".join(f"WRONG: {one}" for one in wrong) or "nothing was lost") + "\n", flush=True)
            all_wrong += wrong
        if all_wrong:
            print(house.server.report(), file=sys.stderr)
    return 1 if all_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
