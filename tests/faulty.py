"""Servers with one fault each: a real one, behind a proxy that spoils what passes; and a small sound one."""

from __future__ import annotations

import contextlib
import json
import math
import select
import socket
import threading
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from msgspec import Raw
from msgspec.json import decode

from tests.harness import COMPRESSED, TIMEOUT, Ended, Message, encode, frame
from tests.strangers import Stranger, Visit

#: The longest payload that the servers behind take.
MAX_LENGTH = 1048576


class Link:
    """One connection through the proxy."""

    def __init__(self, faulty: Faulty, visit: Visit, upstream: socket.socket) -> None:
        self.faulty = faulty
        self.visit = visit
        self.upstream = upstream
        self._lock = threading.Lock()
        #: What is left of the client's bytes and of the server's.
        self.buffer = bytearray()
        self.replies = bytearray()
        #: What follows has no frames any more.
        self.raw = False
        self.compresses = False
        #: The longest payload that the server takes now.
        self.longest = MAX_LENGTH
        #: The client has left.
        self.gone = threading.Event()
        #: What a fault remembers.
        self.state: dict[str, Any] = {}

    @property
    def number(self) -> int:
        """Which connection it is, from 1 up."""
        return self.visit.number

    def tell(self, data: bytes) -> None:
        """Send bytes to the client."""
        with self._lock, contextlib.suppress(OSError):
            self.visit.socket.sendall(data)

    def say(self, *messages: object) -> None:
        """Send messages to the client."""
        self.tell(b"".join(map(encode, messages)))

    def close(self) -> None:
        """End it, both ways."""
        for each in (self.visit.socket, self.upstream):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Fault:
    """What is wrong with the server; this one changes nothing."""

    def chunk(self, link: Link, data: bytes) -> bytes:
        """Bytes that came from the client in one read."""
        return data

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        """A frame from the client, and the message in it where it is one; returns what the server gets."""
        return whole

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        """A frame from the server; returns what the client gets."""
        changed = self.change(link, dict(message))
        return whole if changed == message else b"" if changed is None else encode(changed)

    def change(self, link: Link, message: Message) -> Message | None:
        """A message from the server; returns what the client gets in its place."""
        return message

    def over(self, link: Link) -> None:
        """The server has ended the connection."""
        with contextlib.suppress(OSError):
            link.visit.socket.shutdown(socket.SHUT_WR)

    def deliver(self, link: Link, data: bytes) -> None:
        """Hand bytes to the client."""
        link.tell(data)


class Planted(NamedTuple):
    """A fault, and the checks that must find it."""

    make: Callable[[], Fault]
    checks: tuple[str, ...]
    #: Which server stands behind; tests/test_conform.py has their options.
    server: str


#: All faults by their names.
FAULTS: dict[str, Planted] = {}


def fault(*checks: str, server: str = "plain") -> Callable[[type[Fault]], type[Fault]]:
    """Enter a fault into the table, and the checks that must find it."""

    def enter(made: type[Fault]) -> type[Fault]:
        FAULTS[made.__name__] = Planted(made, checks, server)
        return made

    return enter


