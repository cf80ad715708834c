"""The peers: other people's tunnels, each as its documentation sets it up, encrypted, and measured if it is on PATH."""

# mypy: disable-error-code="mutable-override"

import getpass
import os
import shutil
import subprocess

from .certificate import NAME, PASSWORD, make_certificate
from .processes import free_port
from .systems import System

TOKEN = "benchmark-token"


class HAProxy(System):
    """No reverse tunnel, but the yardstick for relaying: TCP, TLS between two processes, TCP."""

    name = "haproxy"
    programs = ("haproxy",)
    version_command = ("haproxy", "-v")
    common = """\
global
  nbthread 1
  maxconn {maxconn}
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
"""

    def set_up(self) -> None:
        certificate = make_certificate(self.folder)
        common = self.common.format(maxconn=(self.stage.files - 200) // 2)  # two descriptors a connection
        near, far = common, common
        for name, port in self._ports.items():
            between = f"{self.stage.far.address}:{free_port()}"
            tls = f"ssl verify required ca-file {certificate.cert} verifyhost {NAME} sni str({NAME})"
            near += f"listen {name}\n  bind 127.0.0.1:{port}\n  server far {between} {tls}\n"
            far += f"listen {name}\n  bind {between} ssl crt {certificate.both}\n  server target {self.service(name)}\n"
        self.run("far", ["haproxy", "-db", "-f", self.write("far.cfg", far)], far=True)
        self.run("near", ["haproxy", "-db", "-f", self.write("near.cfg", near)])


class SSH(System):
    """`ssh -R` into a private sshd that knows one key."""

    name = "ssh"
    programs = ("ssh", "sshd", "ssh-keygen")
    version_command = ("ssh", "-V")
    cipher = "aes128-gcm@openssh.com"

    def set_up(self) -> None:
        host_key, user_key = self.folder / "host_key", self.folder / "user_key"
        for key in (host_key, user_key):
            if not key.exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # sshd insists
        address, port = self.stage.near.address, free_port()
        config = (
            f"ListenAddress {address}:{port}\nHostKey {host_key}\nAuthorizedKeysFile {user_key}.pub\nStrictModes no\n"
            f"UsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"Ciphers {self.cipher}\n"
        )
        sshd = shutil.which("sshd") or "sshd"  # it restarts itself by its absolute path
        server = self.run("sshd", [sshd, "-D", "-e", "-f", self.write("sshd_config", config)])
        server.wait_listening(port)
        forwards = []
        for name, published in self._ports.items():
            forwards += ["-R", f"127.0.0.1:{published}:{self.service(name)}"]
        known = (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ExitOnForwardFailure=yes",
            "LogLevel=ERROR",
        )
        options = [
            part for option in (*known, f"Ciphers={self.cipher}", "IdentitiesOnly=yes") for part in ("-o", option)
        ]
        login = ["-i", str(user_key), "-p", str(port), f"{getpass.getuser()}@{address}"]
        self.run("ssh", ["ssh", "-F", "none", "-N", *options, *forwards, *login], far=True)


class Rathole(System):
    name = "rathole"
    programs = ("rathole",)
    version_command = ("rathole", "--version")

    def set_up(self) -> None:
        certificate = make_certificate(self.folder)
        address = f"{self.stage.near.address}:{free_port()}"
        tls = '[{end}.transport]\ntype = "tls"\n[{end}.transport.tls]\n'
        server = f'[server]\nbind_addr = "{address}"\ndefault_token = "{TOKEN}"\n' + tls.format(end="server")
        server += f'pkcs12 = "{certificate.identity}"\npkcs12_password = "{PASSWORD}"\n'
        client = f'[client]\nremote_addr = "{address}"\ndefault_token = "{TOKEN}"\n' + tls.format(end="client")
        client += f'trusted_root = "{certificate.cert}"\nhostname = "{NAME}"\n'
        for name, port in self._ports.items():
            server += f'[server.services.{name}]\nbind_addr = "127.0.0.1:{port}"\n'
            client += f'[client.services.{name}]\nlocal_addr = "{self.service(name)}"\n'
        quiet = {"RUST_LOG": "error"}
        near = self.run("server", ["rathole", "--server", self.write("server.toml", server)], env=quiet)
        near.wait_listening(int(address.rpartition(":")[2]))
        self.run("client", ["rathole", "--client", self.write("client.toml", client)], far=True, env=quiet)


class Frp(System):
    """Every visitor a stream of one TLS connection (yamux)."""

    name = "frp"
    programs = ("frps", "frpc")
    version_command = ("frps", "--version")
    multiplexed = "true"

    def set_up(self) -> None:
        address, port = self.stage.near.address, free_port()
        both = f'auth.token = "{TOKEN}"\nlog.level = "error"\ntransport.tcpMux = {self.multiplexed}\n'
        server = f'bindAddr = "{address}"\nbindPort = {port}\nproxyBindAddr = "127.0.0.1"\n'
        server += f"{both}transport.tls.force = true\n"
        client = f'serverAddr = "{address}"\nserverPort = {port}\n{both}transport.tls.enable = true\n'
        client += "transport.poolCount = 5\n"
        for name, published in self._ports.items():
            host, _, local = self.service(name).rpartition(":")
            client += f'[[proxies]]\nname = "{name}"\ntype = "tcp"\nlocalIP = "{host}"\nlocalPort = {local}\n'
            client += f"remotePort = {published}\n"
        self.run("frps", ["frps", "-c", self.write("frps.toml", server)]).wait_listening(port)
        self.run("frpc", ["frpc", "-c", self.write("frpc.toml", client)], far=True)


class FrpPlain(Frp):
    """Every visitor a TLS connection of its own, five of them ready."""

    name = "frp-nomux"
    multiplexed = "false"


class Chisel(System):
    """Its own encryption is SSH inside a WebSocket."""

    name = "chisel"
    programs = ("chisel",)
    version_command = ("chisel", "--version")

    def set_up(self) -> None:
        address, port = self.stage.near.address, free_port()
        self.run("server", ["chisel", "server", "--reverse", "--host", address, "--port", str(port)]).wait_listening(
            port
        )
        remotes = [f"R:127.0.0.1:{published}:{self.service(name)}" for name, published in self._ports.items()]
        self.run("client", ["chisel", "client", f"http://{address}:{port}", *remotes], far=True)


class Wstunnel(System):
    """Five connections are kept ready."""

    name = "wstunnel"
    programs = ("wstunnel",)
    version_command = ("wstunnel", "--version")

    def set_up(self) -> None:
        url = f"wss://{self.stage.near.address}:{free_port()}"
        server = self.run("server", ["wstunnel", "--log-lvl", "WARN", "server", url])
        server.wait_listening(int(url.rpartition(":")[2]))
        remotes = []
        for name, published in self._ports.items():
            remotes += ["-R", f"tcp://127.0.0.1:{published}:{self.service(name)}"]
        self.run("client", ["wstunnel", "--log-lvl", "WARN", "client", "-c", "5", *remotes, url], far=True)


PEERS: tuple[type[System], ...] = (HAProxy, SSH, Rathole, Frp, FrpPlain, Chisel, Wstunnel)
