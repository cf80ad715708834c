"""`trio-tunnel top`: asks again and again, and shows how fast the figures grow."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from attrs import define, evolve, field, frozen

from tunnel.cli.output import is_drawable, is_unicode, writable
from tunnel.cli.rates import Order, look
from tunnel.cli.terminal import QUIT, Keys, ended_gently
from tunnel.cli.top_table import Look, render_plain, render_screen, to_json
from tunnel.errors import TunnelError

INTERVAL_SECONDS = 1.0
BUSY_SHARE = 0.05  # of the time goes into asking at most: with many thousand proxies it is done less often


@frozen(kw_only=True)
class Wanted:
    """What a command line asks for. Without an `interval` it is as short as does not burden the process asked."""

    order: Order = Order()
    interval: float | None = None
    count: int | None = None
    as_json: bool = False


@define
class Sampler:
    """Looks at the figures; `now` is what was seen last. The first look is made by `begin`, which raises."""

    fetch: Callable[[], dict[str, Any]]
    where: str
    clock: Callable[[], float] = time.monotonic
    now: Look = field(init=False)
    cost: float = 0.0  # seconds of the last answer
    _at: float = 0.0

    def begin(self) -> None:
        stats = self._ask()
        self.now = Look(self.where, stats, look(stats))

    def again(self) -> None:
        began = self._at
        try:
            stats = self._ask()
        except TunnelError as exc:
            self.now = evolve(self.now, trouble=str(exc))
            return
        seconds = self._at - began
        self.now = Look(self.where, stats, look(stats, self.now.rows, seconds), seconds)

    def _ask(self) -> dict[str, Any]:
        asked = self.clock()
        stats = self.fetch()
        self._at = self.clock()
        self.cost = self._at - asked
        return stats


def top(sampler: Sampler, out: TextIO, wanted: Wanted, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Until Ctrl-C, `q` on a terminal, or `count` looks. The first failure is raised, a later one shown."""
    sampler.begin()
    try:
        with ended_gently():
            if is_drawable(out) and wanted.count is None and not wanted.as_json:
                _on_screen(sampler, out, wanted)
            else:
                _in_lines(sampler, out, wanted, sleep)
    except KeyboardInterrupt:
        return


def _pause(sampler: Sampler, wanted: Wanted) -> float:
    if wanted.interval is not None:
        return wanted.interval
    return max(INTERVAL_SECONDS, sampler.cost / BUSY_SHARE)


def _in_lines(sampler: Sampler, out: TextIO, wanted: Wanted, sleep: Callable[[float], None]) -> None:
    shown = 0
    while wanted.count is None or shown < wanted.count:
        sleep(_pause(sampler, wanted))
        sampler.again()
        if wanted.as_json:
            out.write(json.dumps(to_json(sampler.now, wanted.order)) + "\n")
        else:
            words = sampler.now.trouble or render_plain(sampler.now, wanted.order)
            out.write(writable(("\n" if shown else "") + words + "\n", out))
        out.flush()
        shown += 1


def _on_screen(sampler: Sampler, out: TextIO, wanted: Wanted) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=out, markup=False, highlight=False)
    order = wanted.order

    def draw() -> None:
        screen = render_screen(sampler.now, order, width=console.width, height=console.height, unicode=is_unicode(out))
        live.update(screen, refresh=True)

    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            draw()
            for key in _keys_for(keys, _pause(sampler, wanted)):
                if key == QUIT:
                    return
                order = order.pressed(key)
                draw()
            sampler.again()


def _keys_for(keys: Keys, seconds: float) -> Iterator[str]:
    """Those pressed in that time."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if key := keys.wait(left):
            yield key
