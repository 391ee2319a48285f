"""The clients against servers that know sections 1 to 3 alone, as they have been pasted for years."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.blocking import TCPClient
from tcpjson.client import Client
from tcpjson.core.errors import Disconnected, ProtocolError, RequestTimeout
from tests.harness import TIMEOUT, Message, until
from tests.strangers import Classic, Stranger, Visit
from tests.test_client import ClientTestCase

#: Servers that leave fields out, by what they lack.
POOR: dict[str, dict[str, tuple[str, ...]]] = {
    "all": {},
    "pong without ping_timestamp": {"pong": ("ping_timestamp",)},
    "pong without anything": {"pong": ("ping_timestamp", "pong_timestamp", "client_id")},
    "broadcast_sent without recipients": {"broadcast_sent": ("recipients", "timestamp")},
    "server_stats with two fields": {
        "server_stats": ("uptime_seconds", "server_start_time", "current_time"),
    },
    "welcome without client_id": {"welcome": ("client_id", "timestamp")},
    "welcome and nothing else": {"welcome": ("client_id", "timestamp", "message")},
    "echo_response without content": {"echo_response": ("content", "timestamp", "echoed_by")},
    "response without original_message": {"response": ("original_message", "timestamp", "from_server")},
    "broadcast without from_client": {"broadcast": ("from_client", "timestamp")},
    "echo without original_text": {"echo": ("original_text", "from_server")},
}


class Gate:
    """Lets a server answer at once, or not before it is opened: all, or messages of one type."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        #: What is never answered.
        self.never: Callable[[Message], bool] = lambda message: False

    def close(self) -> None:
        """Answer nothing until it is opened."""
        self._open.clear()

    def open(self) -> None:
        """Go on."""
        self._open.set()

    def __call__(self, message: Message | str) -> bool:
        self._open.wait(TIMEOUT)
        return isinstance(message, str) or not self.never(message)


