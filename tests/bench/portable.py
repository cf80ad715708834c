"""`trio-tunnel` with the relay on plain Trio waits, as it runs where there is neither epoll nor kqueue.

`python -m tests.bench.portable …` takes the arguments of `trio-tunnel`. The product has no such option: it takes the
best poller that the platform has.
"""

from tunnel.cli.main import main
from tunnel.relay import engine
from tunnel.relay.poller import TrioPoller

if __name__ == "__main__":
    engine.available = lambda: [TrioPoller]  # type: ignore[attr-defined]
    main()
