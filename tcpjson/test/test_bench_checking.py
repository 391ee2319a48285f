"""How the benchmark makes requests, and finds out what of the replies is not right."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.bench import driver, latency
from tcpjson.bench.pool import Pool, contents
from tcpjson.bench.replies import Checker, Replies, ServerSaid
from tcpjson.bench.schedule import Schedule
from tcpjson.bench.shape import Shape
from tcpjson.bench.wire import LONGEST, frame, take
from tcpjson.test.hypo import given

_TIME = "2024-01-01T12:00:00.000Z"
_RUN = 16


def reply(pool: Pool, index: int, **fields: Any) -> bytes:
    """The frame of the right reply to a request, with other fields where some are given."""
    index %= pool.count
    message = {
        "type": "echo_response",
        "content": pool.contents[index].decode(),
        "timestamp": _TIME,
        "echoed_by": "TCP Server",
        "id": pool.ids[index],
        **fields,
    }
    return frame(json.dumps({name: value for name, value in message.items() if value is not None}).encode())


def feed(replies: Replies, pieces: list[bytes]) -> int:
    """Give it what comes, as a client does; returns how many requests were answered."""
    answered = 0
    for piece in pieces:
        data = bytearray(replies.left) + piece
        # What is behind the end is of an earlier read.
        answered += replies.feed(data + b"\x00\x00\x00\x02{}", len(data))
    return answered


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    """The data in pieces of these lengths, again and again."""
    pieces, at, turn = [], 0, itertools.cycle(lengths or [len(data) or 1])
    while at < len(data):
        length = next(turn)
        pieces.append(data[at : at + length])
        at += length
    return pieces


class WireTests(SynchronousTestCase):
    """Frames."""

    def test_whole(self) -> None:
        """Of several, the one that is asked for."""
        data = frame(b"{}") + frame(b"[1]")
        self.assertEqual(take(data, 0), (b"{}", 6))
        self.assertEqual(take(data, 6), (b"[1]", 13))

    def test_cut(self) -> None:
        """One that is not whole is none yet."""
        data = frame(b"abc")
        self.assertEqual([take(data[:end], 0) for end in range(7)], [None] * 7)

    def test_no_frame(self) -> None:
        """What announces more than any answer has is no frame."""
        with self.assertRaisesRegex(ValueError, "HTTP"):
            take(b"HTTP/1.1 400 Bad Request", 0)
        self.assertIsNone(take(LONGEST.to_bytes(4, "big"), 0))


class PoolTests(SynchronousTestCase):
    """The requests."""

    def test_frames(self) -> None:
        """They are of one length; contents and ids differ."""
        pool = Pool(20, 3)
        data = b"".join(pool.piece(index, 1) for index in range(pool.count))
        self.assertEqual(len(data), pool.count * pool.length)
        seen = set()
        at = 0
        for index in range(pool.count):
            found = take(data, at)
            assert found is not None
            message = json.loads(found[0])
            at = found[1]
            self.assertEqual(message["type"], "echo")
            self.assertEqual(message["content"].encode(), pool.contents[index])
            self.assertEqual(len(message["content"]), 20)
            self.assertEqual(pool.index(message["id"]), index)
            seen.add((message["content"], message["id"]))
        self.assertEqual(len(seen), pool.count)
        self.assertEqual(len({content for content, _ in seen}), pool.count)

    def test_round(self) -> None:
        """Behind the last comes the first, in one piece."""
        pool = Pool(20, 3)
        last, first = bytes(pool.piece(pool.count - 1, 1)), bytes(pool.piece(0, 2))
        self.assertEqual(bytes(pool.piece(pool.count - 1, 3)), last + first)

    def test_unknown_ids(self) -> None:
        """What is no id of it has no index."""
        pool = Pool(20, 3)
        for stranger in (None, True, "1", 0, pool.ids[0] - 1, pool.ids[-1] + 1, 1.0):
            self.assertIsNone(pool.index(stranger))

    def test_seeds(self) -> None:
        """Two processes send different things."""
        one, other = Pool(20, 3, 1), Pool(20, 3, 2)
        self.assertFalse(set(one.contents) & set(other.contents))
        self.assertFalse(set(one.ids) & set(other.ids))
        self.assertEqual(one.length, other.length)

    def test_large(self) -> None:
        """Of large ones there are fewer, and never fewer than are sent at once."""
        self.assertLess(Pool(100_000, 3).count, Pool(100, 3).count)
        self.assertEqual(Pool(100_000, 300).count, 300)

    @given(st.integers(0, 40), st.integers(1, 20))
    def test_contents(self, size: int, count: int) -> None:
        """They have the size that is asked for, and need no escapes."""
        found = contents(count, size, 3)
        self.assertEqual([len(each) for each in found], [size] * count)
        self.assertTrue(all(each.isalnum() for each in found if each))


class ShapeTests(SynchronousTestCase):
    """What one reply tells of the others."""

    def setUp(self) -> None:
        self.pool = Pool(30, 4)

    def shape(self, **fields: Any) -> Shape:
        return Shape(self.pool, 4, reply(self.pool, 2, **fields), 2)

    def test_others(self) -> None:
        """The others are known, whatever their time is."""
        shape = self.shape()
        later = "2031-12-31T23:59:59.999Z"
        data = b"".join(reply(self.pool, index, timestamp=later) for index in range(5, 9))
        self.assertTrue(shape.same(data, 4, 5))
        self.assertFalse(shape.same(data, 4, 4))

    def test_around(self) -> None:
        """So are those of which some are at the end of the pool."""
        last = self.pool.count - 2
        data = b"".join(reply(self.pool, index) for index in range(last, last + 4))
        self.assertTrue(self.shape().same(data, 4, last))

    def test_each_byte(self) -> None:
        """No byte of it may differ, but those of the time."""
        right = reply(self.pool, 7)
        shape = self.shape()
        stamp = right.index(_TIME.encode())
        for at in range(len(right)):
            wrong = bytearray(right)
            wrong[at] ^= 1
            inside = stamp <= at < stamp + len(_TIME)
            self.assertEqual(shape.same(wrong, 1, 7), inside, at)

    def test_no_time(self) -> None:
        """A server need not say the time."""
        self.assertTrue(self.shape(timestamp=None).same(reply(self.pool, 3, timestamp=None), 1, 3))

    def test_two_times(self) -> None:
        """It may say it twice."""
        shape = self.shape(sent=_TIME)
        self.assertTrue(shape.same(reply(self.pool, 3, sent=_TIME), 1, 3))

    def test_none(self) -> None:
        """Some replies tell nothing of others."""
        content = self.pool.contents[2].decode()
        for fields in (
            {"content": "other"},
            {"again": content},
            {"again": self.pool.ids[2]},
            {"id": None},
            {"sent": "2024-01-01T12:00:00Z"},
        ):
            with self.assertRaises(ValueError):
                self.shape(**fields)
        with self.assertRaises(ValueError):
            Shape(self.pool, 4, reply(self.pool, 2) + b"x", 2)
        with self.assertRaises(ValueError):
            Shape(self.pool, 4, reply(self.pool, 2)[:-1], 2)

    def test_escaped(self) -> None:
        """A content that is written with escapes is not found."""
        escaped = b"".join(b"\\u%04x" % byte for byte in self.pool.contents[2])
        whole = reply(self.pool, 2)[4:].replace(self.pool.contents[2], escaped)
        with self.assertRaises(ValueError):
            Shape(self.pool, 4, frame(whole), 2)


#: What a server may make of a reply; whether that is right.
_KINDS = {
    "right": True,
    "longer": True,
    "spaced": True,
    "content": False,
    "id": False,
    "type": False,
    "garbage": False,
    "list": False,
    "deep": False,
    "latin": False,
    "error": False,
}


def made(kind: str, pool: Pool, index: int) -> bytes:
    """The frame of such a reply."""
    payloads = {
        "garbage": b"{",
        "list": b"[]",
        "deep": b"[" * 100_000,
        "latin": b'{"type": "\xff"}',
    }
    if kind in payloads:
        return frame(payloads[kind])
    if kind == "spaced":
        return frame(reply(pool, index)[4:].replace(b": ", b" :  "))
    fields: dict[str, dict[str, Any]] = {
        "longer": {"more": index},
        "content": {"content": pool.contents[(index + 1) % pool.count].decode()},
        "id": {"id": None},
        "type": {"type": "response"},
        "error": {"type": "error", "code": "internal", "fatal": False},
    }
    return reply(pool, index, **fields.get(kind, {}))


class RepliesTests(SynchronousTestCase):
    """The replies on one connection."""

    pool = Pool(30, _RUN)

    def replies(self, outstanding: int, first: int = 0) -> Replies:
        replies = Replies(Checker(self.pool, _RUN), first)
        replies.outstanding = outstanding
        return replies

    @given(
        st.lists(st.sampled_from(sorted(_KINDS)), min_size=1, max_size=_RUN),
        st.lists(st.integers(1, 400), max_size=6),
        st.sampled_from([0, 5, Pool(30, _RUN).count - 3]),
        st.lists(st.sampled_from(["ping", "broadcast", "going_away", "welcome"]), max_size=3),
        st.integers(0, 1000),
    )
    def test_kinds(
        self, kinds: list[str], lengths: list[int], first: int, asides: list[str], seed: int
    ) -> None:
        """Each is answered, and those that are not right are counted, however they are cut."""
        frames = [made(kind, self.pool, first + index) for index, kind in enumerate(kinds)]
        for aside in asides:
            at = random.Random(seed).randrange(len(frames) + 1)
            frames.insert(at, frame(json.dumps({"type": aside, "id": None}).encode()))
        replies = self.replies(len(kinds), first)
        self.assertEqual(feed(replies, cut(b"".join(frames), lengths)), len(kinds))
        self.assertEqual(replies.wrong, sum(not _KINDS[kind] for kind in kinds))
        self.assertEqual(replies.outstanding, 0)
        self.assertEqual(bytes(replies.left), b"")
        self.assertEqual(bool(replies.first_wrong), bool(replies.wrong))
        # And all is well with what comes behind.
        replies.outstanding = 2
        data = b"".join(reply(self.pool, first + len(kinds) + more) for more in range(2))
        wrong = replies.wrong
        self.assertEqual(feed(replies, [data]), 2)
        self.assertEqual(replies.wrong, wrong)

    @given(st.permutations(range(6)), st.booleans())
    def test_any_order(self, order: list[int], known: bool) -> None:
        """Requests with an id may be answered in any order."""
        replies = self.replies(7)
        first = [reply(self.pool, 0)] if known else []
        rest = [reply(self.pool, 1 + index) for index in order]
        answered = feed(replies, [*first, b"".join([*rest, *([] if known else [reply(self.pool, 0)])])])
        self.assertEqual((answered, replies.wrong, replies.outstanding), (7, 0, 0))
        replies.outstanding = 1
        self.assertEqual(feed(replies, [reply(self.pool, 7)]), 1)
        self.assertEqual(replies.wrong, 0)

    def test_twice(self) -> None:
        """A reply that came already, or to nothing, is wrong and answers nothing."""
        replies = self.replies(3)
        answered = feed(replies, [reply(self.pool, index) for index in (0, 0, 2, 2, 5)])
        self.assertEqual((answered, replies.wrong, replies.outstanding), (2, 3, 1))
        self.assertEqual(
            feed(replies, [reply(self.pool, 1), reply(self.pool, 3), made("id", self.pool, 3)]), 1
        )
        self.assertEqual((replies.wrong, replies.outstanding), (5, 0))

    def test_more_than_asked(self) -> None:
        """Replies that nobody asked for are found among many."""
        replies = self.replies(1)
        feed(replies, [reply(self.pool, 0)])
        replies.outstanding = 2
        self.assertEqual(feed(replies, [b"".join(reply(self.pool, index) for index in range(1, 5))]), 2)
        self.assertEqual(replies.wrong, 2)

    def test_swapped(self) -> None:
        """Replies with each other's contents are found, when the shape is known, too."""
        replies = self.replies(5)
        feed(replies, [reply(self.pool, 0)])
        swapped = [
            reply(self.pool, 1, content=self.pool.contents[2].decode()),
            reply(self.pool, 2, content=self.pool.contents[1].decode()),
        ]
        data = b"".join([*swapped, reply(self.pool, 3), reply(self.pool, 4)])
        self.assertEqual(feed(replies, [data]), 4)
        self.assertEqual(replies.wrong, 2)
        self.assertIn(self.pool.contents[2].decode(), replies.first_wrong)

    def test_shorter_behind(self) -> None:
        """What follows known ones and is shorter is not left lying."""
        replies = self.replies(3)
        feed(replies, [reply(self.pool, 0)])
        self.assertEqual(feed(replies, [reply(self.pool, 1) + made("garbage", self.pool, 2)]), 2)
        self.assertEqual(replies.wrong, 1)

    def test_fatal(self) -> None:
        """The server's last word is told."""
        error = {"type": "error", "code": "rate_limited", "message": "too fast", "fatal": True}
        with self.assertRaisesRegex(ServerSaid, "rate_limited: too fast"):
            feed(self.replies(1), [frame(json.dumps(error).encode())])

    def test_no_frames(self) -> None:
        """Bytes that are no frames end it."""
        with self.assertRaisesRegex(ValueError, "no frames"):
            feed(self.replies(1), [b"\xff\xff\xff\xff\x00"])

    def test_odd_ids(self) -> None:
        """Ids of any kind are wrong, and nothing more."""
        strangers: tuple[Any, ...] = ({}, [], "x", 1e300, False)
        for stranger in strangers:
            replies = self.replies(1)
            self.assertEqual(feed(replies, [reply(self.pool, 0, id=stranger)]), 1)
            self.assertEqual(replies.wrong, 1)
            replies = self.replies(1)
            self.assertEqual(feed(replies, [reply(self.pool, 0, type=stranger)]), 1)
            self.assertEqual(replies.wrong, 1)

    def test_shapeless(self) -> None:
        """Replies without a shape are read one by one, and those of the same kind are no less right."""
        checker = Checker(self.pool, _RUN)
        replies = Replies(checker, 0)
        replies.outstanding = 4
        data = b"".join(
            reply(self.pool, index, again=self.pool.contents[index].decode()) for index in range(4)
        )
        self.assertEqual(feed(replies, [data[:300], data[300:]]), 4)
        self.assertEqual(replies.wrong, 0)
        self.assertIsNone(checker.shape)


