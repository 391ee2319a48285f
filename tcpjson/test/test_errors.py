"""The errors are those of docs/protocol.rst, section 9."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core import errors

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
