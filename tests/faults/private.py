"""Faults of TLS, and of PROXY headers: below the messages."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import warnings
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL

from tests.faults.arena import PING, Guest, Stage, context
from tests.faults.catalogue import fault
from tests.faults.logins import HASTY
from tests.harness import CUT, TIMEOUT, encode
from tests.identities import authority, new_path

_NO_TLS = {"tcp": "it is TLS that is at fault"}
_HANDSHAKE = {**_NO_TLS, "after": "the handshake comes before the login"}
_HEADER = {"after": "the header comes before the login"}


# The handshake.


def _client_hello() -> bytes:
    """What begins a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = context().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


@fault("no handshake", section="6", expected="handshake_failed", seconds=1.6, options=HASTY, never=_HANDSHAKE)
def no_handshake(stage: Stage) -> None:
    """Ten that connect and say nothing, while there are broadcasts: none is theirs, and memory is."""
    stage.complete()
    for guest in [Guest(stage.dial()) for _ in range(10)]:
        stage.ends(guest)
        assert not guest.buffer, bytes(guest.buffer[:100])
    stage.lasted(0.95)


@fault(
    "half a handshake", section="6", expected="handshake_failed", seconds=1.6, options=HASTY, never=_HANDSHAKE
)
def half_a_handshake(stage: Stage) -> None:
    """A client's hello, whole or cut, and then nothing."""
    hello = _client_hello()
    guests = [Guest(stage.dial()) for _ in range(2)]
    stage.complete()
    guests[0].write(hello)
    guests[1].write(hello[:50])
    for guest in guests:
        stage.ends(guest)
        assert b"welcome" not in guest.buffer
    stage.lasted(0.9)


@fault("plain JSON on a TLS port", section="9", expected="handshake_failed", seconds=1, never=_HANDSHAKE)
def json_on_a_tls_port(stage: Stage) -> None:
    """A classic client that forgot TLS: no `welcome` in the clear, and the end at once."""
    guest = Guest(stage.dial())
    guest.write(encode(PING) * 3)
    stage.complete()
    stage.ends(guest)
    assert b"welcome" not in guest.buffer


@fault("TLS 1.1", section="9", expected="handshake_failed", seconds=1, never=_HANDSHAKE)
def old_tls(stage: Stage) -> None:
    """A version that nobody should speak any more."""
    old = authority().context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    guest = Guest(stage.dial())
    stage.complete()
    try:
        stage.secure(guest.socket, old)
    except ssl.SSLError as error:
        assert "ALERT" in str(error.reason), error
    stage.closed()
    stage.came = stage.reason(guest)


@fault(
    "the certificate is not trusted", section="9", expected="handshake_failed", seconds=1, never=_HANDSHAKE
)
def distrust(stage: Stage) -> None:
    """The client gives up in the midst of the handshake."""
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # In TLS 1.3 the server would have done with it by then.
    stranger.maximum_version = ssl.TLSVersion.TLSv1_2
    guest = Guest(stage.dial())
    stage.complete()
    with contextlib.suppress(ssl.SSLCertVerificationError):
        stage.secure(guest.socket, stranger)
    guest.close()
    stage.came = stage.reason(guest)
    stage.closed()


# Behind the handshake.


