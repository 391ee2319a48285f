"""What docs/monitoring.rst says is what a server shows: its paths, its metrics, the events of its log."""

from __future__ import annotations

import ast
import json
import re
import signal
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.logs import json_line
from tests.documents import ROOT
from tests.harness import LOOPBACK, TIMEOUT, Server, ServerTestCase
from tests.identities import new_path, write

TEXT = (ROOT / "docs" / "monitoring.rst").read_text(encoding="utf-8")

_NAME = re.compile(r"``([^`]+)``")

# A handler that is awaited.
_WAITS = """
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tcpjson import Message, Router

router = Router()


class Wait(Message, tag="wait"):
    pass


@router.handler
async def wait(session, message: Wait):
    await deferLater(reactor, 0.01)
    return {"type": "waited"}
"""

# Parts of the package that log what other programs do.
_OTHERS = {"bench", "blocking", "client", "conform", "console", "schema", "test"}


def rows(title: str) -> list[list[str]]:
    """The cells of the list-table of this title, without the headings."""
    [table] = re.findall(rf"^\.\. list-table:: {title}\n.*?\n\n(.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)
    found: list[list[str]] = []
    for line in table.splitlines():
        if line.startswith("   * "):
            found.append([])
        found[-1].append(line[7:])
    return found[1:]


class PortTests(ServerTestCase):
    """What answers at the port of `--metrics`."""

    tls = True

    def asking(self) -> tuple[Server, HTTPConnection]:
        """A server for which clients and a handler have done something, and a connection to ask it."""
        folder = new_path("")
        folder.mkdir()
        write(folder / "waits.py", _WAITS)
        server = self.start("--handlers", "waits:router", "--metrics", LOOPBACK, cwd=folder)
        peer = self.connect(server)
        self.assertEqual(peer.ask({"type": "wait"})["type"], "waited")
        [match] = server.wait_for(r"metrics on http://127\.0\.0\.1:(\d+)/$")
        connection = HTTPConnection("127.0.0.1", int(match[1]), timeout=TIMEOUT)
        self.addCleanup(connection.close)
        return server, connection

    def get(self, connection: HTTPConnection, path: str) -> tuple[int, str]:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def test_metrics(self) -> None:
        """Names, types and labels are those of the table, and each that is ours is there."""
        _, connection = self.asking()
        _, text = self.get(connection, "/metrics")
        shown = {}
        others = []
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            if name.startswith("tcpjson_"):
                self.assertNotEqual(family.samples, [], name)
                shown[name] = (
                    family.type,
                    {each for sample in family.samples for each in sample.labels} - {"le"},
                )
            else:
                others.append(name)
        told = {
            name.strip("`"): (kind, {*_NAME.findall(labels)}) for name, kind, labels, _ in rows("The metrics")
        }
        self.assertEqual(told, shown)
        for name in re.findall(r"``((?:process|python)_\w+)``", TEXT):
            self.assertIn(name, others)

    def test_paths(self) -> None:
        """Each of the table answers, and no other; the columns of a connection are those of the text."""
        server, connection = self.asking()
        [table] = re.findall(r"^path .*?\n=+ +=+\n(.*?)^==", TEXT, re.MULTILINE | re.DOTALL)
        paths = re.findall(r"^``(/\w*)``", table, re.MULTILINE)
        _, nothing = self.get(connection, "/no-such")
        self.assertEqual({*re.findall(r"/\w*", nothing)}, {*paths})
        for path, query in re.findall(r"^``(/\w+)`` .*``(\?\S+)``", table, re.MULTILINE):
            status, text = self.get(connection, path + query)
            self.assertEqual(status, 200, text)
        _, text = self.get(connection, "/connections")
        [row] = json.loads(text)["connections"]
        [told] = re.findall(r"^A row of ``/connections`` has (.*?)It can be sorted", TEXT, re.M | re.DOTALL)
        self.assertEqual([*_NAME.findall(told)], [*row])
        for name in row.keys() - {"held"}:
            self.assertEqual(self.get(connection, f"/connections?sort={name}")[0], 200, name)
        self.assertEqual(self.get(connection, "/connections?sort=held")[0], 400)
        for probe in re.findall(r"path: (/\w+), port: 9100", TEXT):
            self.assertEqual(self.get(connection, probe)[0], 200)
        server.signal(signal.SIGTERM)
        server.wait_for(r"\] shutting down: 1 ")
        self.assertEqual(self.get(connection, "/readyz"), (503, "draining\n"))
        self.assertEqual(self.get(connection, "/healthz"), (200, "ok\n"))


def calls(path: Path) -> Iterator[tuple[str, set[str]]]:
    """The events that a module logs, each with the names of its fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        named: dict[str | None, Any] = {}
        if isinstance(node, ast.Call):
            named = {each.arg: each.value for each in node.keywords}
            if "event" not in named and ast.unparse(node.func).endswith(
                ("notices.warn", "notices.failure", "notices.error")
            ):
                named["event"] = node.args[0]
        elif isinstance(node, ast.Dict):
            named = {key.value: each for key, each in _pairs(node)}
        event = named.get("event")
        if isinstance(event, ast.Constant) and isinstance(event.value, str):
            ours = {"event", "item"}
            yield event.value, {name for name in named if name and not name.startswith(("_", "log_"))} - ours


def _pairs(node: ast.Dict) -> Iterator[tuple[Any, ast.expr]]:
    return ((key, each) for key, each in zip(node.keys, node.values, strict=True) if _is_text(key))


def _is_text(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and isinstance(key.value, str)


class EventTests(SynchronousTestCase):
    """The events of the log."""

    def test_the_table(self) -> None:
        """It has all that the code logs, with their fields, and no other."""
        logged: dict[str, set[str]] = {}
        for path in (ROOT / "tcpjson").rglob("*.py"):
            if not _OTHERS & {*path.relative_to(ROOT / "tcpjson").parts}:
                for event, fields in calls(path):
                    logged.setdefault(event, set()).update(fields)
        told = {name.strip("`"): {*_NAME.findall(fields)} for name, fields, _ in rows("The events")}
        # What of a message is told depends on it, and on options.
        self.assertLessEqual(logged["message"], told["message"])
        del logged["message"], told["message"]
        # That of lines without a name is no call.
        self.assertEqual(told.pop("log"), {"logger"})
        self.assertEqual(told, logged)
        self.assertGreater(len(told), 20)

    def test_a_line_without_a_name(self) -> None:
        line = json.loads(json_line({"log_format": "x", "log_namespace": "some.where"}))
        self.assertEqual((line["event"], line["logger"]), ("log", "some.where"))

    def test_what_the_code_logs(self) -> None:
        """What `calls` finds."""
        path = write(
            new_path(".py"),
            'log.info("{a}", event="one", a=1, _b=2)\n'
            'self._notices.warn("two", "{c}", item=c, c=3)\n'
            'event = {"event": "three", "log_level": 4, "d": 5}\n'
            'log.info("{e}", e=6)\n',
        )
        self.assertEqual([*calls(path)], [("one", {"a"}), ("two", {"c"}), ("three", {"d"})])
