"""Typed handlers: a table from message class to the function that answers it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

from tcpjson.core.errors import ProtocolError
from tcpjson.core.messages import Message, ServerStats

#: What a handler may return: the answer, an error (raised, it does the same), None for no answer, or
#: something that leads to one of these.
Answer = Message | dict[str, Any] | ProtocolError | None
Result = Answer | Awaitable[Answer] | Deferred[Answer]


class Recipients(int):
    """How many others a broadcast was handed to. It can be awaited, so that `await` may stand before it."""

    def __await__(self) -> Generator[None, None, int]:
        yield from ()
        return int(self)


class Session(Protocol):
    """
    One client, as a handler sees it.

    `client_id` is the peer's address as in section 2 of docs/protocol.rst, `user` who it authenticated
    as (None without authentication), `state` is the application's own to set.
    """

    client_id: str
    user: str | None
    state: Any

    @property
    def timestamp(self) -> str:
        """The time of this turn as the protocol writes it."""

    def server_stats(self) -> ServerStats:
        """The statistics of the server (section 3)."""

    def send(self, message: Message | dict[str, Any]) -> None:
        """
        Send a message to this client.

        Raises:
            TypeError, ValueError, RecursionError: it cannot be written as JSON; nothing was sent.
            BadJSON: it holds a client's value that must not be relayed; nothing was sent.
        """

    def broadcast(self, message: Message | dict[str, Any]) -> Recipients:
        """Send a message to all other clients; returns to how many. Raises as `send`."""

    def close(self) -> None:
        """Close the connection when what was sent before has left."""


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Handler = Callable[[Any, Any], Result]
Function = TypeVar("Function", bound=Callable[..., Any])


class Router:
    """
    Handlers by the class of the message they take.

        router = Router()

        class Move(Message, tag="move"):
            x: int
            y: int

        @router.handler
        async def move(session, message: Move):
            return {"type": "move_ok"}

    A handler gets the `Session` of the client and the message, its fields checked; a client that sends
    wrong ones gets `bad_message`. It may return

    * a dict with a `type`, or a `Message`: the answer; `id` and `timestamp` are put in,
    * None: there is no answer,
    * a coroutine that awaits Deferreds (not asyncio's futures), or a Deferred, of one of these: other
      messages are handled meanwhile. What takes longer than `handler_timeout` is answered with `timeout`
      and cancelled, as it is when the client leaves.

    To refuse, raise (or return) `Forbidden`, `BadMessage` or another `ProtocolError`. Any other exception is
    logged, and the client told `internal`.
    """

    def __init__(self) -> None:
        self._handlers: dict[type[Message], Handler] = {}

    @property
    def handlers(self) -> dict[type[Message], Callable[[Any, Any], Any]]:
        """The handlers by message class."""
        return dict(self._handlers)

    def handler(self, function: Function) -> Function:
        """
        Decorator: the function handles the message class that its second parameter is annotated with.

        Raises:
            TypeError: the function does not take a session and a message of a `Message` subclass.
            ValueError: the class, or its tag, has a handler already.
        """
        name = getattr(function, "__qualname__", repr(function))
        parameters = list(inspect.signature(function).parameters.values())
        if len(parameters) != 2 or any(parameter.kind not in _POSITIONAL for parameter in parameters):
            raise TypeError(f"{name} must take two parameters, a session and a message")
        kind = parameters[1].annotation
        if isinstance(kind, str):
            try:
                kind = eval(kind, getattr(inspect.unwrap(function), "__globals__", {}))
            except Exception as error:
                raise TypeError(f"{name}: annotation of {parameters[1].name}: {error}") from None
        if not (isinstance(kind, type) and issubclass(kind, Message)):
            raise TypeError(f"{name}: annotate {parameters[1].name} with a subclass of tcpjson.Message")
        self.add(kind, function)
        return function

    def add(self, kind: type[Message], handler: Handler) -> None:
        """Have `handler(session, message)` called for messages of class `kind`. Raises as `handler`."""
        tag = kind.__struct_config__.tag
        for other in self._handlers:
            if other is kind or (tag is not None and other.__struct_config__.tag == tag):
                raise ValueError(f"{tag or kind.__name__} has a handler already")
        self._handlers[kind] = handler

    def merged(self, *others: Router) -> Router:
        """
        A router with the handlers of all; a class or tag of `others` takes over one of this router.

        Raises:
            ValueError: two of `others` handle the same class or tag.
        """
        added = Router()
        for other in others:
            for kind, handler in other._handlers.items():
                added.add(kind, handler)
        tags = {kind.__struct_config__.tag for kind in added._handlers} - {None}
        merged = Router()
        for kind, handler in self._handlers.items():
            if kind.__struct_config__.tag not in tags:
                merged.add(kind, handler)
        merged._handlers.update(added._handlers)
        return merged
