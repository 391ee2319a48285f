"""`python -m tcpjson.schema` in processes of its own; its AsyncAPI document before the official parser."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has no types
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.harness import TIMEOUT, command, folder

#: It has the rules of the specification, and the official JSON Schema of it.
PARSER = "@asyncapi/parser@3.6.3"

# Seconds that an installation may take.
_INSTALL = 180

# Prints what the parser finds in the documents that it reads, a line of JSON each: those that are errors or
# warnings, or null where it makes no document of it.
_PARSE = """
const { Parser } = require('@asyncapi/parser');
let text = '';
process.stdin.on('data', (data) => (text += data)).on('end', async () => {
  for (const source of JSON.parse(text)) {
    const { document, diagnostics } = await new Parser().parse(source);
    const found = diagnostics.filter((each) => each.severity < 2);
    const lines = found.map((each) => `${each.path.join('.')}: ${each.message}`);
    console.log(JSON.stringify(document || lines.length ? lines : null));
  }
});
"""

MOVES = '''
from typing import Annotated

from msgspec import Meta, Struct

from tcpjson import Echo, Forbidden, Message, Router

router = Router()


class Place(Struct):
    """Where a piece is."""

    x: Annotated[int, Meta(ge=0, le=7)]
    y: Annotated[int, Meta(ge=0, le=7)]


class Pawn(Struct, tag="pawn"):
    passed: bool = False


class King(Struct, tag="king"):
    castles: tuple[bool, bool] = (True, True)


class Move(Message, tag="move"):
    """Moves a piece."""

    piece: Pawn | King
    to: Annotated[Place, Meta(examples=[{"x": 0, "y": 0}])]
    note: Annotated[str, Meta(max_length=40)] | None = None


class Moved(Message, tag="move_ok"):
    to: Place


@router.handler
async def move(session, message: Move) -> Moved | Forbidden:
    """Moves a piece, if it may."""
    return Moved(to=message.to)


@router.handler
def echo(session, message: Echo):
    return {"type": "louder", "content": message.content}
'''


def run(*arguments: str, tail: str = "") -> tuple[int, str, str]:
    """Run the program where `moves` can be imported; `tail` is what the shell is to do with its output."""
    directory = folder() / "schema"
    directory.mkdir(exist_ok=True)
    (directory / "moves.py").write_text(MOVES)
    program = [sys.executable, "-m", "tcpjson.schema", *arguments]
    ended = subprocess.run(
        ["bash", "-c", f'"$@" {tail}', "bash", *program] if tail else program,
        cwd=directory,
        env=command()[1],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=TIMEOUT,
    )
    return ended.returncode, ended.stdout, ended.stderr


class ProgramTests(SynchronousTestCase):
    """The program."""

    def _document(self, *arguments: str) -> Any:
        status, output, told = run(*arguments)
        self.assertEqual((status, told), (0, ""))
        return json.loads(output)

    def test_built_in(self) -> None:
        document = self._document()
        Draft202012Validator.check_schema(document)
        validator = Draft202012Validator(document)
        self.assertTrue(validator.is_valid({"type": "echo", "content": 1}))
        self.assertFalse(validator.is_valid({"type": "hello", "client": 1}))

    def test_with_handlers(self) -> None:
        document = self._document("moves:router")
        Draft202012Validator.check_schema(document)
        client = Draft202012Validator({"$ref": "#/$defs/client", "$defs": document["$defs"]})
        move = {"type": "move", "piece": {"type": "king"}, "to": {"x": 0, "y": 7}}
        self.assertTrue(client.is_valid(move))
        for name, value in (("piece", {"type": "queen"}), ("to", {"x": 0, "y": 8}), ("note", "x" * 41)):
            self.assertFalse(client.is_valid({**move, name: value}), name)
        self.assertIn("server.move_ok", document["$defs"])
        self.assertNotIn("server.echo_response", document["$defs"])

    def test_the_same_each_time(self) -> None:
        """The order is that of tables, not of hashes."""
        for arguments in (("moves:router",), ("--asyncapi", "moves:router")):
            self.assertEqual(run(*arguments), run(*arguments))

    def test_what_is_wrong(self) -> None:
        for arguments, status, line in (
            (("moves",), 1, "tcpjson.schema: moves: it must be MODULE:NAME, as game.moves:router"),
            (("moves:nothing",), 1, "tcpjson.schema: moves:nothing: "),
            (("moves:router",) * 2, 1, "tcpjson.schema: moves.move: move has a handler already, moves.move"),
            (("--json",), 2, "usage: "),
        ):
            ended, output, told = run(*arguments)
            self.assertEqual((ended, output), (status, ""))
            self.assertTrue(told.startswith(line), told)
            if status == 1:
                self.assertEqual(told.count("\n"), 1, told)

    def test_a_reader_that_goes(self) -> None:
        """It says nothing, and above all shows no traceback."""
        status, output, told = run("moves:router", tail="| head -n 1")
        self.assertEqual((status, output, told), (0, "{\n", ""))

    def test_a_full_disk(self) -> None:
        status, output, told = run(tail="> /dev/full")
        self.assertEqual((status, output, told), (1, "", "tcpjson.schema: No space left on device\n"))

    def test_no_reactor(self) -> None:
        """Nothing that it needs installs one."""
        ended = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys, tcpjson.schema.__main__; print('twisted.internet.reactor' in sys.modules)",
            ],
            env=command()[1],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        self.assertEqual((ended.stdout, ended.stderr), ("False\n", ""))


@functools.cache
def parser() -> str:
    """A folder with the official parser of AsyncAPI. Raises `SkipTest` where it cannot be had."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise SkipTest("node and npm are missing")
    directory = folder() / "asyncapi"
    directory.mkdir()
    installed = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-update-notifier", PARSER],
        cwd=directory,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=_INSTALL,
    )
    if installed.returncode:
        raise SkipTest(f"npm cannot install {PARSER}: {installed.stderr.strip()[-200:]}")
    return str(directory)


