"""How many messages and bytes a peer may send (docs/protocol.rst, section 10)."""

from __future__ import annotations

from collections.abc import Sequence

from tcpjson.core.framing import PREFIX_LENGTH
from tcpjson.core.limits import Limits

# Seconds in which the tokens of one wait come in.
_SLICE = 0.1


class TokenBucket:
    """
    Fills at `rate` tokens a second up to `burst`, with which it begins.

    Args:
        rate: tokens a second, greater than 0.
        burst: the most it holds, greater than 0.
        now: the time in seconds, on any steady clock, as everywhere here.
    """

    __slots__ = ("_burst", "_level", "_rate", "_when")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._when = now

    def level(self, now: float) -> float:
        """The tokens that are there; less than none when more were taken."""
        self._level = min(self._burst, self._level + (now - self._when) * self._rate)
        self._when = now
        return self._level

    def take(self, tokens: float) -> None:
        """Take tokens, there or not: what is missing has to come in before there are any again."""
        self._level -= tokens

    def wait(self) -> float:
        """
        Seconds, from the last look at the level, until a token is there; or some, where many come in a
        second: to look for each of them would cost more than what it is for.
        """
        tokens = max(1.0, min(self._burst, self._rate * _SLICE))
        return max(0.0, (tokens - self._level) / self._rate)


class Meter:
    """
    Grants frames to one peer. A frame is granted while there is a token for a message and any for bytes: one
    that is longer than the burst passes too, and has the next wait until its bytes have come in.

    Args:
        limits: the rates; None for what is not limited.
        now: the time.
    """

    __slots__ = ("_bytes", "_messages")

    def __init__(self, limits: Limits, now: float) -> None:
        messages, size = limits.messages_per_second, limits.bytes_per_second
        self._messages: TokenBucket | None = None
        self._bytes: TokenBucket | None = None
        # A burst is a second's worth where nothing else is said.
        if messages is not None:
            self._messages = TokenBucket(messages, limits.message_burst or max(1.0, messages), now)
        if size is not None:
            self._bytes = TokenBucket(size, limits.byte_burst or max(1.0, size), now)

    def grant(self, payloads: Sequence[bytes], now: float) -> int:
        """How many of the payloads may be handled now; these are charged."""
        granted = len(payloads)
        if self._messages is not None:
            # Rounded: after just the time of `wait`, the sum may lack the last bit of a token.
            granted = min(granted, int(round(self._messages.level(now), 6)))
        if self._bytes is not None:
            left = self._bytes.level(now)
            for index in range(granted):
                if left <= 0:
                    granted = index
                    break
                size = PREFIX_LENGTH + len(payloads[index])
                left -= size
                self._bytes.take(size)
        if self._messages is not None:
            self._messages.take(granted)
        return granted

    def refund(self, payloads: Sequence[bytes]) -> None:
        """Payloads that were granted were not handled: they will be asked for again."""
        if self._messages is not None:
            self._messages.take(-len(payloads))
        if self._bytes is not None:
            self._bytes.take(-sum(PREFIX_LENGTH + len(payload) for payload in payloads))

    def wait(self) -> float:
        """Seconds, from the last grant, until there is one again."""
        messages = 0.0 if self._messages is None else self._messages.wait()
        size = 0.0 if self._bytes is None else self._bytes.wait()
        return max(messages, size)
