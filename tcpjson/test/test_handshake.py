"""What a client says and hears before it is served."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.errors import (
    AuthenticationFailed,
    Forbidden,
    GoingAway,
    ProtocolError,
    ProtocolMismatch,
    ServerFull,
    Unauthenticated,
)
from tcpjson.core.handshake import AUTH_ID, HELLO_ID, Handshake, Json, ServerInfo, Step
from tcpjson.core.session import State
from tcpjson.test.hypo import given
from tcpjson.test.test_client_protocol import Proofs, admitted, challenge, fields, values

WELCOME: Json = {"type": "welcome", "protocol": 1, "compression": ["br", "zlib"], "client_id": "me:1"}
ASKS: Json = {**WELCOME, "auth": ["sum"]}
HELLO: Json = {"type": "hello", "client": "test/1", "heartbeat": True, "id": HELLO_ID}


def handshake(credentials: Any = None, *, secure: bool = True, compress: bool = True) -> Handshake:
    return Handshake("test/1", credentials, secure, compress)


def made(steps: list[Step]) -> list[Json]:
    """What is sent, whatever time it takes to make."""
    return [step if isinstance(step, dict) else step() for step in steps]


class WelcomeTests(SynchronousTestCase):
    """The first message."""

    def test_hello(self) -> None:
        begun = handshake()
        self.assertIs(begun.state, State.OPEN)
        self.assertEqual(begun.receive(WELCOME), [{**HELLO, "compression": ("zlib",)}])
        self.assertIs(begun.state, State.READY)
        self.assertEqual(begun.welcome, WELCOME)
        assert begun.server is not None
        self.assertEqual((begun.server.client_id, begun.server.classic), ("me:1", False))

    def test_compression_is_asked_for_where_it_is_offered(self) -> None:
        self.assertEqual(handshake(compress=False).receive(WELCOME), [HELLO])
        self.assertEqual(handshake().receive({**WELCOME, "compression": []}), [HELLO])

    def test_a_classic_server(self) -> None:
        """Whatever else it says, in words that mean something to it."""
        odd = {"type": "welcome", "client_id": 5, "auth": ["plain"], "max_length": "much", "protocol": None}
        for welcome, client_id in (({"type": "welcome", "client_id": "me:1"}, "me:1"), (odd, "")):
            begun = handshake()
            self.assertEqual(begun.receive(welcome), [])
            self.assertIs(begun.state, State.READY)
            assert begun.server is not None
            self.assertEqual(begun.server, ServerInfo(client_id=client_id))
            self.assertTrue(begun.server.classic)

    def test_another_version(self) -> None:
        odd: list[tuple[Any, str]] = [
            (0, "0"),
            (2, "2"),
            ("1", "1"),
            ([1], "list"),
            (1.5, "float"),
            (2**64 - 1, str(2**64 - 1)),
            (2**64, "int"),
            (-(2**64), "int"),
        ]
        for version, shown in odd:
            with self.assertRaisesRegex(ProtocolMismatch, f"^the server speaks version {shown}, not 1$"):
                handshake().receive({**WELCOME, "protocol": version})

    def test_fields_that_are_odd(self) -> None:
        """They are passed over, and the others are heard."""
        odd: list[tuple[str, Any, Any]] = [
            ("max_length", "much", None),
            ("max_length", -1, None),
            ("max_length", 0, None),
            ("max_length", True, None),
            ("max_length", [1], None),
            ("max_length", 10**400, None),
            ("max_length", 10**18, None),
            ("max_length", 10**18 - 1, 10**18 - 1),
            ("heartbeat", [1], None),
            ("heartbeat", -5, None),
            ("heartbeat", 0, None),
            ("heartbeat", 1e308, None),
            ("heartbeat", 5, 5.0),
            ("auth", "sum", ()),
            ("auth", {"sum": 1}, ()),
            ("auth", [5, None], ()),
            ("compression", [5, "br"], ("br",)),
            ("server", 5, ""),
            ("server", ["x"], ""),
            ("client_id", {"a": 1}, ""),
            ("features", None, ()),
            (
                "limits",
                {"max_queue": "much", "a": -1, "b": None, "c": True, "d": 2.5, "e": 10**400},
                {"d": 2.5},
            ),
            ("limits", [1], {}),
            ("limits", "none", {}),
        ]
        for name, value, found in odd:
            begun = handshake()
            begun.receive({**WELCOME, name: value})
            self.assertIs(begun.state, State.READY, name)
            assert begun.server is not None
            self.assertEqual(getattr(begun.server, name), found, (name, value))
            self.assertFalse(begun.server.classic)
            if name != "client_id":
                self.assertEqual(begun.server.client_id, "me:1")

    def test_a_version_that_is_nearly_one(self) -> None:
        """It is the one that we speak, or it is not: never a server that knows none."""
        for version in (True, 1.0):
            begun = handshake()
            with contextlib.suppress(ProtocolMismatch):
                begun.receive({**WELCOME, "protocol": version})
                assert begun.server is not None
                self.assertFalse(begun.server.classic)

    def test_who_is_asked_for_in_one_line(self) -> None:
        with self.assertRaises(AuthenticationFailed) as caught:
            handshake().receive({**WELCOME, "auth": ["two\nlines", "x" * 5000]})
        self.assertLess(len(str(caught.exception)), 200)
        self.assertTrue(str(caught.exception).isprintable())

    def test_null_is_nothing(self) -> None:
        """So some languages write what is empty."""
        begun = handshake()
        nothing = dict.fromkeys(
            ["client_id", "server", "max_length", "heartbeat", "compression", "features", "auth", "limits"]
        )
        self.assertEqual(begun.receive({"type": "welcome", "protocol": 1, **nothing}), [HELLO])
        self.assertEqual(begun.server, ServerInfo(protocol=1))

    def test_something_else(self) -> None:
        kinds: list[Any] = ["pong", None, 5, ["welcome"], "x" * 5000]
        for kind in kinds:
            with self.assertRaises(ProtocolMismatch) as caught:
                handshake().receive({"type": kind})
            self.assertLess(len(str(caught.exception)), 150)

    def test_an_error(self) -> None:
        """Fatal or not: it is not welcome."""
        for fatal in (True, False):
            with self.assertRaises(ServerFull) as caught:
                handshake().receive(
                    {"type": "error", "code": "server_full", "fatal": fatal, "retry_after": 5}
                )
            self.assertEqual(caught.exception.retry_after, 5)


class ServerInfoTests(SynchronousTestCase):
    """`ServerInfo`: what follows from what a server says."""

    def test_the_longest_answer(self) -> None:
        """Each byte of a text may come back as six."""
        for max_length, longest, bound in (
            (None, 5000, 5000),
            (1000, 50_000, 10_096),
            (1000, 5000, 5000),
            (2**70, 5000, 5000),
        ):
            self.assertEqual(ServerInfo(max_length=max_length).longest_answer(longest), bound)

    def test_silence(self) -> None:
        """Two heartbeats, within bounds."""
        for heartbeat, seconds in ((None, 50), (25, 50), (0, 1), (-5, 1), (1e-300, 1), (1e308, 3600)):
            self.assertEqual(ServerInfo(heartbeat=heartbeat).silence, seconds)


class HelloResponseTests(SynchronousTestCase):
    """What was agreed on."""

    def test_compression(self) -> None:
        odd: list[Any] = ["br", None, 5, ["zlib"], {"zlib": 1}]
        for name in ["zlib", *odd]:
            begun = handshake()
            begun.receive(WELCOME)
            self.assertEqual(
                begun.receive({"type": "hello_response", "compression": name, "id": HELLO_ID}), []
            )
            self.assertEqual(begun.compression, "zlib" if name == "zlib" else None)

    def test_nothing_at_all(self) -> None:
        begun = handshake()
        begun.receive(WELCOME)
        for answer in ({"type": "hello_response"}, {"type": "pong", "compression": "zlib"}):
            self.assertEqual(begun.receive({**answer, "id": HELLO_ID}), [])
        self.assertIsNone(begun.compression)

    def test_of_another(self) -> None:
        """The answer to a `hello` that the user sent."""
        begun = handshake(Proofs())
        begun.receive(ASKS)
        begun.receive({"type": "hello_response", "compression": "zlib", "id": 5})
        self.assertIsNone(begun.compression)

    def test_it_was_not_asked_for(self) -> None:
        for begun, welcome in (
            (handshake(compress=False), WELCOME),
            (handshake(), {**WELCOME, "compression": []}),
            (handshake(), {"type": "welcome"}),
        ):
            begun.receive(welcome)
            begun.receive({"type": "hello_response", "compression": "zlib", "id": HELLO_ID})
            self.assertIsNone(begun.compression)

    def test_before_the_end_of_the_login(self) -> None:
        begun = handshake(Proofs())
        begun.receive(ASKS)
        begun.receive({"type": "hello_response", "compression": "zlib", "id": HELLO_ID})
        self.assertEqual(begun.compression, "zlib")
        self.assertIs(begun.state, State.AUTHENTICATING)


class LoginTests(SynchronousTestCase):
    """Section 6."""

    def begin(self) -> Handshake:
        begun = handshake(Proofs())
        begun.receive(ASKS)
        return begun

    def test_in_two_steps(self) -> None:
        begun = handshake(Proofs())
        _, first = begun.receive(ASKS)
        self.assertEqual(first, {"type": "auth", "mechanism": "sum", "data": "hello", "id": AUTH_ID})
        self.assertIs(begun.state, State.AUTHENTICATING)
        self.assertEqual(made(begun.receive(challenge())), [{"type": "auth", "data": "3+7", "id": AUTH_ID}])
        self.assertEqual(begun.receive(admitted()), [])
        self.assertIs(begun.state, State.READY)
        self.assertEqual(begun.user, "eve")

    def test_the_answer_is_made_later(self) -> None:
        """It takes half a second: whoever receives is not held up."""
        (step,) = self.begin().receive(challenge("refuse"))
        assert not isinstance(step, dict)
        with self.assertRaisesRegex(AuthenticationFailed, "a challenge that is none"):
            step()

    def test_who_is_asked(self) -> None:
        """With what is offered, and whether others read."""
        for secure in (True, False):
            proofs = Proofs()
            handshake(proofs, secure=secure).receive(ASKS)
            self.assertEqual(proofs.offered, [(("sum",), secure)])

    def test_nobody_to_show(self) -> None:
        begun = handshake()
        with self.assertRaisesRegex(AuthenticationFailed, "sum"):
            begun.receive(ASKS)

    def test_it_is_refused(self) -> None:
        for status in ("authentication_failed", None, "ok"):
            with self.assertRaisesRegex(AuthenticationFailed, "not with this secret"):
                self.begin().receive({"type": "auth_result", "status": status, "id": AUTH_ID})

    def test_the_server_proves_nothing(self) -> None:
        odd: list[Any] = ["no", None, 5, ["proved"]]
        for data in odd:
            begun = self.begin()
            with self.assertRaisesRegex(AuthenticationFailed, "not the server"):
                begun.receive({**admitted(), "data": data})
            self.assertIs(begun.state, State.AUTHENTICATING)
            self.assertIsNone(begun.user)

    def test_odd_answers(self) -> None:
        odd: list[Json] = [{"type": "pong"}, {}, {"type": "auth_challenge"}, challenge([1])]  # type: ignore[arg-type]  # odd
        for message in odd:
            with self.assertRaisesRegex(ProtocolMismatch, "the answer to auth"):
                self.begin().receive({**message, "id": AUTH_ID})

    def test_a_user_without_a_name(self) -> None:
        begun = self.begin()
        begun.receive({**admitted(), "user": 5})
        self.assertIs(begun.state, State.READY)
        self.assertIsNone(begun.user)

    def test_errors(self) -> None:
        """In answer to it, or fatal; others are not for it."""
        for message, kind in (
            ({"code": "auth_failed", "fatal": True, "message": "too often"}, AuthenticationFailed),
            ({"code": "auth_failed", "id": AUTH_ID}, AuthenticationFailed),
            ({"code": "unauthenticated", "id": AUTH_ID}, Unauthenticated),
            ({"code": "forbidden", "fatal": True}, Forbidden),
            ({"id": AUTH_ID}, ProtocolError),
        ):
            with self.assertRaises(kind):
                self.begin().receive({"type": "error", **message})
        begun = self.begin()
        self.assertEqual(begun.receive({"type": "error", "code": "bad_message", "fatal": False}), [])
        self.assertIs(begun.state, State.AUTHENTICATING)

    def test_an_error_that_repeats_the_secret(self) -> None:
        for code in ("unauthenticated", "odd"):
            with self.assertRaises(ProtocolError) as caught:
                self.begin().receive(
                    {"type": "error", "code": code, "message": "no such password: hunter2", "id": AUTH_ID}
                )
            self.assertEqual((caught.exception.code, str(caught.exception)), (code, code))

    def test_other_messages_meanwhile(self) -> None:
        """They are not for it."""
        begun = self.begin()
        for message in ({"type": "auth_result"}, {"type": "news", "id": 5}, {}, WELCOME):
            self.assertEqual(begun.receive(message), [])
        self.assertIs(begun.state, State.AUTHENTICATING)

    def test_it_goes_away(self) -> None:
        with self.assertRaises(GoingAway) as caught:
            self.begin().receive({"type": "error", "code": "going_away", "id": AUTH_ID, "retry_after": 3})
        self.assertEqual(caught.exception.retry_after, 3)

    def test_a_second_result(self) -> None:
        """The login is over."""
        begun = self.begin()
        begun.receive(admitted())
        self.assertEqual(begun.receive({**admitted(), "status": "authentication_failed"}), [])
        self.assertEqual(begun.user, "eve")


_ORDER = [State.OPEN, State.AUTHENTICATING, State.READY]
scripts = st.one_of(
    fields,
    st.sampled_from(
        [WELCOME, ASKS, challenge(), challenge("refuse"), admitted(), admitted("no"), {"type": "welcome"}]
    ),
    st.dictionaries(st.text(max_size=5), values, max_size=3),
)


class AnyServerTests(SynchronousTestCase):
    """Whatever a server says."""

    @given(st.lists(scripts, max_size=8), st.booleans(), st.booleans(), examples=400)
    def test_any_messages(self, messages: list[Json], knows: bool, compress: bool) -> None:
        """Only its own errors come out, and the state goes forward only."""
        begun = handshake(Proofs() if knows else None, compress=compress)
        states = [begun.state]
        for message in messages:
            try:
                made(begun.receive(message))
            except (ProtocolMismatch, AuthenticationFailed, ProtocolError):
                break
            finally:
                states.append(begun.state)
            self.assertIs(begun.server is None, begun.state is State.OPEN)
        places = list(map(_ORDER.index, states))
        self.assertEqual(places, sorted(places))
        if begun.state is State.READY and begun.server is not None and begun.server.auth:
            self.assertTrue(knows)
