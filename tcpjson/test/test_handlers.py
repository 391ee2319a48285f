"""The table from message class to handler."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import partial, wraps
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.messages import Custom, Echo, Message, Ping, Refused, Text
from tcpjson.handlers import Recipients, Router, Session, name_of


class Move(Message, tag="move"):
    """A user's own message."""

    x: int = 0


class Jump(Message, tag="jump"):
    """Another one."""


class OtherMove(Message, tag="move"):
    """A class that shares its tag with another."""


def handle(session: Session, message: Any) -> None:
    """A handler that is given by its class."""


class HandlerTests(SynchronousTestCase):
    """`Router.handler` and `Router.add`."""

    def setUp(self) -> None:
        self.router = Router()

    def test_by_annotation(self) -> None:
        @self.router.handler
        def move(session: Session, message: Move) -> Message:
            return message

        @self.router.handler
        async def jump(session: Session, message: Jump) -> dict[str, Any]:
            return {}

        self.assertEqual(self.router.handlers, {Move: move, Jump: jump})

    def test_the_decorated_function_stays_what_it_is(self) -> None:
        def move(session: Session, message: Move) -> None:
            pass

        self.assertIs(self.router.handler(move), move)

    def test_annotations_in_quotes(self) -> None:
        """That of the session is of no interest, and may be one that only type checkers can read."""

        def move(session, message):  # type: ignore[no-untyped-def]  # annotated below
            pass

        move.__annotations__.update(session="NoSuchName", message="Move")
        self.router.handler(move)
        self.assertEqual(self.router.handlers, {Move: move})

    def test_a_decorated_function(self) -> None:
        """The annotation is read where the function was written, not where its decorator was."""

        @self.router.handler
        @inlineCallbacks
        def move(session: Session, message: Move) -> Generator[Deferred[None], None, None]:
            yield succeed(None)

        self.assertEqual(self.router.handlers, {Move: move})

    def test_a_class_as_its_annotation(self) -> None:
        """Where a module does without that import, the annotation is the class itself."""

        def jump(session, message):  # type: ignore[no-untyped-def]  # annotated below
            pass

        jump.__annotations__["message"] = Jump
        self.router.handler(jump)
        self.assertEqual(self.router.handlers, {Jump: jump})

    def test_a_bound_method(self) -> None:
        class Game:
            def move(self, session: Session, message: Move) -> None:
                pass

        game = Game()
        self.router.handler(game.move)
        self.assertEqual(self.router.handlers, {Move: game.move})

    def test_any_names_of_parameters(self) -> None:
        def jump(who: Session, what: Jump) -> None:
            pass

        self.router.handler(jump)
        self.assertEqual(list(self.router.handlers), [Jump])

    def test_wrong_signatures(self) -> None:
        def nothing() -> None:
            pass

        def one(message: Move) -> None:
            pass

        def three(session: Session, message: Move, more: int) -> None:
            pass

        def unnamed(session, message):  # type: ignore[no-untyped-def]  # the missing annotation is the case
            pass

        def number(session: Session, message: int) -> None:
            pass

        def either(session: Session, message: Move | Jump) -> None:
            pass

        def anything(session: Session, message: Any) -> None:
            pass

        def swapped(message: Move, session: Session) -> None:
            pass

        def unreadable(session: Session, message: Move) -> None:
            pass

        unreadable.__annotations__["message"] = "NoSuchName"

        def by_name(session: Session, *, message: Move) -> None:
            pass

        def many(session: Session, *messages: Move) -> None:
            pass

        for function in (
            nothing,
            one,
            three,
            unnamed,
            number,
            either,
            anything,
            swapped,
            unreadable,
            by_name,
            many,
        ):
            error = self.assertRaises(TypeError, self.router.handler, function)
            self.assertIn(function.__name__, str(error))
        self.assertEqual(self.router.handlers, {})

    def test_what_is_no_function(self) -> None:
        called: Any = self.router.handler
        for arguments in ((), ("move",)):
            error = self.assertRaises(TypeError, called, *arguments)
            self.assertEqual(str(error), "put @router.handler before a function, without parentheses")

    def test_a_class_has_one_handler(self) -> None:
        self.router.add(Move, handle)
        error = self.assertRaises(ValueError, self.router.add, Move, handle)
        self.assertIn("move", str(error))

    def test_a_tag_has_one_handler(self) -> None:
        self.router.add(Move, handle)
        self.assertRaises(ValueError, self.router.add, OtherMove, handle)

        def move(session: Session, message: OtherMove) -> None:
            pass

        self.assertRaises(ValueError, self.router.handler, move)
        self.assertEqual(self.router.handlers, {Move: handle})

    def test_classes_without_a_tag_are_not_the_same(self) -> None:
        self.router.add(Custom, handle)
        self.router.add(Text, handle)
        error = self.assertRaises(ValueError, self.router.add, Custom, handle)
        self.assertIn("Custom", str(error))

    def test_classes_that_are_of_no_type(self) -> None:
        """Nothing that comes could be one of these; what is no message of a type is of the protocol's own."""

        class Untagged(Message, tag=False):
            pass

        class Numbered(Message, tag=3):
            pass

        class Empty(Message, tag=""):
            pass

        class Listed(Message, tag="listed", array_like=True):
            pass

        for kind in (Untagged, Numbered, Empty, Listed, Message):
            error = self.assertRaises(TypeError, self.router.add, kind, handle)
            self.assertIn(f"{__name__}.handle: {kind.__name__} ", str(error))
        for own in (Custom, Text, Refused):
            self.router.add(own, handle)
        self.assertEqual(set(self.router.handlers), {Custom, Text, Refused})

    def test_a_tag_of_its_own_field(self) -> None:
        """All say what they are in one field."""

        class Kind(Message, tag="kind", tag_field="kind"):
            pass

        self.assertRaises(TypeError, self.router.add, Kind, handle)

    def test_a_class_that_names_itself(self) -> None:
        class Simple(Message):
            pass

        self.router.add(Simple, handle)
        self.assertRaises(ValueError, self.router.add, type("Simple", (Message,), {}), handle)

    def test_the_table_handed_out_is_a_copy(self) -> None:
        self.router.handlers[Move] = handle
        self.assertEqual(self.router.handlers, {})