class ScheduleTests(SynchronousTestCase):
    """When requests are due."""

    @given(st.floats(0.5, 1e6), st.floats(0.001, 10), st.sampled_from([0.0, 0.25, 0.5]), st.floats(0, 20))
    def test_due(self, rate: float, seconds: float, phase: float, elapsed: float) -> None:
        """By any time those are due whose own time has come."""
        schedule = Schedule(rate, seconds, phase)
        count = schedule.due_by(elapsed)
        self.assertLessEqual(count, schedule.total)
        slack = 1e-6
        if count:
            self.assertLessEqual(schedule.due(count - 1), elapsed + slack)
        if count < schedule.total:
            self.assertGreaterEqual(schedule.due(count), elapsed - slack)

    def test_rate(self) -> None:
        """So many a second, one at least."""
        self.assertEqual(Schedule(100, 2).total, 200)
        self.assertEqual(Schedule(1, 0.1).total, 1)
        self.assertAlmostEqual(Schedule(100, 2).due(50), 0.5)
        self.assertEqual(Schedule(100, 2, 0.5).due_by(0.0), 0)
        self.assertEqual(Schedule(100, 2).due_by(0.0), 1)


class LatencyTests(SynchronousTestCase):
    """The histograms of several processes."""

    def test_merged(self) -> None:
        """They are one in the end."""
        found = latency.merged([latency.encoded({100: 90}), latency.encoded({5000: 9, 1_000_000: 1})])
        assert found is not None
        times = dict(found.percentiles)
        self.assertLess(abs(times[50.0] - 0.0001), 1e-6)
        self.assertLess(abs(times[99.0] - 0.005), 1e-5)
        self.assertLess(abs(times[99.99] - 1.0), 1e-3)
        self.assertLess(abs(found.maximum - 1.0), 1e-3)
        self.assertEqual(found.count, 100)
        self.assertEqual(sorted(times), list(latency.PERCENTILES))

    def test_bounds(self) -> None:
        """Nothing is too short or too long."""
        found = latency.merged([latency.encoded({-5: 1, 10**12: 1})])
        assert found is not None
        self.assertLess(abs(found.maximum - latency.HIGHEST), 4)

    def test_nothing(self) -> None:
        """Where nothing was counted, nothing is said."""
        self.assertIsNone(latency.merged([]))
        self.assertIsNone(latency.merged([latency.encoded({})]))

    def test_missing(self) -> None:
        """Whether the package is there."""
        self.assertTrue(latency.available())
        import sys

        self.patch(sys, "modules", {**sys.modules, "hdrh.histogram": None})
        self.assertFalse(latency.available())


