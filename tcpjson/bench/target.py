"""Where the server is, and what it says of itself."""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from typing import Any

import msgspec

from tcpjson.bench import driver, processes
from tcpjson.bench.jobs import Address
from tcpjson.bench.links import Link, Unreachable, connect, context
from tcpjson.core.text import printable

#: The port where none is named.
PORT = 9999
#: Seconds until a server must have greeted.
PATIENCE = 10.0
_WHERE = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:\[\]/]+))(?::(?P<port>[0-9]{1,5}))?")
_SHOWN = 60


class Unfit(ValueError):
    """The server is not there, or cannot be measured; the text is a line for people."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server that greeted."""

    address: Address
    #: The process, where it runs on this machine and may be looked at.
    pid: int | None = None
    #: "name/version"; empty for a classic one.
    server: str = ""
    #: Bytes of a payload that it takes; None: it does not say.
    max_length: int | None = None
    #: What one client may send in a second; None: it does not say.
    messages_per_second: float | None = None
    bytes_per_second: float | None = None


def addresses(where: str, tls: bool, ca: str | None) -> list[Address]:
    """
    What a name stands for.

    Args:
        where: `HOST`, `HOST:PORT` or `[IPV6]:PORT`.
        tls, ca: as `Address` takes them.

    Raises:
        Unfit: it is no address, or the name is not known.
    """
    match = _WHERE.fullmatch(where)
    port = int(match["port"] or PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise Unfit(f"{where}: not HOST:PORT")
    host = match["ipv6"] or match["host"]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unfit(f"{where}: {getattr(error, 'strerror', None) or 'no name of a host'}") from None
    made: list[Any] = [
        Address(family=family, at=at, tls=tls, name=host, ca=ca) for family, _, _, _, at in found
    ]
    return made


def local(address: Address) -> bool:
    """Whether it is loopback's."""
    return ipaddress.ip_address(address.at[0].partition("%")[0]).is_loopback


def reach(candidates: list[Address], where: str, pid: int | None = None) -> Target:
    """
    The first of these addresses where a server greets.

    Args:
        candidates: at least one.
        where: how they are named to people.
        pid: the server's process, where it is known.

    Raises:
        Unfit: there is none, or it asks for a login.
    """
    why = ""
    for address in candidates:
        try:
            return _target(address, _welcome(address), pid)
        except Unreachable as error:
            why = why or str(error).removeprefix("connection 1 of 1: ")
    raise Unfit(f"{where}: {printable(why, 200)}")


def _welcome(address: Address) -> dict[str, Any]:
    """The greeting. Raises `Unreachable`."""
    said = b""

    def ready(data: bytes) -> int | None:
        nonlocal said
        said = data
        return driver.ready(data, False)

    tls = context(address)
    try:
        (link,) = connect(lambda number: Link(address, tls, b"", ready), 1, time.monotonic() + PATIENCE)
    except Unreachable as error:
        if str(error).startswith("only 0 of 1"):
            raise Unreachable("no welcome came in time: is it a server of tcpjson's?") from None
        raise
    link.close()
    length = int.from_bytes(said[:4], "big")
    welcome: dict[str, Any] = msgspec.json.decode(said[4 : 4 + length])
    return welcome


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e18:
        return value
    return None


def _target(address: Address, welcome: dict[str, Any], pid: int | None) -> Target:
    if welcome.get("auth"):
        raise Unfit(
            "the server asks for a login, which the benchmark does not do: start one for it without --auth"
        )
    server = welcome.get("server")
    limits = welcome.get("limits")
    if not isinstance(limits, dict):
        limits = {}
    longest = _number(welcome.get("max_length"))
    if pid is None and local(address):
        pid = processes.listener(address.at[1])
    return Target(
        address=address,
        pid=pid,
        server=printable(server, _SHOWN) if isinstance(server, str) else "",
        max_length=None if longest is None else int(longest),
        messages_per_second=_number(limits.get("messages_per_second")),
        bytes_per_second=_number(limits.get("bytes_per_second")),
    )
