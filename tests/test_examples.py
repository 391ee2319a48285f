"""docs/examples: what is shown is what is there, and each does what is said beside it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import TIMEOUT, Peer, ServerTestCase, command

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"

# A comment that names a file, and the block behind it, which is the file.
_SHOWN = re.compile(
    r"^\.\. docs/examples/(\S+)\n\n(?:::|\.\. code-block:: python)\n\n((?: {4}.*\n|\n)+)", re.MULTILINE
)

# What differs from run to run.
_MASKS = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "TIME"),
    (r"127\.0\.0\.1:\d+|localhost:\d+", "HOST:PORT"),
    (r"\b[0-9a-f]{8}\b", "WORD"),
    (r"\btcpjson/[\w.+]+", "tcpjson/VERSION"),
    (r"\d+(?:\.\d+)? (ms|seconds|bytes)\b", r"N \1"),
    (r"\b(uptime_seconds|total_messages)(\W+)\d+", r"\1\2N"),
)


def masked(text: str) -> str:
    """The text, without what differs from run to run."""
    for pattern, name in _MASKS:
        text = re.sub(pattern, name, text)
    return text


def shape(text: str) -> str:
    """A pattern for outputs that are like this one; a line `[...]` stands for any lines."""
    return "(?:.*\n)*".join(re.escape(part) for part in masked(text).split("[...]\n"))


def expected(name: str) -> str:
    """What is said that an example prints."""
    return (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8")


def blocks(document: Path) -> dict[str, str]:
    """The blocks of a document that are said to be files, by their names."""
    text = document.read_text(encoding="utf-8")
    return {name: textwrap.dedent(block).strip("\n") + "\n" for name, block in _SHOWN.findall(text)}


def environment() -> dict[str, str]:
    """One in which `python` is this one, and finds the package."""
    _, variables = command()
    path = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    return {**variables, "PATH": path, "PYTHONIOENCODING": "utf-8"}


class ShownTests(SynchronousTestCase):
    def test_the_readme_shows_the_files(self) -> None:
        found = blocks(ROOT / "README.rst")
        for name, block in found.items():
            self.assertEqual(block, (EXAMPLES / name).read_text(encoding="utf-8"), name)
        wanted = {"twisted_client.py", "blocking_client.py", "console.txt", "demo.txt"}
        self.assertEqual(wanted - set(found), set())

    def test_each_file_is_shown(self) -> None:
        documents = [ROOT / "README.rst", *(ROOT / "docs").glob("*.rst")]
        text = "".join(document.read_text(encoding="utf-8") for document in documents)
        hidden = [path.name for path in EXAMPLES.iterdir() if f"examples/{path.name}" not in text]
        self.assertEqual(hidden, [])


class ExampleTests(ServerTestCase):
    """Each on a server of its own."""

    def setUp(self) -> None:
        self.own = self.start()

    def where(self) -> str:
        """The server, as it is named on command lines."""
        host, port = self.own.address
        return f"{host}:{port}"

    def shell(self, line: str, status: int = 0) -> str:
        """What a line prints in a shell. Nothing may come on standard error."""
        ended = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=EXAMPLES,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        self.assertEqual((ended.returncode, ended.stderr), (status, ""), line)
        return ended.stdout

    def prints(self, name: str, *arguments: str) -> None:
        """See that an example prints what is said. What two clients are told may come in any order."""
        output = self.shell(" ".join(["python", f"{name}.py", *arguments]))
        self.assertEqual(sorted(masked(output).splitlines()), sorted(masked(expected(name)).splitlines()))

    def session(self, name: str) -> None:
        """See that a line prints what is said, with the server as one argument more."""
        prompt, _, output = expected(name).partition("\n")
        self.assertRegex(prompt, r"^\$ ")
        self.assertRegex(masked(self.shell(f"{prompt[2:]} {self.where()}")), rf"\A{shape(output)}\Z")

    def test_classic_client(self) -> None:
        self.prints("classic_client", str(self.own.address[1]))

    def test_twisted_client(self) -> None:
        self.prints("twisted_client", self.where())

    def test_asyncio_client(self) -> None:
        self.prints("asyncio_client", self.where())

    def test_blocking_client(self) -> None:
        self.prints("blocking_client", str(self.own.address[1]))

    def test_blocking_requests(self) -> None:
        self.prints("blocking_requests", str(self.own.address[1]))

    def test_pool(self) -> None:
        self.prints("pool", self.where())

    def test_testing_client(self) -> None:
        self.prints("testing_client")

    def test_demo(self) -> None:
        self.session("demo")

    def test_console(self) -> None:
        self.session("console")


class ServerExampleTests(SynchronousTestCase):
    def test_blocking_server(self) -> None:
        """It serves, until it is interrupted."""
        process = subprocess.Popen(
            ["python", "blocking_server.py", "0"],
            cwd=EXAMPLES,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.addCleanup(process.kill)
        assert process.stdout is not None
        match = re.fullmatch(r"tcpjson: listening on localhost:(\d+)\n", process.stdout.readline())
        assert match is not None
        with socket.create_connection(("localhost", int(match[1])), TIMEOUT) as connection:
            peer = Peer(connection)
            self.assertEqual(peer.receive()["type"], "welcome")
            self.assertEqual(peer.ask({"type": "echo", "content": 1})["content"], 1)
        process.send_signal(signal.SIGINT)
        output, told = process.communicate(timeout=TIMEOUT)
        self.assertEqual((process.returncode, output, told), (0, "", ""))
