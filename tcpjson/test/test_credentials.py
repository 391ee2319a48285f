"""What clients show who they are with, and what they make of the servers' side of it."""

from __future__ import annotations

import traceback
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st
from scramp import ScramMechanism  # type: ignore[import-untyped]  # it has no types
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.errors import AuthenticationFailed
from tcpjson.core.handshake import Credentials, Json, Login
from tcpjson.credentials import MAX_ITERATIONS, MIN_ITERATIONS, Password, Token
from tcpjson.test.hypo import given
from tcpjson.verifiers import Verifier

SCRAM = "scram-sha-256"
SECRET = "a pencil of mine"

# The example of RFC 7677, section 3.
NONCE = "rOprNGfwEbeRWgbNEkqO"
CHALLENGE = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
PROOF = (
    "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SIGNATURE = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="

MECHANISMS = st.lists(st.sampled_from([SCRAM, "plain", "token", "SCRAM-SHA-256", "magic", ""]), max_size=5)


def nonce(count: int) -> bytes:
    """That of the RFC, however much is asked for."""
    return b64decode(NONCE)


class ScramServer:
    """The server's side, which knows one user."""

    def __init__(self, username: str = "ann", password: str = SECRET, iterations: int = 4096) -> None:
        salt, count, stored, key = Verifier.make(password, iterations, lambda count: b"s" * count)
        users = {username: (salt, stored, key, count)}
        self._server = ScramMechanism("SCRAM-SHA-256").make_server(users.get, s_nonce="theirs")

    def challenge(self, first: Json) -> str:
        """What it answers to the first message."""
        self._server.set_client_first(first["data"])
        return str(self._server.get_server_first())

    def result(self, final: Json) -> str:
        """What it answers to the last message; raises where the password is another."""
        self._server.set_client_final(final["data"])
        return str(self._server.get_server_final())


class Case(SynchronousTestCase):
    def fails(self, function: Callable[..., Any], *args: Any) -> str:
        """See that there is no login by it, and that nothing of the secret is told; returns what is."""
        with self.assertRaises(AuthenticationFailed) as caught:
            function(*args)
        told = "".join(traceback.format_exception(caught.exception))
        self.assertNotIn(SECRET, told)
        self.assertNotIn("During handling", told)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)


