"""`tcpjson.client.Client` on the real reactor, against real servers and against strangers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from tcpjson.client import Client
from tcpjson.core.errors import (
    AuthenticationFailed,
    BadJSON,
    ClientError,
    Disconnected,
    GoingAway,
    ProtocolError,
    ProtocolMismatch,
    QueueFull,
    RequestTimeout,
    ServerFull,
    TooLarge,
)
from tcpjson.core.messages import Message as JSONMessage
from tcpjson.credentials import Password, Token
from tests.harness import LOOPBACK, TIMEOUT, Message, Server, command, encode, folder, frame, shared
from tests.identities import authority, new_path, tokens, users, write
from tests.strangers import (
    NO_WELCOME,
    ODD_WELCOME,
    WELCOME,
    Proxy,
    Script,
    Stranger,
    Visit,
    answers,
    closing,
    echo,
    error,
    refuses,
    says,
    silent,
    stalls_after,
)

T = TypeVar("T")

MANY = 50
# Requests that a client of many has in flight.
FLIGHT = 6
ENOUGH = 3000

TOKENS = {"sesame": "alice"}
TOKEN = Token("sesame", allow_plain=True)


def where(server: Server, index: int = 0) -> str:
    """What a client is told."""
    host, port = server.tcp_address(index)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class ClientTestCase(TestCase):
    """Clients on the reactor of the tests. A delayed call or a connection that is left is a failure."""

    timeout = 2 * TIMEOUT

    def setUp(self) -> None:
        # Trial chose it before the tests.
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.servers: list[tuple[Server, int]] = []
        self.addCleanup(self.no_traceback)

    def no_traceback(self) -> None:
        """The servers' logs are clean."""
        for server, since in self.servers:
            self.assertNotIn("Traceback", "\n".join(server.log[since:]))

    @property
    def server(self) -> Server:
        """A server with the usual options, that others use too."""
        server = shared()
        self.servers.append((server, len(server.log)))
        return server

    async def start(self, *options: str, ports: Iterable[str] = (LOOPBACK,)) -> Server:
        """Start a server for this test alone; the reactor goes on meanwhile."""
        server = await deferToThread(Server, *options, ports=ports)
        self.addCleanup(deferToThread, server.stop)
        self.servers.append((server, 0))
        return server

    async def kill(self, server: Server) -> None:
        """End a server as nothing else can."""
        server.process.kill()
        await deferToThread(server.wait)

    async def again(self, server: Server, *options: str) -> Server:
        """Start a server where another one was."""
        host, port = server.address
        return await self.start(*options, ports=[f"tcp:{port}:interface={host}"])

    def stranger(self, script: Script, **options: Any) -> Stranger:
        """A server of another kind, that serves until the end of the test."""
        stranger = Stranger(script, **options)
        self.addCleanup(deferToThread, stranger.stop)
        return stranger

    def proxy(self, target: Server | Stranger | None = None, cut_each: int | None = None) -> Proxy:
        """A proxy, until the end of the test."""
        proxy = Proxy(None if target is None else self.address(target), cut_each)
        self.addCleanup(deferToThread, proxy.stop)
        return proxy

    @staticmethod
    def address(target: Server | Stranger) -> tuple[str, int]:
        """Host and port of a server."""
        return target.address if isinstance(target, Server) else ("127.0.0.1", target.port)

    def client(self, to: Server | Stranger | Proxy | str | None, **options: Any) -> Client:
        """A client, closed at the end of the test."""
        if isinstance(to, Server):
            to = where(to)
        elif to is not None and not isinstance(to, str):
            to = to.where
        client = Client(self.reactor, to, **options)
        self.addCleanup(client.close)
        return client

    async def connected(self, to: Server | Stranger | Proxy | str, **options: Any) -> Client:
        """A client that is served."""
        client = self.client(to, **options)
        await client.connect()
        return client

    async def until(self, condition: Callable[[], T], what: str, timeout: float = TIMEOUT) -> T:
        """
        Wait until a condition holds, and let the reactor go on meanwhile; returns what it returned.

        Raises:
            AssertionError: it did not hold in time.
        """
        deadline = self.reactor.seconds() + timeout
        while not (value := condition()):
            if self.reactor.seconds() > deadline:
                raise AssertionError(f"not in {timeout:g} seconds: {what}")
            await deferLater(self.reactor, 0.005)
        return value

    async def fails(self, awaitable: Awaitable[object], *kinds: type[Exception]) -> Any:
        """See that a request fails, with one of these errors; returns it. It says something."""
        try:
            result = await awaitable
        except kinds as error:
            self.assertTrue(str(error) or isinstance(error, (CancelledError, ZeroDivisionError)), repr(error))
            return error
        raise self.failureException(f"it came back: {result!r:.200}")

    def calls(self) -> int:
        """How many delayed calls there are, but for trial's own."""
        functions = [call.func for call in self.reactor.getDelayedCalls()]
        return sum(function.__module__ != "twisted.trial._asynctest" for function in functions)


class Ledger:
    """
    Numbered requests of many clients, and what became of each.

    Args:
        case: makes the clients.
        to: the server.
        count: how many clients.
        options: those of the clients.
    """

    def __init__(
        self, case: ClientTestCase, to: Server | Proxy | Stranger, count: int = MANY, **options: Any
    ) -> None:
        self._case = case
        self._over = False
        self.asked = self.answered = self.open = 0
        self.failed: Counter[str] = Counter()
        #: Answers to other requests, and errors that say nothing.
        self.wrong: list[str] = []
        self.clients: list[Client] = []
        for _ in range(count):
            begin = partial(self._begin, len(self.clients))
            # They come back soon: how they spread is another test's.
            client = case.client(to, on_connect=begin, random=lambda: 0.2, **options)
            self.clients.append(client)
            client.start()

    def _begin(self, number: int, welcome: Message) -> None:
        """A client is served, for the first time or again."""
        for _ in range(FLIGHT):
            if not self._over:
                Deferred.fromCoroutine(self._go_on(number))

    async def _go_on(self, number: int) -> None:
        """One request after another, until one fails."""
        client = self.clients[number]
        while not self._over:
            self.asked += 1
            self.open += 1
            content = [number, self.asked]
            try:
                answer = await client.echo(content)
            except Exception as error:
                self.failed[type(error).__name__] += 1
                if not str(error):
                    self.wrong.append(f"{error!r} for {content}")
                return
            finally:
                self.open -= 1
            if answer == content:
                self.answered += 1
            else:
                self.wrong.append(f"{answer} for {content}")

    async def goes_on(self) -> None:
        """Wait until all are connected, and many more requests were answered."""
        aim = self.answered + ENOUGH

        def going() -> bool:
            return self.answered >= aim and all(client.connected for client in self.clients)

        try:
            await self._case.until(going, "all are served")
        except AssertionError as error:
            connected = sum(client.connected for client in self.clients)
            raise AssertionError(
                f"{error}: {connected} are connected, {self.answered - aim + ENOUGH} answered, "
                f"{self.open} open, {self.failed}"
            ) from None

    async def end(self) -> None:
        """Ask no more; see that each request came back, and that its answer was its own."""
        self._over = True
        try:
            await self._case.until(lambda: not self.open, "each request came back")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.open} of {self.asked} did not") from None
        case = self._case
        case.assertEqual(self.wrong, [])
        case.assertEqual(self.answered + self.failed.total(), self.asked)
        case.assertEqual([client.waiting for client in self.clients], [0] * len(self.clients))


