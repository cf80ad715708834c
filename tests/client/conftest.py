"""The tests of the client stand on the relay's rig, too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "relay"))
