"""Clients that ``benchmarks.requests`` measures: ours, and what others would write by hand.

Each is a program, ``python -m benchmarks.requesters.NAME PORT``. It connects, prints ``ready``, and for each
line ``WINDOW SECONDS`` of its input sends echoes of 100 bytes for so long, so many in flight, then prints
what that took as a line of JSON. Contents differ from request to request, and each reply is compared with
what was sent.
"""

from __future__ import annotations

import json
import random
import string
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import cycle

#: Seconds that each request may take.
TIMEOUT = 30.0
LENGTH = 100

Echo = Callable[[str], Awaitable[object]]
#: Runs some coroutines at once, and returns when all have ended.
Gather = Callable[[Iterable[Awaitable[None]]], Awaitable[object]]


class WrongAnswer(Exception):
    """What came back is not what was sent."""


class Slice:
    """Some time of requests, a number of them in flight."""

    def __init__(self, echo: Echo, contents: Iterator[str], seconds: float) -> None:
        self._echo = echo
        self._contents = contents
        self._seconds = seconds
        self._end = 0.0
        self.count = 0

    async def _one_by_one(self) -> None:
        while time.monotonic() < self._end:
            content = next(self._contents)
            answer = await self._echo(content)
            if answer != content:
                raise WrongAnswer(f"sent {content!r}, came {answer!r:.200}")
            self.count += 1

    async def run(self, window: int, gather: Gather) -> dict[str, float]:
        """Do it, and return the figures. Nothing is in flight before and after."""
        begin, cpu = time.monotonic(), time.process_time()
        self._end = begin + self._seconds
        await gather([self._one_by_one() for _ in range(window)])
        return {
            "requests": self.count,
            "seconds": time.monotonic() - begin,
            "cpu_seconds": time.process_time() - cpu,
        }


async def serve(echo: Echo, gather: Gather) -> None:
    """
    Do what the lines of the input say, until it ends.

    The event loop stands still while this waits for a line, which is fine: nothing is in flight then.
    """
    chance = random.Random(1)
    characters = string.ascii_letters + string.digits + " .,-"
    contents = cycle(["".join(chance.choices(characters, k=LENGTH)) for _ in range(1009)])
    print("ready", flush=True)
    for line in sys.stdin:
        window, seconds = line.split()
        figures = await Slice(echo, contents, float(seconds)).run(int(window), gather)
        print(json.dumps(figures), flush=True)
