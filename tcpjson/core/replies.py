"""Who waits for which reply (docs/protocol.rst, sections 2 and 3)."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from heapq import heappop, heappush
from typing import Any, Final, Generic, TypeVar

Waiter = TypeVar("Waiter")

# Keys count down from here, so that as an `id` they are never a user's own. The ones before belong to the
# handshake.
_FIRST_KEY = -3

# What a classic server replies to a request, by its type; to all other types, `response`.
_REPLIES = {
    "ping": "pong",
    "echo": "echo_response",
    "broadcast": "broadcast_sent",
    "get_stats": "server_stats",
}
_OTHER_REPLY = "response"


class Late(Enum):
    """What stands for those who do not wait any more."""

    LATE = "late"


LATE: Final = Late.LATE


class Replies(Generic[Waiter]):
    """
    The requests of one connection that wait for their replies.

    Args:
        classic: the server knows no `id` (sections 1 to 3 alone): it answers in order, and a reply is for the
            oldest request of its kind.
    """

    def __init__(self, classic: bool = False) -> None:
        self.classic = classic
        #: The key of the next request.
        self.next_key = _FIRST_KEY
        # By key, the oldest first.
        self._waiting: dict[int, Waiter] = {}
        # Of a classic server: the keys by the type of the reply that is to come, and all in order.
        self._expected: dict[str, OrderedDict[int, None]] = {}
        self._order: OrderedDict[int, str] = OrderedDict()
        # Those for whom nobody ever waited; and with them those who wait no more, negated, the oldest on top:
        # they keep their places, or a reply would be taken for the next one's.
        self._unclaimed: set[int] = set()
        self._forgotten: list[int] = []

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, waiter: Waiter, kind: str) -> int:
        """
        Somebody waits for the reply to a request of the type `kind`. Returns the key to `forget` it by, which
        is also the `id` to send, unless the server is classic.
        """
        key = self.next_key
        self.next_key = key - 1
        self._waiting[key] = waiter
        if self.classic:
            self._expect(key, kind)
        return key

    def note(self, kind: str) -> None:
        """A message was sent without waiting: a classic server's reply to it is nobody else's."""
        if self.classic:
            key = self.next_key
            self.next_key = key - 1
            self._unclaimed.add(key)
            heappush(self._forgotten, -key)
            self._expect(key, kind)

    def _expect(self, key: int, kind: str) -> None:
        reply = _REPLIES.get(kind, _OTHER_REPLY)
        self._order[key] = reply
        self._expected.setdefault(reply, OrderedDict())[key] = None

    def take(self, message: dict[str, Any]) -> Waiter | Late | None:
        """Who waits for a message: None if it is no reply, `LATE` if nobody waits for it any more."""
        if self.classic:
            return self._take_in_order(message)
        key = message.get("id")
        return self._waiting.pop(key, LATE) if type(key) is int and key < 0 else None

    def _take_in_order(self, message: dict[str, Any]) -> Waiter | Late | None:
        kind = message.get("type")
        if kind == "error":
            # Whatever was asked first.
            kind = next(iter(self._order.values()), None)
        expected = self._expected.get(kind) if isinstance(kind, str) else None
        if not expected:
            return None
        key = next(iter(expected))
        self._unexpect(key)
        # It answers in order: what it has not answered before, it never will.
        while self._forgotten and -self._forgotten[0] > key:
            passed_over = -heappop(self._forgotten)
            self._unexpect(passed_over)
            self._unclaimed.discard(passed_over)
        if key in self._unclaimed:
            self._unclaimed.remove(key)
            return None
        return self._waiting.pop(key, LATE)

    def _unexpect(self, key: int) -> None:
        reply = self._order.pop(key, None)
        if reply is not None:
            del self._expected[reply][key]

    def forget(self, key: int) -> None:
        """Who has this key waits no more."""
        if self._waiting.pop(key, None) is not None and self.classic:
            heappush(self._forgotten, -key)

    def clear(self) -> list[Waiter]:
        """The connection is gone: all who wait, the oldest first. Nothing is kept."""
        waiting = list(self._waiting.values())
        for kept in (self._waiting, self._expected, self._order, self._unclaimed, self._forgotten):
            kept.clear()
        return waiting
