"""Guards are found, and taken out of what runs; what is known of them is still so."""

from __future__ import annotations

import ast
import gc
import importlib
import io
from contextlib import redirect_stderr, redirect_stdout
from types import FunctionType
from typing import Any

from twisted.trial.runner import TestLoader
from twisted.trial.unittest import SynchronousTestCase

from tests.guards import runner
from tests.guards.__main__ import main
from tests.guards.finder import find, without
from tests.guards.known import END_TO_END, KINDS, KNOWN

EXAMPLE = '''
"""A module."""

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import nothing

LIMIT = max(1, 2)


class Door:
    def __init__(self):
        self.open = False
        self.seen = []

    @property
    def full(self):
        return len(self.seen) > 2 or self.open

    @staticmethod
    def within(number):
        return 0 <= number < 5

    def enter(self, who, hurry=False):
        """Let somebody in."""
        if not who:
            return None
        if hurry:
            self.open = True
        self.seen.append(who)
        with suppress(KeyError):
            {}[who]
        return [each for each in self.seen if each != "nobody"]

    def number(self, text):
        try:
            return min(int(text), LIMIT)
        except (ValueError, TypeError):
            return 0


def counter(start):
    def count(more):
        nonlocal start
        if (step := more) > 0:
            start += step
        return start

    return count
'''


def load(tree: ast.Module) -> dict[str, Any]:
    """What a module has in it."""
    names: dict[str, Any] = {}
    exec(compile(tree, "example", "exec"), names)
    return names


