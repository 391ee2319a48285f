"""The other kinds of endpoints: behind a proxy, Unix sockets, IPv6."""

from __future__ import annotations

import socket
import struct

from tests.harness import TIMEOUT, Peer, Server, ServerTestCase, certificates, encode, folder

PROXIED = "haproxy:tcp:0:interface=127.0.0.1"

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 9999\r\n"


def v2(family: int, addresses: bytes, command: int = 1) -> bytes:
    """A PROXY header of version 2."""
    return SIGNATURE + struct.pack(">BBH", 0x20 | command, family, len(addresses)) + addresses


V2 = v2(0x11, bytes([203, 0, 113, 8, 192, 0, 2, 1]) + struct.pack(">HH", 56325, 9999))

V2_IPV6 = v2(
    0x21,
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack(">HH", 56326, 9999),
)

HEADERS = {
    V1: "203.0.113.7:56324",
    b"PROXY TCP6 2001:db8:0::7 2001:db8::1 56324 9999\r\n": "[2001:db8::7]:56324",
    V2: "203.0.113.8:56325",
    V2_IPV6: "[2001:db8::7]:56326",
}

PING = encode({"type": "ping", "id": 1})


class ProxyTests(ServerTestCase):
    """`haproxy:` endpoints, whose connections begin with a PROXY header."""

    @property
    def port(self) -> str:
        return PROXIED

    def fresh(self) -> Peer:
        """A connection from the balancer, without its header."""
        return self.connect(greet=False)

    def welcomed(self, peer: Peer) -> str:
        """The `client_id` of the `welcome` that comes now."""
        welcome = peer.receive()
        self.assertEqual(welcome["type"], "welcome")
        return str(welcome["client_id"])

    def witness(self) -> Peer:
        """A client whose round trips show that the server has read what others sent before."""
        peer = self.fresh()
        peer.write(b"PROXY TCP4 203.0.113.99 192.0.2.1 1024 9999\r\n")
        self.welcomed(peer)
        return peer

    def test_the_header_alone(self) -> None:
        """`welcome` comes right after it, with the real address; the client need not send anything."""
        server = self.start()
        for header, client_id in HEADERS.items():
            peer = self.connect(server, greet=False)
            peer.write(header)
            self.assertEqual(self.welcomed(peer), client_id)
            self.assertEqual(peer.ask({"type": "ping"})["client_id"], client_id)
            peer.close()
            figures = server.disconnects(client_id)
            self.assertEqual((figures["reason"], figures["messages_in"]), ("client_closed", "1"))

    def test_together_with_requests(self) -> None:
        for header, client_id in HEADERS.items():
            peer = self.fresh()
            peer.write(header + PING + PING)
            self.assertEqual(self.welcomed(peer), client_id)
            self.assertEqual([peer.receive()["type"] for _ in range(2)], ["pong", "pong"])

    def test_in_pieces(self) -> None:
        """A byte at a time, the first request behind it likewise."""
        witness = self.witness()
        for header, client_id in HEADERS.items():
            peer = self.fresh()
            for byte in header + PING:
                peer.write(bytes([byte]))
                witness.ask({"type": "ping"})
            self.assertEqual(self.welcomed(peer), client_id)
            self.assertEqual(peer.receive()["type"], "pong")

    def test_in_two_pieces(self) -> None:
        """Cut anywhere; what follows the header stays whole."""
        witness = self.witness()
        for header, client_id in HEADERS.items():
            data = header + PING
            for cut in range(1, len(data)):
                peer = self.fresh()
                peer.write(data[:cut])
                witness.ask({"type": "ping"})
                peer.write(data[cut:])
                self.assertEqual(self.welcomed(peer), client_id)
                self.assertEqual(peer.receive()["type"], "pong")
                peer.close()

    def test_no_address(self) -> None:
        """A balancer's own connection, as for its health checks, has its own address."""
        for header in (
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN ::1 ::1 5 6\r\n",
            v2(0x00, b"", 0),
            v2(0x00, b""),
        ):
            peer = self.fresh()
            peer.write(header)
            host, number = peer.socket.getsockname()
            self.assertEqual(self.welcomed(peer), f"{host}:{number}")
            self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")

    def test_more_in_the_header(self) -> None:
        """Version 2 lets a balancer add what it likes behind the addresses."""
        peer = self.fresh()
        addresses = bytes([203, 0, 113, 9, 192, 0, 2, 1]) + struct.pack(">HH", 56327, 9999)
        peer.write(v2(0x11, addresses + b"\x04\0\x03abc") + PING)
        self.assertEqual(self.welcomed(peer), "203.0.113.9:56327")
        self.assertEqual(peer.receive()["type"], "pong")

    def test_what_is_no_header(self) -> None:
        server = self.start()
        peer = self.connect(server, greet=False)
        host, number = peer.socket.getsockname()
        peer.write(b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual([*peer.until_end()], [])
        figures = server.disconnects(f"{host}:{number}")
        self.assertEqual((figures["reason"], figures["why"]), ("handshake_failed", "no_proxy_header"))

    def test_no_welcome_before_the_header(self) -> None:
        """Silence is dropped after `--auth-timeout`, and was no client meanwhile."""
        server = self.start("--auth-timeout", "1")
        silent, half = self.connect(server, greet=False), self.connect(server, greet=False)
        half.write(V1[:20])
        other = self.connect(server, greet=False)
        other.write(V1)
        self.welcomed(other)
        self.assertEqual(other.stats()["connected_clients"], 1)
        for peer in (silent, half):
            self.assertEqual([*peer.until_end()], [])
        self.assertEqual(other.stats()["details"]["disconnects"], {"handshake_failed": 2})

    def test_bad_headers(self) -> None:
        """They are closed, without `welcome`."""
        bad = [
            PING,
            b"PROXY TCP4 203.0.113.7\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 x y\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 70000 9999\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 9999\r\n",
            b"PROXY TCP4 203.0.113.777 192.0.2.1 5 9999\r\n",
            b"PROXY TCP4 2001:db8::7 2001:db8::1 5 9999\r\n",
            b"PROXY TCP4 203.0.113.7\nforged 192.0.2.1 5 9999\r\n",
            b"PROXY TCP4 \xff\xfe 192.0.2.1 5 9999\r\n",
            b"PROXY UDP4 203.0.113.7 192.0.2.1 5 9999\r\n",
            b"PROXY " + b"x" * 200,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            SIGNATURE + b"\x31\x11\0\x0c" + bytes(12),
            SIGNATURE + b"\x2f\x11\0\x0c" + bytes(12),
            v2(0x11, b"short"),
            b"\0" * 20,
        ]
        for data in bad:
            peer = self.fresh()
            peer.write(data)
            self.assertEqual([*peer.until_end()], [], data)
        self.witness()
        self.assertNotIn("forged", "\n".join(self.server.log))


class ProxyTLSTests(ServerTestCase):
    """`haproxy:ssl:`: as balancers send it, the header stands in the clear, before the handshake."""

    options = ("--auth-timeout", "1")

    @property
    def port(self) -> str:
        return f"haproxy:{certificates().port}"

    def test_the_header_before_the_handshake(self) -> None:
        for header, client_id in HEADERS.items():
            raw = self.dial(self.server)
            raw.sendall(header)
            connection = certificates().client.wrap_socket(raw, server_hostname="127.0.0.1")
            self.addCleanup(connection.close)
            peer = Peer(connection)
            self.assertEqual(peer.receive()["client_id"], client_id)
            self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")

    def test_a_header_and_no_handshake(self) -> None:
        """No `welcome` without a handshake; the line in the log tells the real address."""
        raw = self.dial(self.server)
        raw.sendall(V1)
        self.assertEqual([*Peer(raw).until_end()], [])
        self.assertEqual(self.figures("203.0.113.7:56324")["reason"], "handshake_failed")


class UnixTests(ServerTestCase):
    """`unix:` endpoints."""

    def dial_unix(self, server: Server) -> Peer:
        """A connected client."""
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.settimeout(TIMEOUT)
        connection.connect(server.addresses[0])
        peer = Peer(connection)
        peer.welcome = peer.receive()
        return peer

    def test_all_of_it(self) -> None:
        """Clients are told apart by a number, and are served as any."""
        path = folder() / "served.sock"
        server = self.start(ports=[f"unix:{path}:mode=600"])
        self.assertEqual(server.addresses, [str(path)])
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        first, second = self.dial_unix(server), self.dial_unix(server)
        for peer in (first, second):
            self.assertRegex(peer.client_id, r"^unix:\d+$")
        self.assertNotEqual(first.client_id, second.client_id)
        self.assertEqual(first.ask({"type": "broadcast", "content": "x"})["recipients"], 1)
        self.assertEqual(second.receive()["from_client"], first.client_id)
        self.assertEqual(len(first.ask({"type": "echo", "content": "x" * 500_000})["content"]), 500_000)
        first.write(b"\xff\xff\xff\xff" + b"x" * 500_000)
        self.assertEqual([message["code"] for message in first.rest()], ["too_large"])
        first.close()
        self.assertEqual(server.disconnects(first.client_id)["reason"], "too_large")
        second.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(second.rest(), [])
        self.assertEqual(server.disconnects(second.client_id)["reason"], "client_closed")
        server.stop()
        self.assertFalse(path.exists(), "the socket is left behind")

    def test_a_socket_that_was_left_behind(self) -> None:
        """A server that was killed leaves its socket; the next one takes it over."""
        path = folder() / "left.sock"
        killed = self.start(ports=[f"unix:{path}"])
        killed.process.kill()
        killed.wait()
        self.assertTrue(path.exists())
        server = self.start(ports=[f"unix:{path}"])
        self.assertEqual(self.dial_unix(server).ask({"type": "ping"})["type"], "pong")

    def test_stuck(self) -> None:
        """A client that does not read is cut, as over TCP."""
        server = self.start("--max-queue", "65536", ports=[f"unix:{folder() / 'stuck.sock'}"])
        stuck, sender = self.dial_unix(server), self.dial_unix(server)
        for _ in range(2000):
            sender.ask({"type": "broadcast", "content": "x" * 1000})
            if sender.stats()["details"]["errors"]:
                break
        *broadcasts, error = stuck.rest()
        self.assertGreater(len(broadcasts), 10)
        self.assertEqual((error["code"], error["fatal"]), ("slow_consumer", True))


class IPv6Tests(ServerTestCase):
    """`tcp6:` endpoints."""

    def test_client_id(self) -> None:
        try:
            with socket.create_server(("::1", 0), family=socket.AF_INET6):
                pass
        except OSError:
            self.skipTest("there is no IPv6 here")
        server = self.start(ports=[r"tcp6:0:interface=\:\:1"])
        self.assertRegex(server.addresses[0], r"^\[::1\]:\d+$")
        peer = self.connect(server)
        number = peer.socket.getsockname()[1]
        self.assertEqual(peer.client_id, f"[::1]:{number}")
        self.assertEqual(peer.ask({"type": "ping"})["client_id"], f"[::1]:{number}")
        peer.close()
        self.assertEqual(server.disconnects(f"[::1]:{number}")["reason"], "client_closed")
