"""What a notice says: the values that rules make, words describe and couriers deliver. Pure."""

from attrs import frozen

MAX_NAMED = 20  # subjects in one notice; a thousand are a number and the first few

BIND_FAILED, UNHEALTHY, SESSION_LOST = "bind_failed", "unhealthy", "session_lost"
RECOVERED, CERTIFICATE_EXPIRING, CONFIG_REFUSED = "recovered", "certificate_expiring", "config_refused"
TEST = "test"


@frozen
class Subject:
    """One thing that a notice is about: a proxy, a client's session, the certificate, the configuration.

    `status` is how it stands now, `since` when the trouble began (ISO 8601, UTC) and `seconds` how long it lasted,
    where it is over. `times` is how often there was trouble since the notice before, this time among them.
    """

    client: str = ""
    proxy: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    since: str = ""
    seconds: float | None = None
    times: int = 1
    where: str = ""  # the public address of a proxy
    proxies: tuple[str, ...] = ()  # of a session: the first few that it published
    proxies_total: int = 0
    was: str = ""  # of what has recovered: the kind of its trouble


@frozen
class Group:
    """What is to be told at one moment: all subjects of one kind, the first `MAX_NAMED` of them by name."""

    kind: str
    count: int
    subjects: tuple[Subject, ...]


@frozen
class Sender:
    """Who tells: the process, as the reader knows it."""

    role: str  # "server" or "client"
    host: str
    software: str


@frozen
class Notice:
    """A message to one receiver. Trying again sends the same `id`: a receiver that has seen it drops it."""

    id: str
    at: str
    to: str  # the name of the notice in the configuration
    sender: Sender
    group: Group

    @property
    def kind(self) -> str:
        return self.group.kind