class Faulty(Stranger):
    """
    The proxy.

    Args:
        target: host and port of the real server.
        fault: what it spoils.
    """

    def __init__(self, target: tuple[str, int], fault: Fault) -> None:
        self._target = target
        self.fault = fault
        self.links: list[Link] = []
        #: For faults that hold all up.
        self.lock = threading.Lock()
        super().__init__(self._serve_one)

    def _serve_one(self, visit: Visit) -> None:
        upstream = socket.create_connection(self._target, TIMEOUT)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(self, visit, upstream)
        self.links.append(link)
        back = threading.Thread(target=self._back, args=(link,), daemon=True)
        back.start()
        try:
            while data := visit.socket.recv(65536):
                self._up(link, self.fault.chunk(link, data))
            link.gone.set()
            upstream.sendall(link.buffer)
            upstream.shutdown(socket.SHUT_WR)
            back.join(TIMEOUT)
        except (OSError, Ended):
            pass
        finally:
            self.links.remove(link)
            link.gone.set()
            link.close()
            back.join(TIMEOUT)
            upstream.close()

    def _up(self, link: Link, data: bytes) -> None:
        link.buffer += data
        position = 0
        out = []
        while not link.raw and len(link.buffer) - position >= 4:
            length = int.from_bytes(link.buffer[position : position + 4], "big")
            packed = bool(length & COMPRESSED) and link.compresses
            length -= COMPRESSED * packed
            if length > link.longest:
                link.raw = True
            elif len(link.buffer) - position < 4 + length:
                break
            else:
                whole = bytes(link.buffer[position : position + 4 + length])
                position += 4 + length
                out.append(self.fault.up(link, None if packed else parsed(whole[4:]), whole))
        del link.buffer[:position]
        if link.raw:
            out.append(bytes(link.buffer))
            link.buffer.clear()
        if data := b"".join(out):
            link.upstream.sendall(data)

    def _back(self, link: Link) -> None:
        try:
            while data := link.upstream.recv(65536):
                link.replies += data
                self._down(link)
            self.fault.over(link)
        except OSError:
            link.close()

    def _down(self, link: Link) -> None:
        position = 0
        out = []
        while len(link.replies) - position >= 4:
            length = int.from_bytes(link.replies[position : position + 4], "big")
            packed = bool(length & COMPRESSED)
            length -= COMPRESSED * packed
            if len(link.replies) - position < 4 + length:
                break
            whole = bytes(link.replies[position : position + 4 + length])
            position += 4 + length
            payload = zlib.decompress(whole[4:]) if packed else whole[4:]
            message = json.loads(payload)
            if message["type"] == "hello_response":
                link.compresses = message["compression"] is not None
            elif message["type"] == "welcome":
                link.longest = 4096 if message["auth"] else MAX_LENGTH
            elif message.get("status") == "authenticated":
                link.longest = MAX_LENGTH
            out.append(self.fault.down(link, message, whole))
        del link.replies[:position]
        self.fault.deliver(link, b"".join(out))


def parsed(payload: bytes) -> Message | None:
    """The message in a payload, None where there is none."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


# Section 1.


@fault("many-frames-in-one-segment")
class OneFrameOfEachRead(Fault):
    """Handles one frame of each read, and drops the rest."""

    def chunk(self, link: Link, data: bytes) -> bytes:
        end = 4 + int.from_bytes(data[:4], "big")
        return data if link.buffer else data[:end]


@fault("bytes-that-trickle")
class ReadsAreFrames(Fault):
    """Takes each read for a whole frame."""

    def chunk(self, link: Link, data: bytes) -> bytes:
        return data if len(data) >= 4 + int.from_bytes(data[:4], "big") else b""


@fault("length-zero", "errors-end-nothing")
class LengthZeroEnds(Fault):
    """Closes the connection at a length of 0."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        if whole == b"\0\0\0\0":
            link.close()
        return whole