class AwaitableTests(ClientTestCase):
    """`tcpjson.client.Client`."""

    def classic(self, lacks: dict[str, tuple[str, ...]] | None = None) -> tuple[Classic, Gate]:
        """A server, and what holds its answers up."""
        gate = Gate()
        server = Classic(lacks, gate)
        self.addCleanup(server.stop)
        self.addCleanup(gate.open)
        return server, gate

    async def test_all(self) -> None:
        """Every request has its reply, whatever the server leaves out."""
        for name, lacks in POOR.items():
            server, _ = self.classic(lacks)
            heard: list[Message] = []
            other: list[Message] = []
            await self.connected(server, on_message=other.append)
            client = await self.connected(server, on_message=heard.append, timeout=5)
            assert client.server is not None
            self.assertTrue(client.server.classic, name)
            self.assertTrue(0 <= await client.ping() < 5, name)
            content = {"a": [1, None, "é"]}
            lacking = "content" in lacks.get("echo_response", ())
            self.assertEqual(await client.echo(content), None if lacking else content, name)
            self.assertIn(await client.broadcast("to all"), (0, 1), name)
            stats = await client.stats()
            self.assertEqual((stats["type"], stats["connected_clients"]), ("server_stats", 2), name)
            for kind in ("custom", "hello", "auth", "pong"):
                reply = await client.request(kind, data=1)
                self.assertEqual(reply["type"], "response", name)
            client.send("plain text")
            await self.until(lambda: heard and other, name)  # noqa: B023
            self.assertEqual([message["type"] for message in heard], ["echo"], name)
            self.assertEqual([message["type"] for message in other], ["broadcast"], name)
            self.assertEqual(other[0]["content"], "to all", name)
            self.assertEqual(client.waiting, 0, name)

    async def test_what_is_sent(self) -> None:
        """No `hello`, no `id`, nothing compressed; a timestamp, that some look for."""
        server, _ = self.classic()
        client = await self.connected(server)
        await client.ping()
        await client.echo("x" * 10_000)
        await client.request("custom", timestamp="my own")
        self.assertEqual(len(server.received), 3)
        for message in server.received:
            assert isinstance(message, dict)
            self.assertNotIn("id", message)
            self.assertIn("timestamp", message)
        self.assertEqual(server.received[2], {"type": "custom", "timestamp": "my own"})

    async def test_many(self) -> None:
        """Hundreds on their way at once, of all kinds: each gets its own."""
        server, _ = self.classic()
        client = await self.connected(server)
        echoes = [client.echo(number) for number in range(300)]
        others: list[Deferred[Any]] = []
        customs = []
        for number in range(300):
            others.append(client.ping())
            echoes.append(client.echo(300 + number))
            customs.append(client.request("custom", number=number))
            others.append(client.stats())
        self.assertEqual([await each for each in echoes], list(range(600)))
        numbers = [(await each)["original_message"]["number"] for each in customs]
        self.assertEqual(numbers, list(range(300)))
        for each in others:
            await each
        self.assertEqual(client.waiting, 0)

    async def test_late(self) -> None:
        """A reply that comes after its time is not the next one's, which is of the same kind."""
        server, gate = self.classic()
        heard: list[Message] = []
        client = await self.connected(server, on_message=heard.append)
        gate.close()
        for number in range(3):
            await self.fails(client.echo(["late", number], timeout=0.05), RequestTimeout)
        cancelled = client.echo("cancelled")
        cancelled.cancel()
        await self.fails(cancelled, CancelledError)
        following = [client.echo(number) for number in range(3)]
        ping = client.ping()
        gate.open()
        self.assertEqual([await each for each in following], [0, 1, 2])
        await ping
        self.assertEqual((heard, client.waiting), ([], 0))

    async def test_sent_without_waiting(self) -> None:
        """The replies to what was sent are heard, and are nobody else's."""
        server, _ = self.classic()
        heard: list[Message] = []
        client = await self.connected(server, on_message=heard.append)
        client.send({"type": "echo", "content": "sent"})
        asked = client.echo("asked")
        client.send({"type": "custom", "content": "sent"})
        reply = client.request("custom", content="asked")
        self.assertEqual(await asked, "asked")
        self.assertEqual((await reply)["original_message"]["content"], "asked")
        self.assertEqual([message["type"] for message in heard], ["echo_response", "response"])
        self.assertEqual(heard[0]["content"], "sent")

    async def test_never_answered(self) -> None:
        """One that a server does not answer costs its own time, and nothing else."""
        server, gate = self.classic()
        gate.never = lambda message: message.get("content") == "never"
        client = await self.connected(server)
        never = client.echo("never", timeout=0.2)
        await client.ping()
        await client.stats()
        self.assertEqual((await client.request("custom", x=1))["original_message"]["x"], 1)
        await self.fails(never, RequestTimeout)
        # The order of the replies is found again.
        for number in range(10):
            self.assertEqual(await client.echo(number), number)
        self.assertEqual(client.waiting, 0)

    async def test_restarted(self) -> None:
        """Nothing that was expected of the old connection is expected of the next."""
        server, gate = self.classic()
        proxy = self.proxy(server)
        client = await self.connected(proxy)
        gate.close()
        lost = [client.echo(number) for number in range(5)]
        await self.until(lambda: server.received, "they are on their way")
        proxy.cut()
        for each in lost:
            await self.fails(each, Disconnected)
        gate.open()
        await self.until(lambda: client.connected, "it is back")
        self.assertEqual(await client.echo("new"), "new")
        self.assertEqual(client.waiting, 0)

    async def test_its_own_errors(self) -> None:
        """`error`, which some send for what they do not know, is a reply, too."""

        def script(visit: Visit) -> None:
            visit.send({"type": "welcome"})
            while True:
                message = visit.receive()
                if message["type"] == "ping":
                    visit.send({"type": "pong"})
                else:
                    visit.send({"type": "error", "message": "Unknown message type"})

        client = await self.connected(self.stranger(script), timeout=5)
        first, second, ping = client.request("custom"), client.echo(1), client.ping()
        reason = await self.fails(first, ProtocolError)
        self.assertIn("Unknown message type", str(reason))
        await self.fails(second, ProtocolError)
        await ping

    async def test_one_that_hangs_up(self) -> None:
        """A server that closes on what it does not understand is come back to."""

        def script(visit: Visit) -> None:
            visit.send({"type": "welcome", "client_id": 1})
            while visit.receive()["type"] == "ping":
                visit.send({"type": "pong"})

        client = await self.connected(self.stranger(script))
        await client.ping()
        await self.fails(client.request("custom"), Disconnected)
        await self.until(lambda: client.connected, "it is back")
        await client.ping()

    async def test_no_welcome(self) -> None:
        """One that says nothing before it is asked is no server, to which nothing is sent."""
        stranger = self.stranger(Visit.hold)
        client: Client = self.client(stranger)
        await self.fails(client.connect(timeout=0.2), Disconnected)
        self.assertEqual(bytes(stranger.visits[0].buffer), b"")


