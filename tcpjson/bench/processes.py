"""CPU and memory of a process, and which one it is that listens on a port; as far as the system tells."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

_CPUCLOCK_SCHED = 2
_LISTEN = "0A"
_PROC = Path("/proc")
_SOCKET = re.compile(r"socket:\[([0-9]+)\]")


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process, user and system, all its threads; None where it cannot be read."""
    try:
        # The clock that clock_getcpuclockid(3) would give for it; Python has no call for that.
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except (OSError, OverflowError):
        return None


def waited_seconds(pid: int | str, proc: Path = _PROC) -> float | None:
    """How long the first thread of a process has waited for a processor; None where it cannot be read."""
    try:
        return int((proc / str(pid) / "schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def resident_bytes(pid: int, proc: Path = _PROC) -> int | None:
    """
    Memory of a process that is in use; None where it cannot be read.

    It is the resident size. The proportional one falls when another process maps the same libraries.
    """
    try:
        with open(proc / str(pid) / "smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                if line.startswith("Rss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None


def listener(port: int, proc: Path = _PROC) -> int | None:
    """
    The process of this machine that listens on a TCP port; None where there is none that we may look at.
    """
    sockets = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except (OSError, ValueError):
            continue
        for line in lines:
            columns = line.split()
            if len(columns) > 9 and columns[3] == _LISTEN and columns[1].endswith(f":{port:04X}"):
                sockets.add(columns[9])
    if not sockets:
        return None
    for entry in proc.iterdir():
        if entry.name.isdigit() and _holds(entry / "fd", sockets):
            return int(entry.name)
    return None


def _holds(folder: Path, sockets: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for each in folder.iterdir():
            # One that was closed meanwhile is none.
            with contextlib.suppress(OSError):
                match = _SOCKET.fullmatch(os.readlink(each))
                if match and match[1] in sockets:
                    return True
    return False
