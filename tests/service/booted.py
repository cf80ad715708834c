"""The units under a real systemd, booted here in namespaces of its own over a copy of this machine's disk, and used as
a person would. Each step is timed, and the first that fails ends it.

python -m tests.service.booted      as root, on Linux with systemd installed (apt-get install systemd); half a minute
"""

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sysconfig.get_path("scripts"), "trio-tunnel")
SECONDS = 60.0  # for what takes a second or two on a machine that is not busy
CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
# What would look at this machine's devices or settings, or serve on it.
MASKED = "systemd-udevd systemd-udev-trigger systemd-sysctl systemd-modules-load systemd-networkd systemd-resolved \
systemd-timesyncd systemd-logind console-getty docker containerd ssh nginx haproxy"
BOOT = r"""
set -e
new=$1; shift
ip link set lo up
mount -t tmpfs tmpfs $new
mkdir $new/up $new/work $new/root
mount -t overlay overlay -o lowerdir=/,upperdir=$new/up,workdir=$new/work $new/root
cd $new/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs dev -o mode=755
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/pts dev/shm
mount -t tmpfs tmpfs dev/shm
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs run
for path in "$@"; do mkdir -p .$path; mount --bind $path .$path; done
rm -rf var/lib/trio-tunnel* var/lib/private var/lib/systemd etc/trio-tunnel etc/systemd/system/trio-tunnel*
mkdir -p oldroot var/lib/private etc/trio-tunnel; chmod 700 var/lib/private
mkdir -p etc/tmpfiles.d; : > etc/tmpfiles.d/tmp.conf  # or it would empty /tmp, where this program may be
rm -f etc/machine-id; echo 0123456789abcdef0123456789abcdef > etc/machine-id
for name in MASKED; do ln -sf /dev/null etc/systemd/system/$name.service; done
pivot_root . oldroot
umount -l /oldroot
mount --make-rshared /
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=basic.target \
    --show-status=no --log-target=journal
""".replace("MASKED", MASKED)

Look = Callable[[], object]


@define
class Machine:
    """What was booted. `pid` is its systemd's, as seen from outside."""

    pid: int

    def run(self, *words: object, code: int | None = 0) -> str:
        """What a command there writes; its exit code has to be as it should (None: any)."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w", "--"]
        done = subprocess.run([*enter, *map(str, words)], capture_output=True, text=True, timeout=SECONDS * 2)
        assert code is None or done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def shell(self, line: str) -> str:
        return self.run("sh", "-c", line)

    def tunnel(self, *words: object, code: int = 0) -> str:
        return self.run(COMMAND, *words, code=code)

    def show(self, unit: str, key: str) -> str:
        return self.run("systemctl", "show", "-P", key, unit).strip()

    def until(self, look: Look, what: str, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not look():
            units = ("trio-tunnel-server", "trio-tunnel-client")
            logs = [
                self.run("journalctl", "--no-pager", "-n", 30, "-o", "cat", "-u", unit, code=None) for unit in units
            ]
            assert time.monotonic() < deadline, f"{what}: {seconds:g} s passed\n" + "\n".join(logs)
            time.sleep(0.1)


@contextmanager
def booted() -> Iterator[Machine]:
    """Ends, and takes away, all that was started in it."""
    cgroup = next(path for path in reversed(CGROUPS) if (path / "cgroup.procs").exists()) / f"booted-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        here = Path("/").stat().st_dev
        apart = {path for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)) if path.stat().st_dev != here}
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--propagation", "private"]
        cgroup.mkdir()
        outer = subprocess.Popen(
            ["unshare", *namespaces, "bash", "-c", BOOT, "boot", folder, *map(str, sorted(apart))],
            preexec_fn=lambda: _enter(cgroup),
            stdin=subprocess.DEVNULL,
        )
        try:
            machine = Machine(_child(outer))
            machine.until(lambda: machine.run("systemctl", "is-system-running", code=None).strip() == "running", "boot")
            yield machine
        finally:
            for child in _children(outer.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)  # its init: the kernel ends all the rest with it
            outer.wait(30)
            _remove(cgroup)


def _enter(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _child(outer: "subprocess.Popen[bytes]") -> int:
    deadline = time.monotonic() + SECONDS
    while True:
        for child in _children(outer.pid):
            with suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return child
        assert outer.poll() is None, "it does not boot"
        assert time.monotonic() < deadline, "it does not boot in time"
        time.sleep(0.05)


def _remove(cgroup: Path) -> None:
    for folder, _, _ in os.walk(cgroup, topdown=False):
        with suppress(OSError):  # a process has not quite ended yet: an empty folder is no harm
            Path(folder).rmdir()


@contextmanager
def step(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"ok {time.monotonic() - began:6.1f} s  {name}", flush=True)


SERVER, CLIENT = "trio-tunnel-server.service", "trio-tunnel-client.service"
CLIENT_TOML = """\
server = "127.0.0.1:8443"
token_file = "home.token"
ca_file = "server.crt"
[[proxies]]
name = "web"
publish_addr = "127.0.0.1"
publish_port = 8001
target = "127.0.0.1:8480"
"""
ATTEMPTS = """
import socket, sys, time
end, count, refused = time.time() + 6, 0, 0
while time.time() < end:
    count += 1
    try:
        socket.create_connection(("127.0.0.1", 8443), timeout=10).close()
    except OSError:
        refused += 1
    time.sleep(0.01)
