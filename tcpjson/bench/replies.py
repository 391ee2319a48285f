"""What comes back on one connection, compared with what had to come."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from tcpjson.bench.pool import Pool
from tcpjson.bench.shape import Shape
from tcpjson.bench.wire import take

# What a server sends that answers nothing.
_ASIDE = frozenset(("welcome", "ping", "broadcast", "going_away"))
# Characters of a wrong reply that are shown.
_SHOWN = 120


class ServerSaid(ValueError):
    """The server ended the connection with an error; the text has its code and words."""


class Checker:
    """
    What the replies to the requests of a pool look like, known from the first right one on all connections.

    Args:
        pool: the requests.
        run: how many are unanswered at once on a connection, at most.
    """

    def __init__(self, pool: Pool, run: int) -> None:
        self.pool = pool
        self._run = run
        self._learned = False
        #: None: not known, or the replies have none.
        self.shape: Shape | None = None

    def learn(self, reply: bytes, index: int) -> None:
        """Take in the frame of a right reply, and which request it answers."""
        if not self._learned:
            self._learned = True
            with suppress(ValueError):
                self.shape = Shape(self.pool, self._run, reply, index)


class Replies:
    """
    Checks the replies to the requests of a pool, sent in turn.

    Args:
        checker: knows what they look like.
        first: the index of the one that is sent first.
    """

    __slots__ = ("_ahead", "_checker", "_next", "_pool", "first_wrong", "left", "outstanding", "wrong")

    def __init__(self, checker: Checker, first: int) -> None:
        self._checker = checker
        self._pool = checker.pool
        self._next = first
        #: Those of later requests that came before the next one's.
        self._ahead: set[int] = set()
        #: Requests that were sent and not answered; whoever sends them counts them here.
        self.outstanding = 0
        #: Bytes at the end that are no whole frame yet, and come before what is received next.
        self.left: bytes | bytearray = b""
        #: Replies that were not right, and what the first of them was.
        self.wrong = 0
        self.first_wrong = ""

    def feed(self, data: bytearray, end: int) -> int:
        """
        Compare what came: `left` and what was received behind it.

        Args:
            data: a buffer that begins with them.
            end: how many bytes they are.

        Returns:
            How many requests were answered.

        Raises:
            ServerSaid: the server ended the connection.
            ValueError: what came are no frames.
        """
        shape = self._checker.shape
        if shape is not None and not self._ahead:
            length = shape.length
            count = end // length
            if count and count <= self.outstanding and shape.same(data, count, self._next):
                self._next = (self._next + count) % self._pool.count
                self.outstanding -= count
                used = count * length
                if used == end:
                    self.left = b""
                    return count
                return count + self._read(data, used, end)
        return self._read(data, 0, end)

    def _read(self, data: bytearray, at: int, end: int) -> int:
        """One after the other, with care."""
        before = self.outstanding
        # The frame is whole, or the rest stays for later.
        while end - at >= 4 and end - at - 4 >= int.from_bytes(data[at : at + 4], "big"):
            found = take(data, at)
            assert found is not None
            payload, after = found
            self._look_at(payload, data[at:after])
            at = after
        if end - at >= 4:
            take(data[at : at + 4], 0)
        self.left = data[at:end]
        return before - self.outstanding

    def _look_at(self, payload: bytes, whole: bytearray) -> None:
        try:
            message = msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._note(payload)
            self._answered(self._next)
            return
        kind = message.get("type")
        if kind == "error" and message.get("fatal") is True:
            raise ServerSaid(f"the server said {message.get('code')}: {message.get('message')}")
        if isinstance(kind, str) and kind in _ASIDE:
            return
        index = self._pool.index(message.get("id"))
        asked = index is not None and self._asked(index)
        if (
            index is None
            or not asked
            or kind != "echo_response"
            or message.get("content") != self._pool.contents[index].decode()
        ):
            self._note(payload)
            # One without a known id can only be meant for the oldest request; one that nobody asked for
            # answers none.
            if index is None:
                self._answered(self._next)
            elif asked:
                self._answered(index)
            return
        self._checker.learn(bytes(whole), index)
        self._answered(index)

    def _asked(self, index: int) -> bool:
        """Whether this request was sent, and is not answered."""
        behind = (index - self._next) % self._pool.count
        return behind < self.outstanding + len(self._ahead) and index not in self._ahead

    def _answered(self, index: int) -> None:
        if not self.outstanding:
            return
        self.outstanding -= 1
        self._ahead.add(index)
        while self._next in self._ahead:
            self._ahead.discard(self._next)
            self._next = (self._next + 1) % self._pool.count

    def _note(self, payload: bytes) -> None:
        self.wrong += 1
        if not self.first_wrong:
            self.first_wrong = payload[:_SHOWN].decode("ascii", "backslashreplace")