class FinderTests(SynchronousTestCase):
    """What is found in a source, and what is left when it is gone."""

    def names(self, source: str) -> list[str]:
        return [guard.name for guard in find(source, "m.py")]

    def lacking(self, change: str) -> dict[str, Any]:
        """The example without the guard that is named so."""
        [guard] = [guard for guard in find(EXAMPLE, "m.py") if change in guard.name]
        return load(without(EXAMPLE, guard))

    def test_all_kinds(self) -> None:
        self.assertEqual(
            self.names(EXAMPLE),
            [
                "m.py |  | max(1, 2) | only 1",
                "m.py |  | max(1, 2) | only 2",
                "m.py | Door.full | len(self.seen) > 2 or self.open | without len(self.seen) > 2",
                "m.py | Door.full | len(self.seen) > 2 or self.open | without self.open",
                "m.py | Door.full | len(self.seen) > 2 | > becomes >=",
                "m.py | Door.within | 0 <= number < 5 | <= becomes <",
                "m.py | Door.within | 0 <= number < 5 | < becomes <=",
                "m.py | Door.enter | if not who | never",
                "m.py | Door.enter | if hurry | never",
                "m.py | Door.enter | if hurry | always",
                "m.py | Door.enter | self.open = True | not noted",
                "m.py | Door.enter | self.seen.append(who) | not called",
                "m.py | Door.enter | suppress(KeyError) | suppresses nothing",
                "m.py | Door.enter | if each != 'nobody' | never",
                "m.py | Door.enter | if each != 'nobody' | always",
                "m.py | Door.number | min(int(text), LIMIT) | only int(text)",
                "m.py | Door.number | min(int(text), LIMIT) | only LIMIT",
                "m.py | Door.number | except (ValueError, TypeError) | not caught",
                "m.py | Door.number | except (ValueError, TypeError) | without ValueError",
                "m.py | Door.number | except (ValueError, TypeError) | without TypeError",
                "m.py | counter.<locals>.count | if (step := more) > 0 | never",
                "m.py | counter.<locals>.count | if (step := more) > 0 | always",
                "m.py | counter.<locals>.count | (step := more) > 0 | > becomes >=",
            ],
        )

    def test_names_are_unique(self) -> None:
        """Each guard of the package has one, whatever lines it is on."""
        twice = "def f(a):\n    g(a)\n    g(a)\n    if a:\n        g(a)\n"
        self.assertEqual(
            self.names(twice),
            [
                "m.py | f | g(a) | not called",
                "m.py | f | g(a) | not called #2",
                "m.py | f | if a | never",
                "m.py | f | if a | always",
                "m.py | f | g(a) | not called #3",
            ],
        )
        self.assertEqual(self.names(twice), self.names("\n\n" + twice))
        found = [guard.name for guard in runner.guards()]
        self.assertEqual(len(found), len(set(found)))
        self.assertGreater(len(found), 1000)

    def test_a_condition(self) -> None:
        self.assertIsNone(self.lacking("if hurry | never")["Door"]().enter(""))
        self.assertEqual(self.lacking("if not who | never")["Door"]().enter(""), [""])
        door = self.lacking("if hurry | always")["Door"]()
        door.enter("ann")
        self.assertTrue(door.open)
        self.assertEqual(self.lacking("'nobody' | always")["Door"]().enter("nobody"), ["nobody"])
        self.assertEqual(self.lacking("'nobody' | never")["Door"]().enter("ann"), [])

    def test_a_condition_that_binds(self) -> None:
        self.assertEqual(self.lacking("if (step := more) > 0 | never")["counter"](5)(3), 5)
        self.assertEqual(self.lacking("if (step := more) > 0 | always")["counter"](5)(-3), 2)

    def test_a_bound(self) -> None:
        door = self.lacking("len(self.seen) > 2 | >")["Door"]()
        door.seen = [1, 2]
        self.assertTrue(door.full)
        self.assertFalse(self.lacking("| <= becomes <")["Door"].within(0))
        self.assertTrue(self.lacking("| < becomes <=")["Door"].within(5))

    def test_an_effect(self) -> None:
        self.assertEqual(self.lacking("append(who) | not called")["Door"]().enter("ann"), [])
        door = self.lacking("self.open = True | not noted")["Door"]()
        door.enter("ann", True)
        self.assertFalse(door.open)

    def test_an_operand(self) -> None:
        door = self.lacking("without self.open")["Door"]()
        door.open = True
        self.assertFalse(door.full)
        door = self.lacking("without len(self.seen) > 2")["Door"]()
        door.seen = [1, 2, 3]
        self.assertFalse(door.full)

    def test_the_least_and_the_most(self) -> None:
        self.assertEqual(self.lacking("only int(text)")["Door"]().number("9"), 9)
        self.assertEqual(self.lacking("only LIMIT")["Door"]().number("1"), 2)

    def test_what_is_caught(self) -> None:
        self.assertRaises(ValueError, self.lacking("| not caught")["Door"]().number, "x")
        door = self.lacking("without ValueError")["Door"]()
        self.assertEqual(door.number(None), 0)
        self.assertRaises(ValueError, door.number, "x")
        self.assertRaises(KeyError, self.lacking("suppresses nothing")["Door"]().enter, "ann")

    def test_lines_stay(self) -> None:
        """So what runs is known by its name and its line."""

        def places(tree: ast.Module) -> set[tuple[str, int]]:
            return {(node.name, node.lineno) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

        for guard in find(EXAMPLE, "m.py"):
            self.assertEqual(places(without(EXAMPLE, guard)), places(ast.parse(EXAMPLE)))

    def test_another_source(self) -> None:
        self.assertRaises(LookupError, without, "x = 1\n", find(EXAMPLE, "m.py")[0])


class SwapTests(SynchronousTestCase):
    """Functions that are there get the code of the module without a guard."""

    def setUp(self) -> None:
        self.names = load(ast.parse(EXAMPLE))
        functions = [each for each in gc.get_objects() if type(each) is FunctionType]
        functions = [each for each in functions if each.__globals__ is self.names]
        self.live: dict[tuple[str, int], list[FunctionType]] = {}
        for each in functions:
            self.live.setdefault((each.__qualname__, each.__code__.co_firstlineno), []).append(each)

    def swap(self, change: str) -> bool:
        [guard] = [guard for guard in find(EXAMPLE, "m.py") if change in guard.name]
        return runner._swap(compile(without(EXAMPLE, guard), "example", "exec"), self.live)

    def test_a_method(self) -> None:
        door = self.names["Door"]()
        self.assertIsNone(door.enter(""))
        self.assertTrue(self.swap("if not who | never"))
        self.assertEqual(door.enter(""), [""])

    def test_a_property(self) -> None:
        door = self.names["Door"]()
        door.open = True
        self.assertTrue(self.swap("without self.open"))
        self.assertFalse(door.full)

    def test_a_function_within(self) -> None:
        self.assertTrue(self.swap("> 0 | never"))
        self.assertEqual(self.names["counter"](5)(3), 5)

    def test_what_runs_at_import(self) -> None:
        self.assertFalse(self.swap("only 1"))


class RunTests(SynchronousTestCase):
    """Forks of this process, each without a guard."""

    def outcomes(self, module: str, tests: str) -> list[runner.Outcome]:
        """What becomes of the guards of a module, when one module of tests is run."""
        found = [guard for guard in runner.guards() if guard.module == module]

        def run() -> list[runner.Outcome]:
            runner.quiet_hypothesis()
            suite = TestLoader().loadModule(importlib.import_module(tests))
            seconds = {case.id(): 1.0 for case in runner._cases(suite)}
            return list(runner.check({guard: list(seconds) for guard in found}, seconds, 2))

        # In a fork: Hypothesis stays as it is for what else is run here.
        [(_, outcomes, status)] = runner.in_forks({module: run}, 1)
        self.assertEqual(status, 0, outcomes)
        self.assertEqual({outcome.guard for outcome in outcomes}, set(found))
        return list(outcomes)

    def test_all_are_noticed(self) -> None:
        for name in ("admission", "ordering"):
            tests = f"tcpjson.test.test_{name}"
            for outcome in self.outcomes(f"core/{name}.py", tests):
                self.assertTrue(outcome.noticed.startswith(f"{tests}."), outcome)

    def test_nobody_looks(self) -> None:
        """What the tests of another module do not come by is missed by them."""
        outcomes = self.outcomes("core/admission.py", "tcpjson.test.test_errors")
        self.assertEqual({outcome.noticed for outcome in outcomes}, {""})


class KnownTests(SynchronousTestCase):
    """`known`."""

    def test_all_are_there(self) -> None:
        found = {guard.name for guard in runner.guards()}
        names = [name for known in KNOWN for name in known.guards]
        self.assertEqual([name for name in names if name not in found], [])
        self.assertEqual(len(names), len(set(names)))

    def test_each_has_its_reason(self) -> None:
        for known in KNOWN:
            self.assertIn(known.kind, KINDS)
            self.assertTrue(known.why and known.guards)
            self.assertEqual(bool(known.test), known.kind == END_TO_END, known)


class CommandTests(SynchronousTestCase):
    """`python -m tests.guards`."""

    def test_list(self) -> None:
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.assertEqual(main(["--list", "--only", "core/admission"]), 0)
        lines = printed.getvalue().splitlines()
        self.assertEqual(len(lines), sum(guard.module == "core/admission.py" for guard in runner.guards()))
        self.assertTrue(all(line.startswith("tcpjson/core/admission.py:") for line in lines))

    def test_what_is_not_there(self) -> None:
        with redirect_stderr(io.StringIO()) as said:
            self.assertRaises(SystemExit, main, ["--only", "nothing"])
        self.assertIn("--only nothing: there is no such module", said.getvalue())