@fault("length-zero")
class LengthZeroIsIgnored(Fault):
    """Says nothing to a length of 0."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        return b"" if whole == b"\0\0\0\0" else whole


@fault("one-byte-more-than-max-length")
class TooLargeGoesOn(Fault):
    """Sends too_large, and keeps the connection."""

    def over(self, link: Link) -> None:
        link.gone.wait(TIMEOUT)


@fault("gone-in-two-seconds")
class TooLargeStays(Fault):
    """Ends its sending side after too_large, and takes bytes for ever."""

    def change(self, link: Link, message: Message) -> Message:
        link.state["fatal"] = message.get("fatal")
        return message

    def chunk(self, link: Link, data: bytes) -> bytes:
        return b"" if link.state.get("fatal") else data


@fault("one-byte-more-than-max-length")
class TooLargeIsSilent(Fault):
    """Closes without a word at a frame that is too long."""

    def change(self, link: Link, message: Message) -> Message | None:
        return None if message.get("code") == "too_large" else message


@fault("too-large-reaches-who-goes-on-sending")
class ErrorsAreOvertaken(Fault):
    """Ends by force, so that what was sent before does not arrive, when more comes behind a fatal fault."""

    def chunk(self, link: Link, data: bytes) -> bytes:
        link.state["much"] = link.raw or len(data) > 10_000
        return data

    def change(self, link: Link, message: Message) -> Message | None:
        if message.get("code") == "too_large" and link.state["much"]:
            link.close()
            return None
        return message


@fault("echo-of-max-length", "payload-of-max-length")
class MaxLengthIsOneLess(Fault):
    """Takes a byte less than it says."""

    def change(self, link: Link, message: Message) -> Message:
        if message["type"] == "welcome":
            message["max_length"] += 1
        return message


@fault("truncated-objects", "no-client-gets-what-a-strict-parser-refuses")
class BrokenJSONIsText(Fault):
    """Takes broken JSON for plain text."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        return frame(b"text " + whole[4:]) if message is None and whole[4:5] == b"{" else whole


@fault("no-client-gets-what-a-strict-parser-refuses")
class NaNIsRelayed(Fault):
    """Relays contents as they come."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        if message is not None and message.get("type") == "broadcast" and b"NaN" in whole:
            for other in link.faulty.links:
                if other is not link:
                    other.tell(frame(b'{"type":"broadcast","content":NaN}'))
            return encode({"type": "echo"})
        return whole


@fault("errors-end-nothing", "truncated-objects")
class BadJSONEnds(Fault):
    """Closes the connection after bad_json."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        if message.get("code") == "bad_json":
            link.tell(whole)
            link.close()
            return b""
        return whole


@fault("nothing-comes-unasked")
class TalksUnasked(Fault):
    """Says something behind the welcome."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        more = encode({"type": "news", "timestamp": message["timestamp"]})
        return whole + more if message["type"] == "welcome" else whole


@fault("frame-timeout", server="quick")
class FramesTakeForEver(Fault):
    """Never gives up a frame that has begun: the proxy hands on whole ones alone."""


@fault("one-client-does-not-disturb-another")
class ErrorsGoToAll(Fault):
    """Tells everybody of an error."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        for other in link.faulty.links if message["type"] == "error" else ():
            if other is not link:
                other.tell(whole)
        return whole


@fault("depth-65-arrays-content")
class DeepIsTaken(Fault):
    """Sends back what is nested too deep."""

    def change(self, link: Link, message: Message) -> Message:
        deep = message.get("code") == "bad_json" and "deep" in message["message"]
        return {"type": "echo_response", "content": [], "timestamp": ""} if deep else message


# Section 2.


@fault("answers-without-id-in-order", "many-frames-in-one-segment")
class AnswersOutOfOrder(Fault):
    """Swaps answers of a read."""

    def deliver(self, link: Link, data: bytes) -> None:
        frames = []
        while data:
            end = 4 + int.from_bytes(data[:4], "big")
            frames.append(data[:end])
            data = data[end:]
        link.tell(b"".join(reversed(frames)))


@fault("id-on-echo", "every-id-comes-back", "a-reply-without-id-has-none")
class NoIds(Fault):
    """Leaves the id out of replies."""

    def change(self, link: Link, message: Message) -> Message:
        message.pop("id", None)
        return message


@fault("id-one", "every-id-comes-back")
class IdsAreText(Fault):
    """Sends an id back as text."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "id": str(message["id"])} if "id" in message else message


@fault("a-reply-without-id-has-none")
class IdsStay(Fault):
    """Sends the last id with replies to requests without one."""

    def change(self, link: Link, message: Message) -> Message:
        link.state["id"] = message.get("id", link.state.get("id"))
        return message if link.state["id"] is None else {**message, "id": link.state["id"]}


@fault("error-id-string", "errors-carry-the-id")
class ErrorsWithoutId(Fault):
    """Leaves the id out of errors."""

    def change(self, link: Link, message: Message) -> Message:
        if message["type"] == "error":
            message.pop("id", None)
        return message


@fault("numbers-to-the-last-digit")
class NumbersAreDoubles(Fault):
    """Keeps numbers as doubles, as many languages do."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        if message["type"] != "echo_response":
            return whole
        return frame(json.dumps(json.loads(whole[4:], parse_int=float)).encode())


@fault("ping-without-timestamp", "timestamps-go-on")
class TimesAreLocal(Fault):
    """Writes times without a Z."""

    def change(self, link: Link, message: Message) -> Message:
        for name in ("timestamp", "pong_timestamp"):
            if name in message:
                message[name] = str(message[name]).removesuffix("Z")
        return message


@fault("timestamps-go-on")
class TimeStandsStill(Fault):
    """Stamps all of a connection with the same time."""

    def change(self, link: Link, message: Message) -> Message:
        first = link.state.setdefault("time", message["timestamp"])
        return {**message, "pong_timestamp": first} if message["type"] == "pong" else message


@fault("client-ids-differ")
class AllHaveOneId(Fault):
    """Calls all clients the same."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "client_id": "10.0.0.1:1"} if "client_id" in message else message


@fault("fields-that-nobody-knows")
class FieldsComeBack(Fault):
    """Refuses fields that it does not know."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        return encode({"type": "ping", "id": [1]}) if message and "x-conform" in message else whole


# Section 3.


@fault("ping-timestamp-strings", "ping-timestamp-containers")
class PongsForget(Fault):
    """Leaves ping_timestamp out."""

    def change(self, link: Link, message: Message) -> Message:
        message.pop("ping_timestamp", None)
        return message


@fault("welcome-has-its-fields")
class WelcomeWithoutClientId(Fault):
    """Does not say who the client is."""

    def change(self, link: Link, message: Message) -> Message:
        if message["type"] == "welcome":
            del message["client_id"]
        return message


@fault("broadcast-reaches-all-others", "broadcast-recipients")
class SendersHearThemselves(Fault):
    """Relays a broadcast to its sender, too."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        copy = {"type": "broadcast", "from_client": "127.0.0.1:9", "content": "", "timestamp": ""}
        return whole + encode(copy) if message["type"] == "broadcast_sent" else whole


@fault("broadcast-reaches-all-others")
class SomeHearNothing(Fault):
    """Relays nothing to some clients."""

    def change(self, link: Link, message: Message) -> Message | None:
        return None if message["type"] == "broadcast" and link.number % 3 == 0 else message


@fault("broadcast-reaches-all-others", "broadcast-strings")
class BroadcastsTwice(Fault):
    """Relays each broadcast twice."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        return whole * (2 if message["type"] == "broadcast" else 1)


@fault("broadcasts-keep-their-order")
class BroadcastsOutOfOrder(Fault):
    """Relays what it relays at once in another order."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        held: bytes = link.state.pop("held", b"")
        if message["type"] != "broadcast":
            return held + whole
        if held:
            return whole + held
        link.state["held"] = whole
        return b""


@fault("recipients-are-counted", "broadcast-recipients")
class SendersAreCounted(Fault):
    """Counts the sender among the recipients."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "recipients": message["recipients"] + 1} if "recipients" in message else message


@fault("connected-clients-are-counted")
class ClientsAreNotCounted(Fault):
    """Says that one client is connected, always."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "connected_clients": 1} if "connected_clients" in message else message


@fault("total-messages-grows")
class MessagesAreNotCounted(Fault):
    """Says that so many messages were received, always."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "total_messages": 42} if "total_messages" in message else message


@fault("times-of-statistics-agree", "get-stats")
class UptimeIsAFraction(Fault):
    """Says the uptime with a fraction."""

    def change(self, link: Link, message: Message) -> Message:
        if "uptime_seconds" in message:
            message["uptime_seconds"] += 0.25
        return message


@fault("times-of-statistics-agree")
class UptimeIsTooLong(Fault):
    """Says the uptime in milliseconds."""

    def change(self, link: Link, message: Message) -> Message:
        if "uptime_seconds" in message:
            message["uptime_seconds"] = message["uptime_seconds"] * 1000 + 5000
        return message


@fault("times-of-statistics-agree")
class StartMoves(Fault):
    """Says that it was started just now, always."""

    def change(self, link: Link, message: Message) -> Message:
        if "server_start_time" in message:
            message["server_start_time"] = message["current_time"]
            message["uptime_seconds"] = 0
        return message


@fault("unknown-type", "unknown-missing-type")
class UnknownTypesAreIgnored(Fault):
    """Does not answer types that it does not know, but the first of a connection."""

    def change(self, link: Link, message: Message) -> Message | None:
        if message["type"] != "response" or "conform" in str(message["original_message"].get("type")):
            return message
        return None


@fault("who-comes-later-hears-nothing-of-before")
class LateClientsHearBroadcasts(Fault):
    """Sends the last broadcast to who connects."""

    last = b""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        if message["type"] == "broadcast_sent":
            type(self).last = encode({"type": "broadcast", "content": "old"})
        return whole + (self.last if message["type"] == "welcome" else b"")


@fault("long-broadcast", "echo-of-max-length")
class LongFramesAreCut(Fault):
    """Cuts what is longer than 64 KiB."""

    def change(self, link: Link, message: Message) -> Message:
        if "content" in message and isinstance(message["content"], str):
            message["content"] = message["content"][:65536]
        return message


# Section 4.


def spoiled(kind: str, fields: Message) -> type[Fault]:
    """A fault of which some fields of messages of a type are wrong."""

    class Spoiled(Fault):
        def change(self, link: Link, message: Message) -> Message:
            return {**message, **fields} if message["type"] == kind else message

    return Spoiled


for _name, _value in {
    "protocol": "1",
    "server": "a server",
    "max_length": "1048576",
    "heartbeat": "25 s",
    "compression": "zlib",
    "features": None,
    "auth": {},
    "limits": {"frame_timeout": "30"},
}.items():
    FAULTS[f"welcome_{_name}"] = Planted(
        spoiled("welcome", {_name: _value}), (f"welcome-{_name.replace('_', '-')}",), "plain"
    )


# Section 5.


@fault("compression-that-was-asked-for")
class CompressesUnasked(Fault):
    """Agrees on zlib, whatever was asked for."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "compression": "zlib"} if message["type"] == "hello_response" else message


@fault("features-that-were-asked-for", "hello-unknown-names")
class FeaturesAreInvented(Fault):
    """Agrees on features that nobody has."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "features": ["more"]} if message["type"] == "hello_response" else message


@fault("second-hello", "late-hello", "hello-twice")
class HelloAgain(Fault):
    """Takes hello at any time."""

    def change(self, link: Link, message: Message) -> Message:
        if message.get("code") != "bad_message" or "hello" not in message["message"]:
            return message
        agreed = {"compression": None, "heartbeat": False, "features": [], "timestamp": message["timestamp"]}
        return {"type": "hello_response", "id": message.get("id"), **agreed}


# Section 6.


@fault("before-the-login", "auth-before-echo", server="token")
class ServedBeforeTheLogin(Fault):
    """Answers an echo before the login."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        kind = message["type"] if message else None
        if kind == "auth":
            link.state["in"] = True
        return encode({"type": "ping"}) if kind == "echo" and "in" not in link.state else whole


@fault("secrets-do-not-come-back", "auth-token", server="token")
class SecretsComeBack(Fault):
    """Sends the token back."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        if message and message["type"] == "auth":
            link.state["token"] = message.get("token")
        return whole

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "token": link.state["token"]} if message["type"] == "auth_result" else message


