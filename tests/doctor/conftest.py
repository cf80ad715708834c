"""The doctor's tests stand on the rigs of the relay and of the client."""

import sys
from pathlib import Path

for room in ("relay", "client"):
    sys.path.append(str(Path(__file__).parent.parent / room))
