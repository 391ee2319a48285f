"""Counters, and rates over the last minute."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.messages import (
    Answer,
    Custom,
    Echo,
    HeartbeatPong,
    Message,
    Ping,
    Pong,
    Refused,
    Text,
)
from tcpjson.core.stats import SAMPLE_INTERVAL, ClosedConnection, Stats

RATES = {
    "messages_in_per_second",
    "messages_out_per_second",
    "bytes_in_per_second",
    "bytes_out_per_second",
}


class RateTests(SynchronousTestCase):
    """Messages and bytes a second."""

    def test_at_the_start(self) -> None:
        """There is no division by nothing."""
        self.assertEqual(Stats(100.0).rates(100.0), dict.fromkeys(RATES, 0.0))

    def test_each_counter_has_its_own(self) -> None:
        stats = Stats(100.0)
        stats.messages_in, stats.messages_out, stats.bytes_in, stats.bytes_out = 2, 4, 60, 80
        self.assertEqual(
            stats.rates(102.0),
            {
                "messages_in_per_second": 1.0,
                "messages_out_per_second": 2.0,
                "bytes_in_per_second": 30.0,
                "bytes_out_per_second": 40.0,
            },
        )

    def test_before_a_minute_since_the_start(self) -> None:
        stats = Stats(0.0)
        stats.messages_in = 10
        for number in range(1, 5):
            stats.sample(number * SAMPLE_INTERVAL)
        self.assertEqual(stats.rates(20.0)["messages_in_per_second"], 0.5)

    def test_what_is_older_than_a_minute_is_forgotten(self) -> None:
        stats = Stats(0.0)
        stats.messages_in = 600
        now = 0.0
        while now < 50:
            now += SAMPLE_INTERVAL
            stats.sample(now)
        self.assertEqual(stats.rates(60.0)["messages_in_per_second"], 10.0)
        while now < 65:
            now += SAMPLE_INTERVAL
            stats.sample(now)
        self.assertEqual(stats.rates(65.0)["messages_in_per_second"], 0.0)

    def test_a_steady_rate_stays(self) -> None:
        stats = Stats(1000.0)
        now = 1000.0
        for _ in range(60):
            now += SAMPLE_INTERVAL
            stats.bytes_out += 500
            stats.sample(now)
            self.assertAlmostEqual(stats.rates(now)["bytes_out_per_second"], 100.0)

    def test_the_span_is_about_a_minute(self) -> None:
        """What happened a minute ago still counts, whenever one looks."""
        stats = Stats(0.0)
        now = 0.0
        for _ in range(100):
            now += SAMPLE_INTERVAL
            stats.sample(now)
        stats.messages_in += 60
        for _ in range(12):
            now += SAMPLE_INTERVAL
            stats.sample(now)
            rate = stats.rates(now + SAMPLE_INTERVAL - 0.001)["messages_in_per_second"]
            self.assertTrue(0.9 < rate <= 1.0, rate)


class CountTests(SynchronousTestCase):
    """Messages by type, and the rest of `details`."""

    def test_by_type(self) -> None:
        """Known types by their tag; all others as one."""

        class Move(Message, tag="move"):
            pass

        stats = Stats(0.0, [Ping, Echo, Move, Custom, Text, Refused])
        for kind, count in ((Ping, 1), (Move, 2), (Custom, 3), (Text, 4), (Refused, 5)):
            stats.received[kind][0] += count
            stats.received[kind][1] += 10 * count
        self.assertEqual(stats.messages_by_type(), {"ping": 1, "move": 2, "other": 12})
        self.assertEqual(
            stats.received_by_type(),
            {"ping": (1, 10), "echo": (0, 0), "move": (2, 20), "other": (12, 120)},
        )

    def test_several_classes_of_one_type(self) -> None:
        """They are added up."""
        stats = Stats(0.0, [Pong, HeartbeatPong])
        stats.received[Pong][:] = 1, 5
        stats.received[HeartbeatPong][:] = 2, 10
        self.assertEqual(stats.received_by_type(), {"pong": (3, 15)})

    def test_types_sent(self) -> None:
        """Those of the protocol are known from the start; all others are the application's own."""

        class Move(Message, tag="move"):
            pass

        class Pose(Message, tag="pong"):
            pass

        stats = Stats(0.0)
        types = {str(kind.__struct_config__.tag) for kind in Answer.__subclasses__()}
        self.assertEqual(stats.sent_by_type(), dict.fromkeys({*types, "own"}, (0, 0)))
        for kind, count, size in ((Pong, 1, 10), (Move, 2, 20), (dict, 3, 30), (Pong, 4, 40), (Pose, 5, 50)):
            stats.count_sent(kind, count, size)
        stats.count_delivered(6, 60)
        sent = {kind: counts for kind, counts in stats.sent_by_type().items() if counts != (0, 0)}
        self.assertEqual(sent, {"pong": (5, 50), "own": (10, 100), "broadcast": (6, 60)})
        self.assertEqual(stats.deliveries, 6)

    def test_handlers_that_are_awaited(self) -> None:
        """By type; those of all classes without one together."""

        class Move(Message, tag="move"):
            pass

        stats = Stats(0.0)
        self.assertEqual(stats.awaited, {})
        for kind, seconds in ((Move, 0.5), (Custom, 1.0), (Move, 2.0), (Text, 40.0)):
            stats.waited(kind, seconds)
        self.assertEqual(
            {kind: (each.count, each.sum) for kind, each in stats.awaited.items()},
            {"move": (2, 2.5), "other": (2, 41.0)},
        )
        self.assertEqual(stats.awaited["other"].counts[-1], 1)

    def test_histograms(self) -> None:
        """From the least that matters to the most, in seconds."""
        stats = Stats(0.0)
        for histogram, least, most in (
            (stats.durations, 0.1, 604800),
            (stats.handling, 1e-5, 3),
            (stats.lag, 1e-3, 3),
        ):
            self.assertEqual((histogram.bounds[0], histogram.bounds[-1]), (least, most))
            self.assertEqual(list(histogram.bounds), sorted(set(histogram.bounds)))
            self.assertEqual(histogram.count, 0)

    def test_details(self) -> None:
        """At least what section 3 calls `details`, each figure in its place."""
        stats = Stats(0.0, [Ping])
        names = (
            "bytes_in",
            "bytes_out",
            "messages_in",
            "messages_out",
            "broadcasts",
            "deliveries",
            "connections",
            "peak_clients",
            "over_rate",
            "failed_logins",
        )
        for number, name in enumerate(names, 1):
            setattr(stats, name, number)
        stats.errors["bad_json"] += 3
        stats.disconnects["client_closed"] += 4
        stats.received[Ping][0] += 5
        details = stats.details(2.0)
        self.assertEqual({name: details[name] for name in names}, {n: i for i, n in enumerate(names, 1)})
        self.assertEqual(details["errors"], {"bad_json": 3})
        self.assertEqual(details["disconnects"], {"client_closed": 4})
        self.assertEqual(details["messages_by_type"], {"ping": 5})
        self.assertEqual(details["rates"], stats.rates(2.0))

    def test_certificates(self) -> None:
        """Without TLS nothing is said of them; a certificate that ended has less than no days."""
        stats = Stats(0.0)
        self.assertNotIn("certificate_days", stats.details(1.0))
        for days in (13.5, 0.0, -2.5):
            stats.certificate_days = days
            self.assertEqual(stats.details(1.0)["certificate_days"], days)

    def test_details_name_nobody(self) -> None:
        """Any client may ask for them: who was connected is not in them, nor is what is no JSON."""
        stats = Stats(0.0, [Ping])
        stats.closed.append(ClosedConnection("192.0.2.1:80", "ann", "client_closed", 1.5, 2, 3))
        text = json.dumps(stats.details(1.0))
        self.assertNotIn("192.0.2.1", text)
        self.assertNotIn("ann", text)

    def test_details_are_a_copy(self) -> None:
        """They may wait to be sent while the server goes on."""
        stats = Stats(0.0)
        details = stats.details(1.0)
        stats.errors["bad_json"] += 1
        stats.disconnects["client_closed"] += 1
        self.assertEqual((details["errors"], details["disconnects"]), ({}, {}))

    def test_the_start_is_known(self) -> None:
        self.assertEqual(Stats(12.5).started, 12.5)


