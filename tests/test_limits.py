"""How many connections, messages and bytes there may be, and for how long nothing."""

from __future__ import annotations

import json
import select
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator

from tests.harness import (
    LOOPBACK,
    TIMEOUT,
    Ended,
    Message,
    Peer,
    Server,
    ServerTestCase,
    allow_files,
    encode,
    shared,
    until,
)

PING = {"type": "ping"}


class FullTestCase(ServerTestCase):
    """`--max-connections`."""

    def counted(self, witness: Peer, expected: dict[str, int]) -> None:
        """See that the statistics tell of all ends."""
        until(lambda: witness.stats()["details"]["disconnects"] == expected, f"they are {expected}")


class FullTests(FullTestCase):
    """Over TCP."""

    def turned_away(self, server: Server, first: bytes = b"") -> Message:
        """The error that a client gets which is one too many, sending or not; the end follows in order."""
        # What it sends is there before it is accepted: a socket closed with that unread sends a reset.
        server.signal(signal.SIGSTOP)
        peer = self.connect(server, greet=False)
        peer.write(first)
        server.signal(signal.SIGCONT)
        error = peer.ending()
        # The server would wait for it.
        peer.close()
        return error

    def test_one_more_than_there_may_be(self) -> None:
        """It is told so at once, and served as soon as another one has left."""
        server = self.start("--max-connections", "3")
        peers = [self.connect(server) for _ in range(3)]
        request = encode(PING)
        for first in (b"", request, request * 3000):
            start = time.monotonic()
            error = self.turned_away(server, first)
            self.assertLess(time.monotonic() - start, 1)
            self.assertEqual(error["code"], "server_full")
        self.assertEqual(peers[1].ask(PING)["type"], "pong")

        peers.pop().close()
        self.alone(peers[0], 1)
        peers.append(self.connect(server))
        self.assertEqual(peers[2].ask(PING)["type"], "pong")
        self.assertEqual(self.turned_away(server)["code"], "server_full")
        stats = peers[0].stats()
        self.assertEqual(stats["connected_clients"], 3)
        self.counted(peers[0], {"server_full": 4, "client_closed": 1})
        self.assertEqual(peers[0].stats()["details"]["errors"], {"server_full": 4})


class FullProxyTests(FullTests):
    """Behind a proxy: before the PROXY header has come."""

    proxied = True


class FullTLSTests(FullTestCase):
    """Over TLS, where a handshake would cost more than all else."""

    tls = True

    def test_no_handshake(self) -> None:
        server = self.start("--max-connections", "2")
        peers = [self.connect(server) for _ in range(2)]
        for _ in range(3):
            # Its handshake, the connection itself where the server is fast.
            self.assertRaises(OSError, self.connect, server)
        self.counted(peers[0], {"server_full": 3})
        peers.pop().close()
        self.alone(peers[0])
        self.assertEqual(self.connect(server).ask(PING)["type"], "pong")


