"""What the contract says of a stream of frames, read a second time: by the standard library, one by one."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tcpjson.core.limits import PRE_AUTH_MAX_LENGTH
from tcpjson.test.oracle import Number, Pairs, fits, levels, parts
from tcpjson.vectors import strict_json
from tests.fuzz.mutate import COMPRESSED

#: Section 9: the codes of `error`, and whether each ends the connection. `bad_frame` does where it is about a
#: compressed frame.
FATAL = {
    "bad_frame": False,
    "too_large": True,
    "frame_timeout": True,
    "bad_json": False,
    "bad_message": False,
    "unknown_type": False,
    "unauthenticated": False,
    "forbidden": False,
    "auth_timeout": True,
    "auth_failed": True,
    "rate_limited": True,
    "slow_consumer": True,
    "server_full": True,
    "too_many_connections": True,
    "idle_timeout": True,
    "heartbeat_timeout": True,
    "going_away": False,
    "internal": False,
    "timeout": False,
}

#: The `bad_frame` that ends a connection.
BROKEN_STREAM = "bad_frame (fatal)"

_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
# Where there is neither of these, no number is out of range.
_LONG_NUMBER = re.compile(rb"[0-9]{19}|[0-9][eE]")
_MAX_DEPTH = 64
_INT64 = range(-(2**63), 2**63)

# Any answer that goes on, where the contract leaves it open.
_OPEN = frozenset(
    {
        *("pong", "echo_response", "broadcast_sent", "server_stats", "response", "echo", "hello_response"),
        *("auth_challenge", "authenticated", "authentication_failed"),
        *("bad_json", "bad_message", "unknown_type", "unauthenticated"),
    }
)
# What the server reads of a message: a name of these that stands twice leaves open what it means.
_READ = frozenset(
    {
        *("type", "id", "content", "timestamp", "client", "heartbeat", "compression", "features"),
        *("mechanism", "username", "password", "token", "data"),
    }
)
_AUTH_FIELDS = ("mechanism", "username", "password", "token", "data")
_VALUE_FIELDS = {
    "pong": "ping_timestamp",
    "echo_response": "content",
    "response": "original_message",
    "echo": "original_text",
    "hello_response": "heartbeat",
}


class Wrong(Exception):
    """The server did what the contract does not allow; the text says what."""


class _Anything:
    def __repr__(self) -> str:
        return "anything"


#: Stands for an id or a value that the contract leaves open.
ANYTHING = _Anything()
#: Stands for no id.
NOTHING = None


class Due(NamedTuple):
    """What one frame leads to: one reply of these kinds (types, statuses, codes), or none."""

    kinds: frozenset[str]
    request_id: object = NOTHING
    value: object = ANYTHING
    #: What a broadcast holds.
    relayed: object = ANYTHING
    #: Whether it can have been a `hello`, and what for.
    hello: tuple[bool, bool] | None = None
    #: Whether the time for `hello` is over with it: "no", "perhaps", "yes".
    closes: str = "no"
    ends: bool = False


def _due(*kinds: str, **others: Any) -> Due:
    return Due(frozenset(kinds), **others)


_EMPTY = _due("bad_frame", closes="perhaps")
_BROKEN = _due("bad_json", closes="perhaps")
_LOOSE = Due(_OPEN, ANYTHING, closes="perhaps")
_SILENT = _due()
_TOO_LARGE = _due("too_large", ends=True)
_BAD_STREAM = _due(BROKEN_STREAM, ends=True)


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(
    parse_int=Number, parse_float=Number, parse_constant=_constant, object_pairs_hook=Pairs
).decode


def parse(text: str) -> Any:
    """
    The value of a JSON text, with numbers by their digits and all names.

    Raises:
        ValueError: it is none, or holds a lone surrogate.
        RecursionError: it nests too deep to tell.
    """
    value = _decode(text)
    if "\\u" in text:
        for part in parts(value):
            if type(part) is str:
                part.encode()
    return value


def _relayable(value: Any, payload: bytes) -> bool:
    """Whether a value, a part of the payload, may go to any client."""
    if payload.count(b"[") + payload.count(b"{") > _MAX_DEPTH and levels(value) > _MAX_DEPTH:
        return False
    if _LONG_NUMBER.search(payload) is None:
        return True
    return all(fits(part) for part in parts(value) if type(part) is Number)


def _request_id(value: Any) -> tuple[object, bool]:
    """The id, and whether it is a good one."""
    if value is None:
        return NOTHING, True
    if type(value) is Number:
        if not set(value) & set(".eE") and len(value) < 22 and int(value) in _INT64:
            return int(value), True
    elif type(value) is str and len(value) <= 128:
        return value, True
    return NOTHING, False


def _is_texts(value: Any) -> bool:
    return type(value) is list and all(type(part) is str for part in value)


def _same_name(one: str, other: str) -> bool:
    return unicodedata.normalize("NFKC", one).replace("\xad", "") == other


@dataclass(frozen=True)
class Rules:
    """How the server was started."""

    max_length: int = 1024 * 1024
    strict: bool = False
    #: Users by their tokens, and passwords by their users; it asks for authentication if there are any.
    tokens: dict[str, str] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)
    compresses: bool = False
    #: Codes that may end a connection at any time.
    at_any_time: frozenset[str] = frozenset()

    @property
    def asks(self) -> bool:
        """Whether it asks for authentication."""
        return bool(self.tokens or self.passwords)


class Conversation:
    """
    One connection, of which all bytes that are sent are known beforehand: takes the replies as they come.

    Args:
        rules: those of the server.
        stream: what is sent.
        sample: of so many replies, one is also read by `strict_json`.
    """

    def __init__(self, rules: Rules, stream: bytes, sample: int = 32) -> None:
        self.rules = rules
        self.stream = stream
        self._position = 0
        self._sample = sample
        self._served = not rules.asks
        self._hello = "may"
        self._beats = False
        self.compresses = False
        self._failures = 0
        self._next: Due | None = None
        #: The payload of the frame that is due a reply.
        self.frame = b""
        #: Complete frames that were answered, or needed no answer.
        self.frames = 0
        self.answers: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        #: The contents of its broadcasts that the server took, in order.
        self.relayed: list[object] = []
        #: Whether the fatal error has come.
        self.ended = False
        #: The frames no longer tell what the answers must be.
        self.lost = False

    # What is sent.

    def due(self) -> Due | None:
        """What the next reply must be; None when all frames have theirs."""
        while self._next is None and not self.ended:
            payload = self._take()
            if payload is None:
                return None
            due = self._expect(payload) if type(payload) is bytes else payload
            assert isinstance(due, Due)
            if due.kinds:
                self._next = due
            else:
                self.frames += 1
                self.answers["(none due)"] += 1
        return self._next

    @property
    def whole(self) -> bool:
        """Whether the stream ends between two frames, when all replies are there."""
        return self._position == len(self.stream)

    def _take(self) -> bytes | Due | None:
        """The next payload, or what its frame leads to without one; None when it is not complete."""
        start = self._position + 4
        stream = self.stream
        if self._failures == 3:
            return _due("auth_failed", ends=True)
        if start > len(stream):
            return None
        length = int.from_bytes(stream[self._position : start], "big")
        most = self.rules.max_length
        if not self._served:
            most = min(most, PRE_AUTH_MAX_LENGTH)
        compressed = self.compresses and length & COMPRESSED
        if compressed:
            length ^= COMPRESSED
        if length > most:
            return _TOO_LARGE
        end = start + length
        if end > len(stream):
            return None
        self._position = end
        self.frame = payload = stream[start:end]
        return self._inflate(payload, most) if compressed else payload

    def _inflate(self, data: bytes, most: int) -> bytes | Due:
        stream = zlib.decompressobj()
        try:
            payload = stream.decompress(data)
        except zlib.error:
            # As much as came before the fault may already be too much.
            return _due("too_large", BROKEN_STREAM, ends=True)
        if len(payload) > most:
            return (
                _TOO_LARGE
                if stream.eof and not stream.unused_data
                else _due("too_large", BROKEN_STREAM, ends=True)
            )
        if not stream.eof or stream.unused_data or not payload:
            return _BAD_STREAM
        return payload

    def _expect(self, payload: bytes) -> Due:
        if not payload:
            return _EMPTY
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            return _BROKEN
        if text[0] == "\ufeff":
            return _BROKEN
        strict = self.rules.strict
        try:
            value = parse(text)
        except ValueError:
            if payload.lstrip(b" \t\n\r")[:1] in (b"{", b"["):
                return _BROKEN
            if not self._served:
                return _due("unauthenticated", *(["bad_json"] if strict else []), closes="perhaps")
            return _BROKEN if strict else _due("echo", value=text, closes="yes")
        except RecursionError:
            return _LOOSE
        if type(value) is Pairs:
            return self._expect_object(value, payload)
        if not self._served:
            return _due("unauthenticated", "bad_json", *(["bad_message"] if strict else []), closes="perhaps")
        if strict:
            return _due("bad_message", "bad_json", closes="perhaps")
        if _relayable(value, payload):
            return _due("echo", value=value, closes="yes")
        return _due("bad_json", closes="perhaps")

    def _expect_object(self, value: Pairs, payload: bytes) -> Due:
        fields = dict(value)
        if len(fields) != len(value):
            names = Counter(name for name, _ in value)
            if any(count > 1 and name in _READ for name, count in names.items()):
                if self._beats and ("type", "pong") in value:
                    self.lost = True
                return _LOOSE
        due = self._expect_fields(value, fields, payload)
        if payload.count(b"[") + payload.count(b"{") > _MAX_DEPTH + 1 and levels(value) > _MAX_DEPTH + 1:
            # It may be refused for that alone, before anything else is known of it.
            self.lost = self.lost or not due.kinds
            return due._replace(kinds=due.kinds | {"bad_json"}, request_id=ANYTHING, closes="perhaps")
        return due

    def _expect_fields(self, value: Pairs, fields: dict[str, Any], payload: bytes) -> Due:
        kind = fields.get("type", "")
        request_id, good = _request_id(fields.get("id"))
        guest = not self._served
        if type(kind) is not str:
            others = ["unauthenticated"] if guest else []
            return _due("bad_message", *others, request_id=request_id, closes="perhaps")
        known = kind in ("ping", "hello", "auth")
        if not known and guest:
            return _due("unauthenticated", request_id=request_id, closes="perhaps")
        known = known or kind in ("echo", "broadcast", "get_stats") or (kind == "pong" and self._beats)
        if "type" not in fields:
            known = False
        if known and not good:
            return _due("bad_message", closes="perhaps")
        if kind == "auth":
            return self._expect_auth(fields, request_id)
        if kind == "hello":
            return self._expect_hello(fields, request_id)
        if kind == "pong" and self._beats:
            return _SILENT
        if kind == "get_stats":
            return _due("server_stats", request_id=request_id, closes="yes")
        if not known and self.rules.strict:
            return _due("unknown_type", request_id=request_id, closes="perhaps")
        if kind == "ping":
            answer, held, closes = "pong", fields.get("timestamp"), "no"
        elif kind == "echo":
            answer, held, closes = "echo_response", fields.get("content", ""), "yes"
        elif kind == "broadcast":
            answer, held, closes = "broadcast_sent", fields.get("content", ""), "yes"
        else:
            answer, held, closes = "response", value, "yes"
        if not _relayable(held, payload):
            return _due("bad_json", request_id=request_id, closes="perhaps")
        if answer == "broadcast_sent":
            return _due(answer, request_id=request_id, relayed=held, closes=closes)
        return _due(answer, request_id=request_id, value=held, closes=closes)

    def _expect_hello(self, fields: dict[str, Any], request_id: object) -> Due:
        beats = fields.get("heartbeat", False)
        names = fields.get("compression", [])
        right = (
            type(fields.get("client", "")) is str
            and type(beats) is bool
            and _is_texts(names)
            and _is_texts(fields.get("features", []))
        )
        if not right or self._hello == "no":
            return _due("bad_message", request_id=request_id, closes="perhaps")
        kinds = ["hello_response"] if self._hello == "may" else ["hello_response", "bad_message"]
        compress = self.rules.compresses and "zlib" in names
        return _due(*kinds, request_id=request_id, value=beats, hello=(beats, compress))

    def _expect_auth(self, fields: dict[str, Any], request_id: object) -> Due:
        given = {
            name: fields[name]
            for name in ("mechanism", "username", "password", "token", "data")
            if name in fields
        }
        if self._served or any(type(part) is not str for part in given.values()):
            return _due("bad_message", request_id=request_id)
        mechanism = given.pop("mechanism", None)
        kinds = {"authentication_failed", "bad_message"}
        if mechanism == "token" and given.get("token") in self.rules.tokens:
            kinds = {"authenticated"} if len(given) == 1 else {"authenticated", "bad_message"}
        elif mechanism == "plain" and given.keys() >= {"username", "password"}:
            for user, password in self.rules.passwords.items():
                if _same_name(given["username"], user) and _same_name(given["password"], password):
                    kinds |= {"authenticated"}
        elif mechanism in ("scram-sha-256", None):
            kinds |= {"auth_challenge"}
        return Due(frozenset(kinds), request_id)

    # What comes.

    def reply(self, payload: bytes) -> None:
        """
        A reply came. Raises `Wrong` when it is not what must come.
        """
        try:
            if self.frames % self._sample == 0:
                strict_json(payload)
            message = parse(payload.decode())
        except (ValueError, RecursionError) as error:
            raise Wrong(f"a reply that is not strict JSON, {error}: {payload[:300]!r}") from None
        if type(message) is not Pairs:
            raise Wrong(f"a reply that is no object: {payload[:300]!r}")
        fields = dict(message)
        if len(fields) != len(message):
            raise Wrong(f"a reply with a name that stands twice: {payload[:300]!r}")
        kind = self._kind(fields, payload)
        if kind in self.rules.at_any_time:
            self.errors[kind] += 1
            self.ended = True
            return
        due = self.due()
        if self.lost and (due is None or FATAL.get(kind)):
            self.ended = bool(FATAL.get(kind))
            return
        if due is None or self.ended:
            raise Wrong(f"a reply to nothing: {payload[:300]!r}")
        frame = self.frame
        if not self.lost:
            if kind not in due.kinds:
                raise Wrong(f"{kind} came, {sorted(due.kinds)} was due to {frame[:300]!r}: {payload[:300]!r}")
            if due.request_id is not ANYTHING:
                came = fields.get("id")
                if (int(came) if type(came) is Number else came) != due.request_id:
                    raise Wrong(f"the id {due.request_id!r} was due to {frame[:300]!r}: {payload[:300]!r}")
            name = _VALUE_FIELDS.get(kind)
            if name is not None and due.value is not ANYTHING and fields.get(name) != due.value:
                raise Wrong(f"{name} is not what was sent in {frame[:300]!r}: {payload[:300]!r}")
        self._learn(kind, due, fields, payload)

    def _kind(self, fields: dict[str, Any], payload: bytes) -> str:
        """The kind of a reply, whose form is checked."""
        kind = fields.get("type")
        stamp = fields.get("timestamp")
        if type(stamp) is not str or not _TIMESTAMP.fullmatch(stamp):
            raise Wrong(f"a reply without a timestamp: {payload[:300]!r}")
        if kind == "error":
            code, fatal = fields.get("code"), fields.get("fatal")
            if code not in FATAL or type(fields.get("message")) is not str or not fields["message"]:
                raise Wrong(f"an error that is not documented: {payload[:300]!r}")
            if code == "bad_frame" and fatal is True and self.compresses:
                return BROKEN_STREAM
            if fatal is not FATAL[code]:
                raise Wrong(f"fatal is not that of section 9: {payload[:300]!r}")
            return str(code)
        if kind == "auth_result":
            status = fields.get("status")
            if status == "authenticated" and fields.get("user") not in {
                *self.rules.tokens.values(),
                *self.rules.passwords,
            }:
                raise Wrong(f"authenticated as nobody: {payload[:300]!r}")
            return str(status)
        return str(kind)

    def _learn(self, kind: str, due: Due, fields: dict[str, Any], payload: bytes) -> None:
        self.frames += 1
        self._next = None
        if kind in FATAL or kind == BROKEN_STREAM:
            self.errors[kind] += 1
        else:
            self.answers[kind] += 1
        if kind == "authenticated":
            self._served = True
        elif kind == "authentication_failed":
            self._failures += 1
        elif kind == "broadcast_sent":
            self.relayed.append(due.relayed)
            if type(fields.get("recipients")) is not Number:
                raise Wrong(f"no number of recipients: {payload[:300]!r}")
        elif kind == "hello_response":
            self._hello = "no"
            beats, compress = due.hello or (fields.get("heartbeat"), fields.get("compression") == "zlib")
            if (fields.get("compression") == "zlib") is not compress:
                raise Wrong(f"compression is not what was asked for: {payload[:300]!r}")
            self._beats, self.compresses = bool(beats), compress
        if self._hello == "may" and due.closes != "no":
            self._hello = "perhaps"
        if due.closes == "yes" and kind in self.answers:
            self._hello = "no"
        self.ended = due.ends
