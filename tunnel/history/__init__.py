"""What happened to sessions and proxies, kept beyond a restart, and the figures that can be had from it.

ledger    events → intervals, in memory (pure)
store     intervals ⇄ an SQLite file; one thread of a process writes, any process reads
recorder  that thread: feeds the store from the events, and outlives what a disk does
figures   intervals → uptime, outages, retries, recoveries (pure)
report    a file → the figures of a window
"""
