"""What systemd is told, as datagrams at a real socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel.notify_socket import NotifySocket


class Receiver:
    """Stands for systemd."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(name)
        self.sock.setblocking(False)

    def heard(self) -> list[str]:
        words = []
        while True:
            try:
                words.append(self.sock.recv(65536).decode())
            except BlockingIOError:
                return words


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    found = Receiver(str(tmp_path / "notify"))
    with found.sock:
        yield found


@pytest.fixture
def notify(receiver: Receiver) -> Iterator[NotifySocket]:
    found = NotifySocket(receiver.sock.getsockname())
    yield found
    found.close()


def test_each_word_is_a_datagram_of_its_own(receiver: Receiver, notify: NotifySocket) -> None:
    assert notify.ready("listening")
    assert notify.status("2 clients")
    assert notify.alive()
    assert notify.extend(15)
    assert notify.stopping("stopping")
    assert receiver.heard() == [
        "READY=1\nSTATUS=listening",
        "STATUS=2 clients",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=15000000",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_a_reload_is_told_with_the_time(
    receiver: Receiver, notify: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.clock_gettime_ns", lambda clock: 5_000_001_999)
    assert notify.reloading()
    assert receiver.heard() == ["RELOADING=1\nMONOTONIC_USEC=5000001"]


def test_a_peers_text_becomes_no_word_of_ours(receiver: Receiver, notify: NotifySocket) -> None:
    notify.status("no session: \nSTOPPING=1\r\x1b[31m\u202e" + "x" * 1000)
    (heard,) = receiver.heard()
    assert "\n" not in heard
    assert heard.isprintable()
    assert heard.startswith("STATUS=no session:  STOPPING=1")
    assert len(heard) < 400


def test_an_abstract_address_is_spelled_with_an_at() -> None:
    receiver = Receiver("")  # of the kernel's choice: a zero byte and five digits
    with receiver.sock:
        name = receiver.sock.getsockname()
        notify = NotifySocket("@" + name[1:].decode())
        assert notify.alive()
        assert receiver.heard() == ["WATCHDOG=1"]
        notify.close()


def test_what_nobody_hears_is_lost_and_holds_nobody_up(receiver: Receiver, notify: NotifySocket) -> None:
    count = 0
    while notify.alive():  # until the receiver's queue is full
        count += 1
    assert count > 0
    receiver.heard()
    assert notify.alive()
    receiver.sock.close()
    assert not notify.alive()


def test_the_environment_says_where_and_how_often_and_children_do_not_inherit_it() -> None:
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "A": "1"}
    notify = NotifySocket.take(environ)
    assert (notify.address, notify.watchdog_seconds) == ("/run/notify", 30)
    assert environ == {"A": "1"}


@pytest.mark.parametrize(
    ("more", "seconds"),
    [({}, None), ({"WATCHDOG_USEC": "500000"}, 0.5), ({"WATCHDOG_USEC": "0"}, None), ({"WATCHDOG_USEC": "x"}, None),
     ({"WATCHDOG_USEC": "9" * 5000}, None),
     ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, None)],
)  # fmt: skip
def test_a_watchdog_counts_if_it_is_for_this_process(more: dict[str, str], seconds: float | None) -> None:
    assert NotifySocket.take({"NOTIFY_SOCKET": "@x", **more}).watchdog_seconds == seconds


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_socket_nothing_is_said(environ: dict[str, str]) -> None:
    notify = NotifySocket.take({**environ, "WATCHDOG_USEC": "1000000"})
    assert (notify.address, notify.watchdog_seconds) == (None, None)
    assert not notify.ready("ready")
