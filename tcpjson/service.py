"""The service of `twistd tcpjson`: what listens, and what the signals do."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from tcpjson.lifecycle import StartFailed
from tcpjson.server import TCPJSONServerFactory
from tcpjson.systemd import Notifier
from tcpjson.transports import client_id_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
    from twisted.python.failure import Failure
    from twisted.python.threadpool import ThreadPool

    from tcpjson.tls import ServerTLS

log = Logger()

# Days before the end of a certificate from which on the log warns, once a day.
_WARNING_DAYS = 14
_DAY = 86400.0


class Refusal(SystemExit, Exception):
    """
    Ends the program with one line and status 1. An `Exception`, too: twistd then removes its pid file, and
    tells the terminal that waits for a server in the background.
    """


def fail(reason: str) -> NoReturn:
    """Refuse to start."""
    raise Refusal("tcpjson: " + " ".join(reason.splitlines()))


class ServerService(Service):
    """
    Listens on all endpoints or on none; stops in order (docs/protocol.rst, section 11).

    SIGHUP has the files of certificates, passwords and tokens read anew; once it stops, another SIGTERM or
    SIGINT ends it at once.

    Args:
        endpoints: each with the `--port` it came from.
        factory: the server.
        tls: the certificates, each with the `--port` it came from.
        files: what reads files anew, each with the option that named them.
        client_ca: the absolute path of the authorities whose certificates clients must show.
        pool: threads that run while the service does.
        on_signal: has a function called, by the reactor, at each signal of a number.
        stop: has the reactor stop, as for the signal of a number.
        notifier: tells systemd how the service does.
        wall: tells the time of day in seconds since 1970.
    """

    def __init__(
        self,
        endpoints: Sequence[tuple[str, IStreamServerEndpoint]],
        factory: TCPJSONServerFactory,
        *,
        tls: Sequence[tuple[str, ServerTLS]] = (),
        files: Sequence[tuple[str, Callable[[], object]]] = (),
        client_ca: str | None = None,
        pool: ThreadPool | None = None,
        on_signal: Callable[[int, Callable[[], object]], object] = lambda number, function: None,
        stop: Callable[[int], object] = lambda number: None,
        notifier: Notifier | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.factory = factory
        self._endpoints = endpoints
        self._tls = tls
        self._files = files
        self._client_ca = client_ca
        self._pool = pool
        self._on_signal = on_signal
        self._stop_reactor = stop
        self._stopping = False
        self._notifier = notifier or Notifier({}, 0)
        self._wall = wall
        self._ports: list[IListeningPort] = []
        self._where: list[str] = []
        self._looks = LoopingCall(self._look_at_certificates)
        self._beats = LoopingCall(self._notifier.alive)
        for repeated in (self._looks, self._beats):
            repeated.clock = factory.clock

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._begin()

    def startService(self) -> None:
        super().startService()
        # twistd has listened already, while it had the right to; other runners start here.
        if not self._ports:
            self._begin()
        if self._pool is not None:
            self._pool.start()
        if self._tls:
            self._looks.start(_DAY)
        if self._notifier.interval is not None:
            self._beats.start(self._notifier.interval)
        self._notifier.ready(self._listening())

    def _listening(self) -> str:
        return f"listening on {', '.join(self._where)}"

    def _begin(self) -> None:
        # Before anybody can know that the server is there.
        self._on_signal(signal.SIGHUP, self.reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._on_signal(number, partial(self._told_to_stop, number))
        self._listen()

    def _listen(self) -> None:
        for description, endpoint in self._endpoints:
            listening = endpoint.listen(self.factory)
            listening.addCallback(self._listens, description)
            listening.addErrback(self._cannot_listen, description)
            failures: list[Failure] = []
            listening.addErrback(failures.append)
            if failures:
                # Out of here, twistd ends with the line and nothing has been served.
                failures[0].raiseException()

    def _listens(self, port: IListeningPort, description: str) -> None:
        self._ports.append(port)
        address = port.getHost()
        where = address.name if isinstance(address, UNIXAddress) else client_id_of(address)
        if isinstance(where, bytes):
            where = where.decode(errors="replace")
        self._where.append(str(where))
        log.info("listening on {where}", where=where)
        if self.factory.authenticator is None and self._client_ca is None and _from_elsewhere(address):
            log.warn("whoever reaches --port {port} is a client: nobody is asked who it is", port=description)

    def _cannot_listen(self, failure: Failure, description: str) -> None:
        from twisted.internet import reactor

        for port in self._ports:
            port.stopListening()
        # A Unix socket's file goes in the next turn of the reactor, which is not to run.
        reactor.iterate(0)
        if failure.check(StartFailed):
            fail(f"--handlers: {failure.value}")
        fail(f"cannot listen on {description}: {reason_of(failure.value)}")

    def reload(self) -> None:
        """Read the files anew; where one is broken, what was read before stays in use."""
        if not self._stopping:
            self._notifier.reloading()
        failed = 0
        status = self._listening()
        for option, read in self._files:
            try:
                read()
            except Exception as error:
                failed += 1
                reason = blame(option, error, self._client_ca)
                log.error("not read anew, the old stays in use: {reason}", reason=reason)
                status += f"; not read anew: {reason}"
        if failed:
            log.info("read anew, but for {failed} of {count}", failed=failed, count=len(self._files))
        elif self._files:
            log.info("read anew: certificates, passwords and tokens")
        else:
            log.info("nothing to read anew")
        if not self._stopping:
            self._notifier.ready(status)
        self._look_at_certificates()

    def _look_at_certificates(self) -> None:
        """Warn of those that soon end, or have ended."""
        left = {}
        for description, tls in self._tls:
            seconds = tls.expires.timestamp() - self._wall()
            days = left[description] = round(seconds / _DAY, 1)
            if seconds <= 0:
                log.error(
                    "a certificate of --port {port} has ended {days} days ago",
                    port=description,
                    days=abs(days),
                )
            elif days < _WARNING_DAYS:
                log.warn("a certificate of --port {port} ends in {days} days", port=description, days=days)
        self.factory.stats.certificate_days = min(left.values(), default=None)

    async def _stop(self) -> None:
        ports, self._ports = self._ports, []
        stopped = DeferredList([Deferred.fromCoroutine(_stop(port)) for port in ports])
        count = len(self.factory.connections)
        log.info("shutting down: {count} connections", count=count)
        seconds = self.factory.limits.grace + self.factory.lifecycle.farewell
        self._notifier.stopping(f"shutting down: {count} connections", seconds)
        drained = self.factory.drain()
        await stopped
        await drained
        await self.factory.lifecycle.settled()
        for repeated in (self._looks, self._beats):
            if repeated.running:
                repeated.stop()
        if self._pool is not None:
            self._pool.stop()

    def _told_to_stop(self, number: int) -> None:
        """The first signal stops the reactor, and so this service; another waits for no client."""
        if self._stopping:
            self.factory.abort()
            self.factory.lifecycle.cancel()
        else:
            self._stopping = True
            self._stop_reactor(number)

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        self._stopping = True
        return Deferred.fromCoroutine(self._stop())


async def _stop(port: IListeningPort) -> None:
    stopped = port.stopListening()
    if stopped is not None:
        await stopped


def _from_elsewhere(address: object) -> bool:
    """Whether who is on another machine can reach an address."""
    return isinstance(address, (IPv4Address, IPv6Address)) and not ip_address(address.host).is_loopback


def blame(option: str, error: BaseException, client_ca: str | None) -> str:
    """An error in one line that begins with the option: where it is about that file, with `--client-ca`."""
    reason = reason_of(error)
    if client_ca is not None and reason.startswith(f"{client_ca}: "):
        option = "--client-ca"
    return f"{option}: {reason}"


def reason_of(error: BaseException | None) -> str:
    """An error in one line."""
    socket_error = getattr(error, "socketError", None)
    text = str(socket_error or error).strip().splitlines()
    return text[0] if text else type(error).__name__
