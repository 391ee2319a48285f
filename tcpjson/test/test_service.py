"""The service of `twistd tcpjson`: it listens, reads files anew, looks at certificates, and ends in order."""

from __future__ import annotations

import gc
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson import Limits, Router, TCPJSONServerFactory, service
from tcpjson.lifecycle import StartFailed
from tcpjson.service import Refusal, ServerService, reason_of
from tcpjson.systemd import Notifier
from tcpjson.tap import open_metrics_port, port_from
from tcpjson.test.wires import Loop, Wire
from tcpjson.testing import START, MemoryServer
from tcpjson.testing import Peer as MemoryPeer


class ServiceCase(SynchronousTestCase):
    """With what is logged, and with ends of the program."""

    def events(self) -> list[LogEvent]:
        """What `tap`, `service` and `systemd` log from now on."""
        events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") in ("tcpjson.tap", "tcpjson.service", "tcpjson.systemd"):
                events.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return events

    def lines(self) -> Callable[[], list[str]]:
        """Returns what gives the lines that are logged from now on, each once."""
        events = self.events()

        def fresh() -> list[str]:
            lines = [formatEvent(event) for event in events]
            events.clear()
            return lines

        return fresh

    def one_line(self, error: SystemExit) -> str:
        """What the program says in its end; it is one line, and its status is 1."""
        self.assertIsInstance(error.code, str)
        text = str(error.code)
        self.assertTrue(text.startswith("tcpjson: "), text)
        self.assertEqual(len(text.splitlines()), 1, text)
        return text


class FakePort:
    """A listening port, as an endpoint gives it."""

    def __init__(self, address: Any = "somewhere", stopping: Deferred[None] | None = None) -> None:
        self.address = address
        self.stopping = stopping
        self.listening = True

    def getHost(self) -> Any:
        return self.address

    def stopListening(self) -> Deferred[None] | None:
        self.listening = False
        return self.stopping


class FakeEndpoint:
    """An endpoint whose `listen` comes to one result."""

    def __init__(self, result: object) -> None:
        self.result = result
        self.factory: object = None

    def listen(self, factory: object) -> Deferred[Any]:
        self.factory = factory
        return fail(Failure(self.result)) if isinstance(self.result, BaseException) else succeed(self.result)


class FakeTLS:
    """Certificates that end some days after `START`."""

    def __init__(self, days: float) -> None:
        self.days = days
        self.reloads = 0
        #: What `reload` raises.
        self.error: Exception | None = None

    @property
    def expires(self) -> datetime:
        return datetime.fromtimestamp(START, UTC) + timedelta(days=self.days)

    def reload(self) -> None:
        self.reloads += 1
        if self.error is not None:
            raise self.error


class FakeFile:
    """A file that is counted as read; `error` is raised then."""

    def __init__(self, error: Exception | None = None) -> None:
        self.reloads = 0
        self.error = error

    def reload(self) -> None:
        self.reloads += 1
        if self.error is not None:
            raise self.error


class FakePool:
    """A pool of threads."""

    running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False


class FakeSystemd:
    """
    The socket that systemd reads.

    Args:
        case: at whose end it goes.
        abstract: give it a name that is no file.
    """

    def __init__(self, case: SynchronousTestCase, abstract: bool = False) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        case.addCleanup(self._socket.close)
        folder = tempfile.TemporaryDirectory()
        case.addCleanup(folder.cleanup)
        self._name = f"{folder.name}/notify"
        self._socket.bind(f"\0{self._name}" if abstract else self._name)
        self._socket.setblocking(False)
        if abstract:
            self._name = f"@{self._name}"

    def environ(self, **variables: str) -> dict[str, str]:
        """What a process gets to know it by."""
        return {"NOTIFY_SOCKET": self._name, **variables}

    def told(self) -> list[list[str]]:
        """The lines of each message that came."""
        messages = []
        try:
            while True:
                messages.append(self._socket.recv(1 << 16).decode().split("\n"))
        except BlockingIOError:
            return messages


