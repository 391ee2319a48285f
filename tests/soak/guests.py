"""Clients of the soak test: what they do, how they go, and what they count."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.harness import CUT, LOOPBACK, Ended, Message, Peer, encode, folder, frame
from tests.identities import SERVER, authority, tokens, users, write

TCP, TLS, UNIX = "tcp", "tls", "unix"
KINDS = (TCP, TLS, UNIX)

CLOSED = frozenset({"client_closed"})
LOST = frozenset({"connection_lost"})
# A socket that is closed with unread bytes in it sends a reset.
EITHER = CLOSED | LOST
NO_HANDSHAKE = frozenset({"handshake_failed"})

#: What `max_length` is, in bytes; content may be a little less long.
MAX_LENGTH = 1 << 20
#: Users, and a token, that stay.
NAMES = ("alice", "bob", "carol")
TOKEN = "a token that stays"


def end_code(*codes: str) -> frozenset[str]:
    """The codes one of which an end must have."""
    return frozenset(codes)


@dataclass(frozen=True)
class Plan:
    """What a run is made of. Times are in seconds, sizes in bytes."""

    #: How long the load lasts, and the load before it, after which all is measured for the first time.
    seconds: float
    warm: float
    #: The time in which each of the special visits is paid once.
    minute: float = 60.0
    #: Visits a second, and how many go on at once.
    rate: float = 30.0
    visitors: int = 10
    #: Clients that stay and send, and seconds between two of their broadcasts.
    senders: int = 6
    pause: float = 0.2
    #: The longest content of an echo, and of a broadcast.
    longest: int = MAX_LENGTH - 200
    longest_broadcast: int = 16384
    #: Seconds between two looks at the server.
    every: float = 5.0
    #: Options of the server. Whoever does as it should is never so late, on a busy machine either.
    auth_timeout: float = 10.0
    frame_timeout: float = 10.0
    write_timeout: float = 10.0
    idle_timeout: float = 60.0
    heartbeat: float = 3.0
    max_connections: int = 60
    #: Special visits that would take too long.
    without: frozenset[str] = frozenset()
    seed: int = 0

    @property
    def options(self) -> list[str]:
        """Those of `twistd tcpjson`."""
        return [
            *("--max-connections", str(self.max_connections)),
            *("--max-connections-per-ip", str(self.max_connections)),
            *("--auth-timeout", str(self.auth_timeout), "--frame-timeout", str(self.frame_timeout)),
            *("--write-timeout", str(self.write_timeout), "--heartbeat", str(self.heartbeat)),
            *("--handler-timeout", "5", "--idle-timeout", str(self.idle_timeout)),
            *("--rate", "500:1000", "--byte-rate", "8388608:16777216"),
            *("--max-queue", str(1 << 20), "--send-buffer", "65536"),
            "--allow-plain-auth",
        ]


class Site:
    """The files that a server reads, and where it listens."""

    def __init__(self) -> None:
        place = folder() / f"soak-{next(_sites)}"
        place.mkdir()
        self.probe = place / "probe.json"
        self._users, self._tokens = place / "users", place / "tokens"
        self._key, self._certificate = place / "key.pem", place / "certificate.pem"
        # A login that is under way fails when the line of its user changes.
        self._people = users({name: self.password(name) for name in NAMES})
        self.generation = 0
        self.renew()
        self._unix = place / "socket"
        self.ports = [
            LOOPBACK,
            f"ssl:0:interface=127.0.0.1:privateKey={self._key}:certKey={self._certificate}",
            f"unix:{self._unix}",
        ]
        self.auth = [f"--auth=scram:{self._users}", f"--auth=token:{self._tokens}"]
        self.contexts = [
            authority().context(version=version)
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
        ]

    @staticmethod
    def password(name: str) -> str:
        """That of a user who stays."""
        return f"the password of {name}"

    def renew(self) -> None:
        """Write the files with another certificate, another user and another token beside those that stay."""
        self.generation += 1
        identity = authority().issue(usages=[SERVER])
        self.serial = identity.serial
        write(self._key, identity.key_pem)
        write(self._certificate, identity.certificate_pem)
        # The first line is the secret of the file.
        guest = users({f"guest {self.generation}": "secret"}).split("\n", 1)[1]
        write(self._users, self._people + guest)
        write(self._tokens, tokens({TOKEN: "robot", self.token(): "guest"}))

    def token(self, ago: int = 0) -> str:
        """The token that goes when the files are written anew; or that of so many times ago."""
        return f"the token number {self.generation - ago}"


_sites = itertools.count()


class Tally:
    """What the clients did and saw."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        #: By client: what it did, and the codes one of which must be that of its end.
        self.ends: dict[str, list[tuple[str, frozenset[str]]]] = {}
        self.problems: list[str] = []

    def count(self, what: str, number: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[what] += number

    def end(self, client_id: str, deed: str, codes: frozenset[str]) -> None:
        """A client is gone."""
        with self._lock:
            self.ends.setdefault(client_id, []).append((deed, codes))

    def problem(self, text: str) -> None:
        """Something went wrong."""
        with self._lock:
            self.problems.append(text)


class Gate:
    """Lets clients come in, but while somebody needs the door for himself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False

    @contextlib.contextmanager
    def entering(self) -> Iterator[None]:
        """While a client comes in."""
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """While nobody else does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._shut = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()


class Guest(Peer):
    """A client that answers pings, looks for replies among broadcasts, and may compress."""

    #: Whether it answers pings.
    alive = True
    #: Whether compression was agreed on.
    compresses = False

    def __init__(self, kind: str, connection: socket.socket, name: str = "") -> None:
        super().__init__(connection)
        self.kind = kind
        self._name = name
        self._numbers = itertools.count(1)

    @property
    def client_id(self) -> str:
        return str(self.welcome.get("client_id", self._name))

    def send(self, *messages: object) -> None:
        self.write(b"".join(map(compressed if self.compresses else encode, messages)))

    def payload(self) -> bytes:
        if not self.compresses:
            return super().payload()
        while not self.buffer:
            if not self.fill():
                raise Ended("end", False)
        marked, self.buffer[0] = self.buffer[0] & 0x80, self.buffer[0] & 0x7F
        payload = super().payload()
        return zlib.decompress(payload) if marked else payload

    def take(self) -> Message | None:
        """The next message, if it is a reply; None if it was not asked for."""
        message = super().receive()
        if message["type"] == "ping" and "code" not in message:
            if self.alive:
                self.send({"type": "pong", "ping_timestamp": message["timestamp"]})
        elif message["type"] == "broadcast":
            self.heard(message)
        else:
            return message
        return None

    def heard(self, message: Message) -> None:
        """A broadcast has come."""

    def receive(self) -> Message:
        while (message := self.take()) is None:
            pass
        return message

    def request(self, **fields: object) -> Message:
        """
        Send a request with an id and return the reply.

        Raises:
            AssertionError: it is another's.
        """
        number = next(self._numbers)
        reply = self.ask({**fields, "id": number})
        expect(reply.get("id") == number, reply)
        return reply

    def error(self, code: str, fatal: bool = False) -> None:
        """
        See that an error comes now.

        Raises:
            AssertionError: something else came.
        """
        error = self.receive()
        expect((error["type"], error.get("code"), error.get("fatal")) == ("error", code, fatal), error)

    def drain(self) -> None:
        """Read bytes, of TLS too, to the end, be it a reset."""
        # TLS itself reads no more when one side has ended.
        with contextlib.suppress(*CUT):
            while socket.socket.recv(self.socket, 65536):
                pass
        self.close()

    def ended(self, code: str) -> None:
        """
        See that a fatal error comes, then the end.

        Raises:
            AssertionError: something else came.
        """
        self.error(code, True)
        self.drain()


def compressed(message: object) -> bytes:
    """The frame of a JSON value, compressed, however short it is."""
    return _marked(zlib.compress(json.dumps(message).encode()))


def _marked(payload: bytes) -> bytes:
    """The frame of what is to pass for a compressed payload."""
    return struct.pack(">I", len(payload) | 1 << 31) + payload


def expect(fits: bool, message: object) -> None:
    """
    See that something holds of a message.

    Raises:
        AssertionError: it does not.
    """
    if not fits:
        raise AssertionError(f"not expected: {str(message)[:300]}")


# What a client does.


def deeds(plan: Plan, dice: random.Random) -> dict[Callable[[Guest], None], int]:
    """What one can do who has logged in, and how often of a hundred times it is done."""

    def size(longest: int) -> int:
        """As many of 10 to 100 bytes as of 100,000 to 1,000,000."""
        return int(10 * (longest / 10) ** dice.random())

    def ping(guest: Guest) -> None:
        expect((reply := guest.request(type="ping"))["type"] == "pong", reply)

    def echo(guest: Guest) -> None:
        content = f"{dice.randrange(10**9):010d}".ljust(size(plan.longest), "x")
        reply = guest.request(type="echo", content=content)
        expect(reply.get("content") == content, reply)

    def broadcast(guest: Guest) -> None:
        reply = guest.request(type="broadcast", content="y" * size(plan.longest_broadcast))
        expect(reply["type"] == "broadcast_sent" and reply["recipients"] >= 0, reply)

    def statistics(guest: Guest) -> None:
        reply = guest.request(type="get_stats")
        expect(reply["type"] == "server_stats" and reply["connected_clients"] > 0, reply)

    def broken(guest: Guest) -> None:
        guest.write(frame(b'{"type": "ech') + frame(b"[1,") + frame(b"\xff"))
        for _ in range(3):
            guest.error("bad_json")

    def wrong(guest: Guest) -> None:
        guest.write(frame(b""))
        guest.error("bad_frame")
        guest.send({"type": "ping", "id": []})
        guest.error("bad_message")

    def other(guest: Guest) -> None:
        expect((reply := guest.ask({"type": "move", "x": 1}))["type"] == "response", reply)
        guest.write(frame(b"hello"))
        expect((reply := guest.receive()).get("original_text") == "hello", reply)

    def many(guest: Guest) -> None:
        guest.write(encode({"type": "ping"}) * 300)
        for _ in range(300):
            expect((reply := guest.receive())["type"] == "pong", reply)

    return {
        ping: 20,
        echo: 30,
        broadcast: 15,
        statistics: 10,
        broken: 8,
        wrong: 6,
        other: 6,
        many: 5,
    }


# How a client goes; each returns the codes one of which its end must have.

Leaving = Callable[[Guest], frozenset[str]]


def half_close(guest: Guest) -> frozenset[str]:
    """Say that nothing more comes, and read to the end."""
    if guest.kind == TLS:
        assert isinstance(guest.socket, ssl.SSLSocket)
        # It complains of what comes before the other side's close_notify.
        with contextlib.suppress(ssl.SSLError, *CUT):
            guest.socket.unwrap()
    else:
        guest.socket.shutdown(socket.SHUT_WR)
    guest.drain()
    return CLOSED


def close(guest: Guest) -> frozenset[str]:
    """Close the socket, whatever is in it; with TLS, without close_notify."""
    guest.close()
    return LOST if guest.kind == TLS else EITHER


def reset(guest: Guest) -> frozenset[str]:
    """Go by force. A Unix socket knows no such thing."""
    guest.reset()
    return EITHER if guest.kind == UNIX else LOST


def within_a_frame(guest: Guest) -> frozenset[str]:
    """Close in the midst of one's own frame."""
    guest.write(encode({"type": "echo", "content": "x" * 1000})[:500])
    return close(guest) if guest.kind == TLS else half_close(guest)


def reset_within_a_frame(guest: Guest) -> frozenset[str]:
    """Go by force in the midst of one's own frame."""
    guest.write(encode({"type": "echo", "content": "x" * 100_000})[:70_000])
    return reset(guest)


def too_large(guest: Guest) -> frozenset[str]:
    """Announce more than there may be, and send on."""
    with contextlib.suppress(*CUT):
        guest.write(struct.pack(">I", MAX_LENGTH + 1) + b"x" * 30_000)
    guest.ended("too_large")
    return end_code("too_large")


def bomb(guest: Guest) -> frozenset[str]:
    """Send few bytes that inflate to too many; without compression, a length that is too much."""
    guest.write(_marked(zlib.compress(bytes(MAX_LENGTH + 1))))
    guest.ended("too_large")
    return end_code("too_large")


def broken_stream(guest: Guest) -> frozenset[str]:
    """Send a compressed payload that is cut short."""
    code = "bad_frame" if guest.compresses else "too_large"
    guest.write(_marked(zlib.compress(b"x" * 1000)[:-5]))
    guest.ended(code)
    return end_code(code)


def without_reading(guest: Guest) -> frozenset[str]:
    """Ask for much, read nothing of it, go by force."""
    guest.write_what_fits(encode({"type": "echo", "content": "z" * 30_000}) * 40)
    return reset(guest)


def over_the_rate(guest: Guest) -> frozenset[str]:
    """Ask for more than the rate allows, and go by force while one has to wait."""
    guest.write_what_fits(encode({"type": "ping"}) * 2000)
    time.sleep(0.05)
    return reset(guest)


LEAVINGS: dict[Leaving, int] = {
    half_close: 30,
    close: 18,
    reset: 13,
    within_a_frame: 8,
    reset_within_a_frame: 8,
    too_large: 6,
    bomb: 3,
    broken_stream: 3,
    without_reading: 8,
    over_the_rate: 3,
}


class Witness(Guest):
    """A client that stays, and sees that it gets all broadcasts of the others that stay, in order."""

    def __init__(self, kind: str, connection: socket.socket, tally: Tally) -> None:
        super().__init__(kind, connection)
        self._tally = tally
        #: By sender: the number that must come next. They are at the same number, whoever is how far.
        self.next: dict[int, int] = {}

    def heard(self, message: Message) -> None:
        content = message["content"]
        if not isinstance(content, list):
            return
        sender, number, _ = content
        due = self.next[sender]
        if number == due:
            self._tally.count("delivered")
        else:
            self._tally.count("lost", abs(number - due))
            self._tally.problem(f"broadcast {number} of {sender} came where {due} was due")
        self.next[sender] = number + 1

    def wait_for(self, number: int) -> None:
        """Read until all others' broadcasts have come up to this number."""
        while min(self.next.values()) <= number:
            reply = self.take()
            expect(reply is None or reply["type"] == "broadcast_sent", reply)
