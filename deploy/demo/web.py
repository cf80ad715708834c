"""The demo's sample service: a page that says how it was reached, /slow that takes its time, and /healthz."""

import html
import signal
import socket
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep

PORT = 8080
SLOW_SECONDS = 5
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Reached through trio-tunnel</title>
<style>
body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 38rem; margin: 12vh auto; padding: 0 1rem }}
:root {{ color-scheme: light dark }}
</style>
<h1>It works</h1>
<p>This page was made at {now} by container <code>{host}</code>, for <code>{peer}</code>: the tunnel's client, which
alone is on this service's network. You asked at <code>{asked}</code>, a port of the tunnel's server.</p>
"""


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds of silence

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer("text/plain", b"ok\n")
            return
        if self.path == "/slow":
            self._trickle()
            return
        page = PAGE.format(
            now=datetime.now(UTC).strftime("%H:%M:%S UTC"),
            host=html.escape(socket.gethostname()),
            peer=html.escape(self.client_address[0]),
            asked=html.escape(self.headers.get("Host", "")),
        )
        self._answer("text/html; charset=utf-8", page.encode())

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _trickle(self) -> None:
        """A line a second: whoever reads it while the tunnel is told to stop still gets the last one."""
        line = b"still here\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(SLOW_SECONDS * len(line)))
        self.end_headers()
        for _ in range(SLOW_SECONDS):
            self.wfile.write(line)
            sleep(1)

    def log_message(self, format: str, *arguments: object) -> None:
        if self.path != "/healthz":
            print(f"{self.command} {self.path} for {self.client_address[0]}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"the sample service listens at port {PORT}", flush=True)
    ThreadingHTTPServer(("", PORT), Page).serve_forever()