class ListeningTests(ServiceCase):
    """Listening on all endpoints or on none."""

    def service(self, *results: object) -> ServerService:
        self.factory = TCPJSONServerFactory(Loop())
        self.endpoints: list[Any] = [FakeEndpoint(result) for result in results]
        return ServerService([(f"port {n}", end) for n, end in enumerate(self.endpoints)], self.factory)

    def test_it_listens_once(self) -> None:
        """`twistd` starts it twice: with its privileges, and without."""
        lines = self.lines()
        service = self.service(FakePort(IPv4Address("TCP", "127.0.0.1", 4711)))
        service.privilegedStartService()
        service.startService()
        self.assertEqual(lines(), ["listening on 127.0.0.1:4711"])
        self.assertIs(self.endpoints[0].factory, self.factory)
        self.assertTrue(service.running)

    def test_it_listens_without_privileges(self) -> None:
        lines = self.lines()
        addresses: list[Any] = [
            UNIXAddress(b"/run/x"),
            UNIXAddress("/run/y"),
            UNIXAddress(b"\xff"),
            "somewhere",
        ]
        addresses.append(IPv6Address("TCP", "::1", 4711))
        service = self.service(*map(FakePort, addresses))
        service.startService()
        names = ["/run/x", "/run/y", "\ufffd", "somewhere", "[::1]:4711"]
        self.assertEqual(lines(), [f"listening on {name}" for name in names])

    def test_ports_that_ask_nobody(self) -> None:
        """A warning for each that others than this machine reach, unless someone is asked."""
        hosts = ("127.0.0.1", "127.3.0.1", "0.0.0.0", "192.0.2.7")
        addresses: list[Any] = [IPv4Address("TCP", host, 1) for host in hosts]
        addresses += [IPv6Address("TCP", host, 1) for host in ("::1", "::", "fe80::1%lo")]
        addresses += [UNIXAddress(b"/run/x")]
        warning = "whoever reaches --port port {} is a client: nobody is asked who it is"
        for authenticator, client_ca, ports in (
            (None, None, (2, 3, 5, 6)),
            (object(), None, ()),
            (None, "/ca", ()),
        ):
            events = self.events()
            service = self.service(*map(FakePort, addresses))
            asks: Any = authenticator
            service.factory.authenticator, service._client_ca = asks, client_ca
            service.startService()
            warned = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
            self.assertEqual(warned, [warning.format(port) for port in ports])

    def test_stop(self) -> None:
        stopping: Deferred[None] = Deferred()
        ports = [FakePort("a"), FakePort("b", stopping)]
        service = self.service(*ports)
        service.startService()
        stopped = service.stopService()
        self.assertEqual([port.listening for port in ports], [False, False])
        self.assertNoResult(stopped)
        stopping.callback(None)
        self.successResultOf(stopped)
        self.assertFalse(service.running)
        # Once more: they are not its ports any longer.
        ports[0].listening = True
        self.successResultOf(service.stopService())
        self.assertTrue(ports[0].listening)

    def test_one_cannot_listen(self) -> None:
        """The others stop, and one line says which and why."""
        ports = [FakePort("a"), FakePort("b")]
        error = CannotListenError("127.0.0.1", 9999, OSError(98, "Address already in use"))
        service = self.service(ports[0], ports[1], error, FakePort("never"))
        line = self.one_line(self.assertRaises(Refusal, service.privilegedStartService))
        self.assertIn("port 2", line)
        self.assertIn("Address already in use", line)
        self.assertEqual([port.listening for port in ports], [False, False])
        self.assertIsNone(self.endpoints[3].factory)

    def test_errors_in_one_line(self) -> None:
        for error, text in (
            (ValueError("first\nsecond"), "first"),
            (ValueError(), "ValueError"),
            (OSError(13, "Permission denied"), "Permission denied"),
        ):
            service = self.service(error)
            line = self.one_line(self.assertRaises(Refusal, service.startService))
            self.assertTrue(line.endswith(text), line)


class RefusalTests(ServiceCase):
    """`fail` and `reason_of`."""

    def test_one_line(self) -> None:
        for reason in ("why", "why\nindeed", "why\r\nindeed\n", "why\u2028indeed"):
            error = self.assertRaises(SystemExit, service.fail, reason)
            self.assertIn("why", self.one_line(error))

    def test_twistd_can_clean_up(self) -> None:
        """It catches an `Exception` to do so; what it lets out ends the program with the line."""
        self.assertIsInstance(self.assertRaises(Refusal, service.fail, "why"), Exception)

    def test_reasons(self) -> None:
        socket_error = OSError(98, "Address already in use")
        for error, text in (
            (ValueError("  why\n not"), "why"),
            (ValueError("\n"), "ValueError"),
            (KeyError(), "KeyError"),
            (CannotListenError("127.0.0.1", 9999, socket_error), str(socket_error)),
        ):
            self.assertEqual(reason_of(error), text)


class RunningCase(ServiceCase):
    """A service over a server in memory."""

    def start(
        self,
        *,
        tls: Sequence[tuple[str, FakeTLS]] = (),
        files: Sequence[tuple[str, FakeFile]] = (),
        limits: Limits | None = None,
        watchdog: str = "",
        router: Router | None = None,
    ) -> None:
        """Make the service and start it; `signals` has what is called at each."""
        self.server = MemoryServer(limits=limits, routers=[router or Router()])
        self.clock = self.server.clock
        factory = self.server.factory
        self.signals: dict[int, Callable[[], object]] = {}
        self.stops: list[int] = []
        self.stopping: Deferred[None] = Deferred()
        self.port = FakePort(stopping=self.stopping)
        self.systemd = FakeSystemd(self)
        self.pool = FakePool()
        endpoint: Any = FakeEndpoint(self.port)
        credentials: Any = tls
        pool: Any = self.pool
        self.fresh = self.lines()
        self.service = ServerService(
            [("port", endpoint)],
            factory,
            tls=credentials,
            files=[
                *((name, each.reload) for name, each in files),
                *((name, each.reload) for name, each in tls),
            ],
            client_ca="/run/ca.pem",
            pool=pool,
            on_signal=self.signals.__setitem__,
            stop=self.stops.append,
            notifier=Notifier(
                self.systemd.environ(WATCHDOG_USEC=watchdog), 1, monotonic=lambda: 1000 * self.microseconds()
            ),
            wall=lambda: START + self.clock.seconds(),
        )
        self.service.startService()

    def microseconds(self) -> int:
        """The time of the steady clock."""
        return round(self.clock.seconds() * 1e6)

    def repeated(self) -> list[float]:
        """After how many seconds each of its timers is due, but the one that a server has without it."""
        others = [call.getTime() for call in MemoryServer().clock.getDelayedCalls()]
        return [call.getTime() for call in self.clock.getDelayedCalls() if call.getTime() not in others]


