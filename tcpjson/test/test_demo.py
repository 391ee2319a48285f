"""The demo: each step with a server that does it right, and with one that does not."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import twisted.internet
from msgspec import Raw
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson import demo
from tcpjson._version import __version__
from tcpjson.client import Client
from tcpjson.core.errors import Forbidden
from tcpjson.core.handshake import ServerInfo
from tcpjson.core.limits import Limits
from tcpjson.core.messages import Broadcast, Echo, GetStats, Message, Ping
from tcpjson.demo import SECONDS, Demo, Inbox, Output, Wrong
from tcpjson.handlers import Router, Session
from tcpjson.server import TCPJSONServerFactory
from tcpjson.testing import MemoryServer

NONCE = "abcd1234"

Handler = Callable[[Session, Any], dict[str, Any] | None]


class Custom(Message, tag="demo"):
    """The type that no server knows."""


def steps(lines: list[str]) -> list[str]:
    """The steps that lines tell of."""
    return [line[:11].rstrip() for line in lines if line[:11].strip()]


def server_with(kind: type[Message], handler: Handler) -> MemoryServer:
    """A server that handles one type in its own way."""
    router = Router()
    router.add(kind, handler)
    return MemoryServer(routers=[router])


def says(message: dict[str, Any]) -> Handler:
    """The handler with this answer."""
    return lambda session, request: message


def repeats(count: int, to_the_sender: bool = False) -> Handler:
    """A broadcast that comes so many times."""

    def handler(session: Session, request: Broadcast) -> dict[str, Any]:
        message = {"type": "broadcast", "content": request.content, "from_client": session.client_id}
        for _ in range(count):
            session.broadcast(message)
        if to_the_sender:
            session.send(message)
        return {"type": "broadcast_sent", "recipients": 2}

    return handler


class DemoTests(SynchronousTestCase):
    """The steps."""

    def show(self, server: MemoryServer, make: Callable[..., Client] | None = None) -> list[str]:
        """Show a server; returns the lines. What is open afterwards fails the test."""
        self.lines: list[str] = []
        self.demo = Demo(make or server.client, self.lines.append, NONCE)
        running = Deferred.fromCoroutine(self.demo.run()).addTimeout(SECONDS, server.clock)
        try:
            server.result(running, SECONDS)
        finally:
            server.settle()
            self.assertEqual(server.factory.connections, set())
        return self.lines

    def goes_wrong(
        self, expected: str, server: MemoryServer, make: Callable[..., Client] | None = None
    ) -> None:
        """See that it ends with an error, and tells of no later step."""
        error = self.assertRaises(Wrong, self.show, server, make)
        self.assertEqual(str(error), expected)
        names = [name for name, _ in self.demo.steps]
        reached = names[: names.index(expected.partition(":")[0]) + 1]
        self.assertIn(steps(self.lines), (reached, reached[:-1]))

    def test_all_is_well(self) -> None:
        lines = self.show(MemoryServer())
        self.assertEqual(steps(lines), [name for name, _ in self.demo.steps])
        self.assertEqual(
            lines[:4],
            [
                f"welcome     * the server is tcpjson/{__version__}, our three clients are",
                "            * 127.0.0.1:50000, 127.0.0.1:50001, 127.0.0.1:50002",
                'ping        > {"type": "ping", "timestamp": "abcd1234"}',
                "            < pong, after 0.0 ms",
            ],
        )
        self.assertEqual(
            lines[-3:],
            [
                "            * RequestTimeout: no reply in time",
                "            * the next ping is answered",
                "end         * all are closed; a request now fails with Disconnected: the client was closed",
            ],
        )

    def test_a_login(self) -> None:
        self.goes_wrong(
            "welcome: the server wants a login, which the demo cannot do: try python -m tcpjson.console"
            " --user NAME (or --token-file FILE)",
            MemoryServer(checkers=[InMemoryUsernamePasswordDatabaseDontUse(ann=b"pw")]),
        )

    def test_what_is_shown(self) -> None:
        lines = self.show(MemoryServer())
        for line in (
            '            < {"x": 1, "y": [2, 3], "z": null, "deep": {"yes": true}}',
            '            < "Grüße, 你好, \N{WAVING HAND SIGN}"',
            "            < [18446744073709551615, -9223372036854775808, 0.30000000000000004]",
            "            < from 127.0.0.1:50000: Hello all clients!",
            '            < {"connected_clients": 3, "total_messages": 15, "uptime_seconds": 0}',
            "            < response, with that message inside",
            '            < {"type": "echo", "original_text": "This is no JSON. abcd1234"}',
            "            < bad_message: hello comes once, and before all but auth and ping",
        ):
            self.assertIn(line, lines)

    def test_compression_shows(self) -> None:
        """What is said of it is what the server counts."""
        lines = self.show(MemoryServer())
        [line] = [line for line in lines if " characters each way" in line]
        self.assertRegex(line, r"^ {12}\* 100000 characters each way; the server counted \d{4} bytes$")

    def test_no_more_than_the_server_takes(self) -> None:
        lines = self.show(MemoryServer(limits=Limits(max_length=1000)))
        self.assertTrue(any("* 500 characters each way;" in line for line in lines))

    def test_a_strict_server(self) -> None:
        lines = self.show(MemoryServer(strict=True))
        self.assertIn("            < unknown_type: no such type: demo", lines)
        self.assertIn("            < bad_json", lines)
        self.assertEqual(lines.count("            * the server is strict"), 2)

    def test_no_compression(self) -> None:
        lines = self.show(MemoryServer(compress_over=None))
        self.assertIn("compression * left out: the server offers none", lines)

    def test_a_classic_server(self) -> None:
        self.patch(Demo, "_server", ServerInfo())
        lines = self.show(MemoryServer())
        self.assertEqual(lines[0], "welcome     * the server is a classic one, our three clients are")
        self.assertIn("error       * left out: a classic server tells of no errors", lines)

    def test_wrong_pongs(self) -> None:
        self.goes_wrong('ping: expected "pong", came "pang"', server_with(Ping, says({"type": "pang"})))
        pong = {"type": "pong", "ping_timestamp": 1}
        self.goes_wrong('ping: expected "abcd1234", came 1', server_with(Ping, says(pong)))

    def test_an_error(self) -> None:
        def handler(session: Session, request: Ping) -> None:
            raise Forbidden("no pings")

        self.goes_wrong(
            "ping: expected no error, came Forbidden: no pings",
            server_with(Ping, handler),
        )

    def test_wrong_echoes(self) -> None:
        wrong = {"type": "echo_response", "content": None}
        self.goes_wrong('text: expected "Hello Server!", came null', server_with(Echo, says(wrong)))

    def test_digits_that_are_lost(self) -> None:
        def handler(session: Session, request: Echo) -> dict[str, Any]:
            content = bytes(request.content).replace(b"18446744073709551615", b"18446744073709551616.0")
            return {"type": "echo_response", "content": Raw(content)}

        self.goes_wrong(
            "numbers: expected [18446744073709551615, -9223372036854775808, 0.30000000000000004],"
            " came [1.8446744073709552e+19, -9223372036854775808, 0.30000000000000004]",
            server_with(Echo, handler),
        )

    def test_a_long_echo(self) -> None:
        """What comes back is compared to the end, and shown from the beginning."""

        def handler(session: Session, request: Echo) -> dict[str, Any]:
            content = bytes(request.content)
            if len(content) > 1000:
                content = content[:-2] + b'!"'
            return {"type": "echo_response", "content": Raw(content)}

        begin = '"The same words again and again take little room when they are compres…'
        self.goes_wrong(
            f"compression: expected {begin}, came {begin}",
            server_with(Echo, handler),
        )

    def test_too_few_recipients(self) -> None:
        for count, shown in ((1, "1"), (None, "0")):
            sent = {"type": "broadcast_sent", "recipients": count}
            self.goes_wrong(
                f"broadcast: expected a number of recipients of at least 2, came {shown}",
                server_with(Broadcast, says(sent)),
            )

    def test_broadcasts(self) -> None:
        for handler, expected in (
            (repeats(0), "broadcast: expected an answer, none came in time"),
            (repeats(2), "broadcast: expected 1, came 2"),
            (
                repeats(1, to_the_sender=True),
                'broadcast: expected [], came [{"timestamp": "2024-01-01T12:00:00.000Z",'
                ' "type": "broadcast", "conte…',
            ),
        ):
            self.goes_wrong(expected, server_with(Broadcast, handler))

    def test_statistics(self) -> None:
        good = {"type": "server_stats", "connected_clients": 3, "total_messages": 7, "uptime_seconds": 0}
        for fields, expected in (
            ({"connected_clients": 2}, "connected_clients of at least 3, came 2"),
            ({"connected_clients": "3"}, 'connected_clients of at least 3, came "3"'),
            ({"uptime_seconds": -1}, "uptime_seconds of at least 0, came -1"),
            ({"total_messages": 0}, "total_messages of at least 1, came 0"),
            ({}, "total_messages of at least 8, came 7"),
        ):
            self.goes_wrong(
                f"statistics: expected {expected}",
                server_with(GetStats, says({**good, **fields})),
            )

    def test_statistics_without_details(self) -> None:
        """They are our server's own; one without them is right, too."""
        count = 0

        def handler(session: Session, request: GetStats) -> dict[str, Any]:
            nonlocal count
            count += 1
            figures = {"connected_clients": 3, "total_messages": count, "uptime_seconds": 0.5}
            return {"type": "server_stats", **figures}

        lines = self.show(server_with(GetStats, handler))
        self.assertIn("            * 100000 characters each way", lines)

    def test_other_types(self) -> None:
        for reply, expected in (
            ({"type": "else"}, 'expected "response", came "else"'),
            (
                {"type": "response", "original_message": {"type": "demo"}},
                'expected {"type": "demo", "nonce": "abcd1234"}, came {"type": "demo", "nonce": null}',
            ),
            (
                {"type": "response", "original_message": "demo"},
                'expected {"type": "demo", "nonce": "abcd1234"}, came "demo"',
            ),
        ):
            self.goes_wrong(f"other type: {expected}", server_with(Custom, says(reply)))

    def with_other(self, name: str, method: Callable[..., Any]) -> tuple[MemoryServer, Callable[..., Client]]:
        """A server, and what makes its clients, of which one method is another."""
        server = MemoryServer()

        def make(**options: Any) -> Client:
            client = server.client(**options)
            setattr(client, name, lambda *args, **kwargs: method(client, *args, **kwargs))
            return client

        return server, make

    def test_no_plain_text(self) -> None:
        self.goes_wrong(
            'plain text: expected ["This is no JSON. abcd1234"], came []',
            *self.with_other("send", lambda client, text: None),
        )

    def test_no_error(self) -> None:
        def request(client: Client, message: Any, **options: Any) -> Deferred[Any]:
            if message in ("hello", {"type": "hello", "client": "too late"}):
                return succeed({"type": "hello_response"})
            return Client.request(client, message, **options)

        self.goes_wrong(
            'error: expected bad_message, came {"type": "hello_response"}',
            *self.with_other("request", request),
        )

    def test_it_does_not_compress(self) -> None:
        server = MemoryServer()
        self.goes_wrong(
            'compression: expected "zlib", came null',
            server,
            lambda **options: server.client(compress=False, **options),
        )

    def test_a_pong_too_soon(self) -> None:
        def ping(client: Client, **options: Any) -> Deferred[float]:
            return succeed(0.0) if options else Client.ping(client)

        self.goes_wrong("timeout: expected no reply so soon, came one", *self.with_other("ping", ping))

    def test_no_pong_after_one_that_was_late(self) -> None:
        late = False

        def ping(client: Client, **options: Any) -> Deferred[float]:
            nonlocal late
            if late:
                return fail(Forbidden("not again"))
            late = bool(options)
            return Client.ping(client, **options)

        self.goes_wrong(
            "timeout: expected no error, came Forbidden: not again", *self.with_other("ping", ping)
        )

    def test_it_is_not_closed(self) -> None:
        tried = False

        def close(client: Client) -> Deferred[None]:
            nonlocal tried
            if tried:
                return Client.close(client)
            tried = True
            return succeed(None)

        self.goes_wrong("end: expected false, came true", *self.with_other("close", close))

    def test_a_pong_too_late(self) -> None:
        def ping(client: Client, **options: Any) -> Deferred[float]:
            return Client.ping(client, **options) if client.connected else succeed(0.0)

        self.goes_wrong("end: expected Disconnected, came a pong", *self.with_other("ping", ping))

    def test_it_is_not_let_in(self) -> None:
        server = MemoryServer()
        server.stop()
        error = self.assertRaises(Wrong, self.show, server)
        self.assertRegex(str(error), r"^welcome: expected no error, came Disconnected: .*refused")
        self.assertEqual(server.clock.seconds(), 0)


