"""How many sockets the relay may hold, and who may have them: visitors have what listeners and channels leave. Pure.

A client decides how many proxies and data channels it has. Whatever that is, others have a listener and channels, and
there is room for visitors.
"""

from attrs import define

FEW = 4  # listeners and channels that every session may have, whatever the others have


@define(eq=False)
class Room:
    """`most` sockets, by the limit on descriptors; None: nobody knows a limit."""

    most: int | None = None
    fixtures: int = 0  # listeners, data channels, and one for each session's control channel

    def is_full(self, streams: int) -> bool:
        return self.most is not None and streams + self.fixtures >= self.most

    def allows(self, own: int) -> bool:
        """Whether a session that has `own` listeners and channels may have one more: a quarter, of a half in all."""
        return self.most is None or own < FEW or (own < self.most // 4 and self.fixtures < self.most // 2)
