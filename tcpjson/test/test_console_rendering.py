"""What is shown, and that nothing in it is obeyed by a terminal."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

import msgspec
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.console.rendering import (
    MAX_LINE,
    Line,
    as_json,
    code_of,
    duration,
    escape,
    in_words,
    milliseconds,
    reason_of,
    stats_table,
    table,
)
from tcpjson.core.errors import (
    AuthenticationFailed,
    BadJSON,
    ClientError,
    Disconnected,
    Forbidden,
    GoingAway,
    ProtocolMismatch,
    QueueFull,
    RequestTimeout,
    error_of,
)
from tcpjson.test.hypo import given

# What a terminal or a reader could take for more than a character, among others.
NASTY = "\x1b\x07\r\n\t\b\x00\x7f\x85\x9b\x9d\u200b\u200e\u202e\u2028\u2029\u2066\ufeff\U000e0041\ud800"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(NASTY),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.text(NASTY), inner, max_size=4)
    ),
    max_leaves=10,
)
TYPES = st.sampled_from(
    [
        "pong",
        "echo",
        "echo_response",
        "broadcast",
        "broadcast_sent",
        "server_stats",
        "response",
        "error",
        "welcome",
        "move",
        "\x1b[2J",
    ]
)
NAMES = st.sampled_from(
    [
        "original_text",
        "content",
        "from_client",
        "from_user",
        "recipients",
        "original_message",
        "code",
        "message",
        "retry_after",
        "uptime_seconds",
        "details",
        "id",
        "timestamp",
    ]
)
MESSAGES = st.builds(
    lambda kind, fields, more: {**more, **fields, **kind},
    st.fixed_dictionaries({}, optional={"type": TYPES | VALUES}),
    st.dictionaries(NAMES, VALUES, max_size=4),
    st.dictionaries(st.text() | st.text(NASTY), VALUES, max_size=3),
)


def decoded(message: dict[str, Any]) -> dict[str, Any] | None:
    """The message as it comes out of a payload, if it can be in one."""
    try:
        value = msgspec.json.decode(json.dumps(message).encode())
    except (ValueError, RecursionError):
        return None
    assert isinstance(value, dict)
    return value


def harmful(text: str) -> list[str]:
    """Characters that are no letters, marks, digits, signs or spaces."""
    return [each for each in text if unicodedata.category(each)[0] == "C" or each in "\u2028\u2029"]


class EscapeTests(SynchronousTestCase):
    def test_plain_text_stays(self) -> None:
        for text in ("", "hello", "\xe4\u03a9\u65e5\u672c \U0001f600", "a\xa0b\u3000c", "C:\\x1b"):
            self.assertEqual(escape(text), text)

    def test_what_is_escaped(self) -> None:
        for character, shown in (
            ("\x1b", "\\x1b"),
            ("\n", "\\n"),
            ("\r", "\\r"),
            ("\t", "\\t"),
            ("\x7f", "\\x7f"),
            ("\x9b", "\\x9b"),
            ("\u202e", "\\u202e"),
            ("\u2028", "\\u2028"),
            ("\U000e0041", "\\U000e0041"),
            ("\ud800", "\\ud800"),
        ):
            self.assertEqual(escape(f"a{character}b"), f"a{shown}b")

    def test_every_character(self) -> None:
        text = "".join(map(chr, range(sys.maxunicode + 1)))
        self.assertEqual(harmful(escape(text)), [])
        # The half of a character cannot come as JSON.
        text = "".join(each for each in text if unicodedata.category(each) != "Cs")
        shown = as_json(text)
        self.assertEqual(harmful(shown), [])
        self.assertEqual(json.loads(shown), text)

    def test_json_stays_json(self) -> None:
        self.assertEqual(
            as_json({"a\x1b": "\x9b\u202e\x7f \xe4"}), '{"a\\u001b":"\\u009b\\u202e\\u007f \xe4"}'
        )

    def test_too_deep(self) -> None:
        value: Any = []
        for _ in range(100000):
            value = [value]
        self.assertIn("too deep", json.loads(as_json(value)))

    def test_cut(self) -> None:
        line = Line("heard", "x" * 1234, "y" * 20)
        self.assertEqual(line.shown(10)[1], "x" * 10 + "\N{HORIZONTAL ELLIPSIS} (1,224 more characters)")
        self.assertEqual(line.shown(10)[0], "y" * 10 + "\N{HORIZONTAL ELLIPSIS} (10 more characters): ")
        self.assertEqual(line.plain(), "y" * 20 + ": " + "x" * 1234)
        self.assertEqual(Line("heard", "x" * 10).plain(10), "x" * 10)


class WordsTests(SynchronousTestCase):
    def test_messages(self) -> None:
        for message, words in (
            ({"type": "echo", "original_text": "hi"}, "echo: hi"),
            ({"type": "echo", "original_text": [1]}, "echo: [1]"),
            ({"type": "echo", "original_text": ""}, 'echo: ""'),
            ({"type": "echo", "content": 1}, 'echo: {"content":1}'),
            ({"type": "echo_response", "content": {"a": 1}}, 'echo: {"a":1}'),
            ({"type": "broadcast_sent", "recipients": 1}, "broadcast: 1 recipient"),
            ({"type": "broadcast_sent", "recipients": 0}, "broadcast: 0 recipients"),
            ({"type": "broadcast_sent", "recipients": "all"}, "broadcast: all recipients"),
            ({"type": "broadcast", "content": "x", "from_client": "h:1"}, "broadcast from h:1: x"),
            (
                {"type": "broadcast", "content": "x", "from_client": "h:1", "from_user": "ann"},
                "broadcast from ann (h:1): x",
            ),
            ({"type": "broadcast", "content": 5}, "broadcast from somebody: 5"),
            ({"type": "response", "original_message": {"type": "m"}}, 'response: {"type":"m"}'),
            ({"type": "error", "code": "bad_json", "message": "why"}, "error: bad_json: why"),
            ({"type": "error", "code": "x", "retry_after": 2.5}, "error: x (try again in 2.5 s)"),
            ({"type": "error"}, "error: the server gives no reason"),
            ({"type": "welcome", "message": "hello", "client_id": "x"}, "welcome: hello"),
            ({"type": "welcome", "client_id": "x"}, 'welcome: {"client_id":"x"}'),
            ({"type": "move", "x": 1, "id": 5, "timestamp": "now"}, 'move: {"x":1}'),
            ({"type": "move"}, "move: "),
            ({"type": "pong", "ping_timestamp": None}, 'pong: {"ping_timestamp":null}'),
            ({"x": 1}, 'message: {"x":1}'),
            ({"type": 7, "x": 1}, '7: {"x":1}'),
            ({"type": {"a": []}}, '{"a":[]}: '),
            (
                {"type": "server_stats", "uptime_seconds": 5, "details": {"a": 1, "b": 2}, "more": {"c": 1}},
                "stats: uptime_seconds=5, 2 figures in details, 1 figure in more",
            ),
        ):
            label, text = in_words(message)
            self.assertEqual(Line("", text, label).plain(), words)

    def test_milliseconds(self) -> None:
        for seconds, shown in (
            (0.00041251, "0.413 ms"),
            (0.00125, "1.25 ms"),
            (0.12, "120 ms"),
            (0.9996, "1.00 s"),
            (5, "5.00 s"),
            (0, "0.00 ms"),
        ):
            self.assertEqual(milliseconds(seconds), shown)

    def test_durations(self) -> None:
        for seconds, shown in (
            (0, "0 s"),
            (59.9, "59 s"),
            (3600, "1 h 0 min 0 s"),
            (90061, "1 d 1 h 1 min 1 s"),
            (float("1e300"), "0 s"),
        ):
            self.assertEqual(duration(seconds), shown)

    @given(MESSAGES, st.sampled_from([None, 5, MAX_LINE]))
    def test_nothing_is_obeyed(self, message: dict[str, Any], limit: int | None) -> None:
        """Whatever a peer sends, no control character comes out and no end of line, and nothing is raised."""
        known = decoded(message)
        if known is None:
            return
        label, text = in_words(known)
        lines = [Line("heard", text, label), *stats_table(known), Line("heard", as_json(known))]
        lines.append(Line("error", reason_of(error_of(known)), code_of(error_of(known))))
        for line in lines:
            self.assertEqual(harmful(line.plain(limit)), [])


class TableTests(SynchronousTestCase):
    def test_stats(self) -> None:
        message = {
            "type": "server_stats",
            "connected_clients": 12345,
            "uptime_seconds": 3661,
            "details": {"bytes_in": 5, "errors": {}, "rates": {"a_b": 1.5, "c": {"d": 1}}},
            "id": -3,
        }
        self.assertEqual(
            [line.plain() for line in stats_table(message)],
            [
                "stats: ",
                "connected clients  12,345",
                "uptime             1 h 1 min 1 s",
                "details",
                "  bytes in         5",
                "  errors           none",
                '  rates            a_b 1.5, c {"d":1}',
            ],
        )

    def test_names_as_they_are_on_the_wire(self) -> None:
        """Of types, and of reasons; those of figures are in words."""
        details = {"messages_by_type": {"get_stats": 2}, "disconnects": {"client_closed": 1}}
        shown = [line.plain() for line in stats_table({"type": "server_stats", "details": details})]
        self.assertEqual(
            shown[1:], ["details", "  messages by type  get_stats 2", "  disconnects       client_closed 1"]
        )

    def test_odd_stats(self) -> None:
        message: dict[str, Any] = {"uptime_seconds": "long", "details": {}, "server_start_time": None}
        shown = [line.plain() for line in stats_table(message)[1:]]
        self.assertEqual(
            shown, ["uptime seconds     long", "details            none", "server start time  null"]
        )

    def test_bounded(self) -> None:
        lines = [line.plain() for line in table([("n" * 100, "word " * 100000)] * 1000)]
        self.assertEqual(lines[-1], "\N{HORIZONTAL ELLIPSIS} and 940 more")
        self.assertLess(max(map(len, lines)), 200)
        self.assertLess(len(lines), 1000)
        self.assertEqual(table([]), [])

    def test_long_values_are_wrapped(self) -> None:
        shown = [line.plain() for line in table([("name", "word " * 20)])]
        self.assertEqual(shown, ["name  " + "word " * 12 + "word", "      " + "word " * 6 + "word"])


class ErrorTests(SynchronousTestCase):
    def test_codes(self) -> None:
        for error, code in (
            (BadJSON(), "bad_json"),
            (error_of({"code": "mine"}), "mine"),
            (RequestTimeout(), "no_answer"),
            (Disconnected(), "disconnected"),
            (QueueFull(), "queue_full"),
            (AuthenticationFailed(), "authentication_failed"),
            (ProtocolMismatch(), "protocol_mismatch"),
            (ValueError(), "bad_command"),
            (TypeError(), "bad_command"),
            (ClientError(), "failed"),
        ):
            self.assertEqual(code_of(error), code)

    def test_reasons(self) -> None:
        for error, reason in (
            (Disconnected("gone\n  for good"), "gone for good"),
            (Disconnected(), "Disconnected"),
            (Forbidden("no"), "forbidden: no"),
            (error_of({"code": "mine"}), "mine"),
            (GoingAway(retry_after=2.0), "going_away: the server shuts down (try again in 2 s)"),
        ):
            self.assertEqual(reason_of(error), reason)