class ManyTests(ClientTestCase):
    """Many clients that go on asking, while their server fails: each request comes back once."""

    async def test_killed(self) -> None:
        """SIGKILL, and another server on the same port."""
        server = await self.start()
        ledger = Ledger(self, server)
        await ledger.goes_on()
        await self.kill(server)
        await self.again(server)
        await ledger.goes_on()
        await ledger.end()
        self.assertEqual(set(ledger.failed), {"Disconnected"})
        self.assertLessEqual(ledger.failed.total(), MANY * FLIGHT)

    async def test_drained(self) -> None:
        """SIGTERM: nothing that was asked before is lost."""
        server = await self.start()
        ledger = Ledger(self, server)
        await ledger.goes_on()
        server.signal(signal.SIGTERM)
        await deferToThread(server.wait)
        await self.again(server)
        await ledger.goes_on()
        await ledger.end()
        self.assertLessEqual(set(ledger.failed), {"Disconnected", "GoingAway"})

    async def test_stopped(self) -> None:
        """A server that stands still for a time loses nothing."""
        server = await self.start()
        ledger = Ledger(self, server)
        await ledger.goes_on()
        server.signal(signal.SIGSTOP)
        await self.until(lambda: ledger.open == MANY * FLIGHT, "all wait")
        state = Path(f"/proc/{server.process.pid}/stat")
        if state.exists():
            await self.until(
                lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "it stands still"
            )
        answered = ledger.answered
        self.assertEqual(sum(client.waiting for client in ledger.clients), ledger.open)
        server.signal(signal.SIGCONT)
        await self.until(lambda: ledger.answered > answered, "it goes on")
        await ledger.goes_on()
        await ledger.end()
        self.assertEqual(ledger.failed, {})

    async def test_cut_in_mid_frame(self) -> None:
        """Connections that end within a frame, again and again."""
        proxy = self.proxy(self.server, cut_each=20_011)
        ledger = Ledger(self, proxy)
        await self.until(lambda: proxy.accepted >= 4 * MANY, "they come again")
        proxy.cut_each = None
        await ledger.goes_on()
        proxy.cut(reset=True)
        await ledger.goes_on()
        await ledger.end()
        self.assertEqual(set(ledger.failed), {"Disconnected"})

    async def test_nothing_is_sent_twice(self) -> None:
        """What was on its way when the connection was lost is not sent again, nor is what was queued."""
        heard: Counter[int] = Counter()

        def reply(message: Message) -> list[Message]:
            heard[message["content"]] += 1
            return [echo(message)]

        proxy = self.proxy(self.stranger(answers(reply)), cut_each=3001)
        client = await self.connected(proxy, offline="queue")
        outcomes: dict[int, str] = {}

        async def ask(number: int) -> None:
            try:
                self.assertEqual(await client.echo(number), number)
                outcome = "answered"
            except Disconnected:
                outcome = "lost"
            self.assertEqual(outcomes.setdefault(number, outcome), outcome)

        for begin in range(0, 1000, 20):
            for number in range(begin, begin + 20):
                Deferred.fromCoroutine(ask(number))
            await self.until(lambda: len(outcomes) == begin + 20, "each request came back")  # noqa: B023
        self.assertEqual(set(outcomes.values()), {"answered", "lost"})
        self.assertEqual(set(heard.values()), {1})
        for number, outcome in outcomes.items():
            if outcome == "answered":
                self.assertIn(number, heard)
        self.assertGreater(proxy.accepted, 5)

    async def test_answers_pings(self) -> None:
        """A server that asks whether the client is there is answered."""
        frames: list[tuple[str, bytes]] = []

        def trace(direction: str, payloads: Sequence[bytes]) -> None:
            frames.extend((direction, payload) for payload in payloads)

        await self.connected(await self.start("--heartbeat", "0.2"), trace=trace)
        for direction, kind in (("received", b'"ping"'), ("sent", b'"pong"')):
            await self.until(
                lambda: any(way == direction and kind in payload for way, payload in frames),  # noqa: B023
                f"{kind!r} is {direction}",
            )

    async def test_silent(self) -> None:
        """A network that takes everything and says nothing is noticed; what waits fails then."""
        proxy = self.proxy(self.server)
        reasons: list[Exception] = []
        ledger = Ledger(self, proxy, silence=0.2, on_disconnect=reasons.append)
        await ledger.goes_on()
        proxy.hold()
        await self.until(lambda: reasons, "it is noticed")
        await self.until(lambda: len(reasons) == MANY, "all notice", 2)
        proxy.release()
        await ledger.goes_on()
        await ledger.end()
        self.assertEqual(set(ledger.failed), {"Disconnected"})
        self.assertIn("silent", str(reasons[0]))


class OfflineTests(ClientTestCase):
    """What becomes of requests while there is no connection."""

    async def test_fail(self) -> None:
        """By default they fail at once, and say why."""
        server = await self.start()
        client = self.client(server)
        await self.fails(client.ping(), Disconnected)
        self.assertRaises(Disconnected, client.send, "too early")
        await client.connect()
        request = client.echo(1)
        await self.kill(server)
        await self.fails(request, Disconnected)
        await self.until(lambda: not client.connected, "the loss is noticed")
        request = client.ping()
        self.assertTrue(request.called)
        await self.fails(request, Disconnected)
        self.assertRaises(Disconnected, client.send, {"type": "x"})
        self.assertEqual(client.waiting, 0)

    async def test_queue(self) -> None:
        """They wait for the next connection, and go out in order."""
        texts: list[object] = []
        server = await self.start()
        client = await self.connected(
            server, offline="queue", on_message=lambda message: texts.append(message.get("original_text"))
        )
        await self.kill(server)
        await self.until(lambda: not client.connected, "the loss is noticed")
        done: list[int] = []
        requests = [client.echo(number) for number in range(100)]
        for request in requests:
            request.addCallback(done.append)
        client.send("a text")
        self.assertEqual(client.waiting, 100)
        await self.again(server)
        await self.until(lambda: len(done) == 100 and texts, "all came back")
        self.assertEqual(done, list(range(100)))
        self.assertEqual(texts, ["a text"])
        self.assertEqual(client.waiting, 0)

    async def test_the_first_connection(self) -> None:
        """They wait for that, too."""
        client = self.client(self.server, offline="queue")
        client.start()
        self.assertFalse(client.connected)
        self.assertEqual(await client.echo("early"), "early")

    async def test_times_out_in_the_queue(self) -> None:
        """It is not sent later on; nor is one that was cancelled."""
        server = await self.start()
        client = await self.connected(server, offline="queue", timeout=None)
        await self.kill(server)
        await self.until(lambda: not client.connected, "the loss is noticed")
        short = client.echo("x", timeout=0.05)
        cancelled = client.echo("y")
        kept = client.echo("z")
        self.assertEqual(client.waiting, 3)
        cancelled.cancel()
        await self.fails(cancelled, CancelledError)
        await self.fails(short, RequestTimeout)
        self.assertEqual(client.waiting, 1)
        await self.again(server)
        self.assertEqual(await kept, "z")
        # hello, echo, get_stats
        self.assertEqual((await client.stats())["total_messages"], 3)

    async def test_bounded(self) -> None:
        """What waits is bounded in bytes; all of what was taken is sent."""
        server = await self.start()
        client = await self.connected(server, offline="queue", max_queue=100_000)
        await self.kill(server)
        await self.until(lambda: not client.connected, "the loss is noticed")
        taken: list[Deferred[Any]] = []
        while True:
            request = client.echo([len(taken), "x" * 100])
            if request.called:
                break
            taken.append(request)
            self.assertLess(len(taken), 1000)
        await self.fails(request, QueueFull)
        self.assertRaises(QueueFull, client.send, "x" * 1000)
        self.assertGreater(len(taken), 500)
        await self.again(server)
        for number, each in enumerate(taken):
            self.assertEqual((await each)[0], number)

    async def test_larger_than_the_next_server_takes(self) -> None:
        """It fails when that is known, and holds up nothing."""
        server = await self.start()
        client = await self.connected(server, offline="queue")
        await self.kill(server)
        await self.until(lambda: not client.connected, "the loss is noticed")
        long, short = client.echo("x" * 5000), client.echo("x")
        await self.again(server, "--max-length", "1000")
        await self.fails(long, TooLarge)
        self.assertEqual(await short, "x")

    async def test_closed(self) -> None:
        """What still waits fails."""
        client = self.client(self.proxy(), offline="queue")
        client.start()
        request = client.echo("x")
        await client.close()
        await self.fails(request, Disconnected)
        await self.fails(client.ping(), Disconnected)
        self.assertEqual(client.waiting, 0)