class PasswordTests(Case):
    """Which mechanism a password is shown by."""

    def begin(self, *mechanisms: str, secure: bool = True, allow_plain: bool = False) -> Login:
        return Password("ann", SECRET, allow_plain=allow_plain).begin(mechanisms, secure)

    def test_scram_where_it_is_offered(self) -> None:
        for secure in (False, True):
            for allow_plain in (False, True):
                login = self.begin("plain", SCRAM, "token", secure=secure, allow_plain=allow_plain)
                self.assertEqual(login.first["mechanism"], SCRAM)
                self.assertEqual(login.first["data"][:9], "n,,n=ann,")
                self.assertEqual(set(login.first), {"mechanism", "data"})

    def test_plain(self) -> None:
        """Over TLS and on a Unix socket, or where it was allowed."""
        expected = {"mechanism": "plain", "username": "ann", "password": SECRET}
        for login in (
            self.begin("token", "plain"),
            self.begin("plain", secure=False, allow_plain=True),
        ):
            self.assertEqual(login.first, expected)
            # It has nothing to prove by, so whatever it says is well.
            login.finish(None)
            login.finish("v=1")
            self.fails(login.answer, "r=1")

    def test_never_in_the_clear(self) -> None:
        self.assertIn("allow_plain=True", self.fails(Password("ann", SECRET).begin, ["plain"], False))

    def test_nothing_that_fits(self) -> None:
        for mechanisms in ([], ["token"], ["PLAIN", "scram-sha-1"], ["SCRAM-SHA-256"]):
            for secure in (False, True):
                told = self.fails(Password("ann", SECRET, allow_plain=True).begin, mechanisms, secure)
                self.assertIn(", ".join(mechanisms), told)

    def test_what_is_offered_is_a_strangers_text(self) -> None:
        for mechanisms in (["x" * 5000], ["\x1b[2J"], ["a\nb"]):
            for credentials in (Password("ann", SECRET), Token(SECRET)):
                told = self.fails(credentials.begin, mechanisms, True)
                self.assertLess(len(told), 200)
                self.assertTrue(told.isprintable())

    def test_without_scramp(self) -> None:
        line = "the package scramp is missing: pip install 'tcpjson[auth]'"
        with patch.dict("sys.modules", {"scramp": None}):
            self.assertEqual(self.fails(Password("ann", SECRET).begin, [SCRAM], True), line)
            self.assertEqual(self.fails(Password("ann", SECRET).begin, [SCRAM, "token"], False), line)
            self.assertEqual(self.begin(SCRAM, "plain").first["mechanism"], "plain")
            # Whoever allowed it wanted it where there is nothing better.
            for allow_plain in (False, True):
                begin = Password("ann", SECRET, allow_plain=allow_plain).begin
                self.assertEqual(self.fails(begin, [SCRAM, "plain"], False), line)
            self.assertEqual(self.begin("plain").first["mechanism"], "plain")

    @given(MECHANISMS, st.booleans(), st.booleans(), st.booleans())
    def test_what_is_sent(
        self, mechanisms: list[str], secure: bool, allow_plain: bool, installed: bool
    ) -> None:
        """Never a mechanism that was not offered; never the password in the clear unless that was allowed."""
        with patch.dict("sys.modules", {} if installed else {"scramp": None}):
            try:
                login = Password("ann", SECRET, allow_plain=allow_plain).begin(mechanisms, secure)
            except AuthenticationFailed:
                usable = {SCRAM} if installed else set()
                if secure or (allow_plain and SCRAM not in mechanisms):
                    usable.add("plain")
                self.assertFalse(usable & set(mechanisms))
                return
        self.assertIn(login.first["mechanism"], mechanisms)
        if SECRET in str(login.first):
            self.assertTrue(secure or (allow_plain and SCRAM not in mechanisms))
            self.assertFalse(installed and SCRAM in mechanisms)

    def test_wrong_from_the_start(self) -> None:
        for username, password, error, told in (
            ("", SECRET, ValueError, "the user name is empty"),
            ("ann", "", ValueError, "the password is empty"),
            ("\udcff", SECRET, ValueError, "the user name holds a character that is none"),
            ("ann", SECRET + "\udcff", ValueError, "the password holds a character that is none"),
            (None, SECRET, TypeError, "the user name must be a str"),
            ("ann", SECRET.encode(), TypeError, "the password must be a str"),
        ):
            with self.assertRaises(error) as caught:
                Password(username, password)  # type: ignore[arg-type]  # that is what is tried
            self.assertEqual(str(caught.exception), told)
            shown = "".join(traceback.format_exception(caught.exception))
            self.assertNotIn(SECRET, shown)
            self.assertNotIn("During handling", shown)

    def test_repr(self) -> None:
        password = Password("ann", SECRET)
        self.assertEqual(repr(password), "<Password of 'ann'>")
        for mechanism in (SCRAM, "plain"):
            self.assertNotIn(SECRET, repr(password.begin([mechanism], True)))

    def test_are_credentials(self) -> None:
        credentials: list[Credentials] = [Password("ann", SECRET), Token(SECRET)]
        for each in credentials:
            login: Login = each.begin(["plain", "token"], True)
            self.assertIn(SECRET, str(login.first))


class TokenTests(Case):
    def test_token(self) -> None:
        expected = {"mechanism": "token", "token": SECRET}
        for login in (
            Token(SECRET).begin([SCRAM, "token"], True),
            Token(SECRET, allow_plain=True).begin(["token"], False),
        ):
            self.assertEqual(login.first, expected)
            login.finish(None)
            self.fails(login.answer, "r=1")

    def test_never_in_the_clear(self) -> None:
        self.assertIn("allow_plain=True", self.fails(Token(SECRET).begin, ["token"], False))

    def test_nothing_that_fits(self) -> None:
        for mechanisms in ([], ["plain", SCRAM], ["Token"]):
            for secure in (False, True):
                told = self.fails(Token(SECRET, allow_plain=True).begin, mechanisms, secure)
                self.assertIn(", ".join(mechanisms), told)

    def test_wrong_from_the_start(self) -> None:
        self.assertRaises(ValueError, Token, "")
        self.assertRaises(ValueError, Token, "\udcff")
        self.assertRaises(TypeError, Token, b"x")

    def test_repr(self) -> None:
        self.assertEqual(repr(Token(SECRET)), "<Token>")
        self.assertNotIn(SECRET, repr(Token(SECRET).begin(["token"], True)))


