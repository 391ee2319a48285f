"""A client written from sections 1 to 3 of docs/protocol.rst alone, as there are many in the field."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from typing import Any

from tcpjson.vectors import strict_json
from tests.harness import TIMEOUT, ServerTestCase, certificates


class ClassicClient:
    """Sockets and JSON, and a thread that receives; nothing of the package."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.thread = threading.Thread(target=self.receive_all, daemon=True)
        self.thread.start()

    def receive_exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                piece = self.connection.recv(size - len(data))
            except OSError:
                return None
            if not piece:
                return None
            data += piece
        return data

    def receive_all(self) -> None:
        while True:
            length = self.receive_exactly(4)
            if length is None:
                break
            payload = self.receive_exactly(int.from_bytes(length, "big"))
            if payload is None:
                break
            self.received.put(json.loads(payload.decode("utf-8")))
        self.received.put(None)

    def send_payload(self, payload: bytes) -> None:
        self.connection.sendall(len(payload).to_bytes(4, "big") + payload)

    def send(self, message: dict[str, Any]) -> None:
        self.send_payload(json.dumps(message).encode("utf-8"))

    def next(self) -> dict[str, Any]:
        message = self.received.get(timeout=TIMEOUT)
        if message is None:
            raise EOFError("the server closed the connection")
        return message

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.thread.join(TIMEOUT)
        self.connection.close()


class ClassicTests(ServerTestCase):
    """Over TCP."""

    def classic(self) -> tuple[ClassicClient, dict[str, Any]]:
        """A connected client and its `welcome`."""
        connection = self.dial(self.server)
        if self.tls:
            connection = certificates().client.wrap_socket(connection, server_hostname="127.0.0.1")
        client = ClassicClient(connection)
        self.addCleanup(client.close)
        welcome = client.next()
        self.assertEqual(welcome["type"], "welcome")
        return client, welcome

    def test_welcome(self) -> None:
        client, welcome = self.classic()
        host, port = client.connection.getsockname()
        self.assertEqual(welcome["client_id"], f"{host}:{port}")
        self.assertEqual(welcome["protocol"], 1)
        self.assertRegex(welcome["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertTrue(welcome["message"])

    def test_ping(self) -> None:
        client, welcome = self.classic()
        client.send({"type": "ping", "timestamp": "2024-01-01T00:00:00", "client_info": {"name": "probe"}})
        pong = client.next()
        self.assertEqual(
            (pong["type"], pong["ping_timestamp"], pong["client_id"]),
            ("pong", "2024-01-01T00:00:00", welcome["client_id"]),
        )
        self.assertIn("pong_timestamp", pong)

    def test_echo(self) -> None:
        client, _ = self.classic()
        content = {"text": "grüße", "numbers": [1, 2.5, -3], "nothing": None, "yes": True}
        client.send({"type": "echo", "content": content, "timestamp": "now"})
        answer = client.next()
        self.assertEqual(
            (answer["type"], answer["content"], answer["echoed_by"]), ("echo_response", content, "TCP Server")
        )

    def test_broadcast(self) -> None:
        """The other one gets it, the sender is told to how many it went and gets no copy."""
        first, welcome = self.classic()
        second, _ = self.classic()
        first.send({"type": "broadcast", "content": "to all", "timestamp": "now"})
        sent = first.next()
        self.assertEqual(sent["type"], "broadcast_sent")
        self.assertGreaterEqual(sent["recipients"], 1)
        got = second.next()
        self.assertEqual(
            (got["type"], got["from_client"], got["content"]),
            ("broadcast", welcome["client_id"], "to all"),
        )
        first.send({"type": "ping"})
        self.assertEqual(first.next()["type"], "pong")

    def test_statistics(self) -> None:
        client, _ = self.classic()
        client.send({"type": "get_stats"})
        stats = client.next()
        self.assertEqual(stats["type"], "server_stats")
        self.assertGreaterEqual(stats["connected_clients"], 1)
        self.assertGreaterEqual(stats["total_messages"], 1)
        self.assertIs(type(stats["uptime_seconds"]), int)
        self.assertIn("server_start_time", stats)
        self.assertIn("current_time", stats)
        self.assertIsInstance(stats["details"], dict)

    def test_a_type_of_ones_own(self) -> None:
        client, _ = self.classic()
        message = {"type": "move", "x": 1, "y": [2, {"z": 3}], "timestamp": "now"}
        client.send(message)
        answer = client.next()
        self.assertEqual(
            (answer["type"], answer["original_message"], answer["from_server"]), ("response", message, True)
        )

    def test_plain_text(self) -> None:
        client, _ = self.classic()
        client.send_payload("grüße".encode())
        answer = client.next()
        self.assertEqual(
            (answer["type"], answer["original_text"], answer["from_server"]), ("echo", "grüße", True)
        )


class ClassicTLSTests(ClassicTests):
    """Over TLS."""

    tls = True


class LargeFrameTests(ServerTestCase):
    """Frames that are longer than those of the usual `max_length`."""

    options = ("--max-length", "33554432")

    def test_16_mebibytes_come_back(self) -> None:
        """With an incompressible mix of characters, so that no piece of it can stand for another."""
        peer = self.connect()
        self.assertEqual(peer.welcome["max_length"], 33554432)
        content = "".join(f"{number * 2654435761 % 4294967296:08x}" for number in range(2 * 1024 * 1024))
        # It does not fit the sockets' buffers, but the server takes all of it before it answers.
        payload = b'{"type":"echo","content":"%s","id":7}' % content.encode()
        peer.write(len(payload).to_bytes(4, "big") + payload)
        answer = strict_json(peer.payload())
        assert isinstance(answer, dict)
        self.assertEqual(len(answer["content"]), len(content))
        self.assertTrue(answer["content"] == content, "the content came back changed")
        self.assertEqual(answer["id"], 7)
