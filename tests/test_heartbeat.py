"""`hello`, heartbeats, and how dead connections are found."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time

from tests.harness import Peer, Server, ServerTestCase, encode, shared

HELLO = {"type": "hello", "client": "test/1", "heartbeat": True}

PIDFD_GETFD = 438

# Seconds in which a ping is to be answered.
ANSWER_TIME = 10


class HelloTests(ServerTestCase):
    """What a client can say of itself."""

    def test_hello(self) -> None:
        """Once, first but for pings; what is unknown in it does no harm."""
        peer = self.connect()
        self.assertEqual(peer.welcome["heartbeat"], 25)
        self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")
        answer = peer.ask({**HELLO, "id": 7, "compression": ["none"], "features": ["x"], "other": 1})
        self.assertEqual(
            {name: answer[name] for name in ("type", "id", "heartbeat", "compression", "features")},
            {"type": "hello_response", "id": 7, "heartbeat": True, "compression": None, "features": []},
        )
        self.assertEqual(peer.ask({**HELLO, "id": 8})["code"], "bad_message")
        self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")

    def test_late(self) -> None:
        peer = self.connect()
        peer.ask({"type": "echo"})
        error = peer.ask({**HELLO, "id": 7})
        self.assertEqual((error["code"], error["id"], error["fatal"]), ("bad_message", 7, False))
        self.assertEqual(peer.ask({"type": "pong", "id": 1})["type"], "response")

    def test_wrong_fields(self) -> None:
        """They are told where."""
        peer = self.connect()
        error = peer.ask({"type": "hello", "heartbeat": "yes"})
        self.assertEqual(error["code"], "bad_message")
        self.assertIn("$.heartbeat", error["message"])

    def test_no_heartbeats(self) -> None:
        """`--heartbeat 0`."""
        peer = self.connect(shared("--heartbeat", "0"))
        self.assertIsNone(peer.welcome["heartbeat"])
        self.assertEqual(peer.ask(HELLO)["heartbeat"], False)
        # A type like any other then.
        self.assertEqual(peer.ask({"type": "pong"})["type"], "response")


class HeartbeatTests(ServerTestCase):
    """`--heartbeat`."""

    options = ("--heartbeat", "1")

    def greeted(self) -> Peer:
        """A client that answers pings."""
        peer = self.connect()
        self.assertEqual(peer.welcome["heartbeat"], 1)
        self.assertTrue(peer.ask(HELLO)["heartbeat"])
        return peer

    def test_pings(self) -> None:
        """After a second of silence, and to those alone that asked for them."""
        start = time.monotonic()
        peer, busy = self.greeted(), self.greeted()
        others = [self.connect(), self.connect()]
        others[1].ask({**HELLO, "heartbeat": False})
        while not select.select([peer.socket], [], [], 0.2)[0]:
            self.assertEqual(busy.ask({"type": "echo"})["type"], "echo_response")
        self.assertGreaterEqual(time.monotonic() - start, 0.9)
        self.assertLess(time.monotonic() - start, 2)
        ping = peer.receive()
        self.assertEqual(ping["type"], "ping")
        self.assertRegex(ping["timestamp"], r"^\d{4}-.*Z$")
        for other in (busy, *others):
            other.nothing_for(0.05)
        # To a pong there is no reply.
        peer.send({"type": "pong", "ping_timestamp": ping["timestamp"]}, {"type": "echo"})
        self.assertEqual(peer.receive()["type"], "echo_response")

    def test_dead(self) -> None:
        """
        Who does not answer, be it that it is asleep, is ended ten seconds after the ping, and is told why.
        Who answers is pinged again and again; late answers, and bytes of a frame, are signs of life, too.
        """
        alive, dead, late, writer = (self.greeted() for _ in range(4))
        for peer in (alive, dead, late, writer):
            self.assertEqual(peer.receive()["type"], "ping")
        start = time.monotonic()
        request = encode({"type": "echo", "content": "x" * 20})
        written = 0
        while time.monotonic() - start < ANSWER_TIME - 1.5:
            before = time.monotonic()
            alive.send({"type": "pong"})
            writer.write(request[written : written + 1])
            written += 1
            self.assertEqual(alive.receive()["type"], "ping")
            # What was sent is noticed a little late.
            self.assertGreaterEqual(time.monotonic() - before, 0.9)
            self.assertLess(time.monotonic() - before, 2)
            self.assertEqual(select.select([dead.socket], [], [], 0)[0], [])
        for peer in (alive, late):
            peer.send({"type": "pong"})
        writer.write(request[written : written + 1])
        witness = self.connect()
        self.ends_as("heartbeat_timeout", dead, self.server, witness)
        self.assertGreaterEqual(time.monotonic() - start, ANSWER_TIME - 0.1)
        self.assertLess(time.monotonic() - start, ANSWER_TIME + 1.5)
        for peer in (alive, late):
            peer.send({"type": "echo"})
        writer.write(request[written + 1 :])
        for peer in (alive, late, writer):
            while (message := peer.receive())["type"] == "ping":
                pass
            self.assertEqual(message["type"], "echo_response")


class KeepaliveTests(ServerTestCase):
    """What the system does for those that ask for no pings."""

    def server_side(self, server: Server, peer: Peer) -> socket.socket:
        """The server's socket of a connection, as one of ours."""
        try:
            process = os.pidfd_open(server.process.pid)
        except (AttributeError, OSError):
            self.skipTest("needs pidfd_open")
        self.addCleanup(os.close, process)
        for name in os.listdir(f"/proc/{server.process.pid}/fd"):
            try:
                if not os.readlink(f"/proc/{server.process.pid}/fd/{name}").startswith("socket:"):
                    continue
            except FileNotFoundError:
                continue
            number = ctypes.CDLL(None).syscall(PIDFD_GETFD, process, int(name), 0)
            if number < 0:
                self.skipTest("the system does not let us look at a child's sockets")
            theirs = socket.socket(fileno=number)
            self.addCleanup(theirs.close)
            try:
                if theirs.getpeername() == peer.socket.getsockname():
                    return theirs
            except OSError:
                pass
        raise AssertionError("the server has no such socket")

    def test_options(self) -> None:
        """It asks after a minute, and gives up what is not acknowledged later than `--write-timeout` does."""
        server = self.start("--write-timeout", "7.5")
        theirs = self.server_side(server, self.connect(server))
        self.assertEqual(theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        self.assertEqual(theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 60)
        # It is the next option that says how often it asks.
        self.assertLessEqual(theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 30)
        timeout = theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        self.assertGreater(timeout, 7500)
        self.assertLess(timeout, 60_000)


class KeepaliveTLSTests(KeepaliveTests):
    """Over TLS, where the socket is two layers below."""

    tls = True


class KeepaliveProxyTests(KeepaliveTests):
    """Behind a proxy."""

    proxied = True
