"""The client to await: requests that lead to their replies, over a connection that comes back."""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from msgspec import UNSET, UnsetType
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.threads import deferToThreadPool

from tcpjson.client.endpoints import client_endpoint
from tcpjson.client.factory import TCPJSONClientFactory
from tcpjson.client.link import Link, check_seconds
from tcpjson.client.protocol import Options, Reply, Trace
from tcpjson.core.arguments import check_functions, check_kind, check_numbers
from tcpjson.core.errors import ClientError, ProtocolError
from tcpjson.core.handshake import MAX_LENGTH, Credentials, Json, ServerInfo
from tcpjson.core.messages import Message
from tcpjson.core.requests import encode_request, encode_unasked, text_payload
from tcpjson.timestamps import Timestamps

#: What may be sent: a message, a text, or a payload as it is.
Sendable = Message | Mapping[str, Any] | str | bytes

_OFFLINE = ("fail", "queue")


def _whole(reply: Reply, message: Json) -> Any:
    return message


def _content(reply: Reply, message: Json) -> Any:
    return message.get("content")


def _recipients(reply: Reply, message: Json) -> int:
    recipients = message.get("recipients")
    return recipients if isinstance(recipients, int) else 0


class Client:
    """
    A client of a tcpjson server, which keeps its connection: when it is lost, it connects again.

        async def main(reactor):
            async with Client(reactor, "localhost:9999", on_message=print) as client:
                print(await client.ping(), "seconds")
                print(await client.echo({"x": 1}))

        task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))

    Requests return Deferreds. In a program of asyncio, whose reactor is `asyncioreactor`, await them as
    `client.ping().asFuture(loop)`. Cancelling one forgets its reply. They fail with

    * `Disconnected`: there is no connection, or it ended before the reply came,
    * `RequestTimeout`: the reply did not come in time,
    * `UnexpectedReply`: it is of another type, as where a handler of the server's own answers `echo`,
    * `QueueFull`: more than `max_queue` bytes wait to be sent,
    * `TooLarge`: the server would not take it; nothing was sent,
    * the `ProtocolError` of the code that the server replied (docs/protocol.rst, section 9),
    * `AuthenticationFailed`, `ProtocolMismatch`: the client has stopped, as no retry heals that,
    * `TypeError`, `ValueError`: it cannot be written as JSON; nothing was sent.

    Args:
        reactor: the reactor.
        where: `"host"`, `"host:port"`, or the description of a client endpoint, such as `"tls:host:9999"` or
            `"unix:/p.sock"`, or an endpoint. None: connect `factory` yourself, as with
            `reactor.connectTCP("localhost", 9999, client.factory)`.
        credentials: `tcpjson.Password` or `tcpjson.Token`, where the server asks who it is.
        ca: a PEM file: speak TLS, with servers that one of its certificates vouches for.
        timeout: seconds in which a reply must come, unless a request says otherwise; None: no limit.
        offline: what becomes of requests while there is no connection: they "fail", or "queue".
        max_queue: bytes that may wait to be sent, in the queue and on the connection.
        max_length: bytes of the longest message that is taken; one that is longer ends the connection.
        retries: how many failed attempts to connect may follow one on another; None: any number.
        compress: whether to agree on compression.
        silence: seconds of silence after which the server is asked whether it is there; None: as the
            server's heartbeat says. It has 10 seconds to answer.
        on_message: called with each message that is no reply: broadcasts, types of the server's own.
        on_connect: called with the welcome, each time the client is served.
        on_disconnect: called with the reason when a connection that was served is gone, by `close` too.
        on_retry: called with the reason and the seconds after which it tries again.
        on_failure: called with the reason when it has stopped trying by itself.
        trace: shown all that is sent and received, as `tcpjson.trace.Trace` is.
        random, wall, run: for tests: a number from 0 up to 1, the time of day in seconds since 1970, and what
            calls a function that may take half a second, for a login; in a thread, when None.

    Callbacks may return a coroutine or a Deferred; nothing waits for it, so bound what is under way yourself.
    What they raise is logged.

    Values are written as msgspec writes them: a set as a list, bytes in base64, a date as text.

    Raises:
        TypeError, ValueError: with one line, if an argument will not do.
    """

    def __init__(
        self,
        reactor: Any,
        where: str | IStreamClientEndpoint | None = None,
        *,
        credentials: Credentials | None = None,
        ca: str | None = None,
        timeout: float | None = 30.0,
        offline: str = "fail",
        max_queue: int = 8 * 1024 * 1024,
        max_length: int = MAX_LENGTH,
        retries: int | None = None,
        compress: bool = True,
        silence: float | None = None,
        on_message: Callable[[Json], object] | None = None,
        on_connect: Callable[[Json], object] | None = None,
        on_disconnect: Callable[[Exception], object] | None = None,
        on_retry: Callable[[Exception, float], object] | None = None,
        on_failure: Callable[[Exception], object] | None = None,
        trace: Trace | None = None,
        random: Callable[[], float] = _random.random,
        wall: Callable[[], float] = time.time,
        run: Callable[[Callable[[], Json]], Deferred[Json]] | None = None,
    ) -> None:
        check_kind("callLater", "the reactor", reactor=reactor)
        check_kind("begin", "a Password or a Token", credentials=credentials)
        check_numbers(max_queue=max_queue, max_length=max_length, retries=retries)
        check_functions(
            on_message=on_message,
            on_connect=on_connect,
            on_disconnect=on_disconnect,
            on_retry=on_retry,
            on_failure=on_failure,
            trace=trace,
        )
        if offline not in _OFFLINE:
            raise ValueError(f"offline must be one of {', '.join(_OFFLINE)}")
        check_seconds("timeout", timeout)
        check_seconds("silence", silence)
        for name, size in (("max_queue", max_queue), ("max_length", max_length)):
            if not size > 0:
                raise ValueError(f"{name} must be greater than 0")
        if retries is not None and retries < 0:
            raise ValueError("retries must be at least 0")
        if ca is not None and where is None:
            raise ValueError("an authority is of use with a host and port only")
        self._clock = reactor
        self._timeout = timeout
        self._link = Link(
            reactor,
            None if where is None else client_endpoint(reactor, where, ca),
            Options(
                credentials,
                compress,
                silence,
                max_queue,
                max_length,
                trace,
                Timestamps(wall).now,
                run or (lambda function: deferToThreadPool(reactor, reactor.getThreadPool(), function)),
            ),
            queues=offline == "queue",
            retries=retries,
            random=random,
            on_message=on_message,
            on_connect=on_connect,
            on_disconnect=on_disconnect,
            on_retry=on_retry,
            on_failure=on_failure,
        )
        self._forget = self._link.forget

    # The connection.

    @property
    def factory(self) -> TCPJSONClientFactory:
        """What connects it: a `ReconnectingClientFactory`."""
        return self._link.factory

    @property
    def connected(self) -> bool:
        """Whether it is connected, and served."""
        return self._link.serving is not None

    @property
    def running(self) -> bool:
        """Whether it is connected, or tries to be."""
        return self._link.running

    @property
    def error(self) -> Exception | None:
        """Why the last connection ended or could not be made; None while it is connected."""
        return self._link.error

    @property
    def server(self) -> ServerInfo | None:
        """What the last welcome said."""
        return self._link.server

    @property
    def user(self) -> str | None:
        """Who it is for the server; None where it asks nobody."""
        return self._link.user

    @property
    def compression(self) -> str | None:
        """What messages are compressed with; None where that was not agreed on, or while not connected."""
        return None if (serving := self._link.serving) is None else serving.compression

    @property
    def waiting(self) -> int:
        """How many requests wait for their replies, or for a connection."""
        return self._link.waiting

    def start(self) -> None:
        """Connect, and connect again whenever that is lost, until `close`."""
        self._link.start()

    def connect(self, *, timeout: float | None = 10.0) -> Deferred[Json]:
        """
        Start, and wait until the client is served; the result is the welcome.

        It fails, and the client stops, with `Disconnected` when that takes longer than `timeout` seconds or
        the `retries` are used up, and with `AuthenticationFailed` or `ProtocolMismatch`.
        """
        return self._link.connect(timeout)

    def close(self) -> Deferred[None]:
        """
        Send what is to be sent, close the connection, and stop. What waits for a reply fails with
        `Disconnected`. The result comes when the connection is gone, after two seconds at the most.
        """
        return self._link.close()

    def __aenter__(self) -> Deferred[Client]:
        return self.connect().addCallback(lambda welcome: self)

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Deferred[None]:
        return self.close()

    # Requests.

    def ping(self, *, timeout: float | UnsetType | None = UNSET) -> Deferred[float]:
        """Ask whether the server is there; the result is the round trip in seconds."""
        reply = Reply(self._forget)
        reply.sent = self._clock.seconds()
        reply.expects = "pong"
        reply.extract = self._round_trip
        return self._ask(reply, {"type": "ping"}, timeout)

    def _round_trip(self, reply: Reply, message: Json) -> float:
        seconds: float = self._clock.seconds() - reply.sent
        return seconds

    def echo(self, content: object, *, timeout: float | UnsetType | None = UNSET) -> Deferred[Any]:
        """Have a value sent back; the result is that value."""
        reply = Reply(self._forget)
        reply.expects = "echo_response"
        reply.extract = _content
        return self._ask(reply, {"type": "echo", "content": content}, timeout)

    def broadcast(self, content: object, *, timeout: float | UnsetType | None = UNSET) -> Deferred[int]:
        """Send a value to all other clients; the result is how many there were."""
        reply = Reply(self._forget)
        reply.expects = "broadcast_sent"
        reply.extract = _recipients
        return self._ask(reply, {"type": "broadcast", "content": content}, timeout)

    def stats(self, *, timeout: float | UnsetType | None = UNSET) -> Deferred[Json]:
        """The statistics of the server (docs/protocol.rst, section 3)."""
        reply = Reply(self._forget)
        reply.expects = "server_stats"
        reply.extract = _whole
        return self._ask(reply, {"type": "get_stats"}, timeout)

    def request(
        self,
        message: str | Message | Mapping[str, Any],
        /,
        *,
        timeout: float | UnsetType | None = UNSET,
        **fields: object,
    ) -> Deferred[Json]:
        """
        Send a message, given whole or as its type and fields; the result is the reply. The `id` is for the
        client to choose. A message that the server's handler does not answer leads to `RequestTimeout`.
        """
        reply = Reply(self._forget)
        reply.extract = _whole
        return self._ask(reply, {"type": message, **fields} if isinstance(message, str) else message, timeout)

    def send(self, message: Sendable) -> None:
        """
        Send a message, or a str as plain text (section 3), or bytes as a payload that nobody looks at, and do
        not wait for a reply; what comes goes to `on_message`. An `id` of your own may be a text, or a number
        from 0 up.

        Raises:
            ClientError, TooLarge, TypeError, ValueError: as a request fails; nothing was sent.
        """
        if isinstance(message, str):
            self._link.tell(None, text_payload(message))
        elif isinstance(message, bytes):
            self._link.tell(None, message)
        else:
            self._link.tell(*encode_unasked(message))

    def _ask(
        self, reply: Reply, message: Message | Mapping[str, Any], timeout: float | UnsetType | None
    ) -> Reply:
        try:
            kind, payload = encode_request(message)
            self._link.ask(reply, kind, payload, self._timeout if timeout is UNSET else timeout)
        except (ClientError, ProtocolError, TypeError, ValueError) as error:
            reply.errback(error)
        return reply
