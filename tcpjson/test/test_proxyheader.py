"""The PROXY header, versions 1 and 2, whole, in parts, and broken."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.proxyheader import ProxyHeader, parse_proxy_header
from tcpjson.test.hypo import given

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def version_1(source: str, port: int) -> bytes:
    """A line as a balancer writes it."""
    family, other = ("TCP6", "2001:db8::1") if ":" in source else ("TCP4", "192.0.2.1")
    return f"PROXY {family} {source} {other} {port} 9999\r\n".encode()


def version_2(source: str, port: int, *, command: int = 0x21, extra: bytes = b"") -> bytes:
    """A binary header; `extra` stands for the fields that may follow the addresses."""
    address = ip_address(source)
    family, other = (0x21, "2001:db8::1") if address.version == 6 else (0x11, "192.0.2.1")
    body = address.packed + ip_address(other).packed + struct.pack("!HH", port, 9999) + extra
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


sources = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
headers = st.builds(version_1, sources, st.integers(0, 65535)) | st.builds(
    version_2, sources, st.integers(0, 65535), extra=st.binary(max_size=20)
)

# What begins as a header and goes on in another way.
beginnings = st.builds(
    lambda header, cut, more: header[:cut] + more, headers, st.integers(0, 60), st.binary(max_size=120)
)


class HeaderTests(SynchronousTestCase):
    """`parse_proxy_header`."""

    @given(sources, st.integers(0, 65535), st.binary(max_size=20), st.binary(max_size=20))
    def test_whole(self, source: str, port: int, extra: bytes, rest: bytes) -> None:
        """The client's address is read, and what follows the header is left alone."""
        for header in (version_1(source, port), version_2(source, port, extra=extra)):
            self.assertEqual(
                parse_proxy_header(header + rest), ProxyHeader(len(header), (ip_address(source), port))
            )

    @given(headers)
    def test_in_parts(self, header: bytes) -> None:
        """As long as any byte is missing, it may still be a header."""
        for end in range(len(header)):
            self.assertIsNone(parse_proxy_header(header[:end]), header[:end])

    @given(st.one_of(st.binary(max_size=120), beginnings), examples=500)
    def test_anything_else(self, data: bytes) -> None:
        """A header, not enough of one, or ValueError."""
        try:
            header = parse_proxy_header(data)
        except ValueError:
            return
        if header is not None:
            self.assertLessEqual(header.length, len(data))
            self.assertEqual(parse_proxy_header(data[: header.length]), header)

    def test_without_an_address(self) -> None:
        """A balancer that speaks for itself, or knows nothing."""
        for header in (
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY UNKNOWN whatever this is\r\n",
            SIGNATURE + b"\x20\x00\x00\x00",
            version_2("192.0.2.7", 5000, command=0x20),
            SIGNATURE + b"\x21\x00\x00\x00",
            SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
        ):
            self.assertEqual(parse_proxy_header(header + b"rest"), ProxyHeader(len(header), None), header)

    def test_what_is_no_header(self) -> None:
        for data in (
            b"\0\0\0\x02{}",
            b"GET / HTTP/1.1\r\n",
            b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXX",
            b"\r\n\r\n\x01",
            b"PROXY \r\n",
            b"PROXY TCP4\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 x 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 x\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 nowhere 1 2\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP6 2001:db8::1 192.0.2.2 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
            b"PROXY TCP6 fe80::1 fe80::2%\n 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.\xe9 192.0.2.2 1 2\r\n",
            b"PROXY UNKNOWN" + b" " * 107,
            SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
            SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
            SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
            SIGNATURE + b"\x21\x21\x00\x23" + bytes(35),
        ):
            self.assertRaises(ValueError, parse_proxy_header, data)

    def test_the_longest_line(self) -> None:
        """107 bytes with its end; a line that could still end within them is waited for."""
        line = b"PROXY UNKNOWN" + b" " * 92 + b"\r\n"
        self.assertEqual(parse_proxy_header(line), ProxyHeader(107, None))
        self.assertIsNone(parse_proxy_header(line[:106]))
        longer = line.replace(b"\r\n", b" \r\n")
        for data in (longer, longer[:107]):
            self.assertRaises(ValueError, parse_proxy_header, data)
