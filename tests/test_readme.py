"""The README is true: its programs are run, and print what it says."""

from __future__ import annotations

import ast
import re
import subprocess
import textwrap
from pathlib import Path

from tests.harness import LOOPBACK, ServerTestCase, command

README = Path(__file__).resolve().parent.parent / "README.rst"
_BLOCK = re.compile(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", re.MULTILINE)
_PRINTED = re.compile(r"^It prints::\n\n((?:    .*\n)+)", re.MULTILINE)


def programs() -> list[str]:
    return [textwrap.dedent(block) for block in _BLOCK.findall(README.read_text())]


def printed() -> list[str]:
    return [textwrap.dedent(block) for block in _PRINTED.findall(README.read_text())]


def run(program: str) -> str:
    """What a program prints."""
    (python, *_), environment = command()
    ended = subprocess.run(
        [python, "-c", program],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.stdout + ended.stderr


class ReadmeTests(ServerTestCase):
    def test_the_client(self) -> None:
        [address] = self.start(ports=[LOOPBACK]).addresses
        output = run(programs()[0].replace("9999", address.rpartition(":")[2]))
        expected = printed()[0]
        # Alike but for the time.
        [name, reply], [expected_name, expected_reply] = output.splitlines(), expected.splitlines()
        self.assertEqual(name, expected_name)
        fields, expected_fields = ast.literal_eval(reply), ast.literal_eval(expected_reply)
        self.assertEqual(list(fields), list(expected_fields))
        self.assertEqual({**fields, "timestamp": ""}, {**expected_fields, "timestamp": ""})

    def test_the_handler(self) -> None:
        self.assertEqual(run(programs()[1]), printed()[1])

    def test_the_handler_is_served(self) -> None:
        """As far as can be told without its port: the reactor is stopped at once."""
        program = programs()[1] + programs()[2].replace("tcp:9999", "tcp:0:interface=127.0.0.1")
        program = program.replace("reactor.run()", "reactor.callWhenRunning(reactor.stop); reactor.run()")
        self.assertEqual(run(program), printed()[1])