print(count, refused)
"""
PAIR = """
from pathlib import Path
from tunnel.certificates import make_self_signed
for name, content in zip("ck", make_self_signed(["localhost"])):
    Path(f"/etc/tls/{name}.pem").write_bytes(content)
"""


def use(machine: Machine) -> None:
    """All that a person does with it, in that order."""
    write = "cat > /etc/trio-tunnel/{} <<'END'\n{}END"
    with step("a server, and the socket that systemd holds for it"):
        machine.shell(write.format("server.toml", 'bind_addr = "127.0.0.1"\n'))
        machine.shell(f"umask 077; {COMMAND} token new home > /etc/trio-tunnel/home.token 2>/dev/null")
        machine.tunnel("service", "install", "server", "--socket")
        assert machine.show(SERVER, "StatusText").endswith("listening on 127.0.0.1:8443")
        assert machine.shell("stat -c %U /var/lib/private/trio-tunnel").strip() == "trio-tunnel-server"
    with step("how exposed it is"):
        shown = machine.run("systemd-analyze", "security", "--no-pager", SERVER)
        found = re.search(r"Overall exposure level for \S+: (\S+)", shown)
        assert found is not None
        assert float(found[1]) < 2.0
        print(f"             {found[1]} of 10")
    with step("a client, with a token that its user cannot read"):
        machine.shell("cp /var/lib/private/trio-tunnel/server.crt /etc/trio-tunnel")
        machine.shell(write.format("client.toml", CLIENT_TOML))
        said = machine.tunnel("service", "install", "client")
        assert "cannot read /etc/trio-tunnel/home.token" in said
        machine.until(
            lambda: machine.show(CLIENT, "StatusText") == "connected as home: 1 of 1 proxy healthy", "session"
        )
        assert machine.shell("curl -sf http://127.0.0.1:8001/healthz").strip() == "ok"
    with step("reload: what is good counts, what is not fails and changes nothing"):
        machine.shell("printf '[[proxies]]\\nname = \"two\"\\npublish_addr = \"127.0.0.1\"\\npublish_port = 8002\\n"
                      "target = \"8480\"\\n' >> /etc/trio-tunnel/client.toml")  # fmt: skip
        machine.run("systemctl", "reload", CLIENT)
        machine.until(
            lambda: machine.show(CLIENT, "StatusText") == "connected as home: 2 of 2 proxies healthy", "reload"
        )
        machine.shell("echo 'oops = 1' >> /etc/trio-tunnel/client.toml")
        machine.run("systemctl", "reload", CLIENT, code=1)
        assert "oops: 1: is not a key here" in machine.run("journalctl", "-o", "cat", "-n", 20, "-u", CLIENT)
        assert machine.show(CLIENT, "ActiveState") == "active"
        machine.shell("sed -i /oops/d /etc/trio-tunnel/client.toml")
    with step("a restart refuses nobody"):
        counts: list[str] = []
        trying = threading.Thread(target=lambda: counts.extend(machine.run("python3", "-c", ATTEMPTS).split()))
        trying.start()
        time.sleep(1)
        machine.run("systemctl", "restart", SERVER)
        trying.join()
        print(f"             {counts[0]} attempts, {counts[1]} refused")
        assert counts[1] == "0"
    with step("root makes a token for the user that systemd made up"):
        machine.tunnel("token", "new", "office")
        assert machine.shell("stat -c %U /var/lib/private/trio-tunnel/tokens.json").strip() == "trio-tunnel-server"
        assert "office" in machine.tunnel("token", "list")
    with step("one that stands still is ended, shows where it stood, and is back"):
        machine.shell(f"mkdir -p /run/systemd/system/{SERVER}.d; "
                      f"printf '[Service]\\nWatchdogSec=4\\n' > /run/systemd/system/{SERVER}.d/x.conf")  # fmt: skip
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", SERVER)
        before = machine.show(SERVER, "MainPID")
        machine.run("kill", "-STOP", before)
        machine.until(lambda: machine.show(SERVER, "NRestarts") == "1", "it is started again")
        assert "most recent call first" in machine.run("journalctl", "-o", "cat", "-n", 80, "-u", SERVER)
        machine.shell(f"rm -r /run/systemd/system/{SERVER}.d; systemctl daemon-reload")
    with step("a stop lets a visitor finish"):
        machine.until(lambda: machine.show(CLIENT, "StatusText") == "connected as home: 2 of 2 proxies healthy", "back")
        visit = "import socket, time; s = socket.create_connection(('127.0.0.1', 8001)); time.sleep(4)"
        visitor = threading.Thread(target=lambda: machine.run("python3", "-c", visit))
        visitor.start()
        time.sleep(1)
        began = time.monotonic()
        machine.run("systemctl", "restart", SERVER)
        assert time.monotonic() - began > 2
        visitor.join()
    with step("a named user, below port 1024, with its state at home"):
        machine.shell("useradd --system --create-home tt; install -d -m 700 -o tt /home/tt/state")
        text = (
            'bind_addr = "127.0.0.1"\nbind_port = 443\nstate_dir = "/home/tt/state"\n[admin]\nlisten = "127.0.0.1:0"\n'
        )
        machine.shell(write.format("server-lab.toml", text))
        machine.tunnel("service", "install", "server", "--name", "lab", code=1)  # nobody's home is a made-up user's
        machine.tunnel("service", "install", "server", "--name", "lab", "--user", "tt")
        assert machine.show("trio-tunnel-server-lab", "StatusText").endswith("listening on 127.0.0.1:443")
    with step("a renewed certificate that a group can read counts without a restart"):
        machine.shell("groupadd tls; install -d -g tls -m 750 /etc/tls")
        renew = f"{sys.executable} -c '{PAIR}' && chgrp tls /etc/tls/* && chmod 640 /etc/tls/*"
        machine.shell(renew)
        text = 'bind_addr = "127.0.0.1"\nbind_port = 8444\n[admin]\nlisten = "127.0.0.1:0"\n'
        text += '[tls]\ncert_file = "/etc/tls/c.pem"\nkey_file = "/etc/tls/k.pem"\n'
        machine.shell(write.format("server-tls.toml", text))
        said = machine.tunnel("service", "install", "server", "--name", "tls", "--group", "tls")
        assert "cannot read" not in said
        machine.shell(renew)
        log = ["journalctl", "-o", "cat", "-n", 20, "-u", "trio-tunnel-server-tls"]
        machine.until(lambda: "new connections get the certificate" in machine.run(*log), "it is taken over")
    with step("taken away, nothing runs and no unit is left"):
        machine.tunnel("service", "uninstall", "server", "--name", "lab")
        machine.tunnel("service", "uninstall", "server", "--name", "tls")
        machine.tunnel("service", "uninstall", "client")
        assert "kept: keys, tokens" in machine.tunnel("service", "uninstall", "server")
        assert "trio-tunnel" not in machine.run("systemctl", "list-units", "--all", "--no-pager", "--plain")
        assert machine.shell("find /etc/systemd -name 'trio-tunnel*'") == ""


def main() -> int:
    if os.geteuid():
        print("only root can boot a systemd")
        return 2
    socket.setdefaulttimeout(SECONDS)
    with step("all of it"), booted() as machine:
        use(machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
