"""Pools of connections that are ready before they are needed; one law for data channels, targets and library users.

`members`     what a pool is made of            `demand`      how many to have ready
`roster`      who is in it, counted             `rules`       who is lent what, and what is opened and closed: sans IO
`figures`, `statistics`  what is counted, told  `core`, `request`  the running pool, one who waits for it

`rules` puts together, each with one idea: `choice` (which address, which member), `line` (those who wait), `lending`,
`filling` (what is opened), `upkeep` (age, idleness, probes), `quarantine`, `waste` (what does not last until it is
used), `places` (told from outside), `timers`. `renewal` runs a pool for whoever must outlive a bug in it.
"""

from tunnel.pool.core import Pool, Unavailable, running
from tunnel.pool.members import Lease, Place, Poolable, State, Use

__all__ = ["Lease", "Place", "Pool", "Poolable", "State", "Unavailable", "Use", "running"]
