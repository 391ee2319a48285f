"""Which messages there are: the built-in ones, and those of an application's routers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from twisted.internet.defer import Deferred

from tcpjson import classic
from tcpjson.core.errors import ProtocolError
from tcpjson.core.messages import Auth, Custom, HeartbeatPong, Hello, Message, Refused, Text
from tcpjson.dialects import Dialects
from tcpjson.handlers import Router, name_of
from tcpjson.schema import builtin
from tcpjson.schema.builtin import Described, Notes

Kind = type[Message]

# What leads to an answer: it is the last of what stands in the brackets.
_LEAD_TO = (Awaitable, Coroutine, Generator, Deferred)
# The names of what has no type of its own.
_NAMES = {Custom: "any_other", Text: "plain_text", Message: "any_other"}


class Entry(NamedTuple):
    """A message in one direction."""

    #: What the documents call it: letters, digits and `_.-` alone; no two have the same.
    name: str
    #: Its `type`; empty for what has none of its own: `Custom`, `Text`, and `Message` for what handlers send
    #: besides.
    type: str
    kind: Kind
    text: str
    notes: Notes


class Request(NamedTuple):
    """What a client may send."""

    entry: Entry
    #: What it may be answered with, errors aside.
    replies: list[Entry]
    #: What the application's handler says of itself.
    text: str


class Catalogue(NamedTuple):
    """What goes to a server, and what comes from it."""

    requests: list[Request]
    answers: list[Entry]

    def answer(self, kind: Kind) -> Entry:
        """The entry of what the server sends of a class."""
        return next(entry for entry in self.answers if entry.kind is kind)


def catalogue(routers: Sequence[Router]) -> Catalogue:
    """
    All messages of a server with these routers.

    Raises:
        ValueError, TypeError: one line, as `tcpjson.server.TCPJSONServerFactory`, and about what a handler
            says that it returns.
    """
    own = Router().merged(*routers)
    # It finds what a server would find.
    Dialects(_unused, _unused, own, strict=False)
    kinds: list[Kind] = [*classic.router.merged(own).handlers, Hello, Auth, HeartbeatPong]
    kinds.remove(Refused)
    requests = {row.kind: row for row in builtin.CLIENT}
    replies = {
        kind: _answers(own.handlers[kind]) if kind in own.handlers else requests[kind].answers
        for kind in _in_order(requests, kinds)
    }
    sent: list[Kind] = [*builtin.ALWAYS, *(answer for answers in replies.values() for answer in answers)]
    sent += [
        relayed for kind, relayed in builtin.RELAYED.items() if kind in kinds and kind not in own.handlers
    ]
    if routers:
        # Handlers may send what they like.
        sent.append(Message)
    answers = {row.kind: row for row in (*builtin.SERVER, builtin.error(), builtin.OTHER)}
    taken: set[str] = set()
    from_server = {kind: _entry("server", kind, answers, taken) for kind in _in_order(answers, sent)}
    from_client = {kind: _entry("client", kind, requests, taken) for kind in replies}
    return Catalogue(
        [
            Request(
                entry,
                [from_server[answer] for answer in replies[kind]],
                _doc(own.handlers[kind]) if inspect.isroutine(own.handlers.get(kind)) else "",
            )
            for kind, entry in from_client.items()
        ],
        list(from_server.values()),
    )


def _unused(session: object, message: object) -> None:
    """Stands for the handlers of what belongs to the protocol."""


def _in_order(rows: dict[Kind, Described], kinds: Iterable[Kind]) -> list[Kind]:
    """The built-in classes in the order of their table, then the others; each once."""
    kinds = dict.fromkeys(kinds)
    return [*(kind for kind in rows if kind in kinds), *(kind for kind in kinds if kind not in rows)]


def _entry(direction: str, kind: Kind, rows: dict[Kind, Described], taken: set[str]) -> Entry:
    row = rows.get(kind) or Described(kind, _doc(kind))
    tag = "" if kind in _NAMES else str(kind.__struct_config__.tag)
    base = re.sub(r"[^a-zA-Z0-9_.-]", "_", f"{direction}.{tag or _NAMES[kind]}")
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return Entry(name, tag, kind, row.text, row.notes)


def _doc(documented: object) -> str:
    """What something says of itself, less what it has from those before it."""
    return inspect.cleandoc(getattr(documented, "__doc__", None) or "")


def _answers(handler: Callable[..., Any]) -> tuple[Kind, ...]:
    """The classes of what a handler returns by its annotation; `Message` stands for what it does not tell."""
    try:
        annotation = inspect.signature(handler).return_annotation
    except ValueError:
        # It is not written in Python.
        return (Message,)
    function = handler.func if isinstance(handler, partial) else handler
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__={"return": annotation}), names)
    # An annotation can be any expression.
    except Exception as error:
        raise TypeError(f"{name_of(handler)}: what it returns: {error}") from None
    return tuple(dict.fromkeys(_leaves(hints["return"])))


def _leaves(annotation: Any) -> Iterator[Kind]:
    # What a `type` statement names (Python 3.12).
    annotation = getattr(annotation, "__value__", annotation)
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _leaves(part)
    elif origin in _LEAD_TO:
        yield from _leaves((get_args(annotation) or (Any,))[-1])
    elif not _is_class(annotation, (ProtocolError, type(None))):
        config = annotation.__struct_config__ if _is_class(annotation, Message) else None
        described = config is not None and isinstance(config.tag, str) and not config.array_like
        yield annotation if described else Message


def _is_class(annotation: Any, bases: type | tuple[type, ...]) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, bases)
