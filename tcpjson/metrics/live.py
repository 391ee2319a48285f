"""The live figures of the page: server-sent events, once a second to all who watch."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from tcpjson.metrics.page import figures
from tcpjson.metrics.views import snapshot

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from tcpjson.server import TCPJSONServerFactory

log = Logger()

#: How many can watch at a time.
MOST_WATCHERS = 16
#: Seconds from one event to the next.
INTERVAL = 1.0
#: Seconds that a watcher may take nothing of what waits for it.
PATIENCE = 30.0

# Snapshots that are kept: percentiles are those of so many seconds.
_KEPT = 10


@implementer(IPushProducer)
class _Watcher:
    """One stream of events, that nothing is written to while it is full."""

    def __init__(self, request: Request, clock: IReactorTime) -> None:
        self._request = request
        self._clock = clock
        self._full_since: float | None = None

    def send(self, event: bytes) -> None:
        """Send an event; whoever is full goes without, and is cut when it has been so for long."""
        if self._full_since is None:
            self._request.write(event)
        elif self._clock.seconds() - self._full_since >= PATIENCE:
            self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        transport: Any = self._request.channel.transport
        transport.abortConnection()

    def end(self) -> None:
        """End the stream, in order where there is somebody to read that."""
        if self._full_since is None:
            self._request.unregisterProducer()
            self._request.finish()
        else:
            self.abort()

    def pauseProducing(self) -> None:
        self._full_since = self._clock.seconds()

    def resumeProducing(self) -> None:
        self._full_since = None

    def stopProducing(self) -> None:
        """Nothing to do: `notifyFinish` tells of the end."""


class Events(Resource):
    """
    Sends `figures` to whoever asks: at once, and then every second. They are made once for all, and only
    while somebody watches. No more than `MOST_WATCHERS` can; others get 503.

    Args:
        factory: the server.
        clock: the reactor.
    """

    isLeaf = True

    def __init__(self, factory: TCPJSONServerFactory, clock: IReactorTime) -> None:
        super().__init__()
        self._factory = factory
        self._clock = clock
        self._watchers: dict[Request, _Watcher] = {}
        self._kept: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._event = b""
        self._call: IDelayedCall | None = None

    def render_GET(self, request: Request) -> bytes | int:
        if len(self._watchers) >= MOST_WATCHERS:
            request.setResponseCode(503)
            return f"{MOST_WATCHERS} watch already\n".encode()
        if self._call is None:
            self._look()
        request.setHeader(b"content-type", b"text/event-stream")
        # A proxy that gathers what it passes on would show nothing.
        request.setHeader(b"x-accel-buffering", b"no")
        watcher = self._watchers[request] = _Watcher(request, self._clock)
        request.notifyFinish().addBoth(self._gone, request)
        request.registerProducer(watcher, True)
        request.write(b"retry: 2000\n\n" + self._event)
        return NOT_DONE_YET

    def _gone(self, reason: object, request: Request) -> None:
        del self._watchers[request]
        if not self._watchers:
            self._rest()

    def _rest(self) -> None:
        """Nobody watches: do nothing, and forget what would be old when somebody comes."""
        self._kept.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        """Make an event of what there is to see, and see to the next."""
        shown = snapshot(self._factory)
        self._event = b"data: " + msgspec.json.encode(figures(shown, self._kept)) + b"\n\n"
        self._kept.append(shown)
        self._call = self._clock.callLater(INTERVAL, self._tick)

    def _tick(self) -> None:
        self._call = None
        try:
            self._look()
        except Exception:
            # The page tries again, and would show this for ever if it were only passed over.
            log.failure("the live figures failed", event="page_failed")
            self.stop()
            return
        for watcher in tuple(self._watchers.values()):
            watcher.send(self._event)

    def stop(self) -> None:
        """End all streams."""
        self._rest()
        for watcher in tuple(self._watchers.values()):
            watcher.end()