@fault("auth-that-is-none", server="token")
class AnyMechanismWillDo(Fault):
    """Takes an auth of a mechanism that it does not know for a failure."""

    def change(self, link: Link, message: Message) -> Message:
        if message.get("code") != "bad_message":
            return message
        return {"type": "auth_result", "status": "authentication_failed", "timestamp": message["timestamp"]}


@fault("broadcasts-tell-the-user", "auth-then-broadcast", server="token")
class UsersAreNotTold(Fault):
    """Leaves from_user out."""

    def change(self, link: Link, message: Message) -> Message:
        message.pop("from_user", None)
        return message


@fault("nobody-hears-before-the-login", server="token")
class AllHearBroadcasts(Fault):
    """Relays broadcasts to who has yet to log in."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        for other in link.faulty.links if message["type"] == "broadcast_sent" else ():
            if not other.state.get("in"):
                other.tell(encode({"type": "broadcast", "content": 1}))
        if message.get("status") == "authenticated":
            link.state["in"] = True
        return whole


@fault("frames-before-the-login", "auth-frame-of-4097", server="token")
class LongBeforeTheLogin(Fault):
    """Takes long frames before the login."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        return encode({"type": "ping"}) if len(whole) > 4100 else whole

    def chunk(self, link: Link, data: bytes) -> bytes:
        return b"" if data == b"\0\0\x10\x01" else data


