"""The floors of the house: who may import whom, and who may touch the reactor."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import tcpjson

PACKAGE = Path(tcpjson.__file__).parent

# From the lowest to the highest; a module imports from its own floor and from those below it. A name stands
# for all that is in it, the empty one for the package itself. What is new must be given its place here.
FLOORS = (
    {"_version", "core"},
    {
        "deadlines",
        "turns",
        "systemd",
        "timestamps",
        "transports",
        "outbox",
        "proxied",
        "protocol",
        "tls",
        "tlstransport",
        "handlers",
        "coroutines",
        "lag",
        "redaction",
    },
    {"fairqueue", "verifiers", "auth", "credentials", "trace", "loading", "logs", "messagelog"},
    {"notices"},
    {"lifecycle"},
    {"classic", "dialects", "exchange", "connection", "server", "client"},
    {
        "",
        "vectors",
        "testing",
        "service",
        "tap",
        "passwd",
        "blocking",
        "console",
        "demo",
        "conform",
        "schema",
        "metrics",
        "bench",
        "logins",
    },
)

# Who may touch the global reactor, within functions.
PROGRAMS = {"service", "tap", "blocking", "console", "demo", "bench"}

# Beside the standard library, all that `core` is made with; and what of the standard library it does without.
CORE_REQUIRES = {"msgspec"}
CORE_AVOIDS = {
    *("asyncio", "concurrent", "multiprocessing", "subprocess", "threading", "signal", "sched", "_thread"),
    *("time", "datetime", "calendar", "random", "secrets", "uuid", "tempfile"),
    *("socket", "socketserver", "select", "selectors", "ssl", "http", "urllib", "os", "io", "pathlib", "sys"),
    *("fcntl", "termios", "resource", "logging", "warnings", "posix", "shutil", "importlib"),
}


class Import:
    """One module that another imports, and whether it does so when it is itself imported."""

    def __init__(self, target: str, at_import: bool) -> None:
        self.target = target
        self.at_import = at_import


def imports(source: str, module: str, package: bool = False) -> list[Import]:
    """
    What a module imports: `from a import b` counts as `a.b`, for `b` may be a module.

    Args:
        source: its text.
        module: its full name.
        package: whether it is the `__init__` of a package.
    """
    base = module.split(".") if package else module.split(".")[:-1]

    def walk(nodes: list[ast.stmt] | list[ast.AST], at_import: bool) -> Iterator[Import]:
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, at_import)
            elif isinstance(node, ast.ImportFrom):
                origin = base[: len(base) + 1 - node.level] if node.level else []
                prefix = ".".join([*origin, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield Import(f"{prefix}.{alias.name}", at_import)
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                yield from walk(node.body, False)
                yield from walk(node.orelse, at_import)
            else:
                inner = at_import and not isinstance(
                    node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
                )
                yield from walk(list(ast.iter_child_nodes(node)), inner)

    return list(walk(ast.parse(source).body, True))


def modules() -> dict[str, tuple[str, bool]]:
    """All modules of the package but the tests: their text, and whether each is a package, by name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ["tcpjson", *path.relative_to(PACKAGE).with_suffix("").parts]
        if parts[1] != "test":
            package = parts[-1] == "__init__"
            found[".".join(parts[:-1] if package else parts)] = path.read_text(encoding="utf-8"), package
    return found


def known(target: str, names: set[str]) -> str | None:
    """The module of ours that an import leads to, None where it is none of ours."""
    while target not in names:
        target, _, _ = target.rpartition(".")
        if not target:
            return None
    return target


