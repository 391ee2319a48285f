"""One client of the generator that sends requests and has the replies checked."""

from __future__ import annotations

import ssl
from typing import Any

from tcpjson.bench.links import Link
from tcpjson.bench.polling import IN, OUT
from tcpjson.bench.replies import Checker, Replies

_NOTHING = memoryview(b"")
_WANTS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Client:
    """
    Sends the requests of a pool in turn.

    Args:
        link: its connection, ready.
        checker: knows the requests, and what the replies look like.
        first: the index of the request that it begins with.
        polled: what waits for its socket.
    """

    __slots__ = (
        "_index",
        "_polled",
        "_pool",
        "_receive",
        "_send",
        "_unsent",
        "fd",
        "link",
        "replies",
    )

    def __init__(self, link: Link, checker: Checker, first: int, polled: Any) -> None:
        self.link = link
        self.fd = link.fd
        self._pool = checker.pool
        self._index = first % self._pool.count
        self._polled = polled
        self._send = link.sock.send
        self._receive = link.sock.recv_into
        self._unsent = _NOTHING
        self.replies = Replies(checker, self._index)
        self.replies.left = link.came
        polled.register(self.fd, IN)

    def ask(self, count: int) -> None:
        """
        Send so many requests more, as many at once as the checker was made for at most. What the system does
        not take is kept, and sent by `flush`.

        Raises:
            OSError: the connection is lost.
        """
        pool = self._pool
        piece = pool.piece(self._index, count)
        self._index = (self._index + count) % pool.count
        self.replies.outstanding += count
        if self._unsent:
            self._unsent = memoryview(self._unsent.tobytes() + piece.tobytes())
            return
        try:
            sent = self._send(piece)
        except _WANTS:
            sent = 0
        if sent != len(piece):
            self._unsent = piece[sent:]
            self._polled.modify(self.fd, IN | OUT)

    def flush(self) -> None:
        """
        Go on sending what was kept.

        Raises:
            OSError: the connection is lost.
        """
        if not self._unsent:
            return
        try:
            self._unsent = self._unsent[self._send(self._unsent) :]
        except _WANTS:
            return
        if not self._unsent:
            self._polled.modify(self.fd, IN)

    def receive(self, data: bytearray) -> tuple[int, int]:
        """
        Read once, and have it checked.

        Args:
            data: a buffer; what is in it means nothing before, nor afterwards.

        Returns:
            How many requests were answered, and how many bytes came.

        Raises:
            OSError: the connection is lost.
            ValueError: what came are no frames, or the server ends the connection.
        """
        replies = self.replies
        left = len(replies.left)
        try:
            if left:
                if len(data) < 2 * left:
                    data.extend(bytes(len(data)))
                data[:left] = replies.left
                with memoryview(data) as view, view[left:] as room:
                    count = self._receive(room)
            else:
                count = self._receive(data)
        except _WANTS:
            return 0, 0
        if not count:
            raise ConnectionError("the server closed the connection")
        return replies.feed(data, left + count), count