class ReloadTests(RunningCase):
    """SIGHUP."""

    def test_all_files(self) -> None:
        """And no client hears of it."""
        tls, users = FakeTLS(100), FakeFile()
        self.start(tls=[("--port a", tls)], files=[("--auth scram", users)])
        peer = self.server.connect()
        peer.receive()
        self.fresh()
        self.signals[signal.SIGHUP]()
        self.assertEqual((tls.reloads, users.reloads), (1, 1))
        self.assertEqual(self.fresh(), ["read anew: certificates, passwords and tokens"])
        self.assertEqual((peer.receive(), peer.closed), ([], False))

    def test_broken_files(self) -> None:
        """One line for each, with its option; the others are read all the same, and the last line says so."""
        tls, broken, users, tokens = FakeTLS(100), FakeTLS(100), FakeFile(), FakeFile()
        broken.error = ValueError("/run/cert.pem: not PEM")
        users.error = RuntimeError("/run/users: line 3 is broken\nbadly")
        self.start(
            tls=[("--port a", broken), ("--port b", tls)],
            files=[("--auth scram", users), ("--auth token", tokens)],
        )
        events = self.events()
        self.signals[signal.SIGHUP]()
        self.assertEqual([each.reloads for each in (tls, broken, users, tokens)], [1, 1, 1, 1])
        kept = "not read anew, the old stays in use: "
        self.assertEqual(
            [(event["log_level"], formatEvent(event)) for event in events],
            [
                (LogLevel.error, f"{kept}--auth scram: /run/users: line 3 is broken"),
                (LogLevel.error, f"{kept}--port a: /run/cert.pem: not PEM"),
                (LogLevel.info, "read anew, but for 2 of 4"),
            ],
        )
        # The file of another option, and one whose name only begins like it.
        for path, option in (("/run/ca.pem", "--client-ca"), ("/run/ca.pem2", "--port a")):
            broken.error, users.error = ValueError(f"{path}: not PEM"), None
            self.fresh()
            self.signals[signal.SIGHUP]()
            self.assertEqual(self.fresh(), [f"{kept}{option}: {path}: not PEM", "read anew, but for 1 of 4"])
        # What is mended is read the next time.
        broken.error = None
        self.signals[signal.SIGHUP]()
        self.assertEqual(self.fresh(), ["read anew: certificates, passwords and tokens"])

    def test_without_files(self) -> None:
        self.start()
        self.fresh()
        self.signals[signal.SIGHUP]()
        self.assertEqual(self.fresh(), ["nothing to read anew"])
        self.assertIsNone(self.server.factory.stats.certificate_days)

    def test_certificates_are_looked_at_at_once(self) -> None:
        tls = FakeTLS(10)
        self.start(tls=[("a", tls)])
        self.assertEqual(self.server.factory.stats.certificate_days, 10)
        tls.days = 90
        self.fresh()
        self.signals[signal.SIGHUP]()
        self.assertEqual(self.server.factory.stats.certificate_days, 90)
        self.assertEqual(len(self.fresh()), 1)


class CertificateTests(RunningCase):
    """Certificates that soon end."""

    def warnings(self) -> list[str]:
        return [line for line in self.fresh() if "certificate" in line]

    def test_fourteen_days_before(self) -> None:
        """From then on once a day; and the figure is there before."""
        self.start(tls=[("--port tls", FakeTLS(16))])
        self.assertEqual(self.warnings(), [])
        self.assertEqual(self.server.factory.stats.certificate_days, 16)
        for days in (15.0, 14.0):
            self.clock.advance(86400)
            self.assertEqual(self.warnings(), [])
            self.assertEqual(self.server.factory.stats.certificate_days, days)
        for days in (13.0, 12.0):
            self.clock.advance(86400)
            self.assertEqual(self.warnings(), [f"a certificate of --port tls ends in {days} days"])
            self.assertEqual(self.server.factory.stats.certificate_days, days)

    def test_at_the_start(self) -> None:
        """The first of several counts, and each has a line of its own; one that ended, too."""
        self.start(tls=[("--port a", FakeTLS(20)), ("--port b", FakeTLS(-2)), ("--metrics c", FakeTLS(13.9))])
        self.assertEqual(
            self.warnings(),
            [
                "a certificate of --port b has ended 2.0 days ago",
                "a certificate of --metrics c ends in 13.9 days",
            ],
        )
        self.assertEqual(self.server.factory.stats.certificate_days, -2)
        self.clock.advance(86400)
        self.assertEqual(len(self.warnings()), 2)

    def test_they_are_warnings(self) -> None:
        self.start(tls=[("a", FakeTLS(5))])
        events = self.events()
        self.clock.advance(86400)
        self.assertEqual([event["log_level"] for event in events], [LogLevel.warn])

    def test_one_that_has_ended(self) -> None:
        """No client takes it: that is an error, from the second on."""
        for days, level, text in (
            (1e-9, LogLevel.warn, "ends in 0.0 days"),
            (0, LogLevel.error, "has ended 0.0 days ago"),
            (-0.01, LogLevel.error, "has ended 0.0 days ago"),
            (-2.5, LogLevel.error, "has ended 2.5 days ago"),
        ):
            events = self.events()
            self.start(tls=[("--port a", FakeTLS(days))])
            found = [
                (event["log_level"], formatEvent(event)) for event in events if "days" in formatEvent(event)
            ]
            self.assertEqual(found, [(level, f"a certificate of --port a {text}")])
            self.assertEqual(self.server.factory.stats.certificate_days, round(days, 1))

    def test_nobody_looks_without_tls(self) -> None:
        self.start()
        self.assertEqual(self.repeated(), [0.25])
        self.assertIsNone(self.server.factory.stats.certificate_days)

    def test_nobody_looks_after_the_end(self) -> None:
        self.start(tls=[("a", FakeTLS(5))])
        self.stopping.callback(None)
        self.successResultOf(self.service.stopService())
        self.fresh()
        self.clock.advance(3 * 86400)
        self.assertEqual(self.warnings(), [])


