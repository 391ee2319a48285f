"""Blocking clients of the benchmarks: in the clear or over TLS, with or without a login."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import secrets
import socket
import ssl
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

SECONDS = 60.0
HOST = "127.0.0.1"
COMPRESSED = 1 << 31
IP_BIND_ADDRESS_NO_PORT = 24  # from <linux/in.h>; Python has no name for it


class Client:
    """
    A connection to a server on loopback; a context manager that closes it.

    Args:
        port: the server's.
        source: the address to come from, one of 127.0.0.0/8.
        context: how to speak TLS; in the clear without it.
    """

    def __init__(self, port: int, source: str = HOST, context: ssl.SSLContext | None = None) -> None:
        self.socket = socket.socket()
        try:
            self.socket.settimeout(SECONDS)
            # Without this option bind() picks a port before it knows the peer, and hunts for an unused one.
            self.socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            self.socket.bind((source, 0))
            self.socket.connect((HOST, port))
            if context is not None:
                self.socket = context.wrap_socket(self.socket, server_hostname=HOST)
        except BaseException:
            self.socket.close()
            raise
        self._file = self.socket.makefile("rb")
        #: Bytes that came, with the lengths.
        self.received = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise ConnectionError("the server closed the connection")
        return data

    def payload(self) -> bytes:
        """Wait for the next payload; one that comes compressed is inflated."""
        (length,) = struct.unpack(">I", self._read(4))
        size = length & ~COMPRESSED
        self.received += 4 + size
        data = self._read(size)
        return zlib.decompress(data) if length >= COMPRESSED else data

    def receive(self) -> Message:
        """Wait for the next message."""
        message: Message = json.loads(self.payload())
        return message

    def agree_on_compression(self) -> None:
        """Have what the server sends compressed, where it is long."""
        self.send([{"type": "hello", "compression": ["zlib"]}])
        self.expect("hello_response", compression="zlib")

    def expect(self, kind: str, **fields: object) -> Message:
        """
        Wait for the next message and look at its type and at some of its fields.

        Raises:
            ConnectionError: it is another one, or none comes.
        """
        message = self.receive()
        wanted = {"type": kind, **fields}
        if not wanted.items() <= message.items():
            raise ConnectionError(f"instead of {json.dumps(wanted)}: {json.dumps(message)[:200]}")
        return message

    def expect_end(self) -> None:
        """Wait until the server has closed its side, and see that nothing else comes before."""
        rest = self._file.read(1)
        if rest:
            raise ConnectionError("the server sends more after its last message")

    def send(self, messages: Sequence[Message]) -> None:
        payloads = [json.dumps(message).encode() for message in messages]
        self.socket.sendall(b"".join(struct.pack(">I", len(payload)) + payload for payload in payloads))


@dataclass(frozen=True)
class Token:
    """A login by token."""

    token: str

    def perform(self, client: Client) -> None:
        client.send([{"type": "auth", "mechanism": "token", "token": self.token}])
        client.expect("auth_result", status="authenticated")


@functools.cache
def _salted(password: str, salt: bytes, iterations: int) -> bytes:
    """The slow part of a login, the same for all of one user."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


@dataclass(frozen=True)
class Scram:
    """A login by SCRAM-SHA-256 (RFC 7677) of a user whose name and password are plain ASCII."""

    user: str
    password: str

    def perform(self, client: Client) -> None:
        nonce = secrets.token_urlsafe(18)
        bare = f"n={self.user},r={nonce}"
        client.send([{"type": "auth", "mechanism": "scram-sha-256", "data": f"n,,{bare}"}])
        challenge: str = client.expect("auth_challenge")["data"]
        fields = dict(part.split("=", 1) for part in challenge.split(","))
        if not fields["r"].startswith(nonce):
            raise ConnectionError("the server's nonce does not begin with ours")
        salted = _salted(self.password, b64decode(fields["s"]), int(fields["i"]))
        final = f"c={b64encode(b'n,,').decode()},r={fields['r']}"
        proved = f"{bare},{challenge},{final}"
        key = _hmac(salted, "Client Key")
        signature = _hmac(hashlib.sha256(key).digest(), proved)
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        client.send([{"type": "auth", "data": f"{final},p={b64encode(proof).decode()}"}])
        server = b64encode(_hmac(_hmac(salted, "Server Key"), proved)).decode()
        client.expect("auth_result", status="authenticated", user=self.user, data=f"v={server}")


Login = Token | Scram


@dataclass(frozen=True)
class Access:
    """
    How clients come in; it can be handed to another process.

    Attributes:
        port: the server's.
        authority: the file of the certificate authority to trust; None: no TLS.
        login: None: the server asks for none.
    """

    port: int
    authority: str | None = None
    login: Login | None = None

    @functools.cached_property
    def _context(self) -> ssl.SSLContext | None:
        if self.authority is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.authority)
        return context

    def enter(self, source: str = HOST) -> Client:
        """
        Connect, wait for the welcome, and log in.

        Raises:
            OSError: whatever went wrong.
        """
        client = Client(self.port, source, self._context)
        try:
            client.expect("welcome")
            if self.login is not None:
                self.login.perform(client)
        except BaseException:
            client.close()
            raise
        return client
