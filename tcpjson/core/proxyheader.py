"""The PROXY header, versions 1 and 2, that a balancer sends before what the client sends."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

_SIGNATURE_1 = b"PROXY "
# With its line end (the header's specification, section 2.1).
_LONGEST_1 = 107
_SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_2 = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21


class ProxyHeader(NamedTuple):
    """A header of `length` bytes; `source` is the client's address and port, None where it says none."""

    length: int
    source: tuple[IPv4Address | IPv6Address, int] | None


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """
    The header that `data` begins with; None while it is not complete.

    Raises:
        ValueError: this is no PROXY header, whatever follows.
    """
    if data.startswith(_SIGNATURE_1):
        return _parse_1(data)
    if data.startswith(_SIGNATURE_2):
        return _parse_2(data)
    if _SIGNATURE_1.startswith(data) or _SIGNATURE_2.startswith(data):
        return None
    raise ValueError("no PROXY header")


def _parse_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _LONGEST_1)
    if end < 0:
        if len(data) < _LONGEST_1:
            return None
        raise ValueError("a PROXY line without an end")
    words = data[:end].decode("ascii").split(" ")
    if words[1] == "UNKNOWN":
        return ProxyHeader(end + 2, None)
    _, family, source, destination, source_port, destination_port = words
    if "%" in source + destination:
        # What stands behind it could be any text.
        raise ValueError("an address with a scope")
    addresses = ip_address(source), ip_address(destination)
    if any(family != f"TCP{address.version}" for address in addresses):
        raise ValueError(f"no addresses of {family!r}")
    _port(destination_port)
    return ProxyHeader(end + 2, (addresses[0], _port(source_port)))


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 1 << 16):
        raise ValueError(f"no port: {text!r}")
    return int(text)


def _parse_2(data: bytes) -> ProxyHeader | None:
    if len(data) < _FIXED_2.size:
        return None
    _, command, family, length = _FIXED_2.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise ValueError(f"PROXY command {command:#x}")
    end = _FIXED_2.size + length
    if len(data) < end:
        return None
    # The high half says IPv4 or IPv6; of other families the address is not used.
    size = {1: 4, 2: 16}.get(family >> 4)
    if command == _LOCAL or size is None:
        return ProxyHeader(end, None)
    addresses = data[_FIXED_2.size : end]
    if len(addresses) < 2 * size + 4:
        raise ValueError("a PROXY header too short for its addresses")
    (port,) = struct.unpack_from("!H", addresses, 2 * size)
    return ProxyHeader(end, (ip_address(addresses[:size]), port))
