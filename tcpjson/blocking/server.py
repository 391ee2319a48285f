"""The server in one call."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.error import ReactorAlreadyRunning, ReactorNotRestartable, ReactorNotRunning
from twisted.internet.threads import deferToThreadPool
from twisted.logger import STDLibLogObserver, globalLogPublisher
from twisted.python.threadpool import ThreadPool

from tcpjson.auth import Authenticator
from tcpjson.core.arguments import check_numbers
from tcpjson.core.limits import Limits
from tcpjson.fairqueue import FairQueue
from tcpjson.handlers import Router
from tcpjson.server import TCPJSONServerFactory
from tcpjson.service import ServerService
from tcpjson.systemd import ActivatedEndpoint

if TYPE_CHECKING:
    from twisted.cred.checkers import ICredentialsChecker

# Connections that the system completes while we are busy.
_BACKLOG = 4096
# Threads that hash passwords.
_HASHERS = 1

_RUNNING = "the reactor runs, or has run, already: one start() in a process"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class TCPServer:
    """
    The server of `twistd tcpjson`, in the process of its own program.

        TCPServer(host="localhost", port=9999).start()

    What it logs goes to the logger `tcpjson.server`.

    Args:
        host, port: where to listen; port 0: at any that is free.
        limits, routers, strict: as `TCPJSONServerFactory` takes them.
        checkers: of `twisted.cred`, or made by `tcpjson.auth`; with any, clients must authenticate.
        allow_plain_auth: take passwords and tokens that come in the clear.
        announce: is given the line that says where it listens.
        reactor: the one to run; None: the one that is installed.

    Raises:
        TypeError, ValueError: the port is none.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 9999,
        *,
        limits: Limits | None = None,
        routers: Sequence[Router] = (),
        strict: bool = False,
        checkers: Sequence[ICredentialsChecker] = (),
        allow_plain_auth: bool = False,
        announce: Callable[[str], object] = print,
        reactor: Any = None,
    ) -> None:
        check_numbers(port=port)
        if not 0 <= port < 65536:
            raise ValueError(f"port must be from 0 to 65535, not {port}")
        self.host = host
        #: Where it listens; of port 0, the one that was free.
        self.port = port
        self._limits = limits or Limits()
        self._routers = routers
        self._strict = strict
        self._checkers = checkers
        self._allow_plain_auth = allow_plain_auth
        self._announce = announce
        self._reactor = reactor
        self._decided = threading.Event()
        self._listens = False
        # There while it serves.
        self._running: Any = None
        self._service: ServerService | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """
        Serve until Ctrl+C, SIGTERM or `stop`, in any thread; signals are heeded in the main one. The clients
        have `limits.grace` seconds to finish, unless there is a second signal.

        It runs Twisted's reactor, which runs once in a process.

        Raises:
            OSError: it cannot listen there.
            RuntimeError: the reactor runs, or has run, already.
        """
        try:
            self._start(self._reactor or _installed())
        finally:
            self._running = None
            # Nobody waits for what will not be.
            self._decided.set()

    def stop(self) -> None:
        """Have `start` end, as at Ctrl+C, and return. Callable from any thread; it waits for nothing."""
        reactor = self._running
        if reactor is not None:
            reactor.callFromThread(self._stop, reactor)

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Wait, so many seconds at most, until it listens; False when it does not."""
        self._decided.wait(timeout)
        return self._listens

    def _start(self, reactor: Any) -> None:
        if reactor.running:
            raise RuntimeError(_RUNNING)
        in_main = threading.current_thread() is threading.main_thread()
        # What is wrong with the address is to be known at once.
        with _listen(self.host, self.port) as listener:
            self.port = listener.getsockname()[1]
            self._running = reactor
            # By the steady clock, as twistd's: when the time of day is set, the timers must not all fire.
            reactor.seconds = time.monotonic
            reactor.addSystemEventTrigger("after", "startup", self._begin, reactor, listener, in_main)
            reactor.addSystemEventTrigger("before", "shutdown", self._end)
            handlers = {number: signal.getsignal(number) for number in _SIGNALS if in_main}
            observer = STDLibLogObserver("tcpjson.server")
            globalLogPublisher.addObserver(observer)
            try:
                reactor.run(installSignalHandlers=in_main)
            except (ReactorAlreadyRunning, ReactorNotRestartable):
                raise RuntimeError(_RUNNING) from None
            finally:
                globalLogPublisher.removeObserver(observer)
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if self._failure is not None:
            raise self._failure

    def _begin(self, reactor: Any, listener: socket.socket, in_main: bool) -> None:
        """The reactor runs: serve."""
        try:
            self._service = self._make_service(reactor, listener.detach(), in_main)
            self._service.startService()
        # `start` raises it, once the reactor has stopped.
        except BaseException as error:
            self._failure = error
            reactor.stop()
            return
        self._listens = True
        self._decided.set()
        self._announce(f"tcpjson: listening on {self.host}:{self.port}")

    def _end(self) -> object:
        """The reactor is about to stop."""
        return None if self._service is None else self._service.stopService()

    def _stop(self, reactor: Any) -> None:
        with contextlib.suppress(ReactorNotRunning):
            reactor.stop()

    def _make_service(self, reactor: Any, descriptor: int, in_main: bool) -> ServerService:
        from tcpjson.tap import allowed_connections, on_signal, raise_file_limit

        limits = self._limits
        allowed = allowed_connections(raise_file_limit())
        if limits.max_connections is None:
            limits = msgspec.structs.replace(limits, max_connections=allowed)
        pool = ThreadPool(0, _HASHERS, "passwords")
        authenticator = None
        if self._checkers:
            queue = FairQueue(lambda function: deferToThreadPool(reactor, pool, function), _HASHERS)
            authenticator = Authenticator(
                self._checkers, reactor, queue.run, allow_plain=self._allow_plain_auth
            )
        factory = TCPJSONServerFactory(
            reactor,
            limits=limits,
            routers=self._routers,
            strict=self._strict,
            authenticator=authenticator,
        )
        return ServerService(
            [(f"{self.host}:{self.port}", ActivatedEndpoint(reactor, descriptor))],
            factory,
            pool=None if authenticator is None else pool,
            on_signal=partial(on_signal, reactor) if in_main else lambda number, function: None,
            stop=lambda number: self._stop(reactor),
        )


def _installed() -> Any:
    from twisted.internet import reactor

    return reactor


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; for a name of several addresses at the first of IPv4. Raises `OSError`."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError:
        raise OSError(f"{host!r} is no name of a host") from None
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return socket.create_server(address, family=family, backlog=_BACKLOG)
