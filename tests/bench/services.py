"""What stands behind every system: nginx as the web service, and an iperf3 server."""

import shutil
from contextlib import suppress
from pathlib import Path

from .processes import Place, Process, free_port

BODY = "x" * 199 + r"\n"
NGINX = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error; worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; keepalive_timeout 1h; keepalive_requests 1000000000; tcp_nodelay on;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ listen 0.0.0.0:{port} backlog=4096; location / {{ default_type text/plain; return 200 "{body}"; }} }}
}}
"""


class Services:
    """`ports["web"]` and `ports["bulk"]`, in `place`, while the block lasts."""

    def __init__(self, folder: Path, place: Place, files: int) -> None:
        self.place = place
        self.ports = {"web": free_port(), "bulk": free_port()}
        self._folder = folder
        self._files = files
        self._started: list[Process] = []

    @staticmethod
    def missing() -> list[str]:
        """Programs without which nothing can be measured."""
        return [program for program in ("nginx", "wrk") if not shutil.which(program)]

    def __enter__(self) -> "Services":
        self._folder.mkdir()
        self._folder.chmod(0o755)  # as root, nginx gives its worker another user
        config = self._folder / "nginx.conf"
        config.write_text(
            NGINX.format(
                folder=self._folder, files=self._files, connections=self._files - 100, port=self.ports["web"], body=BODY
            )
        )
        try:
            self._start("nginx", ["nginx", "-c", str(config), "-e", "stderr"], self.ports["web"])
            if shutil.which("iperf3"):
                self._start("iperf3", ["iperf3", "-s", "-p", str(self.ports["bulk"])], self.ports["bulk"])
        except BaseException:
            self._stop()
            raise
        return self

    def _start(self, name: str, argv: list[str], port: int) -> None:
        process = Process(name, argv, place=self.place, folder=self._folder)
        self._started.append(process)
        process.wait_listening(port)

    def restart_bulk(self) -> None:
        """An iperf3 server serves one test; one whose client was killed may wait for it for ever."""
        old = next(process for process in self._started if process.name == "iperf3")
        old.stop()
        self._started.remove(old)
        self._start("iperf3", ["iperf3", "-s", "-p", str(self.ports["bulk"])], self.ports["bulk"])

    def _stop(self) -> None:
        for process in self._started:
            with suppress(OSError):
                process.stop()

    def __exit__(self, *exc: object) -> None:
        self._stop()