class InboxTests(SynchronousTestCase):
    def test_it_waits(self) -> None:
        inbox = Inbox()
        inbox.take({"type": "broadcast", "content": 1})
        found = Deferred.fromCoroutine(inbox.first(type="broadcast", content=2))
        self.assertNoResult(found)
        inbox.take({"type": "broadcast", "content": 3})
        self.assertNoResult(found)
        for number in (4, 5):
            inbox.take({"type": "broadcast", "content": 2, "number": number})
        self.assertEqual(self.successResultOf(found)["number"], 4)
        self.assertEqual(len(inbox.all(content=2)), 2)


class OutputTests(SynchronousTestCase):
    def pipe(self, encoding: str = "utf-8") -> tuple[Any, Any]:
        """Both ends, as files."""
        reading, writing = (os.fdopen(fd, mode) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        text = io.TextIOWrapper(writing, encoding=encoding)
        self.addCleanup(reading.close)
        self.addCleanup(text.close)
        return reading, text

    def test_lines_come_at_once(self) -> None:
        reading, file = self.pipe()
        Output(file)("grün")
        self.assertEqual(reading.readline(), "grün\n".encode())

    def test_escapes(self) -> None:
        reading, file = self.pipe("ascii")
        Output(file)("grün")
        self.assertEqual(reading.readline(), b"gr\\xfcn\n")

    def test_nothing_of_a_stranger_is_obeyed(self) -> None:
        reading, file = self.pipe()
        Output(file)("ev\x1b[2Jil\u202e\x9b\r\n" + "x" * 10000)
        line = reading.readline().decode()
        self.assertEqual(line[:33], "ev\\x1b[2Jil\\u202e\\x9b\\r\\n" + "x" * 8)
        self.assertLess(len(line), 2100)

    def test_nobody_reads_on(self) -> None:
        """Neither the first line nor a later one fails, nor closing the file, as Python does at its end."""
        reading, file = self.pipe()
        reading.close()
        output = Output(file)
        output("one")
        output("two")
        file.close()

    def test_no_file(self) -> None:
        """Where there is no standard error, its lines do not go to the standard output."""
        other = io.StringIO()
        self.patch(sys, "stdout", other)
        Output(None)("nothing")
        self.assertEqual(other.getvalue(), "")


@implementer(IStreamClientEndpoint)
class Endpoint:
    """One whose outcome is known."""

    def __init__(self, outcome: Deferred[Any]) -> None:
        self.outcome = outcome
        self.transport = StringTransport()

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        def connected(_: object) -> Any:
            protocol: Any = protocolFactory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 9999))
            protocol.makeConnection(self.transport)
            return protocol

        return self.outcome.addCallback(connected)


