"""Who is measured: a server of our own, one that runs already, and those of `--peers`."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import msgspec

from tcpjson.bench import driver
from tcpjson.bench.certificate import Certificate
from tcpjson.bench.jobs import Address
from tcpjson.bench.peers import Peer, usable
from tcpjson.bench.scenarios import Step
from tcpjson.bench.servers import own_server
from tcpjson.bench.target import Target, reach

#: The name of our own server in the results.
OURS = "tcpjson"


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One of them."""

    label: str
    #: For a step, the server for it; what it raises is of `target`, `servers` or `runner`.
    start: Callable[[Step], AbstractContextManager[Target]]
    #: The module that speaks its protocol in a fan-out.
    driver: str = driver.__name__
    #: The scenarios that it can take part in; None: all.
    scenarios: frozenset[str] | None = None

    def takes(self, step: Step) -> bool:
        """Whether it can take part in a step."""
        return self.scenarios is None or step.scenario in self.scenarios


def ours(certificate: Callable[[], Certificate], tls: bool) -> Contender:
    """
    A server of our own, afresh for each step.

    Args:
        certificate: makes the one that it has over TLS.
        tls: whether all steps are over TLS.
    """

    @contextlib.contextmanager
    def start(step: Step) -> Iterator[Target]:
        made = certificate() if step.tls or tls else None
        with own_server(made) as server:
            authority = None if made is None else made.authority
            address = _loopback(server.port, made is not None, authority)
            yield reach([address], "the server of our own", server.pid)

    return Contender(label=OURS, start=start)


def running(target: Target) -> Contender:
    """One that runs already."""

    @contextlib.contextmanager
    def start(step: Step) -> Iterator[Target]:
        yield target

    return Contender(label=OURS, start=start)


def peers() -> list[Contender]:
    """Those of `tcpjson.bench.peers` that are at hand."""
    return [peer_contender(each) for each in usable()]


def peer_contender(peer: Peer) -> Contender:
    """One of these."""

    @contextlib.contextmanager
    def start(step: Step) -> Iterator[Target]:
        with peer.start() as server:
            address = _loopback(server.port, False, None)
            if peer.driver is None:
                yield reach([address], peer.label, server.pid)
            else:
                yield Target(address=address, pid=server.pid)

    return Contender(
        label=peer.label,
        start=start,
        driver=peer.driver or driver.__name__,
        scenarios=peer.scenarios,
    )


def _loopback(port: int, tls: bool, ca: str | None) -> Address:
    return Address(family=socket.AF_INET, at=("127.0.0.1", port), tls=tls, name="127.0.0.1", ca=ca)
