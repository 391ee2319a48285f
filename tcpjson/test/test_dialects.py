"""What a connection understands at each time of its life."""

from __future__ import annotations

from typing import Any

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import Message, Router, classic
from tcpjson.core.errors import GoingAway, Unauthenticated
from tcpjson.core.messages import (
    Auth,
    Broadcast,
    Custom,
    Echo,
    GetStats,
    HeartbeatPong,
    Hello,
    Ping,
    Refused,
    Text,
)
from tcpjson.dialects import Dialect, Dialects

PAYLOADS = (
    b'{"type":"hello"}',
    b'{"type":"auth","mechanism":"plain"}',
    b'{"type":"ping"}',
    b'{"type":"pong"}',
    b'{"type":"echo"}',
    b'{"type":"broadcast"}',
    b'{"type":"get_stats"}',
    b'{"type":"own"}',
    b'{"type":"nobody"}',
    b"text",
    b"1",
    b"{",
    b"",
)


class Own(Message, tag="own"):
    """A type of the application's."""


class OwnPong(Message, tag="pong"):
    """A type of the application's, of the name that heartbeats have."""

    n: int = 0


class Connection:
    """As far as handlers here look at it."""

    dialect: Any = None
    going_away = GoingAway(retry_after=3)


def hello(connection: Any, message: Any) -> str:
    return "hello"


def auth(connection: Any, message: Any) -> str:
    return "auth"


def own(connection: Any, message: Any) -> Any:
    return "own"


def dialects(*kinds: type[Message], strict: bool = False) -> Dialects:
    router = Router()
    for kind in kinds:
        router.add(kind, own)
    return Dialects(hello, auth, router, strict)


def kinds(dialect: Dialect) -> list[type[Message]]:
    """What each of the payloads is to a dialect."""
    return [type(message) for message in dialect.codec.decode(PAYLOADS)]


class DialectTests(SynchronousTestCase):
    def test_of_guests(self) -> None:
        for strict in (False, True):
            guest = dialects(Own, strict=strict).guest
            self.assertEqual(kinds(guest), [Hello, Auth, Ping, *[Custom] * 6, Text, Text, Refused, Refused])
            self.assertEqual(guest.handlers[Hello], hello)
            self.assertEqual(guest.handlers[Auth], auth)
            for kind in (Custom, Text):
                answer = guest.handlers[kind](None, None)
                self.assertIsInstance(answer, Unauthenticated)

    def test_of_those_that_are_served(self) -> None:
        served = dialects(Own)
        for dialect in (served.ready, served.opening):
            self.assertEqual(
                kinds(dialect),
                [
                    Hello,
                    Auth,
                    Ping,
                    Custom,
                    Echo,
                    Broadcast,
                    GetStats,
                    Own,
                    Custom,
                    Text,
                    Text,
                    Refused,
                    Refused,
                ],
            )

    def test_of_those_that_answer_pings(self) -> None:
        beating = dialects(Own).beating
        expected = [Hello, Auth, Ping, HeartbeatPong, Echo, Broadcast, GetStats, Own, Custom]
        self.assertEqual(kinds(beating), [*expected, Text, Text, Refused, Refused])
        self.assertIsNone(beating.handlers[HeartbeatPong](None, None))

    def test_strict(self) -> None:
        served = dialects(Own, strict=True)
        for dialect, pong in (
            (served.ready, Refused),
            (served.opening, Refused),
            (served.beating, HeartbeatPong),
        ):
            self.assertEqual(
                kinds(dialect),
                [Hello, Auth, Ping, pong, Echo, Broadcast, GetStats, Own, *[Refused] * 5],
            )

    def test_all_kinds_have_a_handler(self) -> None:
        for chosen in ((), (Own,), (Own, OwnPong)):
            for strict in (False, True):
                served = dialects(*chosen, strict=strict)
                for dialect in (served.guest, served.opening, served.ready, served.beating):
                    for each in (dialect, dialect.leaving):
                        self.assertLessEqual(set(kinds(each)), set(each.handlers))
                        self.assertLessEqual(set(each.handlers), served.kinds)

    def test_a_pong_of_the_applications(self) -> None:
        """It has it where the client did not say `heartbeat`."""
        served = dialects(OwnPong)
        for dialect in (served.ready, served.opening):
            self.assertIs(kinds(dialect)[3], OwnPong)
        self.assertIs(served.ready.handlers[OwnPong], own)
        self.assertIs(kinds(served.beating)[3], HeartbeatPong)
        self.assertNotIn(OwnPong, served.beating.handlers)
        self.assertIs(kinds(served.guest)[3], Custom)

    def test_what_belongs_to_the_protocol(self) -> None:
        class OwnHello(Message, tag="hello"):
            pass

        class OwnAuth(Message, tag="auth"):
            pass

        for kind, name in ((OwnHello, "hello"), (OwnAuth, "auth"), (Hello, "hello"), (Auth, "auth")):
            error = self.assertRaises(ValueError, dialects, kind)
            self.assertIn(name, str(error))

    def test_classic_types_can_be_taken_over(self) -> None:
        class OwnEcho(Message, tag="echo"):
            pass

        served = dialects(OwnEcho)
        self.assertIs(kinds(served.ready)[4], OwnEcho)
        self.assertIs(kinds(served.beating)[4], OwnEcho)
        # Who has not authenticated reaches none of the application's handlers.
        router = Router()
        router.add(Ping, own)
        self.assertIsNot(Dialects(hello, auth, router, False).guest.handlers[Ping], own)

    def test_fields_that_cannot_be_decoded(self) -> None:
        class Odd(Message, tag="odd"):
            path: list[Connection]

        error = self.assertRaises(TypeError, dialects, Odd)
        self.assertEqual(
            str(error), f"{__name__}.{Odd.__qualname__}.path: no JSON value is a {Connection.__name__}"
        )

    def test_what_the_application_gets_is_fit_for_others(self) -> None:
        class Say(Message, tag="say"):
            text: Raw = Raw(b"null")

        served = dialects(Say)
        payload = b'{"type":"say","text":1e999}'
        for dialect in (served.opening, served.ready, served.beating):
            self.assertEqual([type(message) for message in dialect.codec.decode([payload])], [Refused])