class RetryTests(ClientTestCase):
    """Connecting again."""

    async def test_as_the_server_says(self) -> None:
        """`retry_after` of a server without room is obeyed."""
        stranger = self.stranger(refuses("server_full", retry_after=0.7))
        told: list[tuple[Exception, float]] = []
        client = self.client(stranger, on_retry=lambda error, seconds: told.append((error, seconds)))
        client.start()
        await self.until(lambda: stranger.accepted == 3, "it came again")
        self.assertGreaterEqual(stranger.arrivals[1] - stranger.arrivals[0], 0.7)
        self.assertGreaterEqual(stranger.arrivals[2] - stranger.arrivals[1], 0.7)
        self.assertIsInstance(told[0][0], ServerFull)
        self.assertGreaterEqual(told[0][1], 0.7)

    async def test_going_away(self) -> None:
        """`retry_after` of a server that shuts down is obeyed; the reason is that."""

        def script(visit: Visit) -> None:
            visit.send(WELCOME, error("going_away", retry_after=0.7, fatal=False))

        stranger = self.stranger(script)
        reasons: list[Exception] = []
        client = self.client(stranger, on_disconnect=reasons.append)
        client.start()
        await self.until(lambda: stranger.accepted == 2, "it came again")
        self.assertGreaterEqual(stranger.arrivals[1] - stranger.arrivals[0], 0.7)
        self.assertIsInstance(reasons[0], GoingAway)

    async def test_connected_anew_by_others(self) -> None:
        """Who connects the factory by himself may do so again while the connection before still ends."""
        proxy = self.proxy(self.server)
        client = self.client(None)
        connecting = client.connect()
        self.reactor.connectTCP("127.0.0.1", proxy.port, client.factory)
        await connecting
        closing = client.close()
        self.reactor.connectTCP("127.0.0.1", proxy.port, client.factory)
        await closing
        await self.until(lambda: client.connected, "it is served")
        self.assertEqual(await client.echo("x"), "x")
        await client.close()
        await self.until(lambda: not proxy.open, "all are closed")

    async def test_leaving(self) -> None:
        """
        A server that goes away answers what it was asked before; what comes later waits for the next one, or
        fails and says so.
        """
        asked: list[list[object]] = [[], []]

        def script(visit: Visit) -> None:
            visit.send(WELCOME)
            visit.receive()
            heard = asked[min(visit.number, 2) - 1]
            while True:
                message = visit.receive()
                heard.append(message["content"])
                if message["content"] == "the last":
                    visit.send(error("going_away", retry_after=0.05, fatal=False))
                    release.wait(TIMEOUT)
                    visit.send(echo(message))
                    return
                visit.send(echo(message))

        for offline in ("queue", "fail"):
            release = threading.Event()
            self.addCleanup(release.set)
            for each in asked:
                each.clear()
            heard: list[Message] = []
            client = await self.connected(self.stranger(script), offline=offline, on_message=heard.append)
            last = client.echo("the last")
            await self.until(lambda: heard, "it goes away")  # noqa: B023
            later = client.echo("later")
            release.set()
            self.assertEqual(await last, "the last")
            if offline == "queue":
                self.assertEqual(await later, "later")
            else:
                reason = await self.fails(later, Disconnected, GoingAway)
                self.assertIn("going_away", str(reason))
            self.assertEqual(asked, [["the last"], ["later"] if offline == "queue" else []])
            await client.close()

    async def test_absurd_times(self) -> None:
        """What is no time is passed over."""
        odd: object
        for odd in (-1, "soon", None, [], {}, 10**400, True):
            stranger = self.stranger(refuses("server_full", retry_after=odd))
            client = self.client(stranger)
            client.start()
            await self.until(lambda: stranger.accepted == 2, f"it comes again: {odd!r:.20}", 5)  # noqa: B023
            await client.close()

    async def test_a_day(self) -> None:
        """A server cannot send clients away for ever."""
        stranger = self.stranger(refuses("server_full", retry_after=86400))
        told: list[float] = []
        client = self.client(stranger, on_retry=lambda error, seconds: told.append(seconds))
        client.start()
        await self.until(lambda: told, "it waits")
        self.assertLessEqual(told[0], 3600)

    async def test_not_all_at_once(self) -> None:
        """Those who lost the same server come back spread over the time, and seldom."""
        proxy = self.proxy(self.server)
        clients = [await self.connected(proxy, random=Random(number).random) for number in range(60)]
        proxy.target = None
        before = proxy.accepted
        proxy.cut()
        await self.until(lambda: proxy.accepted >= before + 180, "they come again")
        arrivals = proxy.arrivals[before:]
        begin = arrivals[0]
        self.assertGreater(arrivals[59] - begin, 0.2)
        windows = Counter(int((arrival - begin) / 0.05) for arrival in arrivals)
        # All together, they would be 60 at a time.
        self.assertLess(max(windows.values()), 45, sorted(windows.items()))
        self.assertGreater(arrivals[-1] - begin, 0.6)
        proxy.target = self.server.address
        await self.until(lambda: any(client.connected for client in clients), "they come back")

    async def test_begins_anew(self) -> None:
        """After a connection that served, the next attempt comes soon, however many failed before."""
        proxy = self.proxy()
        waits: list[float] = []
        client = self.client(
            proxy, random=lambda: 0.1, on_retry=lambda error, seconds: waits.append(round(seconds, 3))
        )
        client.start()
        await self.until(lambda: len(waits) == 5, "it failed often")
        self.assertEqual(waits, [0.05, 0.1, 0.2, 0.4, 0.8])
        proxy.target = self.server.address
        await self.until(lambda: client.connected, "it is served")
        proxy.cut()
        await self.until(lambda: len(waits) > 5, "it is lost")
        self.assertEqual(waits[5:6], [0.05])
        await self.until(lambda: client.connected, "it is back")

    async def test_one_that_accepts_and_closes(self) -> None:
        """A connection alone is no success: the waits grow."""
        stranger = self.stranger(closing)
        waits: list[float] = []
        client = self.client(
            stranger, random=lambda: 0.1, on_retry=lambda error, seconds: waits.append(seconds)
        )
        client.start()
        await self.until(lambda: len(waits) == 4, "it failed often")
        self.assertEqual([round(each, 3) for each in waits], [0.05, 0.1, 0.2, 0.4])

    async def test_used_up(self) -> None:
        """After as many attempts as allowed it stops, with the last reason."""
        proxy = self.proxy()
        stopped: list[Exception] = []
        client = self.client(proxy, retries=2, on_failure=stopped.append)
        reason = await self.fails(client.connect(), Disconnected)
        self.assertEqual(proxy.accepted, 3)
        await self.until(lambda: stopped, "it is told")
        self.assertEqual(str(stopped[0]), str(reason))
        self.assertFalse(client.running)
        self.assertEqual(self.calls(), 0)
        await self.fails(client.ping(), Disconnected)

    async def test_nobody_answers(self) -> None:
        """`connect` gives up when its time is up, says why, and stops."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            client = self.client(f"127.0.0.1:{unused.getsockname()[1]}")
            reason = await self.fails(client.connect(timeout=1), Disconnected)
        self.assertIn("refused", str(reason))
        self.assertFalse(client.running)
        self.assertEqual(self.calls(), 0)

    async def test_cancelled(self) -> None:
        """So it does when nobody waits any more."""
        client = self.client(self.proxy())
        connecting = client.connect()
        await deferLater(self.reactor, 0)
        connecting.cancel()
        await self.fails(connecting, CancelledError)
        self.assertFalse(client.running)
        self.assertEqual(self.calls(), 0)

    async def test_wrong_token(self) -> None:
        """No retry heals that: it stops, and says so."""
        server = await self.start(
            "--auth", f"token:{write(new_path('.t'), tokens(TOKENS))}", "--allow-plain-auth"
        )
        for wrong in (Token("wrong", allow_plain=True), Password("alice", "sesame", allow_plain=True), None):
            proxy = self.proxy(server)
            stopped: list[Exception] = []
            client = self.client(proxy, credentials=wrong, on_failure=stopped.append, offline="queue")
            connecting, request = client.connect(), client.ping()
            reason = await self.fails(connecting, AuthenticationFailed)
            await self.fails(request, AuthenticationFailed)
            await self.until(lambda: stopped, "it is told")  # noqa: B023
            self.assertEqual(str(stopped[0]), str(reason))
            await self.fails(client.ping(), AuthenticationFailed, Disconnected)
            await self.until(lambda: not proxy.open, "the connection is closed")  # noqa: B023
            self.assertEqual((proxy.accepted, client.running), (1, False))
            self.assertNotIn("sesame", str(reason))

    async def test_no_longer_known(self) -> None:
        """A client that was served, and comes back to a server that does not know it any more, stops."""
        path = write(new_path(".t"), tokens(TOKENS))
        server = await self.start("--auth", f"token:{path}", "--allow-plain-auth")
        stopped: list[Exception] = []
        client = await self.connected(server, credentials=TOKEN, on_failure=stopped.append, offline="queue")
        self.assertEqual(client.user, "alice")
        await self.kill(server)
        await self.until(lambda: not client.connected, "the loss is noticed")
        request = client.ping(timeout=None)
        write(path, tokens({"other": "bob"}))
        await self.again(server, "--auth", f"token:{path}", "--allow-plain-auth")
        await self.fails(request, AuthenticationFailed)
        await self.until(lambda: stopped, "it is told")
        self.assertIsInstance(stopped[0], AuthenticationFailed)
        self.assertFalse(client.running)

    async def test_another_version(self) -> None:
        """Nor does it heal a server of another version, or of another kind."""
        for script in (
            answers(lambda message: [], welcome={"protocol": 2}),
            says(NO_WELCOME["an HTTP answer"], close=True),
            says(NO_WELCOME["SSH"]),
        ):
            stranger = self.stranger(script)
            stopped: list[Exception] = []
            client = self.client(stranger, on_failure=stopped.append)
            reason = await self.fails(client.connect(), ProtocolMismatch)
            await self.until(lambda: stopped, "it is told")  # noqa: B023
            self.assertEqual(str(stopped[0]), str(reason))
            self.assertEqual((stranger.accepted, client.running), (1, False))


class TimeTests(ClientTestCase):
    """Requests that wait no more."""

    async def test_timeout(self) -> None:
        """The reply that comes late is nobody's; the next request gets its own."""
        server = await self.start()
        heard: list[Message] = []
        client = await self.connected(server, on_message=heard.append)
        # There is one timer for all, which stays for a while.
        await client.ping()
        calls = self.calls()
        server.signal(signal.SIGSTOP)
        reason = await self.fails(client.echo("late", timeout=0.05), RequestTimeout)
        self.assertIsInstance(reason, TimeoutError)
        many = [client.echo(number, timeout=0.05) for number in range(1000)]
        for each in many:
            await self.fails(each, RequestTimeout)
        self.assertEqual(client.waiting, 0)
        self.assertLessEqual(self.calls(), calls)
        server.signal(signal.SIGCONT)
        self.assertEqual(await client.echo("next"), "next")
        self.assertEqual(heard, [])

    async def test_cancel(self) -> None:
        """Nothing is left of it."""
        server = await self.start()
        heard: list[Message] = []
        client = await self.connected(server, on_message=heard.append)
        # There is one timer for all, which stays for a while.
        await client.ping()
        calls = self.calls()
        server.signal(signal.SIGSTOP)
        for request in [client.echo(number) for number in range(1000)]:
            request.cancel()
            await self.fails(request, CancelledError)
        self.assertEqual(client.waiting, 0)
        # What was asked for is sent all the same, at the end of the turn.
        await deferLater(self.reactor, 0)
        self.assertLessEqual(self.calls(), calls)
        server.signal(signal.SIGCONT)
        self.assertEqual(await client.echo("next"), "next")
        self.assertEqual(heard, [])

    async def test_the_usual_timeout(self) -> None:
        """It is the client's, unless a request has its own; None is for ever."""
        client = await self.connected(self.stranger(silent_after_hello), timeout=0.05)
        patient = client.ping(timeout=None)
        await self.fails(client.ping(), RequestTimeout)
        await self.fails(client.request("x"), RequestTimeout)
        await self.fails(client.stats(), RequestTimeout)
        await self.fails(client.broadcast(1), RequestTimeout)
        self.assertFalse(patient.called)
        self.assertEqual(client.waiting, 1)
        await client.close()
        await self.fails(patient, Disconnected)

    async def test_absurd_timeouts(self) -> None:
        """What is no time fails by the Deferred; the client goes on."""
        client = await self.connected(self.server)
        odd: list[Any] = [float("nan"), "1", [1], float("inf"), 1e9]
        for each in odd:
            await self.fails(client.ping(timeout=each), ValueError, TypeError)
        for timeout in (0, -1):
            with contextlib.suppress(RequestTimeout, ValueError):
                await client.ping(timeout=timeout)
        self.assertLess(await client.ping(timeout=1e6), 5)
        self.assertEqual(client.waiting, 0)
        self.assertTrue(client.connected)

    async def test_a_server_that_stops_answering(self) -> None:
        """After ten answers there are no more, and nothing is read."""
        client = await self.connected(self.stranger(stalls_after(10)), timeout=0.2)
        requests = [client.echo(number) for number in range(20)]
        for number, request in enumerate(requests[:10]):
            self.assertEqual(await request, number)
        for request in requests[10:]:
            await self.fails(request, RequestTimeout)
        self.assertEqual(client.waiting, 0)


