"""`check_value` refuses what a strict parser of 64-bit integers and doubles refuses, and nothing else."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.errors import BadJSON
from tcpjson.core.values import MAX_DEPTH, check_value
from tcpjson.test import oracle
from tcpjson.test.hypo import given

LARGEST = str(2**64 - 1)
SMALLEST = str(-(2**63))

# Numbers, and whether they are within bounds.
NUMBERS = [
    ("0", True),
    ("-0", True),
    (LARGEST, True),
    (str(2**64), False),
    ("99999999999999999999", False),
    ("100000000000000000000", False),
    (SMALLEST, True),
    (str(-(2**63) - 1), False),
    ("-9999999999999999999", False),
    (f"-{LARGEST}", False),
    ("9223372036854775808", True),
    ("9" * 400, False),
    ("9" * 5000, False),
    ("9" * 400 + ".0", False),
    ("9" * 5000 + ".5", False),
    ("9" * 309 + "e-300", True),
    ("9" * 308 + ".9", True),
    (f"{2**64}.0", True),
    (f"{2**64}.5e3", True),
    (f"{2**64}e0", True),
    (f"{2**64}E5", True),
    (f"-{2**64}e-5", True),
    (f"0.{'1' * 30}", True),
    (f"-0.{'1' * 400}", True),
    (f"1.{'9' * 25}e2", True),
    (f"1e{'0' * 30}1", True),
    (f"1e-{'0' * 30}1", True),
    (f"1E+{'0' * 30}1", True),
    (f"1e-{'9' * 30}", True),
    (f"1e{'9' * 30}", False),
    (f"0e{'9' * 30}", True),
    ("1e308", True),
    ("1e309", False),
    ("-1e309", False),
    ("1.7976931348623157e308", True),
    ("1.7976931348623159e308", False),
    ("17976931348623159e292", False),
    ("0.0001e312", True),
    ("0.0001e313", False),
    ("1e-400", True),
    ("1E999", False),
    ("1e+999", False),
]


def passes(text: bytes, depth: int = MAX_DEPTH) -> bool:
    """Whether `check_value` lets a text pass."""
    try:
        check_value(text, depth)
    except BadJSON:
        return False
    return True


class NumberTests(SynchronousTestCase):
    """Numbers within bounds and outside, wherever they stand."""

    def test_the_table_is_right(self) -> None:
        for number, fits in NUMBERS:
            self.assertEqual(oracle.relayable(number.encode()), fits, number[:40])

    def test_alone(self) -> None:
        for number, fits in NUMBERS:
            self.assertEqual(passes(number.encode()), fits, number[:40])

    def test_within_other_text(self) -> None:
        """Behind an escaped quote, beside digits in strings, at both ends of arrays."""
        for around in (
            '[%s,"1"]',
            '["1",%s]',
            r'["\"",%s]',
            r'["\\",%s]',
            r'["\\\"",%s]',
            '{"12345678901234567890123":%s}',
            '{"a":%s,"b":"-12345678901234567890123"}',
            " [ 1.5 , -1 ,\n%s\t] ",
            "[1e5,0.1234567890123456789012345,%s]",
            '["e-",%s,"é"]',
            # A letter e before the number, of no exponent.
            "[true,%s]",
            "[false,1,%s]",
        ):
            for number, fits in NUMBERS:
                text = around % number
                self.assertEqual(passes(text.encode()), fits, text[:80])

    def test_two_in_a_row(self) -> None:
        """That one number is good says nothing of the next."""
        for first, first_fits in NUMBERS:
            for second, second_fits in NUMBERS:
                text = f"[{first},{second}]"
                self.assertEqual(passes(text.encode()), first_fits and second_fits, text[:80])

    def test_digits_in_strings_are_no_numbers(self) -> None:
        for number, _ in NUMBERS:
            for around in ('"%s"', r'"\"%s"', r'["\\","%s"]', r'{"%s\"":"\\\"%s"}'):
                text = around.replace("%s", number)
                self.assertTrue(passes(text.encode()), text[:80])

    def test_a_string_that_ends_in_a_backslash(self) -> None:
        r"""In "\\" the quote is no escaped one, in "\\\"" it is."""
        self.assertFalse(passes(rb'["\\",18446744073709551616]'))
        self.assertFalse(passes(rb'["\\\\",18446744073709551616,"\\"]'))
        self.assertTrue(passes(rb'["\\\",18446744073709551616,\\\""]'))
        self.assertFalse(passes(rb'["\u005c",18446744073709551616]'))
        self.assertFalse(passes(rb'["\u0022",18446744073709551616]'))


class DepthTests(SynchronousTestCase):
    """Nesting, counted in levels of arrays and objects."""

    def test_64_levels_pass_and_65_do_not(self) -> None:
        for opening, closing in (("[", "]"), ('{"a":', "}"), ("[ ", "\n]"), ('[{"a":', "}]")):
            each = 2 if opening.startswith("[{") else 1
            text = opening * (64 // each) + "1" + closing * (64 // each)
            self.assertTrue(passes(text.encode()))
            self.assertFalse(passes(f"[{text}]".encode()))
            self.assertFalse(passes(f'{{"b":{text}}}'.encode()))

    def test_width_is_not_depth(self) -> None:
        self.assertTrue(passes(b"[" + b",".join([b"[[]]"] * 1000) + b"]"))
        self.assertTrue(passes(b"[" + b",".join([b'{"a":{}}'] * 1000) + b"]"))

    def test_one_deep_branch_among_many(self) -> None:
        deep = b"[" * 63 + b"]" * 63
        self.assertTrue(passes(b"[[],{}," + deep + b",[[]]]"))
        self.assertFalse(passes(b"[[],{},[" + deep + b"],[[]]]"))

    def test_brackets_in_strings_do_not_count(self) -> None:
        self.assertTrue(passes(b'["' + b"[" * 1000 + b'"]'))
        self.assertTrue(passes(b'["' + rb"\"[" * 1000 + b'","' + b"{\\\\" * 100 + b'"]'))
        # The brackets in the string would close those outside.
        self.assertFalse(passes(b'["]",' * 65 + b"1" + b"]" * 65))

    def test_another_depth(self) -> None:
        self.assertTrue(passes(b"[[]]", 2))
        self.assertFalse(passes(b"[[[]]]", 2))
        self.assertTrue(passes(b"[" * 65 + b"]" * 65, 65))

    def test_far_too_deep(self) -> None:
        """A parser that recurses must not be asked."""
        for text in (b"[" * 100_000 + b"]" * 100_000, b"[" * 2000 + b"1e5" + b"]" * 2000):
            self.assertFalse(passes(text))

    def test_deep_within_the_depth_asked_for(self) -> None:
        """No other error comes out, even where more levels are allowed than the parser takes."""
        self.assertFalse(passes(b"[" * 20_000 + b"1e5" + b"]" * 20_000, 20_000))


class OracleTests(SynchronousTestCase):
    """Against the standard library."""

    @given(oracle.texts(), examples=400)
    def test_any_valid_text(self, text: str) -> None:
        data = text.encode()
        self.assertEqual(passes(data), oracle.relayable(data))

    @given(st.lists(st.one_of(oracle.numbers(), oracle.strings()), max_size=6), examples=300)
    def test_numbers_among_strings(self, items: list[str]) -> None:
        data = f"[{','.join(items)}]".encode()
        self.assertEqual(passes(data), oracle.relayable(data))

    @given(oracle.texts(), st.integers(1, 5))
    def test_any_depth(self, text: str, depth: int) -> None:
        data = text.encode()
        self.assertEqual(passes(data, depth), oracle.relayable(data, depth))
