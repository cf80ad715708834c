"""Pools of connections that are ready before they are needed; one law for data channels, targets and library users.

`members`     what a pool is made of            `demand`      how many to have ready
`roster`      who is in it, counted             `rules`       who is lent what, and what is opened and closed: sans IO
`figures`, `statistics`  what is counted, told  `core`        the running pool
"""

from tunnel.pool.core import Pool, Unavailable, running
from tunnel.pool.members import Lease, Place, Poolable, State, Use

__all__ = ["Lease", "Place", "Pool", "Poolable", "State", "Unavailable", "Use", "running"]
