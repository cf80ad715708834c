"""The machine that moves bytes between sockets and data channels, the same on both ends.

Theory of operation. All relay sockets sit in one poller, and the *poller's own descriptor* is what the relay's one Trio
task waits for: one wake-up of Trio handles every socket that is ready. Such a *turn* goes:

1. Each ready socket is handled. A stream's socket that became readable joins its channel's queue of ready streams; one
   that became writable is given what was held for it. A channel that became readable is read, decrypted into one
   buffer, and its frames are handled in place: DATA goes to the stream's socket as slices of that buffer.
2. Each channel with something to say takes one read of each ready stream into its batch, in place behind the frame's
   head, encrypts the batch as one WebSocket message and hands it to the kernel in one call.

Sockets are registered once, edge-triggered, for both directions: an edge is remembered by being in the queue, and
a stream without credit is parked until CREDIT puts it back. No task lives as long as a visitor; streams belong to a
`RelaySession`, and leaving its `with` resets them all. Everything here is synchronous except `Engine.run`; each socket
and each channel is handled behind its own wall, so that what one of them does ends that one alone.

    engine ── session ─┬─ channel ── TLS socket          (tunnel side)
                       └─ stream  ── visitor or target   (local side)
"""

from tunnel.relay.channel import Channel
from tunnel.relay.engine import Engine
from tunnel.relay.listener import Listener
from tunnel.relay.pace import Pace
from tunnel.relay.room import Room
from tunnel.relay.session import RelaySession
from tunnel.relay.stream import Stream
from tunnel.relay.tally import Tally

__all__ = ["Channel", "Engine", "Listener", "Pace", "RelaySession", "Room", "Stream", "Tally"]
