"""What a transport is made of, and whom it leads to."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv6Address as IPv6
from ipaddress import IPv6Network, ip_address

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.internet.tcp import Connection as TCPConnection
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol

# Seconds without a word after which the system asks whether the other end is there, and seconds between two
# such questions.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15))

# The beginning of Linux's `struct tcp_info` up to `tcpi_rtt`, in microseconds.
_ROUND_TRIP = struct.Struct("=68xI")

# What one holder of IPv6 addresses has at the least: addresses by the milliard.
_IPV6_PREFIX = 64


def layers(transport: object) -> Iterator[object]:
    """A transport, and what is below it (TLS, PROXY, the socket's transport)."""
    yield transport
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
        yield transport


def descriptor_of(transport: object) -> FileDescriptor | None:
    """The socket's transport below any wrappers (TLS, PROXY), or None where there is no socket."""
    *_, lowest = layers(transport)
    return lowest if isinstance(lowest, FileDescriptor) else None


def tune(descriptor: object) -> bool:
    """
    Set up a TCP socket for messages: they are sent at once, and the system asks an end that is silent whether
    it is there. Returns whether it is one.
    """
    if not isinstance(descriptor, TCPConnection):
        return False
    handle: socket.socket = descriptor.getHandle()
    if handle.family == socket.AF_UNIX:
        return False
    # Messages are written once a read: there is nothing for Nagle's algorithm to gather.
    descriptor.setTcpNoDelay(True)
    descriptor.setTcpKeepAlive(True)
    for option, value in _KEEPALIVE:
        handle.setsockopt(socket.IPPROTO_TCP, option, value)
    return True


def round_trip(transport: object) -> float | None:
    """
    Seconds to the peer and back, as the system estimates them from what was sent; None where it does not say:
    before anything was, on a Unix socket, without a socket, on other systems than Linux.
    """
    descriptor = descriptor_of(transport)
    if sys.platform != "linux" or not (isinstance(descriptor, TCPConnection) and descriptor.connected):
        return None
    handle: socket.socket = descriptor.getHandle()
    try:
        information = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ROUND_TRIP.size)
    except OSError:
        return None
    microseconds: int = _ROUND_TRIP.unpack(information)[0]
    return microseconds / 1e6 or None


def is_encrypted(transport: object) -> bool:
    """Whether TLS is among the layers of a transport."""
    return any(isinstance(layer, TLSMemoryBIOProtocol) for layer in layers(transport))


def client_id_of(peer: IAddress) -> str:
    """An address as `client_id` writes it (docs/protocol.rst, section 2)."""
    if isinstance(peer, IPv4Address):
        return f"{peer.host}:{peer.port}"
    if isinstance(peer, IPv6Address):
        # So an IPv4 client is seen by a port that listens on both.
        mapped = IPv6(peer.host).ipv4_mapped
        return f"[{peer.host}]:{peer.port}" if mapped is None else f"{mapped}:{peer.port}"
    return str(peer)


def network_of(peer: IAddress) -> str | None:
    """
    What stands for one holder of addresses, where something is counted by address: the IPv4 address, the /64
    network of an IPv6 address; None where there is neither (a Unix socket).
    """
    if not isinstance(peer, (IPv4Address, IPv6Address)):
        return None
    address = ip_address(peer.host)
    if not isinstance(address, IPv6):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, _IPV6_PREFIX), strict=False))
