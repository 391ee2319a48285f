"""Compression between a real server and its clients (docs/protocol.rst, section 7)."""

from __future__ import annotations

import json
import random
import threading
import zlib

from tests.harness import COMPRESSED, TIMEOUT, Peer, Server, ServerTestCase, folder, frame
from tests.identities import dial_unix, new_path, token, tokens, write

HELLO = {"type": "hello", "compression": ["zlib"]}
PING = {"type": "ping"}
MIB = 1 << 20
LONG = "the same again, " * 500

# What a process of Python takes and gives back by itself while it serves a few dozen clients.
SLACK = 3 * MIB


def packed(*messages: object) -> bytes:
    """Messages in compressed frames."""
    return b"".join(frame(zlib.compress(json.dumps(message).encode()), True) for message in messages)


def bomb(size: int) -> bytes:
    """A frame of so many bytes when inflated, a thousandth on the wire."""
    stream = zlib.compressobj(9)
    data = b"".join(stream.compress(bytes(min(MIB, size - done))) for done in range(0, size, MIB))
    return frame(data + stream.flush(), True)


def noise(size: int) -> str:
    """Text that is half as long when it is compressed."""
    return random.Random(size).randbytes(size // 2).hex()


class CompressionTestCase(ServerTestCase):
    """Clients that compress."""

    def compressing(self, server: Server | None = None) -> Peer:
        """A client that has agreed on compression."""
        peer = self.connect(server)
        self.assertEqual(peer.welcome["compression"], ["zlib"])
        self.assertEqual(peer.ask(HELLO)["compression"], "zlib")
        self.assertTrue(peer.compresses)
        return peer


class CompressionTests(CompressionTestCase):
    """Over TCP."""

    def test_answers(self) -> None:
        """Long ones come compressed, short ones do not, and none to a client that did not ask."""
        peer, plain = self.compressing(), self.connect()
        for content, compressed in (("x", 0), (LONG, 1), ([LONG, 0.5], 1), (noise(200_000), 1)):
            before = peer.inflated
            peer.write(packed({"type": "echo", "content": content}))
            self.assertEqual(peer.receive()["content"], content)
            self.assertEqual(peer.inflated - before, compressed)
            self.assertEqual(plain.ask({"type": "echo", "content": content})["content"], content)
        self.assertEqual(plain.inflated, 0)

    def test_broadcasts(self) -> None:
        """Numbered, from senders of either kind, to readers of either kind: none is lost, all in order."""
        readers = [self.compressing() for _ in range(4)] + [self.connect() for _ in range(4)]
        senders = [self.compressing(), self.connect()]
        self.alone(senders[1], len(readers) + 1)
        expected = []
        for number in range(60):
            sender = senders[number % 2]
            content = [number, LONG if number % 3 else "short"]
            expected.append(content)
            if number % 4:
                sender.send({"type": "broadcast", "content": content})
            else:
                sender.write(packed({"type": "broadcast", "content": content}))
            # The other sender is one of those that get it.
            self.assertEqual(sender.receive()["recipients"], len(readers) + 1)
            self.assertEqual(senders[not number % 2].receive()["content"], content)
        for reader in readers:
            self.assertEqual([reader.receive()["content"] for _ in expected], expected)
            self.assertEqual(reader.inflated, 40 if reader.compresses else 0)

    def test_bytes_on_the_wire(self) -> None:
        """The log tells how many left; they are the fewer."""
        sizes = []
        for peer in (self.connect(), self.compressing()):
            for _ in range(20):
                peer.ask({"type": "echo", "content": LONG})
            peer.close()
            sizes.append(int(self.figures(peer.client_id)["bytes_out"]))
        self.assertGreater(sizes[0], 160_000)
        self.assertLess(sizes[1], sizes[0] // 10)

    def test_broken_streams(self) -> None:
        """The answers that were made come, then the error, then the end, in order; whatever is still sent."""
        good = zlib.compress(json.dumps(PING).encode())
        for bad in (good[:-1], good + b"x", good * 2, b"", zlib.compress(b""), b'{"type":"ping"}'):
            peer = self.compressing()
            peer.write(
                packed(PING, {"type": "echo", "content": LONG}) + frame(bad, True) + packed(PING) * 500
            )
            self.assertEqual([peer.receive()["type"] for _ in range(2)], ["pong", "echo_response"])
            error = peer.ending()
            self.assertEqual(error["code"], "bad_frame")
            peer.close()
            self.assertEqual(self.figures(peer.client_id)["reason"], "bad_frame")

    def test_too_long(self) -> None:
        """On the wire, and inflated; one of just the length passes."""
        peer = self.compressing()
        limit = peer.welcome["max_length"]
        ping = json.dumps({**PING, "client_info": ""}).encode()
        for more in (0, 1):
            payload = ping.replace(b'""', b'"%s"' % (b"x" * (limit - len(ping) + more)))
            self.assertEqual(len(payload), limit + more)
            peer.write(frame(zlib.compress(payload), True))
            if not more:
                self.assertEqual(peer.receive()["type"], "pong")
        self.assertEqual(peer.ending()["code"], "too_large")
        peer = self.compressing()
        peer.write((COMPRESSED + limit + 1).to_bytes(4, "big") + bytes(100_000))
        self.assertEqual(peer.ending()["code"], "too_large")

    def test_without_an_agreement(self) -> None:
        for hello in (None, {"type": "hello"}, {"type": "hello", "compression": ["br"]}):
            peer = self.connect()
            if hello is not None:
                self.assertIsNone(peer.ask(hello)["compression"])
            peer.write(packed(PING))
            self.assertEqual(peer.ending()["code"], "too_large")


class CompressionTLSTests(CompressionTests):
    """Over TLS."""

    tls = True


class CompressionProxyTests(CompressionTests):
    """Behind a proxy."""

    proxied = True


class UnixTests(ServerTestCase):
    """Over a Unix socket."""

    def test_all_of_it(self) -> None:
        server = self.start(ports=[f"unix:{folder() / 'packed.sock'}:mode=600"])
        peer = dial_unix(server)
        self.addCleanup(peer.close)
        self.assertEqual(peer.ask(HELLO)["compression"], "zlib")
        peer.write(packed({"type": "echo", "content": LONG}))
        self.assertEqual((peer.receive()["content"], peer.inflated), (LONG, 1))
        peer.write(bomb(64 * MIB))
        self.assertEqual(peer.ending()["code"], "too_large")


class BombTests(CompressionTestCase):
    """A thousand to one; how much memory it takes to refuse them."""

    def grown(self, server: Server, before: int) -> int:
        """By how much more memory the server took at most since `before`, in bytes."""
        return server.peak() - before

    def begin(self, server: Server) -> int:
        """What the server takes once it has done all that it is to do, except for what is too long."""
        peer = self.compressing(server)
        for content in ("x", LONG, noise(100_000)):
            peer.write(packed({"type": "echo", "content": content}))
            peer.receive()
        peer.close()
        server.reset_peak()
        return server.resident()

    def test_one(self) -> None:
        """No more than max_length, and none of it is kept."""
        for limit in (MIB, 32 * MIB):
            server = self.start("--max-length", str(limit), "--max-queue", str(2 * limit))
            before = self.begin(server)
            for size in (limit + 1, 250 * MIB):
                peer = self.compressing(server)
                peer.write(packed(PING) + bomb(size) + packed(PING))
                self.assertEqual(peer.receive()["type"], "pong")
                self.assertEqual(peer.ending()["code"], "too_large")
                peer.close()
            self.assertLess(self.grown(server, before), limit + SLACK)

    def test_fifty_at_once(self) -> None:
        """They take their turns, and the memory of one."""
        limit = 8 * MIB
        server = self.start("--max-length", str(limit))
        peers = [self.compressing(server) for _ in range(50)]
        before = self.begin(server)
        data = bomb(250 * MIB)
        codes: list[str] = []

        def attack(peer: Peer) -> None:
            peer.write(data)
            # On a busy machine it may be late to close its side, and be reset.
            codes.append([*peer.until_end()][-1]["code"])
            peer.close()

        threads = [threading.Thread(target=attack, args=(peer,)) for peer in peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        self.assertEqual(codes, ["too_large"] * 50)
        # What 50 peers have sent waits, too: the compressed frame is a quarter of a megabyte.
        self.assertLess(self.grown(server, before), limit + 50 * len(data) + SLACK)

    def test_witnesses(self) -> None:
        """Healthy clients, compressing and not, lose nothing meanwhile, and wait not for long."""
        server = self.start()
        readers = [self.compressing(server) for _ in range(5)] + [self.connect(server) for _ in range(5)]
        sender = self.compressing(server)
        data = bomb(250 * MIB)
        expected: list[object] = []
        for number in range(30):
            peer = self.compressing(server)
            self.alone(sender, len(readers) + 1)
            peer.write(data)
            expected.append([number, LONG])
            sender.write(packed({"type": "broadcast", "content": expected[-1]}))
            self.assertIn(sender.receive()["recipients"], (len(readers), len(readers) + 1))
            # It may have been told of the broadcast before its end came.
            self.assertEqual([*peer.until_end()][-1]["code"], "too_large")
            peer.close()
        for reader in readers:
            self.assertEqual([reader.receive()["content"] for _ in expected], expected)


class BombTLSTests(BombTests):
    """Over TLS."""

    tls = True


class OptionTests(ServerTestCase):
    """`--compress-over`."""

    def test_off(self) -> None:
        server = self.start("--compress-over", "0")
        peer = self.connect(server)
        self.assertEqual(peer.welcome["compression"], [])
        self.assertIsNone(peer.ask(HELLO)["compression"])
        self.assertEqual(peer.ask({"type": "echo", "content": LONG})["content"], LONG)
        peer.write(packed(PING))
        self.assertEqual(peer.ending()["code"], "too_large")

    def test_another_bound(self) -> None:
        """All that is longer, and shorter by it."""
        for over, inflated in (("200", 1), ("100000", 0)):
            peer = self.connect(self.start("--compress-over", over))
            peer.ask(HELLO)
            peer.ask({"type": "echo", "content": "x" * 300})
            self.assertEqual(peer.inflated, inflated)


class GuestTests(ServerTestCase):
    """Before authentication."""

    def test_four_kibibytes(self) -> None:
        """Inflated or not."""
        path = write(new_path(".tokens"), tokens({"open sesame": "ann"}))
        server = self.start("--auth", f"token:{path}", "--allow-plain-auth")
        before = 0
        for size, code in ((4096, "pong"), (4097, "too_large"), (50 * MIB // 16, "too_large")):
            peer = self.connect(server)
            self.assertEqual(peer.ask(HELLO)["compression"], "zlib")
            if not before:
                server.reset_peak()
                before = server.resident()
            ping = json.dumps({**PING, "client_info": ""}).encode()
            peer.write(frame(zlib.compress(ping.replace(b'""', b'"%s"' % (b"x" * (size - len(ping))))), True))
            answer = peer.receive() if code == "pong" else peer.ending()
            self.assertEqual(answer.get("code", answer["type"]), code)
        self.assertLess(server.peak() - before, MIB)

    def test_it_holds_after_it(self) -> None:
        path = write(new_path(".tokens"), tokens({"open sesame": "ann"}))
        peer = self.connect(self.start("--auth", f"token:{path}", "--allow-plain-auth"))
        self.assertEqual(peer.ask(HELLO)["compression"], "zlib")
        self.assertEqual(token(peer, "open sesame")["status"], "authenticated")
        peer.write(packed({"type": "echo", "content": LONG}))
        self.assertEqual((peer.receive()["content"], peer.inflated), (LONG, 1))
