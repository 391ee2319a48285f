"""A client's connection, kept: what waits for it, and what becomes of that when it ends."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from tcpjson.client.endpoints import EndpointConnector
from tcpjson.client.factory import TCPJSONClientFactory
from tcpjson.client.protocol import ClientProtocol, Options, Reply
from tcpjson.core.errors import (
    ClientError,
    Disconnected,
    ProtocolError,
    QueueFull,
    RequestTimeout,
    UnexpectedReply,
)
from tcpjson.core.handshake import Json, ServerInfo
from tcpjson.core.text import named
from tcpjson.deadlines import Deadlines

log = Logger()

# Bytes that a message may grow by when it is sent: its id, or for a classic server, a timestamp.
_ADDED = 48
# Characters of an error in the log.
_LINE = 300
# Seconds that may be waited for anything: the system's own clocks end somewhere.
_LONGEST = 1e6


def tell(callback: Callable[..., object] | None, *args: object) -> None:
    """Call what an application gave, if it did. What it raises, or its coroutine does, is logged."""
    if callback is None:
        return
    try:
        result = callback(*args)
    except Exception:
        log.failure("a callback failed")
        return
    if inspect.iscoroutine(result):
        result = Deferred.fromCoroutine(result)
    if isinstance(result, Deferred):
        result.addErrback(lambda failure: log.failure("a callback failed", failure))


def check_seconds(name: str, seconds: object) -> None:
    """Refuse what is no time to wait. Raises `TypeError` or `ValueError`."""
    if seconds is None:
        return
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r:.50}")
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(f"{name} must be from 0 to {_LONGEST:g} seconds, or None")


def _line(error: Exception) -> str:
    """An error in a line of the log, which it stays whatever a server said."""
    return ascii(str(error))[1:-1][:_LINE]


def _again(error: Exception) -> Exception:
    """The same error, for one more to raise: whoever raises it adds to it where from."""
    kind = type(error)
    another = kind.__new__(kind, *error.args)
    another.__dict__.update(error.__dict__)
    another.__cause__ = error.__cause__
    return another


class Link:
    """
    Keeps a connection, and the requests that wait for one.

    Args:
        clock: the reactor.
        endpoint: where to; None: whoever uses `factory` connects it.
        options: of the connections.
        queues: whether requests wait while there is no connection.
        retries, random: as `tcpjson.client.Client` takes them.
        on_message, on_connect, on_disconnect, on_retry, on_failure: likewise.
    """

    def __init__(
        self,
        clock: Any,
        endpoint: IStreamClientEndpoint | None,
        options: Options,
        *,
        queues: bool,
        retries: int | None,
        random: Callable[[], float],
        on_message: Callable[[Json], object] | None,
        on_connect: Callable[[Json], object] | None,
        on_disconnect: Callable[[Exception], object] | None,
        on_retry: Callable[[Exception, float], object] | None,
        on_failure: Callable[[Exception], object] | None,
    ) -> None:
        self._clock = clock
        self._seconds = clock.seconds
        self._options = options
        self._queues = queues
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._on_retry = on_retry
        self._on_failure = on_failure
        self.factory = TCPJSONClientFactory(clock, self, random, retries)
        self._connector = None if endpoint is None else EndpointConnector(endpoint, self.factory)
        # The connection there is, and the one that serves.
        self._current: ClientProtocol | None = None
        self.serving: ClientProtocol | None = None
        #: Whether it is connected, or tries to be.
        self.running = False
        #: Why the last connection ended or could not be made; None while it serves.
        self.error: Exception | None = None
        #: What the last welcome said.
        self.server: ServerInfo | None = None
        #: Who the client is for the server.
        self.user: str | None = None
        self._deadlines = Deadlines[Reply](clock, self._expired)
        # What waits for a connection: requests, and messages that nobody waits for the replies to.
        self._queue: OrderedDict[object, tuple[str | None, bytes]] = OrderedDict()
        self._queue_size = 0
        self._connecting: list[Deferred[Json]] = []
        self._closing: list[Deferred[None]] = []

    # The connection.

    @property
    def waiting(self) -> int:
        """How many requests wait for their replies."""
        # It is empty as long as there is a connection.
        queued = sum(isinstance(key, Reply) for key in self._queue) if self._queue else 0
        return queued + (0 if self._current is None else self._current.waiting)

    def start(self) -> None:
        """Connect, and connect again whenever that is lost."""
        if self.running or self._connector is None:
            return
        self.running = True
        self.factory.resetDelay()
        # One that is about to end leads to the next by itself.
        if self._connector.state == "disconnected":
            self._connector.connect()

    def connect(self, timeout: float | None) -> Deferred[Json]:
        """Start, and wait for the welcome."""
        try:
            check_seconds("timeout", timeout)
        except (TypeError, ValueError) as error:
            return fail(error)
        if self.serving is not None:
            return succeed(self.serving.welcome)
        deferred: Deferred[Json] = Deferred(self._connecting_cancelled)
        self._connecting.append(deferred)
        if timeout is not None:
            deferred.addTimeout(timeout, self._clock, self._not_connected)
        self.start()
        return deferred

    def _connecting_cancelled(self, deferred: Deferred[Json]) -> None:
        if deferred in self._connecting:
            self._connecting.remove(deferred)
            if not self._connecting:
                self.close()

    def _not_connected(self, failure: object, timeout: float) -> Any:
        why = "" if self.error is None else f": {self.error}"
        if not (why or self._connector):
            why = ": give the client a place, or connect its factory"
        raise Disconnected(f"no connection within {timeout:g} seconds{why}") from self.error

    def close(self) -> Deferred[None]:
        """Close the connection and stop; the result comes when it is gone."""
        self.running = False
        self.serving = None
        self.factory.stopTrying()
        current = self._current
        # Before anybody hears of it, and may begin anew.
        self._deadlines.stop()
        self._drop(Disconnected("the client was closed"))
        if current is None:
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self._closing.append(closed)
        error = Disconnected("the client was closed")
        self._fail(current.close(error), error)
        return closed

    # Requests.

    def ask(self, reply: Reply, kind: str, payload: bytes, timeout: float | None) -> None:
        """
        Send a request, whose payload has no `id`, or queue it.

        Raises:
            ClientError, TooLarge: it is not sent.
            TypeError, ValueError: the timeout is none.
        """
        if type(timeout) is not float or not 0 <= timeout <= _LONGEST:
            check_seconds("timeout", timeout)
        if (serving := self.serving) is not None:
            serving.ask(reply, kind, payload)
        else:
            self._enqueue(reply, kind, payload)
        if timeout is not None:
            self._deadlines.set(reply, self._seconds() + timeout)

    def tell(self, kind: str | None, payload: bytes) -> None:
        """Send a message, or a text (of kind None), or queue it. Raises as `ask`."""
        if (serving := self.serving) is not None:
            serving.tell(kind, payload)
        else:
            self._enqueue(object(), kind, payload)

    def _enqueue(self, key: object, kind: str | None, payload: bytes) -> None:
        if not self.running and self.error is not None:
            raise _again(self.error)
        if not (self.running and self._queues):
            why = self.error or ("the connection is not there yet" if self.running else "connect() first")
            raise Disconnected(f"not connected: {why}")
        size = len(payload) + _ADDED
        if self._queue and self._queue_size + size > self._options.max_queue:
            raise QueueFull(f"{self._queue_size} bytes wait for a connection already")
        self._queue[key] = kind, payload
        self._queue_size += size

    def forget(self, reply: Deferred[Any]) -> None:
        """A request waits no more."""
        assert isinstance(reply, Reply)
        self._deadlines.clear(reply)
        if reply.connection is not None:
            reply.connection.forget(reply)
        elif reply in self._queue:
            _, payload = self._queue.pop(reply)
            self._queue_size -= len(payload) + _ADDED

    def _expired(self, reply: Reply) -> None:
        self.forget(reply)
        reply.errback(RequestTimeout("no reply in time"))

    def _fail(self, replies: list[Reply], error: Exception) -> None:
        for reply in replies:
            self._deadlines.clear(reply)
            # One that failed before may have had others cancelled.
            if not reply.called:
                reply.errback(_again(error))

    def _drop(self, error: Exception) -> None:
        """There will be no connection."""
        queue, self._queue = self._queue, OrderedDict()
        self._queue_size = 0
        replies = [key for key in queue if isinstance(key, Reply)]
        if count := len(queue) - len(replies):
            log.error("{count} messages were not sent: {why}", count=count, why=_line(error))
        self._fail(replies, error)
        connecting, self._connecting = self._connecting, []
        for deferred in connecting:
            if not deferred.called:
                deferred.errback(_again(error))

    # What the factory asks and tells.

    def build(self) -> ClientProtocol:
        """The protocol of a new connection."""
        self._current = ClientProtocol(self._clock, self, self._options)
        return self._current

    def begun(self) -> None:
        """An attempt to connect begins."""
        if not self.running:
            # By who has the factory, after `close`.
            self.running = True
            self.factory.resetDelay()

    def ended(self) -> Exception | None:
        """Why the connection is gone."""
        return self.error

    def waits(self, error: Exception, seconds: float) -> None:
        """It is tried again, as long from now."""
        self.error = error
        log.info("connecting again in {seconds:.1f} seconds: {why}", seconds=seconds, why=_line(error))
        tell(self._on_retry, error, seconds)

    def stopped(self, error: Exception) -> None:
        """It is not tried again."""
        self.running = False
        self.error = error
        log.error("not connecting again: {why}", why=_line(error))
        # Before anybody hears of it, and may begin anew.
        self._deadlines.stop()
        self._drop(error)
        tell(self._on_failure, error)

    # What the connection tells.

    def ready(self, connection: ClientProtocol) -> None:
        """It serves."""
        self.factory.resetDelay()
        self.serving = connection
        self.server = connection.server
        self.user = connection.user
        self.error = None
        tell(self._on_connect, connection.welcome)
        # Whatever hears of it may close the client.
        while self._queue and self.serving is connection:
            key, (kind, payload) = self._queue.popitem(last=False)
            self._queue_size -= len(payload) + _ADDED
            try:
                if isinstance(key, Reply):
                    key.sent = self._clock.seconds()
                    connection.ask(key, kind or "", payload)
                else:
                    connection.tell(kind, payload)
            except (ClientError, ProtocolError) as error:
                if isinstance(key, Reply):
                    self._fail([key], error)
                else:
                    log.error("a message was not sent: {why}", why=_line(error))
        while self._connecting and self.serving is connection:
            self._connecting.pop(0).callback(connection.welcome)

    def replied(self, reply: Reply, message: Json) -> None:
        """The reply to a request has come."""
        self._deadlines.clear(reply)
        kind = message.get("type")
        if reply.expects is None or reply.expects == kind:
            reply.callback(reply.extract(reply, message))
        else:
            reply.errback(UnexpectedReply(f"the reply is no {reply.expects}, but of type {named(kind)}"))

    def refused(self, reply: Reply, error: ProtocolError) -> None:
        """The reply to a request has come, and is an error."""
        self._deadlines.clear(reply)
        reply.errback(error)

    def heard(self, message: Json) -> None:
        """A message that is no reply has come."""
        tell(self._on_message, message)

    def leaving(self, connection: ClientProtocol) -> None:
        """A connection is about to end: it serves no more."""
        if self.serving is connection:
            self.serving = None
            self.error = connection.error

    def gone(self, connection: ClientProtocol, error: Exception, waiting: list[Reply]) -> None:
        """The connection is no more; these still waited for their replies."""
        # Whoever has the factory may have made another meanwhile.
        if self._current is connection:
            self._current = self.serving = None
            self.error = error
        self._fail(waiting, Disconnected(str(error)))
        closing, self._closing = self._closing, []
        for closed in closing:
            closed.callback(None)
        if connection.served:
            tell(self._on_disconnect, error)
