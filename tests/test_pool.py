"""`tcpjson.client.Pool` and `CircuitBreaker` against servers that are killed, stalled and restarted."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tcpjson.client import CircuitBreaker, CircuitOpen, Client, Pool
from tcpjson.core.breaker import State
from tcpjson.core.errors import Disconnected, GoingAway, RequestTimeout
from tests.harness import Server
from tests.test_client import ClientTestCase, where

# Those who ask, one request after another, and the connections to each server.
CROWD = 40
SIZE = 4

# Seconds. What is healthy takes milliseconds.
SLOW, TIMEOUT, RESET = 1.0, 2.0, 0.5


class Crowd:
    """
    Numbered echoes of many who share a pool, and what became of each.

    Args:
        case: the test.
        pool: what they lease from.
    """

    def __init__(self, case: PoolTestCase, pool: Pool) -> None:
        self._case = case
        self._pool = pool
        self._over = False
        #: How many requests were begun, and how they ended, by the name of the error or the server.
        self.begun = 0
        self.outcomes: Counter[str] = Counter()
        #: What must not be: answers to other requests, errors of other kinds, and what ended twice.
        self.wrong: list[str] = []
        self._ended: set[int] = set()
        self._workers = [Deferred.fromCoroutine(self._work()) for _ in range(CROWD)]
        case.addCleanup(self._stop)

    def _stop(self) -> Deferred[Any]:
        self._over = True
        return DeferredList(self._workers)

    async def _work(self) -> None:
        while not self._over:
            self.begun += 1
            number = self.begun
            wait = 0.0
            try:
                outcome = await self._ask(number)
            except (Disconnected, RequestTimeout, CircuitOpen, GoingAway) as error:
                outcome = type(error).__name__
                # What fails at once would be asked again at once, and nothing else be done.
                wait = error.retry_after if isinstance(error, CircuitOpen) else 0.01
            except Exception as error:
                outcome = "wrong"
                self.wrong.append(f"{number}: {error!r}")
            if number in self._ended:
                self.wrong.append(f"{number} ended twice")
            self._ended.add(number)
            self.outcomes[outcome] += 1
            if wait:
                await deferLater(self._case.reactor, wait)

    async def _ask(self, number: int) -> str:
        async with self._pool.client() as client:
            answer = await client.echo(number)
        if answer != number:
            self.wrong.append(f"{number}: {answer!r}")
        return self._case.name_of(client)

    async def goes_on(self, *servers: str, count: int = 1000) -> None:
        """Wait until so many requests more were answered by each of some servers."""
        aims = {server: self.outcomes[server] + count for server in servers}
        figures = [breaker.figures for breaker in self._pool.breakers.values()]
        try:
            await self._case.until(
                lambda: all(self.outcomes[server] >= aim for server, aim in aims.items()), "they are answered"
            )
        except AssertionError as error:
            told = [f"{self._pool.connected} connected", *(each() for each in figures)]
            raise AssertionError(f"{error}: {aims}, {self.outcomes}, {told}") from None

    async def end(self) -> None:
        """Ask no more; see that each request has come to one end."""
        await self._stop()
        case = self._case
        case.assertEqual(self.wrong, [])
        case.assertEqual((self.outcomes.total(), len(self._ended)), (self.begun, self.begun))
        # The circuits tell the same.
        figures = [breaker.figures() for breaker in self._pool.breakers.values()]
        case.assertEqual(sum(each.rejected for each in figures), self.outcomes["CircuitOpen"])
        answered = sum(self.outcomes[name] for name in case.names)
        calls = sum(each.calls for each in figures)
        case.assertLessEqual(answered, calls)
        case.assertLessEqual(calls, self.begun - self.outcomes["CircuitOpen"])


class PoolTestCase(ClientTestCase):
    """Servers that tell by what they welcome with which one they are, and pools of connections to them."""

    def setUp(self) -> None:
        super().setUp()
        #: The names of the servers.
        self.names: list[str] = []

    async def named(self, name: str) -> Server:
        """Start a server."""
        self.names.append(name)
        return await self.start("--max-length", self.max_length(name))

    async def restart(self, server: Server, name: str) -> None:
        """Start it again, where it was."""
        await self.again(server, "--max-length", self.max_length(name))

    def max_length(self, name: str) -> str:
        """What a server is known by."""
        return str(100_000 + self.names.index(name))

    def name_of(self, client: Client) -> str:
        """Whom a client is connected to, or was."""
        assert client.server is not None
        assert client.server.max_length is not None
        return self.names[client.server.max_length - 100_000]

    async def pool(self, *servers: Server) -> Pool:
        """A pool with circuit breakers, all of whose connections are there."""
        pool = Pool(
            self.reactor,
            [where(server) for server in servers],
            size=SIZE,
            timeout=TIMEOUT,
            offline="queue",
            breaker=self.breaker,
            random=lambda: 0.3,
        )
        self.addCleanup(pool.close)
        await pool.connect(SIZE * len(servers))
        return pool

    def breaker(self) -> CircuitBreaker:
        """One that has found out soon."""
        return CircuitBreaker(self.reactor, slow=SLOW, reset=RESET)

    async def closes(self, breaker: CircuitBreaker) -> None:
        """Wait until the circuit is closed."""
        await self.until(lambda: breaker.state is State.CLOSED, "the circuit is closed")

    async def opens(self, breaker: CircuitBreaker, times: int = 1) -> None:
        """Wait until the circuit has opened, so many times from now on."""
        aim = breaker.figures().opened + times
        await self.until(lambda: breaker.figures().opened >= aim, "the circuit has opened")


class PoolTests(PoolTestCase):
    """Many requests of many, while servers fail."""

    async def test_one_server(self) -> None:
        """Killed and restarted, stalled, shut down and restarted: each request comes to one end."""
        server = await self.named("one")
        pool = await self.pool(server)
        [breaker] = pool.breakers.values()
        crowd = Crowd(self, pool)
        await crowd.goes_on("one")

        await self.kill(server)
        await self.until(lambda: not pool.connected, "the loss is noticed")
        # All that were under way failed, and opened the circuit.
        self.assertGreaterEqual(crowd.outcomes["Disconnected"], CROWD)
        self.assertGreaterEqual(breaker.figures().opened, 1)
        await self.restart(server, "one")
        await crowd.goes_on("one")
        await self.closes(breaker)

        server, _ = self.servers[-1]
        server.signal(signal.SIGSTOP)
        await self.opens(breaker)
        self.assertGreater(breaker.figures().slow, 0)
        await self.until(lambda: crowd.outcomes["RequestTimeout"], "requests time out")
        await self.until(lambda: crowd.outcomes["CircuitOpen"], "leases are refused")
        server.signal(signal.SIGCONT)
        await crowd.goes_on("one")
        await self.closes(breaker)
        self.assertEqual(pool.connected, SIZE, "it has never gone")

        server.signal(signal.SIGTERM)
        await deferToThread(server.wait)
        await self.restart(server, "one")
        await crowd.goes_on("one")
        await crowd.end()

    async def test_one_of_two_is_killed(self) -> None:
        """From when that is noticed on, all is answered by the other one; when it is back, by both."""
        one, two = await self.named("one"), await self.named("two")
        pool = await self.pool(one, two)
        crowd = Crowd(self, pool)
        await crowd.goes_on("one", "two")
        await self.kill(one)
        await self.until(lambda: pool.connected == SIZE, "the loss is noticed")
        before = Counter(crowd.outcomes)
        self.assertLessEqual(before["Disconnected"], CROWD)
        await crowd.goes_on("two")
        self.assertEqual(set(crowd.outcomes - before), {"two"})
        await self.restart(one, "one")
        await crowd.goes_on("one", "two")
        await crowd.end()

    async def test_one_of_two_stalls(self) -> None:
        """Its circuit opens, again after each trial, and the other one answers; then both do."""
        one, two = await self.named("one"), await self.named("two")
        pool = await self.pool(one, two)
        stalled, living = (pool.breakers[where(server)] for server in (one, two))
        crowd = Crowd(self, pool)
        await crowd.goes_on("one", "two")
        one.signal(signal.SIGSTOP)
        await self.opens(stalled)
        before = Counter(crowd.outcomes)
        await self.opens(stalled, 2)
        await crowd.goes_on("two")
        since = crowd.outcomes - before
        self.assertLessEqual(set(since), {"two", "RequestTimeout"})
        # Those who met it before, and one a trial.
        self.assertLess(since["RequestTimeout"], CROWD)
        self.assertEqual((living.state, pool.connected), (State.CLOSED, 2 * SIZE))
        one.signal(signal.SIGCONT)
        await crowd.goes_on("one", "two")
        await self.closes(stalled)
        await crowd.end()

    async def test_closed(self) -> None:
        """In the midst of it all: what is asked fails, and what waits for a connection."""
        server = await self.named("one")
        pool = await self.pool(server)
        crowd = Crowd(self, pool)
        await crowd.goes_on("one")
        closed = pool.close()
        await crowd.end()
        await closed
        self.assertEqual(pool.connected, 0)
        self.assertGreater(crowd.outcomes["Disconnected"], 0)


class BreakerTests(PoolTestCase):
    """A circuit breaker around a client."""

    async def test_stalled(self) -> None:
        """Nothing is sent while it is open; one request finds out that the server is back."""
        server = await self.named("one")
        client = await self.connected(server, timeout=TIMEOUT)
        breaker = self.breaker()
        self.assertEqual(await breaker.call(client.echo, "x"), "x")
        server.signal(signal.SIGSTOP)
        slow = [breaker.call(client.echo, number) for number in range(10)]
        await self.opens(breaker)
        for number in range(100):
            error = await self.fails(breaker.call(client.echo, number), CircuitOpen)
            self.assertTrue(0 < error.retry_after <= RESET)
        self.assertEqual(client.waiting, 10)
        server.signal(signal.SIGCONT)
        # They come late, and come.
        self.assertEqual(await gatherResults(slow), [*range(10)])
        self.assertIsNot(breaker.state, State.CLOSED)
        await deferLater(self.reactor, breaker.wait())
        self.assertEqual(await breaker.call(client.echo, "y"), "y")
        figures = breaker.figures()
        self.assertEqual((figures.state, figures.opened, figures.slow), (State.CLOSED, 1, 10))
        self.assertEqual((figures.calls, figures.rejected), (12, 100))
