"""What people and programs are told of a server."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson import Limits, Message, Router, __version__
from tcpjson.auth import Authenticator
from tcpjson.core import errors
from tcpjson.core.histogram import Histogram
from tcpjson.core.stats import ClosedConnection
from tcpjson.metrics import views
from tcpjson.metrics.views import percentile, seconds, size, snapshot, why
from tcpjson.server import TCPJSONServerFactory
from tcpjson.test.hypo import given
from tcpjson.test.wires import Loop, Wire, connect

# Bytes of a socket's buffer that is soon full.
SMALL = 4096


class Wait(Message, tag="wait"):
    """A request whose handler ends when the test lets it."""


@implementer(ICredentialsChecker)
class Undecided:
    """Does not say who it is."""

    credentialInterfaces = (IUsernamePassword,)

    def requestAvatarId(self, credentials: object) -> Deferred[bytes | tuple[()]]:
        return Deferred()


class Case(SynchronousTestCase):
    """A server on sockets, in a time of its own."""

    def setUp(self) -> None:
        self.loop = Loop()
        self.addCleanup(self.loop.close)
        self.waiting: list[Deferred[None]] = []
        self.router = Router()
        self.router.add(Wait, self._wait)
        self.factory = self.server()
        #: What the system says of how far clients are, by `client_id`.
        self.distances: dict[str, float] = {}
        self.asked = 0
        self.patch(views, "round_trip", self._round_trip)

    def _round_trip(self, transport: Any) -> float | None:
        self.asked += 1
        return self.distances.get(transport.protocol.client_id)

    def _wait(self, session: object, message: object) -> Deferred[None]:
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def server(self, **options: Any) -> TCPJSONServerFactory:
        self.factory = TCPJSONServerFactory(
            self.loop, routers=[self.router], wall=lambda: 1704110400 + self.loop.seconds(), **options
        )
        return self.factory

    def client(self, send_buffer: int | None = None) -> Wire:
        """A client that has read what there was."""
        wire = connect(self.loop, self.factory, send_buffer=send_buffer)
        self.addCleanup(wire.socket.close)
        wire.take_all()
        return wire

    def send(self, wire: Wire, *messages: object) -> None:
        wire.send_payload(*(json.dumps(message).encode() for message in messages))

    def stuck(self, size: int = 100_000) -> Wire:
        """A client that does not read, and for whom a message waits."""
        wire = self.client(SMALL)
        newest = max(self.factory.sessions, key=lambda session: int(session.client_id.removeprefix("unix:")))
        self.factory.broadcast({"type": "news", "text": "x" * size}, [newest])
        return wire

    def slowest(self) -> list[tuple[str, str | None]]:
        return [(row["client"], row["why"]) for row in snapshot(self.factory)["slowest"]]


class WordTests(SynchronousTestCase):
    def test_sizes(self) -> None:
        for count, text in (
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (8 << 20, "8 MiB"),
            (2_400_000, "2.3 MiB"),
            (5 << 30, "5 GiB"),
            (5 << 40, "5120 GiB"),
        ):
            self.assertEqual(size(count), text)

    def test_spans(self) -> None:
        for time, text in (
            (0, "0 µs"),
            (0.000012, "12 µs"),
            (0.001, "1 ms"),
            (0.0123, "12.3 ms"),
            (0.9994, "999 ms"),
            (1, "1 s"),
            (4.25, "4.2 s"),
            (59.99, "59.9 s"),
            (60, "1 min"),
            (90.7, "1 min 30 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h 0 min"),
            (11100, "3 h 5 min"),
            (86400, "1 d 0 h"),
            (200000, "2 d 7 h"),
        ):
            self.assertEqual(seconds(time), text)

    def test_all_codes_have_words(self) -> None:
        own = {code for code, kind in errors.CODES.items() if kind.__module__ == errors.__name__}
        ends = {
            errors.CLIENT_CLOSED,
            errors.CONNECTION_LOST,
            errors.HANDSHAKE_FAILED,
            errors.CLOSED_BY_HANDLER,
        }
        self.assertGreater(len(own), 15)
        limits = Limits()
        for code in own | ends:
            words = why(code, limits)
            self.assertIn(" ", words, code)
            self.assertNotIn("{", words)
            self.assertNotIn(code if "_" in code else "_", words)
        self.assertEqual(set(views._WORDS), own | ends)

    def test_words_tell_the_limits(self) -> None:
        limits = Limits(write_timeout=3, max_queue=65536, auth_timeout=7, handler_timeout=90)
        self.assertEqual(
            why("slow_consumer", limits),
            "it did not read what was sent to it: it took nothing for 3 s, or more than 64 KiB waited for it",
        )
        self.assertEqual(why("auth_timeout", limits), "it did not log in within 7 s")
        self.assertEqual(why("timeout", limits), "a handler took longer than 1 min 30 s")

    def test_codes_of_an_application_stand_for_themselves(self) -> None:
        self.assertEqual(why("{out} of {tokens}", Limits()), "{out} of {tokens}")


class PercentileTests(SynchronousTestCase):
    def test_no_values(self) -> None:
        self.assertIsNone(percentile((1, 2), (0, 0, 0), 0.5))

    def test_spread_evenly_below_a_bound(self) -> None:
        bounds, counts = (1, 2, 4), (10, 0, 10, 0)
        for fraction, value in ((0, 0), (0.25, 0.5), (0.5, 1), (0.75, 3), (1, 4)):
            self.assertEqual(percentile(bounds, counts, fraction), value)

    def test_above_all_bounds(self) -> None:
        self.assertEqual(percentile((1, 2), (1, 0, 3), 0.5), 2)
        self.assertEqual(percentile((1, 2), (3, 0, 1), 0.5), 2 / 3)

    @given(st.lists(st.floats(0, 5), min_size=1, max_size=50), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
    def test_within_the_bucket_of_the_exact_one(self, values: list[float], fraction: float) -> None:
        histogram = Histogram((0.5, 1, 2, 6))
        for value in values:
            histogram.observe(value)
        exact = sorted(values)[max(0, -int(-fraction * len(values) // 1) - 1)]
        found = percentile(histogram.bounds, histogram.counts, fraction)
        assert found is not None
        lower, upper = max(
            (lower, upper)
            for lower, upper in zip((0, *histogram.bounds), histogram.bounds, strict=False)
            if lower < exact or not lower
        )
        self.assertLessEqual(lower, found)
        self.assertLessEqual(found, upper)


class ConnectionTests(Case):
    """`connections`."""

    def rows(self, **options: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = views.connections(self.factory, **options)["connections"]
        return rows

    def names(self, **options: Any) -> list[str]:
        return [row["client"] for row in self.rows(**options)]

    def test_nobody(self) -> None:
        self.assertEqual(
            views.connections(self.factory),
            {
                "total": 0,
                "offset": 0,
                "limit": 100,
                "sort": "client",
                "descending": False,
                "connections": [],
            },
        )

    def test_a_row(self) -> None:
        wire = self.client()
        welcome = len(wire.data)
        self.send(wire, {"type": "echo", "content": "hi"})
        wire.take_all()
        self.loop.advance(1.5)
        self.distances["unix:1"] = 0.0125
        [connection] = self.factory.connections
        connection.user = "ann"
        self.assertEqual(
            self.rows(),
            [
                {
                    "client": "unix:1",
                    "user": "ann",
                    "state": "ready",
                    "age_seconds": 1.5,
                    "messages_in": 1,
                    "messages_out": 2,
                    "bytes_in": 4 + len(json.dumps({"type": "echo", "content": "hi"})),
                    "bytes_out": len(wire.data),
                    "queued_bytes": 0,
                    "waits_seconds": None,
                    "round_trip_seconds": 0.0125,
                    "held": [],
                    "unfinished": 0,
                }
            ],
        )
        self.assertGreater(len(wire.data), welcome)

    def test_what_waits(self) -> None:
        self.stuck()
        self.loop.advance(1)
        self.loop.advance(1.25)
        [row] = self.rows()
        self.assertEqual(row["waits_seconds"], 2.25)
        self.assertGreater(row["queued_bytes"], 80_000)

    def test_what_is_held(self) -> None:
        wire = self.client()
        self.send(wire, *[{"type": "wait", "id": number} for number in range(65)])
        [row] = self.rows()
        self.assertEqual((row["held"], row["unfinished"]), (["handlers"], 64))

    def test_sorted_by_each_column(self) -> None:
        first = self.client()
        self.loop.advance(1)
        second = self.client()
        third = self.stuck()
        self.send(second, {"type": "echo", "content": "x" * 5000}, {"type": "wait"})
        self.send(first, {"type": "ping"}, {"type": "ping"}, {"type": "ping"})
        second.take_all()
        _, two, three = sorted(self.factory.connections, key=lambda each: each.client_id)
        two.user = "bob"
        three.user = "ann"
        self.distances.update({"unix:1": 0.3, "unix:3": 0.1})
        self.send(third, {"type": "ping"})
        for column, order in (
            ("client", "123"),
            ("user", "132"),
            ("age_seconds", "231"),
            ("messages_in", "321"),
            ("messages_out", "231"),
            ("bytes_in", "312"),
            ("queued_bytes", "123"),
            ("waits_seconds", "123"),
            ("round_trip_seconds", "231"),
            ("unfinished", "132"),
        ):
            expected = [f"unix:{number}" for number in order]
            values = [row[column] for row in self.rows(sort=column)]
            self.assertEqual(self.names(sort=column), expected, (column, values))
            known = [value for value in values if value is not None]
            self.assertEqual(known, sorted(known), column)
        # Of equals the one with the lower name comes first, and last when all is turned round.
        self.assertEqual(self.names(sort="state"), ["unix:1", "unix:2", "unix:3"])
        self.assertEqual(self.names(sort="state", descending=True), ["unix:3", "unix:2", "unix:1"])
        self.assertEqual(self.names(sort="bytes_out", descending=True)[0], "unix:3")
        self.assertEqual(self.names(sort="waits_seconds", descending=True)[0], "unix:3")

    def test_what_waited_and_left(self) -> None:
        wire = self.stuck()
        wire.take_all()
        [row] = self.rows(sort="waits_seconds")
        self.assertEqual((row["queued_bytes"], row["waits_seconds"]), (0, None))

    def test_what_left_at_once(self) -> None:
        sender = self.client()
        self.client()
        self.send(sender, {"type": "broadcast", "content": 1})
        self.loop.advance(5)
        self.assertEqual([row["waits_seconds"] for row in self.rows(sort="waits_seconds")], [None, None])

    def test_the_longest_wait_is_last(self) -> None:
        self.stuck()
        self.loop.advance(2)
        self.stuck()
        self.client()
        self.assertEqual(self.names(sort="waits_seconds"), ["unix:3", "unix:2", "unix:1"])

    def test_every_column_that_is_one_value_sorts(self) -> None:
        self.client()
        [row] = self.rows()
        for column in set(row) - {"held"}:
            self.assertEqual(views.connections(self.factory, sort=column)["sort"], column)

    def test_pages_hold_each_once(self) -> None:
        for _ in range(25):
            self.client()
        found = []
        for offset in range(0, 30, 10):
            answer = views.connections(self.factory, sort="messages_in", offset=offset, limit=10)
            self.assertEqual((answer["total"], answer["offset"], answer["limit"]), (25, offset, 10))
            found.append([row["client"] for row in answer["connections"]])
        self.assertEqual([len(page) for page in found], [10, 10, 5])
        self.assertEqual(len({client for page in found for client in page}), 25)
        self.assertEqual(self.names(offset=25), [])
        self.assertEqual(self.names(offset=10**9), [])

    def test_only_those_shown_are_asked_how_far_they_are(self) -> None:
        for _ in range(20):
            self.client()
        self.rows(limit=3)
        self.assertEqual(self.asked, 3)

    def test_what_cannot_be_asked_for(self) -> None:
        for options, text in (
            ({"sort": "held"}, "sort must be one of client, user, state, "),
            ({"offset": -1}, "offset must be 0 or more"),
            ({"limit": 0}, "limit must be from 1 to 1000"),
            ({"limit": 1001}, "limit must be from 1 to 1000"),
        ):
            error = self.assertRaises(ValueError, views.connections, self.factory, **options)
            self.assertIn(text, str(error))
        self.assertEqual(views.connections(self.factory, limit=1000)["limit"], 1000)

    def test_those_who_are_not_served_are_there(self) -> None:
        wire = self.client()
        wire.send(b"\xff\xff\xff\xff")
        wire.take_all()
        [row] = self.rows()
        self.assertEqual((row["state"], row["held"]), ("draining", ["ending"]))


class ClosedTests(Case):
    """`closed`."""

    def test_nobody(self) -> None:
        self.assertEqual(views.closed(self.factory), {"total": 0, "offset": 0, "limit": 100, "closed": []})

    def test_a_row(self) -> None:
        wire = self.client()
        self.send(wire, {"type": "ping"})
        wire.take_all()
        self.loop.advance(2.5)
        wire.close()
        [row] = views.closed(self.factory)["closed"]
        self.assertEqual(
            row,
            {
                "client": "unix:1",
                "user": None,
                "code": "client_closed",
                "why": "the client closed the connection",
                "detail": "",
                "age_seconds": 2.5,
                "messages_in": 1,
                "messages_out": 2,
                "bytes_in": 4 + len(json.dumps({"type": "ping"})),
                "bytes_out": len(wire.data),
                "closed_at": "2024-01-01T12:00:02.500Z",
            },
        )

    def test_the_latest_first_and_by_pages(self) -> None:
        for _ in range(7):
            self.client().close()
        answer = views.closed(self.factory, offset=2, limit=3)
        self.assertEqual((answer["total"], answer["offset"], answer["limit"]), (7, 2, 3))
        self.assertEqual([row["client"] for row in answer["closed"]], ["unix:5", "unix:4", "unix:3"])
        self.assertEqual(views.closed(self.factory, offset=7)["closed"], [])

    def test_what_cannot_be_asked_for(self) -> None:
        for options in ({"offset": -1}, {"limit": 0}, {"limit": 1001}):
            self.assertRaises(ValueError, views.closed, self.factory, **options)


class SurveyTests(Case):
    def test_queues(self) -> None:
        self.client()
        self.stuck(100_000)
        self.loop.advance(1)
        self.stuck(50_000)
        found = views.survey(self.factory)
        queued = sorted(each.waiting for each in self.factory.connections)
        self.assertEqual(queued[0], 0)
        self.assertGreater(queued[1], 30_000)
        self.assertEqual((found.queued, found.longest_queue), (sum(queued), queued[2]))
        self.assertEqual(
            [each.client_id for each in sorted(found.suspects, key=lambda each: each.opened)],
            ["unix:2", "unix:3"],
        )
        # Over a second, not just one.
        self.assertEqual(found.slow, 0)
        self.loop.advance(0.5)
        self.assertEqual(views.survey(self.factory).slow, 1)

    def test_unfinished_handlers(self) -> None:
        for count in (1, 2):
            self.send(self.client(), *[{"type": "wait"}] * count)
        self.assertEqual(views.survey(self.factory).unfinished, 3)
        self.assertEqual(views.survey(self.factory).suspects, [])

    def test_those_that_are_held_are_suspects(self) -> None:
        self.client()
        [connection] = self.factory.connections
        connection.pauseProducing()
        self.assertEqual(views.survey(self.factory).suspects, [connection])


class SlowestTests(Case):
    """Who is slow, and why."""

    def test_nothing_is_wrong(self) -> None:
        self.client()
        self.assertEqual(self.slowest(), [("unix:1", None)])

    def test_who_does_not_read(self) -> None:
        self.server(limits=Limits(write_timeout=20, max_queue=1024 * 1024))
        self.stuck()
        self.assertEqual(self.slowest(), [("unix:1", None)])
        self.loop.advance(4)
        [connection] = self.factory.connections
        self.assertEqual(
            self.slowest(),
            [
                (
                    "unix:1",
                    f"does not read, or too slowly: {size(connection.waiting)} wait for it, for 4 s; closed"
                    " when it takes nothing for 20 s, or at 1 MiB",
                )
            ],
        )

    def test_a_queue_that_grows_fast(self) -> None:
        self.server(limits=Limits(max_queue=300_000))
        self.stuck(200_000)
        [(_, words)] = self.slowest()
        self.assertIn("wait for it, for 0 µs;", words or "")

    def test_who_does_not_read_its_answers(self) -> None:
        wire = self.client(SMALL)
        self.send(wire, *[{"type": "echo", "content": "x" * 20_000}] * 5)
        self.assertEqual(self.slowest(), [("unix:1", "does not read its answers: what it sends waits")])

    def test_who_sends_too_much(self) -> None:
        for limits, words in (
            (Limits(messages_per_second=2), "2 messages"),
            (Limits(bytes_per_second=100), "100 bytes"),
            (
                Limits(messages_per_second=2.5, bytes_per_second=2048, byte_burst=100),
                "2.5 messages and 2 KiB",
            ),
        ):
            self.server(limits=limits)
            self.send(self.client(), *[{"type": "ping", "x": "y" * 20}] * 5)
            self.assertEqual(
                self.slowest(),
                [("unix:1", f"sends more than its rate, {words} a second: what it sends waits")],
            )

    def test_whose_handlers_are_unfinished(self) -> None:
        self.server(limits=Limits(max_handlers=2))
        self.send(self.client(), *[{"type": "wait"}] * 3)
        self.assertEqual(
            self.slowest(),
            [("unix:1", "its handlers are unfinished: 2, and no more may be; what it sends waits")],
        )

    def test_who_is_being_checked(self) -> None:
        authenticator = Authenticator(
            [Undecided()], self.loop, lambda key, function, *args: function(*args), allow_plain=True
        )
        self.server(authenticator=authenticator)
        wire = self.client()
        self.assertEqual(self.slowest(), [("unix:1", None)])
        self.send(wire, {"type": "auth", "mechanism": "plain", "username": "ann", "password": "x"})
        self.assertEqual(self.slowest(), [("unix:1", "who it is is being checked")])

    def test_whom_the_application_has_not_let_in(self) -> None:
        self.router.on_connect(lambda session: Deferred())
        self.server()
        self.client()
        self.assertEqual(self.slowest(), [("unix:1", "the application has not let it in yet")])

    def test_who_is_paused(self) -> None:
        self.client()
        [connection] = self.factory.connections
        connection.pauseProducing()
        self.assertEqual(self.slowest(), [("unix:1", "paused by the application")])

    def test_who_is_being_closed(self) -> None:
        wire = self.client()
        wire.send(b"\xff\xff\xff\xff")
        self.assertEqual(
            self.slowest(),
            [("unix:1", "is being closed: it sent a frame that is longer than the server takes")],
        )

    def test_a_shutdown_is_nobodys_fault(self) -> None:
        self.client()
        self.factory.drain()
        self.loop.advance(1)
        self.assertEqual(views.connections(self.factory)["connections"][0]["held"], ["ending"])
        self.assertEqual(self.slowest(), [("unix:1", None)])

    def test_who_is_being_closed_for_no_reason_yet(self) -> None:
        self.client()
        [connection] = self.factory.connections
        connection.end()
        self.assertEqual(self.slowest(), [("unix:1", "is being closed")])

    def test_who_is_far_away(self) -> None:
        self.client()
        self.distances["unix:1"] = 0.249
        self.assertEqual(self.slowest(), [("unix:1", None)])
        self.distances["unix:1"] = 0.3
        self.assertEqual(self.slowest(), [("unix:1", "far away: 300 ms there and back")])

    def test_several_things_at_once(self) -> None:
        self.client()
        self.distances["unix:1"] = 2.0
        [connection] = self.factory.connections
        connection.pauseProducing()
        self.assertEqual(
            self.slowest(), [("unix:1", "paused by the application; far away: 2 s there and back")]
        )

    def test_the_order(self) -> None:
        # The longest queue, of equal ones the older, then those that are held, then those far away.
        self.client()
        self.client()
        self.client()
        self.stuck(50_000)
        self.loop.advance(1)
        self.stuck(50_000)
        self.stuck(60_000)
        self.loop.advance(1)
        connections = {each.client_id: each for each in self.factory.connections}
        connections["unix:2"].pauseProducing()
        self.distances["unix:3"] = 0.1
        self.distances["unix:5"] = 0.2
        self.assertEqual(connections["unix:4"].waiting, connections["unix:5"].waiting)
        self.assertEqual(
            [client for client, _ in self.slowest()],
            ["unix:6", "unix:4", "unix:5", "unix:2", "unix:3", "unix:1"],
        )

    def test_ten_rows_and_a_hundred_questions(self) -> None:
        for _ in range(110):
            self.client()
        self.stuck(50_000)
        connections = {each.client_id: each for each in self.factory.connections}
        connections["unix:7"].pauseProducing()
        rows = self.slowest()
        self.assertEqual(len(rows), 10)
        self.assertEqual(self.asked, 100)
        # Whoever else is asked: none twice, and all of whom there is something to say.
        self.assertEqual([client for client, _ in rows[:2]], ["unix:111", "unix:7"])
        self.assertEqual(len(set(rows)), 10)

    def test_more_suspects_than_questions(self) -> None:
        for _ in range(110):
            self.client()
        for connection in self.factory.connections:
            connection.pauseProducing()
        self.assertEqual(len(self.slowest()), 10)
        self.assertEqual(self.asked, 100)


class SnapshotTests(Case):
    def test_a_server_that_has_done_nothing(self) -> None:
        nothing = {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "over": 0}
        found = snapshot(self.factory)
        for name in ("handling", "lag"):
            timing = found.pop(name)
            self.assertEqual(len(timing["counts"]), len(timing["bounds"]) + 1)
            self.assertEqual({key: timing[key] for key in nothing}, nothing)
        self.assertEqual(
            found,
            {
                "version": __version__,
                "time": "2024-01-01T12:00:00.000Z",
                "clock": 0.0,
                "uptime_seconds": 0.0,
                "draining": False,
                "clients": 0,
                "connections": 0,
                "peak_clients": 0,
                "max_connections": None,
                "unfinished_handlers": 0,
                "totals": dict.fromkeys(
                    (
                        *("messages_in", "messages_out", "bytes_in", "bytes_out", "broadcasts", "deliveries"),
                        *("accepted", "refused", "closed", "errors", "over_rate", "failed_logins"),
                    ),
                    0,
                ),
                "rates": dict.fromkeys(
                    (
                        "messages_in_per_second",
                        "messages_out_per_second",
                        "bytes_in_per_second",
                        "bytes_out_per_second",
                    ),
                    0.0,
                ),
                "types": [],
                "errors": [],
                "refused": [],
                "disconnects": [],
                "logins": [],
                "queues": {"total_bytes": 0, "longest_bytes": 0, "slow_clients": 0},
                "handlers": [],
                "limits": {
                    "max_connections": None,
                    "max_connections_per_ip": None,
                    "max_queue": 8388608,
                    "write_timeout": 10.0,
                    "handler_timeout": 30.0,
                    "max_handlers": 64,
                    "messages_per_second": None,
                    "bytes_per_second": None,
                    "rate_policy": "throttle",
                    "idle_timeout": None,
                    "heartbeat": 25.0,
                },
                "certificate_days": None,
                "slowest": [],
                "recently_closed": [],
            },
        )

    def test_all_figures(self) -> None:
        self.server(limits=Limits(max_connections=3, messages_per_second=1000))
        clients = [self.client() for _ in range(4)]
        self.send(clients[0], {"type": "broadcast", "content": 1}, {"type": "wait"})
        self.send(clients[1], *[{"type": "echo", "content": "abc"}] * 3, {"type": "ping", "id": []})
        clients[2].close()
        self.loop.advance(2)
        self.waiting.pop().callback(None)
        self.loop.settle()
        self.factory.stats.logins["plain", "authenticated"] = 2
        self.factory.stats.failed_logins = 1
        self.factory.stats.over_rate = 5
        self.factory.stats.certificate_days = 12.5
        self.factory.stats.lag.observe(0.002)
        self.factory.stats.lag.observe(100.0)
        self.factory.draining = True
        found = snapshot(self.factory)
        figures = {
            name: found[name]
            for name in ("draining", "clients", "peak_clients", "max_connections", "uptime_seconds", "clock")
        }
        self.assertEqual(
            figures,
            {
                "draining": True,
                "clients": 2,
                "peak_clients": 3,
                "max_connections": 3,
                "uptime_seconds": 2.0,
                "clock": 2.0,
            },
        )
        self.assertEqual(found["time"], "2024-01-01T12:00:02.000Z")
        totals = found["totals"]
        stats = self.factory.stats
        self.assertEqual((totals["bytes_in"], totals["bytes_out"]), (stats.bytes_in, stats.bytes_out))
        self.assertGreater(totals["bytes_out"], totals["bytes_in"])
        del totals["bytes_in"], totals["bytes_out"]
        self.assertEqual(
            totals,
            {
                "messages_in": 6,
                "messages_out": stats.messages_out,
                "broadcasts": 1,
                "deliveries": 2,
                "accepted": 4,
                "refused": 1,
                "closed": 2,
                "errors": stats.errors.total(),
                "over_rate": 5,
                "failed_logins": 1,
            },
        )
        self.assertEqual(found["rates"]["messages_in_per_second"], 3.0)
        types = {row.pop("type"): row for row in found["types"]}
        self.assertEqual(
            types["echo"],
            {
                "messages_received": 3,
                "bytes_received": 3 * len(json.dumps({"type": "echo", "content": "abc"})),
                "messages_sent": 0,
                "bytes_sent": 0,
            },
        )
        self.assertEqual(
            (types["broadcast"]["messages_received"], types["broadcast"]["messages_sent"]), (1, 2)
        )
        self.assertEqual(types["echo_response"]["messages_sent"], 3)
        counts = [row["messages_received"] + row["messages_sent"] for row in types.values()]
        self.assertEqual(counts, sorted(counts, reverse=True))
        self.assertNotIn(0, counts)
        self.assertIn(
            {"code": "bad_message", "count": 1, "why": "it sent a message with a wrong field"},
            found["errors"],
        )
        [refused] = found["refused"]
        self.assertEqual(
            refused,
            {"code": "server_full", "count": 1, "why": "there was no room: all connections were taken"},
        )
        self.assertEqual({row["code"] for row in found["disconnects"]}, set(stats.disconnects))
        self.assertEqual(found["logins"], [{"mechanism": "plain", "result": "authenticated", "count": 2}])
        self.assertEqual(found["certificate_days"], 12.5)
        [handler] = found["handlers"]
        self.assertEqual((handler["type"], handler["count"], handler["mean"]), ("wait", 1, 2.0))
        self.assertEqual((found["lag"]["count"], found["lag"]["mean"], found["lag"]["over"]), (2, 50.001, 1))
        self.assertEqual((found["lag"]["p50"], found["lag"]["p99"]), (0.003, found["lag"]["bounds"][-1]))
        self.assertGreater(found["handling"]["count"], 1)
        self.assertEqual([row["client"] for row in found["recently_closed"]], ["unix:3"])
        json.dumps(found)

    def test_what_never_came_again_is_not_listed(self) -> None:
        self.factory.stats.errors["bad_json"] = 0
        self.assertEqual(snapshot(self.factory)["errors"], [])

    def test_handlers_most_first(self) -> None:
        for kind, count in (("few", 1), ("many", 3)):
            histogram = self.factory.stats.awaited[kind] = Histogram((1,))
            for _ in range(count):
                histogram.observe(0.5)
        self.assertEqual([row["type"] for row in snapshot(self.factory)["handlers"]], ["many", "few"])

    def test_twenty_of_those_closed(self) -> None:
        for number in range(25):
            self.factory.stats.closed.append(ClosedConnection(str(number), None, "slow_consumer", 1.0, 0, 0))
        rows = snapshot(self.factory)["recently_closed"]
        self.assertEqual([row["client"] for row in rows], [str(number) for number in range(24, 4, -1)])
