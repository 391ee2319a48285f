"""The servers that the benchmark compares with: each does the work that it is measured by."""

from __future__ import annotations

import importlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tcpjson.bench.peers import ALL, Peer
from tests.harness import TIMEOUT, Message, command, encode, until

#: The receivers of a message, and how many each gets.
RECEIVERS, MESSAGES = 3, 200


def peer_named(label: str) -> Peer:
    """The one with this label; the test is skipped where it is not at hand."""
    [peer] = [peer for peer in ALL if peer.label == label]
    if lacks := peer.missing():
        raise SkipTest(f"{label}: {lacks}")
    return peer


def gone(pid: int) -> bool:
    """Whether there is no such process, or only what its parent has not asked for."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Line:
    """A connection of ours."""

    def __init__(self, test: SynchronousTestCase, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        test.addCleanup(self.socket.close)
        self.left = b""

    def more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise AssertionError("the server closed the connection")
        self.left += data

    def send(self, *messages: Message) -> None:
        self.socket.sendall(b"".join(encode(message) for message in messages))

    def message(self) -> Message:
        """The next message of our protocol."""
        while len(self.left) < 4 or len(self.left) < 4 + int.from_bytes(self.left[:4], "big"):
            self.more()
        end = 4 + int.from_bytes(self.left[:4], "big")
        payload, self.left = self.left[4:end], self.left[end:]
        message: Message = json.loads(payload)
        return message


class ClassicTests(SynchronousTestCase):
    """Those that speak our protocol."""

    def started(self, label: str) -> int:
        """Start it; returns its port."""
        context = peer_named(label).start()
        running = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return running.port

    def welcomed(self, port: int) -> Line:
        line = Line(self, port)
        self.assertEqual(line.message()["type"], "welcome")
        return line

    def check(self, label: str) -> None:
        """What the scenarios ask for: echoes in order, pings, broadcasts to all others."""
        port = self.started(label)
        sender, *receivers = (self.welcomed(port) for _ in range(1 + RECEIVERS))
        contents = ["", "x", "grün 漢字 \U0001f600", "y" * 200_000]
        sender.send(*({"type": "echo", "content": each, "id": place} for place, each in enumerate(contents)))
        for place, each in enumerate(contents):
            reply = sender.message()
            self.assertEqual(
                (reply["type"], reply["content"], reply["id"], reply["echoed_by"]),
                ("echo_response", each, place, "TCP Server"),
            )
        # In single bytes.
        for byte in encode({"type": "ping", "timestamp": "then", "id": "p"}):
            sender.socket.sendall(bytes([byte]))
        reply = sender.message()
        self.assertEqual((reply["type"], reply["ping_timestamp"], reply["id"]), ("pong", "then", "p"))
        for number in range(MESSAGES):
            sender.send({"type": "broadcast", "content": f"m{number}"})
        for number in range(MESSAGES):
            for receiver in receivers:
                got = receiver.message()
                self.assertEqual((got["type"], got["content"]), ("broadcast", f"m{number}"))
            reply = sender.message()
            self.assertEqual((reply["type"], reply["recipients"]), ("broadcast_sent", RECEIVERS))
        # One that went is not counted.
        receivers.pop().socket.close()

        def counted() -> bool:
            sender.send({"type": "broadcast", "content": "z"})
            recipients: int = sender.message()["recipients"]
            return recipients == RECEIVERS - 1

        until(counted, "that one is gone")

    def test_uvloop(self) -> None:
        self.check("uvloop + orjson")

    def test_streams(self) -> None:
        self.check("asyncio streams")

    def test_twisted(self) -> None:
        self.check("plain Twisted")

    def test_node(self) -> None:
        self.check("Node")

    def test_statistics_of_node(self) -> None:
        line = self.welcomed(self.started("Node"))
        line.send({"type": "no such type"}, {"type": "toString"}, {"type": "get_stats", "id": 1})
        stats = line.message()
        self.assertEqual((stats["type"], stats["id"], stats["total_messages"]), ("server_stats", 1, 3))
        self.assertEqual(stats["connected_clients"], 1)

    def test_pieces_of_node(self) -> None:
        """A long frame that comes in many pieces is put together once: this takes a moment, or minutes."""
        line = self.welcomed(self.started("Node"))
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        content = "x" * 16_000_000
        data = encode({"type": "echo", "content": content})
        for at in range(0, len(data), 1448):
            line.socket.sendall(data[at : at + 1448])
        reply = bytearray()
        while len(reply) < len(content):
            got = line.socket.recv(1 << 20)
            self.assertNotEqual(got, b"")
            reply += got
        self.assertIn(b'"echo_response"', reply)


class BrokerTests(SynchronousTestCase):
    """Those that speak another protocol, through their drivers."""

    def check(self, label: str) -> None:
        peer = peer_named(label)
        assert peer.driver is not None
        driver: Any = importlib.import_module(peer.driver)
        with peer.start() as running:
            sender, *receivers = lines = [Line(self, running.port) for _ in range(1 + RECEIVERS)]
            for line in lines:
                line.socket.sendall(driver.hello_sender() if line is sender else driver.hello_receiver())
                while (used := driver.ready(line.left, line is sender)) is None:
                    line.more()
                line.left = line.left[used:]
            contents = [b"%0100d" % number for number in range(MESSAGES)]
            sender.socket.sendall(b"".join(driver.publish(content) for content in contents))
            for receiver in receivers:
                self.assertEqual(self.taken(receiver, driver.delivered, MESSAGES), contents)
            if driver.ACKNOWLEDGES:
                self.assertEqual(self.taken(sender, driver.acknowledged, MESSAGES), [RECEIVERS] * MESSAGES)

    def taken(self, line: Line, parse: Any, count: int) -> list[Any]:
        """So many messages; what is none is left out."""
        taken: list[Any] = []
        while len(taken) < count:
            found = parse(line.left, 0)
            if found is None:
                line.more()
                continue
            if found[0] is not None:
                taken.append(found[0])
            line.left = line.left[found[1] :]
        return taken

    def test_redis(self) -> None:
        self.check("Redis")

    def test_nats(self) -> None:
        self.check("NATS")


# Starts one, and says which process it is.
_STARTS = """
import signal, sys
from tcpjson.bench.peers import ALL
[peer] = [peer for peer in ALL if peer.label == sys.argv[1]]
with peer.start() as running:
    print(running.pid, flush=True)
    signal.pause()
"""


class EndTests(SynchronousTestCase):
    """None is left over."""

    def check(self, label: str) -> None:
        """The benchmark is killed while one runs."""
        if sys.platform != "linux":
            raise SkipTest("needs prctl of Linux")
        peer_named(label)
        # It cannot remove its folder.
        folder = tempfile.mkdtemp(prefix="tcpjson-test-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-c", _STARTS, label],
            env={**command()[1], "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            assert process.stdout is not None
            with process.stdout:
                pid = int(process.stdout.readline())
            self.assertFalse(gone(pid))
        finally:
            process.kill()
            process.wait()
        until(lambda: gone(pid), f"{label} is gone")

    def test_python(self) -> None:
        self.check("asyncio streams")

    def test_node(self) -> None:
        self.check("Node")

    def test_redis(self) -> None:
        self.check("Redis")

    def test_nats(self) -> None:
        self.check("NATS")