class Reactor(MemoryReactorClock):
    """One that runs until it is stopped, and whose time is a server's."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__()
        self.server = server

    def seconds(self) -> float:
        return self.server.clock.seconds()

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **kw: Any) -> Any:
        return self.server.clock.callLater(delay, callable, *args, **kw)

    def run(self) -> None:
        self.running = True
        for function, args, kwargs in self.whenRunningHooks:
            function(*args, **kwargs)
        turns = 0
        while self.running:
            turns += 1
            if turns > 1000:
                raise AssertionError("it runs for ever")
            self.server.advance(0.01)

    def callFromThread(self, function: Callable[..., object], *args: object) -> None:
        self.callLater(0, function, *args)

    def stop(self) -> None:
        if not self.running:
            raise AssertionError("it is stopped already")
        super().stop()


class ProgramTests(SynchronousTestCase):
    """The program, up to the reactor."""

    def setUp(self) -> None:
        self.server = MemoryServer()
        self.reactor = Reactor(self.server)
        self.patch(twisted.internet, "reactor", self.reactor)
        self.handlers: dict[int, Callable[..., object]] = {}
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.endpoints: dict[str, Any] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.patch(demo, "client_endpoint", self.endpoint)

    def endpoint(self, reactor: Any, where: str, ca: str | None = None) -> Any:
        self.asked.append((where, ca))
        if where not in self.endpoints:
            raise ValueError(f"{where}: there is no such port")
        return self.endpoints[where]

    def main(self, *arguments: str) -> tuple[int, str, str]:
        """Run it; returns its status, what it printed and what it complained of."""
        buffers = [io.BytesIO() for _ in range(2)]
        files = [io.TextIOWrapper(buffer, encoding="utf-8") for buffer in buffers]
        self.patch(sys, "stdout", files[0])
        self.patch(sys, "stderr", files[1])
        try:
            status = demo.main(arguments)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else -1
        for file in files:
            file.flush()
        output, told = (buffer.getvalue().decode() for buffer in buffers)
        return status, output, told

    def test_a_server(self) -> None:
        self.endpoints["far.example:1"] = self.server.wire()
        status, output, told = self.main("far.example:1")
        self.assertEqual((status, told), (0, ""))
        first, *_, last = output.splitlines()
        self.assertEqual(first, "a server listens at far.example:1")
        self.assertRegex(last, r"^all 14 steps came back right, in \d\.\d\d seconds$")
        self.assertEqual(self.server.factory.connections, set())

    def test_a_server_of_its_own(self) -> None:
        """Where the connection is refused, on this machine."""
        for where in ("localhost:9999", "127.0.0.1", "tcp:localhost:1", "[::1]:1", "127.1.2.3:1"):
            self.endpoints = {where: Endpoint(fail(Refused())), "127.0.0.1:0": self.server.wire()}
            status, output, told = self.main(*([] if where == demo.DEFAULT else [where]))
            self.assertEqual((status, told), (0, ""))
            self.assertEqual(
                output.splitlines()[0],
                f"nobody listens at {where}: this is a server of the demo's own, 127.0.0.1:0",
            )
            port, factory, _, interface = self.reactor.tcpServers.pop()
            self.assertEqual((port, interface), (0, "127.0.0.1"))
            self.assertIsInstance(factory, TCPJSONServerFactory)
            self.setUp()

    def test_none_of_its_own(self) -> None:
        """It would not stand for what is elsewhere, for TLS, or for one that fails in another way."""
        for where, error, *options in (
            ("example.org:9999", Refused()),
            ("localhost.example.org", Refused()),
            ("127.0.0.1.example.org", Refused()),
            ("unix:localhost", Refused()),
            ("localhost:9999", DNSLookupError()),
            ("localhost:9999", Refused(), "--ca", "ca.pem"),
        ):
            self.endpoints = {str(where): Endpoint(fail(error))}
            status, output, told = self.main(str(where), *map(str, options))
            self.assertEqual((status, output), (1, ""))
            self.assertEqual(told, f"tcpjson.demo: nobody answers at {where}: {error}\n")
            self.assertEqual(self.asked, [(where, "ca.pem" if options else None)])
            self.setUp()

    def test_the_look_is_a_short_one(self) -> None:
        endpoint = Endpoint(succeed(None))
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(demo.answers(endpoint, "x", False))))
        self.assertTrue(endpoint.transport.disconnecting)

    def test_nothing_comes_of_it(self) -> None:
        """The time is bound, and the attempt given up."""
        cancelled: list[Deferred[Any]] = []
        self.endpoints["localhost:9999"] = Endpoint(Deferred(cancelled.append))
        status, output, told = self.main()
        self.assertEqual((status, output), (1, ""))
        self.assertRegex(told, r"^tcpjson\.demo: nobody answers at localhost:9999: .*\n$")
        self.assertEqual(len(cancelled), 1)
        self.assertApproximates(self.reactor.seconds(), SECONDS, 0.1)

    def test_a_step_goes_wrong(self) -> None:
        self.reactor.server = server_with(Ping, says({"type": "pang"}))
        self.endpoints["localhost:9999"] = self.reactor.server.wire()
        status, output, told = self.main()
        self.assertEqual(status, 1)
        self.assertEqual(steps(output.splitlines()[1:]), ["welcome", "ping"])
        self.assertEqual(told, 'tcpjson.demo: ping: expected "pong", came "pang"\n')

    def test_what_the_server_says(self) -> None:
        """None of it is printed as it is: neither names nor errors."""

        def handler(session: Session, request: Ping) -> None:
            raise Forbidden("no\x1b[2J\n")

        server = server_with(Ping, handler)
        self.reactor.server = server
        self.patch(Demo, "_server", ServerInfo(server="ev\x1b[2Jil\u202e\n"))
        self.endpoints["localhost:9999"] = server.wire()
        status, output, told = self.main()
        self.assertEqual((status, output.count("\n"), told.count("\n")), (1, 4, 1), output)
        self.assertIn("the server is ev\\x1b[2Jil\\u202e\\n, our", output)
        self.assertIn("no\\x1b[2J", told)
        self.assertTrue((output + told).replace("\n", "").isprintable())

    def test_signals(self) -> None:
        """The status tells which one; what goes wrong because of it is not told of."""
        for number in (signal.SIGINT, signal.SIGTERM):
            outcome: Deferred[Any] = Deferred()
            self.endpoints["localhost:9999"] = Endpoint(outcome)
            later = self.server.clock.callLater
            for _ in range(2):
                later(1, lambda number=number: self.handlers[number](number, None))
            # When the reactor stops, and not before.
            later(1, later, 0, outcome.errback, DNSLookupError())
            self.assertEqual(self.main(), (128 + number, "", ""))
            self.setUp()

    def test_no_address(self) -> None:
        status, output, told = self.main("localhost:0")
        self.assertEqual((status, output), (2, ""))
        self.assertEqual(
            told.splitlines()[-1], "python -m tcpjson.demo: error: localhost:0: there is no such port"
        )