class _Records:
    """
    Writes records of TLS 1.3 below a peer's own TLS, which knows nothing of it (RFC 8446).

    Args:
        guest: its peer; it has written so many records since the handshake.
        written: how many.
        secrets: the content of its key log.
    """

    def __init__(self, guest: Guest, written: int, secrets: str) -> None:
        assert isinstance(guest.socket, ssl.SSLSocket)
        self._guest = guest
        self._number = written
        cipher = guest.socket.cipher()
        assert cipher is not None
        self._hash: hashes.HashAlgorithm = hashes.SHA384() if "SHA384" in cipher[0] else hashes.SHA256()
        self._aead: Any = ChaCha20Poly1305 if "CHACHA20" in cipher[0] else AESGCM
        self._key_length = 16 if "AES_128" in cipher[0] else 32
        [line] = [line for line in secrets.splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0 ")]
        self._secret = bytes.fromhex(line.split()[2])
        self._derive()

    def _expand(self, label: bytes, length: int) -> bytes:
        name = b"tls13 " + label
        info = struct.pack(">HB", length, len(name)) + name + b"\0"
        return HKDFExpand(self._hash, length, info).derive(self._secret)

    def _derive(self) -> None:
        self._cipher = self._aead(self._expand(b"key", self._key_length))
        self._iv = int.from_bytes(self._expand(b"iv", 12), "big")

    def record(self, kind: int, content: bytes) -> bytes:
        """The next record."""
        inner = content + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        sealed: bytes = self._cipher.encrypt(nonce, inner, head)
        return head + sealed

    def key_update(self) -> bytes:
        """A KeyUpdate that asks for one in return."""
        update = self.record(22, b"\x18\0\0\1\1")
        self._secret = self._expand(b"traffic upd", self._hash.digest_size)
        self._derive()
        self._number = 0
        return update


def _with_records(stage: Stage) -> tuple[Guest, _Records]:
    """A peer, and what writes records for it."""
    path = new_path(".secrets")
    private = authority().context()
    private.minimum_version = ssl.TLSVersion.TLSv1_3
    private.keylog_filename = str(path)
    guest = stage.peer(context_=private)
    # It wrote its login.
    return guest, _Records(guest, 0 if stage.before else 1, path.read_text(encoding="ascii"))


def _below(guest: Guest, data: bytes) -> None:
    """Send bytes below TLS."""
    socket.socket.sendall(guest.socket, data)


@fault(
    "a flood of KeyUpdates",
    section="design",
    expected="connection_lost",
    seconds=3,
    growth=3,
    never=_NO_TLS,
)
def key_updates(stage: Stage) -> None:
    """
    In TLS 1.3 a peer may ask for new keys for ever, at many times the cost of asking, and leave the answers
    unread: no limit on messages sees it.
    """
    guest, records = _with_records(stage)
    stage.complete()
    try:
        for _ in range(200):
            _below(guest, b"".join(records.key_update() for _ in range(50)))
    except CUT:
        stage.closed()
    stage.came = stage.reason(guest)


@fault(
    "a flood of empty records",
    section="design",
    expected="connection_lost",
    seconds=3,
    growth=3,
    never=_NO_TLS,
)
def empty_records(stage: Stage) -> None:
    """Records with nothing in them: work, and no message that a rate could count."""
    guest, records = _with_records(stage)
    stage.complete()
    try:
        for _ in range(200):
            _below(guest, b"".join(records.record(23, b"") for _ in range(50)))
    except CUT:
        stage.closed()
    stage.came = stage.reason(guest)


@fault("a few KeyUpdates", section="design", expected="goes on", never=_NO_TLS)
def few_key_updates(stage: Stage) -> None:
    """Those that are no flood do no harm; a request under the new keys is answered."""
    guest, records = _with_records(stage)
    for number in range(5):
        _below(guest, records.key_update() + records.record(23, encode(PING | {"id": number})))
        assert guest.receive()["id"] == number
    guest.close()
    reason = stage.reason(guest)
    assert reason == "connection_lost", reason
    stage.came = "goes on"


@fault("bytes that are no record", section="9", expected="connection_lost", seconds=1, never=_NO_TLS)
def no_record(stage: Stage) -> None:
    """Garbage in the midst of a connection, as from somebody on the way."""
    guest = stage.peer()
    stage.complete()
    _below(guest, b"\x17\x03\x03\x01\x00" + bytes(256) + encode(PING))
    stage.await_end(guest.socket)
    guest.close()
    stage.came = stage.reason(guest)


@fault("a renegotiation", section="design", expected="connection_lost", seconds=2, never=_NO_TLS)
def renegotiation(stage: Stage) -> None:
    """TLS 1.2: one handshake more, as often as it likes, each of them dear. The server refuses the first."""
    private = SSL.Context(SSL.TLS_CLIENT_METHOD)
    private.set_max_proto_version(SSL.TLS1_2_VERSION)
    raw = stage.dial()
    # pyOpenSSL alone can ask for it, and wants a socket that blocks.
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(TIMEOUT), 0))
    connection: Any = SSL.Connection(private, raw)
    connection.set_connect_state()
    guest = Guest(connection)
    connection.setblocking(True)
    connection.do_handshake()
    stage.greet(guest)
    if not stage.before:
        stage.log_in(guest)
    handshake = connection.get_finished()
    stage.complete()
    assert connection.renegotiate()
    try:
        connection.do_handshake()
    except SSL.Error as error:
        # The latter, where a broadcast comes in between.
        assert any(text in str(error) for text in ("no renegotiation", "unexpected record")), error
    assert connection.get_finished() == handshake, "there was another handshake"
    # The client takes the refusal for the end.
    guest.close()
    stage.came = stage.reason(guest)
    stage.closed()


