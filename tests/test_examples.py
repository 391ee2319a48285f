"""docs/examples: each does what is said beside it. That what is shown is what is there: test_documents.py."""

from __future__ import annotations

import re
import signal
import socket
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from tests.documents import DOCUMENTS, EXAMPLES, environment, masked, shape
from tests.harness import TIMEOUT, Peer, ServerTestCase


def expected(name: str) -> str:
    """What is said that an example prints."""
    return (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8")


class ShownTests(SynchronousTestCase):
    def test_each_file_is_shown(self) -> None:
        text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
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


class NoServerTests(SynchronousTestCase):
    def test_twisted_client(self) -> None:
        """It says at once that there is nobody."""
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            process = subprocess.Popen(
                ["python", "-u", "twisted_client.py", f"127.0.0.1:{nobody.getsockname()[1]}"],
                cwd=EXAMPLES,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
            with process:
                self.addCleanup(process.kill)
                assert process.stdout is not None
                self.assertRegex(process.stdout.readline(), r"\AConnection refused \d")
                process.kill()


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
