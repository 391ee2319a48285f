"""The blocking client."""

from __future__ import annotations

import os
import random
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import UNSET

from tcpjson.blocking.link import Link, Options, Phase, Request, Waiter, log
from tcpjson.core.arguments import check_functions, check_kind, check_numbers
from tcpjson.core.errors import Disconnected, ProtocolError, QueueFull, RequestTimeout, error_of
from tcpjson.core.handshake import MAX_LENGTH
from tcpjson.core.messages import Message
from tcpjson.core.requests import encode_request, encode_unasked, text_payload
from tcpjson.timestamps import format_timestamp

if TYPE_CHECKING:
    from tcpjson.blocking.conversation import Trace
    from tcpjson.core.handshake import Credentials, Json, ServerInfo

#: Bytes that may wait to be sent.
MAX_QUEUE = 8 * 1024 * 1024

_OFFLINE = ("fail", "queue")

# Seconds beyond those of the connection's own end that `disconnect` waits for its thread.
_END_TIME = 3.0

# Guards the beginning of links; never held for long.
_beginning = threading.RLock()
os.register_at_fork(
    before=_beginning.acquire, after_in_parent=_beginning.release, after_in_child=_beginning.release
)


class TCPClient:
    """
    A connection to a server, for programs without a reactor. All methods may be called from any thread.

        client = TCPClient("localhost", 9999)
        client.set_message_callback(print)
        if client.connect():
            client.echo("Hello Server!")
            print(client.request("ping", timeout=5))
            client.disconnect()

    A thread in the background owns the socket. Once `connect` has succeeded, it connects anew whenever the
    connection is lost, after waits that grow to 30 seconds, or as long as the server asked for, up to an
    hour; why, and what came of it, it tells the logger `tcpjson.blocking`.

    A program that ends, or a client that is collected as garbage, needs no `disconnect`: what was to be sent
    is sent, if the server takes it within two seconds; the callback is called no more. What the arguments
    hold is held as long as the connection: a client among it is not collected before. A child process that
    was forked has no connection; it may `connect` one of its own.

    Args:
        host, port: of the server.
        path: of the server's Unix socket, in place of both.
        tls: None: in the clear; True: TLS, with the authorities that the system trusts; the path of a PEM
            file: with those in it alone; or a context of your own.
        credentials: `tcpjson.credentials.Password` or `Token`, for servers that ask who the client is.
        timeout: seconds that `connect` and `request` wait when they are not told.
        reconnect: connect anew when the connection is lost.
        retries: after how many attempts in a row to give that up; None: never.
        offline: what becomes of messages while the connection is lost: "fail", or "queue", to be sent when
            there is one again.
        max_queue: bytes of messages that may wait to be sent. A single longer one is taken when nothing else
            waits.
        max_length: bytes of the longest message that is taken; one that is longer ends the connection.
        compress: ask for compression (docs/protocol.rst, section 7).
        trace: is called in the background with "sent" or "received", and the payloads; a
            `tcpjson.trace.Trace` writes them to a file.
        random, clock, wall: a number from 0 up to 1, a steady time in seconds, and the time of day in seconds
            since 1970.

    Raises:
        TypeError, ValueError: an argument is no such thing, or out of its bounds, or the file of authorities
            cannot be read.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 9999,
        *,
        path: str | None = None,
        tls: bool | str | PathLike[str] | ssl.SSLContext | None = None,
        credentials: Credentials | None = None,
        timeout: float = 30.0,
        reconnect: bool = True,
        retries: int | None = None,
        offline: str = "fail",
        max_queue: int = MAX_QUEUE,
        max_length: int = MAX_LENGTH,
        compress: bool = True,
        trace: Trace | None = None,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        check_numbers(port=port, timeout=timeout, retries=retries, max_queue=max_queue, max_length=max_length)
        check_functions(trace=trace)
        check_kind("begin", "a Password or a Token", credentials=credentials)
        check_kind("encode", "a name or an address", host=host)
        if ":" in host and not _is_ipv6(host):
            raise ValueError(f"host must be a name or an address, without the port, not {host!r:.50}")
        if path is None and not 0 < port < 65536:
            raise ValueError(f"port must be between 1 and 65535, not {port}")
        if path is not None and tls:
            raise ValueError("there is no TLS on a Unix socket")
        if offline not in _OFFLINE:
            raise ValueError(f"offline must be one of {', '.join(_OFFLINE)}, not {offline!r}")
        for name, value in (("timeout", timeout), ("max_queue", max_queue), ("max_length", max_length)):
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0")
        if retries is not None and retries < 0:
            raise ValueError("retries must not be negative")
        self._timeout = timeout
        self._wall = wall
        self._callback: Callable[[Json], object] | None = None
        self._options = Options(
            host=host,
            port=port,
            path=path,
            tls=_context(tls),
            credentials=credentials,
            reconnect=reconnect,
            retries=retries,
            queue_offline=offline == "queue",
            max_queue=max_queue,
            max_length=max_length,
            compress=compress,
            trace=trace,
            random=random,
            clock=clock,
            wall=wall,
            # Not for longer than the client lives: the callback may be its owner's.
            hear=weakref.WeakMethod(self._hear),
        )
        self._link: Link | None = None
        self._finalizer: weakref.finalize[[], TCPClient] | None = None
        self._refusal: Exception | None = None

    def __repr__(self) -> str:
        link = self._link
        state = "not connected" if link is None else link.phase.value
        return f"<{type(self).__name__} {self._options.where} {state}>"

    @property
    def connected(self) -> bool:
        """Whether there is a connection, and the server serves it."""
        return self._link is not None and self._link.phase is Phase.READY

    @property
    def error(self) -> Exception | None:
        """Why there is no connection, or why the last message that could not be sent was not."""
        error = None if self._link is None else self._link.error
        return error or self._refusal

    @property
    def server(self) -> ServerInfo | None:
        """What the server said of itself in its last `welcome`."""
        return None if self._link is None else self._link.server

    @property
    def user(self) -> str | None:
        """Who the client is for the server, where that asks."""
        return None if self._link is None else self._link.user

    def set_message_callback(self, callback: Callable[[Json], object] | None) -> None:
        """
        Have a function called with each message that comes, as a dict: `welcome`, replies and errors too, in
        order.

        It is called in the background thread, and nothing else is read meanwhile: it must not take long, and
        may send, but not wait for a `request`. An exception of its is logged.
        """
        check_functions(callback=callback)
        self._callback = callback

    def _hear(self, message: Json) -> None:
        callback = self._callback
        if callback is not None:
            callback(message)

    def connect(self, timeout: float | None = None) -> bool:
        """
        Connect, and wait until the server has welcomed, and let in, the client. Returns False if it did not,
        within so many seconds; the reason is logged, and kept as `error`. The first attempt that fails is the
        last: only a connection that was there is made anew.
        """
        timeout = self._timeout if timeout is None else timeout
        link = self._begin()
        self._must_not_wait(link, "connect()")
        try:
            decided = link.wait_until_decided(timeout)
        except BaseException:
            if link.phase is Phase.FIRST:
                link.close()
            raise
        if not decided:
            error = Disconnected(f"{self._options.where} did not answer in {timeout:g} seconds")
            log.error("%s", error)
            if link.phase is Phase.FIRST:
                link.close(error)
        return link.phase is Phase.READY

    def _begin(self) -> Link:
        """The link, a new one if there is none that can be served."""
        with _beginning:
            link = self._link
            if link is None or link.phase in (Phase.CLOSING, Phase.ENDED):
                if self._finalizer is not None:
                    self._finalizer.detach()
                self._refusal = None
                link = Link(self._options)
                self._finalizer = weakref.finalize(self, link.let_go)
                self._finalizer.atexit = False
                # Before it starts: the callback may be called, and send, at once.
                self._link = link
                link.start()
            return link

    def _must_not_wait(self, link: Link, what: str) -> None:
        if link.thread is threading.current_thread():
            raise RuntimeError(
                f"{what} waits for what only this thread can bring: a message callback must not call it"
            )

    def disconnect(self) -> None:
        """
        End the connection, and do not connect anew. What was to be sent is sent; replies that come within two
        seconds are given to the callback; whoever waits in `request` gets `Disconnected`.
        """
        link = self._link
        if link is not None:
            link.close(Disconnected("the client has disconnected"))
            if link.thread is not threading.current_thread():
                link.wait_until_ended(_END_TIME)

    def __enter__(self) -> Self:
        """
        Connect.

        Raises:
            Disconnected, AuthenticationFailed, ProtocolMismatch, ProtocolError: why it cannot.
        """
        if not self.connect():
            raise self.error or Disconnected(f"{self._options.where} did not answer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    # Sending.

    def send_message(self, message: str | Mapping[str, Any] | Message) -> bool:
        """
        Send a message without waiting for anything; a str goes as plain text. An `id` of your own is text, or
        an integer from 0 up.

        Returns:
            Whether it is on its way. Not while there is no connection (unless `offline="queue"`), when
            `max_queue` bytes wait, or when it is longer than the server takes; `error` then says why.

        Raises:
            TypeError, ValueError: it cannot be written as JSON.
        """
        if isinstance(message, str):
            return self._send(Request(None, text_payload(message), stamped=True))
        kind, payload = encode_unasked(message)
        return self._send(Request(kind, payload, _stamped(message)))

    def _send(self, request: Request) -> bool:
        try:
            self._submit(request)
        except (Disconnected, QueueFull, ProtocolError) as error:
            self._refusal = error
            return False
        return True

    def _submit(self, request: Request) -> None:
        link = self._link
        if link is None:
            raise Disconnected("not connected: call connect() first")
        link.submit(request)

    def ping(self) -> bool:
        """Send a `ping`, stamped with the time of day. Returns as `send_message`."""
        return self.send_message({"type": "ping", "timestamp": self._now()})

    def echo(self, content: Any) -> bool:
        """Send an `echo`. Returns as `send_message`."""
        return self.send_message({"type": "echo", "content": content})

    def broadcast(self, content: Any) -> bool:
        """Send a `broadcast`. Returns as `send_message`."""
        return self.send_message({"type": "broadcast", "content": content})

    def get_server_stats(self) -> bool:
        """Ask for `server_stats`, which the callback gets. Returns as `send_message`."""
        return self.send_message({"type": "get_stats"})

    def send_custom_message(self, message_type: str, data: Mapping[str, Any] | None = None) -> bool:
        """
        Send a message of this type: `{"type": message_type, **data, "timestamp": the time of day}`, with the
        data's own timestamp where it has one. Returns as `send_message`.
        """
        return self.send_message({"timestamp": self._now(), **(data or {}), "type": message_type})

    def _now(self) -> str:
        return format_timestamp(self._wall())

    def request(
        self, message: str | Mapping[str, Any] | Message, /, *, timeout: float | None = None, **fields: Any
    ) -> Json:
        """
        Send a request, and wait for its reply.

        Args:
            message: the type of the message, or the whole of it; the `id` is the client's.
            timeout: seconds to wait; as the client was told when None.
            fields: of a message that was given by its type.

        Raises:
            Disconnected: there is no connection, or it ended before the reply came.
            RequestTimeout: the reply did not come in time.
            QueueFull, TooLarge: it was not sent: too much waits, or it is longer than the server takes.
            ProtocolError: of the class of its code: the server's reply is an error.
            TypeError, ValueError: it cannot be written as JSON.
            RuntimeError: called by the message callback, which must not wait.
        """
        if isinstance(message, str):
            message = {**fields, "type": message}
        elif fields:
            raise TypeError("fields go with a type, not with a whole message")
        kind, payload = encode_request(message)
        timeout = self._timeout if timeout is None else timeout
        link = self._link
        if link is None:
            raise Disconnected("not connected: call connect() first")
        self._must_not_wait(link, "request()")
        waiter = Waiter()
        try:
            link.submit(Request(kind, payload, _stamped(message), waiter))
            answered = waiter.wait(timeout)
        except BaseException:
            link.forget(waiter)
            raise
        if not answered:
            link.forget(waiter)
            # It may have come at the last moment.
            if not waiter.wait(0):
                raise RequestTimeout(f"no reply to {kind[:64]!r} in {timeout:g} seconds")
        if waiter.error is not None:
            raise waiter.error
        if waiter.reply.get("type") == "error":
            raise error_of(waiter.reply)
        return waiter.reply


def _is_ipv6(host: str) -> bool:
    try:
        return isinstance(ip_address(host), IPv6Address)
    except ValueError:
        return False


def _context(tls: bool | str | PathLike[str] | ssl.SSLContext | None) -> ssl.SSLContext | None:
    if tls is None or tls is False:
        return None
    if isinstance(tls, ssl.SSLContext):
        return tls
    if tls is True:
        return ssl.create_default_context()
    # The default one of Python 3.13 refuses certificates as many make them who are their own authority.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(os.fspath(tls))
    except ssl.SSLError:
        raise ValueError(f"{os.fspath(tls)}: no certificates in PEM") from None
    except OSError as error:
        raise ValueError(f"{os.fspath(tls)}: {error.strerror}") from None
    return context


def _stamped(message: Mapping[str, Any] | Message) -> bool:
    """Whether it has a timestamp."""
    if isinstance(message, Message):
        return getattr(message, "timestamp", UNSET) is not UNSET
    return "timestamp" in message
