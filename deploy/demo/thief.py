"""The demo's port thief: it shares the server's network, has port 8002 for its first 20 s, and then gives it back."""

import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import monotonic

PORT = 8002
HELD_SECONDS = 20


class Answer(BaseHTTPRequestHandler):
    timeout = 1  # seconds; who connects and says nothing holds up the others for no longer

    def do_GET(self) -> None:
        body = b"The port thief has this port for now; in a few seconds it is the tunnel's.\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with HTTPServer(("", PORT), Answer) as thief:
        print(f"I have port {PORT} of the server, for {HELD_SECONDS} s", flush=True)
        thief.timeout, ends = 0.5, monotonic() + HELD_SECONDS
        while monotonic() < ends:
            thief.handle_request()
    print(f"port {PORT} is free; the tunnel's next attempt will have it", flush=True)