def silent_after_hello(visit: Visit) -> None:
    """Welcomes, and answers nothing."""
    visit.send(WELCOME)
    visit.hold()


class WayTests(ClientTestCase):
    """The ways to a server."""

    async def serves(self, client: Client) -> None:
        """A client that is served has all of its requests answered."""
        seconds = await client.ping()
        self.assertTrue(0 <= seconds < 5, seconds)
        content: object
        for content in ("text", 7, None, True, 1.5, [1, {"a": "é\u2028"}], {"deep": {"er": []}}, 2**63, ""):
            self.assertEqual(await client.echo(content), content)
        self.assertIsInstance(await client.broadcast({"x": 1}), int)
        stats = await client.stats()
        self.assertEqual(stats["type"], "server_stats")
        self.assertGreaterEqual(stats["connected_clients"], 1)
        reply = await client.request("custom", data={"value": 1})
        self.assertEqual((reply["type"], reply["original_message"]["data"]), ("response", {"value": 1}))
        reply = await client.request({"type": "custom", "more": [1]})
        self.assertEqual(reply["original_message"]["more"], [1])

    async def test_text(self) -> None:
        """Hosts with ports, endpoint strings, endpoints."""
        from twisted.internet.endpoints import HostnameEndpoint

        server = self.server
        _, port = server.address
        for to in (
            f"127.0.0.1:{port}",
            f"localhost:{port}",
            f"tcp:127.0.0.1:{port}",
            f"tcp:localhost:{port}",
        ):
            client = await self.connected(to)
            await self.serves(client)
            await client.close()
        endpoint = HostnameEndpoint(self.reactor, "127.0.0.1", port)
        client = self.client(None)
        await client.close()
        client = Client(self.reactor, endpoint)
        async with client as same:
            self.assertIs(same, client)
            await self.serves(client)
        self.assertFalse(client.connected)

    async def test_ipv6(self) -> None:
        """An address of colons."""
        try:
            with socket.create_server(("::1", 0), family=socket.AF_INET6):
                pass
        except OSError:
            raise SkipTest("there is no IPv6 here") from None
        server = await self.start(ports=[r"tcp6:0:interface=\:\:1"])
        port = server.addresses[0].rpartition(":")[2]
        for to in (f"[::1]:{port}", rf"tcp:\:\:1:{port}"):
            client = await self.connected(to)
            await self.serves(client)
            await client.close()

    async def test_unix(self) -> None:
        """A Unix socket, on which secrets may be sent; and again, when the server was restarted."""
        path = folder() / "client.sock"
        options = "--auth", f"token:{write(new_path('.t'), tokens(TOKENS))}"
        server = await self.start(*options, ports=[f"unix:{path}"])
        client = await self.connected(f"unix:{path}", credentials=Token("sesame"))
        await self.serves(client)
        self.assertEqual(client.user, "alice")
        await self.kill(server)
        path.unlink()
        await self.until(lambda: not client.connected, "the loss is noticed")
        await self.start(*options, ports=[f"unix:{path}"])
        await self.until(lambda: client.connected, "it is back")
        await self.serves(client)

    async def test_tls(self) -> None:
        """Trusting one authority, by name and by address; logins of each kind."""
        identity = authority().issue("server")
        lines = users({"alice": "sesame"})
        server = await self.start(
            "--auth",
            f"scram:{write(new_path('.u'), lines)}",
            "--auth",
            f"token:{write(new_path('.t'), tokens(TOKENS))}",
            ports=[identity.port],
        )
        port = server.addresses[0].rpartition(":")[2]
        trusted = new_path(".trusted")
        trusted.mkdir()
        write(trusted / "ca.pem", authority().pem)
        ca = str(authority().file)
        ways: list[tuple[str, dict[str, Any]]] = [
            (f"127.0.0.1:{port}", {"ca": ca}),
            (f"localhost:{port}", {"ca": ca}),
            (f"tls:127.0.0.1:{port}:trustRoots={trusted}", {}),
        ]
        for to, options in ways:
            for credentials in (Token("sesame"), Password("alice", "sesame")):
                client = await self.connected(to, credentials=credentials, **options)
                await self.serves(client)
                self.assertEqual(client.user, "alice")
                await client.close()

    async def test_tls_comes_back(self) -> None:
        """After a cut in the midst of a record, too."""
        identity = authority().issue("server")
        proxy = self.proxy()
        proxy.target = (await self.start(ports=[identity.port])).address
        client = await self.connected(proxy, ca=str(authority().file), compress=False)
        for reset in (False, True, False):
            request = client.echo("x" * 100_000)
            proxy.cut(after=5000, reset=reset)
            await self.fails(request, Disconnected)
            await self.until(lambda: client.connected, "it is back")
            await self.serves(client)

    async def test_tls_not_trusted(self) -> None:
        """It says what is wrong, and is not connected."""
        identity = authority().issue("server", hosts=["elsewhere.example"])
        server = await self.start(ports=[identity.port])
        client = self.client(server, ca=str(authority().file))
        reason = await self.fails(client.connect(timeout=1), ClientError)
        self.assertRegex(str(reason), "(?i)certificate|verif|tls|127.0.0.1")

    async def test_tls_and_none(self) -> None:
        """TLS where none is spoken, and none where TLS is, come to nothing; soon, and told."""
        identity = authority().issue("server")
        server = await self.start(ports=[identity.port])
        client = self.client(server)
        await self.fails(client.connect(timeout=1), ClientError)
        client = self.client(self.server, ca=str(authority().file))
        await self.fails(client.connect(timeout=1), ClientError)

    async def test_connect_tcp(self) -> None:
        """The factory goes with `connectTCP` and `connectUNIX`, and comes back."""
        path = folder() / "factory.sock"
        server = await self.start(ports=[LOOPBACK, f"unix:{path}"])
        both = self.client(None), self.client(None)
        waits = [client.connect() for client in both]
        self.reactor.connectTCP(*server.address, both[0].factory)
        self.reactor.connectUNIX(str(path), both[1].factory)
        for client, wait in zip(both, waits, strict=True):
            welcome = await wait
            self.assertEqual(welcome["type"], "welcome")
            await self.serves(client)
        await self.kill(server)
        path.unlink()
        await self.until(lambda: not any(client.connected for client in both), "the loss is noticed")
        host, port = server.address
        await self.start(ports=[f"tcp:{port}:interface={host}", f"unix:{path}"])
        await self.until(lambda: all(client.connected for client in both), "both are back")
        for client in both:
            await self.serves(client)

    async def test_connect_ssl(self) -> None:
        """The factory goes with `connectSSL`."""
        from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

        server = await self.start(ports=[authority().issue("server").port])
        trust = trustRootFromCertificates([Certificate.loadPEM(authority().pem)])
        client = self.client(None)
        wait = client.connect()
        self.reactor.connectSSL(
            *server.address, client.factory, optionsForClientTLS("127.0.0.1", trustRoot=trust)
        )
        await wait
        await self.serves(client)

    async def test_client_service(self) -> None:
        """The factory goes into other people's `TCPClient` service, and ends with it."""
        from twisted.application.internet import TCPClient

        client = self.client(None)
        wait = client.connect()
        service = TCPClient(*self.server.address, client.factory)
        service.startService()
        await wait
        await self.serves(client)
        await client.close()
        await maybeDeferred(service.stopService)

    async def test_types_of_ones_own(self) -> None:
        """Messages may be typed, or any mapping."""

        class Move(JSONMessage, tag="move"):
            x: int
            to: list[str]

        client = await self.connected(self.server)
        reply = await client.request(Move(x=1, to=["a"]))
        self.assertEqual(reply["original_message"]["type"], "move")
        self.assertEqual((reply["original_message"]["x"], reply["original_message"]["to"]), (1, ["a"]))
        client.send(Move(x=2, to=[]))
        reply = await client.request(MappingProxyType({"type": "proxied", "x": 3}))
        self.assertEqual(reply["original_message"]["x"], 3)
        self.assertEqual(client.waiting, 0)

    async def test_compression(self) -> None:
        """Long messages are compressed both ways, where that was not declined."""
        sizes = {}
        server = await self.start()
        for compress in (True, False):
            client = await self.connected(server, compress=compress)
            # The first answer says that compression was agreed on.
            await client.ping()
            content = "the same again, " * 10_000
            for _ in range(5):
                self.assertEqual(await client.echo(content), content)
            assert client.server is not None
            client_id = client.server.client_id
            await client.close()
            sizes[compress] = await deferToThread(server.disconnects, client_id)
        for name in ("bytes_in", "bytes_out"):
            self.assertLess(int(sizes[True][name]), 50_000, sizes)
            self.assertGreater(int(sizes[False][name]), 800_000, sizes)

    async def test_where(self) -> None:
        """What leads nowhere is refused in one line."""
        refused = [
            *(
                "",
                ":",
                ":5",
                "host:",
                "host:port",
                "1.2.3.4:99999",
                "host:0",
                "host:5:6",
                "[::1",
                "tcp:",
                "tcp:h:x",
            ),
            *("nonsense:x:y", f"tls:h:1:trustRoots={folder() / 'none'}"),
        ]
        for odd in refused:
            with self.assertRaises(ValueError, msg=odd) as caught:
                Client(self.reactor, odd)
            self.assertNotIn("\n", str(caught.exception))
        for odd in (
            "a b:1",
            "\ud800",
            "\0:1",
            "-:1",
            "a..b:1",
            "unix:",
            f"unix:{folder() / 'none.sock'}",
            "a" * 300,
        ):
            await self.fails(self.client(odd, retries=0).connect(timeout=5), Disconnected)
        with self.assertRaises(ValueError):
            Client(self.reactor, "127.0.0.1:1", ca=str(folder() / "none.pem"))


