"""Typed handlers: a table from message class to the function that answers it, and what stands around it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from tcpjson.core.errors import ProtocolError
from tcpjson.core.messages import Custom, Message, Refused, ServerStats, Text

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

log = Logger()

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
    as (None without authentication), `state` is the application's own to set: one for all routers of a server
    (a session can also be the key of a dict). `reason` is empty until the connection ends, and then the code
    of section 9 that says why.

    A session may be kept, and used from anywhere in the reactor's thread. Once it has ended, `send` and
    `close` do nothing.
    """

    client_id: str
    user: str | None
    state: Any
    reason: str

    @property
    def server(self) -> Server:
        """The server that it is a client of."""

    @property
    def waiting(self) -> int:
        """Bytes that wait for it to read. What is soon out of date can be left out while there are many."""

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

    def broadcast(self, message: Message | dict[str, Any], to: Iterable[Session] | None = None) -> Recipients:
        """
        Send a message to all other clients, or to those of `to` that are others and still there; returns to
        how many. It is written as JSON once. Raises as `send`.
        """

    def close(self) -> None:
        """Close the connection when what was sent before has left."""


class Server(Protocol):
    """A server, as an application sees it. `clock` is the reactor; in tests, one that stands still."""

    clock: IReactorTime

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those that are served now."""

    def broadcast(self, message: Message | dict[str, Any], to: Iterable[Session] | None = None) -> Recipients:
        """Send a message to all clients, or to those of `to` that are still there. As `Session.broadcast`."""


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# What is no message of a type of its own.
_UNTAGGED = (Custom, Text, Refused)

Handler = Callable[[Any, Any], Result]
Middleware = Callable[[Any, Any, Handler], Result]
#: Called with a session or the server. What it returns is waited for, if that can be.
Hook = Callable[[Any], object]
Moment = Literal["on_start", "on_connect", "on_disconnect", "on_stop"]
Function = TypeVar("Function", bound=Callable[..., Any])

# In place of a function, where a decorator is called by hand.
_NO_FUNCTION: Any = None


def name_of(function: object) -> str:
    """What to call a function where it is spoken of to its author."""
    name = getattr(function, "__qualname__", None)
    return f"{getattr(function, '__module__', None)}.{name}" if name else repr(function)


def _check_takes(function: Callable[..., Any], count: int, what: str) -> None:
    """See that a function can be called with so many arguments. Raises `TypeError`."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        raise TypeError(f"{name_of(function)} must take {what}") from None


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether a function, or an object that is called like one, gives a coroutine."""
    function = inspect.unwrap(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _around(middleware: Middleware, handler: Handler) -> Handler:
    """A handler with a middleware around it."""
    if _is_async(middleware):

        async def following(session: Any, message: Any) -> Any:
            answer = handler(session, message)
            return await answer if isinstance(answer, Awaitable) else answer

        return lambda session, message: middleware(session, message, following)
    answered = told = False

    def noted(session: Any, message: Any) -> Any:
        nonlocal answered
        answer = handler(session, message)
        answered = answer is not None
        return answer

    def around(session: Any, message: Any) -> Any:
        nonlocal answered, told
        answered = False
        answer = middleware(session, message, noted)
        if answered and answer is None and not told:
            told = True
            log.warn(
                "{middleware} returned None in place of the answer to {kind}: is a return missing?",
                event="answer_lost",
                middleware=name_of(middleware),
                kind=type(message).__name__,
            )
        return answer

    return around


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

    The decorators `on_start`, `on_connect`, `on_disconnect` and `on_stop` mark functions that are called when
    the server and its clients come and go, `middleware` those that stand around every handler. Where there
    are several, they come in the order in which they were added; the first middleware is the outermost.
    """

    def __init__(self) -> None:
        self._handlers: dict[type[Message], Handler] = {}
        self._middlewares: list[Middleware] = []
        self._hooks: dict[Moment, list[Hook]] = {}

    def __iter__(self) -> NoReturn:
        raise TypeError("routers are given as a list: routers=[router]")

    @property
    def handlers(self) -> dict[type[Message], Callable[[Any, Any], Any]]:
        """The handlers by message class."""
        return dict(self._handlers)

    def handler(self, function: Function = _NO_FUNCTION) -> Function:
        """
        Decorator: the function handles the message class that its second parameter is annotated with.

        Raises:
            TypeError: the function does not take a session and a message of a `Message` subclass.
            ValueError: the class, or its tag, has a handler already.
        """
        if not callable(function):
            raise TypeError("put @router.handler before a function, without parentheses")
        name = name_of(function)
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
        config = kind.__struct_config__
        tag = config.tag
        typed = isinstance(tag, str) and tag and config.tag_field == "type" and not config.array_like
        if kind is Message or not (typed or kind in _UNTAGGED):
            raise TypeError(f"{name_of(handler)}: {kind.__name__} is no object with a tag for its type")
        for other, present in self._handlers.items():
            if other is kind or (tag is not None and other.__struct_config__.tag == tag):
                raise ValueError(
                    f"{name_of(handler)}: {tag or kind.__name__} has a handler already, {name_of(present)}"
                )
        self._handlers[kind] = handler

    def on_start(self, function: Function) -> Function:
        """
        Decorator: a plain function that is called with the `Server` before it listens. When it raises, the
        server does not start.

        Raises:
            TypeError: the function does not take a server, or is `async`.
        """
        if _is_async(function):
            raise TypeError(f"{name_of(function)}: on_start cannot wait; on_connect can, for what it begins")
        return self._hook("on_start", function, "one parameter, the server")

    def on_connect(self, function: Function) -> Function:
        """
        Decorator: called with the `Session` of each client that is served from now on: behind `welcome`,
        or the login where one is asked for. What the client sends waits until it is done, and what it
        returns (a coroutine, a Deferred) too; it may take `handler_timeout`. When it raises, the client gets
        the error that a handler's would be, and the connection closes.

        Raises:
            TypeError: the function does not take a session.
        """
        return self._hook("on_connect", function, "one parameter, a session")

    def on_disconnect(self, function: Function) -> Function:
        """
        Decorator: called with the `Session` of each client that was served, once, when its connection is gone
        and none of its handlers runs any more; `reason` says why. It may take `handler_timeout`.

        Raises:
            TypeError: the function does not take a session.
        """
        return self._hook("on_disconnect", function, "one parameter, a session")

    def on_stop(self, function: Function) -> Function:
        """
        Decorator: called with the `Server` when it listens no more and the last client is gone. It may take
        `handler_timeout`.

        Raises:
            TypeError: the function does not take a server.
        """
        return self._hook("on_stop", function, "one parameter, the server")

    def _hook(self, moment: Moment, function: Function, what: str) -> Function:
        _check_takes(function, 1, what)
        self._hooks.setdefault(moment, []).append(function)
        return function

    def hooks(self, moment: Moment) -> tuple[Hook, ...]:
        """The functions to call at a moment, in order."""
        return tuple(self._hooks.get(moment, ()))

    def middleware(self, function: Function) -> Function:
        """
        Decorator: `function(session, message, handle)` stands around the handlers of all messages of all
        clients that are served, built-in ones, `Custom` and `Text` too: to log, measure or refuse. It returns
        `handle(session, message)`, in an `async def` `await handle(session, message)`, or what else a handler
        may return. What belongs to the protocol (`hello`, `auth`, the answers to its pings), and what is
        refused unread, does not come by.

        Raises:
            TypeError: the function does not take a session, a message and a handler.
        """
        _check_takes(function, 3, "three parameters, a session, a message and the handler")
        self._middlewares.append(function)
        return function

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self._handlers or self._hooks or self._middlewares)

    def wrapped(self, handler: Handler) -> Handler:
        """A handler with the middleware around it; where there is none, the handler itself."""
        for middleware in reversed(self._middlewares):
            handler = _around(middleware, handler)
        return handler

    def merged(self, *others: Router) -> Router:
        """
        A router with all that the others have, too; a class or tag of `others` takes over one of this router.

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
        for router in (self, *others):
            merged._middlewares += router._middlewares
            for moment, hooks in router._hooks.items():
                merged._hooks.setdefault(moment, []).extend(hooks)
        return merged