class MiddlewareTests(SynchronousTestCase):
    """What stands around the handlers."""

    def setUp(self) -> None:
        self.seen: list[type] = []

    def served(self, *kinds: type[Message], strict: bool = False) -> Dialects:
        """With a middleware that answers in place of all handlers."""
        router = Router()
        for kind in kinds:
            router.add(kind, own)

        @router.middleware
        def middleware(session: Any, message: Any, handle: Any) -> Any:
            self.seen.append(type(message))
            return "instead"

        return Dialects(hello, auth, router, strict)

    def test_none(self) -> None:
        """The handlers are there as they are, and nothing is looked at that need not be."""
        router = Router()
        router.add(Own, own)
        served = Dialects(hello, auth, router, False)
        for dialect in (served.ready, served.beating):
            handlers: dict[type[Message], Any] = {**classic.router.handlers, Own: own}
            for kind, handler in handlers.items():
                self.assertIs(dialect.handlers[kind], handler)
        # A content that is relayed is looked at by what relays it.
        far = b'{"type":"ping","other":1e999}'
        self.assertEqual([type(message) for message in served.ready.codec.decode([far])], [Ping])

    def test_what_comes_by(self) -> None:
        served = self.served(Own)
        for dialect in (served.opening, served.ready, served.beating):
            self.seen.clear()
            came = set()
            for kind, handler in dialect.handlers.items():
                connection = Connection()
                connection.dialect = dialect
                if kind in (Hello, Auth, HeartbeatPong, Refused):
                    expected = {Hello: hello, Auth: auth, Refused: classic.refused}
                    self.assertIs(handler, expected.get(kind, handler))
                    continue
                message = {Custom: Custom(original=Raw(b"{}")), Text: Text(original="x")}.get(kind)
                self.assertEqual(handler(connection, message or kind()), "instead")
                came.add(kind)
            self.assertEqual(came, {Ping, Echo, Broadcast, GetStats, Own, Custom, Text})
            self.assertEqual(set(self.seen), came)
        self.assertIsNone(served.beating.handlers[HeartbeatPong](None, None))

    def test_not_of_guests_nor_of_those_that_are_told_to_leave(self) -> None:
        served = self.served(Own)
        self.assertEqual(served.guest.handlers[Ping], classic.ping)
        connection = Connection()
        for dialect in (served.opening, served.ready, served.beating):
            for kind, handler in dialect.leaving.handlers.items():
                if kind is not HeartbeatPong:
                    self.assertIs(handler(connection, None), connection.going_away)
        self.assertEqual(self.seen, [])

    def test_all_that_it_sees_is_fit_for_others(self) -> None:
        """Nobody knows what the application makes of it."""
        for strict in (False, True):
            served = self.served(Own, strict=strict)
            for dialect in (served.opening, served.ready, served.beating):
                for name in ("ping", "echo", "broadcast", "get_stats", "own", "nobody"):
                    for bad in ("1e999", "18446744073709551616", "[" * 70 + "]" * 70):
                        payload = f'{{"type":"{name}","id":7,"content":{bad}}}'.encode()
                        [message] = dialect.codec.decode([payload])
                        assert isinstance(message, Refused)
                        code = "unknown_type" if strict and name == "nobody" else "bad_json"
                        self.assertEqual((message.error.code, message.id), (code, 7))
                    good = f'{{"type":"{name}","content":{"[" * 63 + "]" * 63}}}'.encode()
                    [message] = dialect.codec.decode([good])
                    self.assertEqual(isinstance(message, Refused), strict and name == "nobody")

    def test_values_that_are_no_object(self) -> None:
        served = self.served()
        for payload, kind in ((b"[1e999]", Refused), (b"1e999", Refused), (b"1e99", Text), (b"text", Text)):
            [message] = served.ready.codec.decode([payload])
            self.assertIs(type(message), kind, payload)


