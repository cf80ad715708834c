"""What time and accidents do to real processes: `python -m tests.chaos kill -h`, `python -m tests.chaos soak -h`.

`transfers`   hashed traffic, and the verdict on how each transfer ended
`house`       a server and a client that can be killed and come back with the same state
`kills`       `kill -9` of either side, again and again, and how long service was away
`load`        the soak's mixed load; `accidents`: what happens to it
`soak`        hours of that, and the samples of what both processes weigh; `trend`: whether they grow
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "e2e"), str(TESTS)]  # `processes`, `services`, `vitals` are theirs
