"""Tests of `tcpjson.core.arguments`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.arguments import check_functions, check_kind, check_numbers


class CheckTests(SynchronousTestCase):
    def test_good_ones(self) -> None:
        check_numbers(a=1, b=1.5, c=None)
        check_functions(a=print, b=None)
        check_kind("upper", "a text", a="x", b=None)

    def test_bad_ones(self) -> None:
        for check, name in (
            (lambda: check_numbers(good=1, port="9999"), "port"),
            (lambda: check_functions(good=None, trace="file"), "trace"),
            (lambda: check_kind("begin", "x", good=None, credentials=("alice", "x")), "credentials"),
        ):
            self.assertIn(name, str(self.assertRaises(TypeError, check)))

    def test_a_line(self) -> None:
        error = self.assertRaises(TypeError, check_numbers, timeout="3\n" * 1000)
        self.assertEqual(len(str(error).splitlines()), 1)
        self.assertLess(len(str(error)), 100)