@fault("auth-bad-token-three-times", server="guess")
class FailuresWithoutEnd(Fault):
    """Lets a client guess as often as it likes."""

    def change(self, link: Link, message: Message) -> Message | None:
        return None if message.get("code") == "auth_failed" else message


@fault("auth-bad-token", server="guess")
class AnyTokenWillDo(Fault):
    """Lets everybody in."""

    def change(self, link: Link, message: Message) -> Message:
        good = {"status": "authenticated", "user": "alice"}
        return {**message, **good} if message["type"] == "auth_result" else message


@fault("auth-timeout", server="quick-token")
class LoginsTakeForEver(Fault):
    """Never gives up who does not log in."""

    def change(self, link: Link, message: Message) -> Message | None:
        return None if message.get("code") == "auth_timeout" else message

    def over(self, link: Link) -> None:
        link.gone.wait(TIMEOUT)


# Section 7.


@fault("nothing-compressed-unasked")
class CompressedForAll(Fault):
    """Compresses for clients that did not ask for it."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        if len(whole) < 5000 or whole[0] & 0x80:
            return whole
        return frame(zlib.compress(whole[4:]), True)


@fault("compressed-and-other-frames", "zlib-long-echo")
class StreamsAreCut(Fault):
    """Sends compressed frames without their end."""

    def down(self, link: Link, message: Message, whole: bytes) -> bytes:
        return frame(whole[4:-4], True) if whole[0] & 0x80 else whole


@fault("broken-streams", "zlib-cut-short")
class BrokenStreamsGoOn(Fault):
    """Does not end the connection at a broken stream."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "fatal": False} if message.get("code") == "bad_frame" else message