def answer(**fields: Any) -> bytes:
    return frame(json.dumps(fields).encode())


class DriverTests(SynchronousTestCase):
    """Our own protocol in a fan-out."""

    def test_ready(self) -> None:
        """The welcome is the greeting."""
        welcome = answer(type="welcome")
        self.assertIsNone(driver.ready(welcome[:-1], False))
        self.assertEqual(driver.ready(welcome + b"more", True), len(welcome))
        with self.assertRaisesRegex(ValueError, "server_full: no room"):
            driver.ready(answer(type="error", code="server_full", message="no room"), False)
        with self.assertRaisesRegex(ValueError, "no welcome"):
            driver.ready(answer(type="hi"), False)
        for payload in (b"\xff", b"[" * 100_000, b"[]", b"{"):
            with self.assertRaisesRegex(ValueError, "no message"):
                driver.ready(frame(payload), False)
        self.assertEqual(driver.hello_receiver() + driver.hello_sender(), b"")

    def test_publish(self) -> None:
        """A broadcast."""
        found = take(driver.publish(b"abc"), 0)
        assert found is not None
        self.assertEqual(json.loads(found[0]), {"type": "broadcast", "content": "abc"})

    def test_delivered(self) -> None:
        """A content, what is none, and what is not whole."""
        data = answer(type="broadcast", content="abc")
        self.assertEqual(driver.delivered(b"x" + data, 1), (b"abc", 1 + len(data)))
        self.assertIsNone(driver.delivered(data[:-1], 0))
        aside = answer(type="ping")
        self.assertEqual(driver.delivered(aside, 0), (None, len(aside)))
        odd = answer(type="broadcast", content=1)
        self.assertEqual(driver.delivered(odd, 0), (b"", len(odd)))
        with self.assertRaisesRegex(ValueError, "slow_consumer"):
            driver.delivered(answer(type="error", code="slow_consumer"), 0)

    def test_acknowledged(self) -> None:
        """How many, what is none, and what is not whole."""
        data = answer(type="broadcast_sent", recipients=3)
        self.assertEqual(driver.acknowledged(data, 0), (3, len(data)))
        self.assertIsNone(driver.acknowledged(data[:-1], 0))
        aside = answer(type="ping")
        self.assertEqual(driver.acknowledged(aside, 0), (None, len(aside)))
        odd = answer(type="broadcast_sent")
        self.assertEqual(driver.acknowledged(odd, 0), (-1, len(odd)))
        with self.assertRaisesRegex(ValueError, "internal"):
            driver.acknowledged(answer(type="error", code="internal"), 0)