class NameTests(SynchronousTestCase):
    """What a function is called."""

    def test_functions(self) -> None:
        self.assertEqual(name_of(handle), f"{__name__}.handle")
        self.assertEqual(name_of(NameTests.test_functions), f"{__name__}.NameTests.test_functions")

    def test_what_has_no_name(self) -> None:
        nameless = partial(max, 1)
        self.assertEqual(name_of(nameless), repr(nameless))


class Watcher:
    """What may be a hook beside functions; it can be asked whether it was called."""

    def method(self, subject: Any) -> None:
        pass

    def __call__(self, subject: Any) -> None:
        pass


class HookTests(SynchronousTestCase):
    """`on_start`, `on_connect`, `on_disconnect` and `on_stop`."""

    def setUp(self) -> None:
        self.router = Router()

    def decorators(self) -> dict[Any, Callable[[Any], Any]]:
        router = self.router
        return {
            "on_start": router.on_start,
            "on_connect": router.on_connect,
            "on_disconnect": router.on_disconnect,
            "on_stop": router.on_stop,
        }

    def test_in_order_each_for_its_moment(self) -> None:
        expected: dict[Any, list[Any]] = {moment: [] for moment in self.decorators()}
        for _ in range(2):
            for moment, decorator in self.decorators().items():

                def hook(subject: Any) -> None:
                    pass

                self.assertIs(decorator(hook), hook)
                expected[moment].append(hook)
        for moment, hooks in expected.items():
            self.assertEqual(self.router.hooks(moment), tuple(hooks))

    def test_none(self) -> None:
        for moment in self.decorators():
            self.assertEqual(self.router.hooks(moment), ())

    def test_what_can_be_called_with_one(self) -> None:
        watcher = Watcher()

        def more(subject: Any, more: int = 0) -> None:
            pass

        def many(*subjects: Any) -> None:
            pass

        for hook in (
            watcher,
            watcher.method,
            lambda subject: None,
            partial(Watcher.method, watcher),
            more,
            many,
        ):
            for decorator in self.decorators().values():
                decorator(hook)

    def test_wrong_signatures(self) -> None:
        def nothing() -> None:
            pass

        def two(subject: Any, more: Any) -> None:
            pass

        def by_name(*, subject: Any) -> None:
            pass

        for moment, decorator in self.decorators().items():
            for function in (nothing, two, by_name):
                error = self.assertRaises(TypeError, decorator, function)
                what = "the server" if moment in ("on_start", "on_stop") else "a session"
                self.assertEqual(str(error), f"{name_of(function)} must take one parameter, {what}")
            self.assertEqual(self.router.hooks(moment), ())

    def test_a_start_that_would_wait(self) -> None:
        async def waits(subject: Any) -> None:
            pass

        class Waiter:
            async def __call__(self, subject: Any) -> None:
                pass

        for function in (waits, Waiter(), partial(waits)):
            error = self.assertRaises(TypeError, self.router.on_start, function)
            self.assertIn("cannot wait", str(error))
            for moment, decorator in self.decorators().items():
                if moment != "on_start":
                    decorator(function)
        self.assertEqual(self.router.hooks("on_start"), ())


