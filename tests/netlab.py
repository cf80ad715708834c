"""Two network namespaces and an emulated link (delay, jitter, loss, rate, blackhole): `python -m tests.netlab -h`.

For kernels without netem the link is a pair of TUN devices in user space: every IP packet between the namespaces passes
through this process, which delays, drops or paces it. Root on Linux only; standard library only.

    up      creates NAME-a (10.77.0.1) and NAME-b (10.77.0.2) and serves the link; prints `ready` once packets flow.
            Ctrl-C or SIGTERM removes both namespaces.
    set     changes a running link; unnamed settings stay as they are.
    stats   packets and bytes passed, dropped and queued, as JSON.

Run a program inside:  ip netns exec lab-a trio-tunnel serve …
"""

import argparse
import fcntl
import heapq
import json
import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}
OTHER = {"a": "b", "b": "a"}
BATCH_PACKETS = 64  # read of one side before the other side has its turn
PACKET_BYTES = 65_536
GRAIN_SECONDS = 0.0002  # packets that are due within it go together: waking up for each would cap the rate


class Link:
    """Packets under way. `offer` takes one from a side, `deliver` hands those that are due to the other side."""

    def __init__(self, *, rtt: float, jitter: float, loss: float, rate: float, queue: int) -> None:
        self.rtt = rtt  # seconds
        self.jitter = jitter  # seconds, at most, each way
        self.loss = loss  # probability
        self.rate = rate  # bytes per second each way; 0 is unlimited
        self.queue = queue  # packets each way
        self.blackhole = False
        self.counts = {"passed": 0, "bytes": 0, "lost": 0, "overflow": 0, "blackholed": 0}
        self._under_way: list[tuple[float, int, str, bytes]] = []
        self._sequence = 0
        self._free_at = {"a": 0.0, "b": 0.0}  # when each direction's transmitter is idle again
        self._last_at = {"a": 0.0, "b": 0.0}  # keeps packets of one direction in order despite jitter
        self._waiting = {"a": 0, "b": 0}

    def change(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            setattr(self, name, value)

    def stats(self) -> dict[str, int]:
        return {**self.counts, "queued": len(self._under_way)}

    def offer(self, side: str, packet: bytes, now: float) -> None:
        if self.blackhole:
            self.counts["blackholed"] += 1
            return
        if self.loss and random.random() < self.loss:
            self.counts["lost"] += 1
            return
        if self._waiting[side] >= self.queue:
            self.counts["overflow"] += 1
            return
        start = max(now, self._free_at[side])
        self._free_at[side] = start + (len(packet) / self.rate if self.rate else 0)
        due = self._free_at[side] + self.rtt / 2 + random.random() * self.jitter
        due = self._last_at[side] = max(due, self._last_at[side])
        self._sequence += 1
        self._waiting[side] += 1
        heapq.heappush(self._under_way, (due, self._sequence, side, packet))

    def deliver(self, devices: dict[str, int], now: float) -> float | None:
        """Seconds until the next packet is due; None if there is none."""
        while self._under_way and self._under_way[0][0] <= now:
            _, _, side, packet = heapq.heappop(self._under_way)
            self._waiting[side] -= 1
            try:
                os.write(devices[OTHER[side]], packet)
            except OSError:
                self.counts["lost"] += 1
            else:
                self.counts["passed"] += 1
                self.counts["bytes"] += len(packet)
        return max(0.0, self._under_way[0][0] - now) if self._under_way else None


def ip(*arguments: str, may_fail: bool = False) -> None:
    subprocess.run(["ip", *arguments], check=not may_fail, stderr=subprocess.DEVNULL if may_fail else None)


def open_device(name: str, side: str) -> int:
    """A TUN device in a namespace of its own; its packets are read from and written to the descriptor."""
    namespace, device = f"{name}-{side}", f"nl{side}{os.getpid() % 100_000}"
    ip("netns", "del", namespace, may_fail=True)
    ip("netns", "add", namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", device, "netns", namespace)
    ip("-n", namespace, "link", "set", "lo", "up")
    ip("-n", namespace, "addr", "add", ADDRESSES[side], "peer", ADDRESSES[OTHER[side]], "dev", device)
    ip("-n", namespace, "link", "set", device, "up", "txqueuelen", "2000")
    return descriptor


def serve_link(link: Link, devices: dict[str, int], control: socket.socket) -> None:
    with selectors.SelectSelector() as selector:  # epoll's timeout is in milliseconds, rounded up
        for side, descriptor in devices.items():
            selector.register(descriptor, selectors.EVENT_READ, side)
        selector.register(control, selectors.EVENT_READ)
        wait: float | None = None
        while True:
            for key, _ in selector.select(wait):
                if key.fileobj is control:
                    text, sender = control.recvfrom(65536)
                    link.change(json.loads(text))
                    if sender:
                        control.sendto(json.dumps(link.stats()).encode(), sender)
                else:
                    take_packets(link, key.data, key.fd)
            wait = link.deliver(devices, time.monotonic())
            if wait is not None:
                wait = max(wait, GRAIN_SECONDS)


def take_packets(link: Link, side: str, descriptor: int) -> None:
    now = time.monotonic()
    for _ in range(BATCH_PACKETS):
        try:
            packet = os.read(descriptor, PACKET_BYTES)
        except BlockingIOError:
            return
        link.offer(side, packet, now)


def up(options: argparse.Namespace) -> None:
    name = options.name
    devices: dict[str, int] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for side in ADDRESSES:
            devices[side] = open_device(name, side)
        link = Link(queue=options.queue, **{"rtt": 0.0, "jitter": 0.0, "loss": 0.0, "rate": 0.0, **settings(options)})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
            control.bind(control_path(name))
            print("ready", flush=True)
            serve_link(link, devices, control)
    except KeyboardInterrupt:
        pass
    finally:
        for descriptor in devices.values():
            os.close(descriptor)
        for side in ADDRESSES:
            ip("netns", "del", f"{name}-{side}", may_fail=True)


def control_path(name: str) -> str:
    return f"\0netlab-{name}"


def settings(options: argparse.Namespace) -> dict[str, float]:
    """Those that were named, in the link's own units."""
    per_unit = {"rtt": 1e-3, "jitter": 1e-3, "loss": 1e-2, "rate": 1e6 / 8}
    return {
        name: getattr(options, name) * unit for name, unit in per_unit.items() if getattr(options, name) is not None
    }


def tell(options: argparse.Namespace) -> None:
    change: dict[str, Any] = settings(options) if options.command == "set" else {}
    if options.command == "set" and options.blackhole:
        change["blackhole"] = options.blackhole == "on"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
        asker.bind(f"\0netlab-reply-{os.getpid()}")
        asker.settimeout(5)
        asker.sendto(json.dumps(change).encode(), control_path(options.name))
        print(asker.recv(65536).decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("up", "set", "stats"):
        one = commands.add_parser(command)
        one.add_argument("--name", default="lab")
        if command == "stats":
            continue
        for option, unit in (("--rtt", "MS"), ("--jitter", "MS"), ("--loss", "PERCENT"), ("--rate", "MBIT")):
            one.add_argument(option, type=float, metavar=unit)
        if command == "up":
            one.add_argument("--queue", type=int, default=2000, help="packets under way in each direction")
        else:
            one.add_argument("--blackhole", choices=("on", "off"))
    options = parser.parse_args()
    if options.command == "up":
        up(options)
    else:
        tell(options)


if __name__ == "__main__":
    main()
