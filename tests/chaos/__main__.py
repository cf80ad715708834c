"""What `kill -9` and time do to a running tunnel. Exit code 1 if anything lied, was lost, or grew.

python -m tests.chaos kill --times 200     both sides killed by turns at random moments, under hashed traffic
python -m tests.chaos soak --minutes 60    mixed load and accidents; memory, descriptors and tasks must not grow
"""

import argparse
import sys
import tempfile
from pathlib import Path

from . import house, kills, soak


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    kill = commands.add_parser("kill")
    kill.add_argument("--times", type=int, default=200, help="kills, of both sides in all (default: %(default)s)")
    kill.add_argument("--seed", type=int, default=1, help="of the moments (default: %(default)s)")
    soaking = commands.add_parser("soak")
    soaking.add_argument("--minutes", type=float, default=60.0, help="(default: %(default)s)")
    soaking.add_argument("--samples", type=Path, help="write them there, as CSV")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if told.command == "kill":
            with house.open_house(Path(folder)) as where:
                killed = kills.kill_again_and_again(where, times=told.times, seed=told.seed)
            text, wrong = kills.render(killed), kills.violations(killed)
        else:
            soaked = soak.soak(Path(folder), seconds=60 * told.minutes)
            if told.samples:
                told.samples.write_text(soaked.csv())
            text, wrong = soak.render(soaked), soak.violations(soaked)
    print(text)
    print("\n" + ("\n".join(f"WRONG: {one}" for one in wrong) or "nothing was wrong"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
