"""What a command that draws on a terminal needs of it: keys as they are pressed, and to leave it as it was."""

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

QUIT = "q"


@contextmanager
def ended_gently() -> Iterator[None]:
    """In the body, SIGTERM and SIGHUP are as Ctrl-C: `KeyboardInterrupt`, so that the terminal is put in order."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Keys:
    """Keys of the terminal that is our standard input, one at a time; where it is none, there are never any."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = _standard_input() if descriptor is None else descriptor
        self._before: list[Any] | None = None

    def __enter__(self) -> "Keys":
        if os.isatty(self._descriptor):
            import termios
            import tty

            self._before = termios.tcgetattr(self._descriptor)
            tty.setcbreak(self._descriptor, termios.TCSADRAIN)  # what was typed already counts
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """A key, as soon as one is pressed, or nothing after `seconds`. A terminal that is gone is `QUIT`."""
        if self._before is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._descriptor], [], [], max(0.0, seconds))[0]:
            return ""
        try:
            pressed = os.read(self._descriptor, 1)
        except OSError:
            return QUIT
        return pressed.decode("ascii", "replace") if pressed else QUIT


def _standard_input() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # there is none
        return -1
