"""The order of answers when some take time (docs/protocol.rst, section 2)."""

from __future__ import annotations

from collections import deque

# What a place costs beside its answer, in bytes: answers that are none must not pile up without a bound.
PLACE = 64


class Slot:
    """The place of one answer that is not there yet."""

    __slots__ = ("answer", "ordered", "settled", "weight")

    def __init__(self, ordered: bool) -> None:
        #: Bytes of the message that it answers, for who counts them.
        self.weight = 0
        self.ordered = ordered
        self.settled = False
        self.answer = b""


class AnswerOrder:
    """
    Answers to requests without `id` leave in the order of the requests; those with `id` leave when
    they are there.
    """

    __slots__ = ("_ordered", "held", "unsettled")

    def __init__(self) -> None:
        self._ordered: deque[Slot] = deque()
        #: Bytes of answers that are there and wait for an earlier one, with their places.
        self.held = 0
        #: The places of answers that are not there yet.
        self.unsettled: set[Slot] = set()

    def reserve(self, ordered: bool) -> Slot:
        """A place for an answer to come; `ordered` for a request without `id`."""
        slot = Slot(ordered)
        self.unsettled.add(slot)
        if ordered:
            self._ordered.append(slot)
        return slot

    def queue(self, answer: bytes) -> bool:
        """Put the answer to a request without `id` behind those that are to come; False: none is."""
        if not self._ordered:
            return False
        slot = Slot(ordered=True)
        self._ordered.append(slot)
        self._fill(slot, answer)
        return True

    def _fill(self, slot: Slot, answer: bytes) -> None:
        slot.settled = True
        slot.answer = answer
        self.held += PLACE + len(answer)

    def settle(self, slot: Slot, answer: bytes) -> list[bytes]:
        """The answer (empty: there is none) of a reserved place has come. Returns what may leave now."""
        self.unsettled.discard(slot)
        if not slot.ordered:
            return [answer] if answer else []
        self._fill(slot, answer)
        leaving = []
        ordered = self._ordered
        while ordered and ordered[0].settled:
            first = ordered.popleft().answer
            self.held -= PLACE + len(first)
            if first:
                leaving.append(first)
        return leaving

    def give_up(self) -> list[bytes]:
        """Nothing more will come. Returns the answers that are there, in order."""
        leaving = [slot.answer for slot in self._ordered if slot.answer]
        self._ordered.clear()
        self.unsettled.clear()
        self.held = 0
        return leaving
