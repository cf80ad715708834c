"""A visitor who stays and says a word ten times a second: prints, for each answer, the moment it came.

    python steady_visitor.py HOST PORT       or, the service:  python steady_visitor.py HOST PORT serve

Moments are seconds of the system's monotonic clock, which all processes of a machine share. Ends with the connection.
"""

import socket
import sys
import time
from contextlib import suppress

PAUSE_SECONDS = 0.1


def visit(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=90) as sock:
        while True:
            sock.sendall(b"here")
            if not sock.recv(100):
                return
            print(time.monotonic(), flush=True)
            time.sleep(PAUSE_SECONDS)


def serve(host: str, port: int) -> None:
    """One visitor at a time."""
    with socket.create_server((host, port)) as listener:
        print("ready", flush=True)
        while True:
            sock, _ = listener.accept()
            with sock, suppress(ConnectionResetError):
                while data := sock.recv(100):
                    sock.sendall(data)


if __name__ == "__main__":
    (serve if len(sys.argv) > 3 else visit)(sys.argv[1], int(sys.argv[2]))
