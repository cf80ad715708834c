"""What strangers, visitors and token holders send who mean harm, against real processes: `python -m tests.hostile -h`.

`wire`        bytes as no honest peer sends them: heads, WebSocket messages, frames
`strangers`   attacks that need no token; `insiders`: attacks with a good one; `visitors`: attacks on the public port
`assault`     one attacker's means; `attackers`: the process that sends them by weight, from many source addresses
`house`       the server, client and web service that are attacked
`healthy`     visitors and newcomers that must be served all the while
`run`         one run: before, beside and after the attack; `report`: its table, and what it must not show
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "e2e"), str(TESTS)]  # `processes` and `services` are theirs
