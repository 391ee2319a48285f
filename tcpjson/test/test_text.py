"""What strangers write, fit for people to read."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.text import LONGEST, printable
from tcpjson.test.hypo import given


class PrintableTests(SynchronousTestCase):
    """`printable`."""

    def test_what_can_be_printed_stays(self) -> None:
        for text in ("", "plain", "l'été", 'a "quote" and \\ too', "日本"):
            self.assertEqual(printable(text), text)

    def test_what_cannot_is_escaped(self) -> None:
        for text, shown in (
            ("two\nlines", r"two\nlines"),
            ("\x1b[2J", r"\x1b[2J"),
            ("\u2028\u202e", r"\u2028\u202e"),
            ("\ud800", r"\ud800"),
        ):
            self.assertEqual(printable(text), shown)

    def test_what_is_long_is_cut(self) -> None:
        self.assertEqual(printable("x" * LONGEST), "x" * LONGEST)
        self.assertEqual(printable("x" * (LONGEST + 1)), "x" * LONGEST)
        self.assertEqual(printable("xyz", 2), "xy")

    @given(st.text(st.characters(), max_size=50), st.integers(0, 60))
    def test_any_text(self, text: str, longest: int) -> None:
        """One line, of characters that can be printed; an escape is ten of them at the most."""
        shown = printable(text, longest)
        self.assertTrue(shown.isprintable())
        self.assertLessEqual(len(shown), 10 * longest)
        self.assertLessEqual(len(shown.splitlines()), 1)
