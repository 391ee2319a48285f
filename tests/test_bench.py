"""`python -m tcpjson.bench` in processes of its own, against its own server, and others."""

from __future__ import annotations

import functools
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tcpjson.bench.results import Result, Run
from tcpjson.bench.scenarios import SCENARIOS
from tcpjson.verifiers import hash_token
from tests.harness import TIMEOUT, Message, ServerTestCase, command, folder, until
from tests.identities import authority, new_path, write
from tests.strangers import NO_WELCOME, Stranger, answers, says

PROGRAM = (sys.executable, "-m", "tcpjson.bench")
# Seconds that many scenarios may take on a busy machine.
_PATIENCE = 4 * TIMEOUT
_SHORT = ("--duration", "0.2", "--processes", "1")


def started(*arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """The program, started and not waited for."""
    return subprocess.Popen(
        [*PROGRAM, *_SHORT, *arguments],
        env=command()[1],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
    )


def ran(*arguments: str) -> tuple[int, str, str]:
    """Run the program; returns its status, what it printed, and what it complained of."""
    process = started(*arguments)
    try:
        output, told = process.communicate(timeout=_PATIENCE)
    finally:
        # It ends what it has started.
        process.terminate()
        process.wait(TIMEOUT)
    return process.returncode, output, told


def measured(*arguments: str) -> Run:
    """What it found, where all went well."""
    status, output, told = ran("--json", "-", *arguments)
    if status:
        raise AssertionError(f"status {status}: {told}")
    return msgspec.json.decode(output, type=Run)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether none of these processes runs."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


class OwnServerTests(SynchronousTestCase):
    """Against a server that it starts itself."""

    def right(self, result: Result) -> None:
        """All that must hold of any result."""
        self.assertGreater(result.messages, 0, result.label)
        self.assertEqual(result.wrong, 0, result.label)
        self.assertGreaterEqual(result.checked, result.messages, result.label)
        self.assertGreater(result.per_second, 0, result.label)

    def test_steps(self) -> None:
        """The scenarios that have several steps."""
        run = measured("--scenario", "sizes", "--scenario", "scaling")
        for result in run.results:
            self.right(result)
        found = [(result.scenario, result.size, result.clients) for result in run.results]
        sizes = [("sizes", size, 10) for size in (10, 100, 1000, 10_000, 100_000)]
        self.assertEqual(found, sizes + [("scaling", 100, clients) for clients in (1, 10, 100, 1000)])

    def test_default(self) -> None:
        """Each scenario gives a result, and all replies are right."""
        run = measured("--rate", "500")
        for result in run.results:
            self.right(result)
        wanted = [name for name, scenario in SCENARIOS.items() if scenario.default]
        self.assertEqual([result.scenario for result in run.results], wanted)
        self.assertEqual(run.skipped, [])
        self.assertTrue(run.server.startswith("tcpjson/"))
        found = {result.scenario: result for result in run.results}
        for name in ("small", "large", "fanout", "storm", "tls"):
            cpu = found[name].server_cpu_us
            assert cpu is not None
            self.assertTrue(0.01 < cpu < 100_000, (name, cpu))
        latency = found["latency"].latency
        assert latency is not None
        self.assertEqual(found["latency"].rate, 500.0)
        self.assertEqual(latency.count, 100)
        times = [seconds for _, seconds in latency.percentiles]
        self.assertEqual(times, sorted(times))
        memory = found["idle"].memory_bytes
        assert memory is not None
        # The sum of what is measured otherwise, and never nothing.
        self.assertTrue(100 < memory < 20_000, memory)
        self.assertEqual(found["idle"].messages, 1000)

    def at_work(self, process: subprocess.Popen[str]) -> list[int]:
        """Wait until there are two processes, the server and the one that generates; returns them."""
        if not Path(f"/proc/{process.pid}/task/{process.pid}/children").exists():
            process.kill()
            process.communicate()
            raise SkipTest("needs /proc/PID/task/PID/children")
        until(lambda: len(children(process.pid)) == 2, "it works")
        return children(process.pid)

    def test_table(self) -> None:
        """What is for people, and the page."""
        page = folder() / "bench.html"
        status, output, told = ran("--scenario", "small", "--scenario", "latency", "--html", str(page))
        self.assertEqual(status, 0, told)
        self.assertIn("\nsmall  ", output)
        self.assertIn("\nlatency  ", output)
        self.assertIn("limited by ", output)
        self.assertTrue(output.endswith(" replies were checked, all of them were right\n"))
        self.assertEqual(len(told.splitlines()), 2)
        self.assertIn("<svg", page.read_text(encoding="utf-8"))

    def test_several_processes(self) -> None:
        """Several processes are one generator."""
        run = measured("--scenario", "small", "--scenario", "latency", "--processes", "2", "--clients", "3")
        for result in run.results:
            self.right(result)
            self.assertEqual(result.clients, 3)
            self.assertIn("2 processes", result.note)

    def test_tls(self) -> None:
        """All over TLS."""
        for result in measured("--tls", "--scenario", "fanout", "--scenario", "storm").results:
            self.right(result)

    def test_bar(self) -> None:
        """On a terminal it shows how far it is."""
        ours, theirs = pty.openpty()
        process = started("--scenario", "small", stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:
            # How a terminal says that nobody has its other side open.
            pass
        finally:
            os.close(ours)
        process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 0)
        self.assertIn(b"\r[", shown)
        self.assertIn(b" 100% ", shown)

    def test_interrupted(self) -> None:
        """Ctrl-C, or SIGTERM, or a death without a word: nothing that was started is left."""
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
            process = started("--scenario", "small", "--duration", "60")
            # The server, and the process that generates.
            pids = self.at_work(process)
            time.sleep(0.5)
            process.send_signal(number)
            process.communicate(timeout=TIMEOUT)
            self.assertEqual(process.returncode, status)
            until(functools.partial(gone, pids), "all are gone")

    def test_server_dies(self) -> None:
        """What was measured until then is shown; a line says what happened."""
        process = started("--scenario", "small", "--scenario", "latency", "--duration", "5")
        first = self.at_work(process)
        until(
            lambda: len(now := children(process.pid)) == 2 and not set(now) & set(first),
            "the second works",
        )
        os.kill(children(process.pid)[0], signal.SIGKILL)
        output, told = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 1)
        self.assertIn("\nsmall  ", output)
        self.assertIn("tcpjson.bench: the server ended by itself", told.splitlines()[-1])


