"""Who has a session, and what it publishes: so that a lost one can be told with what went with it. Pure."""

from attrs import define, field

MAX_CLIENTS = 1000  # remembered; each may have a thousand proxies
MAX_REMEMBERED = 5  # names of proxies that a notice shows


@define(eq=False)
class Publishers:
    _sessions: dict[str, int] = field(factory=dict, init=False)  # of each client; a takeover may have two for a moment
    _proxies: dict[str, dict[str, None]] = field(factory=dict, init=False)  # in the order of publishing

    def enter(self, client: str) -> None:
        """It tells anew what it publishes; who left with a crash again and again must not add up names."""
        self._proxies.pop(client, None)
        self._sessions[client] = self._sessions.get(client, 0) + 1

    def leave(self, client: str) -> bool:
        """Whether that was the last of its sessions."""
        left = self._sessions.pop(client, 1) - 1
        if left > 0:
            self._sessions[client] = left
        return left <= 0

    def has(self, client: str) -> bool:
        return client in self._sessions

    def publish(self, client: str, proxy: str) -> None:
        if client in self._proxies or len(self._proxies) < MAX_CLIENTS:
            self._proxies.setdefault(client, {})[proxy] = None

    def withdraw(self, client: str, proxy: str) -> None:
        self._proxies.get(client, {}).pop(proxy, None)

    def forget(self, client: str) -> None:
        self._proxies.pop(client, None)

    def first_of(self, client: str) -> tuple[str, ...]:
        return tuple(self._proxies.get(client, {}))[:MAX_REMEMBERED]

    def count_of(self, client: str) -> int:
        return len(self._proxies.get(client, {}))
