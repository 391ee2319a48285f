"""What is measured of a server, how steep it grows, and what may be left when all have gone."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.harness import Server, until
from tests.soak.probe import COLLECT, LOOK

# Of the standard normal distribution: 95 % are nearer to the middle.
_Z = 1.96


@dataclass(frozen=True)
class Sample:
    """One look at a server. Sizes are in KiB."""

    #: Seconds since the load began.
    at: float
    #: Resident memory that is no file's, and the most that all of it ever was.
    resident: float
    peak: float
    descriptors: int
    threads: int
    #: What `tests.soak.probe` tells.
    inside: Mapping[str, Any] = field(default_factory=dict)
    #: What the descriptors lead to, by kind.
    files: Mapping[str, int] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """The reactor's delayed calls."""
        return sum(self.inside["calls"].values())

    @property
    def heap(self) -> float | None:
        """What the C library has given out."""
        heap: int | None = self.inside["heap"]
        return None if heap is None else heap / 1024


class Watch:
    """Looks at a server that was started by `tests.soak.probe`, which writes to `path`."""

    def __init__(self, server: Server, path: Path) -> None:
        self._server = server
        self._path = path
        self.began = time.monotonic()

    def look(self, collect: bool = False) -> Sample:
        """
        A sample; `collect`: of what is there when all garbage is collected.

        Raises:
            AssertionError: the server does not answer.
        """
        self._server.signal(COLLECT if collect else LOOK)
        until(self._path.exists, "the server tells of itself")
        inside = json.loads(self._path.read_text(encoding="utf-8"))
        self._path.unlink()
        process = Path("/proc", str(self._server.process.pid))
        status = (process / "status").read_text(encoding="ascii", errors="replace")
        files: Counter[str] = Counter()
        for link in (process / "fd").iterdir():
            # One may be closed between the two.
            with contextlib.suppress(FileNotFoundError):
                files[os.readlink(link).partition(":")[0]] += 1
        return Sample(
            at=time.monotonic() - self.began,
            resident=_field(status, "RssAnon"),
            peak=_field(status, "VmHWM"),
            descriptors=files.total(),
            threads=_field(status, "Threads"),
            inside=inside,
            files=files,
        )


def _field(status: str, name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+)", status, re.MULTILINE)
    assert match is not None, f"{name} is not in /proc/PID/status"
    return int(match[1])


@dataclass(frozen=True)
class Slope:
    """How steep something grows, and bounds that hold it in 95 of 100 cases; a minute."""

    middle: float
    least: float
    most: float


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """
    The median of the slopes between any two points (Theil and Sen), to which a few points far off do nothing.

    Args:
        points: (seconds, value), two at the least, at different times. Their errors should not depend on
            each other: the bounds are too narrow else.
    """
    slopes = sorted(
        60 * (b - a) / (later - earlier)
        for index, (earlier, a) in enumerate(points)
        for later, b in points[index + 1 :]
    )
    count, pairs = len(points), len(slopes)
    # How many of the slopes are on either side of the true one: Kendall's tau.
    spread = _Z * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((pairs - spread) / 2))
    high = min(pairs - 1, math.ceil((pairs + spread) / 2))
    return Slope(median(slopes), slopes[low], slopes[high])


def floors(samples: Iterable[Sample], seconds: float) -> list[tuple[float, float]]:
    """
    The least resident memory in each stretch of so many seconds, as points of `slope`.

    What is held for a moment (a queue, a long message) is no growth, and its ups and downs last as long as
    the stretch.
    """
    least: dict[int, Sample] = {}
    for sample in samples:
        stretch = int(sample.at // seconds)
        if stretch not in least or sample.resident < least[stretch].resident:
            least[stretch] = sample
    return [(sample.at, sample.resident) for sample in least.values()]