class RunningTests(ServerTestCase):
    """Against servers that run."""

    def test_running(self) -> None:
        """One on this machine; its process is found."""
        server = self.start()
        where = "{}:{}".format(*server.address)
        run = measured(
            where, "--scenario", "small", "--scenario", "idle", "--scenario", "tls", "--clients", "5"
        )
        small, idle = run.results
        self.assertEqual((small.wrong, run.where), (0, where))
        if Path("/proc/net/tcp").exists():
            assert small.server_cpu_us is not None and idle.memory_bytes is not None
            self.assertGreater(small.server_cpu_us, 0)
        self.assertEqual([each.scenario for each in run.skipped], ["tls"])

    def test_tls(self) -> None:
        """One over TLS; one that nobody vouches for is refused."""
        server = self.start(ports=[authority().issue().port])
        where = "{}:{}".format(*server.address)
        run = measured(where, "--ca", str(authority().file), "--scenario", "tls", "--scenario", "storm")
        self.assertEqual([result.wrong for result in run.results], [0, 0])
        status, output, told = ran(where, "--tls")
        self.assertEqual((status, output, len(told.splitlines())), (2, "", 1))
        self.assertIn("TLS", told)

    def test_limits(self) -> None:
        """A rate that the server takes limits the run, and it says so."""
        server = self.start("--rate", "200")
        where = "{}:{}".format(*server.address)
        status, output, told = ran(where, "--scenario", "small", "--clients", "2", "--json", "-")
        self.assertEqual(status, 0, told)
        self.assertIn("the server takes 200 messages a second from a client", told)
        (result,) = msgspec.json.decode(output, type=Run).results
        self.assertEqual(result.limited_by, "the server's rate limit")

    def test_small_frames(self) -> None:
        """Contents that the server does not take are left out."""
        server = self.start("--max-length", "1000")
        where = "{}:{}".format(*server.address)
        run = measured(where, "--scenario", "large", "--scenario", "small")
        self.assertEqual([result.scenario for result in run.results], ["small"])
        self.assertIn("1000 bytes", run.skipped[0].why)

    def test_login(self) -> None:
        """A server that asks for a login is not measured."""
        tokens = write(new_path(".tokens"), f"me:{hash_token('secret').hex()}\n")
        server = self.start("--auth", f"token:{tokens}", "--allow-plain-auth")
        status, output, told = ran("{}:{}".format(*server.address))
        self.assertEqual((status, output, len(told.splitlines())), (2, "", 1))
        self.assertIn("login", told)


class StrangerTests(SynchronousTestCase):
    """Against servers that are not as they should be."""

    def refused(self, where: str) -> str:
        status, output, told = ran(where)
        self.assertEqual((status, output, len(told.splitlines())), (2, "", 1), told)
        return told

    def test_nobody(self) -> None:
        """Nobody listens."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.assertEqual(
            self.refused(f"127.0.0.1:{port}"), f"tcpjson.bench: 127.0.0.1:{port}: Connection refused\n"
        )

    def test_other(self) -> None:
        """Another kind of server."""
        for name in ("SSH", "an HTTP answer"):
            with Stranger(says(NO_WELCOME[name])) as stranger:
                self.assertIn("no frames of tcpjson", self.refused(stranger.where))

    def test_wrong(self) -> None:
        """A server that answers wrongly is found out."""
        contents: list[object] = []

        def stale(message: Message) -> list[Message]:
            """What it was asked first is all that it knows."""
            contents.append(message["content"])
            return [{"type": "echo_response", "content": contents[0], "id": message["id"]}]

        with Stranger(answers(stale)) as stranger:
            status, output, told = ran(stranger.where, "--scenario", "small", "--clients", "1")
        self.assertEqual(status, 1, told)
        self.assertIn("the first wrong reply: ", output)