class StormTests(ServerTestCase):
    """Many that come when there is no room."""

    count = 2000
    # At once: more than may wait for their end.
    batch = 100
    room = 101

    def batches(self, server: Server) -> Iterator[list[Peer]]:
        for _ in range(self.count // self.batch):
            yield [Peer(self.dial(server)) for _ in range(self.batch)]

    def trip(self, witness: Peer) -> float:
        """Seconds of a round trip."""
        start = time.monotonic()
        self.assertEqual(witness.ask(PING)["type"], "pong")
        return time.monotonic() - start

    def test_refused_connections_are_cheap(self) -> None:
        """
        Two thousand are served, then as many refused: these cost no more, grow nothing, and hold up nobody.
        """
        allow_files(self.room + self.batch)
        server = self.start("--max-connections", str(self.room))
        witness = self.connect(server)
        base = server.open_files()

        before = server.cpu()
        for peers in self.batches(server):
            for peer in peers:
                self.assertEqual(peer.receive()["type"], "welcome")
                peer.close()
            self.alone(witness)
        accepted = server.cpu() - before

        fillers = [self.connect(server) for _ in range(self.room - 1)]
        full = server.open_files()
        log = len(server.log)
        start = time.monotonic()
        before = server.cpu()
        trips = []
        for peers in self.batches(server):
            trips.append(self.trip(witness))
            for peer in peers:
                self.assertEqual(peer.ending()["code"], "server_full")
                peer.close()
        self.assertEqual(witness.stats()["connected_clients"], self.room)
        refused = server.cpu() - before
        self.assertLessEqual(refused, 1.3 * accepted)
        self.assertLess(statistics.median(trips), 0.3)

        until(lambda: server.open_files() == full, "no file stays open")
        self.same_reasons(server, witness, {"client_closed": self.count, "server_full": self.count})
        lines = server.refusals()
        self.assertLessEqual(len(lines), (time.monotonic() - start) / 60 + 1)
        self.assertEqual(len(server.log) - log, len(lines))
        for peer in fillers:
            peer.close()
        self.alone(witness)
        until(lambda: server.open_files() == base, "as at the start")
        self.assertEqual(self.connect(server).ask(PING)["type"], "pong")
        server.stop()
        self.assertEqual(sum(server.refusals(), Counter()), {"server_full": self.count})

    def test_refused_connections_that_stay(self) -> None:
        """
        Hundreds that do not close when they are told to, and one of them sends on: a few may wait for that,
        and not for long.
        """
        allow_files(3 * self.batch)
        server = self.start("--max-connections", "1")
        witness = self.connect(server)
        base = server.open_files()
        start = time.monotonic()
        lively = Peer(self.dial(server))
        self.assertEqual(lively.receive()["code"], "server_full")
        peers = []
        for _ in range(3):
            peers += [Peer(self.dial(server)) for _ in range(self.batch)]
            lively.send(PING)
            for peer in peers[-self.batch :]:
                self.assertEqual(peer.receive()["code"], "server_full")
            self.trip(witness)
            self.assertLess(server.open_files(), base + 50)
        while time.monotonic() < start + 1.5:
            lively.send(PING)
            witness.nothing_for(0.1)
        until(lambda: server.open_files() == base, "no file stays open")
        self.assertLess(time.monotonic() - start, 3.5)
        self.same_reasons(server, witness, {"server_full": len(peers) + 1})


class FileLimitTests(ServerTestCase):
    """As many connections as the limit of open files allows, less 64."""

    def test_the_default(self) -> None:
        """All come at once, to a server that was busy with something else; nobody is left without a word."""
        count = 600
        allow_files(count)
        server = self.start(files=256)
        server.signal(signal.SIGSTOP)
        peers = [Peer(self.dial(server)) for _ in range(count)]
        server.signal(signal.SIGCONT)
        first = [peer.receive() for peer in peers]
        served = [peer for peer, message in zip(peers, first, strict=True) if message["type"] == "welcome"]
        codes = Counter(message["code"] for message in first if message["type"] == "error")
        self.assertEqual((len(served), codes), (192, {"server_full": count - 192}))
        for peer in served:
            self.assertEqual(peer.ask(PING)["type"], "pong")
        log = "\n".join(server.log)
        self.assertNotIn("EMFILE", log)
        self.assertNotIn("accept", log)


class EachAddressTests(ServerTestCase):
    """`--max-connections-per-ip`."""

    options = ("--max-connections-per-ip", "2")

    def test_too_many(self) -> None:
        peers = [self.connect() for _ in range(2)]
        other = self.connect(source="127.0.0.2")
        for first in (b"", encode(PING)):
            peer = self.connect(greet=False)
            peer.write(first)
            self.assertEqual(peer.ending()["code"], "too_many_connections")
        self.connect(source="127.0.0.2").close()
        peers.pop().close()
        self.alone(other, 1)
        peers.append(self.connect())
        self.assertEqual(peers[1].ask(PING)["type"], "pong")
        # The refused did not give away what others hold.
        self.assertEqual(self.connect(greet=False).ending()["code"], "too_many_connections")


class EachAddressTLSTests(ServerTestCase):
    """Over TLS: no handshake for them."""

    options = EachAddressTests.options
    tls = True

    def test_too_many(self) -> None:
        peers = [self.connect() for _ in range(2)]
        self.assertRaises(OSError, self.connect)
        other = self.connect(source="127.0.0.2")
        self.assertEqual(other.ask(PING)["type"], "pong")
        peers.pop().close()
        self.alone(other, 1)
        self.connect()


def header(address: str) -> bytes:
    """A PROXY header."""
    family, other = ("TCP6", "::1") if ":" in address else ("TCP4", "127.0.0.1")
    return f"PROXY {family} {address} {other} 4242 9999\r\n".encode()


class EachAddressProxyTests(ServerTestCase):
    """Behind a proxy it is the real address that counts."""

    options = (*EachAddressTests.options, "--auth-timeout", "0.5")

    @property
    def port(self) -> str:
        return "haproxy:tcp:0:interface=127.0.0.1"

    def come(self, address: str, *, pieces: int = 1, first: bytes = b"", late: float = 0.0) -> Message:
        """Come from an address, the header in so many pieces; returns the first message."""
        peer = self.connect(greet=False)
        data = header(address) + first
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            if start or late:
                # The pieces must not come together.
                peer.nothing_for(late or 0.002)
            peer.write(data[start : start + size])
        self.last = peer
        return peer.receive()

    def test_too_many(self) -> None:
        """The header alone, in pieces, with a request behind it, or late."""
        for number in range(2):
            welcome = self.come("203.0.113.1")
            self.assertEqual((welcome["type"], welcome["client_id"]), ("welcome", "203.0.113.1:4242"), number)
        for how in ({}, {"pieces": 8}, {"first": encode(PING)}, {"late": 0.3}):
            error = self.come("203.0.113.1", **how)
            self.assertEqual((error["code"], error["fatal"]), ("too_many_connections", True), how)
            self.assertEqual(self.last.rest(), [], how)
            welcome = self.come("203.0.113.2", **how)
            self.assertEqual(welcome["type"], "welcome", how)
            self.last.close()
        # More than two from the balancer itself, and all of them idle.
        self.assertEqual(self.come("198.51.100.7")["type"], "welcome")

    def test_networks(self) -> None:
        """Of IPv6 the /64 network counts; an IPv4 address is the same one in either spelling."""
        for address in ("2001:db8::1", "2001:db8::2", "203.0.113.3", "::ffff:203.0.113.3"):
            self.assertEqual(self.come(address)["type"], "welcome", address)
        for address in ("2001:db8::3", "203.0.113.3"):
            self.assertEqual(self.come(address)["code"], "too_many_connections", address)
        self.assertEqual(self.come("2001:db8:0:1::1")["type"], "welcome")

    def test_no_header(self) -> None:
        """It counts for nobody, and is closed after `--auth-timeout`, told nothing."""
        silent = [self.connect(greet=False) for _ in range(4)]
        start = time.monotonic()
        silent[0].write(header("203.0.113.4")[:20])
        server = self.server
        log = len(server.log)
        for peer in silent:
            try:
                self.assertEqual(peer.rest(), [])
            except Ended as ended:
                self.assertTrue(ended.reset)
        self.assertGreater(time.monotonic() - start, 0.4)
        self.assertLess(time.monotonic() - start, 2)
        server.wait_for("reason=handshake_failed", 4, log)


class RateTests(ServerTestCase):
    """`--rate` with the policy to read slower."""

    def test_throttled(self) -> None:
        """All is answered, in order, and not sooner than the rate allows; others do not feel it."""
        server = self.start("--rate", "200:800")
        peer, other = self.connect(server), self.connect(server)
        self.assertEqual(peer.welcome["limits"]["messages_per_second"], 200)
        count = 1000
        start = time.monotonic()
        peer.send(*({"type": "echo", "content": n, "id": n} for n in range(count)))
        trips = []
        for _ in range(10):
            sent = time.monotonic()
            self.assertEqual(other.ask(PING)["type"], "pong")
            trips.append(time.monotonic() - sent)
            other.nothing_for(0.05)
        answers = [peer.receive() for _ in range(count)]
        taken = time.monotonic() - start
        self.assertEqual(
            [(answer["id"], answer["content"]) for answer in answers], [(n, n) for n in range(count)]
        )
        self.assertGreaterEqual(taken, 1)
        self.assertLess(taken, 3)
        self.assertLess(max(trips), 0.5)
        details = other.stats()["details"]
        self.assertGreater(details["over_rate"], 0)
        self.assertEqual(details["errors"], {})
        lines = [line for line in server.log if "more than the rate" in line]
        self.assertEqual(len(lines), 1)
        self.assertIn(peer.client_id, lines[0])

    def test_charged_once(self) -> None:
        """Requests that wait for room for their answers cost the client nothing more."""
        server = self.start("--rate", "10:3100", "--send-buffer", "8192")
        peer = self.connect(server, receive_buffer=8192)
        # Many in one read: room comes to an end in the midst of them.
        count = 3000
        requests = b"".join(encode({"type": "echo", "content": "x" * 100, "id": n}) for n in range(count))
        sent, got = 0, 0
        while got < count:
            sent += peer.write_what_fits(requests[sent:])
            for payload in peer.payloads(50):
                self.assertEqual(json.loads(payload)["id"], got)
                got += 1
        self.assertEqual(peer.stats()["details"]["over_rate"], 0)

    def test_deadlines_stand_still(self) -> None:
        """It is we who do not read: neither the frame that has begun behind nor the silence counts."""
        server = self.start("--rate", "2:1", "--frame-timeout", "0.2", "--idle-timeout", "0.4")
        peer = self.connect(server)
        start = time.monotonic()
        peer.write(encode(PING) * 3 + encode(PING)[:-1])
        for number in range(3):
            self.assertEqual(peer.receive()["type"], "pong")
            self.assertGreaterEqual(time.monotonic() - start, number / 2)
        released = time.monotonic()
        self.assertEqual(peer.ending()["code"], "frame_timeout")
        self.assertGreaterEqual(time.monotonic() - released, 0.15)
        peer.close()
        self.assertEqual(server.disconnects(peer.client_id)["reason"], "frame_timeout")


class RateTLSTests(RateTests):
    """Over TLS, where more is read than asked for."""

    tls = True


class ByteRateTests(ServerTestCase):
    """`--byte-rate`."""

    def test_throttled_by_bytes(self) -> None:
        """A frame longer than the burst passes, and the next one waits for its bytes."""
        server = self.start("--byte-rate", "100000:20000")
        peer = self.connect(server)
        self.assertEqual(peer.welcome["limits"]["bytes_per_second"], 100_000)
        requests = [encode({"type": "echo", "content": "x" * 40_000, "id": n}) for n in range(4)]
        size = len(requests[0])
        start = time.monotonic()
        peer.write(b"".join(requests))
        self.assertEqual([peer.receive()["id"] for _ in requests], [*range(4)])
        taken = time.monotonic() - start
        # When the last one was let in, the bytes of the three before it had come in but for the burst.
        self.assertGreaterEqual(taken, (3 * size - 20_000) / 100_000)
        self.assertLess(taken, 3)


class RatePolicyTests(ServerTestCase):
    """What else may become of one that sends too much."""

    def test_close(self) -> None:
        server = self.start("--rate", "10:20", "--rate-policy", "close")
        peer, other = self.connect(server), self.connect(server)
        self.assertEqual(peer.welcome["limits"]["messages_per_second"], 10)
        peer.send(*({**PING, "id": n} for n in range(60)))
        self.assertEqual([peer.receive().get("id") for _ in range(20)], [*range(20)])
        error = peer.ending()
        self.assertEqual(error["code"], "rate_limited")
        self.assertGreater(error["retry_after"], 0)
        self.assertLessEqual(error["retry_after"], 0.1)
        peer.close()
        figures = server.disconnects(peer.client_id)
        self.assertEqual((figures["reason"], figures["messages_in"]), ("rate_limited", "20"))
        self.assertEqual(other.stats()["details"]["disconnects"], {"rate_limited": 1})
        # Who comes back begins anew, and who stays within the rate stays.
        peer = self.connect(server)
        for _ in range(20):
            self.assertEqual(peer.ask(PING)["type"], "pong")

    def test_observe(self) -> None:
        server = self.start("--rate", "2", "--byte-rate", "100", "--rate-policy", "observe")
        peer = self.connect(server)
        self.assertNotIn("messages_per_second", peer.welcome["limits"])
        self.assertNotIn("bytes_per_second", peer.welcome["limits"])
        count = 1000
        start = time.monotonic()
        peer.send(*({**PING, "id": n} for n in range(count)))
        self.assertEqual([peer.receive()["id"] for _ in range(count)], [*range(count)])
        for _ in range(30):
            self.assertEqual(peer.ask(PING)["type"], "pong")
        self.assertLess(time.monotonic() - start, 5)
        details = peer.stats()["details"]
        self.assertGreater(details["over_rate"], 0)
        self.assertEqual(details["errors"], {})


class IdleTests(ServerTestCase):
    """`--idle-timeout`."""

    options = ("--idle-timeout", "1")

    def test_silence(self) -> None:
        """
        Who neither sends nor gets anything is ended, in time and not before; who gets broadcasts is not, nor
        who sends, be it a frame byte by byte.
        """
        server = self.server
        sender, writer, reader = (self.connect() for _ in range(3))
        self.assertEqual(reader.welcome["limits"]["idle_timeout"], 1)
        request = encode({"type": "echo", "content": 7})
        written = 0
        for _ in range(4):
            sender.ask({"type": "broadcast", "content": 1})
            start = time.monotonic()
            sender.nothing_for(0.3)
        self.assertEqual([reader.receive()["type"] for _ in range(4)], ["broadcast"] * 4)
        while not select.select([reader.socket], [], [], 0)[0]:
            writer.write(request[written : written + 1])
            written += 1
            sender.nothing_for(0.15)
            self.assertEqual(sender.ask(PING)["type"], "pong")
            self.assertLess(time.monotonic() - start, 2.5)
        self.ends_as("idle_timeout", reader, server, sender)
        self.assertGreaterEqual(time.monotonic() - start, 1)
        writer.write(request[written:])
        self.assertEqual([writer.receive()["type"] for _ in range(5)], ["broadcast"] * 4 + ["echo_response"])

    def test_the_default(self) -> None:
        """It is off unless it is asked for."""
        self.assertNotIn("idle_timeout", self.connect(shared()).welcome["limits"])


class CodeTests(ServerTestCase):
    """Why was I closed: one code, in the error, the log and the statistics."""

    def test_each(self) -> None:
        server = self.start(
            *("--max-connections", "4", "--max-connections-per-ip", "2", "--max-length", "100000"),
            *("--frame-timeout", "0.3", "--rate", "1000:50", "--rate-policy", "close"),
            *("--max-queue", "200000", "--send-buffer", "8192"),
            ports=[LOOPBACK, f"haproxy:{LOOPBACK}"],
        )
        witness = self.connect(server, source="127.0.0.2")

        def ends(code: str, *requests: bytes) -> None:
            peer = self.connect(server)
            peer.write(b"".join(requests))
            self.ends_as(code, peer, server, witness)

        ends("too_large", encode(PING), b"\1\0\0\0")
        ends("frame_timeout", encode(PING), b"\0\0\0\1")
        ends("rate_limited", encode(PING) * 51)

        peer = self.connect(server, receive_buffer=8192)
        while witness.ask({"type": "broadcast", "content": "x" * 90_000})["recipients"]:
            witness.nothing_for(0.01)
        self.ends_as("slow_consumer", peer, server, witness)

        peer = self.connect(server)
        peer.close()
        self.assertEqual(server.disconnects(peer.client_id)["reason"], "client_closed")
        peer = self.connect(server)
        peer.reset()
        self.assertEqual(server.disconnects(peer.client_id)["reason"], "connection_lost")
        with socket.create_connection(server.tcp_address(1), TIMEOUT) as headless:
            headless.sendall(b"PROXY ")
        server.wait_for("reason=handshake_failed")

        for source in ("127.0.0.1", "127.0.0.3"):
            while (peer := self.connect(server, source=source, greet=False)).receive()["type"] == "welcome":
                pass
            self.assertEqual(peer.rest(), [])
            peer.close()

        refused = ("too_large", "frame_timeout", "rate_limited", "slow_consumer")
        turned_away = ("too_many_connections", "server_full")
        others = ("client_closed", "connection_lost", "handshake_failed")
        self.same_reasons(server, witness, dict.fromkeys((*refused, *turned_away, *others), 1))
        errors = witness.stats()["details"]["errors"]
        self.assertEqual(errors, dict.fromkeys((*refused, *turned_away), 1))