def faults(documents: Sequence[Any]) -> list[list[str] | None]:
    """What the official parser says of documents: errors and warnings, None where it understands nothing."""
    ended = subprocess.run(
        ["node", "-e", _PARSE],
        cwd=parser(),
        input=json.dumps([json.dumps(document) for document in documents]),
        capture_output=True,
        text=True,
        timeout=_INSTALL,
    )
    if ended.returncode:
        raise AssertionError(ended.stderr)
    return [json.loads(line) for line in ended.stdout.splitlines()]


class AsyncAPITests(SynchronousTestCase):
    """The AsyncAPI document, before the parser of those who write the specification."""

    def test_documents(self) -> None:
        documents = [json.loads(run("--asyncapi", *routers)[1]) for routers in ([], ["moves:router"])]
        self.assertEqual([document["asyncapi"] for document in documents], ["3.0.0", "3.0.0"])
        self.assertEqual(faults(documents), [[], []])

    def test_the_parser_finds_faults(self) -> None:
        """Of each kind that ours could have."""
        whole = json.loads(run("--asyncapi", "moves:router")[1])
        broken = []
        for place, value in (
            (["info", "version"], None),
            (["servers", "tcp", "port"], 9999),
            (["operations", "client.move", "action"], "answer"),
            (
                ["operations", "client.move", "reply", "messages", 0, "$ref"],
                "#/channels/connection/messages/none",
            ),
            (["channels", "connection", "messages", "client.move", "$ref"], "#/components/messages/none"),
            (["components", "schemas", "client.move", "discriminator"], {"propertyName": "type"}),
            (["components", "schemas", "client.move", "type"], "objekt"),
            (["components", "correlationIds", "id", "location"], "$.id"),
            (["components", "securitySchemes", "token", "type"], "token"),
        ):
            document = copy.deepcopy(whole)
            part = document
            for name in place[:-1]:
                part = part[name]
            part[place[-1]] = value
            broken.append(document)
        for document, found in zip(broken, faults(broken), strict=True):
            self.assertTrue(found, document)
