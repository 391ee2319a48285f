"""Replies find those who wait for them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.handshake import AUTH_ID, HELLO_ID
from tcpjson.core.replies import LATE, Replies
from tcpjson.test.hypo import given

KINDS = {
    "ping": "pong",
    "echo": "echo_response",
    "broadcast": "broadcast_sent",
    "get_stats": "server_stats",
    "custom": "response",
    "other": "response",
}


class ByIdTests(SynchronousTestCase):
    """Of servers that know `id`."""

    def setUp(self) -> None:
        self.replies = Replies[str]()

    def test_each_finds_its_own(self) -> None:
        """In whatever order, and whatever the type."""
        one, two = self.replies.add("one", "ping"), self.replies.add("two", "ping")
        self.assertEqual(len(self.replies), 2)
        self.assertEqual(self.replies.take({"type": "error", "id": two}), "two")
        self.assertEqual(self.replies.take({"id": one}), "one")
        self.assertEqual(len(self.replies), 0)

    def test_keys(self) -> None:
        """They are known before, none comes twice, and none is a user's or the handshake's."""
        keys = []
        for _ in range(5):
            expected = self.replies.next_key
            keys.append(self.replies.add("x", "ping"))
            self.assertEqual(keys[-1], expected)
            self.replies.note("ping")
        self.assertEqual(len(set(keys)), 5)
        self.assertLess(max(keys), min(0, HELLO_ID, AUTH_ID))

    def test_only_once(self) -> None:
        key = self.replies.add("one", "ping")
        self.replies.take({"id": key})
        self.assertIs(self.replies.take({"id": key}), LATE)

    def test_who_waits_no_more(self) -> None:
        key = self.replies.add("one", "ping")
        self.replies.forget(key)
        self.replies.forget(key)
        self.assertEqual(len(self.replies), 0)
        self.assertIs(self.replies.take({"id": key}), LATE)

    def test_what_is_no_reply(self) -> None:
        self.replies.add("one", "ping")
        odd: list[Any] = [None, 0, 5, "-3", -3.0, True, [-3], {"a": -3}, 2**70]
        for own in odd:
            self.assertIsNone(self.replies.take({"type": "pong", "id": own}), own)
        self.assertIsNone(self.replies.take({"type": "pong"}))
        self.assertIsNone(self.replies.take({"type": "error", "code": "bad_json"}))
        self.assertEqual(len(self.replies), 1)

    def test_the_end(self) -> None:
        """All who wait, the oldest first, and nothing is kept."""
        keys = [self.replies.add(name, "ping") for name in "abc"]
        self.replies.forget(keys[1])
        self.assertEqual(self.replies.clear(), ["a", "c"])
        self.assertEqual(self.replies.clear(), [])
        self.assertIs(self.replies.take({"id": keys[0]}), LATE)


class ClassicTests(SynchronousTestCase):
    """Of servers that do not."""

    def setUp(self) -> None:
        self.replies = Replies[str](classic=True)

    def test_by_kind(self) -> None:
        """The oldest of its kind; what is not known is answered with `response`."""
        for kind in KINDS:
            self.replies.add(kind, kind)
        for kind, reply in reversed(KINDS.items()):
            if kind == "custom":
                # The first of two.
                self.assertEqual(self.replies.take({"type": reply}), "other")
            elif kind == "other":
                self.assertEqual(self.replies.take({"type": reply}), "custom")
            else:
                self.assertEqual(self.replies.take({"type": reply}), kind)
            self.assertIsNone(self.replies.take({"type": "broadcast"}))

    def test_ids_mean_nothing(self) -> None:
        """None was sent: they are somebody else's."""
        key = self.replies.add("one", "echo")
        for other in (key, -77):
            self.assertIsNone(self.replies.take({"type": "news", "id": other}))
        self.assertEqual(self.replies.take({"type": "echo_response", "id": 5}), "one")

    def test_who_waits_no_more_keeps_the_place(self) -> None:
        key = self.replies.add("one", "ping")
        self.replies.add("two", "ping")
        self.replies.forget(key)
        self.assertIs(self.replies.take({"type": "pong"}), LATE)
        self.assertEqual(self.replies.take({"type": "pong"}), "two")
        self.assertIsNone(self.replies.take({"type": "pong"}))

    def test_what_is_never_answered(self) -> None:
        """It answers in order: with a later reply, the place is given up."""
        key = self.replies.add("one", "custom")
        self.replies.forget(key)
        self.replies.add("two", "ping")
        self.assertEqual(self.replies.take({"type": "pong"}), "two")
        self.replies.add("three", "custom")
        self.assertEqual(self.replies.take({"type": "response"}), "three")

    def test_who_still_waits_keeps_the_place(self) -> None:
        """Nobody knows whether the server is as orderly as that."""
        self.replies.add("one", "custom")
        self.replies.add("two", "ping")
        self.assertEqual(self.replies.take({"type": "pong"}), "two")
        self.assertEqual(self.replies.take({"type": "response"}), "one")

    def test_who_gave_up_after_a_later_reply(self) -> None:
        """The next reply tells."""
        key = self.replies.add("one", "custom")
        self.replies.add("two", "ping")
        self.replies.take({"type": "pong"})
        self.replies.forget(key)
        self.replies.add("three", "echo")
        self.assertEqual(self.replies.take({"type": "echo_response"}), "three")
        self.replies.add("four", "custom")
        self.assertEqual(self.replies.take({"type": "response"}), "four")

    def test_what_is_never_answered_and_nobody_waited_for(self) -> None:
        """Such as what was just sent, to a server that says nothing to it."""
        self.replies.note("custom")
        self.replies.add("two", "ping")
        self.assertEqual(self.replies.take({"type": "pong"}), "two")
        self.replies.add("three", "custom")
        self.assertEqual(self.replies.take({"type": "response"}), "three")

    def test_for_whom_nobody_waited(self) -> None:
        self.replies.note("ping")
        self.replies.add("one", "ping")
        self.assertEqual(len(self.replies), 1)
        self.assertIsNone(self.replies.take({"type": "pong"}))
        self.assertEqual(self.replies.take({"type": "pong"}), "one")

    def test_an_error_is_for_the_oldest(self) -> None:
        self.replies.add("one", "echo")
        self.replies.add("two", "ping")
        self.assertEqual(self.replies.take({"type": "error"}), "one")
        self.assertEqual(self.replies.take({"type": "error"}), "two")
        self.assertIsNone(self.replies.take({"type": "error"}))

    def test_odd_types(self) -> None:
        self.replies.add("one", "ping")
        odd: list[Any] = [None, 5, ["pong"], {"pong": 1}, "", "Pong"]
        for kind in odd:
            self.assertIsNone(self.replies.take({"type": kind}))
        self.assertIsNone(self.replies.take({}))

    def test_the_end(self) -> None:
        """Nothing is kept: what comes then is nobody's."""
        for kind in KINDS:
            self.replies.note(kind)
            self.replies.add(kind, kind)
        self.assertEqual(self.replies.clear(), list(KINDS))
        for reply in [*KINDS.values(), "error"]:
            self.assertIsNone(self.replies.take({"type": reply}))


