"""The oracle of the other tests can tell things apart."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.test.oracle import Number, Pairs, is_json, levels, parse, relayable


class OracleTests(SynchronousTestCase):
    """`parse` and what stands on it."""

    def test_values_that_look_alike(self) -> None:
        """No two of these are the same JSON value, or the same to the last digit."""
        texts = [
            "1",
            '"1"',
            "1.0",
            "1e0",
            "[]",
            "{}",
            "[1]",
            '["1"]',
            '{"1":1}',
            '[["1",1]]',
            "null",
            '"null"',
            "true",
        ]
        values = [parse(text.encode()) for text in texts]
        for place, value in enumerate(values):
            for other in values[place + 1 :]:
                self.assertFalse(value == other or other == value, (value, other))
            self.assertEqual(value, parse(texts[place].encode()))

    def test_forms(self) -> None:
        self.assertEqual(
            parse(rb' {"a" : [1.50, "\u00e9"], "a": null}'),
            Pairs([("a", [Number("1.50"), "é"]), ("a", None)]),
        )

    def test_what_is_json(self) -> None:
        for text in ("1", " [] ", '"\\ud83d\\ude00"', "-0.5e-7"):
            self.assertTrue(is_json(text), text)
        for text in (
            "",
            "01",
            "NaN",
            "-Infinity",
            "[1,]",
            '"\\ud800"',
            '{"\\udc00":1}',
            '"\n"',
            "\ufeff1",
            "[" * 9999,
        ):
            self.assertFalse(is_json(text), text[:20])
        self.assertRaises(ValueError, parse, b'"\xff"')

    def test_levels(self) -> None:
        for text, depth in ((b"1", 0), (b"[]", 1), (b'{"a":1}', 1), (b'[1,[],{"a":[2]}]', 3)):
            self.assertEqual(levels(parse(text)), depth)

    def test_what_may_be_relayed(self) -> None:
        for text in (b"18446744073709551615", b"-9223372036854775808", b"1e308", b"[" * 64 + b"]" * 64):
            self.assertTrue(relayable(text))
        for text in (b"18446744073709551616", b"-9223372036854775809", b"1e309", b"[" * 65 + b"]" * 65, b"{"):
            self.assertFalse(relayable(text))
