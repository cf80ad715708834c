"""Hands notices to a mail server, once, in a thread of its own: smtplib blocks, and so must not be on the event loop.

The socket's timeout ends a server that is silent; one that drips a byte now and then is ended from outside: after the
attempt's time its socket is shut, on which the thread falls. What a server says is counted: an answer has no end of its
own in SMTP.
"""

import smtplib
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from email.message import EmailMessage
from typing import Any

import trio

from tunnel.config.receivers import Email
from tunnel.notices.bodies import mail
from tunnel.notices.notice import Notice
from tunnel.notices.outcome import Outcome, hide, reason
from tunnel.tls import client_context

MAX_ANSWER_BYTES = 64 * 1024  # of a mail server, in one part of a conversation
QUIT_SECONDS = 2.0  # for its farewell; it has the mail by then
GREETING, PERMANENT = 220, 500  # of SMTP's answers: the first one, and from where on they are final


async def send_mail(notices: list[Notice], to: Email, threads: trio.CapacityLimiter) -> Outcome:
    """One attempt, of `to.timeout` seconds at most. Never raises for what the server does.

    If cancelled, the conversation is cut, and whether the mail has gone is not known.
    """
    letter = _Letter(mail(notices, to), to)
    try:
        with trio.fail_after(to.timeout):
            return await trio.to_thread.run_sync(letter.deliver, abandon_on_cancel=True, limiter=threads)
    except trio.TooSlowError:
        said = f"the mail server {to.where} took more than {to.timeout:g} s"
        late = Outcome(False, said, "see whether it is up, and can be reached from here", retry=True)
        return letter.taken or late
    finally:
        letter.cut()