class OpeningTests(SynchronousTestCase):
    """`hello` comes before all but `auth` and `ping`."""

    def test_the_first_request(self) -> None:
        served = dialects(Own)
        for kind, handler in served.opening.handlers.items():
            connection = Connection()
            connection.dialect = served.opening
            if kind in (Echo, GetStats, Broadcast):
                # The handlers of these ask more of a connection: that they are the same is shown elsewhere.
                self.assertIsNot(handler, served.ready.handlers[kind])
                continue
            message = {Custom: Custom(original=Raw(b"{}")), Text: Text(original="x"), Own: Own()}.get(kind)
            if message is None:
                self.assertIn(kind, (Hello, Auth, Ping, Refused))
                self.assertIs(handler, served.ready.handlers[kind])
                continue
            answer = handler(connection, message)
            self.assertIs(connection.dialect, served.ready)
            self.assertEqual(answer, "own" if kind is Own else answer)

    def test_types_of_the_applications(self) -> None:
        """`hello` may come behind a ping, whoever answers it, and behind nothing else."""

        class OwnPing(Message, tag="ping"):
            pass

        class OwnEcho(Message, tag="echo"):
            pass

        served = dialects(OwnPing, OwnEcho)
        for kind, following in ((OwnPing, served.opening), (OwnEcho, served.ready)):
            connection = Connection()
            connection.dialect = served.opening
            self.assertEqual(served.opening.handlers[kind](connection, kind()), "own")
            self.assertIs(connection.dialect, following)

    def test_a_request_behind_hello(self) -> None:
        """In the same read it is still handled as an opening one, and changes nothing any more."""
        served = dialects(Own)
        connection = Connection()
        connection.dialect = served.beating
        self.assertEqual(served.opening.handlers[Own](connection, Own()), "own")
        self.assertIs(connection.dialect, served.beating)


class LeavingTests(SynchronousTestCase):
    """When the server goes away."""

    def test_all_are_told(self) -> None:
        served = dialects(Own, OwnPong)
        connection = Connection()
        for dialect in (served.guest, served.opening, served.ready, served.beating):
            leaving = dialect.leaving
            self.assertIs(leaving.codec, dialect.codec)
            self.assertEqual(leaving.handlers.keys(), dialect.handlers.keys())
            for kind, handler in leaving.handlers.items():
                answer = handler(connection, None)
                if kind is HeartbeatPong:
                    self.assertIsNone(answer)
                else:
                    self.assertIs(answer, connection.going_away)

    def test_it_is_made_once(self) -> None:
        ready = dialects().ready
        self.assertIs(ready.leaving, ready.leaving)