class BoundTests(ClientTestCase):
    """What is not sent."""

    async def test_too_large(self) -> None:
        """Longer than the server takes, and exactly as long."""
        server = await self.start("--max-length", "1000")
        client = await self.connected(server)
        assert client.server is not None
        self.assertEqual(client.server.max_length, 1000)
        longest = 0
        for size in range(900, 1001):
            request = client.echo("x" * size)
            if request.called:
                await self.fails(request, TooLarge)
                break
            self.assertEqual(await request, "x" * size)
            longest = size
        self.assertGreater(longest, 900)
        before = (await client.stats())["total_messages"]
        await self.fails(client.request("x", data="é" * 800), TooLarge)
        self.assertRaises(TooLarge, client.send, "x" * 1001)
        self.assertRaises(TooLarge, client.send, {"type": "t", "data": "x" * 1000})
        client.send("x" * 1000)
        self.assertEqual((await client.stats())["total_messages"], before + 2)
        self.assertEqual(client.waiting, 0)

    async def test_no_json(self) -> None:
        """It fails by the Deferred, and nothing is sent."""
        client = await self.connected(self.server, timeout=5)
        cycle: list[object] = []
        cycle.append(cycle)
        deep: list[object] = []
        for _ in range(100_000):
            deep = [deep]
        odd: list[object] = [object(), float("nan"), [float("-inf")], "\ud800", {1j: 1}, cycle, deep]
        for each in odd:
            await self.fails(client.echo(each), TypeError, ValueError)
            await self.fails(client.broadcast([each]), TypeError, ValueError)
            await self.fails(client.request("x", data=each), TypeError, ValueError)
            with self.assertRaises((TypeError, ValueError)):
                client.send({"type": "x", "data": each})
        no_messages: list[Any] = [{}, {"type": 5}, {"type": "\ud800"}, [], 5, None]
        for wrong in no_messages:
            await self.fails(client.request(wrong), TypeError, ValueError)
            with self.assertRaises((TypeError, ValueError)):
                client.send(wrong)
        self.assertRaises(ValueError, client.send, "\ud800")
        self.assertEqual(client.waiting, 0)
        # It is JSON, if none that the server sends back.
        await self.fails(client.echo(2**64), BadJSON)
        for fine in ("null", [None, {"null": None}], "NaN", 1e308, {"1": ()}):
            self.assertEqual(await client.echo(fine), {"1": []} if isinstance(fine, dict) else fine)
        deep.clear()

    async def test_texts(self) -> None:
        """A text comes back as that text, whatever it looks like; bytes are sent as they are."""
        heard: list[Message] = []
        client = await self.connected(self.server, on_message=heard.append)
        texts = [
            "hello",
            "5",
            "null",
            '"quoted"',
            '{"type": "ping"}',
            "[1, 2",
            "{",
            " x ",
            "\ufeff",
            "",
            "é\0\u2028",
        ]
        for text in texts:
            client.send(text)
        for payload in (b'{"type": "custom", "own": 1}', b"{broken", b"[1]", b""):
            client.send(payload)
        self.assertEqual(await client.echo("behind them"), "behind them")
        self.assertEqual([message.get("original_text") for message in heard[: len(texts)]], texts)
        rest = [message.get("code") or message["type"] for message in heard[len(texts) :]]
        self.assertEqual(rest, ["response", "bad_json", "echo", "bad_frame"])

    async def test_ids(self) -> None:
        """Those of the user's own come back in what is no reply; the client's own are not to be had."""
        heard: list[Message] = []
        client = await self.connected(self.server, on_message=heard.append)
        for own in ("mine", 0, 2**62):
            client.send({"type": "ping", "id": own})
        await self.until(lambda: len(heard) == 3, "they came back")
        self.assertEqual([message["id"] for message in heard], ["mine", 0, 2**62])
        for taken in (-1, -2, -3, -(2**63)):
            with self.assertRaises(ValueError):
                client.send({"type": "ping", "id": taken})
            await self.fails(client.request({"type": "ping", "id": taken}), ValueError)

    async def test_stalled(self) -> None:
        """100,000 requests that a server does not read: most are refused, and memory stays bounded."""
        server = await self.start()
        client = await self.connected(server, max_queue=1024 * 1024, timeout=None)
        server.signal(signal.SIGSTOP)
        before = resident()
        waiting: list[Deferred[Any]] = []
        refused = 0
        for number in range(100_000):
            request = client.echo([number, "x" * 100])
            if request.called:
                await self.fails(request, QueueFull)
                refused += 1
            else:
                waiting.append(request)
            if number % 1000 == 0:
                await deferLater(self.reactor, 0)
        self.assertEqual(client.waiting, len(waiting))
        self.assertEqual(refused + len(waiting), 100_000)
        self.assertGreater(refused, 20_000)
        self.assertRaises(QueueFull, client.send, "x")
        self.assertLess(resident() - before, 100 * 2**20)
        # It is the bound of the client, and not of the time: all of what was taken is answered.
        server.signal(signal.SIGCONT)
        numbers = [(await request)[0] for request in waiting]
        self.assertEqual(numbers, sorted(numbers))
        self.assertEqual(client.waiting, 0)

    async def test_longer_than_it_takes(self) -> None:
        """More bytes than the client wants, inflated or not, end the connection; it comes back."""
        for compress in (True, False):
            client = await self.connected(self.server, max_length=5000, compress=compress)
            self.assertEqual(await client.echo("x" * 4000), "x" * 4000)
            reason = await self.fails(client.echo("x" * 6000), Disconnected, TooLarge)
            self.assertRegex(str(reason), "5,?000|longer|max_length")
            await self.until(lambda: client.connected, "it is back")  # noqa: B023
            self.assertEqual(await client.echo("short"), "short")

    async def test_one_turn(self) -> None:
        """What one turn of the reactor sends counts, too."""
        client = await self.connected(self.server, max_queue=100_000)
        requests = [client.echo([number, "x" * 1000]) for number in range(200)]
        outcomes = Counter[str]()
        for request in requests:
            request.addCallbacks(
                lambda content: outcomes.update(["answered"]),
                lambda failure: outcomes.update([failure.type.__name__]),
            )
        await self.until(lambda: outcomes.total() == 200, "all came back")
        self.assertEqual(set(outcomes), {"answered", "QueueFull"})
        self.assertLess(outcomes["answered"], 100)


