"""What answers HTTP on the port of `--metrics`, and lets nobody make the server slow or big by asking."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection as TCPConnection
from twisted.logger import Logger
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import Request as TwistedRequest
from twisted.web.server import Site

from tcpjson.core.text import printable
from tcpjson.metrics import page, views
from tcpjson.metrics.exposition import expose, registry_of
from tcpjson.metrics.live import Events

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from tcpjson.server import TCPJSONServerFactory

log = Logger()

# Connections to this port at once.
_MOST_CONNECTIONS = 64
# Seconds for a request to come, for an answer to be taken, for the peer to close when it should.
_TIMEOUT = 10.0
# For each second that answers took, seconds in which none is made: the clients come first.
_REST = 9
# What is asked to know whether the server is well.
_CHECKS = frozenset({b"/healthz", b"/readyz"})

_TEXT = "text/plain; charset=utf-8"

# What Twisted has no words for.
_REASONS = {421: b"Misdirected Request"}

_HEADERS = {
    "Server": "tcpjson",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Queue:
    """Requests that are answered one after the other, with time left for the clients."""

    def __init__(self, clock: IReactorTime, answer: Callable[[Request], None]) -> None:
        self._clock = clock
        self._answer = answer
        self._waiting: deque[Request] = deque()
        self._call: IDelayedCall | None = None
        self._free_at = 0.0

    def add(self, request: Request) -> None:
        self._waiting.append(request)
        self._schedule()

    def stop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self) -> None:
        if self._waiting and self._call is None:
            self._call = self._clock.callLater(max(0.0, self._free_at - self._clock.seconds()), self._next)

    def _next(self) -> None:
        self._call = None
        request = self._waiting.popleft()
        if request.channel is not None:
            started = self._clock.seconds()
            self._answer(request)
            ended = self._clock.seconds()
            self._free_at = ended + _REST * (ended - started)
        self._schedule()


class Channel(http.HTTPChannel):
    """One connection. A request must come in time, and an answer be taken in time; bodies are refused."""

    maxHeaders = 100
    factory: MetricsSite
    transport: Any

    #: Whether more is written than is taken at once.
    full = False
    # What is to be done when it is taken.
    _then: Callable[[], None] | None = None
    _ended = False

    def connectionMade(self) -> None:
        if self.factory.enter(self):
            super().connectionMade()
        else:
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if not self._ended:
            super().dataReceived(data)

    def resetTimeout(self) -> None:
        """A byte now and then gains no time."""

    def timeoutConnection(self) -> None:
        self.transport.abortConnection()

    def allHeadersReceived(self) -> None:
        if self.length == 0:
            super().allHeadersReceived()
        else:
            self._refuse("413 Content Too Large", "a request here has no body")

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse("431 Request Header Fields Too Large", "a line of the request is too long")

    def _refuse(self, status: str, text: str) -> None:
        """Answer what is no request yet, and close."""
        body = f"{text}\n"
        lines = [
            f"HTTP/1.1 {status}",
            *(f"{name}: {value}" for name, value in _HEADERS.items()),
            f"Content-Type: {_TEXT}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", body]).encode())
        self.loseConnection()

    def when_taken(self, function: Callable[[], None]) -> None:
        """Go on when not much is left of what was written, which must be in time."""
        if self.full:
            self._then = function
            self.setTimeout(_TIMEOUT)
        else:
            function()

    def pauseProducing(self) -> None:
        self.full = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self.full = False
        super().resumeProducing()
        then, self._then = self._then, None
        if then is not None:
            then()

    def loseConnection(self) -> None:
        """Close when all is sent. What still comes is discarded: unread, it would reset the connection."""
        self._ended = True
        self.clearLineBuffer()
        self.setTimeout(_TIMEOUT)
        if isinstance(self.transport, TCPConnection) and not self.transport.TLS:
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()
        else:
            super().loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.leave(self)
        super().connectionLost(reason)


class Request(TwistedRequest):
    """One request, answered when its turn has come."""

    channel: Channel

    def process(self) -> None:
        for name, value in _HEADERS.items():
            self.setHeader(name, value)
        self.setHeader("Date", http.datetimeToString())
        self.channel.factory.queue(self)

    def answer(self, body: bytes, content_type: str = _TEXT, code: int = 200) -> None:
        """Answer it; the next of its connection is looked at when this is taken."""
        self.setResponseCode(code, _REASONS.get(code))
        self.setHeader("Content-Type", content_type)
        self.setHeader("Content-Length", str(len(body)))
        self.write(body)
        self.channel.when_taken(self.finish)


class MetricsSite(Site):
    """
    All that `--metrics` serves.

    Args:
        factory: the server that is looked at.
        clock: the reactor.
        hosts: names that `Host` may have, besides localhost and any IP address: pages of other sites, whose
            names can lead anywhere, are to read nothing here.
    """

    noisy = False
    protocol = Channel  # type: ignore[assignment]  # HTTP/1.1 alone, where Twisted's own has a choice
    requestFactory = Request

    def __init__(self, factory: TCPJSONServerFactory, clock: IReactorTime, hosts: Iterable[str] = ()) -> None:
        super().__init__(Resource(), reactor=clock, timeout=_TIMEOUT)
        self._server = factory
        self._clock = clock
        self._hosts = frozenset({"localhost", *(name.lower().rstrip(".") for name in hosts)})
        self._registry = registry_of(factory)
        self._events = Events(factory, clock)
        self._channels: set[Channel] = set()
        self._requests = _Queue(clock, self._answer)
        self._checks = _Queue(clock, self._answer)
        self._answers: dict[bytes, Callable[[Request], None]] = {
            b"/": self._page,
            b"/events": self._stream,
            b"/metrics": self._metrics,
            b"/healthz": self._health,
            b"/readyz": self._readiness,
            b"/connections": self._connections,
            b"/closed": self._closed,
        }

    def startFactory(self) -> None:
        """It begins to listen. Twisted would begin a log of requests; there is none."""

    def stopFactory(self) -> None:
        """It listens no more: close what is open, and leave no delayed call behind."""
        self._events.stop()
        self._requests.stop()
        self._checks.stop()
        for channel in self._channels:
            channel.loseConnection()

    # Connections, and requests one after the other.

    def enter(self, channel: Channel) -> bool:
        """A connection is there; returns whether there is room for it."""
        room = len(self._channels) < _MOST_CONNECTIONS
        if room:
            self._channels.add(channel)
        return room

    def leave(self, channel: Channel) -> None:
        """A connection is gone."""
        self._channels.discard(channel)

    def queue(self, request: Request) -> None:
        """
        Answer a request in its turn. Checks wait for checks only: whoever asks for much does not make the
        server look dead.
        """
        (self._checks if request.path in _CHECKS else self._requests).add(request)

    def _answer(self, request: Request) -> None:
        try:
            self._route(request)
        except Exception:
            log.failure(
                "{path} failed", event="metrics_failed", path=printable(request.path.decode("latin-1"))
            )
            if request.startedWriting:
                request.channel.loseConnection()
            else:
                request.answer(b"it failed; the log says how\n", code=500)

    def _route(self, request: Request) -> None:
        hosts = request.requestHeaders.getRawHeaders(b"Host", [])
        # Load balancers ask without, and learn nothing that is anybody's.
        open_to_all = not hosts and request.path in _CHECKS
        if not open_to_all and (line := self._misdirected(hosts)) is not None:
            request.answer(line.encode(), code=421)
            return
        answer = self._answers.get(request.path)
        methods = (b"GET",) if answer == self._stream else (b"GET", b"HEAD")
        if answer is None:
            paths = ", ".join(path.decode() for path in self._answers)
            request.answer(f"there is nothing here but {paths}\n".encode(), code=404)
        elif request.method not in methods:
            allowed = b", ".join(methods)
            request.setHeader(b"Allow", allowed)
            request.answer(b"only %b here\n" % allowed, code=405)
        else:
            answer(request)

    def _misdirected(self, hosts: Sequence[bytes]) -> str | None:
        """Why a request with these headers `Host` is for another server; None when it is for this one."""
        if len(hosts) != 1:
            return "a request must have one header Host\n"
        name = host_name(hosts[0].decode("latin-1"))
        if name in self._hosts or is_address(name):
            return None
        shown = printable(name, 64)
        return f"this is not {shown}; where it is, start the server with --metrics-host {shown}\n"

    # What there is.

    def _page(self, request: Request) -> None:
        request.setHeader("Content-Security-Policy", page.POLICY)
        request.answer(page.page(self._server), "text/html; charset=utf-8")

    def _stream(self, request: Request) -> None:
        body = self._events.render_GET(request)
        if isinstance(body, bytes):
            request.answer(body, code=request.code)

    def _metrics(self, request: Request) -> None:
        accept = request.getHeader(b"Accept") or b""
        request.answer(*expose(self._registry, accept.decode("latin-1")))

    def _health(self, request: Request) -> None:
        request.answer(b"ok\n")

    def _readiness(self, request: Request) -> None:
        if self._server.draining:
            request.answer(b"draining\n", code=503)
        else:
            request.answer(b"ready\n")

    def _connections(self, request: Request) -> None:
        self._list(
            request, views.connections, {"sort": _word, "order": _order, "offset": _whole, "limit": _whole}
        )

    def _closed(self, request: Request) -> None:
        self._list(request, views.closed, {"offset": _whole, "limit": _whole})

    def _list(
        self, request: Request, view: Callable[..., dict[str, Any]], parsers: Mapping[str, _Parser]
    ) -> None:
        try:
            found = view(self._server, **_arguments(request.args, parsers))
        except ValueError as error:
            request.answer(f"{error}\n".encode(), code=400)
        else:
            request.answer(msgspec.json.encode(found), "application/json")


def site_of(factory: TCPJSONServerFactory, clock: IReactorTime, *, hosts: Sequence[str] = ()) -> Site:
    """
    What answers on the port of `--metrics`: the page, its events, metrics, and lists of connections.

    Args:
        factory: the server that is looked at.
        clock: the reactor.
        hosts: names that the header `Host` may have besides localhost and any IP address.
    """
    return MetricsSite(factory, clock, hosts)


def host_name(host: str) -> str:
    """The name in a header `Host`, without the port; all of it where it is none."""
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?", host)
    return host if match is None else match[1].lower().rstrip(".")


def is_address(name: str) -> bool:
    """Whether a name of `host_name` is an IP address, that of IPv6 in brackets."""
    try:
        if match := re.fullmatch(r"\[([0-9a-f:.]*)\]", name):
            IPv6Address(match[1])
        else:
            IPv4Address(name)
    except AddressValueError:
        return False
    return True


# Parameters.

_Parser = Callable[[str, str], dict[str, Any]]


def _word(name: str, text: str) -> dict[str, Any]:
    return {name: text}


def _whole(name: str, text: str) -> dict[str, Any]:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"{name} must be a whole number")
    return {name: int(text)}


def _order(name: str, text: str) -> dict[str, Any]:
    if text not in ("asc", "desc"):
        raise ValueError(f"{name} must be asc or desc")
    return {"descending": text == "desc"}


def _arguments(given: Mapping[bytes, list[bytes]], parsers: Mapping[str, _Parser]) -> dict[str, Any]:
    """What stands behind the `?`, as a view takes it; `ValueError` with a line for people."""
    found: dict[str, Any] = {}
    for parameter, values in given.items():
        name = parameter.decode(errors="replace")
        if name not in parsers:
            raise ValueError(f"there is no parameter {printable(name, 64)}, but {', '.join(parsers)}")
        if len(values) > 1:
            raise ValueError(f"{name} stands there twice")
        found.update(parsers[name](name, values[0].decode(errors="replace")))
    return found
