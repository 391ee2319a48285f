"""Routers that a command line names."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tcpjson import loading
from tcpjson.handlers import Router
from tcpjson.loading import load_router

GOOD = "from tcpjson import Router\nrouter = Router(); router.on_stop(print)\n"


class LoadingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir(parents=True)
        before = os.getcwd(), list(sys.path)
        self.addCleanup(self._restore, *before)
        os.chdir(self.folder)

    def _restore(self, folder: str, path: list[str]) -> None:
        os.chdir(folder)
        sys.path[:] = path
        for name in list(sys.modules):
            if name.startswith("loading_"):
                del sys.modules[name]

    def write(self, name: str, text: str | bytes) -> None:
        """A module in the current folder; its name begins with `loading_`."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        # It may be younger than what was looked up by less than the time of a folder is exact to.
        importlib.invalidate_caches()

    def fault(self, where: str) -> str:
        """The one line that says what is wrong."""
        text = str(self.assertRaises(ValueError, load_router, where))
        self.assertTrue(text)
        return text

    def test_in_the_current_folder(self) -> None:
        self.write("loading_here.py", GOOD)
        self.assertNotIn(str(self.folder), sys.path)
        router = load_router("loading_here:router")
        self.assertIs(router, sys.modules["loading_here"].router)
        self.assertEqual(sys.path[0], str(self.folder))

    def test_the_folder_is_put_there_once(self) -> None:
        self.write("loading_once.py", GOOD)
        load_router("loading_once:router")
        before = list(sys.path)
        load_router("loading_once:router")
        self.assertEqual(sys.path, before)

    def test_before_what_is_installed(self) -> None:
        """As it is for `python -m`."""
        other = self.folder / "other"
        other.mkdir()
        (other / "loading_both.py").write_text("raise AssertionError('the wrong one')")
        sys.path.insert(0, str(other))
        self.write("loading_both.py", GOOD)
        self.assertIsInstance(load_router("loading_both:router"), Router)

    def test_in_a_package(self) -> None:
        self.write("loading_package/__init__.py", "")
        self.write("loading_package/moves.py", GOOD)
        self.write("loading_package/__main__.py", "from .moves import router as own\n")
        moves = load_router("loading_package.moves:router")
        self.assertIs(load_router("loading_package.__main__:own"), moves)

    def test_a_package_itself(self) -> None:
        self.write("loading_whole/__init__.py", "from loading_whole.moves import router\n")
        self.write("loading_whole/moves.py", GOOD)
        self.assertIsInstance(load_router("loading_whole:router"), Router)

    def test_nested_names(self) -> None:
        self.write("loading_nested.py", GOOD + "class Game:\n    moves = router\n")
        self.assertIs(load_router("loading_nested:Game.moves"), load_router("loading_nested:router"))

    def test_what_is_not_module_and_name(self) -> None:
        for where in ("", ":", "module", "module:", ":name"):
            self.assertIn("MODULE:NAME", self.fault(where), where)

    def test_no_such_module(self) -> None:
        for where, missing in (
            ("loading_none:router", "loading_none"),
            ("loading_none.moves:router", "loading_none"),
        ):
            self.assertEqual(self.fault(where), f"no module {missing}")

    def test_no_such_module_in_a_package(self) -> None:
        self.write("loading_flat.py", GOOD)
        self.write("loading_deep/__init__.py", "")
        for where in ("loading_flat.moves", "loading_deep.moves"):
            self.assertEqual(self.fault(f"{where}:router"), f"no module {where}")

    def test_a_module_that_it_needs(self) -> None:
        """It is not the one that was asked for: its place is told."""
        self.write("loading_needs.py", "\nimport loading_needs_none\n")
        text = self.fault("loading_needs:router")
        self.assertEqual(
            text,
            f"{self.folder / 'loading_needs.py'}, line 2:"
            " ModuleNotFoundError: No module named 'loading_needs_none'",
        )

    def test_a_module_whose_name_begins_alike(self) -> None:
        self.write("loading_alike.py", "import loading_ali\n")
        self.assertIn("line 1: ModuleNotFoundError", self.fault("loading_alike:router"))

    def test_what_a_module_raises(self) -> None:
        for number, (line, told) in enumerate(
            (
                ("1 / 0", "ZeroDivisionError: division by zero"),
                ("raise SystemExit", "SystemExit"),
                ("import sys; sys.exit('never')", "SystemExit: never"),
                ("raise ImportError", "ImportError"),
                ("from tcpjson import NoSuchName", "ImportError: cannot import name 'NoSuchName'"),
                ("assert False, 'two\\nlines'", "AssertionError: two\nlines"),
            )
        ):
            name = f"loading_raises{number}"
            self.write(f"{name}.py", f"\n\n{line}\n")
            text = self.fault(f"{name}:router")
            self.assertTrue(text.startswith(f"{self.folder / name}.py, line 3: {told}"), text)
            self.assertFalse(text.endswith(": "), text)

    def test_the_place_is_the_innermost_of_the_authors(self) -> None:
        """Not in what it calls of ours: a handler that we refuse is told by the line where it stands."""
        self.write(
            "loading_bad.py",
            GOOD + "def add():\n    @router.handler\n    def move(session):\n        pass\nadd()\n",
        )
        text = self.fault("loading_bad:router")
        self.assertIn(f"{self.folder / 'loading_bad.py'}, line 4: TypeError: loading_bad.add.", text)
        self.assertIn("must take two parameters", text)

    def test_in_a_module_that_it_imports(self) -> None:
        self.write("loading_outer.py", "import loading_inner\n")
        self.write("loading_inner.py", "\n\n\n1 / 0\n")
        self.assertIn(
            f"{self.folder / 'loading_inner.py'}, line 4: ZeroD", self.fault("loading_outer:router")
        )

    def test_what_is_no_python(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, content in enumerate((b"x = 1\ndef (:\n", b"x = 1\n'\xff'\n", b"x = 1\nx\n  y\n")):
                name = f"loading_syntax{number}"
                self.write(f"{name}.py", content)
                text = self.fault(f"{name}:router")
                self.assertIn(f"{name}.py, line", text)
                self.assertNotIn("importlib", text)

    def test_names_that_no_module_has(self) -> None:
        """A fault, and in a line: what Python says of them."""
        for where in (".moves:router", "..:router", "a\0b:router", "game/moves.py:router", "a b:router"):
            self.assertEqual(self.fault(where), "it must be MODULE:NAME, as game.moves:router")

    def test_the_name_of_a_file(self) -> None:
        self.assertEqual(self.fault("loading_none.py:router"), "no module loading_none; leave .py out")
        self.write("loading_file.py", GOOD)
        self.assertEqual(self.fault("loading_file.py:router"), "no module loading_file.py; leave .py out")

    def test_the_line_is_the_authors(self) -> None:
        """Not that of Python's own library, which it called; but of what is installed, all there is."""
        self.write("loading_calls.py", "import json\n\njson.loads('[')\n")
        self.assertIn(
            f"{self.folder / 'loading_calls.py'}, line 3: JSONDecodeError", self.fault("loading_calls:x")
        )
        self.patch(loading, "_INSTALLED", (str(self.folder),))
        self.write("loading_installed.py", "\n1 / 0\n")
        self.assertIn("loading_installed.py, line 2: ZeroD", self.fault("loading_installed:x"))

    def test_what_is_no_router(self) -> None:
        self.write("loading_wrong.py", GOOD + "number = 3\nkind = Router\n")
        for name, kind in (
            ("number", "it is a int"),
            ("kind", "it is a type"),
            ("router.add", "it is a method"),
            ("nothing", "there is none of that name"),
            ("number.nothing.more", "there is none of that name"),
            ("router.", "there is none of that name"),
            (":router", "there is none of that name"),
        ):
            self.assertEqual(self.fault(f"loading_wrong:{name}"), f"not a tcpjson.Router: {kind}")

    def test_a_router_with_nothing_in_it(self) -> None:
        """Somebody forgot a decorator."""
        self.write("loading_empty.py", "from tcpjson import Router\nrouter = Router()\n")
        self.assertIn("@router.handler", self.fault("loading_empty:router"))
        for number, line in enumerate(("on_connect(print)", "middleware(print)", "add(Ping, print)")):
            text = f"from tcpjson import Ping, Router\nrouter = Router()\nrouter.{line}\n"
            self.write(f"loading_any{number}.py", text)
            self.assertFalse(load_router(f"loading_any{number}:router").empty)

    def test_a_name_that_cannot_be_looked_up(self) -> None:
        self.write("loading_lazy.py", "def __getattr__(name):\n    raise KeyError(name)\n")
        self.assertIn("KeyError", self.fault("loading_lazy:router"))

    def test_a_subclass(self) -> None:
        self.write(
            "loading_own.py",
            "from tcpjson import Router\nclass Own(Router): ...\nrouter = Own()\nrouter.on_stop(print)\n",
        )
        router: Any = load_router("loading_own:router")
        self.assertEqual(type(router).__name__, "Own")
