"""How connections end: errors that must arrive, deadlines of frames, half-closed connections."""

from __future__ import annotations

import socket
import time

from tests.harness import CUT, TIMEOUT, Ended, Peer, ServerTestCase, encode, until

MEBIBYTE = 1024 * 1024

TOO_LARGE = (MEBIBYTE + 1).to_bytes(4, "big")


class TooLargeTests(ServerTestCase):
    """Over TCP: a length beyond `max_length`, and what the peer goes on to send."""

    times = 300

    def test_the_error_arrives(self) -> None:
        """
        Again and again, with more behind the length than the sockets hold: the error is there, and the end.

        A server that closes its socket with unread bytes resets the connection: the client's writing fails,
        and it may lose the error.
        """
        more = b"x" * (8 * MEBIBYTE)
        server = self.server
        for number in range(self.times):
            peer = self.connect(server, greet=False)
            peer.write(encode({"type": "ping", "id": number}) + TOO_LARGE + more)
            welcome, pong, error = peer.rest()
            self.assertEqual(welcome["type"], "welcome")
            self.assertEqual((pong["type"], pong["id"]), ("pong", number))
            self.assertEqual((error["code"], error["fatal"]), ("too_large", True))
            peer.close()

    def test_never_ending(self) -> None:
        """Whatever the peer goes on to send and leaves unread: 2 seconds, no memory, and it is over."""
        server = self.start()
        peer = self.connect(server)
        other = self.connect(server)
        before = peak = server.resident()
        more = b"x" * (MEBIBYTE // 4)
        peer.write(TOO_LARGE)
        sent = 0
        until(lambda: other.stats()["details"]["errors"].get("too_large"), "the error is sent")
        start = time.monotonic()
        try:
            while time.monotonic() - start < 20:
                peer.write(more)
                sent += len(more)
                peak = max(peak, server.resident())
        except CUT:
            pass
        # Two, and what a busy machine adds.
        self.assertLess(time.monotonic() - start, 8)
        self.assertGreater(sent, 4 * MEBIBYTE)
        self.assertLess(peak - before, 4 * MEBIBYTE)
        figures = server.disconnects(peer.client_id)
        self.assertEqual(figures["reason"], "too_large")
        self.assertLess(float(figures["seconds"]), 8)

    def test_only_the_length(self) -> None:
        """The four bytes are enough; nothing is handled behind them."""
        peer = self.connect()
        peer.write(TOO_LARGE + encode({"type": "broadcast", "content": "not to be handled"}))
        [error] = peer.rest()
        self.assertEqual((error["code"], error["fatal"]), ("too_large", True))
        peer.close()
        self.assertEqual(self.figures(peer.client_id)["messages_in"], "0")


class TooLargeProxyTests(TooLargeTests):
    """Behind a proxy, where bytes pass another layer."""

    proxied = True


class TooLargeTLSTests(TooLargeTests):
    """Over TLS."""

    tls = True
    times = 60


class FrameTimeoutTests(ServerTestCase):
    """Frames that take their time, where `--frame-timeout` is a second."""

    options = ("--frame-timeout", "1")

    def expect_timeout(self, peer: Peer, since: float) -> None:
        """The error, in time, and the end."""
        [error] = peer.rest()
        self.assertEqual((error["code"], error["fatal"]), ("frame_timeout", True))
        self.assertGreaterEqual(time.monotonic() - since, 0.95)
        self.assertLess(time.monotonic() - since, 10)
        peer.close()
        self.assertEqual(self.figures(peer.client_id)["reason"], "frame_timeout")

    def trickle(self, peer: Peer, data: bytes, pause: float) -> bool:
        """Send a byte after each pause that no answer ends; whether all were sent."""
        for position in range(len(data)):
            peer.write(data[position : position + 1])
            peer.socket.settimeout(pause)
            try:
                if not peer.fill() or peer.buffer:
                    return False
            except TimeoutError:
                pass
            finally:
                peer.socket.settimeout(TIMEOUT)
        return True

    def test_half_a_length(self) -> None:
        peer = self.connect()
        start = time.monotonic()
        peer.write(b"\0\0\0")
        self.expect_timeout(peer, start)

    def test_a_payload_that_stops(self) -> None:
        """What was answered before it stays answered."""
        peer = self.connect()
        start = time.monotonic()
        peer.write(encode({"type": "ping"}) + b"\0\0\0\x0fhalf of")
        self.assertEqual(peer.receive()["type"], "pong")
        self.expect_timeout(peer, start)

    def test_a_byte_at_a_time(self) -> None:
        """Signs of life do not help: the frame must be complete."""
        peer = self.connect()
        start = time.monotonic()
        self.assertFalse(self.trickle(peer, encode("x" * 200), 0.05))
        self.expect_timeout(peer, start)

    def test_a_slow_frame_that_is_in_time(self) -> None:
        """Half of the time for one frame; then a pause between frames, which no deadline bounds."""
        peer = self.connect()
        data = encode("x")
        self.assertTrue(self.trickle(peer, data[:-1], 0.07))
        peer.write(data[-1:])
        self.assertEqual(peer.receive()["original_text"], "x")
        peer.nothing_for(1.5)
        self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")

    def test_many_frames_that_overlap(self) -> None:
        """Each frame has its own time: bytes of the next behind each one, for longer than one may take."""
        peer = self.connect()
        data = encode({"type": "ping"})
        peer.write(data[:2])
        for _ in range(4):
            peer.nothing_for(0.4)
            peer.write(data[2:] + data[:2])
            self.assertEqual(peer.receive()["type"], "pong")
        peer.write(data[2:])
        self.assertEqual(peer.receive()["type"], "pong")

    def test_a_long_frame_has_longer(self) -> None:
        """A second more for each 16 KiB announced."""
        peer = self.connect()
        data = encode("x" * 32768)
        peer.write(data[:-1])
        peer.nothing_for(1.6)
        peer.write(data[-1:])
        self.assertEqual(len(peer.receive()["original_text"]), 32768)


class HalfCloseTests(ServerTestCase):
    """Clients that send, close their sending side, and read what they get."""

    def test_all_answers_and_the_end(self) -> None:
        peer = self.connect()
        peer.send(*({"type": "echo", "content": n} for n in range(500)))
        peer.socket.shutdown(socket.SHUT_WR)
        self.assertEqual([answer["content"] for answer in peer.rest()], [*range(500)])
        figures = self.figures(peer.client_id)
        self.assertEqual((figures["reason"], figures["messages_in"]), ("client_closed", "500"))

    def test_more_answers_than_the_buffers_hold(self) -> None:
        """Requests that wait for room when the end comes are answered, too."""
        server = self.start("--send-buffer", "8192")
        peer = self.connect(server, receive_buffer=8192)
        count = 2000
        requests = b"".join(encode({"type": "echo", "content": [n, "x" * 500]}) for n in range(count))
        # The server stops to read long before the end.
        sent = peer.write_what_fits(requests)
        got: list[int] = []
        while sent < len(requests):
            got.append(peer.receive()["content"][0])
            sent += peer.write_what_fits(requests[sent:])
        peer.socket.shutdown(socket.SHUT_WR)
        got += [answer["content"][0] for answer in peer.rest()]
        self.assertEqual(got, [*range(count)])
        self.assertEqual(server.disconnects(peer.client_id)["reason"], "client_closed")

    def test_answers_that_wait_for_long(self) -> None:
        """It is no fatal error: who reads its answers seconds later finds them all."""
        server = self.start("--send-buffer", "8192")
        peer = self.connect(server, receive_buffer=8192)
        other = self.connect(server)
        count = 50
        peer.send(*({"type": "echo", "content": [n, "x" * 1000]} for n in range(count)))
        peer.socket.shutdown(socket.SHUT_WR)
        self.alone(other)
        # Longer than a connection lasts that ends by an error.
        other.nothing_for(2.5)
        self.assertEqual([answer["content"][0] for answer in peer.rest()], [*range(count)])
        self.assertEqual(server.disconnects(peer.client_id)["reason"], "client_closed")

    def test_no_broadcasts_after_it(self) -> None:
        """Who sends no more counts as a client no more."""
        peer = self.connect()
        other = self.connect()
        peer.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(peer.rest(), [])
        self.alone(other)
        self.assertEqual(other.ask({"type": "broadcast", "content": 1})["recipients"], 0)

    def test_half_a_frame_at_the_end(self) -> None:
        """What is cut is dropped; what stood before it is answered."""
        peer = self.connect()
        peer.write(encode({"type": "ping"}) + b"\0\0\0\x20half")
        peer.socket.shutdown(socket.SHUT_WR)
        self.assertEqual([answer["type"] for answer in peer.rest()], ["pong"])


class ReasonTests(ServerTestCase):
    """What the log says of ends that no error announces."""

    def ends_with(self, how: str) -> str:
        peer = self.connect()
        getattr(peer, how)()
        return self.figures(peer.client_id)["reason"]

    def test_closed_in_order(self) -> None:
        self.assertEqual(self.ends_with("close"), "client_closed")

    def test_closed_by_force(self) -> None:
        self.assertEqual(self.ends_with("reset"), "connection_lost")

    def test_a_reset_hurts_nobody_else(self) -> None:
        """Fifty that vanish in the middle of broadcasts to them; the sender's answers all come."""
        server = self.start()
        peers = [self.connect(server) for _ in range(50)]
        sender = self.connect(server)
        for number, peer in enumerate(peers):
            sender.send({"type": "broadcast", "content": "x" * 1000, "id": number})
            peer.reset()
        for number in range(len(peers)):
            try:
                answer = sender.receive()
            except Ended as ended:
                self.fail(f"the sender was cut: {ended}")
            self.assertEqual((answer["type"], answer["id"]), ("broadcast_sent", number))
        self.alone(sender)
