"""The errors are those of docs/protocol.rst, section 9."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core import errors
from tcpjson.test.hypo import given

# The column "fatal" of section 9; True stands for "by policy" too.
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

# Not `CODES`: applications may have errors of their own, with these codes too.
OURS = {kind.code: kind for kind in vars(errors).values() if hasattr(kind, "code")}


class ErrorTests(SynchronousTestCase):
    """Codes, and what goes with them."""

    def test_every_class_is_in_the_protocol(self) -> None:
        for code, kind in OURS.items():
            self.assertEqual((kind.code, kind.fatal), (code, FATAL[code]))

    def test_every_code_of_the_protocol_has_a_class(self) -> None:
        self.assertEqual(set(FATAL) - set(OURS), set())

    def test_classes_are_found_by_their_codes(self) -> None:
        class Banned(errors.Forbidden):
            """An application's own, with a code of ours."""

        self.assertEqual(Banned.code, "forbidden")
        for code, kind in OURS.items():
            self.assertIs(errors.CODES[code], kind)

    def test_each_has_a_text_of_its_own(self) -> None:
        texts = {str(kind()) for kind in OURS.values()}
        self.assertEqual(len(texts), len(OURS))
        self.assertNotIn("", texts)

    def test_a_text_can_be_given(self) -> None:
        error = errors.Forbidden("not yours", retry_after=1.5)
        self.assertEqual(str(error), "not yours")
        self.assertEqual(error.retry_after, 1.5)

    def test_nothing_is_said_of_trying_again_unasked(self) -> None:
        self.assertIsNone(errors.Forbidden().retry_after)

    def test_origins_are_forgotten(self) -> None:
        """They hold frames, and frames hold payloads."""
        try:
            try:
                raise ValueError
            except ValueError as cause:
                raise errors.BadJSON from cause
        except errors.BadJSON as caught:
            error = caught
        self.assertIsNotNone(error.__traceback__)
        self.assertIs(error.forget_origin(), error)
        self.assertEqual((error.__traceback__, error.__context__, error.__cause__), (None, None, None))

    def test_the_silent_ends(self) -> None:
        silent = {
            errors.CLIENT_CLOSED,
            errors.CONNECTION_LOST,
            errors.HANDSHAKE_FAILED,
            errors.CLOSED_BY_HANDLER,
        }
        self.assertEqual(
            silent, {"client_closed", "connection_lost", "handshake_failed", "closed_by_handler"}
        )


class ErrorOfTests(SynchronousTestCase):
    """`error_of`: from the message back to the exception."""

    def test_each_code_is_its_class(self) -> None:
        for code, kind in OURS.items():
            error = errors.error_of({"type": "error", "code": code, "message": "why", "retry_after": 2})
            self.assertIs(type(error), kind)
            self.assertEqual((str(error), error.code, error.retry_after), ("why", code, 2))

    def test_an_unknown_code(self) -> None:
        error = errors.error_of({"code": "quota", "message": "none left"})
        self.assertIs(type(error), errors.ProtocolError)
        self.assertEqual((str(error), error.code, error.fatal), ("none left", "quota", False))
        # The class has no code of its own.
        self.assertFalse(hasattr(errors.ProtocolError, "code"))

    def test_without_a_text(self) -> None:
        for text in (None, "", 5, ["x"]):
            self.assertEqual(str(errors.error_of({"code": "quota", "message": text})), "quota")
            error = errors.error_of({"code": text})
            self.assertEqual((str(error), error.code), ("error", "error"))
        self.assertEqual(str(errors.error_of({})), "error")

    def test_a_text_that_is_no_line(self) -> None:
        """It goes to logs and terminals."""
        for text, shown in (
            ("two\nlines", r"two\nlines"),
            ("\x1b[2J", r"\x1b[2J"),
            ("l'été", "l'été"),
            ("x" * 5000, "x" * 500),
        ):
            error = errors.error_of({"code": "quota", "message": text})
            self.assertEqual(str(error), shown)
            self.assertEqual(errors.error_of({"code": text}).code, shown)

    def test_an_odd_time(self) -> None:
        """What is no time to wait is passed over."""
        odd: list[Any] = [-1, float("nan"), float("inf"), -float("inf"), "5", None, [5], 10**400, 1e9]
        for told in odd:
            self.assertIsNone(errors.error_of({"code": "going_away", "retry_after": told}).retry_after, told)
        for told in (0, 0.5, 3600):
            self.assertEqual(errors.error_of({"retry_after": told}).retry_after, told)

    def test_an_error_of_an_application(self) -> None:
        """That it is made in another way is no concern of whoever hears its code."""

        class Quota(errors.ProtocolError):
            code = "test_quota"
            text = "none left"

            def __init__(self, left: int, unit: str) -> None:
                super().__init__(f"{left} {unit}")

        self.addCleanup(errors.CODES.pop, "test_quota")
        error = errors.error_of({"code": "test_quota", "message": "0 bytes", "retry_after": 5})
        self.assertEqual((str(error), error.code, error.retry_after), ("0 bytes", "test_quota", 5))

    @given(
        st.dictionaries(
            st.sampled_from(["code", "message", "retry_after", "fatal", "id"]),
            st.one_of(
                st.none(),
                st.integers(),
                st.floats(),
                st.text(),
                st.lists(st.integers()),
                st.sampled_from(sorted(OURS)),
            ),
        )
    )
    def test_any_message(self, message: dict[str, Any]) -> None:
        error = errors.error_of(message)
        self.assertTrue(str(error))
        self.assertIsInstance(error.code, str)
        if error.retry_after is not None:
            self.assertTrue(0 <= error.retry_after < float("inf"))


class ClientErrorTests(SynchronousTestCase):
    """What fails at the client's own side."""

    def test_a_timeout_is_one_of_python(self) -> None:
        self.assertTrue(issubclass(errors.RequestTimeout, TimeoutError))

    def test_which_are_for_ever(self) -> None:
        self.assertTrue(issubclass(errors.ProtocolMismatch, errors.PermanentError))
        self.assertTrue(issubclass(errors.AuthenticationFailed, errors.PermanentError))
        for passing in (errors.Disconnected, errors.RequestTimeout, errors.QueueFull):
            self.assertFalse(issubclass(passing, errors.PermanentError))
            self.assertTrue(issubclass(passing, errors.ClientError))

    def test_they_have_no_code(self) -> None:
        self.assertFalse(issubclass(errors.ClientError, errors.ProtocolError))
