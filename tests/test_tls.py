"""TLS: what is on the wire, who never finishes a handshake, how connections end."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import warnings

from tests.harness import TIMEOUT, Peer, ServerTestCase, certificates, until


class Tap:
    """Passes the bytes of one connection on, both ways, and keeps them."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(TIMEOUT)
        self.address = self._listening.getsockname()
        self.sent = bytearray()
        self.received = bytearray()
        self._server = socket.create_connection(address, TIMEOUT)
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client, _ = self._listening.accept()
        self._client = client
        back = threading.Thread(target=self._pass, args=(self._server, client, self.received), daemon=True)
        back.start()
        self._pass(client, self._server, self.sent)
        back.join(TIMEOUT)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        source.settimeout(TIMEOUT)
        try:
            while data := source.recv(65536):
                kept += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """End it, and wait until all that was under way is kept."""
        self._thread.join(TIMEOUT)
        for end in (self._listening, self._server, self._client):
            if end is not None:
                end.close()


class WireTests(ServerTestCase):
    """What goes over the network."""

    tls = True

    def records(self, stream: bytes) -> list[int]:
        """The types of the TLS records that a stream consists of, and of nothing else."""
        kinds = []
        position = 0
        while position < len(stream):
            kind, major, minor = stream[position], stream[position + 1], stream[position + 2]
            size = int.from_bytes(stream[position + 3 : position + 5], "big")
            self.assertIn(
                kind, (20, 21, 22, 23), f"no record at {position}: {stream[position : position + 60]!r}"
            )
            self.assertEqual(major, 3)
            self.assertIn(minor, (1, 3))
            self.assertLessEqual(size, 16384 + 256)
            kinds.append(kind)
            position += 5 + size
        self.assertEqual(position, len(stream), "the last record is cut")
        return kinds

    def converse(self, context: ssl.SSLContext) -> None:
        """All that a client may do, through a tap; then no plain text was on the wire."""
        server = self.server
        tap = Tap(server.address)
        self.addCleanup(tap.close)
        raw = socket.create_connection(tap.address, TIMEOUT)
        self.addCleanup(raw.close)
        peer = Peer(context.wrap_socket(raw, server_hostname="127.0.0.1"))
        peer.welcome = peer.receive()
        other = self.connect()
        for size in (1, 1000, 100_000, 1_000_000):
            self.assertEqual(
                peer.ask({"type": "echo", "content": "secret" * (size // 6)})["type"], "echo_response"
            )
            other.ask({"type": "broadcast", "content": "secret" * (size // 6)})
            self.assertEqual(peer.receive()["type"], "broadcast")
        peer.send(*({"type": "ping", "id": number} for number in range(3000)))
        for number in range(3000):
            self.assertEqual(peer.receive()["id"], number)
        self.assertEqual(peer.stats()["type"], "server_stats")
        peer.write(b"\xff\xff\xff\xff" + b"secret" * 1000)
        self.assertEqual([message["code"] for message in peer.rest()], ["too_large"])
        peer.close()
        tap.close()
        for stream in (bytes(tap.sent), bytes(tap.received)):
            self.assertIn(23, self.records(stream))
            for text in (b"welcome", b"timestamp", b"secret", b"type", b"too_large", b"pong"):
                self.assertNotIn(text, stream)
        self.assertGreater(len(tap.received), 2_000_000)

    def test_no_plain_text_in_tls_1_3(self) -> None:
        context = certificates().context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.converse(context)

    def test_no_plain_text_in_tls_1_2(self) -> None:
        context = certificates().context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.converse(context)

    def test_no_older_version(self) -> None:
        """The server refuses TLS 1.1, which the client would take."""
        context = certificates().context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        raw = self.dial(self.server)
        error = self.assertRaises(ssl.SSLError, context.wrap_socket, raw, server_hostname="127.0.0.1")
        # An alert of the server's, not our own refusal.
        self.assertIn("ALERT", str(error.reason))


class HandshakeTests(ServerTestCase):
    """Peers that do not get as far as `welcome`."""

    tls = True
    options = ("--auth-timeout", "1")

    def test_a_silent_peer(self) -> None:
        """It gets no byte, and is dropped after `--auth-timeout`; it never counted as a client."""
        other = self.connect()
        start = time.monotonic()
        silent = self.dial(self.server)
        connections = other.stats()["details"]["connections"]
        self.assertGreaterEqual(connections, 2)
        self.assertEqual(other.stats()["connected_clients"], 1)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(silent.recv(100), b"")
        self.assertGreaterEqual(time.monotonic() - start, 0.95)
        self.assertLess(time.monotonic() - start, 4)
        host, port = silent.getsockname()
        figures = self.figures(f"{host}:{port}")
        self.assertEqual((figures["reason"], figures["why"]), ("handshake_failed", "not_done_in_time"))
        # Whoever has done with the handshake has all the time there is.
        self.assertEqual(other.stats()["connected_clients"], 1)

    def test_half_a_handshake(self) -> None:
        """A ClientHello alone, and then nothing: the certificate, no `welcome`, and the end."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        handshake = certificates().client.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        self.assertRaises(ssl.SSLWantReadError, handshake.do_handshake)
        raw = self.dial(self.server)
        raw.sendall(outgoing.read())
        host, port = raw.getsockname()
        try:
            while data := raw.recv(65536):
                self.assertNotIn(b"welcome", data)
        except ConnectionResetError:
            pass
        figures = self.figures(f"{host}:{port}")
        self.assertEqual(figures["reason"], "handshake_failed")
        self.assertIn("why", figures)

    def test_plain_text_to_a_tls_port(self) -> None:
        """A classic client that forgot TLS gets no `welcome`, and the end at once."""
        raw = self.dial(self.server)
        raw.sendall(b'\0\0\0\x0f{"type":"ping"}')
        host, port = raw.getsockname()
        received = b""
        try:
            while data := raw.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        # An alert at most.
        self.assertIn(received[:1], (b"", b"\x15"))
        self.assertLess(len(received), 20)
        figures = self.figures(f"{host}:{port}")
        self.assertEqual(figures["reason"], "handshake_failed")
        self.assertIn("why", figures)

    def test_a_client_that_distrusts_the_server(self) -> None:
        raw = self.dial(self.server)
        host, port = raw.getsockname()
        stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        stranger.maximum_version = ssl.TLSVersion.TLSv1_2
        self.assertRaises(
            ssl.SSLCertVerificationError, stranger.wrap_socket, raw, server_hostname="127.0.0.1"
        )
        raw.close()
        self.assertEqual(self.figures(f"{host}:{port}")["reason"], "handshake_failed")


class ClosingTests(ServerTestCase):
    """How TLS connections end."""

    tls = True

    def close_notify(self, peer: Peer) -> None:
        """Say that we are done, without waiting for the server."""
        assert isinstance(peer.socket, ssl.SSLSocket)
        peer.socket.settimeout(TIMEOUT)
        raw = peer.socket.unwrap()
        raw.close()

    def test_closed_in_order(self) -> None:
        peer = self.connect()
        self.close_notify(peer)
        self.assertEqual(self.figures(peer.client_id)["reason"], "client_closed")

    def test_closed_without_close_notify(self) -> None:
        """Anybody on the way could have cut it: it is not an end in order."""
        peer = self.connect()
        peer.close()
        self.assertEqual(self.figures(peer.client_id)["reason"], "connection_lost")

    def test_the_end_of_a_fatal_error_is_in_order(self) -> None:
        """After the error comes close_notify, so that the client knows that nothing was cut."""
        raw = self.dial(self.server)
        connection = certificates().client.wrap_socket(
            raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False
        )
        self.addCleanup(connection.close)
        peer = Peer(connection)
        peer.write(b"\x7f\0\0\0")
        self.assertEqual([message["type"] for message in peer.rest()], ["welcome", "error"])

    def test_memory_of_many_that_left(self) -> None:
        """Connections that end without close_notify leave nothing behind for ever."""
        server = self.start()
        for _ in range(50):
            self.connect(server).close()
        before = server.resident()
        for _ in range(300):
            self.connect(server).close()
        until(lambda: self.connect(server).stats()["connected_clients"] <= 2, "all left")
        # 40 KiB each would be 12 MiB.
        self.assertLess(server.resident() - before, 6 * 1024 * 1024)