# Who does not wait any more.
GONE = (LATE, None)


class Naive:
    """What `Replies` is to do, on one list: what was sent, oldest first, as [kind, key, waiter]."""

    def __init__(self, classic: bool) -> None:
        self.classic = classic
        self.sent: list[list[Any]] = []

    def take(self, message: dict[str, Any]) -> object:
        key = message.get("id")
        if isinstance(key, int) and key < 0:
            for entry in self.sent:
                if entry[1] == key and entry[2] not in (LATE, None):
                    waiter, entry[2] = entry[2], LATE
                    return waiter
            return LATE
        if self.classic:
            for place, entry in enumerate(self.sent):
                if message["type"] in ("error", KINDS[entry[0]]):
                    # What was not answered before it, of those who wait no more, never will be.
                    before = [other for other in self.sent[:place] if other[2] not in GONE]
                    self.sent = before + self.sent[place + 1 :]
                    return entry[2]
        return None

    def waiting(self) -> list[object]:
        return [entry[2] for entry in self.sent if entry[2] not in (LATE, None)]


# Few, so that they meet.
_add = st.tuples(st.just("add"), st.sampled_from(["ping", "custom", "other"]))
_note = st.tuples(st.just("note"), st.sampled_from(["ping", "custom"]))
_take = st.tuples(st.just("by kind"), st.sampled_from(["pong", "response"]))
_odd = st.tuples(st.just("by kind"), st.sampled_from(["error", "broadcast", "server_stats"]))
_forget = st.tuples(st.just("forget"), st.integers(0, 9))
_by_id = st.tuples(st.just("by id"), st.integers(0, 9))
_seldom = st.integers(0, 9).map(lambda number: ("clear", None) if number == 0 else ("by kind", "pong"))
by_id = st.lists(st.one_of(_add, _add, _note, _by_id, _by_id, _forget, _odd, _seldom), max_size=40)
in_order = st.lists(
    st.one_of(_add, _add, _note, _take, _take, _forget, _odd, _seldom), min_size=8, max_size=40
)


class ModelTests(SynchronousTestCase):
    """Against a list."""

    @given(by_id)
    def test_by_id(self, steps: list[tuple[str, Any]]) -> None:
        self.run_with(False, steps)

    @given(in_order, examples=300)
    def test_classic(self, steps: list[tuple[str, Any]]) -> None:
        self.run_with(True, steps)

    def run_with(self, classic: bool, steps: list[tuple[str, Any]]) -> None:
        replies = Replies[str](classic)
        naive = Naive(classic)
        keys: list[int] = []
        for number, (step, what) in enumerate(steps):
            if step == "add":
                keys.append(replies.add(f"w{number}", what))
                naive.sent.append([what, keys[-1], f"w{number}"])
            elif step == "note":
                replies.note(what)
                if classic:
                    naive.sent.append([what, None, None])
            elif step == "clear":
                self.assertEqual(replies.clear(), naive.waiting())
                naive.sent.clear()
            elif step == "by kind":
                message = {"type": what}
                self.assertEqual(replies.take(message), naive.take(message))
            elif keys:
                key = keys[what % len(keys)]
                if step == "forget":
                    replies.forget(key)
                    for entry in naive.sent:
                        if entry[1] == key:
                            entry[2] = LATE
                elif not classic:
                    message = {"type": "pong", "id": key}
                    self.assertEqual(replies.take(message), naive.take(message))
            self.assertEqual(len(replies), len(naive.waiting()))
            # Nothing is kept of what is over.
            kept = set(replies._order)
            self.assertLessEqual(replies._unclaimed, kept)
            self.assertEqual(kept, {key for keys in replies._expected.values() for key in keys})
            if not classic:
                self.assertEqual((kept, replies._forgotten), (set(), []))