def resident() -> int:
    """Bytes of memory that this process has; skips the test where the system does not say."""
    try:
        text = Path("/proc/self/statm").read_text(encoding="ascii")
    except OSError:
        raise SkipTest("needs /proc") from None
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


class CloseTests(ClientTestCase):
    """`close`, at any time. Trial sees to it that nothing is left."""

    async def test_before_the_start(self) -> None:
        """There is nothing to close; twice is once."""
        client = self.client(self.server)
        await client.close()
        await client.close()

    async def test_while_it_connects(self) -> None:
        """The attempt is given up, and who waits for it is told."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            # They take all the room there is: the next one waits.
            others = []
            for _ in range(3):
                other = socket.socket()
                self.addCleanup(other.close)
                other.setblocking(False)
                other.connect_ex(("127.0.0.1", port))
                others.append(other)
            client = self.client(f"127.0.0.1:{port}")
            connecting = client.connect()
            await deferLater(self.reactor, 0.01)
            await client.close()
            await self.fails(connecting, Disconnected)
            self.assertFalse(client.running)

    async def test_at_once(self) -> None:
        """In the same turn as the start."""
        client = self.client(self.server)
        connecting = client.connect()
        await client.close()
        await self.fails(connecting, Disconnected)

    async def test_before_the_welcome(self) -> None:
        """Connected, and not served yet."""
        stranger = self.stranger(silent)
        client = self.client(stranger)
        connecting = client.connect()
        await self.until(lambda: stranger.accepted, "it is connected")
        await client.close()
        await self.fails(connecting, Disconnected)

    async def test_during_the_login(self) -> None:
        """The proof is being made."""
        server = await self.start(
            "--auth", f"scram:{write(new_path('.u'), users({'alice': 'sesame'}, 500_000))}"
        )
        challenged: list[bytes] = []

        def trace(direction: str, payloads: Sequence[bytes]) -> None:
            challenged.extend(payload for payload in payloads if b"auth_challenge" in payload)

        client = self.client(server, credentials=Password("alice", "sesame"), trace=trace)
        connecting = client.connect()
        await self.until(lambda: challenged, "the challenge came")
        await client.close()
        await self.fails(connecting, Disconnected)

    async def test_while_it_waits_to_retry(self) -> None:
        """It does not try again."""
        proxy = self.proxy()
        waits: list[float] = []
        client = self.client(proxy, random=lambda: 0.9, on_retry=lambda error, seconds: waits.append(seconds))
        connecting = client.connect()
        await self.until(lambda: waits, "it waits")
        await client.close()
        await self.fails(connecting, Disconnected)
        self.assertEqual(self.calls(), 0)
        self.assertEqual(proxy.accepted, 1)

    async def test_while_requests_wait(self) -> None:
        """Each fails, once."""
        client = await self.connected(self.stranger(silent_after_hello))
        requests = [client.echo(number) for number in range(1000)]
        closing = client.close()
        for request in requests:
            await self.fails(request, Disconnected)
        await closing
        self.assertEqual(client.waiting, 0)
        await self.fails(client.ping(), Disconnected)
        self.assertRaises(Disconnected, client.send, "x")

    async def test_what_was_sent_arrives(self) -> None:
        """What is sent without waiting goes out before the connection ends."""
        witness: list[object] = []
        await self.connected(self.server, on_message=lambda message: witness.append(message.get("content")))
        client = await self.connected(self.server)
        for number in range(100):
            client.send({"type": "broadcast", "content": [number, "x" * 1000]})
        await client.close()
        await self.until(lambda: len(witness) == 100, "all arrived")

    async def test_a_server_that_does_not_read(self) -> None:
        """It is closed all the same, soon."""
        stranger = self.stranger(stalls_after(0))
        client = await self.connected(stranger)
        for _ in range(100):
            client.send("x" * 60_000)
        await deferLater(self.reactor, 0)
        begin = self.reactor.seconds()
        both = [client.close(), client.close()]
        for each in both:
            await each
        self.assertLess(self.reactor.seconds() - begin, 4)
        self.assertEqual(self.calls(), 0)

    async def test_again(self) -> None:
        """A client that was closed can connect again."""
        client = self.client(self.server)
        for _ in range(3):
            await client.connect()
            self.assertEqual(await client.echo("x"), "x")
            await client.close()
            self.assertFalse(client.connected)

    async def test_again_at_once(self) -> None:
        """Without waiting for the end of the connection before."""
        proxy = self.proxy(self.server)
        client = await self.connected(proxy)
        for _ in range(3):
            closing = client.close()
            await client.connect()
            self.assertEqual(await client.echo("x"), "x")
            await closing
            self.assertTrue(client.connected)
        await client.close()
        await self.until(lambda: not proxy.open, "all are closed")

    async def test_several_wait(self) -> None:
        """Each of those who wait for the connection is told; one that gives up takes it from nobody."""
        client = self.client(self.server)
        first, second, third = client.connect(), client.connect(), client.connect()
        first.cancel()
        await self.fails(first, CancelledError)
        for each in (second, third):
            self.assertEqual((await each)["type"], "welcome")
        self.assertEqual((await client.connect())["type"], "welcome")

    async def test_after_a_failure(self) -> None:
        """So can one that gave up."""
        proxy = self.proxy()
        client = self.client(proxy, retries=0)
        await self.fails(client.connect(), Disconnected)
        proxy.target = self.server.address
        await client.connect()
        self.assertEqual(await client.echo("x"), "x")

    async def test_leaves_with_an_error(self) -> None:
        """`async with` closes, whatever ends it."""
        client = self.client(self.server)

        async def work() -> None:
            async with client:
                self.assertTrue(client.connected)
                raise ZeroDivisionError

        await self.fails(work(), ZeroDivisionError)
        self.assertFalse(client.running)


class CallbackTests(ClientTestCase):
    """What the application is told, and does then."""

    async def test_broadcasts(self) -> None:
        """Those of others come, in order, and no replies with them; one that awaits is awaited."""
        heard: list[object] = []

        async def hear(message: Message) -> None:
            await deferLater(self.reactor, 0)
            heard.append(message["content"])

        await self.connected(self.server, on_message=hear)
        client = await self.connected(self.server)
        for number in range(100):
            self.assertGreaterEqual(await client.broadcast(number), 1)
        await self.until(lambda: len(heard) == 100, "all came")
        self.assertEqual(heard, list(range(100)))

    async def test_the_course_of_things(self) -> None:
        """Connected, gone, again, each once and in order."""
        proxy = self.proxy(self.server)
        course: list[str] = []
        client = self.client(
            proxy,
            on_connect=lambda welcome: course.append(f"connect {welcome['type']}"),
            on_disconnect=lambda error: course.append(f"disconnect {type(error).__name__}"),
            on_retry=lambda error, seconds: course.append("retry"),
            on_failure=lambda error: course.append("failure"),
        )
        await client.connect()
        proxy.cut()
        await self.until(lambda: len(course) > 1 and client.connected, "it is back")
        await client.close()
        one = ["connect welcome", "disconnect Disconnected"]
        await self.until(lambda: len(course) == 5, "the end is told")
        self.assertEqual(course, [*one, "retry", *one])

    async def test_raises(self) -> None:
        """It is logged, and does no harm."""
        proxy = self.proxy(self.server)

        def fail(*arguments: object) -> None:
            raise ZeroDivisionError

        async def fail_later(*arguments: object) -> None:
            await deferLater(self.reactor, 0)
            raise ZeroDivisionError

        for callback in (fail, fail_later):
            client = await self.connected(
                proxy, on_message=callback, on_connect=callback, on_disconnect=callback, on_retry=callback
            )
            client.send("a")
            client.send("b")
            self.assertEqual(await client.echo("x"), "x")
            accepted = proxy.accepted
            proxy.cut()
            # It may be back at once.
            await self.until(lambda: proxy.accepted > accepted and client.connected, "it is back")  # noqa: B023
            self.assertEqual(await client.echo("x"), "x")
            await client.close()
            await deferLater(self.reactor, 0.01)
        # Twice connected, twice gone, once a retry, two messages; for each of both.
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 14)

    async def test_a_trace_that_fails(self) -> None:
        """It may be a full disk: the connection goes on."""

        def trace(direction: str, payloads: Sequence[bytes]) -> None:
            raise OSError(28, "No space left on device")

        client = await self.connected(self.server, trace=trace, timeout=5)
        self.assertEqual(await client.echo("x"), "x")
        self.assertGreaterEqual(len(self.flushLoggedErrors(OSError)), 1)

    async def test_a_result_that_raises(self) -> None:
        """Who handles a reply and fails harms only himself."""
        client = await self.connected(self.server)
        requests = [client.echo(number) for number in range(10)]
        requests[3].addCallback(lambda content: 1 / 0)
        for number, request in enumerate(requests):
            if number == 3:
                await self.fails(request, ZeroDivisionError)
            else:
                self.assertEqual(await request, number)
        self.assertTrue(client.connected)

    async def test_closes(self) -> None:
        """Each callback may close; nothing is heard after that."""
        for name in ("on_connect", "on_message", "on_disconnect", "on_retry"):
            proxy = self.proxy(self.server)
            heard: list[str] = []
            closed: list[Deferred[None]] = []
            clients: list[Client] = []

            def callback(
                name: str,
                which: str,
                heard: list[str],
                closed: list[Deferred[None]],
                clients: list[Client],
                *arguments: object,
            ) -> None:
                heard.append(name)
                if name == which:
                    closed.append(clients[0].close())

            client = self.client(
                proxy,
                **{
                    each: lambda *arguments, each=each, rest=(name, heard, closed, clients): callback(
                        each, *rest, *arguments
                    )
                    for each in ("on_connect", "on_message", "on_disconnect", "on_retry")
                },
            )
            clients.append(client)
            client.start()
            if name != "on_connect":
                await self.until(lambda: client.connected, "it is served")  # noqa: B023
                for text in "abc":
                    client.send(text)
                if name != "on_message":
                    await self.until(lambda: heard.count("on_message") == 3, "all came")  # noqa: B023
                    proxy.cut()
            await self.until(lambda: closed, f"{name} is called")  # noqa: B023
            await closed[0]
            self.assertEqual(heard.count(name), 1, (name, heard))
            self.assertFalse(client.running or client.connected, name)
            self.assertEqual(self.calls(), 0, name)
            accepted = proxy.accepted
            await client.close()
            self.assertEqual(proxy.accepted, accepted)

    async def test_a_reply_that_closes(self) -> None:
        """In the midst of many: those behind it fail, each once."""
        client = await self.connected(self.server)
        requests = [client.echo(number) for number in range(100)]
        requests[10].addCallback(lambda content: client.close())
        outcomes = Counter[str]()
        for number, request in enumerate(requests):
            try:
                await request
                outcomes["answered"] += 1
            except Disconnected:
                outcomes["failed"] += 1
                self.assertGreater(number, 10)
        self.assertEqual(outcomes, {"answered": 11, "failed": 89})

    async def test_a_failure_that_cancels(self) -> None:
        """Whose request fails may cancel the others, and close the client; each comes back once."""
        proxy = self.proxy(self.stranger(silent_after_hello))
        client = await self.connected(proxy)
        requests = [client.echo(number) for number in range(100)]

        def give_up(failure: object) -> object:
            for request in requests[50:]:
                request.cancel()
            client.close()
            return failure

        requests[10].addErrback(give_up)
        proxy.cut()
        kinds = Counter[type[Exception]]()
        for request in requests:
            kinds[type(await self.fails(request, Disconnected, CancelledError))] += 1
        self.assertEqual(kinds, {Disconnected: 50, CancelledError: 50})
        self.assertFalse(client.running)

    async def test_closes_before_the_queue(self) -> None:
        """What waited for the connection is not sent when `on_connect` closes it; it fails."""
        asked: list[Message] = []

        def reply(message: Message) -> list[Message]:
            asked.append(message)
            return [echo(message)]

        def close(welcome: Message) -> Deferred[None]:
            return clients[0].close()

        clients: list[Client] = []
        client = self.client(self.stranger(answers(reply)), offline="queue", on_connect=close)
        clients.append(client)
        client.start()
        requests = [client.echo(number) for number in range(10)]
        for request in requests:
            await self.fails(request, Disconnected)
        await client.close()
        self.assertEqual(asked, [])

    async def test_asks(self) -> None:
        """Each callback may ask; a failure may lead to the next request."""
        proxy = self.proxy(self.server)
        results: list[object] = []

        def ask(*arguments: object) -> Deferred[Any]:
            return client.echo("from a callback").addBoth(results.append)

        client = self.client(proxy, on_connect=ask, on_message=ask, on_disconnect=ask, on_retry=ask)
        await client.connect()
        await self.until(lambda: len(results) == 1, "it came back")
        client.send("a text")
        await self.until(lambda: len(results) == 2, "it came back")
        self.assertEqual(results, ["from a callback"] * 2)
        request = client.request("x")
        request.addErrback(lambda failure: client.echo("once more"))
        proxy.cut()
        await self.until(lambda: client.connected and len(results) == 5, "it is back")
        for result in results[2:4]:
            self.assertIs(result.type, Disconnected)  # type: ignore[attr-defined]  # a Failure
        self.assertEqual(results[4], "from a callback")
        with contextlib.suppress(Disconnected):
            await request

    async def test_starts(self) -> None:
        """A callback may start it anew, when it is gone for good."""
        proxy = self.proxy(self.server)
        clients: list[Client] = []
        client = self.client(proxy, retries=0, on_failure=lambda error: clients[0].start())
        clients.append(client)
        await client.connect()
        proxy.target = None
        proxy.cut()
        await self.until(lambda: proxy.accepted >= 3, "it goes on")
        await client.close()


class StrangerTests(ClientTestCase):
    """Servers that are none, or odd ones: an error, and never an exception of another kind."""

    async def test_no_welcome(self) -> None:
        """Whatever comes instead of it."""
        for name, data in NO_WELCOME.items():
            for close in (False, True):
                stranger = self.stranger(says(data, close=close))
                client = self.client(stranger)
                await self.fails(client.connect(timeout=0.2), Disconnected, ProtocolMismatch)
                self.assertFalse(client.running or client.connected, name)
                await deferToThread(stranger.stop)
        self.assertEqual(self.calls(), 0)

    async def test_garbage_later_on(self) -> None:
        """The same from a server that welcomed the client."""
        for name, data in NO_WELCOME.items():
            stranger = self.stranger(says(data, welcome=True))
            client = await self.connected(stranger)
            await self.fails(client.ping(timeout=0.1), Disconnected, RequestTimeout)
            self.assertEqual(client.waiting, 0, name)
            await client.close()
            await deferToThread(stranger.stop)

    async def test_half_a_frame(self) -> None:
        """And then nothing, or the end."""
        whole = encode(WELCOME)
        for size in (1, 3, 4, 5, len(whole) - 1):
            for close in (False, True):
                stranger = self.stranger(says(whole[:size], close=close))
                client = self.client(stranger)
                await self.fails(client.connect(timeout=0.2), Disconnected)
                await deferToThread(stranger.stop)

    async def test_silence_before_the_welcome(self) -> None:
        """A server that accepts and says nothing is given up, with TLS and without, and tried again."""
        strangers = [self.stranger(silent), self.stranger(silent)]
        reasons: list[Exception] = []
        for stranger, ca in zip(strangers, (None, str(authority().file)), strict=True):
            self.client(stranger, ca=ca, on_retry=lambda reason, seconds: reasons.append(reason)).start()
        await self.until(lambda: all(each.accepted > 1 for each in strangers), "they are given up")
        for reason in reasons:
            self.assertIsInstance(reason, Disconnected)
            self.assertIn("10 seconds", str(reason))

    async def test_byte_by_byte(self) -> None:
        """A welcome in pieces is one."""
        whole = encode(WELCOME)
        client = await self.connected(self.stranger(says(*(whole[n : n + 1] for n in range(len(whole))))))
        self.assertTrue(client.connected)

    async def test_odd_welcomes(self) -> None:
        """Each leads to a client that is served, or to a clear error."""
        for name, fields in ODD_WELCOME.items():
            stranger = self.stranger(answers(lambda message: [echo(message)], welcome=fields))
            client = self.client(stranger)
            try:
                await client.connect(timeout=0.5)
            except (Disconnected, ProtocolMismatch, AuthenticationFailed) as reason:
                self.assertTrue(str(reason), name)
            else:
                try:
                    self.assertEqual(await client.echo("x", timeout=1), "x", name)
                except TooLarge:
                    self.assertIn("below", name)
            await client.close()
            await deferToThread(stranger.stop)

    async def test_wrong_ids(self) -> None:
        """They are nobody's reply."""
        for odd in (
            lambda own: own - 1000,
            str,
            float,
            lambda own: [own],
            lambda own: {"id": own},
            bool,
            repr,
        ):
            stranger = self.stranger(
                answers(lambda message, odd=odd: [echo(message) | {"id": odd(message["id"])}])  # type: ignore[misc]
            )
            client = await self.connected(stranger)
            await self.fails(client.echo("x", timeout=0.05), RequestTimeout)
            self.assertTrue(client.connected)
            self.assertEqual(client.waiting, 0)
            await client.close()
            await deferToThread(stranger.stop)

    async def test_twice(self) -> None:
        """The second answer is nobody's."""
        heard: list[Message] = []
        stranger = self.stranger(answers(lambda message: [echo(message)] * 2))
        client = await self.connected(stranger, on_message=heard.append)
        for number in range(100):
            self.assertEqual(await client.echo(number), number)
        self.assertEqual(heard, [])

    async def test_out_of_order(self) -> None:
        """Each answer finds its request by its `id`."""
        kept: list[Message] = []

        def reply(message: Message) -> list[Message]:
            kept.append(echo(message))
            return kept[::-1] if len(kept) == 100 else []

        client = await self.connected(self.stranger(answers(reply)))
        requests = [client.echo(number) for number in range(100)]
        self.assertEqual([await request for request in requests], list(range(100)))

    async def test_poor_replies(self) -> None:
        """Replies that lack all their fields, or have them wrong, are replies."""
        odd: list[Message] = [
            {},
            {"content": None, "recipients": "3", "connected_clients": None, "ping_timestamp": []},
        ]
        for fields in odd:

            def reply(message: Message, fields: Message = fields) -> list[Message]:
                kind = {
                    "ping": "pong",
                    "echo": "echo_response",
                    "broadcast": "broadcast_sent",
                    "get_stats": "server_stats",
                }.get(message["type"], "whatever")
                return [{"type": kind, "id": message["id"], **fields}]

            client = await self.connected(self.stranger(answers(reply)), timeout=2)
            self.assertIsInstance(await client.ping(), float)
            self.assertIsNone(await client.echo(1))
            self.assertIsInstance(await client.broadcast(1), int)
            self.assertIsInstance(await client.stats(), dict)
            self.assertIsInstance(await client.request("x"), dict)
            await client.close()

    async def test_poor_errors(self) -> None:
        """Errors that lack their fields, or have them wrong, are errors."""
        odd: list[Message] = [
            {},
            {"code": 5, "message": ["x"], "fatal": "no", "retry_after": "soon"},
            {"code": "made_up", "message": "", "retry_after": -1},
            {"code": "forbidden", "message": None},
            {"code": ["forbidden"], "message": {"a": 1}, "retry_after": True},
        ]
        for fields in odd:

            def reply(message: Message, fields: Message = fields) -> list[Message]:
                return [{"type": "error", **fields, "id": message["id"]}, {"type": "error", **fields}]

            client = await self.connected(self.stranger(answers(reply)), timeout=2)
            await self.fails(client.ping(), ProtocolError)
            await self.fails(client.request("x"), ProtocolError)
            await client.close()

    async def test_odd_hello_responses(self) -> None:
        """The answer to `hello` may be anything."""
        for odd in (["zlib"], {"zlib": 1}, 5, "", "brotli", None):

            def script(visit: Visit, odd: object = odd) -> None:
                visit.send(WELCOME | {"compression": ["zlib"]})
                while True:
                    message = visit.receive()
                    kind = "hello_response" if message["type"] == "hello" else "echo_response"
                    visit.send({"type": kind, "compression": odd, "id": message["id"], "content": "x"})

            client = await self.connected(self.stranger(script), timeout=2)
            self.assertEqual(await client.echo("x" * 5000), "x")
            await client.close()

    async def test_unasked(self) -> None:
        """Messages of all types that nobody asked for are heard, and do no harm."""
        odd: list[object] = [
            {"type": "hello_response"},
            {"type": "hello_response", "id": -1, "compression": "zlib"},
            {"type": "auth_result", "status": "authentication_failed"},
            {"type": "auth_result", "id": -2, "status": "authentication_failed"},
            {"type": "auth_challenge", "id": -2, "data": "x"},
            {"type": "welcome", "protocol": 2},
            {"type": "pong"},
            {"type": "ping", "timestamp": {"x": []}},
            {"type": "error"},
            {"type": "error", "code": "internal", "fatal": False},
            {"type": None},
            {"type": [], "id": []},
            {"id": None},
            {"id": -3.0},
            {},
            [],
            "text",
        ]
        heard: list[Message] = []
        stranger = self.stranger(answers(lambda message: [*odd, echo(message)]))
        client = await self.connected(stranger, on_message=heard.append, timeout=2)
        self.assertEqual(await client.echo(1), 1)
        self.assertEqual(await client.echo(2), 2)
        self.assertIn({"type": "pong"}, heard)

    async def test_a_bomb(self) -> None:
        """What inflates beyond all bounds, or is broken, ends the connection."""
        import zlib

        for payload in (zlib.compress(bytes(200 * 2**20), 9), b"no stream", zlib.compress(b"{}") + b"x"):

            def script(visit: Visit, payload: bytes = payload) -> None:
                visit.send(WELCOME | {"compression": ["zlib"]})
                hello = visit.receive()
                visit.send({"type": "hello_response", "compression": "zlib", "id": hello["id"]})
                visit.payload()
                visit.write(frame(payload, True))
                visit.hold()

            before = resident()
            client = await self.connected(self.stranger(script))
            await self.fails(client.ping(timeout=5), Disconnected, TooLarge)
            self.assertLess(resident() - before, 100 * 2**20)
            await client.close()

    async def test_tells_why(self) -> None:
        """A fatal error is the reason of the end, and what waits knows it."""

        def script(visit: Visit) -> None:
            visit.send(WELCOME)
            visit.receive()
            visit.receive()
            visit.send(error("slow_consumer"))

        reasons: list[Exception] = []
        client = await self.connected(self.stranger(script), on_disconnect=reasons.append)
        reason = await self.fails(client.ping(), Disconnected, ProtocolError)
        self.assertIn("slow_consumer", str(reason))
        await self.until(lambda: reasons, "it is told")
        self.assertEqual(getattr(reasons[0], "code", None), "slow_consumer")