@fault("inflated-to-max-length")
class InflatesWithoutEnd(Fault):
    """Takes what inflates to more than max_length."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        if not link.compresses or not whole[0] & 0x80:
            return whole
        with contextlib.suppress(zlib.error):
            if len(zlib.decompress(whole[4:])) > MAX_LENGTH:
                return encode({"type": "ping"})
        return whole


# Section 8.


@fault("ping-after-silence", server="quick")
class NoPings(Fault):
    """Sends no pings."""

    def change(self, link: Link, message: Message) -> Message | None:
        return None if message["type"] == "ping" else message


@fault("ping-after-silence", server="quick")
class PingsWithId(Fault):
    """Asks for a reply to its pings."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "id": 1} if message["type"] == "ping" else message


@fault("hello-heartbeat-pong", "ping-after-silence", server="quick")
class PongsAreAnswered(Fault):
    """Answers the pong to its ping."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        return encode({"type": "x-pong"}) if message and message["type"] == "pong" else whole


@fault("no-ping-unasked", server="quick")
class PingsForAll(Fault):
    """Sends pings to who did not ask for them."""

    def up(self, link: Link, message: Message | None, whole: bytes) -> bytes:
        if message and message["type"] == "hello":
            message["heartbeat"] = True
            return encode(message)
        return whole


# Section 9.


@fault("errors-have-their-fields")
class ErrorsWithoutMessage(Fault):
    """Says nothing for people."""

    def change(self, link: Link, message: Message) -> Message:
        if message["type"] == "error":
            message["message"] = ""
        return message


@fault("errors-have-their-fields", "error-too-large")
class FatalIsNotSaid(Fault):
    """Says of no error that it is fatal."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "fatal": False} if "fatal" in message else message


