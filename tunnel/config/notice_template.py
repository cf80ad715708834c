"""What `trio-tunnel init` writes of notices; `templates` has the rest."""

from typing import Literal

from tunnel.config.receivers import NOTICE_EVENTS, NOTICE_RETRY

_TEXT = """
# Who is told what happens here, and how; `trio-tunnel notify test -c FILE` tries them all.
#[[notices]]
#name = "ops"
#type = "webhook"
#url = "https://hooks.example.com/trio-tunnel"  # or url_file, where the URL is a secret as Slack's are
#format = "json"  # or "slack" (Mattermost and Google Chat take it, too), "ntfy"
#secret_file = "ops.secret"  # signs each body, as Standard Webhooks are; make one: openssl rand -hex 32
#headers_file = "ops.headers"  # lines such as Authorization: Bearer …
#ca_file = "ca.pem"  # without it, the system's CAs decide
#proxy = "http://proxy.example.com:3128"  # those of the environment do not count
#timeout = 10
#events = [<events>]
#after = 60  # a proxy must be unhealthy, or a session lost, for so long
#interval = 300  # between notices of trouble about one proxy or client; what comes meanwhile is counted
#gather = 5  # what happens within this time is one notice
#days = 14  # before the end of the certificate
<clients>#proxies = ["*"]
#[notices.retry]  # of a receiver that does not take it
#initial_delay = <initial_delay>
#factor = <factor>
#max_delay = <max_delay>
#max_retries = <max_retries>
#jitter = <jitter>

#[[notices]]
#name = "mail"
#type = "email"
#host = "smtp.example.com"
#port = 587
#security = "starttls"  # or "tls" (port 465), "none" (port 25)
#from = "tunnel@example.com"
#to = ["ops@example.com"]
#username = "tunnel"
#password_file = "mail.password"
#events = ["bind_failed", "session_lost", "certificate_expiring"]
"""
_OF_SERVER = """\
#clients = ["*"]  # names, or patterns such as "home-*"
#expected = ["home"]  # these are told as lost also if they never come, or leave with a goodbye and stay away
"""


def notices_text(kind: Literal["server", "client"]) -> str:
    text = _TEXT.replace("<events>", ", ".join(f'"{event}"' for event in NOTICE_EVENTS))
    text = text.replace("<clients>", _OF_SERVER if kind == "server" else "")
    for key in ("initial_delay", "factor", "max_delay", "max_retries", "jitter"):
        text = text.replace(f"<{key}>", f"{getattr(NOTICE_RETRY, key):g}")
    return text
