"""The pool, on a clock, against servers in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson.auth import Authenticator
from tcpjson.client.awaitable import Client
from tcpjson.client.breaker import CircuitBreaker
from tcpjson.client.pool import Pool
from tcpjson.core.breaker import CircuitOpen, State
from tcpjson.core.errors import (
    AuthenticationFailed,
    Disconnected,
    Forbidden,
    Internal,
    QueueFull,
    RequestTimeout,
)
from tcpjson.server import TCPJSONServerFactory
from tcpjson.test.hypo import given


@implementer(IStreamClientEndpoint)
class Host:
    """
    A server in memory, and the endpoint that leads to it.

    Args:
        clock: its time.
        name: what it is called.
    """

    def __init__(self, clock: Clock, name: str) -> None:
        self.name = name
        self.factory = TCPJSONServerFactory(clock)
        self.factory.doStart()
        #: Whether it answers; whether nothing passes.
        self.up = True
        self.stalled = False
        #: How often somebody tried to connect.
        self.attempts = 0
        self._clock = clock
        self._pumps: list[IOPump] = []
        self._known: list[IProtocolFactory] = []

    def __str__(self) -> str:
        return self.name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        self.attempts += 1
        if not self.up:
            return fail(ConnectionRefusedError())
        self._known.append(protocolFactory)
        address = IPv4Address("TCP", "127.0.0.1", 50_000 + self.attempts)
        client = protocolFactory.buildProtocol(address)
        connection = self.factory.buildProtocol(address)
        ends = FakeTransport(connection, True, peerAddress=address), FakeTransport(client, False)
        self._pumps.append(connect(connection, ends[0], client, ends[1], greet=False, clock=self._clock))
        assert client is not None
        return succeed(client)

    def move(self) -> bool:
        """Carry bytes to and fro; returns whether there were any."""
        moved = [pump.pump(advanceClock=False) for pump in self._pumps if not self.stalled]
        return True in moved

    def cut(self, count: int = 1000) -> None:
        """Lose connections, the oldest first."""
        for pump in [pump for pump in self._pumps if not pump.serverIO.disconnecting][:count]:
            pump.serverIO.disconnecting = True

    def serves(self, client: Client) -> bool:
        """Whether a client has been connected to it."""
        return client.factory in self._known

    def ask_for_a_password(self) -> None:
        """From now on."""
        self.factory.authenticator = Authenticator(
            [InMemoryUsernamePasswordDatabaseDontUse(ann=b"secret")],
            self._clock,
            lambda key, function, *args: maybeDeferred(function, *args),
            allow_plain=True,
        )


class Reactor(Clock):
    """A clock that takes no time before now: no reactor does."""

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        assert delay >= 0
        return super().callLater(delay, callable, *args, **kw)


class Lease:
    """Who leases a client and keeps it until `end`."""

    def __init__(self, pool: Pool, **options: Any) -> None:
        self._pool = pool
        self._end: Deferred[None] = Deferred()
        self.client: Client | None = None
        self.result = Deferred.fromCoroutine(self._run(options))

    async def _run(self, options: dict[str, Any]) -> str:
        async with self._pool.client(**options) as client:
            self.client = client
            await self._end
        return "done"

    def end(self, error: Exception | None = None) -> None:
        """Give it back, by an error or without."""
        if error is None:
            self._end.callback(None)
        else:
            self._end.errback(error)


class PoolTestCase(SynchronousTestCase):
    """Two servers, and pools."""

    def setUp(self) -> None:
        self.clock = Reactor()
        self.one, self.two = self.hosts = [Host(self.clock, "one"), Host(self.clock, "two")]
        self.pools: list[Pool] = []

    def tearDown(self) -> None:
        """Nothing is left of a pool that is closed."""
        closed = [pool.close() for pool in self.pools]
        self.settle()
        for host in self.hosts:
            host.stalled = False
            self.settle()
            host.factory.doStop()
        for result in closed:
            self.assertIs(self.successResultOf(result), None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def pool(self, *hosts: Host, **options: Any) -> Pool:
        """A pool that has begun to connect; waits between attempts are of half their bound."""
        pool = Pool(self.clock, hosts or self.hosts, **{"random": lambda: 0.5, **options})
        self.pools.append(pool)
        pool.start()
        self.settle()
        return pool

    def settle(self) -> None:
        """Let all happen that needs no time."""
        moved = True
        while moved:
            self.clock.advance(0)
            moved = sum(host.move() for host in self.hosts) > 0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(int(seconds * 8)):
            self.clock.advance(0.125)
            self.settle()

    def lease(self, pool: Pool, **options: Any) -> Lease:
        """A lease, which must be there at once."""
        lease = Lease(pool, **options)
        self.assertIsNotNone(lease.client)
        return lease

    def down(self, *hosts: Host) -> None:
        """Servers are no more."""
        for host in hosts:
            host.up = False
            host.cut()
        self.settle()

    def names(self, *leases: Lease) -> str:
        """Of whom leases are, by the first letters of their names."""
        found = [[host.name[0] for host in self.hosts if host.serves(lease.client)] for lease in leases]  # type: ignore[arg-type]  # they are there
        return "".join(name for [name] in found)

    def disconnected(self, result: Deferred[Any], text: str) -> None:
        """It must have failed so, and say that."""
        self.assertIn(text, str(self.failureResultOf(result, Disconnected).value))


class ChoiceTests(PoolTestCase):
    """Which connection a lease is of."""

    def test_so_many_to_each(self) -> None:
        pool = self.pool(size=3)
        self.assertEqual(pool.connected, 6)
        self.assertEqual([len(host.factory.clients) for host in self.hosts], [3, 3])

    def test_a_request(self) -> None:
        pool = self.pool()

        async def ask() -> Any:
            async with pool.client() as client:
                return await client.echo("x")

        result = Deferred.fromCoroutine(ask())
        self.settle()
        self.assertEqual(self.successResultOf(result), "x")

    def test_each_in_turn(self) -> None:
        """Where nobody has more to do than others: of each server one, and again."""
        pool = self.pool(size=2)
        clients = []
        for _ in range(8):
            lease = self.lease(pool)
            clients.append((self.names(lease), lease.client))
            lease.end()
        self.assertEqual("".join(name for name, _ in clients), "otototot")
        self.assertEqual(clients[:4], clients[4:])
        self.assertEqual(len(set(clients)), 4)

    def test_leases_spread(self) -> None:
        pool = self.pool(size=2)
        leases = [self.lease(pool) for _ in range(8)]
        self.assertEqual(len({lease.client for lease in leases[:4]}), 4)
        self.assertEqual(len({lease.client for lease in leases[4:]}), 4)
        leases[2].end()
        self.assertIs(self.lease(pool).client, leases[2].client)

    def test_the_one_for_which_least_waits(self) -> None:
        pool = self.pool(size=1)
        busy = self.lease(pool)
        assert busy.client is not None
        self.one.stalled = True
        pings = [busy.client.ping() for _ in range(3)]
        busy.end()
        leases = [self.lease(pool) for _ in range(4)]
        # The fourth would have been the fourth thing of the second server.
        self.assertEqual(self.names(*leases), "ttto")
        self.one.stalled = False
        self.settle()
        self.assertEqual(len([self.successResultOf(ping) for ping in pings]), 3)

    def test_what_is_not_connected_is_passed_over(self) -> None:
        pool = self.pool(size=2)
        self.down(self.one)
        self.assertEqual(pool.connected, 2)
        leases = [self.lease(pool) for _ in range(6)]
        self.assertEqual(self.names(*leases), "tttttt")
        self.one.up = True
        self.advance(1)
        self.assertEqual(pool.connected, 4)
        self.assertEqual(self.names(*(self.lease(pool) for _ in range(6))), "oooooo")

    def test_one_that_goes_away_is_passed_over(self) -> None:
        """As soon as it says so."""
        pool = self.pool(size=1)
        self.one.factory.drain()
        self.settle()
        self.assertEqual(self.names(*(self.lease(pool) for _ in range(3))), "ttt")

    def test_the_same_to_the_end(self) -> None:
        """Whoever has a lease sees its connection go, and come back."""
        pool = self.pool(self.one, size=1)
        lease = self.lease(pool)
        assert lease.client is not None
        self.one.cut()
        self.settle()
        self.failureResultOf(lease.client.ping(), Disconnected)
        self.advance(1)
        ping = lease.client.ping()
        self.settle()
        self.successResultOf(ping)
        lease.end()
        self.assertEqual(self.successResultOf(lease.result), "done")

    def test_an_error_within(self) -> None:
        """It goes on to whoever leased, and the lease is given back."""
        pool = self.pool(size=1)
        lease = self.lease(pool)
        lease.end(Forbidden("no"))
        self.failureResultOf(lease.result, Forbidden)
        self.assertEqual(self.names(self.lease(pool), self.lease(pool)), "to")

    def test_cancelled_within(self) -> None:
        pool = self.pool(size=1)
        lease = self.lease(pool)
        lease.result.cancel()
        self.failureResultOf(lease.result, CancelledError)
        self.assertEqual(self.names(self.lease(pool), self.lease(pool)), "to")

    def test_a_coroutine_that_is_given_up(self) -> None:
        pool = self.pool(self.one, self.two, size=1)

        async def forgotten() -> None:
            async with pool.client():
                await Deferred[None]()

        coroutine = forgotten()
        coroutine.send(None)
        del coroutine
        gc.collect()
        self.assertEqual(self.names(self.lease(pool), self.lease(pool)), "to")


class OfflineTests(PoolTestCase):
    """Leases while nothing is connected."""

    def setUp(self) -> None:
        super().setUp()
        self.one.up = self.two.up = False

    def come(self, *hosts: Host) -> None:
        """Servers are there again, and found."""
        for host in hosts:
            host.up = True
        self.advance(1)

    def test_fail(self) -> None:
        pool = self.pool(size=2)
        text = "not connected: one: Connection was refused by other side.; two: Connection was refused"
        self.disconnected(Lease(pool).result, text)
        self.come(self.two)
        self.lease(pool)
        self.down(self.two)
        self.disconnected(Lease(pool).result, "two: the server closed the connection")

    def test_not_started(self) -> None:
        for offline in ("fail", "queue"):
            pool = Pool(self.clock, self.hosts, offline=offline)
            self.disconnected(Lease(pool).result, "the pool is closed")

    def test_no_answer_yet(self) -> None:
        self.one.up = self.one.stalled = True
        pool = self.pool(self.one)
        self.disconnected(Lease(pool).result, "not connected: one: not yet")

    def test_queue(self) -> None:
        """All that wait are served by the first that connects."""
        pool = self.pool(offline="queue")
        leases = [Lease(pool) for _ in range(3)]
        self.assertEqual([lease.client for lease in leases], [None] * 3)
        self.come(self.two)
        self.assertEqual(self.names(*leases), "ttt")

    def test_in_the_order_of_their_coming(self) -> None:
        pool = self.pool(self.one, size=1, offline="queue")
        order: list[int] = []

        async def take(number: int) -> None:
            async with pool.client():
                order.append(number)

        for number in range(5):
            Deferred.fromCoroutine(take(number))
        self.come(self.one)
        self.assertEqual(order, [*range(5)])

    def test_not_in_time(self) -> None:
        pool = self.pool(offline="queue", timeout=2.0)
        usual, long, longer = Lease(pool), Lease(pool, timeout=4.0), Lease(pool, timeout=None)
        self.advance(1.875)
        self.assertNoResult(usual.result)
        self.advance(0.125)
        self.disconnected(usual.result, "not connected: one: Connection was refused")
        self.advance(1.875)
        self.assertNoResult(long.result)
        self.advance(0.125)
        self.disconnected(long.result, "not connected")
        self.advance(1000)
        self.assertNoResult(longer.result)
        self.advance(30)
        self.come(self.one)
        self.advance(30)
        self.assertIsNotNone(longer.client)

    def test_the_time_is_of_the_whole_wait(self) -> None:
        """However often it was woken in vain."""
        self.one.ask_for_a_password()
        pool = self.pool(self.one, self.two, size=1, offline="queue", timeout=4.0, restart=1.0)
        lease = Lease(pool)
        self.one.up = True
        self.advance(3.875)
        self.assertGreater(self.one.attempts, 2)
        self.assertNoResult(lease.result)
        self.advance(0.125)
        self.disconnected(lease.result, "one: the server asks")

    def test_woken_when_it_is_over(self) -> None:
        """As where the reactor was held up for long."""
        pool = self.pool(self.one, size=1, offline="queue", timeout=4.0, restart=1.0, retries=0)
        lease = Lease(pool)
        self.clock.advance(10)
        self.settle()
        self.assertEqual(self.one.attempts, 2)
        self.disconnected(lease.result, "not connected")

    def test_what_is_no_time(self) -> None:
        pool = self.pool(offline="queue", max_waiting=1)
        for timeout in (-1, 1e9, float("nan")):
            self.failureResultOf(Lease(pool, timeout=timeout).result, ValueError)
        lease = Lease(pool, timeout=0)
        self.settle()
        self.disconnected(lease.result, "not connected")

    def test_no_limit_of_time(self) -> None:
        pool = self.pool(offline="queue", timeout=None)
        lease = Lease(pool)
        self.advance(1000)
        self.come(self.one)
        self.advance(30)
        self.assertEqual(self.names(lease), "o")

    def test_so_many_may_wait(self) -> None:
        pool = self.pool(offline="queue", max_waiting=2, timeout=2.0)
        leases = [Lease(pool) for _ in range(2)]
        self.failureResultOf(Lease(pool).result, QueueFull)
        leases[0].result.cancel()
        self.failureResultOf(leases[0].result, CancelledError)
        last = Lease(pool)
        self.assertNoResult(last.result)
        self.failureResultOf(Lease(pool).result, QueueFull)
        self.come(self.one)
        self.assertEqual(self.names(leases[1], last), "oo")
        for _ in range(2):
            # There is place again after they were served, and after their time was up.
            self.down(self.one)
            waiting = [Lease(pool) for _ in range(2)]
            self.failureResultOf(Lease(pool).result, QueueFull)
            self.advance(2)
            for lease in waiting:
                self.failureResultOf(lease.result, Disconnected)

    def test_woken_in_vain_is_not_too_many(self) -> None:
        """Who waited keeps the place, though another one comes just then."""
        self.one.ask_for_a_password()
        leases: list[Lease] = []
        pool: Pool = self.pool(
            size=1, offline="queue", max_waiting=1, on_failure=lambda error: leases.append(Lease(pool))
        )
        first = Lease(pool)
        self.come(self.one)
        self.failureResultOf(leases[0].result, QueueFull)
        self.assertNoResult(first.result)
        self.come(self.two)
        self.assertEqual(self.names(first), "t")

    def test_cancelled_while_it_waits(self) -> None:
        pool = self.pool(offline="queue")
        leases = [Lease(pool) for _ in range(3)]
        leases[1].result.cancel()
        self.failureResultOf(leases[1].result, CancelledError)
        self.come(self.one)
        self.assertEqual(self.names(leases[0], leases[2]), "oo")
        self.assertIsNone(leases[1].client)

    def test_cancelled_by_another_one_that_is_woken(self) -> None:
        pool = self.pool(self.one, size=1, offline="queue")
        leases: list[Lease] = []

        async def take() -> None:
            async with pool.client():
                leases[0].result.cancel()

        Deferred.fromCoroutine(take())
        leases += [Lease(pool) for _ in range(2)]
        self.come(self.one)
        self.failureResultOf(leases[0].result, CancelledError)
        self.assertEqual(self.names(leases[1]), "o")

    def test_closed_while_they_wait(self) -> None:
        pool = self.pool(offline="queue")
        leases = [Lease(pool) for _ in range(3)]
        pool.close()
        for lease in leases:
            self.disconnected(lease.result, "the pool is closed")

    def test_nothing_is_kept_of_those_that_waited(self) -> None:
        pool = self.pool(offline="queue", timeout=1.0)
        leases = [Lease(pool) for _ in range(3)]
        leases[0].result.cancel()
        self.failureResultOf(leases[0].result, CancelledError)
        self.advance(1)
        for lease in leases[1:]:
            self.failureResultOf(lease.result, Disconnected)
        self.assertEqual((len(pool._changes), pool._waiting), (0, 0))


class ConnectTests(PoolTestCase):
    """`connect`, `close`, and what gives up."""

    def new(self, *hosts: Host, **options: Any) -> Pool:
        """A pool that was not started."""
        pool = Pool(self.clock, hosts or self.hosts, **{"random": lambda: 0.5, "size": 2, **options})
        self.pools.append(pool)
        return pool

    def test_one_is_enough(self) -> None:
        self.one.up = False
        self.two.stalled = True
        result = self.new().connect()
        self.advance(5)
        self.assertNoResult(result)
        self.two.stalled = False
        self.settle()
        self.assertIsNone(self.successResultOf(result))

    def test_so_many(self) -> None:
        self.one.up = False
        pool = self.new()
        none, two, three, all_ = (pool.connect(ready) for ready in (0, 2, 3, 4))
        self.successResultOf(none)
        self.assertNoResult(two)
        self.settle()
        self.successResultOf(two)
        self.assertNoResult(three)
        self.one.up = True
        self.advance(2)
        self.successResultOf(three)
        self.successResultOf(all_)
        self.successResultOf(pool.connect(4))

    def test_more_than_there_are(self) -> None:
        pool = self.new()
        for ready in (-1, 5):
            self.failureResultOf(pool.connect(ready), ValueError)
        for timeout in (-1, 1e9, float("nan")):
            self.failureResultOf(pool.connect(timeout=timeout), ValueError)
        self.assertEqual(self.one.attempts, 0)

    def test_not_in_time(self) -> None:
        """It fails with the last reason, and nothing goes on."""
        self.two.up = False
        result = self.new().connect(3, timeout=5)
        self.advance(4.875)
        self.assertNoResult(result)
        self.advance(0.125)
        self.disconnected(result, "two: Connection was refused")
        self.assertEqual(len(self.one.factory.connections), 0)
        attempts = self.two.attempts
        self.advance(100)
        self.assertEqual(self.two.attempts, attempts)

    def test_no_limit_of_time(self) -> None:
        self.one.up = self.two.up = False
        result = self.new().connect(timeout=None)
        self.advance(1000)
        self.assertNoResult(result)
        self.one.up = True
        self.advance(30)
        self.successResultOf(result)

    def test_cancelled(self) -> None:
        self.two.up = False
        pool = self.new()
        result = pool.connect(3)
        self.settle()
        self.assertEqual(pool.connected, 2)
        result.cancel()
        self.settle()
        self.failureResultOf(result, CancelledError)
        self.assertEqual((pool.connected, len(self.one.factory.connections)), (0, 0))

    def test_hopeless(self) -> None:
        """What no retry heals is not waited for, as long as it takes not the others, too."""
        self.one.ask_for_a_password()
        self.two.stalled = True
        pool = self.new()
        result = pool.connect(2)
        self.settle()
        self.assertNoResult(result)
        self.two.stalled = False
        self.settle()
        self.successResultOf(result)
        result = pool.connect(3)
        self.settle()
        failure = self.failureResultOf(result, AuthenticationFailed)
        self.assertEqual(pool.connected, 0)
        self.assertIn("asks", str(failure.value))
        result = self.new(self.one).connect()
        self.settle()
        self.failureResultOf(result, AuthenticationFailed)

    def test_one_that_gave_up_begins_anew(self) -> None:
        """Each after a time, and for as long as it takes."""
        self.one.ask_for_a_password()
        failures: list[Exception] = []
        pool = self.pool(self.one, size=2, restart=16.0, on_failure=failures.append)
        for attempts in (2, 4, 6):
            self.assertEqual((self.one.attempts, len(failures)), (attempts, attempts))
            self.advance(15.875)
            pool.start()
            self.settle()
            self.assertEqual(self.one.attempts, attempts)
            self.advance(0.125)
        self.assertIsInstance(failures[0], AuthenticationFailed)
        self.one.factory.authenticator = None
        self.advance(16)
        self.assertEqual(pool.connected, 2)
        result = pool.connect(2)
        self.settle()
        self.successResultOf(result)

    def test_one_that_gives_up_later(self) -> None:
        """As when a password was changed."""
        pool = self.pool(self.one, size=1, restart=16.0)
        self.one.ask_for_a_password()
        self.one.cut()
        self.advance(10)
        self.assertEqual(self.one.attempts, 2)
        self.one.factory.authenticator = None
        self.advance(16)
        self.assertEqual(pool.connected, 1)

    def test_no_retries_left(self) -> None:
        self.one.up = False
        pool = self.pool(self.one, size=1, restart=16.0, retries=1)
        self.advance(10)
        self.assertEqual(self.one.attempts, 2)
        self.advance(8)
        self.assertEqual(self.one.attempts, 4)
        self.disconnected(pool.connect(), "refused")

    def test_close(self) -> None:
        """Of all, those that gave up and those that try included."""
        self.one.ask_for_a_password()
        self.two.stalled = True
        pool = self.pool(offline="queue")
        closed = pool.close()
        self.assertNoResult(closed)
        self.two.stalled = False
        self.settle()
        self.assertIsNone(self.successResultOf(closed))
        attempts = self.one.attempts
        self.advance(100)
        self.assertEqual((self.one.attempts, len(self.two.factory.connections)), (attempts, 0))
        self.disconnected(Lease(pool).result, "the pool is closed")

    def test_closed_with_leases(self) -> None:
        pool = self.pool(size=1)
        lease = self.lease(pool)
        assert lease.client is not None
        ping = lease.client.ping()
        pool.close()
        self.settle()
        self.failureResultOf(ping, Disconnected)
        self.failureResultOf(lease.client.ping(), Disconnected)
        lease.end()
        self.successResultOf(lease.result)

    def test_closed_twice_and_opened_again(self) -> None:
        pool = self.pool(size=1)
        results = [pool.close(), pool.close()]
        self.settle()
        for result in results:
            self.successResultOf(result)
        pool.start()
        pool.start()
        self.settle()
        self.assertEqual((pool.connected, self.one.attempts), (2, 2))
        self.successResultOf(pool.connect())

    def test_closed_while_it_connects(self) -> None:
        self.one.up = self.two.up = False
        pool = self.new()
        result = pool.connect()
        pool.close()
        self.disconnected(result, "the pool is closed")

    def test_as_a_context(self) -> None:
        entered: list[Pool] = []
        outer = self.new()

        async def use() -> None:
            async with outer as pool:
                entered.append(pool)
                raise KeyError

        result = Deferred.fromCoroutine(use())
        self.settle()
        self.failureResultOf(result, KeyError)
        self.assertEqual((entered, outer.connected), ([outer], 0))
        self.assertEqual([len(host.factory.connections) for host in self.hosts], [0, 0])

    def test_a_callback_of_one_s_own(self) -> None:
        welcomes: list[dict[str, Any]] = []
        messages: list[dict[str, Any]] = []
        self.pool(size=2, on_connect=welcomes.append, on_message=messages.append)
        self.assertEqual([welcome["type"] for welcome in welcomes], ["welcome"] * 4)
        sender = self.lease(self.pool(self.one, size=1)).client
        assert sender is not None
        result = sender.broadcast("x")
        self.settle()
        self.assertEqual((self.successResultOf(result), len(messages)), (2, 2))

    def test_one_by_its_name(self) -> None:
        """Where it leads to is for `Client` to know."""
        for where in ("localhost:9999", self.one):
            pool = Pool(self.clock, where, offline="queue")
            self.disconnected(Lease(pool).result, "closed")
            self.assertEqual(pool.connected, 0)

    def test_bounds(self) -> None:
        for wrong, text in (
            ({"where": []}, "server"),
            ({"size": 0}, "size"),
            ({"offline": "wait"}, "offline"),
            ({"restart": 0}, "restart"),
            ({"where": "no:such:place"}, "no:such:place"),
            ({"restart": 1e9}, "restart"),
            ({"timeout": -1}, "timeout"),
        ):
            error = self.assertRaises(ValueError, Pool, self.clock, **{"where": self.hosts, **wrong})
            self.assertIn(text, str(error))


class BreakerTests(PoolTestCase):
    """A pool with a circuit breaker for each server."""

    def breakers(self, *hosts: Host, **options: Any) -> Pool:
        """Such a pool."""
        return self.pool(
            *hosts, breaker=lambda: CircuitBreaker(self.clock, failures=2, slow=4.0, reset=8.0), **options
        )

    def state(self, pool: Pool, host: Host) -> State:
        """That of the circuit of a server."""
        return pool.breakers[host].state

    def use(self, pool: Pool, error: Exception | None = None) -> str:
        """A lease that ends at once; returns the name of whom it was of."""
        lease = self.lease(pool)
        lease.end(error)
        if error is not None:
            self.failureResultOf(lease.result, type(error))
        return self.names(lease)

    def test_each_server_has_its_own(self) -> None:
        pool = self.breakers(size=2)
        self.assertEqual(list(pool.breakers), self.hosts)
        for _ in range(3):
            self.use(pool, Internal())
        self.assertEqual((self.state(pool, self.one), self.state(pool, self.two)), (State.OPEN, State.CLOSED))
        self.assertEqual(self.use(pool) + self.use(pool) + self.use(pool), "ttt")
        self.assertEqual(pool.breakers[self.two].figures().calls, 4)

    def test_without(self) -> None:
        self.assertEqual(self.pool().breakers, {})

    def test_all_are_open(self) -> None:
        """The one that closes first says when, and counts it."""
        pool = self.breakers(size=1)
        self.assertEqual(self.use(pool, Internal()) + self.use(pool) + self.use(pool, Internal()), "oto")
        self.advance(2)
        for _ in range(2):
            self.assertEqual(self.use(pool, Internal()), "t")
        failure = self.failureResultOf(Lease(pool).result, CircuitOpen)
        self.assertEqual(failure.value.retry_after, 6)
        self.assertEqual([pool.breakers[host].figures().rejected for host in self.hosts], [1, 0])
        self.advance(6)
        self.assertEqual(self.use(pool), "o")
        self.assertIs(self.state(pool, self.one), State.CLOSED)

    def test_one_trial_at_a_time(self) -> None:
        pool = self.breakers(self.one, size=3)
        for _ in range(2):
            self.use(pool, Disconnected())
        self.advance(8)
        trial = self.lease(pool)
        self.failureResultOf(Lease(pool).result, CircuitOpen)
        trial.result.cancel()
        self.failureResultOf(trial.result, CancelledError)
        self.assertIs(self.state(pool, self.one), State.HALF_OPEN)
        self.use(pool)
        self.assertIs(self.state(pool, self.one), State.CLOSED)

    def test_a_server_that_is_slow(self) -> None:
        pool = self.breakers(size=2)
        self.one.stalled = True
        leases = [self.lease(pool) for _ in range(4)]
        for lease in leases:
            assert lease.client is not None
            lease.client.ping().addCallbacks(lambda _, lease=lease: lease.end(), lambda failure: None)
        self.advance(4)
        self.assertEqual((self.state(pool, self.one), self.state(pool, self.two)), (State.OPEN, State.CLOSED))
        self.assertEqual("".join(self.use(pool) for _ in range(4)), "tttt")

    def test_the_caller_s_errors(self) -> None:
        pool = self.breakers(self.one)
        for _ in range(5):
            self.use(pool, Forbidden())
        self.assertIs(self.state(pool, self.one), State.CLOSED)

    def test_not_connected_is_passed_over_before(self) -> None:
        """What was not asked cannot fail."""
        pool = self.breakers(self.one)
        self.down(self.one)
        for _ in range(3):
            self.failureResultOf(Lease(pool).result, Disconnected)
        self.assertEqual(pool.breakers[self.one].figures().calls, 0)

    def test_waiting_leases_that_meet_an_open_circuit(self) -> None:
        """They do not wait for it to close."""
        pool = self.breakers(self.one, size=1, offline="queue")
        for _ in range(2):
            self.use(pool, Internal())
        self.down(self.one)
        lease = Lease(pool)
        self.assertNoResult(lease.result)
        self.one.up = True
        self.advance(1)
        self.failureResultOf(lease.result, CircuitOpen)


class AnythingTests(PoolTestCase):
    """Whatever happens, in whatever order."""

    @given(
        st.lists(
            st.one_of(
                st.sampled_from(
                    ["lease", "end", "fail", "cancel", "ping", "cut", "down", "up", "stall", "flow"]
                ),
                st.sampled_from(["password", "open", "close"]),
                st.integers(1, 60),
            ),
            max_size=40,
        ),
        st.booleans(),
    )
    def test_each_lease_ends_once(self, steps: list[str | int], breaker: bool) -> None:
        """None waits longer than it may, none waits while there is a connection, and nothing is left."""
        options: dict[str, Any] = (
            {"breaker": lambda: CircuitBreaker(self.clock, failures=2)} if breaker else {}
        )
        pool = self.pool(size=1, offline="queue", timeout=4.0, max_waiting=3, restart=2.0, **options)
        leases: list[Lease] = []
        outcomes: list[Any] = []
        began: dict[int, float] = {}
        pings: list[Deferred[float]] = []
        for number, step in enumerate(steps):
            host = self.hosts[number % 2]
            held = [lease for lease in leases if lease.client is not None and not lease.result.called]
            waiting = [lease for lease in leases if lease.client is None and not lease.result.called]
            if isinstance(step, int):
                self.advance(step / 8)
            elif step == "lease":
                lease = Lease(pool)
                began[id(lease)] = self.clock.seconds()
                lease.result.addBoth(outcomes.append)
                leases.append(lease)
            elif step in ("end", "fail", "ping") and held:
                lease = held[number % len(held)]
                assert lease.client is not None
                if step == "ping":
                    pings.append(lease.client.ping())
                else:
                    lease.end(Disconnected() if step == "fail" else None)
            elif step == "cancel" and held + waiting:
                (held + waiting)[number % len(held + waiting)].result.cancel()
            elif step == "cut":
                host.cut(1)
            elif step in ("down", "up"):
                host.up = step == "up"
                if step == "down":
                    host.cut()
            elif step in ("stall", "flow"):
                host.stalled = step == "stall"
            elif step == "password":
                host.ask_for_a_password()
            elif step == "open":
                host.factory.authenticator = None
                pool.start()
            elif step == "close":
                pool.close()
            self.settle()
            waiting = [lease for lease in leases if lease.client is None and not lease.result.called]
            held = [lease for lease in leases if lease.client is not None and not lease.result.called]
            self.assertLessEqual(len(waiting), 3)
            self.assertEqual(len(waiting), pool._waiting)
            self.assertEqual(sum(member.leases for member in pool._members), len(held))
            if pool.connected:
                self.assertEqual(waiting, [])
            for lease in waiting:
                self.assertLess(self.clock.seconds() - began[id(lease)], 4.0)
        for lease in leases:
            if lease.client is not None and not lease.result.called:
                lease.end()
        for host in self.hosts:
            host.stalled = False
        pool.close()
        self.settle()
        self.assertEqual(len(outcomes), len(leases))
        self.assertEqual(sum(member.leases for member in pool._members), 0)
        for ping in pings:
            self.assertTrue(ping.called)
            ping.addErrback(lambda failure: failure.trap(Disconnected, RequestTimeout, AuthenticationFailed))
        self.tearDown()
        self.setUp()
