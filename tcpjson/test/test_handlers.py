"""The table from message class to handler."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.messages import Custom, Echo, Message, Ping, Text
from tcpjson.handlers import Recipients, Router, Session


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

    def test_the_table_handed_out_is_a_copy(self) -> None:
        self.router.handlers[Move] = handle
        self.assertEqual(self.router.handlers, {})


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