class ScramTests(Case):
    """The exchange of `scram-sha-256`."""

    def login(self, username: str = "ann", password: str = SECRET) -> Login:
        return Password(username, password).begin([SCRAM], False)

    def rfc(self) -> Login:
        return Password("user", "pencil", random=nonce).begin([SCRAM], False)

    def test_the_example_of_the_rfc(self) -> None:
        login = self.rfc()
        self.assertEqual(login.first, {"mechanism": SCRAM, "data": f"n,,n=user,r={NONCE}"})
        self.assertEqual(login.answer(CHALLENGE), {"mechanism": SCRAM, "data": PROOF})
        login.finish(SIGNATURE)

    def test_a_login(self) -> None:
        for username, password in (("ann", SECRET), ("a=b,c", "ä\N{NO-BREAK SPACE}名"), ("名", ",=")):
            server, login = ScramServer(username, password), self.login(username, password)
            login.finish(server.result(login.answer(server.challenge(login.first))))

    def test_each_login_has_a_nonce(self) -> None:
        asked: list[int] = []

        def random(count: int) -> bytes:
            asked.append(count)
            return bytes([len(asked)] * count)

        password = Password("ann", SECRET, random=random)
        first, second = (password.begin([SCRAM], False).first["data"] for _ in range(2))
        self.assertEqual(asked, [18, 18])
        self.assertEqual(first, f"n,,n=ann,r={b64encode(bytes([1] * 18)).decode()}")
        self.assertNotEqual(first, second)
        firsts = {Password("ann", SECRET).begin([SCRAM], False).first["data"] for _ in range(50)}
        self.assertEqual(len(firsts), 50)

    def test_characters_that_are_not_allowed(self) -> None:
        for username, password in (("a\x00", SECRET), ("ann", f"{SECRET}\x07"), ("\N{SOFT HYPHEN}", SECRET)):
            told = self.fails(Password(username, password).begin, [SCRAM], True)
            self.assertEqual(told, "the user name or the password holds a character that is not allowed")

    def test_challenges_that_are_none(self) -> None:
        salt = "s=W22ZaJ0SNY7soEsUEjb6gQ=="
        good = f"r={NONCE}x,{salt},i=4096"
        self.assertTrue(self.rfc().answer(good))
        # Extensions are passed over (RFC 5802, section 5.1).
        self.assertTrue(self.rfc().answer(f"{good},x=1"))
        for data in (
            *("", ",", "x", "\x00", "\udcff", "r", "r=", "{}", "e=unknown-user", "e=", "e=nonsense"),
            # A nonce that is not ours, or has nothing of theirs.
            *(f"r=theirs,{salt},i=4096", f"r=x{NONCE},{salt},i=4096", f"r={NONCE},{salt},i=4096"),
            *(f"r={NONCE[:-1]},{salt},i=4096", f"r={NONCE.lower()}x,{salt},i=4096"),
            # A salt that is none, or is too short.
            *(f"r={NONCE}x,s={text},i=4096" for text in ("", "*", "W22ZaJ0SNY7soEsUEjb6gQ", "W22Z", "ä")),
            *(f"r={NONCE}x,i=4096", f"r={NONCE}x,{salt}", f"{salt},r={NONCE}x,i=4096"),
            # Iterations that are no number.
            *(
                f"r={NONCE}x,{salt},i={text}"
                for text in ("", "x", "-4096", "+4096", "4096.0", "04096", "٤٠٩٦")
            ),
            *(f"{good},i=5000", f"{good},i=99999999999", f"m=1,{good}", f"{good},", f"{good}\x00"),
        ):
            self.assertEqual(self.fails(self.rfc().answer, data), "the server's challenge is none", data)

    def test_how_often_it_is_hashed(self) -> None:
        """What is beyond the bounds is refused before anything is hashed."""
        hashed: list[int] = []

        def pbkdf2(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
            hashed.append(iterations)
            return bytes(32)

        salt = "s=W22ZaJ0SNY7soEsUEjb6gQ=="
        with patch("hashlib.pbkdf2_hmac", pbkdf2):
            for count in ("4095", "1", "0", "2000001", "10000000", "10000001", "9" * 5000):
                self.fails(self.rfc().answer, f"r={NONCE}x,{salt},i={count}")
            self.assertEqual(hashed, [])
            told = self.fails(self.rfc().answer, f"r={NONCE}x,{salt},i=2000001")
            self.assertEqual(told, "the server wants the password hashed 2000001 times, not 4096 to 2000000")
            for count in ("4096", "2000000"):
                self.rfc().answer(f"r={NONCE}x,{salt},i={count}")
            self.assertEqual(hashed, [MIN_ITERATIONS, MAX_ITERATIONS])

    def test_the_bounds_are_our_own(self) -> None:
        """Another release of scramp may have others."""
        with patch.multiple("scramp.core.IterationCount", MIN_ITERATION_COUNT=1, MAX_ITERATION_COUNT=10**9):
            for count in (1, 4095, 2_000_001, 10**9):
                self.assertIn(
                    f" {count} times",
                    self.fails(self.rfc().answer, f"r={NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i={count}"),
                )

    def test_a_server_that_proves_nothing(self) -> None:
        """It let the client in; but it is not the one that knows the password."""
        for data in (
            *(None, "", "x", "v=", "v=*", f"v={b64encode(bytes(32)).decode()}", "v=YQ==", "\udcff"),
            *(SIGNATURE[:-1], SIGNATURE[:-2], SIGNATURE.lower(), SIGNATURE[2:], f" {SIGNATURE}"),
            *("e=other-error", "e=nonsense", f"e=other-error,{SIGNATURE}", f"{SIGNATURE},{SIGNATURE}"),
        ):
            login = self.rfc()
            login.answer(CHALLENGE)
            self.assertEqual(
                self.fails(login.finish, data), "the server did not prove that it knows the password", data
            )

    def test_a_server_that_lets_in_without_a_challenge(self) -> None:
        for data in (None, SIGNATURE, "v="):
            self.fails(self.rfc().finish, data)

    def test_a_second_challenge(self) -> None:
        login = self.rfc()
        login.answer(CHALLENGE)
        self.fails(login.answer, CHALLENGE)

    def test_a_server_with_another_password(self) -> None:
        """Whoever forwards the exchange to a verifier of its own making is found out."""
        login = self.login(password="another")
        server = ScramServer()
        challenge = server.challenge(login.first)
        other = ScramServer()
        mine = Password("ann", SECRET, random=lambda count: b"x" * count).begin([SCRAM], False)
        login.answer(challenge)
        self.fails(login.finish, other.result(mine.answer(other.challenge(mine.first))))

    @given(st.text(max_size=60) | st.text("rsi=,+/x4096", max_size=60), examples=300)
    def test_whatever_it_says(self, data: str) -> None:
        self.fails(self.rfc().answer, data)
        login = self.rfc()
        login.answer(CHALLENGE)
        self.fails(login.finish, data)

    def test_scramp_breaks(self) -> None:
        """Its faults are failed logins, too."""
        login = self.rfc()
        for name, function, args in (
            ("set_server_first", login.answer, (CHALLENGE,)),
            ("get_client_final", self.rfc().answer, (CHALLENGE,)),
            ("set_server_final", login.finish, (SIGNATURE,)),
            ("__init__", self.rfc, ()),
        ):

            def broken(*args: Any, **options: Any) -> None:
                raise ZeroDivisionError(SECRET)

            with patch(f"scramp.ScramClient.{name}", broken):
                self.fails(function, *args)
