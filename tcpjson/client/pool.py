"""Several connections to one server or more, shared by many."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from msgspec import UNSET, UnsetType
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IStreamClientEndpoint

from tcpjson.client.awaitable import Client
from tcpjson.client.breaker import CircuitBreaker
from tcpjson.client.link import check_seconds
from tcpjson.core.errors import Disconnected, QueueFull

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    Where = str | IStreamClientEndpoint

#: Connections to each server.
SIZE = 4
#: Leases that may wait for a connection.
MAX_WAITING = 1000
#: Seconds after which a client that gave up begins anew.
RESTART = 30.0


class _Member:
    """A client of the pool, and for how many it is leased."""

    __slots__ = ("breaker", "chosen", "client", "leases", "restart", "where")

    client: Client

    def __init__(self, where: Where, breaker: CircuitBreaker | None) -> None:
        self.where = where
        self.breaker = breaker
        self.leases = 0
        # The number of the lease that was its last.
        self.chosen = 0
        # When it gave up: what has it begin anew.
        self.restart: IDelayedCall | None = None

    def cost(self) -> tuple[float, int, int]:
        """The least is chosen: how long it must be left alone, what it has to do, and when it was chosen."""
        wait = 0.0 if self.breaker is None else self.breaker.wait()
        return wait, self.client.waiting + self.leases, self.chosen


class Pool:
    """
    Connections that come back by themselves, leased to whoever asks. A lease is of the connected one with the
    fewest requests and leases, and of each in turn where these are equal. Many share a connection: requests
    are told apart by their `id`.

        async with Pool(reactor, ["one.example:9999", "two.example:9999"]) as pool:
            async with pool.client() as client:
                await client.ping()

    In a program of asyncio, run such a coroutine as `Deferred.fromCoroutine(...).asFuture(loop)`.

    A client that gave up, as where authentication failed, begins anew after `restart` seconds.

    Args:
        reactor: the reactor.
        where: a server, or several, as `Client` takes one.
        size: connections to each of them, 1 or more.
        timeout: seconds in which a reply must come, and a connection for a lease that waits; None: no limit.
        offline: what becomes of leases while nothing is connected: they "fail", or "queue".
        max_waiting: how many leases may wait.
        restart: seconds, more than 0.
        breaker: makes a circuit breaker; each server gets its own. A lease is a call of it then, from its
            beginning to its end: keep it short. A server that is to be left alone is passed over; where no
            other is connected, the lease fails with `CircuitOpen`.
        on_connect, on_failure, options: as of `Client`, for each. What a server broadcasts comes to each
            connection, and to `on_message` as often.

    Raises:
        ValueError: with one line, if an argument will not do.
    """

    def __init__(
        self,
        reactor: Any,
        where: Where | Sequence[Where],
        *,
        size: int = SIZE,
        timeout: float | None = 30.0,
        offline: str = "fail",
        max_waiting: int = MAX_WAITING,
        restart: float = RESTART,
        breaker: Callable[[], CircuitBreaker] | None = None,
        on_connect: Callable[[dict[str, Any]], object] | None = None,
        on_failure: Callable[[Exception], object] | None = None,
        **options: Any,
    ) -> None:
        # A string is a sequence, too.
        servers = list(where) if isinstance(where, Sequence) and not isinstance(where, str) else [where]
        if not servers:
            raise ValueError("a pool needs a server")
        if size < 1:
            raise ValueError("size must be at least 1")
        if offline not in ("fail", "queue"):
            raise ValueError("offline must be one of fail, queue")
        check_seconds("restart", restart)
        if not restart > 0:
            raise ValueError("restart must be greater than 0")
        self._clock = reactor
        self._timeout = timeout
        self._queues = offline == "queue"
        self._max_waiting = max_waiting
        self._restart_after = restart
        self._on_connect = on_connect
        self._on_failure = on_failure
        #: The circuit breakers by server, if there are to be any.
        self.breakers = {} if breaker is None else {server: breaker() for server in servers}
        # One of each server, and again, as their first turns come.
        self._members = [_Member(server, self.breakers.get(server)) for server in servers * size]
        for member in self._members:
            member.client = Client(
                reactor,
                member.where,
                timeout=timeout,
                on_connect=self._connected,
                on_failure=partial(self._gave_up, member),
                **options,
            )
        self._running = False
        self._leases = 0
        self._waiting = 0
        # What fires when a client has connected or given up, or the pool is closed.
        self._changes: dict[Deferred[None], None] = {}

    # The connections.

    @property
    def connected(self) -> int:
        """How many are connected."""
        return sum(member.client.connected for member in self._members)

    def start(self) -> None:
        """Connect all, and again whenever one is lost, until `close`."""
        if not self._running:
            self._running = True
            for member in self._members:
                member.client.start()

    def connect(self, ready: int = 1, *, timeout: float | None = 30.0) -> Deferred[None]:
        """
        Start, and wait until so many are connected.

        It fails, and the pool is closed, with `Disconnected` when that takes longer than `timeout` seconds,
        and at once, with a reason of theirs, when too many have given up. So it is when it is cancelled.

        Args:
            ready: how many, from 0 to all.
            timeout: seconds; None: no limit.
        """
        return Deferred.fromCoroutine(self._connect(ready, timeout))

    async def _connect(self, ready: int, timeout: float | None) -> None:
        if not 0 <= ready <= len(self._members):
            raise ValueError(f"ready must be from 0 to {len(self._members)}")
        deadline = self._deadline(timeout)
        self.start()
        try:
            while self.connected < ready:
                lost = [member.client.error for member in self._members if member.restart is not None]
                if len(self._members) - len(lost) < ready:
                    raise lost[0] or self._disconnected()
                await self._change(deadline)
        except Exception:
            await self.close()
            raise

    def close(self) -> Deferred[None]:
        """
        Close all connections, and stop. Leases that wait fail with `Disconnected`. The result comes when the
        connections are gone.
        """
        self._running = False
        for member in self._members:
            if member.restart is not None:
                member.restart.cancel()
                member.restart = None
        closing = DeferredList([member.client.close() for member in self._members])
        self._changed()
        return closing.addCallback(lambda _: None)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # What clients tell.

    def _connected(self, welcome: dict[str, Any]) -> object:
        self._changed()
        return None if self._on_connect is None else self._on_connect(welcome)

    def _gave_up(self, member: _Member, error: Exception) -> object:
        member.restart = self._clock.callLater(self._restart_after, self._restart, member)
        self._changed()
        return None if self._on_failure is None else self._on_failure(error)

    def _restart(self, member: _Member) -> None:
        member.restart = None
        member.client.start()

    # Leases.

    @asynccontextmanager
    async def client(self, *, timeout: float | UnsetType | None = UNSET) -> AsyncIterator[Client]:
        """
        A connected client, to share with others, who would miss it if it were closed. It is the same one to
        the end of the block, also when its connection is lost meanwhile.

        Args:
            timeout: seconds to wait for a connection, with `offline="queue"`; None: no limit.

        Raises:
            Disconnected: nothing is connected, or was in time.
            CircuitOpen: what is connected is to be left alone.
            QueueFull: too many wait already.
            ValueError: the timeout is none.
        """
        member = self._choose()
        if member is None:
            member = await self._wait(self._timeout if timeout is UNSET else timeout)
        breaker = member.breaker
        ended = None if breaker is None else partial(breaker.ended, breaker.begin())
        member.leases += 1
        try:
            yield member.client
        except BaseException as error:
            if ended is not None:
                ended(error)
            raise
        else:
            if ended is not None:
                ended(None)
        finally:
            member.leases -= 1

    def _choose(self) -> _Member | None:
        """The one whose turn it is; None while nothing is connected."""
        connected = [member for member in self._members if member.client.connected]
        if not connected:
            return None
        member = min(connected, key=_Member.cost)
        self._leases += 1
        member.chosen = self._leases
        return member

    async def _wait(self, timeout: float | None) -> _Member:
        if not (self._queues and self._running):
            raise self._disconnected()
        if self._waiting >= self._max_waiting:
            raise QueueFull(f"{self._waiting} wait for a connection already")
        deadline = self._deadline(timeout)
        self._waiting += 1
        try:
            while (member := self._choose()) is None:
                await self._change(deadline)
        finally:
            self._waiting -= 1
        return member

    def _deadline(self, timeout: float | None) -> float | None:
        check_seconds("timeout", timeout)
        return None if timeout is None else self._clock.seconds() + timeout

    async def _change(self, deadline: float | None) -> None:
        """
        Wait until a client has connected or given up.

        Raises:
            Disconnected: the time is up, or the pool was closed.
        """
        change: Deferred[None] = Deferred(self._changes.pop)
        self._changes[change] = None
        if deadline is not None:
            change.addTimeout(max(0.0, deadline - self._clock.seconds()), self._clock, self._too_late)
        await change
        if not self._running:
            raise self._disconnected()

    def _too_late(self, outcome: object, timeout: float) -> NoReturn:
        raise self._disconnected()

    def _changed(self) -> None:
        # Whoever is woken may have others cancelled, and what waits anew waits for the next change.
        for change in tuple(self._changes):
            if change in self._changes:
                del self._changes[change]
                change.callback(None)

    def _disconnected(self) -> Disconnected:
        """Why there is no connection."""
        if not self._running:
            return Disconnected("the pool is closed")
        told = dict.fromkeys(
            f"{member.where}: {member.client.error or 'not yet'}" for member in self._members
        )
        return Disconnected(f"not connected: {'; '.join(told)}")
