"""The README is true: its handlers are run, and print what it says. Its other blocks: test_examples.py."""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import command

README = Path(__file__).resolve().parent.parent / "README.rst"
# Not behind the comment that says which file it is.
_BLOCK = re.compile(r"(?<!py\n\n)^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", re.MULTILINE)
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


class ReadmeTests(SynchronousTestCase):
    def test_the_handler(self) -> None:
        [handler, _], [expected] = programs(), printed()
        self.assertEqual(run(handler), expected)

    def test_the_handler_is_served(self) -> None:
        """As far as can be told without its port: the reactor is stopped at once."""
        [handler, served], [expected] = programs(), printed()
        stop = "from twisted.internet import reactor\nreactor.callWhenRunning(reactor.stop)\n"
        program = handler + stop + served.replace("9999", "0")
        self.assertRegex(run(program), re.escape(expected) + r"tcpjson: listening on localhost:[1-9]\d*\n")
