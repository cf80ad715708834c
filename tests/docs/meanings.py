"""What each key of the configuration files means, and a value for it other than the usual one.

The value is tried: a file with it must load, and what a reload makes of the change is what the page says of it.
"""
# ruff: noqa: E501  a key is a line: folded, nobody would find the one that is missing

from typing import Any

from attrs import field, frozen

DIGEST = "ab" * 32
CLIENT_ENTRY = {"name": "home", "token_sha256": DIGEST}
PROXY_ENTRY = {"name": "web", "publish_port": 8001, "target": "127.0.0.1:8080"}
WEBHOOK = {"name": "ops", "type": "webhook", "url": "https://hooks.example/1"}
EMAIL = {"name": "ops", "type": "email", "host": "smtp.example", "from": "a@b.example", "to": ["c@b.example"]}
SIGNED = {"username": "me", "password_file": "password"}
ENTRIES: dict[str, dict[str, Any]] = {
    "clients[]": CLIENT_ENTRY, "proxies[]": PROXY_ENTRY, "notices[]": WEBHOOK,
    "proxies[].targets[]": {"target": "tls://nas.example:443"},
}  # fmt: skip


@frozen
class Key:
    """`beside` are other keys that it needs beside it (a dotted path; None takes one away), `usual` is said in place of
    a default that the reader does not know, `reload` where that cannot be tried; it stands `instead` of another key."""

    meaning: str
    example: Any
    beside: dict[str, Any] = field(factory=dict)
    usual: str = ""
    reload: str = ""
    instead: str = ""


PAIR = {"tls.cert_file": "cert.pem", "tls.key_file": "key.pem"}
OWN_PAIR = {"cert_file": "cert.pem", "key_file": "key.pem"}
HTTP = {"proxies[].health_check.type": "http"}
CHECKED = {"proxies[].health_check.type": "tcp"}
MAIL = {"notices[]": EMAIL}
TABLES = {"proxies[].target": None}
FROM_PROXY = {"proxy": "http://proxy.example:3128"}