def place(module: str) -> str:
    """What stands for a module in the table of floors."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    """The number of the floor that a module is on."""
    [number] = [number for number, floor in enumerate(FLOORS) if place(module) in floor]
    return number


def faults(found: dict[str, tuple[str, bool]]) -> list[str]:
    """What is wrong with the imports of modules, in a line each."""
    wrong = []
    names = set(found)
    for module, (source, package) in found.items():
        for imported in imports(source, module, package):
            target = known(imported.target, names)
            first = imported.target.split(".")[0]
            if target is not None and floor(target) > floor(module):
                wrong.append(f"{module} imports {target}, which is on a floor above it")
            if place(module) == "core":
                if target is not None and place(target) != "core":
                    wrong.append(f"{module} imports {target}")
                if target is None and (
                    first in CORE_AVOIDS or first not in sys.stdlib_module_names | CORE_REQUIRES
                ):
                    wrong.append(f"{module} imports {imported.target}")
            if f"{imported.target}.".startswith("twisted.internet.reactor."):
                if place(module) not in PROGRAMS:
                    wrong.append(f"{module} imports the reactor")
                elif imported.at_import:
                    wrong.append(f"{module} imports the reactor when it is imported")
    return wrong


class FloorTests(SynchronousTestCase):
    """The modules as they are."""

    def test_every_module_has_its_place(self) -> None:
        places = [place(module) for module in modules()]
        known_places = [name for floor in FLOORS for name in floor]
        self.assertEqual(set(places) - set(known_places), set(), "put it on one of FLOORS")
        self.assertEqual(set(known_places) - set(places), set(), "it is gone: take it from FLOORS")
        self.assertEqual(len(known_places), len(set(known_places)))

    def test_imports_go_down(self) -> None:
        self.assertEqual(faults(modules()), [])

    def test_no_circles(self) -> None:
        """Neither on one floor: each module can be imported by itself."""
        found = modules()
        below = {
            module: {
                target
                for imported in imports(source, module, package)
                if imported.at_import and (target := known(imported.target, set(found))) not in (None, module)
            }
            for module, (source, package) in found.items()
        }
        while free := {module for module, targets in below.items() if not targets & set(below)}:
            for module in free:
                del below[module]
        self.assertEqual(below, {})

    def test_no_module_installs_a_reactor(self) -> None:
        """Which one it is, is for the program to say."""
        script = "\n".join(
            [
                "import sys",
                *(f"import {module}" for module in sorted(modules())),
                "sys.exit('twisted.internet.reactor' in sys.modules)",
            ]
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class ReaderTests(SynchronousTestCase):
    """What reads the imports sees them all."""

    def _faults(self, **sources: str) -> list[str]:
        ours = {
            "tcpjson": ("", True),
            "tcpjson.core": ("", True),
            "tcpjson.core.codec": ("", False),
            "tcpjson.protocol": ("", False),
            "tcpjson.server": ("", False),
            "tcpjson.tap": ("", False),
        }
        for name, source in sources.items():
            module = "tcpjson." + name.replace("__", ".")
            ours[module] = source, ours[module][1]
        return faults(ours)

    def test_each_way_to_import_from_above(self) -> None:
        for source in (
            "import tcpjson.server",
            "import os, tcpjson.server as s",
            "from tcpjson import server",
            "from tcpjson.server import Connection",
            "from . import server",
            "from .server import Connection",
            "def f():\n    from tcpjson.server import Connection",
            "class C:\n    import tcpjson.server",
            "try:\n    pass\nexcept E:\n    import tcpjson.server",
            "with x:\n    for y in z:\n        import tcpjson.server",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tcpjson.server import Connection",
        ):
            wrong = self._faults(protocol=source)
            self.assertEqual(
                wrong, ["tcpjson.protocol imports tcpjson.server, which is on a floor above it"], source
            )

    def test_from_below_and_beside(self) -> None:
        for source in (
            "import os\nfrom tcpjson.core.codec import Codec\nfrom .core import codec",
            "from . import protocol",
            "from twisted.internet import defer",
        ):
            self.assertEqual(self._faults(server=source), [])

    def test_what_core_does_without(self) -> None:
        for source in (
            "import time",
            "from os import path",
            "import random",
            "import socket",
            "from datetime import datetime",
            "def f():\n    import time",
            "from twisted.internet import defer",
            "import twisted",
            "from tcpjson import protocol",
            "from ..protocol import TCPJSONProtocol",
            "from tcpjson import __version__",
            "import attrs",
        ):
            self.assertNotEqual(self._faults(core__codec=source), [], source)
        for source in ("import re, msgspec\nfrom collections.abc import Callable", "from . import codec"):
            self.assertEqual(self._faults(core__codec=source), [], source)

    def test_the_reactor(self) -> None:
        inside = "def f():\n    from twisted.internet import reactor\n    import twisted.internet.reactor"
        self.assertEqual(self._faults(tap=inside), [])
        self.assertEqual(len(self._faults(server=inside)), 2)
        for outside in (
            "from twisted.internet import reactor",
            "import twisted.internet.reactor",
            "from twisted.internet.reactor import callLater",
            "class C:\n    from twisted.internet import reactor",
            "if True:\n    from twisted.internet import reactor",
        ):
            self.assertEqual(len(self._faults(tap=outside)), 1, outside)
            self.assertEqual(len(self._faults(server=outside)), 1, outside)
