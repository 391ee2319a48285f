"""What systemd is told, and the sockets that it passes (docs/systemd.rst)."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.defer import execute
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory
    from twisted.python.failure import Failure

log = Logger()

# Seconds beyond the grace period that the end may take.
_SLACK = 5
# Seconds that systemd may take to make room for a message: it would wait for a lost READY=1 for ever.
_PATIENCE = 1.0


class Notifier:
    """
    Tells systemd how the service does, as sd_notify(3) says; nobody, where it did not say where to. Nothing
    is raised, and no more than a second waited for: what cannot be told is a line in the log.

    Args:
        environ: of the process. What is in it for a notifier is taken out: a child must not tell in our name.
        pid: of the process.
        monotonic: tells CLOCK_MONOTONIC in nanoseconds.
    """

    def __init__(
        self,
        environ: MutableMapping[str, str],
        pid: int,
        *,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        name = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", str(pid)) == str(pid) and re.fullmatch(
            r"\d{1,18}", microseconds
        )
        # A name that is no file begins with a NUL byte.
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        #: Seconds from one `alive` to the next; None where nobody waits for any.
        self.interval = int(microseconds) / 2e6 or None if name and watched else None
        self._monotonic = monotonic
        self._failed = False

    def ready(self, status: str) -> None:
        """The server serves: it has started, or read its files anew."""
        self._tell("READY=1", _status(status))

    def reloading(self) -> None:
        """It reads its files anew; `ready` must follow."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={self._monotonic() // 1000}")

    def stopping(self, status: str, grace: float) -> None:
        """It ends, within the grace period in seconds, however short the time is that systemd gives it."""
        extension = int((grace + _SLACK) * 1e6)
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={extension}", _status(status))

    def alive(self) -> None:
        """The reactor turns."""
        # What cannot be told now is told soon.
        self._tell("WATCHDOG=1", patience=0)

    def _tell(self, *lines: str, patience: float = _PATIENCE) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(patience)
                sender.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as error:
            if not self._failed:
                log.warn(
                    "systemd cannot be told {line}: {error}", event="systemd", line=lines[0], error=error
                )
            self._failed = True
        else:
            self._failed = False


def _status(text: str) -> str:
    # One line; and a Unix socket that is no file has a NUL byte in its name.
    return "STATUS=" + " ".join(text.replace("\0", "@").split())


# Twisted takes a Unix socket that it is handed for one of its own: it lets everybody use it, cuts its backlog
# to 50, and at the end shuts it down and removes its file. TCP it leaves alone.


class _ActivatedUnix(unix.Port):
    """A Unix socket of somebody else's: file, mode and backlog stay as they are, and it outlives us."""

    def startListening(self) -> None:
        tcp.Port.startListening(self)

    def connectionLost(self, reason: Failure) -> None:
        tcp.Port.connectionLost(self, reason)


@implementer(IStreamServerEndpoint)
class ActivatedEndpoint:
    """
    Listens on a socket that somebody listens on already, and goes on to.

    Args:
        reactor: adopts it.
        descriptor: of the socket; closed once a copy of it is in use.

    Raises:
        OSError: it is no socket.
        ValueError: nobody listens on it.
    """

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        with socket.socket(fileno=os.dup(descriptor)) as handed:
            # Nor on a connection, which a socket unit with Accept=yes passes: accepting would fail for ever.
            if not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError("systemd passed a socket that does not listen")
            #: Whether it is a Unix socket; what its description says does not count.
            self.local = handed.family == socket.AF_UNIX

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        with socket.socket(fileno=self._descriptor) as handed:
            handed.setblocking(False)
            port: IListeningPort
            if self.local:
                port = _ActivatedUnix._fromListeningDescriptor(self._reactor, handed.fileno(), factory)
                port.startListening()
            else:
                port = self._reactor.adoptStreamPort(handed.fileno(), handed.family, factory)
            return port
