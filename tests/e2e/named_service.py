"""A service of its own process, that can be killed: it tells each visitor its name and how many it has accepted.

A line "hold" is answered, too, and then the visitor is kept until its FIN; what it sends meanwhile comes back.
SIGUSR1 closes the listener, those inside stay; SIGUSR2 opens it again.
"""

import asyncio
import signal
import sys

NAME, PORT, IDLE_SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) or None


class Service:
    def __init__(self) -> None:
        self.accepted = 0
        self._listener: asyncio.Server | None = None

    async def listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", PORT, backlog=1024)
        print("listening", flush=True)

    def close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        print("closed", flush=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        try:
            word = await asyncio.wait_for(reader.readline(), IDLE_SECONDS)
            if word:
                writer.write(f"{NAME} {number} {self.accepted}\n".encode())
            while word == b"hold\n" and (data := await reader.read(65536)):
                writer.write(data)
        except (TimeoutError, OSError):
            pass  # idle for too long, or gone
        finally:
            writer.close()


async def main() -> None:
    service, loop = Service(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, service.close)
    tasks = []
    loop.add_signal_handler(signal.SIGUSR2, lambda: tasks.append(asyncio.ensure_future(service.listen())))
    await service.listen()
    await asyncio.Event().wait()


asyncio.run(main())
