"""Payloads to typed messages, and messages to frames (docs/protocol.rst, sections 1 to 3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tcpjson.core.errors import BadFrame, BadJSON, BadMessage, Internal, ProtocolError, UnknownType
from tcpjson.core.messages import Custom, Message, Refused, RequestId, Text
from tcpjson.core.values import MAX_DEPTH, check_value

_WHITE_SPACE = b" \t\n\r"

_isascii = bytes.isascii

# Validates a JSON text without building its value.
_check_grammar = msgspec.json.Decoder(Raw).decode
_decode_id = msgspec.json.Decoder(RequestId | None).decode


# What a JSON value is to Python.
_JSON = (dict, list, str, int, float, bool, type(None))


class _Typed(msgspec.Struct, gc=False):
    """An object that is asked for its type."""

    type: str | UnsetType = UNSET


class _Identified(msgspec.Struct, gc=False):
    """An object that is asked for its id."""

    id: Raw = Raw(b"null")

    def request_id(self) -> str | int | None:
        try:
            return cast("str | int | None", _decode_id(self.id))
        except msgspec.DecodeError:
            return None


_decode_typed = msgspec.json.Decoder(_Typed).decode
_decode_identified = msgspec.json.Decoder(_Identified).decode


def check_fields(kind: type[Message]) -> None:
    """
    See that messages of a class can be decoded.

    Raises:
        TypeError: there is a field that cannot; the line names the class, and the field where it can be told.
    """
    try:
        msgspec.json.Decoder(kind)
    # An annotation can be any expression.
    except Exception as error:
        raise TypeError(f"{kind.__module__}.{kind.__qualname__}: {error}") from None
    try:
        fields = msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]  # of a Struct, as Message is
    except TypeError:
        # A literal of several types, which msgspec 0.21 decodes and cannot describe.
        return
    for field in fields:
        strange = _strange(field.type, set())
        if strange is not None:
            name = f"{kind.__module__}.{kind.__qualname__}.{field.name}"
            raise TypeError(f"{name}: no JSON value is a {strange.__name__}")


def _strange(part: object, seen: set[int]) -> type | None:
    """A class of which no JSON value is an instance."""
    if isinstance(part, msgspec.inspect.CustomType):
        try:
            return None if any(issubclass(kind, part.cls) for kind in _JSON) else part.cls
        except TypeError:
            # A protocol that can be asked no such thing.
            return part.cls
    if isinstance(part, (list, tuple)):
        parts: Iterable[object] = part
    elif isinstance(part, (msgspec.inspect.Type, msgspec.inspect.Field)) and id(part) not in seen:
        seen.add(id(part))
        parts = [getattr(part, name) for name in part.__struct_fields__]
    else:
        return None
    return next(filter(None, (_strange(each, seen) for each in parts)), None)


class Codec:
    """
    Decodes the messages of some types.

    Args:
        types: the message classes, each with a tag of its own.
        strict: refuse what is no message of these types (`--strict`).
        checked: those of the types of which all must be fit to be relayed, as nobody knows what the
            application makes of them.

    Raises:
        TypeError: two types share a tag, or msgspec cannot decode a field.
    """

    def __init__(
        self, types: Sequence[type[Message]], strict: bool = False, checked: Iterable[type[Message]] = ()
    ) -> None:
        self._decode = msgspec.json.Decoder(_union(types)).decode
        self._tags = {kind.__struct_config__.tag for kind in types}
        self._strict = strict
        self._checked = frozenset(checked)

    def decode(self, payloads: Sequence[bytes]) -> list[Message]:
        """
        Decode the payloads of frames: each to a message of one of the types, or to `Custom`, `Text` or
        `Refused`. Nothing that a peer can send makes it raise.
        """
        decode: Callable[[bytes], Any] = self._decode
        # msgspec looks at no UTF-8 in what it passes over.
        if not all(map(_isascii, payloads)):
            try:
                deque(map(bytes.decode, payloads), maxlen=0)
            except UnicodeDecodeError:
                decode = self._decode_text
        messages: list[Message] = []
        decoding = map(decode, payloads)
        while True:
            try:
                messages += decoding
                break
            # A `__post_init__` of the application's can raise anything.
            except BaseException as error:
                # The map goes on behind what failed.
                messages.append(self._classify(payloads[len(messages)], error))
        if checked := self._checked:
            for index, message in enumerate(messages):
                if type(message) in checked:
                    messages[index] = _check(message, payloads[index])
        return messages

    def _decode_text(self, payload: bytes) -> Any:
        payload.decode()
        return self._decode(payload)

    def _classify(self, payload: bytes, error: BaseException) -> Message:
        """What a payload is that is no good message of a known type."""
        request_id: str | int | None = None
        try:
            if not payload:
                raise BadFrame
            if isinstance(error, UnicodeDecodeError):
                raise BadJSON(f"not UTF-8: {error.reason} at byte {error.start}")
            first = payload.lstrip(_WHITE_SPACE)[:1]
            if first == b"{":
                request_id = _decode_identified(payload).request_id()
                return self._classify_object(payload, error, request_id)
            return self._classify_text(payload, first == b"[")
        except ProtocolError as refusal:
            return Refused(error=refusal.forget_origin(), id=request_id)
        except RecursionError:
            return Refused(error=BadJSON(f"nested far deeper than {MAX_DEPTH} levels"))
        except msgspec.DecodeError as malformed:
            return Refused(error=BadJSON(str(malformed)))

    def _classify_object(self, payload: bytes, error: BaseException, request_id: str | int | None) -> Message:
        try:
            kind = _decode_typed(payload).type
        except msgspec.ValidationError as wrong_type:
            raise BadMessage(str(wrong_type)) from None
        if kind in self._tags:
            if isinstance(error, (ValueError, RecursionError)):
                raise BadMessage(str(error))
            return Refused(error=Internal(), fault=error, id=request_id)
        if self._strict:
            raise UnknownType(f"no such type: {kind:.64}" if kind else "no type")
        return Custom(original=Raw(payload), id=request_id)

    def _classify_text(self, payload: bytes, array: bool) -> Message:
        if payload.startswith(b"\xef\xbb\xbf"):
            raise BadJSON("a byte order mark")
        try:
            _check_grammar(payload)
        except msgspec.DecodeError:
            if array or self._strict:
                raise
            return Text(original=payload.decode())
        if self._strict:
            raise BadMessage("not an object")
        return Text(original=Raw(payload))


def _check(message: Message, payload: bytes) -> Message:
    """The message, or its refusal when not all of it is fit to be relayed."""
    # In a message of a type, a value of 64 levels may stand in a field; other payloads are the value.
    depth = MAX_DEPTH if isinstance(message, (Custom, Text)) else MAX_DEPTH + 1
    try:
        if isinstance(message, Text) and isinstance(message.original, str):
            return message
        check_value(payload, depth)
    except BadJSON as error:
        return Refused(error=error.forget_origin(), id=message.id)
    return message


def _union(types: Sequence[type[Message]]) -> Any:
    """The type that is any of `types`."""
    union: Any = types[0]
    for kind in types[1:]:
        union = union | kind
    return union