@fault("errors-have-their-fields", "error-bad-json")
class CodesOfItsOwn(Fault):
    """Has other codes."""

    def change(self, link: Link, message: Message) -> Message:
        return {**message, "code": "parse_error"} if message.get("code") == "bad_json" else message


@fault("answers-come-before-the-fatal-error")
class AnswersAreDropped(Fault):
    """Drops answers when a fatal error follows."""

    def change(self, link: Link, message: Message) -> Message | None:
        return None if link.raw and message["type"] == "echo_response" else message


# Section 10.


@fault("a-stuck-client-holds-up-nobody")
class OneHoldsUpAll(Fault):
    """Waits for each client to take what it is sent, and does nothing else meanwhile."""

    def deliver(self, link: Link, data: bytes) -> None:
        with link.faulty.lock:
            link.tell(data)


@fault("slow-consumer")
class QueuesWithoutEnd(Fault):
    """Keeps for a client whatever it does not read."""

    def deliver(self, link: Link, data: bytes) -> None:
        queue: list[bytes] = link.state.setdefault("queue", [])
        queue.append(data)
        if "thread" not in link.state:
            link.state["thread"] = threading.Thread(target=self._feed, args=(link, queue), daemon=True)
            link.state["thread"].start()

    def _feed(self, link: Link, queue: list[bytes]) -> None:
        while link in link.faulty.links:
            if queue:
                link.tell(queue.pop(0))
            else:
                time.sleep(0.0005)


@fault("all-is-answered-that-is-read-late")
class LateReadersLoseAnswers(Fault):
    """Drops answers when a client has many to read."""

    def deliver(self, link: Link, data: bytes) -> None:
        if select.select([], [link.visit.socket], [], 0.02)[1]:
            link.tell(data)