def answer(session: Any, message: Any) -> Any:
    return ["answer", session, message]


async def slow(session: Any, message: Any) -> Any:
    return await succeed(["answer", session, message])


def deferred(session: Any, message: Any) -> Any:
    return succeed(["answer", session, message])


class MiddlewareTests(SynchronousTestCase):
    """`Router.middleware` and `Router.wrapped`."""

    def setUp(self) -> None:
        self.router = Router()
        self.seen: list[Any] = []

    def plain(self, name: str) -> Callable[[Any, Any, Any], Any]:
        def middleware(session: Any, message: Any, handle: Any) -> Any:
            self.seen.append((name, session, message))
            return handle(session, message)

        return middleware

    def waiting(self, name: str) -> Callable[[Any, Any, Any], Any]:
        async def middleware(session: Any, message: Any, handle: Any) -> Any:
            self.seen.append((name, session, message))
            came = await handle(session, message)
            self.seen.append((name, "behind"))
            return came

        return middleware

    def result(self, came: Any) -> Any:
        """What an answer leads to."""
        if isinstance(came, Deferred):
            return self.successResultOf(came)
        return self.successResultOf(Deferred.fromCoroutine(came)) if isinstance(came, Coroutine) else came

    def test_none(self) -> None:
        """The handler itself: it costs nothing where there is none."""
        self.assertIs(self.router.wrapped(answer), answer)

    def test_the_function_stays_what_it_is(self) -> None:
        middleware = self.plain("one")
        self.assertIs(self.router.middleware(middleware), middleware)

    def test_the_first_is_the_outermost(self) -> None:
        for name in ("one", "two", "three"):
            self.router.middleware(self.plain(name))
        self.assertEqual(self.router.wrapped(answer)(1, 2), ["answer", 1, 2])
        self.assertEqual(self.seen, [("one", 1, 2), ("two", 1, 2), ("three", 1, 2)])

    def test_all_kinds_around_all_kinds(self) -> None:
        """`await handle(...)` does for each in an `async` one, and in a plain one nothing is waited for."""
        for first in (self.plain, self.waiting):
            for second in (self.plain, self.waiting):
                for handler in (answer, slow, deferred):
                    router = Router()
                    self.seen.clear()
                    router.middleware(first("first"))
                    router.middleware(second("second"))
                    self.assertEqual(self.result(router.wrapped(handler)(1, 2)), ["answer", 1, 2])
                    self.assertEqual(self.seen[:2], [("first", 1, 2), ("second", 1, 2)])
                    self.assertEqual(len(self.seen), 2 + [first, second].count(self.waiting))

    def test_a_plain_one_stays_plain(self) -> None:
        """It can look at the answer of a plain handler at once."""

        @self.router.middleware
        def middleware(session: Any, message: Any, handle: Any) -> Any:
            return [*handle(session, message), "seen"]

        self.assertEqual(self.router.wrapped(answer)(1, 2), ["answer", 1, 2, "seen"])

    def test_other_things_that_give_coroutines(self) -> None:
        class Middleware:
            async def __call__(self, session: Any, message: Any, handle: Any) -> Any:
                return await handle(session, message)

            async def method(self, session: Any, message: Any, handle: Any) -> Any:
                return await handle(session, message)

        async def four(extra: Any, session: Any, message: Any, handle: Any) -> Any:
            return await handle(session, message)

        @wraps(Middleware().method)
        def wrapped(session: Any, message: Any, handle: Any) -> Any:
            return Deferred.fromCoroutine(Middleware().method(session, message, handle))

        for middleware in (Middleware(), Middleware().method, partial(four, 0), wrapped):
            for handler in (answer, slow, deferred):
                router = Router()
                router.middleware(middleware)
                self.assertEqual(self.result(router.wrapped(handler)(1, 2)), ["answer", 1, 2])

    def test_inline_callbacks(self) -> None:
        @self.router.middleware
        @inlineCallbacks
        def middleware(session: Any, message: Any, handle: Any) -> Generator[Any, Any, Any]:
            came = yield handle(session, message)
            return [*came, "seen"]

        for handler in (answer, slow, deferred):
            came = self.router.wrapped(handler)(1, 2)
            self.assertEqual(self.result(came), ["answer", 1, 2, "seen"])

    def test_a_forgotten_return(self) -> None:
        """It is told, once for each handler; the middleware around it is not to blame."""

        def forgets(session: Any, message: Any, handle: Any) -> None:
            handle(session, message)

        self.router.middleware(self.plain("outer"))
        self.router.middleware(forgets)
        with capturedLogs() as events:
            handler = self.router.wrapped(answer)
            self.assertEqual([handler(1, 2), handler(1, 2)], [None, None])
            other = self.router.wrapped(deferred)
            self.assertIsNone(other(1, ""))
        name = name_of(forgets)
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                f"{name} returned None in place of the answer to {kind}: is a return missing?"
                for kind in ("int", "str")
            ],
        )

    def test_no_answer_is_no_fault(self) -> None:
        """Not when there is none, and not when the handler is not called, whatever was before."""
        answers: list[Any] = [None, 1, None]

        @self.router.middleware
        def middleware(session: Any, message: Any, handle: Any) -> Any:
            return handle(session, message) if message else None

        handler = self.router.wrapped(lambda session, message: answers.pop())
        with capturedLogs() as events:
            self.assertEqual([handler(1, called) for called in (1, 1, 0, 1)], [None, 1, None, None])
        self.assertEqual(events, [])

    def test_it_may_do_without_the_handler_or_call_it_twice(self) -> None:
        @self.router.middleware
        def middleware(session: Any, message: Any, handle: Any) -> Any:
            return [handle(session, number) for number in range(message)]

        handler = self.router.wrapped(answer)
        self.assertEqual(handler(1, 0), [])
        self.assertEqual(handler(1, 2), [["answer", 1, 0], ["answer", 1, 1]])

    def test_wrong_signatures(self) -> None:
        def two(session: Any, message: Any) -> None:
            pass

        def four(session: Any, message: Any, handle: Any, more: Any) -> None:
            pass

        def by_name(session: Any, message: Any, *, handle: Any) -> None:
            pass

        for function in (two, four, by_name):
            error = self.assertRaises(TypeError, self.router.middleware, function)
            self.assertIn(f"{name_of(function)} must take three parameters", str(error))
        self.assertIs(self.router.wrapped(answer), answer)