class BlockingTests(SynchronousTestCase):
    """`tcpjson.blocking.TCPClient`."""

    def serve(self, lacks: dict[str, tuple[str, ...]] | None = None) -> tuple[Classic, Gate]:
        """A server, and what holds its answers up."""
        gate = Gate()
        server = Classic(lacks, gate)
        self.addCleanup(server.stop)
        self.addCleanup(gate.open)
        return server, gate

    def connect(self, server: Stranger, **options: Any) -> tuple[TCPClient, queue.SimpleQueue[Message]]:
        """A client, and all that it hears."""
        heard: queue.SimpleQueue[Message] = queue.SimpleQueue()
        client = TCPClient("127.0.0.1", server.port, timeout=5, **options)
        self.addCleanup(client.disconnect)
        client.set_message_callback(heard.put)
        self.assertTrue(client.connect(), client.error)
        self.assertEqual(heard.get(timeout=5)["type"], "welcome")
        return client, heard

    def test_all(self) -> None:
        """Every request has its reply, whatever the server leaves out; the callback hears all."""
        for name, lacks in POOR.items():
            server, _ = self.serve(lacks)
            _, other = self.connect(server)
            client, heard = self.connect(server)
            expected = ["pong", "echo_response", "broadcast_sent", "server_stats", "response", "response"]
            kinds = ["ping", "echo", "broadcast", "get_stats", "custom", "hello"]
            self.assertEqual([client.request(kind, content=1)["type"] for kind in kinds], expected, name)
            self.assertTrue(client.ping() and client.echo("x") and client.broadcast("y"), name)
            self.assertTrue(
                client.get_server_stats() and client.send_custom_message("custom", {"a": 1}), name
            )
            self.assertTrue(client.send_message("plain text") and client.send_message({"type": "z"}), name)
            found = [heard.get(timeout=5)["type"] for _ in range(13)]
            self.assertEqual(found, [*expected, *expected[:5], "echo", "response"], name)
            self.assertEqual([other.get(timeout=5)["type"] for _ in range(2)], ["broadcast"] * 2, name)
            self.assertIsNone(client.error, name)

    def test_threads(self) -> None:
        """Many threads ask at once: each gets its own."""
        server, _ = self.serve()
        client, _ = self.connect(server)
        wrong: list[object] = []

        def ask(number: int) -> None:
            for count in range(50):
                content = [number, count]
                reply = client.request("echo", content=content)
                if reply.get("content") != content:
                    wrong.append(reply)

        threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
            self.assertFalse(thread.is_alive())
        self.assertEqual(wrong, [])

    def test_late(self) -> None:
        """A reply that comes after its time is not the next one's."""
        server, gate = self.serve()
        client, heard = self.connect(server)
        gate.close()
        for number in range(3):
            with self.assertRaises(RequestTimeout):
                client.request("echo", content=["late", number], timeout=0.05)
        client.echo("sent without waiting")
        gate.open()
        self.assertEqual(client.request("echo", content="next")["content"], "next")
        # Pings in between find out whether replies are late, or will never come.
        echoes: list[object] = []
        while len(echoes) < 5:
            message = heard.get(timeout=5)
            if message["type"] == "echo_response":
                echoes.append(message["content"])
        self.assertEqual(echoes, [["late", 0], ["late", 1], ["late", 2], "sent without waiting", "next"])

    def test_what_is_sent(self) -> None:
        """No `hello`, no `id`; a timestamp, that some look for."""
        server, _ = self.serve()
        client, _ = self.connect(server)
        client.request("ping")
        client.request("echo", content="x" * 10_000)
        client.send_custom_message("custom", {"timestamp": "my own"})
        until(lambda: len(server.received) == 3, "all came")
        for message in server.received:
            assert isinstance(message, dict)
            self.assertNotIn("id", message)
            self.assertIn("timestamp", message)

    def test_its_own_errors(self) -> None:
        """`error`, which some send for what they do not know, is a reply, too."""

        def script(visit: Visit) -> None:
            visit.send({"type": "welcome"})
            while True:
                visit.receive()
                visit.send({"type": "error", "error": "Unknown message type"})

        stranger = Stranger(script)
        self.addCleanup(stranger.stop)
        client, _ = self.connect(stranger)
        with self.assertRaises(ProtocolError):
            client.request("custom")
        self.assertTrue(client.connected)