class _Letter:
    """`deliver` runs in a thread, `cut` outside of it."""

    def __init__(self, message: EmailMessage, to: Email) -> None:
        self.taken: Outcome | None = None  # set once the server has the mail
        self._message = message
        self._to = to
        self._line: socket.socket | None = None  # another descriptor of the connection, to shut it by
        self._is_cut = False

    def deliver(self) -> Outcome:
        to = self._to
        try:
            return self._converse()
        except smtplib.SMTPAuthenticationError as exc:
            said = f"the mail server {to.where} does not take the login of '{to.username}': {self._words(exc)}"
            return Outcome(False, said, "mend username, or what password_file holds", retry=_is_passing(exc))
        except smtplib.SMTPRecipientsRefused as exc:
            return self._all_refused(exc)
        except smtplib.SMTPResponseException as exc:
            said = f"the mail server {to.where} refuses: {self._words(exc)}"
            return Outcome(False, said, "see its log", retry=_is_passing(exc))
        except smtplib.SMTPNotSupportedError as exc:
            remedy = 'write security = "tls", or ask whoever runs it'
            return Outcome(False, f"the mail server {to.where}: {self._hide(str(exc))}", remedy)
        except ssl.SSLCertVerificationError as exc:
            said = f"the certificate of the mail server {to.where} cannot be trusted: {exc.verify_message}"
            return Outcome(False, said, "have it mended, name its CA in ca_file, or write the name it has in host")
        except (OSError, smtplib.SMTPException, ValueError) as exc:  # ValueError: an answer that is none
            said = f"the mail server {to.where} could not be asked: {self._hide(reason(exc))}"
            return Outcome(False, said, self._remedy(exc), retry=True)

    def cut(self) -> None:
        """End the conversation, wherever it is. Again is nothing."""
        self._is_cut = True
        if self._line is not None:
            with suppress(OSError):  # it has ended already
                self._line.shutdown(socket.SHUT_RDWR)

    def _converse(self) -> Outcome:
        to = self._to
        context = None if to.security == "none" else client_context(ca_file=to.ca_file, pinned=False, min_version="1.2")
        smtp = _Smtp(to, context if to.security == "tls" else None, self._hold)
        try:
            code, word = smtp.connect(to.where.host, to.where.port)
            if code != GREETING:
                raise smtplib.SMTPConnectError(code, word)
            if to.security == "starttls":
                smtp.starttls(context=context)
            if to.username is not None and to.password is not None:
                smtp.login(to.username, to.password)
            self.taken = self._taken(smtp.send_message(self._message))
            with suppress(OSError, smtplib.SMTPException):  # it has the mail, however it says goodbye
                if smtp.sock is not None:
                    smtp.sock.settimeout(QUIT_SECONDS)
                smtp.quit()
            return self.taken
        finally:
            smtp.close()
            if self._line is not None:
                self._line.close()

    def _hold(self, sock: socket.socket) -> None:
        """Called with the connection before a word is said."""
        self._line = sock.dup()
        if self._is_cut:  # while the name was looked up
            raise TimeoutError("it took too long")

    def _taken(self, refused: dict[str, tuple[int, bytes]]) -> Outcome:
        to = self._to
        said = f"the mail server {to.where} took it for {', '.join(who for who in to.to if who not in refused)}"
        if not refused:
            return Outcome(True, said)
        why = "; ".join(f"{who}: {self._hide(_decoded(answer))}" for who, (_, answer) in refused.items())
        return Outcome(True, f"{said}, but not for {why}", "mend `to`")

    def _all_refused(self, exc: smtplib.SMTPRecipientsRefused) -> Outcome:
        why = "; ".join(f"{who}: {self._hide(_decoded(answer))}" for who, (_, answer) in exc.recipients.items())
        passing = any(400 <= code < 500 for code, _ in exc.recipients.values())
        return Outcome(False, f"the mail server {self._to.where} refuses all recipients: {why}", "mend `to`", passing)

    def _remedy(self, exc: Exception) -> str:
        if isinstance(exc, ssl.SSLError):
            return 'see whether port and security fit: 587 and "starttls", or 465 and "tls"'
        return "see whether it is up, and can be reached from here"

    def _words(self, exc: smtplib.SMTPResponseException) -> str:
        return f"{exc.smtp_code} {self._hide(_decoded(exc.smtp_error))}"

    def _hide(self, text: str) -> str:
        """A server may repeat what it was sent, as it was sent: logins are Base64."""
        user, password = self._to.username or "", self._to.password or ""
        sent = (password, f"\0{user}\0{password}", f"{user}\0{user}\0{password}")
        coded = [b64encode(word.encode()).decode().rstrip("=") for word in sent if password]
        return hide(text, [password, *coded])


class _Counted:
    """The lines of a server, up to a bound; smtplib reads by `readline` alone."""

    def __init__(self, lines: Any) -> None:
        self._lines = lines
        self._left = MAX_ANSWER_BYTES

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._lines.readline(size)
        self._left -= len(line)
        if self._left < 0:
            raise OSError(f"it said more than {MAX_ANSWER_BYTES} bytes")
        return line

    def close(self) -> None:
        self._lines.close()


class _Smtp(smtplib.SMTP):
    """Its socket is told of before the first word, and its answers are counted."""

    def __init__(self, to: Email, context: ssl.SSLContext | None, hold: Callable[[socket.socket], None]) -> None:
        name = socket.gethostname()
        # Given, or smtplib asks DNS for the whole name, and a resolver that is down delays us.
        super().__init__(local_hostname=name if "." in name else "[127.0.0.1]", timeout=to.timeout)
        self._host = to.where.host  # whom `starttls` expects
        self._context = context
        self._hold = hold

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock = socket.create_connection((host, port), timeout)
        try:
            self._hold(sock)
            return sock if self._context is None else self._context.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None and self.sock is not None:
            self.file = _Counted(self.sock.makefile("rb"))
        return super().getreply()


def _is_passing(exc: smtplib.SMTPResponseException) -> bool:
    """Whether the server means: later. -1 is no answer at all."""
    return exc.smtp_code < PERMANENT


def _decoded(answer: bytes | str) -> str:
    return answer if isinstance(answer, str) else answer.decode("utf-8", "replace")
