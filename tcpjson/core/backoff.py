"""How long an address that failed to authenticate waits for its next answer: numbers in, numbers out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

#: Seconds that an answer waits, by how many failures came before it; the last one is for all beyond.
DELAYS = (0.0, 0.25, 0.5, 1.0, 2.0)
#: Seconds after its last failure in which an address is remembered.
MEMORY = 60.0
#: How many addresses are remembered; of more, those that failed longest ago are forgotten.
CAPACITY = 10_000


class BackOff:
    """
    The delays of docs/protocol.rst, section 6. An address of None, which is that of a Unix socket, waits
    never. Times are in seconds and never go back.
    """

    def __init__(self) -> None:
        # By the time of the last failure, the oldest first.
        self._failures: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._failures)

    def delay(self, address: Hashable, now: float) -> float:
        """Seconds that an answer to `address` waits, which its earlier failures decide."""
        count, last = self._failures.get(address, (0, now))
        return DELAYS[count] if now - last < MEMORY else 0.0

    def failed(self, address: Hashable, now: float) -> None:
        """Remember a failure of `address`."""
        if address is None:
            return
        while self._failures and now - next(iter(self._failures.values()))[1] >= MEMORY:
            self._failures.popitem(last=False)
        count, _ = self._failures.pop(address, (0, now))
        self._failures[address] = min(count + 1, len(DELAYS) - 1), now
        if len(self._failures) > CAPACITY:
            self._failures.popitem(last=False)