_ASYNCIO = """
import asyncio, sys
from twisted.internet import asyncioreactor

async def main(where, user, password):
    loop = asyncio.get_running_loop()
    asyncioreactor.install(loop)
    from twisted.internet import reactor
    # The loop runs already; what else the reactor has, its threads among them, starts.
    reactor.startRunning(installSignalHandlers=False)
    from tcpjson.client import Client
    from tcpjson.core.errors import RequestTimeout
    from tcpjson.credentials import Password

    heard = asyncio.Queue()
    options = {"credentials": Password(user, password)} if user else {}
    client = Client(reactor, where, on_message=heard.put, **options)
    await client.connect().asFuture(loop)
    print("connected", client.user)
    print("echo", await client.echo([1, "two"]).asFuture(loop))
    results = await asyncio.gather(*(client.echo(n).asFuture(loop) for n in range(1000)))
    print("gather", results == list(range(1000)))
    client.send("a text")
    print("heard", (await heard.get())["original_text"])
    task = asyncio.ensure_future(client.ping().asFuture(loop))
    task.cancel()
    await asyncio.sleep(0)
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled", client.waiting)
    await client.close().asFuture(loop)
    print("closed")
    reactor.fireSystemEvent("shutdown")

asyncio.run(main(*sys.argv[1:]))
"""


class AsyncioTests(ClientTestCase):
    """In a program of asyncio."""

    async def run_program(self, *arguments: str) -> str:
        """What the program prints; it ends well."""
        (python, *_), environment = command()
        words = [python, "-c", _ASYNCIO, *arguments]
        result = await deferToThread(
            subprocess.run,
            words,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        return str(result.stdout)

    async def test_run(self) -> None:
        """`asyncio.run`, by address and by name."""
        _, port = self.server.address
        for host in ("127.0.0.1", "localhost"):
            output = await self.run_program(f"{host}:{port}", "", "")
            self.assertEqual(
                output.splitlines(),
                [
                    "connected None",
                    "echo [1, 'two']",
                    "gather True",
                    "heard a text",
                    "cancelled 0",
                    "closed",
                ],
            )

    async def test_login(self) -> None:
        """A proof that takes time is made in a thread, there too."""
        server = await self.start("--auth", f"scram:{write(new_path('.u'), users({'alice': 'sesame'}))}")
        output = await self.run_program(where(server), "alice", "sesame")
        self.assertEqual(output.splitlines()[0], "connected alice")