class Sound(Stranger):
    """A server of sections 1 to 3 and nothing more, written from the document: a thread for each client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, Visit] = {}
        self._started = datetime.now(UTC)
        self._messages = 0
        super().__init__(self._handle)

    def _handle(self, visit: Visit) -> None:
        host, port = visit.socket.getpeername()
        name = f"{host}:{port}"
        with self._lock:
            self._clients[name] = visit
            visit.send({"type": "welcome", "client_id": name, "message": "hello", "timestamp": now()})
        try:
            while True:
                length = int.from_bytes(self._exactly(visit, 4), "big")
                if length > MAX_LENGTH:
                    break
                answer = self._answer(name, self._exactly(visit, length))
                with self._lock:
                    visit.write(frame(answer))
        finally:
            with self._lock:
                del self._clients[name]
        visit.write(frame(problem("too_large")))
        visit.socket.shutdown(socket.SHUT_WR)
        end = time.monotonic() + 2
        while (left := end - time.monotonic()) > 0:
            visit.socket.settimeout(left)
            try:
                if not visit.socket.recv(65536):
                    break
            except TimeoutError:
                break

    @staticmethod
    def _exactly(visit: Visit, size: int) -> bytes:
        while len(visit.buffer) < size:
            if not visit.fill():
                raise Ended("the client left", False)
        data = bytes(visit.buffer[:size])
        del visit.buffer[:size]
        return data

    def _answer(self, name: str, payload: bytes) -> bytes:
        with self._lock:
            self._messages += 1
        if not payload:
            return problem("bad_frame")
        try:
            text = payload.decode()
            value = json.loads(text, parse_constant=refuse)
            # A lone surrogate has no UTF-8.
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            if payload.lstrip(b" \t\r\n")[:1] in (b"{", b"[") or payload[:3] == b"\xef\xbb\xbf":
                return problem("bad_json")
            try:
                return reply("echo", b"null", original_text=json.dumps(payload.decode()), from_server="true")
            except UnicodeDecodeError:
                return problem("bad_json")
        if not isinstance(value, dict):
            if not bounded(text):
                return problem("bad_json")
            return reply("echo", b"null", original_text=text, from_server="true")
        raw = {field: bytes(part) for field, part in decode(payload, type=dict[str, Raw]).items()}
        number = value.get("id")
        sound = isinstance(number, str) and len(number) <= 128
        sound |= type(number) is int and -(2**63) <= number < 2**63
        kept = raw["id"] if sound else b"null"
        kind = value.get("type", "")
        if not isinstance(kind, str):
            return problem("bad_message", kept, "$.type")
        returned = {"ping": "timestamp", "echo": "content", "broadcast": "content", "get_stats": None}
        if kind not in returned:
            return (
                reply("response", kept, original_message=text, from_server="true")
                if bounded(text)
                else problem("bad_json", kept)
            )
        if number is not None and not sound:
            return problem("bad_message", where="$.id")
        default = b"null" if kind == "ping" else b'""'
        given = raw.get(returned[kind] or "", default).decode()
        if not bounded(given):
            return problem("bad_json", kept)
        return {
            "ping": self._pong,
            "echo": self._echo,
            "broadcast": self._broadcast,
            "get_stats": self._stats,
        }[kind](name, kept, given)

    def _pong(self, name: str, kept: bytes, given: str) -> bytes:
        own = json.dumps(name)
        return reply("pong", kept, ping_timestamp=given, pong_timestamp=json.dumps(now()), client_id=own)

    def _echo(self, name: str, kept: bytes, given: str) -> bytes:
        return reply("echo_response", kept, content=given, echoed_by='"TCP Server"')

    def _broadcast(self, name: str, kept: bytes, given: str) -> bytes:
        copy = frame(reply("broadcast", b"null", from_client=json.dumps(name), content=given))
        with self._lock:
            others = [visit for other, visit in self._clients.items() if other != name]
            for other in others:
                with contextlib.suppress(OSError):
                    other.write(copy)
        return reply("broadcast_sent", kept, recipients=str(len(others)))

    def _stats(self, name: str, kept: bytes, given: str) -> bytes:
        with self._lock:
            clients, messages = len(self._clients), self._messages
        return reply(
            "server_stats",
            kept,
            connected_clients=str(clients),
            uptime_seconds=str(int((datetime.now(UTC) - self._started).total_seconds())),
            total_messages=str(messages),
            server_start_time=json.dumps(now(self._started)),
            current_time=json.dumps(now()),
            details="{}",
        )


def now(when: datetime | None = None) -> str:
    """A time as section 2 has it."""
    return (when or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def reply(kind: str, kept: bytes, **fields: str) -> bytes:
    """A message, of fields that are JSON already."""
    fields = {"type": json.dumps(kind), **fields, "timestamp": json.dumps(now())}
    if kept != b"null":
        fields["id"] = kept.decode()
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


def problem(code: str, kept: bytes = b"null", where: str = "$") -> bytes:
    """An error."""
    fatal = json.dumps(code == "too_large")
    return reply("error", kept, code=json.dumps(code), message=json.dumps(f"wrong at {where}"), fatal=fatal)


def refuse(name: str) -> object:
    """NaN, Infinity, and what more Python takes for JSON."""
    raise ValueError(name)


def bounded(text: str) -> bool:
    """Whether JSON is within the bounds of what is sent back: 64 levels, 64 bits, doubles."""

    def integer(lexeme: str) -> int:
        if len(lexeme) > 20 or not -(2**63) <= int(lexeme) < 2**64:
            raise ValueError
        return 0

    def real(lexeme: str) -> float:
        if math.isinf(float(lexeme)):
            raise ValueError
        return 0.0

    def deep(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(deep, inner), default=0)

    try:
        return deep(json.loads(text, parse_int=integer, parse_float=real)) <= 64
    except (ValueError, RecursionError):
        return False
