"""Floods and garbage."""

from __future__ import annotations

import random
import socket
import statistics
import threading
import time

from tcpjson.vectors import load, strict_json
from tests.harness import CUT, Ended, Peer, ServerTestCase, encode, frame

SEED = 20240101


class FloodTests(ServerTestCase):
    """A peer that sends as fast as it can."""

    def flood(self, peer: Peer, stop: threading.Event) -> None:
        """Send frames of one byte, and read the answers, until told to stop."""
        # More than what a turn handles, in one write.
        block = frame(b"x") * 12_000
        buffer = bytearray(1 << 20)

        def drain() -> None:
            try:
                while peer.socket.recv_into(buffer):
                    pass
            except OSError:
                pass

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        try:
            while not stop.is_set():
                peer.socket.sendall(block)
        except OSError:
            pass
        peer.socket.shutdown(socket.SHUT_RDWR)
        reader.join()

    def test_tiny_frames_do_not_starve_others(self) -> None:
        """Between a request and its answer a flooder gets a few turns, not all that it has sent."""
        server = self.start()
        calm, flooder = self.connect(server), self.connect(server)
        idle = self.round_trips(calm, 200)
        before = calm.stats()["total_messages"]
        stop = threading.Event()
        thread = threading.Thread(target=self.flood, args=(flooder, stop), daemon=True)
        thread.start()
        try:
            busy = self.round_trips(calm, 0, 1.0)
        finally:
            stop.set()
            thread.join(30)
        after = calm.stats()["total_messages"]
        handled = after - before - len(busy)
        # It was a flood.
        self.assertGreater(handled, 20_000)
        # A turn of 512 frames takes about a millisecond, 12,000 at once would take 20. The threads of this
        # process disturb each other, hence the generous bounds.
        self.assertGreater(len(busy), 20)
        self.assertLess(statistics.median(busy), statistics.median(idle) * 50 + 0.03)
        self.assertLess(handled / len(busy), 8_000)

    def round_trips(self, peer: Peer, count: int, seconds: float = 0.0) -> list[float]:
        """Seconds of each round trip; as many as asked for, or as fit in the time."""
        end = time.monotonic() + seconds
        taken: list[float] = []
        while len(taken) < count or time.monotonic() < end:
            start = time.monotonic()
            self.assertEqual(peer.ask({"type": "ping", "id": len(taken)})["id"], len(taken))
            taken.append(time.monotonic() - start)
        return taken


class GarbageTests(ServerTestCase):
    """Bytes that nobody meant: an answer, an error or a clean close, and the server lives on."""

    options = ("--max-length", "65536")

    def payloads(self, chance: random.Random, count: int) -> list[bytes]:
        """Random payloads, and those of the vectors with bytes changed, lost, doubled or swapped."""
        seeds = [piece[4:] for vector in load() for piece in vector.pieces(65536) if 4 < len(piece) < 2000]
        found = []
        for _ in range(count):
            data = bytearray(chance.choice(seeds))
            for _ in range(chance.randrange(1, 5)):
                at = chance.randrange(len(data) + 1)
                to = min(len(data), at + chance.randrange(1, 9))
                kind = chance.randrange(5)
                if kind == 0:
                    data[at:to] = chance.randbytes(to - at)
                elif kind == 1:
                    del data[at:to]
                elif kind == 2:
                    data[at:at] = data[at:to] * chance.randrange(1, 4)
                elif kind == 3:
                    data[at:at] = chance.choice(
                        [b'"', b"{", b"[", b"\\", b"\\ud800", b"1e999", b",", b"\x00", b"\xff"]
                    )
                else:
                    other = chance.choice(seeds)
                    data[at:to] = other[: chance.randrange(1, 40)]
            found.append(bytes(data) or b"\n")
        return found

    def answer(self, peer: Peer, payload: bytes) -> None:
        """A payload gets one answer, which is strict JSON and an object."""
        peer.write(frame(payload))
        self.check(peer.payload(), payload)

    def check(self, answer: bytes, request: bytes) -> None:
        try:
            message = strict_json(answer)
        except ValueError as error:
            self.fail(f"{request!r} was answered by {answer!r}: {error}")
        self.assertIsInstance(message, dict, request)

    def test_each_byte(self) -> None:
        """All frames of one byte."""
        peer = self.connect()
        for number in range(256):
            self.answer(peer, bytes([number]))
        self.assertEqual(peer.ask({"type": "ping", "id": "end"})["id"], "end")

    def test_changed_messages(self) -> None:
        """2,000 frames with changed payloads: one answer each, and nothing bad is relayed."""
        peer, other = self.connect(), self.connect()
        self.alone(other, 1)
        for payload in self.payloads(random.Random(SEED), 2000):
            self.answer(peer, payload)
        self.assertEqual(peer.ask({"type": "ping", "id": "end"})["id"], "end")
        other.send({"type": "ping", "id": "end"})
        while (message := other.receive()).get("id") != "end":
            self.assertEqual(message["type"], "broadcast")

    def test_random_bytes(self) -> None:
        """2,000 connections that send bytes without any frame in mind, or frames whose lengths are wrong."""
        chance = random.Random(SEED + 1)
        payloads = self.payloads(chance, 1000)
        streams = [chance.randbytes(chance.randrange(1, 300)) for _ in range(500)]
        streams += [b"\0\0" + chance.randbytes(chance.randrange(1, 300)) for _ in range(500)]
        for payload in payloads:
            data = bytearray(encode({"type": "ping"}) + frame(payload) + encode({"type": "ping"}))
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            streams.append(bytes(data))
        for stream in streams:
            self.answer_all(stream)
        self.assertEqual(self.connect().ask({"type": "ping", "id": "end"})["id"], "end")

    def answer_all(self, stream: bytes) -> None:
        """Send a stream and its end; what comes until the end is frames of strict JSON."""
        peer = self.connect(greet=False)
        try:
            peer.write(stream)
            peer.socket.shutdown(socket.SHUT_WR)
        except CUT:
            pass
        answers = 0
        while True:
            try:
                self.check(peer.payload(), stream)
                answers += 1
            except Ended as ended:
                self.assertFalse(ended.reset, f"{stream!r}: {ended}")
                break
        self.assertEqual(peer.buffer, b"", stream)
        self.assertGreaterEqual(answers, 1)
        peer.close()