class StopTests(RunningCase):
    """The end: nobody new, all are told, the rest is cut off."""

    def codes(self, *peers: Any) -> list[list[str]]:
        """The codes of the errors that peers got."""
        return [[error["code"] for error in peer.receive() if error["type"] == "error"] for peer in peers]

    def test_the_pool_runs_meanwhile(self) -> None:
        """Until the last client is gone: a password may still be checked."""
        self.start()
        self.assertTrue(self.pool.running)
        peer = self.server.connect()
        stopped = self.service.stopService()
        self.stopping.callback(None)
        self.assertTrue(self.pool.running)
        peer.close()
        self.successResultOf(stopped)
        self.assertFalse(self.pool.running)

    def test_without_a_pool(self) -> None:
        endpoint: Any = FakeEndpoint(FakePort())
        service = ServerService([("port", endpoint)], TCPJSONServerFactory(Loop()))
        service.startService()
        self.successResultOf(service.stopService())

    def test_clients_are_told(self) -> None:
        """With nothing listening any more."""
        self.start()
        peers = [self.server.connect(), self.server.connect()]
        self.assertEqual(self.codes(*peers), [[], []])
        self.fresh()
        stopped = self.service.stopService()
        self.assertFalse(self.port.listening)
        self.assertEqual(self.fresh(), ["shutting down: 2 connections"])
        self.assertEqual(self.codes(*peers), [["going_away"], ["going_away"]])
        self.stopping.callback(None)
        self.server.advance(1)
        self.assertEqual([peer.closed for peer in peers], [True, True])
        peers[0].close()
        self.assertNoResult(stopped)
        peers[1].close()
        self.successResultOf(stopped)

    def test_a_port_that_is_slow_to_stop(self) -> None:
        """The clients need not wait for it; the end does."""
        self.start()
        peer = self.server.connect()
        peer.receive()
        stopped = self.service.stopService()
        self.assertEqual(self.codes(peer), [["going_away"]])
        self.server.advance(1)
        peer.close()
        self.assertNoResult(stopped)
        self.stopping.callback(None)
        self.successResultOf(stopped)

    def test_a_port_that_cannot_stop(self) -> None:
        """The server ends all the same."""
        self.start()
        stopped = self.service.stopService()
        self.stopping.errback(Failure(OSError("never")))
        self.successResultOf(stopped)
        # Nobody waits for the error; it is logged when it is collected.
        gc.collect()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_a_signal(self) -> None:
        """It stops the reactor, which stops the service; another one ends it at once."""
        for number, other in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)):
            self.start()
            peer = self.server.connect()
            self.signals[number]()
            self.assertEqual(self.stops, [number])
            stopped = self.service.stopService()
            self.stopping.callback(None)
            self.assertFalse(peer.aborted)
            self.signals[other]()
            self.assertEqual(self.stops, [number])
            self.assertTrue(peer.aborted)
            peer.close()
            self.successResultOf(stopped)

    def test_two_signals_at_once(self) -> None:
        """Before the reactor has stopped the service, the second already counts as one."""
        self.start()
        peer = self.server.connect()
        self.signals[signal.SIGTERM]()
        self.signals[signal.SIGINT]()
        self.assertEqual((self.stops, peer.aborted), ([signal.SIGTERM], True))

    def test_a_signal_to_a_service_that_stops(self) -> None:
        """Whatever had it stop: it does not wait for the clients."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.start()
            peer = self.server.connect()
            self.service.stopService()
            self.signals[number]()
            self.assertEqual((self.stops, peer.aborted), ([], True))

    def test_the_grace_period(self) -> None:
        """A client that takes nothing is cut off when it is over."""
        self.start(limits=Limits(grace=3))
        peer = self.server.connect()
        peer.stop_reading()
        self.service.stopService()
        self.server.advance(2.875)
        self.assertFalse(peer.aborted)
        self.server.advance(0.125)
        self.assertTrue(peer.aborted)


class StopHooksTests(RunningCase):
    """What an application has to do when its clients go, and the server."""

    def setUp(self) -> None:
        self.seen: list[str] = []
        self.leaving: list[Deferred[None]] = []
        self.ending: list[Deferred[None]] = []
        self.router = Router()

        @self.router.on_disconnect
        async def leave(session: Any) -> None:
            self.leaving.append(Deferred())
            await self.wait("leave", self.leaving[-1])

        @self.router.on_stop
        async def end(server: Any) -> None:
            self.ending.append(Deferred())
            await self.wait("end", self.ending[-1])

    async def wait(self, what: str, waiting: Deferred[None]) -> None:
        try:
            await waiting
        except CancelledError:
            self.seen.append(f"{what} cancelled")
            raise
        self.seen.append(f"{what} done")

    def end(self) -> tuple[Deferred[Any], MemoryPeer]:
        """A service that stops, and its only client, who has gone; with what is still to be done."""
        self.start(router=self.router, limits=Limits(handler_timeout=30, grace=5))
        peer = self.server.connect()
        stopped = self.service.stopService()
        self.server.stop()
        self.stopping.callback(None)
        self.server.advance(1)
        return stopped, peer

    def test_it_waits_for_them(self) -> None:
        stopped, peer = self.end()
        peer.close()
        self.server.advance(20)
        self.assertNoResult(stopped)
        self.assertTrue(self.pool.running)
        self.leaving[0].callback(None)
        self.assertNoResult(stopped)
        self.ending[0].callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.seen, ["leave done", "end done"])
        self.assertFalse(self.pool.running)

    def test_it_waits_no_longer_than_they_may_take(self) -> None:
        stopped, peer = self.end()
        peer.close()
        self.server.advance(30.2)
        self.assertNoResult(stopped)
        self.server.advance(30.2)
        self.successResultOf(stopped)
        self.assertEqual(self.seen, ["leave cancelled", "end cancelled"])

    def test_a_second_signal(self) -> None:
        """Neither for those that wait then, nor for those of the clients that it cuts off."""
        stopped, peer = self.end()
        self.signals[signal.SIGTERM]()
        self.assertTrue(peer.aborted)
        self.assertNoResult(stopped)
        peer.close()
        self.successResultOf(stopped)
        self.assertEqual(self.seen, ["leave cancelled", "end cancelled"])

    def test_a_second_signal_while_they_wait(self) -> None:
        stopped, peer = self.end()
        peer.close()
        self.assertNoResult(stopped)
        self.signals[signal.SIGINT]()
        self.successResultOf(stopped)
        self.assertEqual(self.seen, ["leave cancelled", "end cancelled"])

    def test_a_start_that_fails(self) -> None:
        """One line says whose fault it is, and nothing listens."""
        router = Router()

        @router.on_start
        def start(server: Any) -> None:
            raise ValueError("no such\nlevel")

        factory = TCPJSONServerFactory(Loop(), routers=[router])
        first = FakePort()

        class Listens:
            """As a real endpoint does it: the factory starts before its port listens."""

            def listen(self, factory: Any) -> Deferred[Any]:
                return maybeDeferred(factory.doStart)

        endpoints: Any = [("first", FakeEndpoint(first)), ("second", Listens())]
        service = ServerService(endpoints, factory)
        line = self.one_line(self.assertRaises(SystemExit, service.startService))
        self.assertIn("--handlers: on_start: ", line)
        self.assertTrue(line.endswith("start: ValueError: no such level"), line)
        self.assertFalse(first.listening)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.flushLoggedErrors(StartFailed), [])


class SystemdTests(RunningCase):
    """What systemd is told, and when."""

    def test_it_starts(self) -> None:
        """Once, when all is listened on."""
        systemd = FakeSystemd(self)
        last: Deferred[FakePort] = Deferred()
        endpoints: list[Any] = [FakeEndpoint(FakePort(UNIXAddress(b"/run/x"))), FakeEndpoint(None)]
        endpoints[1].listen = lambda factory: last
        service = ServerService(
            [("port", each) for each in endpoints],
            TCPJSONServerFactory(Loop()),
            notifier=Notifier(systemd.environ(), 1),
        )
        service.privilegedStartService()
        self.assertEqual(systemd.told(), [])
        last.callback(FakePort(IPv4Address("TCP", "127.0.0.1", 4711)))
        service.startService()
        self.assertEqual(systemd.told(), [["READY=1", "STATUS=listening on /run/x, 127.0.0.1:4711"]])

    def test_it_cannot_start(self) -> None:
        systemd = FakeSystemd(self)
        endpoint: Any = FakeEndpoint(ValueError("no"))
        service = ServerService(
            [("port", endpoint)], TCPJSONServerFactory(Loop()), notifier=Notifier(systemd.environ(), 1)
        )
        self.assertRaises(Refusal, service.startService)
        self.assertEqual(systemd.told(), [])

    def test_it_reads_files_anew(self) -> None:
        """It says so before it begins, and that it is ready when it is done, whatever came of it."""
        users = FakeFile()
        told: list[list[list[str]]] = []
        users.reload = lambda: told.append(self.systemd.told())  # type: ignore[method-assign]  # for one file
        tokens = FakeFile()
        self.start(files=[("--auth scram", users), ("--auth token", tokens)])
        ready = ["READY=1", "STATUS=listening on somewhere"]
        self.assertEqual(self.systemd.told(), [ready])
        self.clock.advance(2.5)
        self.signals[signal.SIGHUP]()
        self.assertEqual(told, [[["RELOADING=1", "MONOTONIC_USEC=2500000"]]])
        self.assertEqual(self.systemd.told(), [ready])
        tokens.error = ValueError("/run/tokens: line 3\nis broken")
        self.signals[signal.SIGHUP]()
        self.assertEqual(
            self.systemd.told(),
            [["READY=1", f"{ready[1]}; not read anew: --auth token: /run/tokens: line 3"]],
        )
        tokens.error = None
        self.signals[signal.SIGHUP]()
        self.assertEqual(self.systemd.told(), [ready])

    def test_it_stops(self) -> None:
        """The time that it may take is told, too; and then it is not ready any more."""
        users = FakeFile()
        self.start(files=[("--auth scram", users)], limits=Limits(grace=30))
        peer = self.server.connect()
        self.systemd.told()
        self.signals[signal.SIGTERM]()
        self.signals[signal.SIGHUP]()
        self.assertEqual((users.reloads, self.systemd.told()), (1, []))
        stopped = self.service.stopService()
        self.assertEqual(
            self.systemd.told(),
            [["STOPPING=1", "EXTEND_TIMEOUT_USEC=35000000", "STATUS=shutting down: 1 connections"]],
        )
        self.signals[signal.SIGHUP]()
        self.assertEqual((users.reloads, self.systemd.told()), (2, []))
        self.stopping.callback(None)
        peer.close()
        self.successResultOf(stopped)
        self.assertEqual(self.systemd.told(), [])

    def test_it_is_alive(self) -> None:
        """From the start to the end of the last connection."""
        self.start(watchdog="3000000")
        peer = self.server.connect()
        alive = ["WATCHDOG=1"]
        self.assertIn(alive, self.systemd.told())
        for seconds, count in ((1.4, 0), (0.2, 1), (1.5, 1), (1.5, 1)):
            self.clock.advance(seconds)
            self.assertEqual(self.systemd.told(), [alive] * count)
        stopped = self.service.stopService()
        self.stopping.callback(None)
        self.systemd.told()
        self.clock.advance(1.5)
        self.assertEqual(self.systemd.told(), [alive])
        peer.close()
        self.successResultOf(stopped)
        self.clock.advance(10)
        self.assertEqual(self.systemd.told(), [])

    def test_nobody_watches(self) -> None:
        self.start()
        self.assertEqual(self.repeated(), [0.25])
        self.systemd.told()
        self.clock.advance(100)
        self.assertEqual(self.systemd.told(), [])


class MetricsTests(ServiceCase):
    """The port of `--metrics`."""

    def service(
        self, metrics: object, *results: object, description: str = "tcp:9100", **options: Any
    ) -> ServerService:
        """A service whose endpoints come to some results, that of the metrics to the first."""
        self.endpoints: list[Any] = [FakeEndpoint(result) for result in results]
        self.metrics: Any = FakeEndpoint(metrics)
        self.site = object()
        shown: Any = description, self.metrics, self.site
        return ServerService(
            [(f"port {n}", end) for n, end in enumerate(self.endpoints)],
            TCPJSONServerFactory(Loop()),
            metrics=shown,
            **options,
        )

    def test_it_listens_after_the_others(self) -> None:
        lines = self.lines()
        ports = [FakePort(IPv4Address("TCP", "127.0.0.1", number)) for number in (1, 2, 9100)]
        service = self.service(ports[2], *ports[:2])
        service.privilegedStartService()
        service.startService()
        self.assertEqual(
            lines(),
            [
                "listening on 127.0.0.1:1",
                "listening on 127.0.0.1:2",
                "metrics on http://127.0.0.1:9100/",
            ],
        )
        self.assertIs(self.metrics.factory, self.site)
        self.assertIs(self.endpoints[1].factory, service.factory)
        # What systemd is told is where clients go.
        self.assertEqual(service._listening(), "listening on 127.0.0.1:1, 127.0.0.1:2")

    def test_where_it_is(self) -> None:
        secure: Any = FakeTLS(100)
        for address, tls, where in (
            (IPv6Address("TCP", "::1", 80), (), "http://[::1]:80/"),
            (UNIXAddress(b"/run/metrics"), (), "/run/metrics"),
            (UNIXAddress("/run/metrics"), (), "/run/metrics"),
            (IPv4Address("TCP", "127.0.0.1", 1), [("--metrics ssl:1", secure)], "https://127.0.0.1:1/"),
            (IPv4Address("TCP", "127.0.0.1", 1), [("--port ssl:1", secure)], "http://127.0.0.1:1/"),
        ):
            events = self.events()
            self.service(FakePort(address), FakePort(), tls=tls).startService()
            [event] = [event for event in events if "url" in event]
            self.assertEqual(formatEvent(event), f"metrics on {where}")
            self.assertEqual((event["event"], event["url"]), ("metrics", where))

    def test_one_that_is_open_to_all(self) -> None:
        """Whoever may be a client: a warning, but not for who is on this machine."""
        warning = "whoever reaches --metrics tcp:9100 sees who is connected: nobody is asked who it is"
        addresses: list[tuple[Any, bool]] = [
            (IPv4Address("TCP", "127.0.0.1", 1), False),
            (IPv6Address("TCP", "::1", 1), False),
            (UNIXAddress(b"/run/x"), False),
            (IPv4Address("TCP", "0.0.0.0", 1), True),
            (IPv4Address("TCP", "192.0.2.7", 1), True),
            (IPv6Address("TCP", "::", 1), True),
        ]
        for asks in (False, True):
            for address, warned in addresses:
                events = self.events()
                service = self.service(FakePort(address), FakePort())
                authenticator: Any = object() if asks else None
                service.factory.authenticator = authenticator
                service.startService()
                warnings = [event for event in events if event["log_level"] is LogLevel.warn]
                self.assertEqual([formatEvent(event) for event in warnings], [warning] * warned)
                self.assertEqual([event["event"] for event in warnings], ["open_to_all"] * warned)

    def test_it_cannot_listen(self) -> None:
        """Nothing is served then, and one line says why."""
        ports = [FakePort("a"), FakePort("b")]
        error = CannotListenError("127.0.0.1", 9100, OSError(98, "Address already in use"))
        service = self.service(error, *ports)
        line = self.one_line(self.assertRaises(Refusal, service.privilegedStartService))
        self.assertIn("cannot listen on --metrics tcp:9100: ", line)
        self.assertIn("Address already in use", line)
        self.assertEqual([port.listening for port in ports], [False, False])

    def test_another_cannot_listen(self) -> None:
        service = self.service(FakePort("metrics"), FakePort("a"), OSError(13, "Permission denied"))
        line = self.one_line(self.assertRaises(Refusal, service.privilegedStartService))
        self.assertEqual(line, "tcpjson: cannot listen on --port port 1: [Errno 13] Permission denied")
        self.assertIsNone(self.metrics.factory)

    def test_another_that_finds_out_later(self) -> None:
        """Nothing stays open then, the metrics neither."""
        metrics, port = FakePort("metrics"), FakePort("a")
        service = self.service(metrics, port, None)
        later: Deferred[Any] = Deferred()
        self.endpoints[1].listen = lambda factory: later
        service.privilegedStartService()
        self.assertEqual((metrics.listening, port.listening), (True, True))
        later.errback(OSError(13, "Permission denied"))
        self.assertEqual((metrics.listening, port.listening), (False, False))

    def test_it_stops_last(self) -> None:
        """To the last it can be asked whether the server drains; the end waits for it."""
        stopping, closing = Deferred[None](), Deferred[None]()
        metrics, port = FakePort("metrics", closing), FakePort("a", stopping)
        service = self.service(metrics, port)
        service.startService()
        connection = service.factory.buildProtocol(None)
        connection.makeConnection(StringTransport())
        stopped = service.stopService()
        self.assertEqual((port.listening, metrics.listening), (False, True))
        self.assertTrue(service.factory.draining)
        stopping.callback(None)
        self.assertTrue(metrics.listening)
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertFalse(metrics.listening)
        self.assertNoResult(stopped)
        closing.callback(None)
        self.successResultOf(stopped)

    def test_hooks_of_the_end_come_before(self) -> None:
        waiting: Deferred[None] = Deferred()
        router = Router()
        router.on_stop(lambda server: waiting)
        metrics = FakePort("metrics")
        endpoint: Any = FakeEndpoint(FakePort("a"))
        factory = TCPJSONServerFactory(Loop(), routers=[router])
        ours: Any = FakeEndpoint(metrics)
        site: Any = object()
        service = ServerService([("port", endpoint)], factory, metrics=("tcp:1", ours, site))
        service.startService()
        # As the last port does it.
        factory.doStart()
        factory.doStop()
        stopped = service.stopService()
        self.assertNoResult(stopped)
        self.assertTrue(metrics.listening)
        waiting.callback(None)
        self.assertFalse(metrics.listening)
        self.successResultOf(stopped)


class LagTests(RunningCase):
    """How late the reactor is."""

    def test_while_it_runs(self) -> None:
        self.start()
        lag = self.server.factory.stats.lag
        self.clock.advance(0.25)
        self.assertEqual((lag.count, lag.sum), (1, 0.0))
        self.clock.advance(1.0)
        self.assertEqual((lag.count, lag.sum), (2, 0.75))
        peer = self.server.connect()
        stopped = self.service.stopService()
        self.stopping.callback(None)
        # It drains, and who is still there is served.
        self.clock.advance(0.25)
        self.assertEqual(lag.count, 3)
        peer.close()
        self.successResultOf(stopped)
        self.clock.advance(5)
        self.assertEqual(lag.count, 3)

    def test_only_with_the_service(self) -> None:
        server = MemoryServer()
        server.advance(5)
        self.assertEqual(server.factory.stats.lag.count, 0)
        server.stop()


class LogTests(ServiceCase):
    """How the log is written."""

    def service(self, error: Exception | None = None) -> ServerService:
        self.attached: list[object] = []
        case = self

        class Logs:
            def attach(self, application: object) -> None:
                case.attached.append(application)
                if error is not None:
                    raise error

        endpoint: Any = FakeEndpoint(FakePort())
        logs: Any = Logs()
        return ServerService([("port", endpoint)], TCPJSONServerFactory(Loop()), logs=logs)

    def test_it_is_told_of_the_application(self) -> None:
        """Once, before the service starts."""
        service = self.service()
        self.assertEqual(self.attached, [])
        parent = MultiService()
        service.setServiceParent(parent)
        self.assertEqual(self.attached, [parent])
        self.assertIs(service.parent, parent)
        parent.startService()
        self.assertTrue(service.running)
        self.assertEqual(self.attached, [parent])

    def test_a_file_that_cannot_be_written(self) -> None:
        service = self.service(PermissionError(13, "Permission denied", "/run/x.log"))
        line = self.one_line(self.assertRaises(Refusal, service.setServiceParent, MultiService()))
        self.assertEqual(line, "tcpjson: --logfile /run/x.log: Permission denied")

    def test_without(self) -> None:
        endpoint: Any = FakeEndpoint(FakePort())
        service = ServerService([("port", endpoint)], TCPJSONServerFactory(Loop()))
        parent = MultiService()
        service.setServiceParent(parent)
        self.assertEqual(list(parent), [service])


class LateHookTests(RunningCase):
    """Hooks that fail when nobody is left."""

    def test_all_is_said(self) -> None:
        """The log is told of them before the end, and no timer stays."""
        waits: list[Deferred[None]] = []

        def hook(subject: object) -> Deferred[None]:
            waits.append(Deferred())
            return waits[-1]

        router = Router()
        router.on_disconnect(hook)
        self.start(router=router)
        events: list[LogEvent] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for peer in [self.server.connect() for _ in range(3)]:
            peer.close()
        stopped = self.service.stopService()
        self.stopping.callback(None)
        self.server.factory.doStop()
        for deferred in waits:
            deferred.errback(ValueError("what it is"))
        self.successResultOf(stopped)
        failed = [event for event in events if event.get("event") == "hook_failed"]
        self.assertEqual(sum(1 + event.get("unsaid", 0) for event in failed), 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class SocketTests(ServiceCase):
    """On the loopback, port 0."""

    def service(self, loop: Loop, *descriptions: str, metrics: str | None = None) -> ServerService:
        endpoints: Sequence[Any] = [(text, port_from(text, loop).endpoint) for text in descriptions]
        shown: Any = None
        if metrics is not None:
            shown = metrics, open_metrics_port(metrics, loop).endpoint, Factory.forProtocol(Protocol)
        return ServerService(endpoints, TCPJSONServerFactory(loop), metrics=shown)

    def test_metrics_that_cannot_listen(self) -> None:
        """Their port is taken: the others are closed, and one line says so."""
        loop = Loop()
        self.addCleanup(loop.close)
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        number = taken.getsockname()[1]
        lines = self.lines()
        service = self.service(loop, "tcp:0:interface=127.0.0.1", metrics=f"tcp:{number}")
        line = self.one_line(self.assertRaises(SystemExit, service.privilegedStartService))
        self.assertTrue(line.startswith(f"tcpjson: cannot listen on --metrics tcp:{number}: "), line)
        self.assertIn("in use", line)
        self.assertEqual(len(lines()), 1)
        loop.settle()
        self.assertEqual(loop.readers, set())

    def test_metrics_on_loopback(self) -> None:
        loop = Loop()
        lines = self.lines()
        service = self.service(loop, "tcp:0:interface=127.0.0.1", metrics="tcp:0")
        service.startService()
        _, line = lines()
        match = re.fullmatch(r"metrics on http://127\.0\.0\.1:(\d+)/", line)
        assert match is not None
        socket.create_connection(("127.0.0.1", int(match[1]))).close()
        stopped = service.stopService()
        loop.settle()
        self.successResultOf(stopped)
        loop.settle()
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", int(match[1])), 1)
        self.assertEqual(loop.readers, set())

    def test_it_serves(self) -> None:
        loop = Loop()
        lines = self.lines()
        service = self.service(loop, "tcp:0:interface=127.0.0.1", "haproxy:tcp:0:interface=127.0.0.1")
        service.privilegedStartService()
        ports = [int(line.rpartition(":")[2]) for line in lines()]
        self.assertEqual(len(set(ports) - {0}), 2)
        for port, header in zip(ports, (b"", b"PROXY TCP4 192.0.2.7 192.0.2.8 1000 2000\r\n"), strict=True):
            client = socket.create_connection(("127.0.0.1", port))
            self.addCleanup(client.close)
            wire = Wire(loop, client)
            wire.send(header)
            for _ in range(1000):
                if wire.take(1 << 16):
                    break
                loop.turn(0.01)
            self.assertIn(b'"welcome"', wire.data)
            self.assertEqual(b"192.0.2.7:1000" in wire.data, bool(header))
        stopped = service.stopService()
        service.factory.abort()
        loop.settle()
        self.successResultOf(stopped)
        self.assertEqual(loop.readers, set())

    def test_a_taken_port_leaves_nothing_behind(self) -> None:
        loop = Loop()
        self.addCleanup(loop.close)
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        number = taken.getsockname()[1]
        lines = self.lines()
        service = self.service(
            loop,
            "tcp:0:interface=127.0.0.1",
            f"tcp:{number}:interface=127.0.0.1",
            "tcp:0:interface=127.0.0.1",
        )
        line = self.one_line(self.assertRaises(SystemExit, service.privilegedStartService))
        self.assertIn(f"tcp:{number}", line)
        [listened] = lines()
        loop.settle()
        self.assertEqual(loop.readers, set())
        port = int(listened.rpartition(":")[2])
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", port), 1)
