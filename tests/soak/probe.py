"""Runs twistd; at a signal it writes what its tcpjson server is made of to a file, as JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from twisted.scripts import twistd

from tcpjson.exchange import Exchange
from tcpjson.notices import Notices
from tcpjson.server import TCPJSONServerFactory

#: Tells what there is, and tells it after all garbage is collected.
LOOK, COLLECT = signal.SIGUSR1, signal.SIGUSR2

# The modules whose objects are told of one by one.
_OURS = ("tcpjson.", "twisted.internet.", "twisted.protocols.", "OpenSSL.", "socket", "scramp.")


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap() -> tuple[int | None, int]:
    """
    Bytes that the C library has given out and not got back, and those that it got back and keeps; None and 0
    where it does not say.
    """
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return None, 0
    mallinfo.restype = _Mallinfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd), int(info.fordblks)


@cache
def the_factory() -> TCPJSONServerFactory:
    """The server of this process."""
    [factory] = (each for each in gc.get_objects() if isinstance(each, TCPJSONServerFactory))
    return factory


def _stale(factory: TCPJSONServerFactory, calls: list[Any]) -> Iterator[str]:
    """What is still to be done for connections that are gone."""
    there = factory.connections
    for deadlines in (*factory.connection_deadlines, factory.handler_deadlines):
        for key in deadlines._deadlines:
            connection = key[0] if isinstance(key, tuple) else key
            if connection not in there:
                yield f"deadline {deadlines._expired.__qualname__}"
    for call in calls:
        owner = getattr(call.func, "__self__", None)
        if isinstance(owner, Exchange) and owner not in there:
            yield f"call {call.func.__qualname__}"
    for client in factory.clients:
        if client not in there:
            yield "client"


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def look(reactor: Any) -> dict[str, Any]:
    """What there is now."""
    factory = the_factory()
    # Before anything is made here.
    blocks, (used, kept) = sys.getallocatedblocks(), heap()
    kinds = Counter(map(type, gc.get_objects()))
    # What the log is to say a minute after the last line of its kind, is for no connection.
    calls = [
        call
        for call in reactor.getDelayedCalls()
        if not isinstance(getattr(call.func, "__self__", None), Notices)
    ]
    stats = factory.stats
    return {
        "heap": used,
        "kept": kept,
        "blocks": blocks,
        "objects": kinds.total(),
        "kinds": {
            _name(kind): count for kind, count in kinds.items() if f"{kind.__module__}.".startswith(_OURS)
        },
        "calls": Counter(getattr(call.func, "__qualname__", repr(call.func)) for call in calls),
        "stale": Counter(_stale(factory, calls)),
        "connections": len(factory.connections),
        "clients": len(factory.clients),
        "admitted": factory.admission.admitted,
        "deadlines": sum(len(each._deadlines) for each in factory.connection_deadlines),
        "remembered": len(stats.closed),
        "made": stats.connections,
        "failed_logins": stats.failed_logins,
        "disconnects": stats.disconnects,
        "errors": stats.errors,
    }


def run(path: str) -> None:
    """Run twistd with the arguments of this process; what is asked for is put in the file."""

    def write(number: int) -> None:
        from twisted.internet import reactor

        # What one collection frees can be all that held other cycles.
        for _ in range(3 if number == COLLECT else 0):
            gc.collect()
        # Whoever finds the file finds all of it, and none of its descriptors.
        new = Path(f"{path}.new")
        new.write_text(json.dumps(look(reactor)), encoding="utf-8")
        new.replace(path)

    def asked(number: int, frame: object) -> None:
        from twisted.internet import reactor as installed

        # What Twisted gives as the reactor depends on the system. Between two turns nothing is half done.
        reactor: Any = installed
        reactor.callFromThread(partial(write, number))

    for number in (LOOK, COLLECT):
        signal.signal(number, asked)
    twistd.run()