SERVER = {
    "bind_addr": Key("Address that clients connect to.", "127.0.0.1"),
    "bind_port": Key("Port that clients connect to. 0: the system chooses, and `serve` prints it.", 9443),
    "listen": Key("Instead, for several (at most 16).", ["127.0.0.1:8443", "[::1]:8443"], usual="–"),
    "proxy_protocol_from": Key(
        "Load balancers whose connections begin with a PROXY header (v1 or v2), so that limits count the real source. "
        "A header from anybody else is refused.", ["10.0.0.7"],
    ),
    "state_dir": Key(
        "Where key, certificate, tokens, chosen ports, history and `admin.token` are kept.", "state",
        usual="`/var/lib/trio-tunnel` for root, else `~/.local/state/trio-tunnel`",
    ),
    "tls.cert_file": Key(
        "The server's certificate and its chain, PEM. Changed files are taken over by themselves.", "other.pem", PAIR,
        usual="one is made, self-signed, for a pin",
    ),
    "tls.key_file": Key("Its key; others must not be able to read it (its group may).", "other.key", PAIR, usual="–"),
    "tls.client_ca_file": Key("Only clients with a certificate of this CA may shake hands (their token all the same).",
                              "ca.pem", usual="none is asked for"),
    "tls.min_version": Key("The least version of TLS that is spoken.", "1.2"),
    "clients[].name": Key("The client's name, in statuses, logs and metrics.", "lab"),
    "clients[].token_sha256": Key("SHA-256 of its token; `trio-tunnel token new NAME` prints the line.", "cd" * 32),
    "clients[].allow_ports": Key('Public ports it may use, such as `["443", "8000-8999"]`.', ["80"], usual="none"),
    "clients[].allow_addrs": Key("Public addresses it may use; a wildcard allows all of its family.", ["127.0.0.1"],
                                 usual="any"),
    "clients[].allow_names": Key("Names that its proxies may have.", ["web"], usual="any"),
    "clients[].max_proxies": Key("Proxies at the same time.", 10),
    "clients[].max_visitors": Key("Visitors at the same time, of all its proxies; more wait in the kernel.", 500,
                                  usual="what `[limits]` leave"),
    "clients[].max_visitor_rate": Key("New visitors a second, of all its proxies; more wait in the kernel.", 50,
                                      usual="any"),
}  # fmt: skip
CLIENT = {
    "server": Key("The server. Without a port 8443.", "b.example:443", usual="–"),
    "servers": Key("Instead, for several addresses of one server (at most 16); all are used.",
                   ["a.example", "b.example"], usual="–", instead="server"),
    "resolve_seconds": Key("Between look-ups of their names.", 10),
    "token_file": Key("File with the token alone, which only its owner can read.", "home.token", reload="restart",
                      usual="the environment's `TRIO_TUNNEL_TOKEN`"),
    "pin": Key("SHA-256 of the server's public key, as `serve` prints it.", "sha256:" + "0f" * 32,
               usual="the system's CAs decide"),
    "ca_file": Key("CA (or the server's own certificate) to trust; beside a pin both must hold.", "ca.pem", usual="–"),
    "cert_file": Key("Certificate to show a server that asks for one.", "other.pem", OWN_PAIR, usual="–"),
    "key_file": Key("Its key, which nobody else can read.", "other.key", OWN_PAIR, usual="–"),
    "proxy": Key(
        "A forward proxy to go out by: `http://` (CONNECT), `socks5://` (names are looked up here) or `socks5h://` "
        '(there, as with `http://`) and `HOST:PORT`; `"env"` takes that of `HTTPS_PROXY` or `ALL_PROXY` unless '
        "`NO_PROXY` names the server. Targets are dialled directly.", "http://proxy.example:3128", usual="none",
    ),
    "proxy_auth_file": Key(
        "File with `user:password` for it, which only its owner can read.", "proxy.auth", FROM_PROXY,
        usual="the environment's `TRIO_TUNNEL_PROXY_AUTH`",
    ),
    "state_dir": Key("Where history and `admin.token` are kept.", "state",
                     usual="`/var/lib/trio-tunnel` for root, else `~/.local/state/trio-tunnel`"),
    "tls.min_version": Key("The least version of TLS that is spoken.", "1.2"),
    "proxies[].name": Key("The proxy's name; unique in the file.", "mail"),
    "proxies[].publish_addr": Key("Address at the server where visitors come.", "127.0.0.1"),
    "proxies[].publish_port": Key(
        "Port at the server where visitors come. 0: the server chooses, tells, and keeps it for this name.", 8002),
    "proxies[].target": Key("Where visitors are led to; without a host 127.0.0.1.", "127.0.0.1:9090", usual="–"),
    "proxies[].targets": Key("Instead, for several; each a text, or a table with the keys below.",
                             ["10.0.0.8:80", "10.0.0.9:80"], usual="–", instead="proxies[].target"),
    "proxies[].targets[].target": Key("Where it is.", "10.0.0.8:80", TABLES),
    "proxies[].targets[].weight": Key("Its share beside the others'.", 3, TABLES),
    "proxies[].targets[].backup": Key(
        "Used only while no other is well.", True,
        {**TABLES, "proxies[].targets": [{"target": "80"}, {"target": "10.0.0.9:80"}]}),
    "proxies[].targets[].connect_to": Key("Connect there; name and TLS stay those of the target.", "10.0.0.9:443", TABLES,
                                          usual="–"),
    "proxies[].targets[].server_name": Key("Name that TLS asks for and checks.", "nas.local", TABLES,
                                           usual="the target's host"),
    "proxies[].balance": Key("Short for `pool.choice`.", "round_robin", usual="–"),
    "proxies[].hot": Key("Short for `pool.min`: connections to the targets kept ready for visitors to come.", 2, usual="0"),
    "proxies[].when_down": Key(
        "While no target passes its check: `keep` the public port (visitors are closed quickly), or `close` it.", "close",
        CHECKED),
    "proxies[].health_check.type": Key("A connection, a TLS handshake, or `GET path`.", "http", CHECKED),
    "proxies[].health_check.path": Key("Path to ask for; for `http`.", "/healthz", HTTP),
    "proxies[].health_check.expect_status": Key("Answers that are good; for `http`.", [204], HTTP),
    "proxies[].health_check.host": Key("The `Host` to ask for.", "www.example.com", HTTP, usual="the target's"),
    "proxies[].health_check.interval": Key("Between checks.", 10, CHECKED),
    "proxies[].health_check.timeout": Key("Of one check.", 1, CHECKED),
    "proxies[].health_check.rise": Key("Good results in a row until it is up.", 2, CHECKED),
    "proxies[].health_check.fall": Key("Bad ones until it is down.", 3, CHECKED),
    "proxies[].health_check.jitter": Key("Share of each interval that chance may take away.", 0.2, CHECKED),
}  # fmt: skip
BOTH = {
    "log_level": Key("How much is logged; `-v` goes over it.", "debug", usual="`info`"),
    "watch": Key("Whether a changed file is taken over without SIGHUP.", False),
    "admin.listen": Key("Where `status`, the dashboard, `/metrics` and the API are; `off` for nowhere.", "127.0.0.1:9000",
                        usual="`127.0.0.1:8480`; at a client `off`"),
    "admin.hosts": Key("Names by which it may be asked, beside IP addresses and `localhost`.", ["tunnel.lan"],
                       usual="none"),
    "limits.max_visitors": Key("Visitors at the same time.", 1000, usual="from the descriptor limit"),
    "limits.max_visitors_per_proxy": Key("Of one proxy; more wait in the kernel's backlog.", 100,
                                         usual="`max_visitors`"),
    "limits.buffer_budget": Key("Bytes that may wait in the relay; at the end of it listeners pause.", 67_108_864),
    "limits.handshake_seconds": Key("For a TLS handshake. Server.", 5),
    "limits.head_seconds": Key("For an HTTP head. Server.", 2),
    "limits.login_seconds": Key("From the upgrade to the greeting. Server.", 5),
    "limits.ticket_seconds": Key("That a data channel's ticket is good for. Server.", 20),
    "limits.channel_wait_seconds": Key("That a visitor waits for a data channel. Server.", 5),
    "limits.dial_seconds": Key("To connect to a target. Client.", 5),
    "limits.half_closed_seconds": Key("That a stream may be closed on one side and silent on the other.", 60),
    "limits.drain_seconds": Key("For visitors inside, once it stops.", 5),
    "limits.heartbeat_seconds": Key("Between heartbeats; a peer silent for two and a half of them, and a second, is given up. Server.", 5),
    "history.enabled": Key("Whether every status and session is kept.", True,
                           usual="where there is a state directory"),
    "history.file": Key("The SQLite file.", "history.sqlite", usual="`history.sqlite` in the state directory"),
    "history.max_age_days": Key("What is older is removed.", 30),
    "history.max_rows": Key("What is more is removed, the oldest first (110 bytes or so a row).", 10_000),
    "notices[].name": Key("Its name, for logs and `trio-tunnel notify test`.", "other"),
    "notices[].type": Key("Whom it goes to.", "email", {"notices[]": EMAIL}, reload="at once"),
    "notices[].events": Key("What is worth a notice.", ["bind_failed"], usual="all of them"),
    "notices[].after": Key("Seconds that a proxy must be unhealthy, or a session lost, before one is sent.", 120),
    "notices[].interval": Key("Between two notices of trouble about one proxy or client.", 60),
    "notices[].gather": Key("Waited for more to tell in the same notice.", 1),
    "notices[].days": Key("Days before its end from which a certificate is expiring.", 7),
    "notices[].clients": Key("Of which clients; at a server.", ["home-*"], usual='`["*"]`'),
    "notices[].proxies": Key("Of which proxies.", ["web-*"], usual='`["*"]`'),
    "notices[].expected": Key("Clients that are told as lost also if they never come, or left with a goodbye; at a server.",
                              ["home"], usual="none"),
    "notices[].url": Key("Webhook: where each notice is POSTed to.", "https://hooks.example/2", usual="–"),
    "notices[].url_file": Key("Webhook: instead, a file with the URL, where that is a secret.", "url", usual="–",
                              instead="notices[].url"),
    "notices[].secret_file": Key("Webhook: file with the secret that signs each body (Standard Webhooks).", "secret",
                                 usual="unsigned"),
    "notices[].headers_file": Key("Webhook: file with more headers, a line each.", "headers", usual="–"),
    "notices[].proxy": Key("Webhook: an HTTP proxy to go through.", "http://proxy.example:3128", usual="none"),
    "notices[].format": Key("Webhook: our JSON, or what that service takes.", "slack"),
    "notices[].ca_file": Key("CA to trust, instead of the system's.", "ca.pem", usual="–"),
    "notices[].timeout": Key("Seconds of one attempt.", 5, usual="10; e-mail 30"),
    "notices[].host": Key("E-mail: the mail server.", "mail.example", MAIL),
    "notices[].port": Key("E-mail: its port.", 2525, MAIL, usual="587, `tls` 465, `none` 25"),
    "notices[].security": Key("E-mail: STARTTLS, TLS from the start, or neither (no password then, but to this machine).",
                              "tls", MAIL),
    "notices[].from": Key("E-mail: the sender.", "x@b.example", MAIL),
    "notices[].to": Key("E-mail: the recipients, at most 20.", ["y@b.example"], MAIL, usual="**required**"),
    "notices[].username": Key("E-mail: who logs in.", "you", {**MAIL, **{f"notices[].{k}": v for k, v in SIGNED.items()}},
                              usual="nobody"),
    "notices[].password_file": Key(
        "E-mail: file with the password.", "password2",
        {**MAIL, **{f"notices[].{k}": v for k, v in SIGNED.items()}}, usual="–"),
}  # fmt: skip
POOL = {
    "min": Key("Ready at any time, in all.", 3),
    "min_per_address": Key("And to each address.", 1),
    "max": Key("At most, in all.", 40),
    "max_per_address": Key("And to each address.", 20),
    "fill_rate": Key("Opened ahead of need, a second.", 5),
    "fill_concurrency": Key("At a time.", 2),
    "max_age": Key("Seconds until one is replaced, the new one first.", 600),
    "age_jitter": Key("Share by which an age may be shorter.", 0.2),
    "idle_limit": Key("Seconds unused after which those beyond `min` are closed.", 30),
    "probe_interval": Key("Seconds unused after which one is validated again.", 10),
    "open_seconds": Key("For a connection: look-up, dial, handshake.", 5),
    "validate_seconds": Key("For its validation.", 2),
    "wait_seconds": Key("For a whole request, retries among it.", 5),
    "lease_seconds": Key("In use for longer, one is logged as leaked.", 60),
    "choice": Key("Which of several is used.", "round_robin"),
}
POLICY = {
    "type": Key("The kind of policy.", "linear", usual="as the default's"),
    "initial_delay": Key("`exponential`: seconds before the first retry.", 1),
    "factor": Key("`exponential`: each wait is so many times the one before.", 3),
    "max_delay": Key("`exponential`: the longest wait.", 90),
    "jitter": Key("`exponential`: share of each wait that chance may take away.", 0.5),
    "step": Key("`linear`: the waits are 0, 1, 2, … times so many seconds.", 5),
    "max_retries": Key("Retries until it gives up (one less than attempts).", 5),
}
POLICIES = {
    "bind_retry": "A public port that is taken, for proxies that say nothing of their own. Server.",
    "proxies[].bind_retry": "The same for one proxy; without it as the server is set. Client.",
    "data_channels.quarantine": "Between probes of a server's address that failed.",
    "data_channels.retry": "Within one need of a data channel.",
    "proxies[].pool.quarantine": "Between probes of a target that failed.",
    "proxies[].pool.retry": "Within one visitor's wait for a target, before the first byte.",
    "notices[].retry": "A notice that its receiver did not take.",
}