class MergeTests(SynchronousTestCase):
    """`Router.merged`."""

    def _router(self, *kinds: type[Message]) -> Router:
        router = Router()
        for kind in kinds:
            router.add(kind, lambda session, message: None)
        return router

    def test_all_are_there(self) -> None:
        first, second, third = self._router(Ping), self._router(Move), self._router(Jump)
        merged = first.merged(second, third)
        self.assertEqual(merged.handlers, {**first.handlers, **second.handlers, **third.handlers})

    def test_with_none(self) -> None:
        router = self._router(Ping, Custom)
        self.assertEqual(router.merged().handlers, router.handlers)

    def test_one_in_place_of_a_list(self) -> None:
        """It is told what takes routers, in our words."""
        one: Any = self._router(Ping)
        error = self.assertRaises(TypeError, lambda: Router().merged(*one))
        self.assertEqual(str(error), "routers are given as a list: routers=[router]")

    def test_a_class_is_taken_over(self) -> None:
        ours, theirs = self._router(Ping, Echo, Custom), self._router(Ping, Custom)
        merged = ours.merged(theirs)
        self.assertEqual(merged.handlers, {**ours.handlers, **theirs.handlers})
        self.assertIs(merged.handlers[Ping], theirs.handlers[Ping])
        self.assertIs(merged.handlers[Custom], theirs.handlers[Custom])

    def test_a_tag_is_taken_over(self) -> None:
        """The class that was there is decoded no more."""
        ours, theirs = self._router(Move, Jump), self._router(OtherMove)
        self.assertEqual(set(ours.merged(theirs).handlers), {OtherMove, Jump})

    def test_a_class_without_tag_takes_over_its_own_only(self) -> None:
        ours, theirs = self._router(Custom, Text), self._router(Text)
        self.assertEqual(set(ours.merged(theirs).handlers), {Custom, Text})

    def test_the_others_must_agree(self) -> None:
        ours = self._router(Ping)
        self.assertRaises(ValueError, ours.merged, self._router(Move), self._router(Move))
        self.assertRaises(ValueError, ours.merged, self._router(Move), self._router(OtherMove))

    def test_all_that_stands_around_them(self) -> None:
        """In the order of the routers, and in each in its own."""
        routers = [Router() for _ in range(3)]
        hooks: dict[Any, list[Any]] = {}
        seen: list[int] = []
        for number in range(6):
            router = routers[number // 2]

            def middleware(session: Any, message: Any, handle: Any, number: Any = number) -> Any:
                seen.append(number)
                return handle(session, message)

            router.middleware(partial(middleware, number=number))
            for moment in ("on_start", "on_connect", "on_disconnect", "on_stop"):

                def hook(subject: Any) -> None:
                    pass

                getattr(router, moment)(hook)
                hooks.setdefault(moment, []).append(hook)
        merged = routers[0].merged(*routers[1:])
        for moment, expected in hooks.items():
            self.assertEqual(merged.hooks(moment), tuple(expected))
        self.assertEqual(merged.wrapped(answer)(1, 2), ["answer", 1, 2])
        self.assertEqual(seen, list(range(6)))
        # And nothing of it went to the routers themselves.
        self.assertEqual([len(router.hooks("on_stop")) for router in routers], [2, 2, 2])
        seen.clear()
        routers[0].wrapped(answer)(1, 2)
        self.assertEqual(seen, [0, 1])

    def test_no_router_changes(self) -> None:
        ours, theirs = self._router(Ping, Echo), self._router(Ping)
        before = ours.handlers, theirs.handlers
        ours.merged(theirs).add(Move, handle)
        self.assertEqual((ours.handlers, theirs.handlers), before)


class RecipientsTests(SynchronousTestCase):
    """What `broadcast` returns."""

    def test_it_is_a_number(self) -> None:
        self.assertEqual(Recipients(3) + 1, 4)

    def test_it_can_be_awaited(self) -> None:
        async def count() -> int:
            return await Recipients(3)

        result = self.successResultOf(Deferred.fromCoroutine(count()))
        self.assertEqual((result, type(result)), (3, int))
