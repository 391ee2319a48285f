"""The service of `twistd tcpjson`: what listens, and what the signals do."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.application.service import IServiceCollection, Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from tcpjson.lag import LagMeter
from tcpjson.lifecycle import StartFailed
from tcpjson.server import TCPJSONServerFactory
from tcpjson.systemd import Notifier
from tcpjson.transports import client_id_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, IStreamServerEndpoint
    from twisted.python.failure import Failure
    from twisted.python.threadpool import ThreadPool

    from tcpjson.logs import LogSetup
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
        metrics: where to show what the server does, by a factory that answers HTTP; with the `--metrics` it
            came from.
        tls: the certificates, each with the option it came from.
        files: what reads files anew, each with the option that named them.
        client_ca: the absolute path of the authorities whose certificates clients must show.
        pool: threads that run while the service does.
        on_signal: has a function called, by the reactor, at each signal of a number.
        stop: has the reactor stop, as for the signal of a number.
        notifier: tells systemd how the service does.
        logs: how the log is written.
        wall: tells the time of day in seconds since 1970.
    """

    def __init__(
        self,
        endpoints: Sequence[tuple[str, IStreamServerEndpoint]],
        factory: TCPJSONServerFactory,
        *,
        metrics: tuple[str, IStreamServerEndpoint, IProtocolFactory] | None = None,
        tls: Sequence[tuple[str, ServerTLS]] = (),
        files: Sequence[tuple[str, Callable[[], object]]] = (),
        client_ca: str | None = None,
        pool: ThreadPool | None = None,
        on_signal: Callable[[int, Callable[[], object]], object] = lambda number, function: None,
        stop: Callable[[int], object] = lambda number: None,
        notifier: Notifier | None = None,
        logs: LogSetup | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.factory = factory
        self._endpoints = endpoints
        self._metrics = metrics
        self._metrics_port: IListeningPort | None = None
        self._tls = tls
        self._files = files
        self._client_ca = client_ca
        self._pool = pool
        self._on_signal = on_signal
        self._stop_reactor = stop
        self._stopping = False
        self._notifier = notifier or Notifier({}, 0)
        self._logs = logs
        self._wall = wall
        self._ports: list[IListeningPort] = []
        self._where: list[str] = []
        self._looks = LoopingCall(self._look_at_certificates)
        self._beats = LoopingCall(self._notifier.alive)
        self._lag = LagMeter(factory.clock, factory.stats.lag.observe)
        for repeated in (self._looks, self._beats):
            repeated.clock = factory.clock

    def setServiceParent(self, parent: IServiceCollection) -> None:
        super().setServiceParent(parent)
        if self._logs is not None:
            # Before twistd begins to log.
            try:
                self._logs.attach(parent)
            except OSError as error:
                fail(f"--logfile {error.filename}: {error.strerror}")

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
        self._lag.start()
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
            self._listen_on(endpoint, self.factory, f"--port {description}", self._listens)
        if self._metrics is not None:
            description, endpoint, site = self._metrics
            self._listen_on(endpoint, site, f"--metrics {description}", self._shows_metrics)

    def _listen_on(
        self,
        endpoint: IStreamServerEndpoint,
        factory: IProtocolFactory,
        description: str,
        listens: Callable[[IListeningPort, str], None],
    ) -> None:
        listening = endpoint.listen(factory)
        listening.addCallback(listens, description)
        listening.addErrback(self._cannot_listen, description)
        failures: list[Failure] = []
        listening.addErrback(failures.append)
        if failures:
            # Out of here, twistd ends with the line and nothing has been served.
            failures[0].raiseException()

    def _shows_metrics(self, port: IListeningPort, description: str) -> None:
        self._metrics_port = port
        address = port.getHost()
        scheme = "https" if any(option.startswith("--metrics ") for option, _ in self._tls) else "http"
        where = _where(address)
        url = where if isinstance(address, UNIXAddress) else f"{scheme}://{where}/"
        log.info("metrics on {url}", event="metrics", url=url)
        if _from_elsewhere(address):
            log.warn(
                "whoever reaches {option} sees who is connected: nobody is asked who it is",
                event="open_to_all",
                option=description,
            )

    def _listens(self, port: IListeningPort, description: str) -> None:
        self._ports.append(port)
        address = port.getHost()
        where = _where(address)
        self._where.append(where)
        log.info("listening on {where}", event="listening", where=where)
        if self.factory.authenticator is None and self._client_ca is None and _from_elsewhere(address):
            log.warn(
                "whoever reaches {option} is a client: nobody is asked who it is",
                event="open_to_all",
                option=description,
            )

    def _cannot_listen(self, failure: Failure, option: str) -> None:
        from twisted.internet import reactor

        for port in (*self._ports, *filter(None, [self._metrics_port])):
            port.stopListening()
        # A Unix socket's file goes in the next turn of the reactor, which is not to run.
        reactor.iterate(0)
        if failure.check(StartFailed):
            fail(f"--handlers: {failure.value}")
        fail(f"cannot listen on {option}: {reason_of(failure.value)}")

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
                log.error(
                    "not read anew, the old stays in use: {reason}", event="reload_failed", reason=reason
                )
                status += f"; not read anew: {reason}"
        if failed:
            count = len(self._files)
            log.info("read anew, but for {failed} of {count}", event="reloaded", failed=failed, count=count)
        elif self._files:
            log.info("read anew: certificates, passwords and tokens", event="reloaded")
        else:
            log.info("nothing to read anew", event="reloaded")
        if not self._stopping:
            self._notifier.ready(status)
        self._look_at_certificates()

    def _look_at_certificates(self) -> None:
        """Warn of those that soon end, or have ended."""
        left = {}
        for option, tls in self._tls:
            seconds = tls.expires.timestamp() - self._wall()
            days = left[option] = round(seconds / _DAY, 1)
            if seconds <= 0:
                log.error(
                    "a certificate of {option} has ended {days} days ago",
                    event="certificate_ended",
                    option=option,
                    days=abs(days),
                )
            elif days < _WARNING_DAYS:
                log.warn(
                    "a certificate of {option} ends in {days} days",
                    event="certificate_ends",
                    option=option,
                    days=days,
                )
        self.factory.stats.certificate_days = min(left.values(), default=None)

    async def _stop(self) -> None:
        ports, self._ports = self._ports, []
        stopped = DeferredList([Deferred.fromCoroutine(_stop(port)) for port in ports])
        count = len(self.factory.connections)
        log.info("shutting down: {count} connections", event="shutting_down", count=count)
        seconds = self.factory.limits.grace + self.factory.lifecycle.farewell
        self._notifier.stopping(f"shutting down: {count} connections", seconds)
        drained = self.factory.drain()
        await stopped
        await drained
        await self.factory.lifecycle.settled()
        self.factory.notices.stop()
        for repeated in (self._looks, self._beats):
            if repeated.running:
                repeated.stop()
        self._lag.stop()
        if self._metrics_port is not None:
            # To the last it tells that the server drains.
            await _stop(self._metrics_port)
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


def _where(address: IAddress) -> str:
    """An address for people."""
    name = address.name if isinstance(address, UNIXAddress) else client_id_of(address)
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


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
