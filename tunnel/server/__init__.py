"""`trio-tunnel serve`: the gate, the sessions, their proxies, and who holds what."""
