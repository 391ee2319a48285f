"""The command line of `twistd tcpjson`, and the service that it makes."""

from __future__ import annotations

import io
import resource
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson import Limits, TCPJSONServerFactory, __version__, tap
from tcpjson.proxied import ProxiedEndpoint, ProxiedProtocol
from tcpjson.tap import Options, ServerService, endpoint_from, makeService, raise_file_limit
from tcpjson.test.wires import Loop, Wire, authority


class TapCase(SynchronousTestCase):
    def lines(self) -> list[str]:
        """The lines that `tap` logs from now on."""
        lines: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") == "tcpjson.tap":
                lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def one_line(self, error: SystemExit) -> str:
        """What the program says in its end; it is one line, and its status is 1."""
        self.assertIsInstance(error.code, str)
        text = str(error.code)
        self.assertTrue(text.startswith("tcpjson: "), text)
        self.assertEqual(len(text.splitlines()), 1, text)
        return text


class OptionsTests(TapCase):
    """What is taken, and what is refused in one line."""

    def parse(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(arguments)
        return options

    def refused(self, *arguments: str) -> str:
        return self.one_line(self.assertRaises(SystemExit, self.parse, *arguments))

    def test_defaults(self) -> None:
        options = self.parse()
        self.assertEqual(options["limits"], Limits())
        self.assertEqual(options["ports"], [])
        self.assertFalse(options["strict"])
        self.assertIsNone(options["send-buffer"])
        self.assertIsNone(options["receive-buffer"])

    def test_all(self) -> None:
        options = self.parse(
            *("--port", "tcp:1", "-p", "unix:/a", "--strict", "--max-length", "10", "--max-queue", "20"),
            *("--write-timeout", "0.5", "--frame-timeout", "7", "--handler-timeout", "8.25"),
            *("--send-buffer", "30", "--receive-buffer", "40"),
        )
        self.assertEqual(
            options["limits"],
            Limits(max_length=10, max_queue=20, write_timeout=0.5, frame_timeout=7, handler_timeout=8.25),
        )
        self.assertEqual(options["ports"], ["tcp:1", "unix:/a"])
        self.assertTrue(options["strict"])
        self.assertEqual((options["send-buffer"], options["receive-buffer"]), (30, 40))

    def test_options_are_not_shared(self) -> None:
        self.parse("--port", "tcp:1")
        self.assertEqual(self.parse()["ports"], [])

    def test_bad_numbers(self) -> None:
        sizes = ("max-length", "max-queue", "send-buffer", "receive-buffer")
        times = ("write-timeout", "frame-timeout", "handler-timeout")
        for name in sizes + times:
            wrong = ["", "x", "0", "-1", "1e3", " 1", "1 ", "\u0661", "0x10", "inf", "nan", "1_000", "9" * 40]
            wrong += ["1.5", "00"] if name in sizes else ["0.0", "1.", ".5", "1.5.5"]
            for value in wrong:
                line = self.refused(f"--{name}", value)
                self.assertIn(f"--{name}: ", line)
                self.assertIn(repr(value), line)

    def test_out_of_bounds(self) -> None:
        line = self.refused("--max-length", "268435457")
        self.assertIn("--max-length must be at most 268435456", line)
        self.assertEqual(self.parse("--max-length", "268435456")["limits"].max_length, 268435456)

    def test_buffers_that_no_socket_takes(self) -> None:
        """What `setsockopt` would refuse at every connection is refused at the start."""
        for name in ("send-buffer", "receive-buffer"):
            self.assertIn(f"--{name}", self.refused(f"--{name}", "2147483648"))
            self.assertEqual(self.parse(f"--{name}", "2147483647")[name], 2147483647)

    def test_unknown(self) -> None:
        self.assertIn("nonsense", self.refused("--nonsense"))
        self.refused("--strict=yes")
        self.refused("argument")
        self.refused("--max-length")

    def test_version(self) -> None:
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        error = self.assertRaises(SystemExit, self.parse, "--version")
        self.assertEqual((error.code, out.getvalue()), (0, f"tcpjson {__version__}\n"))

    def test_help(self) -> None:
        """Each option is in it, with its unit."""
        text = Options().getUsage(width=200)
        for name in ("port", "max-length", "max-queue", "write-timeout", "frame-timeout", "handler-timeout"):
            self.assertIn(f"--{name}=", text)
        self.assertIn("--strict", text)
        self.assertIn("tcp:9999:interface=127.0.0.1", text)


class EndpointTests(TapCase):
    """Endpoint strings."""

    def listens(self, description: str) -> tuple[Any, ...]:
        """How the memory reactor is told to listen: port, factory, backlog, interface."""
        memory = MemoryReactorClock()
        factory = TCPJSONServerFactory(memory)
        self.successResultOf(endpoint_from(description, memory).listen(factory))
        [listening] = memory.tcpServers or memory.unixServers
        return listening

    def test_backlog(self) -> None:
        for description, backlog in (
            ("tcp:0", 4096),
            ("tcp:0:interface=127.0.0.1", 4096),
            ("tcp6:0", 4096),
            ("tcp:0:backlog=7", 7),
            ("tcp:0:backlog=7:interface=127.0.0.1", 7),
            ("haproxy:tcp:0", 4096),
            ("haproxy:tcp:0:backlog=9", 9),
        ):
            self.assertEqual(self.listens(description)[2], backlog, description)

    def test_backlog_of_unix(self) -> None:
        for description, backlog in (
            ("unix:/run/x", 4096),
            ("unix:/run/x:backlog=3", 3),
            # A colon of its name.
            ("unix:/run/x\\:backlog\\=3", 4096),
            ("unix:address=/run/x\\:backlog=3", 4096),
            ("unix:address=/run/backlog=3", 4096),
        ):
            self.assertEqual(self.listens(description)[2], backlog, description)

    def test_interface(self) -> None:
        self.assertEqual(self.listens("tcp:9999")[3], "")
        self.assertEqual(self.listens("tcp:9999:interface=127.0.0.1")[3], "127.0.0.1")

    def test_kinds_without_a_backlog(self) -> None:
        """They are left as they are."""
        # There are no descriptors of systemd's here; a backlog it would not even know.
        self.assertRaises(IndexError, endpoint_from, "systemd:domain=INET:index=0", MemoryReactorClock())
        self.assertRaises(ValueError, endpoint_from, "nonsense:0", MemoryReactorClock())

    def test_haproxy_before_tls(self) -> None:
        pem = self.mktemp()
        Path(pem).write_bytes(authority().issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
        _, factory, backlog, interface = self.listens(
            f"haproxy:ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
        )
        self.assertIs(factory.protocol, ProxiedProtocol)
        self.assertIs(factory.wrappedFactory.protocol, TLSMemoryBIOFactory.protocol)
        self.assertEqual((backlog, interface), (4096, "127.0.0.1"))

    def test_haproxy(self) -> None:
        memory = MemoryReactorClock()
        self.assertIsInstance(endpoint_from("haproxy:tcp:0", memory), ProxiedEndpoint)
        self.assertIsInstance(endpoint_from("tcp:0", memory), TCP4ServerEndpoint)


class FileLimitTests(TapCase):
    """The soft limit of open files."""

    def setUp(self) -> None:
        self.limit = (1024, 4096)
        self.refuses: Exception | None = None
        self.patch(resource, "getrlimit", lambda kind: self.limit)
        self.patch(resource, "setrlimit", self.set_limit)

    def set_limit(self, kind: int, limit: tuple[int, int]) -> None:
        self.assertEqual(kind, resource.RLIMIT_NOFILE)
        if self.refuses is not None:
            raise self.refuses
        self.limit = limit

    def test_raised(self) -> None:
        raise_file_limit()
        self.assertEqual(self.limit, (4096, 4096))

    def test_high_enough(self) -> None:
        self.limit = (4096, 4096)
        self.refuses = AssertionError()
        raise_file_limit()

    def test_refused(self) -> None:
        lines = self.lines()
        self.refuses = ValueError("not allowed\nto raise")
        raise_file_limit()
        self.assertEqual(self.limit, (1024, 4096))
        self.assertEqual(len(lines), 1)
        self.assertIn("1024", lines[0])


class FakePort:
    """A listening port, as an endpoint gives it."""

    def __init__(self, address: Any, stopping: Deferred[None] | None = None) -> None:
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


class ServiceTests(TapCase):
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
        self.assertEqual(lines, ["listening on 127.0.0.1:4711"])
        self.assertIs(self.endpoints[0].factory, self.factory)
        self.assertTrue(service.running)

    def test_it_listens_without_privileges(self) -> None:
        lines = self.lines()
        service = self.service(
            FakePort(UNIXAddress(b"/run/x")), FakePort(UNIXAddress("/run/y")), FakePort("somewhere")
        )
        service.startService()
        self.assertEqual(lines, ["listening on /run/x", "listening on /run/y", "listening on somewhere"])

    def test_stop(self) -> None:
        stopping: Deferred[None] = Deferred()
        ports = [FakePort("a"), FakePort("b", stopping)]
        service = self.service(*ports)
        service.startService()
        stopped = service.stopService()
        assert stopped is not None
        self.assertEqual([port.listening for port in ports], [False, False])
        self.assertNoResult(stopped)
        stopping.callback(None)
        self.successResultOf(stopped)
        self.assertFalse(service.running)
        self.successResultOf(service.stopService())

    def test_one_cannot_listen(self) -> None:
        """The others stop, and one line says which and why."""
        ports = [FakePort("a"), FakePort("b")]
        error = CannotListenError("127.0.0.1", 9999, OSError(98, "Address already in use"))
        service = self.service(ports[0], ports[1], error, FakePort("never"))
        line = self.one_line(self.assertRaises(SystemExit, service.privilegedStartService))
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
            line = self.one_line(self.assertRaises(SystemExit, service.startService))
            self.assertTrue(line.endswith(text), line)


class MakeServiceTests(TapCase):
    """The whole way from the command line to a socket."""

    def setUp(self) -> None:
        real: Any = reactor
        # It is changed for the process; a test puts it back.
        self.patch(real, "seconds", real.seconds)
        self.patch(tap, "raise_file_limit", lambda: None)

    def make(self, *arguments: str) -> ServerService:
        options = Options()
        options.parseOptions(arguments)
        return makeService(options)

    def test_a_steady_clock(self) -> None:
        self.make()
        real: Any = reactor
        before = time.monotonic()
        self.assertTrue(before <= real.seconds() <= time.monotonic())

    def test_options_reach_the_factory(self) -> None:
        service = self.make("--max-length", "100", "--send-buffer", "4096", "--strict")
        factory = service.factory
        self.assertEqual(factory.limits.max_length, 100)
        self.assertIn((socket.SO_SNDBUF, 4096), factory._buffers)
        self.assertIn((socket.SO_RCVBUF, None), factory._buffers)
        [refused] = factory.codec.decode([b"text"])
        self.assertEqual(type(refused).__name__, "Refused")
        self.assertIs(factory.clock, reactor)

    def test_default_port(self) -> None:
        [(description, endpoint)] = self.make()._endpoints
        self.assertEqual(description, "tcp:9999:interface=127.0.0.1")
        self.assertIsInstance(endpoint, TCP4ServerEndpoint)

    def test_named_ports_replace_it(self) -> None:
        service = self.make("--port", "tcp:1", "--port", "haproxy:tcp:2")
        self.assertEqual([description for description, _ in service._endpoints], ["tcp:1", "haproxy:tcp:2"])

    def test_a_number_alone(self) -> None:
        line = self.one_line(self.assertRaises(SystemExit, self.make, "--port", "9994"))
        self.assertIn("did you mean tcp:9994?", line)

    def test_a_queue_shorter_than_a_message(self) -> None:
        lines = self.lines()
        self.make("--max-queue", "1048576")
        self.assertEqual(lines, [])
        self.make("--max-queue", "1048575")
        self.assertEqual(len(lines), 1)
        self.assertIn("--max-queue is less than --max-length", lines[0])

    def test_bad_ports(self) -> None:
        for description in (
            *("nonsense:1", "tcp", "tcp:x", "tcp:1:nonsense=2", "haproxy:", "haproxy:nonsense:1", ""),
            *("ssl:1:privateKey=/nonexistent", "unix", "systemd:domain=INET:index=0"),
        ):
            line = self.one_line(self.assertRaises(SystemExit, self.make, "--port", description))
            self.assertIn(f"--port {description}: ", line)


class SocketTests(TapCase):
    """On the loopback, port 0."""

    def service(self, loop: Loop, *descriptions: str) -> ServerService:
        endpoints: Sequence[Any] = [(text, endpoint_from(text, loop)) for text in descriptions]
        return ServerService(endpoints, TCPJSONServerFactory(loop))

    def test_it_serves(self) -> None:
        loop = Loop()
        lines = self.lines()
        service = self.service(loop, "tcp:0:interface=127.0.0.1", "haproxy:tcp:0:interface=127.0.0.1")
        service.privilegedStartService()
        ports = [int(line.rpartition(":")[2]) for line in lines]
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
        loop.settle()
        self.successResultOf(stopped)
        for connection in tuple(service.factory.clients):
            connection.transport.abortConnection()
        loop.settle()
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
        self.assertEqual(len(lines), 1)
        loop.settle()
        self.assertEqual(loop.readers, set())
        port = int(lines[0].rpartition(":")[2])
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", port), 1)