class ClosedTests(SynchronousTestCase):
    """Why the last connections were closed."""

    def test_the_last_thousand(self) -> None:
        stats = Stats(0.0)
        for number in range(1500):
            stats.closed.append(ClosedConnection(f"c:{number}", None, "client_closed", 0.5, 1, 2))
        self.assertEqual(len(stats.closed), 1000)
        self.assertEqual([stats.closed[0].client_id, stats.closed[-1].client_id], ["c:500", "c:1499"])

    def test_what_is_kept(self) -> None:
        """Who it was, why it ended, and how much it was; nothing of what was said."""
        fields: tuple[str, ...] = ("client_id", "user", "code", "age", "bytes_in", "bytes_out")
        fields += ("messages_in", "messages_out", "detail", "at")
        self.assertEqual(ClosedConnection.__struct_fields__, fields)
        values: Any = ("c:1", "ann", "idle_timeout", 1.5, 10, 20, 3, 4, "why", "2024-01-01T12:00:00.000Z")
        closed = ClosedConnection(*values)
        self.assertEqual(tuple(getattr(closed, name) for name in fields), values)

    def test_the_past_stays(self) -> None:
        closed = ClosedConnection("c:1", None, "idle_timeout", 1.5, 10, 20)
        self.assertRaises(AttributeError, setattr, closed, "code", "client_closed")
