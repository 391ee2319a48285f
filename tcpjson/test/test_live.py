"""The live figures: made once for all who watch, and only while somebody does."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Site

from tcpjson.core.stats import Stats
from tcpjson.metrics import live
from tcpjson.metrics.live import INTERVAL, MOST_WATCHERS, PATIENCE, Events
from tcpjson.metrics.page import figures
from tcpjson.metrics.views import snapshot
from tcpjson.server import TCPJSONServerFactory


class Watcher:
    """A client of the stream, on a transport in memory."""

    def __init__(self, site: Site) -> None:
        self.transport = StringTransport()
        built = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 50000))
        assert built is not None
        self.protocol = built
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.head, _, self.first = self.body().partition(b"\r\n\r\n")

    def body(self) -> bytes:
        """What came since the last look, without the lengths of the chunks."""
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def events(self) -> list[dict[str, Any]]:
        """The events that came since the last look."""
        lines = (self.first + self.body()).split(b"\r\n")
        self.first = b""
        return [
            json.loads(event.partition(b"data: ")[2])
            for line in lines
            for event in line.split(b"\n\n")
            if event.startswith(b"data: ")
        ]

    def pause(self) -> None:
        """Take nothing more."""
        assert self.transport.producer is not None
        self.transport.producer.pauseProducing()

    def resume(self) -> None:
        """Take what comes again."""
        assert self.transport.producer is not None
        self.transport.producer.resumeProducing()

    def leave(self, reason: Exception | None = None) -> None:
        """Be gone."""
        self.protocol.connectionLost(Failure(reason or ConnectionDone()))


class Broken(Stats):
    """Statistics that cannot be had."""

    def received_by_type(self) -> dict[str, tuple[int, int]]:
        raise RuntimeError("no")


class TestEvents(SynchronousTestCase):
    """The stream, on a clock of its own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(100)
        self.factory = TCPJSONServerFactory(self.clock, wall=lambda: 1_000_000.0 + self.clock.seconds())
        self.stream = Events(self.factory, self.clock)
        # Of its timeouts nothing is to be seen on the clock of the stream.
        self.site = Site(self.stream, reactor=Clock())
        self.made = 0

        def counted(factory: TCPJSONServerFactory) -> dict[str, Any]:
            self.made += 1
            return snapshot(factory)

        self.patch(live, "snapshot", counted)

    def watch(self) -> Watcher:
        """Somebody who watches."""
        return Watcher(self.site)

    def test_at_once(self) -> None:
        """The first event comes with the answer, and is what the page shows."""
        watcher = self.watch()
        self.assertTrue(watcher.head.startswith(b"HTTP/1.1 200 "), watcher.head)
        headers = watcher.head.lower()
        self.assertIn(b"\r\ncontent-type: text/event-stream", headers)
        self.assertIn(b"\r\nx-accel-buffering: no", headers)
        self.assertIn(b"retry: 2000\n\n", watcher.first)
        expected = json.loads(json.dumps(figures(snapshot(self.factory))))
        self.assertEqual(watcher.events(), [expected])

    def test_every_second(self) -> None:
        """Then one a second, with the rates since the last."""
        watcher = self.watch()
        watcher.events()
        self.factory.stats.messages_in += 30
        self.clock.advance(0.9)
        self.assertEqual(watcher.events(), [])
        self.clock.advance(0.1)
        (event,) = watcher.events()
        self.assertEqual(event["texts"]["messages_in"], "30/s")
        self.clock.pump([1.0] * 3)
        self.assertEqual([event["clock"] for event in watcher.events()], [102.0, 103.0, 104.0])

    def test_ten_seconds(self) -> None:
        """Percentiles are those of the last ten seconds."""
        self.factory.stats.handling.observe(0.5)
        watcher = self.watch()
        self.clock.pump([1.0] * 10)
        note = watcher.events()[-1]["texts"]["handling_note"]
        self.assertEqual(note, "nothing in the last 10 s")
        self.factory.stats.handling.observe(0.001)
        self.clock.pump([1.0] * 10)
        self.assertTrue(watcher.events()[-1]["texts"]["handling_note"].endswith("in the last 10 s"))
        self.clock.advance(1)
        self.assertEqual(watcher.events()[-1]["texts"]["handling_note"], "nothing in the last 10 s")

    def test_once_for_all(self) -> None:
        """However many watch, a snapshot is made once a second, and all get the same."""
        watchers = [self.watch() for _ in range(MOST_WATCHERS)]
        self.assertEqual(self.made, 1)
        for watcher in watchers:
            self.assertEqual(len(watcher.events()), 1)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.made, 2)
        first, *others = [watcher.body() for watcher in watchers]
        self.assertEqual(others, [first] * (MOST_WATCHERS - 1))

    def test_nobody_watches(self) -> None:
        """Then nothing is done, and what was is forgotten."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        first, second = self.watch(), self.watch()
        first.leave()
        self.clock.advance(INTERVAL)
        self.assertEqual(len(second.events()), 2)
        second.leave()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(60)
        self.assertEqual(self.made, 2)
        (event,) = self.watch().events()
        self.assertIn("since the start", event["texts"]["lag_note"])
        self.assertEqual(self.made, 3)

    def test_too_many(self) -> None:
        """There is an end to how many can watch; one goes, and there is room."""
        watchers = [self.watch() for _ in range(MOST_WATCHERS)]
        late = self.watch()
        self.assertTrue(late.head.startswith(b"HTTP/1.1 503 "), late.head)
        self.assertIn(f"{MOST_WATCHERS} watch already\n".encode(), late.first)
        watchers[0].leave()
        self.assertTrue(self.watch().head.startswith(b"HTTP/1.1 200 "))

    def test_full(self) -> None:
        """Nothing is written for one who takes nothing; when it does again, it gets what is new."""
        watcher, other = self.watch(), self.watch()
        watcher.events()
        watcher.pause()
        self.clock.pump([1.0] * int(PATIENCE - 1))
        self.assertEqual(watcher.body(), b"")
        self.assertEqual(len(other.events()), PATIENCE)
        watcher.resume()
        self.clock.advance(1)
        self.assertEqual([event["clock"] for event in watcher.events()], [100 + PATIENCE])
        self.assertFalse(watcher.transport.disconnecting)

    def test_full_for_long(self) -> None:
        """Who takes nothing for long is cut."""
        watcher = self.watch()
        watcher.pause()
        self.clock.pump([1.0] * int(PATIENCE - 1))
        self.assertFalse(watcher.transport.disconnected)
        self.clock.advance(1)
        self.assertTrue(watcher.transport.disconnected)
        watcher.leave(ConnectionAborted())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lasts(self) -> None:
        """The timeout of requests is not for a stream."""
        clock = Clock()
        self.site = Site(self.stream, reactor=clock)
        watcher = self.watch()
        clock.advance(3600)
        self.assertFalse(watcher.transport.disconnecting)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """All streams end, those in order that are read; it may be said twice."""
        watcher, stuck = self.watch(), self.watch()
        watcher.events()
        stuck.pause()
        self.stream.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        # The last chunk.
        self.assertEqual(watcher.body(), b"0\r\n\r\n")
        self.assertTrue(stuck.transport.disconnected)
        self.stream.stop()
        stuck.leave(ConnectionAborted())

    def test_failure(self) -> None:
        """What fails is logged once, and ends the streams; whoever comes again may have more luck."""
        watcher = self.watch()
        watcher.events()
        self.factory.stats = Broken(0.0)
        self.clock.advance(INTERVAL)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(watcher.body(), b"0\r\n\r\n")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.factory.stats = Stats(0.0)
        self.assertEqual(len(self.watch().events()), 1)