@fault("closed without close_notify", section="9", expected="connection_lost", seconds=1, never=_NO_TLS)
def no_close_notify(stage: Stage) -> None:
    """Anybody on the way could have cut it, and each of them leaves 40 KiB of cycles to be collected."""
    for _ in range(stage.many(20, 300)):
        guest = stage.peer()
        stage.ended = None
        stage.complete()
        socket.socket.shutdown(guest.socket, socket.SHUT_WR)
        # It reads on, so that it is no reset.
        with contextlib.suppress(OSError):
            while socket.socket.recv(guest.socket, 65536):
                pass
        stage.closed()
        guest.close()
        stage.came = stage.reason(guest)
        assert stage.came == "connection_lost", stage.came


# Behind a balancer.


def _header(raw: socket.socket) -> bytes:
    """A PROXY header that tells a socket's own address."""
    host, port = raw.getsockname()
    return b"PROXY TCP4 %s 127.0.0.1 %d 9999\r\n" % (host.encode(), port)


def _go_on(stage: Stage, raw: socket.socket) -> None:
    """The header is through: the rest must work."""
    guest = Guest(stage.secure(raw) if stage.tls else raw)
    stage.greet(guest)
    assert guest.client_id == guest.name, guest.client_id
    if not stage.before:
        stage.log_in(guest)
    stage.goes_on(guest)


@fault("a PROXY header alone", section="4", expected="goes on")
def header_alone(stage: Stage) -> None:
    """A client that waits for `welcome` would wait for ever, if the header alone were not enough."""
    raw = stage.dial(proxied=True)
    raw.sendall(_header(raw))
    _go_on(stage, raw)


@fault("a PROXY header in pieces", section="4", expected="goes on")
def header_in_pieces(stage: Stage) -> None:
    """Byte by byte."""
    raw = stage.dial(proxied=True)
    for byte in _header(raw):
        raw.sendall(bytes([byte]))
        stage.wait(0.001)
    _go_on(stage, raw)


@fault("a broken PROXY header", section="9", expected="handshake_failed", seconds=1, never=_HEADER)
def broken_header(stage: Stage) -> None:
    """Whoever comes past the balancer: nothing is said to it."""
    second = b"\r\n\r\n\0\r\nQUIT\n"
    for data in (
        b"PROXY TCP4 nonsense\r\n",
        b"PROXY TCP4 127.0.0.1 127.0.0.1 99999 1\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PROXY " + b"x" * 200,
        second + b"\x11\x11\x00\x0c" + bytes(12),
        second + b"\x21\x11\x00\x01\x00",
        encode(PING),
    ):
        raw = stage.dial(proxied=True)
        guest = Guest(raw)
        stage.ended = None
        stage.complete()
        guest.write(data)
        stage.ends(guest)
        assert not guest.buffer, bytes(guest.buffer[:100])


@fault(
    "no PROXY header, or half of one",
    section="9",
    expected="handshake_failed",
    seconds=1.6,
    options=HASTY,
    never=_HEADER,
)
def no_header(stage: Stage) -> None:
    """The address it would count for is not known: it may not wait for ever."""
    stage.complete()
    guests = [Guest(stage.dial(proxied=True)) for _ in range(3)]
    guests[1].write(b"PROXY TCP4 127")
    guests[2].write(_header(guests[2].socket)[:-1])
    for guest in guests:
        stage.ends(guest)
        assert not guest.buffer, bytes(guest.buffer[:100])
    stage.lasted(0.9)


@fault(
    "a PROXY header and no handshake",
    section="6",
    expected="handshake_failed",
    seconds=1.6,
    options=HASTY,
    never=_HANDSHAKE,
)
def header_and_no_handshake(stage: Stage) -> None:
    """Two things that must come first: one deadline for both."""
    stage.complete()
    raw = stage.dial(proxied=True)
    guest = Guest(raw)
    raw.sendall(_header(raw))
    stage.ends(guest)
    stage.lasted(0.9)
