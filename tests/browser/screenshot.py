"""The README's picture of the dashboard: `python -m tests.browser.screenshot OUT.png`, about 75 seconds.

Needs chromium and chromedriver (Debian: chromium, chromium-driver). For other sizes and colours see `-h`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import scene
from .driver import browser, colours, missing, resize
from .page import Page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshot", description=__doc__)
    parser.add_argument("out", type=Path, help="a PNG file to write")
    parser.add_argument("--width", type=int, default=1280, help="in pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=1060, help="in pixels (default: %(default)s)")
    parser.add_argument("--colours", choices=["light", "dark"], default="light", help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=64.0, help="of traffic before it (default: %(default)s)")
    told = parser.parse_args()
    if why := missing():
        print(why, file=sys.stderr)
        return 1
    puppet = scene.server()
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as driver:
        resize(driver, told.width, told.height)
        colours(driver, told.colours)
        puppet.start()
        scene.tell(puppet)
        with scene.Traffic(puppet):
            Page(driver).visit(puppet.url)
            puppet.retry_in("home", "git", told.seconds + 12.5, since=scene.ago(14 - told.seconds))
            time.sleep(told.seconds)
            driver.save_screenshot(str(told.out))
        puppet.stop()
    print(f"{told.out}: {told.out.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
