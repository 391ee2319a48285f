"""Checkers, and the steps of a login."""

from __future__ import annotations

import gc
import os
import weakref
from base64 import b64decode, b64encode
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import msgspec
from hypothesis import strategies as st
from scramp import ScramClient, ScramException  # type: ignore[import-untyped]  # it has no types
from twisted.cred.checkers import AllowAnonymousAccess, FilePasswordDB, ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import LoginFailed, UnauthorizedLogin
from twisted.cred.strcred import AuthOptionMixin, makeChecker
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.usage import Options, UsageError
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson.auth import (
    MAX_FAILURES,
    SUPPORTED,
    Authenticator,
    ITokenCredentials,
    IVerifierCredentials,
    Login,
    PasswordCredentials,
    PlainCredentials,
    TokenChecker,
    VerifierChecker,
)
from tcpjson.core.errors import BadMessage
from tcpjson.core.messages import Auth, AuthChallenge, AuthResult
from tcpjson.fairqueue import FairQueue
from tcpjson.test.hypo import given
from tcpjson.test.test_fairqueue import Hands
from tcpjson.verifiers import Verifier, hash_token, normal_name

PASSWORD = "secret word"
ALICE = Verifier.make(PASSWORD, 4096, lambda count: b"a" * count)
FAILED = AuthResult(status="authentication_failed")


def at_once(key: Hashable, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """Runs jobs here and now."""
    return maybeDeferred(function, *args)


def plain(username: str, password: str) -> Auth:
    """A login with a password."""
    return Auth(mechanism="plain", username=username, password=password)


def token(value: str) -> Auth:
    """A login with a token."""
    return Auth(mechanism="token", token=value)


def scram(data: str) -> Auth:
    """A step of a login by SCRAM."""
    return Auth(mechanism="scram-sha-256", data=data)


class Checker:
    """A checker whose answers are given by hand."""

    credentialInterfaces: ClassVar[Any] = (IUsernamePassword,)

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def requestAvatarId(self, credentials: Any) -> Any:
        """Answer as told."""
        self.asked.append(credentials)
        return self.answer(credentials)


def always(answer: Any) -> Callable[[Any], Any]:
    """What answers the same to all."""
    return lambda credentials: answer


def refuse(credentials: Any) -> Any:
    """No."""
    raise UnauthorizedLogin


class AuthCase(SynchronousTestCase):
    """Files, an authenticator and the log."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            self.events.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def log(self) -> str:
        """All that was logged, the values and tracebacks too."""
        return "\n".join(f"{formatEvent(event)} {event}" for event in self.events)

    def file(self, content: str, mode: int = 0o600) -> str:
        """A file of that content."""
        path: str = self.mktemp()
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    def users(self, **verifiers: Verifier) -> VerifierChecker:
        """A checker of a file of users."""
        lines = "".join(f"{name}:{verifier.format()}\n" for name, verifier in verifiers.items())
        return VerifierChecker(self.file(lines), lambda count: bytes(count))

    def tokens(self, **tokens: str) -> TokenChecker:
        """A checker of a file of tokens."""
        lines = "".join(f"{name}:{hash_token(token).hex()}\n" for name, token in tokens.items())
        return TokenChecker(self.file(lines))

    def authenticator(self, *checkers: Any, **options: Any) -> Authenticator:
        """An authenticator on the clock, that hashes at once."""
        return Authenticator(checkers, self.clock, options.pop("run", at_once), **options)

    def login(self, *checkers: Any, **options: Any) -> Login:
        """The login of a connection over TLS, without an address."""
        return Login(self.authenticator(*checkers, **options), True, None)

    def result(self, login: Login, message: Auth) -> AuthResult:
        """The answer to a message, which must be there at once and be the last."""
        answer = login.step(message)
        assert isinstance(answer, Deferred)
        return self.successResultOf(answer)

    def challenge(self, login: Login, data: str) -> str:
        """The challenge after a client's first message."""
        answer = login.step(scram(data))
        assert isinstance(answer, AuthChallenge)
        return answer.data

    def by_scram(self, login: Login, username: str, password: str) -> AuthResult:
        """A whole exchange of a client; whether it then knows the server."""
        client = ScramClient(["SCRAM-SHA-256"], username, password)
        client.set_server_first(self.challenge(login, client.get_client_first()))
        result = self.result(login, scram(client.get_client_final()))
        if result.status == "authenticated":
            client.set_server_final(result.data)
        return result


class CheckerTests(AuthCase):
    """`VerifierChecker` and `TokenChecker`."""

    TOKENS = f"a:{hash_token('one').hex()}\n"

    def warned(self) -> list[str | None]:
        """The warnings in the log."""
        return [formatEvent(event) for event in self.events if event["log_level"].name == "warn"]

    def test_a_file_that_others_can_read(self) -> None:
        for mode in (0o604, 0o640, 0o602, 0o601):
            path = self.file(self.TOKENS, mode)
            TokenChecker(path)
            self.assertEqual(
                self.warned(), [f"{os.path.abspath(path)} is open to others than its owner: chmod 600"]
            )
            self.events.clear()
        TokenChecker(self.file(self.TOKENS, 0o700))
        self.assertEqual(self.warned(), [])

    def test_a_file_that_lets_nobody_in(self) -> None:
        """It may be meant so, and be filled later; at each reading a line says it."""
        for make, entry, what in (
            (TokenChecker, self.TOKENS, "tokens"),
            (VerifierChecker, f"alice:{ALICE.format()}\n", "users"),
        ):
            path = self.file("# nobody yet\n")
            checker = make(path)
            line = f"{os.path.abspath(path)} has no {what}: nobody can log in by it"
            self.assertEqual(self.warned(), [line])
            checker.reload()
            self.assertEqual(self.warned(), [line, line])
            self.events.clear()
            with open(path, "w", encoding="utf-8") as file:
                file.write(entry)
            checker.reload()
            self.assertEqual(self.warned(), [])

    def test_what_is_wrong_with_a_file(self) -> None:
        path = self.file("alice:secret")
        for make, wrong in (
            (lambda: VerifierChecker(path), f"{os.path.abspath(path)}: line 1: not NAME:SCRAM"),
            (lambda: TokenChecker(path), f"{os.path.abspath(path)}: line 1: not NAME:HASH"),
            (lambda: TokenChecker("/nowhere/at all"), "/nowhere/at all: No such file or directory"),
            (lambda: TokenChecker("/"), "/: Is a directory"),
            (lambda: TokenChecker(""), f"{os.getcwd()}: Is a directory"),
        ):
            with self.assertRaises(ValueError) as caught:
                make()
            self.assertTrue(str(caught.exception).startswith(wrong), str(caught.exception))
            self.assertNotIn("secret", str(caught.exception))

    def test_without_scramp(self) -> None:
        with patch.dict("sys.modules", {"scramp": None}):
            with self.assertRaises(ValueError) as caught:
                self.users(alice=ALICE)
            self.assertEqual(str(caught.exception), "the package scramp is missing: pip install scramp")
            login = self.login(self.tokens(dev="one"))
            self.assertEqual(self.result(login, token("one")).user, "dev")

    def test_reload(self) -> None:
        for checker, new, wrong, old_login, new_login in (
            (
                self.users(alice=ALICE),
                f"bob:{ALICE.format()}",
                "x",
                plain("alice", PASSWORD),
                plain("bob", PASSWORD),
            ),
            (self.tokens(a="one"), f"b:{hash_token('two').hex()}", "x", token("one"), token("two")),
        ):
            with open(checker.path, "w", encoding="utf-8") as file:
                file.write(wrong)
            self.assertRaises(ValueError, checker.reload)
            login = self.login(checker)
            self.assertEqual(self.result(login, old_login).status, "authenticated")
            with open(checker.path, "w", encoding="utf-8") as file:
                file.write(new)
            checker.reload()
            self.assertEqual(self.result(login, old_login), FAILED)
            self.assertEqual(self.result(login, new_login).status, "authenticated")

    def test_the_folder_may_change(self) -> None:
        """As it does where twistd goes to the background."""
        checker = self.tokens(a="one")
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir("/")
        checker.reload()

    def test_salts_of_unknown_users_outlive_a_reload(self) -> None:
        checker = self.users(alice=ALICE)
        salts = []
        for _ in range(2):
            salts.append(self.challenge(self.login(checker), "n,,n=bob,r=x").partition("s=")[2])
            checker.reload()
        self.assertEqual(salts[0], salts[1])

    def test_each_process_has_a_secret_of_its_own(self) -> None:
        path = self.file("")
        first, second = (
            self.challenge(self.login(VerifierChecker(path)), "n,,n=bob,r=x").partition("s=")[2] for _ in "ab"
        )
        self.assertNotEqual(first, second)


class Offered(Options, AuthOptionMixin):
    """A command line with --auth."""

    supportedInterfaces = SUPPORTED


class PluginTests(AuthCase):
    """`--auth scram:FILE` and `--auth token:FILE`."""

    def test_checkers(self) -> None:
        options = Offered()
        paths = self.file(f"alice:{ALICE.format()}"), self.file("")
        options.parseOptions(["--auth", f"scram:{paths[0]}", "--auth", f"token:{paths[1]}"])
        self.assertEqual([type(each) for each in options["credCheckers"]], [VerifierChecker, TokenChecker])
        self.assertEqual(
            {interface: len(found) for interface, found in options["credInterfaces"].items()},
            {IVerifierCredentials: 1, ITokenCredentials: 1},
        )

    def test_errors_name_the_option(self) -> None:
        for value, wrong in (
            ("scram", "--auth scram: the path of a file must follow"),
            ("token:", "--auth token: the path of a file must follow"),
            ("scram:/no where", "--auth scram: /no where: No such file or directory"),
        ):
            with self.assertRaises(UsageError) as caught:
                Offered().parseOptions(["--auth", value])
            self.assertEqual(str(caught.exception), f"Unexpected error: {wrong}")
        with patch.dict("sys.modules", {"scramp": None}), self.assertRaises(UsageError) as caught:
            Offered().parseOptions(["--auth", "scram:x"])
        self.assertEqual(
            str(caught.exception),
            "Unexpected error: --auth scram: the package scramp is missing: pip install scramp",
        )

    def test_help(self) -> None:
        for kind in ("scram", "token"):
            with self.assertRaises(SystemExit), patch.object(Offered, "authOutput") as output:
                Offered().parseOptions(["--help-auth-type", kind])
            written = "".join(call.args[0] for call in output.write.call_args_list)
            self.assertIn("python -m tcpjson.passwd", written)
            self.assertNotIn("WARNING", written)


class MechanismTests(AuthCase):
    """What is offered on which connection."""

    def test_by_checker(self) -> None:
        users, tokens, memory = self.users(), self.tokens(), makeChecker("memory:a:b")
        for checkers, safe, clear in (
            ((), (), ()),
            ((users,), ("scram-sha-256", "plain"), ("scram-sha-256",)),
            ((tokens,), ("token",), ()),
            ((memory,), ("plain",), ()),
            ((tokens, memory, users), ("scram-sha-256", "plain", "token"), ("scram-sha-256",)),
            ((AllowAnonymousAccess(),), (), ()),
        ):
            strict, lax = self.authenticator(*checkers), self.authenticator(*checkers, allow_plain=True)
            self.assertEqual((strict.mechanisms(True), strict.mechanisms(False)), (safe, clear))
            self.assertEqual((lax.mechanisms(True), lax.mechanisms(False)), (safe, safe))

    def test_usable(self) -> None:
        users, tokens, memory = self.users(), self.tokens(), makeChecker("memory:a:b")
        strict, lax = self.authenticator(users), self.authenticator(users, allow_plain=True)
        for checker, clear in ((users, True), (tokens, False), (memory, False)):
            self.assertIs(strict.usable(checker, False), clear)
            for safe in (strict.usable(checker, True), lax.usable(checker, False), lax.usable(checker, True)):
                self.assertIs(safe, True)
        self.assertIs(lax.usable(AllowAnonymousAccess(), True), False)

    def test_not_offered(self) -> None:
        authenticator = self.authenticator(self.users(alice=ALICE), self.tokens(dev="one"))
        login = Login(authenticator, False, None)
        for message in (plain("alice", PASSWORD), token("one"), Auth(mechanism="none" * 100)):
            with self.assertRaises(BadMessage) as caught:
                login.step(message)
            self.assertEqual(str(caught.exception), "not offered on this connection - at `$.mechanism`")
        self.assertEqual(login.failures, 0)

    def test_fields(self) -> None:
        login = self.login(self.users(alice=ALICE), self.tokens(dev="one"))
        secret = {"password": PASSWORD, "token": "one"}
        for mechanism, fields, wrong in (
            ("plain", {}, "missing - at `$.username`"),
            ("plain", {"username": "a"}, "missing - at `$.password`"),
            ("plain", {"password": PASSWORD}, "missing - at `$.username`"),
            ("plain", {"username": "a", **secret}, "not for this mechanism - at `$.token`"),
            ("token", {}, "missing - at `$.token`"),
            ("token", secret, "not for this mechanism - at `$.password`"),
            ("scram-sha-256", {}, "missing - at `$.data`"),
            (
                "scram-sha-256",
                {"data": "n,,n=a,r=b", "token": "one"},
                "not for this mechanism - at `$.token`",
            ),
            (
                "scram-sha-256",
                {"data": "n,,n=a,r=b", "password": PASSWORD},
                "not for this mechanism - at `$.password`",
            ),
        ):
            with self.assertRaises(BadMessage) as caught:
                login.step(Auth(mechanism=mechanism, **fields))
            self.assertEqual(str(caught.exception), wrong)
        self.assertEqual(login.failures, 0)

    def test_fields_that_do_no_harm(self) -> None:
        login = self.login(self.users(alice=ALICE), self.tokens(dev="one"))
        message = Auth(mechanism="token", token="one", username="x", data="x")
        self.assertEqual(self.result(login, message).user, "dev")


class PlainTests(AuthCase):
    """`plain` against a file of verifiers."""

    def setUp(self) -> None:
        super().setUp()
        self.checker = self.users(alice=ALICE, IX=ALICE)

    def test_the_right_password(self) -> None:
        login = self.login(self.checker)
        self.assertEqual(
            self.result(login, plain("alice", PASSWORD)), AuthResult(status="authenticated", user="alice")
        )
        self.assertEqual(login.failures, 0)

    def test_the_name_is_that_of_the_file(self) -> None:
        result = self.result(self.login(self.checker), plain("\N{ROMAN NUMERAL NINE}", PASSWORD))
        self.assertEqual(result.user, "IX")

    def test_all_failures_are_the_same(self) -> None:
        """One hash in the turn of the address, whatever is wrong."""
        runs: list[tuple[Hashable, int]] = []

        def run(key: Hashable, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
            runs.append((key, function.__self__.iterations))  # type: ignore[attr-defined]  # a bound method
            return maybeDeferred(function, *args)

        authenticator = self.authenticator(self.checker, run=run)
        for username, password in (
            ("alice", "wrong"),
            ("alice", ""),
            ("alice", "\x00"),
            ("alice", "\ue000"),
            ("alice", "x" * 4000),
            ("bob", PASSWORD),
            ("", PASSWORD),
            ("a:b", PASSWORD),
            ("\x00", PASSWORD),
            ("\ue000", PASSWORD),
            ("x" * 3000, PASSWORD),
            ("\ufdfa" * 80, PASSWORD),
        ):
            login = Login(authenticator, True, (username, password))
            self.assertEqual(self.result(login, plain(username, password)), FAILED)
            self.assertEqual(login.failures, 1)
            self.assertEqual(runs.pop(), ((username, password), 4096))
        self.assertEqual(runs, [])
        self.assertEqual(self.events, [])

    def test_unknown_even_with_what_fits(self) -> None:
        """A verifier that everything fits makes nobody known."""
        with patch.object(Verifier, "matches", lambda verifier, password: True):
            self.assertEqual(self.result(self.login(self.checker), plain("bob", "x")), FAILED)
        self.assertEqual(self.events, [])

    def test_off_the_reactor(self) -> None:
        hands = Hands()
        login = self.login(self.checker, run=FairQueue(hands.submit, 1).run)
        answer = login.step(plain("alice", PASSWORD))
        assert isinstance(answer, Deferred)
        self.assertNoResult(answer)
        hands.run()
        self.assertEqual(self.successResultOf(answer).user, "alice")

    def test_several_files(self) -> None:
        """The first that knows the user is asked: one hash it is."""
        other = Verifier.make("other", 4096, lambda count: b"b" * count)
        login = self.login(self.users(alice=ALICE), self.users(alice=other, bob=other))
        for message, expected in (
            (plain("alice", PASSWORD), "authenticated"),
            (plain("alice", "other"), "authentication_failed"),
            (plain("bob", "other"), "authenticated"),
            (plain("carol", "other"), "authentication_failed"),
        ):
            self.assertEqual(self.result(login, message).status, expected)

    def test_nothing_is_kept(self) -> None:
        class Watched(str):
            """A text that can be watched."""

        gc.collect()
        memory = makeChecker(f"memory:alice:{PASSWORD}")
        for password in (PASSWORD, "wrong"):
            for checkers in ((self.checker, memory), (memory, memory)):
                login = Login(self.authenticator(*checkers), True, "address")
                self.result(login, plain("alice", "wrong"))
                watched = Watched(password)
                gone = weakref.ref(watched)
                answer = login.step(plain("alice", watched))
                del watched
                assert isinstance(answer, Deferred)
                self.assertNoResult(answer)
                self.assertIsNone(gone(), "something refers to the password")
                kinds = PlainCredentials, PasswordCredentials
                self.assertEqual([each for each in gc.get_objects() if isinstance(each, kinds)], [])
                self.clock.advance(1)
                self.successResultOf(answer)


class OtherCheckerTests(AuthCase):
    """Checkers of others, which want a user name and a password."""

    def test_memory(self) -> None:
        login = self.login(makeChecker("memory:alice:secret:ä:ö"))
        for username, password, status in (
            ("alice", "secret", "authenticated"),
            ("ä", "ö", "authenticated"),
            ("alice", "Secret", "authentication_failed"),
            ("alice", "ö", "authentication_failed"),
            ("bob", "secret", "authentication_failed"),
        ):
            self.assertEqual(self.result(login, plain(username, password)).status, status)
        self.assertEqual(self.result(login, plain("ä", "ö")).user, "ä")

    def test_memory_of_an_application(self) -> None:
        """Its names are bytes, as they should be."""
        checker = makeChecker("memory")
        checker.addUser("ä".encode(), b"secret")
        self.assertEqual(self.result(self.login(checker), plain("ä", "secret")).user, "ä")

    def test_a_file_of_passwords(self) -> None:
        login = self.login(FilePasswordDB(self.file("alice:secret\n")))
        self.assertEqual(self.result(login, plain("alice", "secret")).user, "alice")
        self.assertEqual(self.result(login, plain("alice", "wrong")), FAILED)

    def test_what_it_gets(self) -> None:
        checker = Checker(refuse)
        self.result(self.login(checker), plain("ä", "ö"))
        [credentials] = checker.asked
        self.assertTrue(IUsernamePassword.providedBy(credentials))
        self.assertEqual((credentials.username, credentials.password), ("ä".encode(), "ö".encode()))

    def test_names(self) -> None:
        for avatar, user in ((b"alice", "alice"), ("alice", "alice"), (b"\xff", "\ufffd")):
            for answer in (avatar, succeed(avatar)):
                result = self.result(self.login(Checker(always(answer))), plain("a", "b"))
                self.assertEqual(result, AuthResult(status="authenticated", user=user))

    def test_what_is_no_name(self) -> None:
        """The avatar id of the anonymous is an empty tuple."""
        for avatar in ((), None, 0, True, b"", ""):
            result = self.result(self.login(Checker(always(avatar))), plain("a", "b"))
            self.assertEqual(result, FAILED)
            self.assertIn("a checker failed: TypeError at ", self.log())

    def test_it_refuses(self) -> None:
        for error in (UnauthorizedLogin("secret"), LoginFailed("secret")):
            for answer in (lambda _, e=error: fail(e), lambda _, e=error: (_ for _ in ()).throw(e)):
                login = self.login(Checker(answer))
                self.assertEqual(self.result(login, plain("a", "secret")), FAILED)
                self.assertEqual(login.failures, 1)
        self.assertEqual(self.events, [])

    def test_it_breaks(self) -> None:
        def broken(credentials: Any) -> Any:
            raise KeyError(credentials.username, credentials.password)

        for answer in (broken, lambda credentials: maybeDeferred(broken, credentials)):
            login = self.login(Checker(answer), Checker(always(b"bob")))
            self.assertEqual(self.result(login, plain("alice", "pass")).user, "bob", "the next one is asked")
            [event] = self.events
            self.assertRegex(str(formatEvent(event)), r"^a checker failed: KeyError at .*test_auth\.py:\d+$")
            self.assertNotIn("alice", self.log())
            self.assertNotIn("pass'", self.log())
            self.events.clear()

    def test_it_fails_with_what_was_never_raised(self) -> None:
        login = self.login(Checker(lambda _: fail(ValueError("secret"))))
        self.assertEqual(self.result(login, plain("alice", "secret")), FAILED)
        [event] = self.events
        self.assertEqual(formatEvent(event), "a checker failed: ValueError at an unknown place")

    def test_it_is_cancelled(self) -> None:
        """By itself, and not by us: that is a failed login."""
        login = self.login(Checker(lambda _: fail(CancelledError())))
        self.assertEqual(self.result(login, plain("alice", "secret")), FAILED)

    def test_cancelled_nobody_else_is_asked(self) -> None:
        slow, other = Checker(lambda _: Deferred()), Checker(always(b"bob"))
        step = self.login(slow, other).step(plain("alice", "secret"))
        assert isinstance(step, Deferred)
        step.cancel()
        self.failureResultOf(step, CancelledError)
        self.assertEqual((len(slow.asked), len(other.asked)), (1, 0))

    def test_in_order_until_one_accepts(self) -> None:
        no, yes, never = Checker(refuse), Checker(always(b"alice")), Checker(always(b"bob"))
        self.assertEqual(self.result(self.login(no, yes, never), plain("a", "b")).user, "alice")
        self.assertEqual((len(no.asked), len(yes.asked), len(never.asked)), (1, 1, 0))

    def test_beside_a_file_of_verifiers(self) -> None:
        login = self.login(makeChecker("memory:bob:builder"), self.users(alice=ALICE))
        for username, password in (("alice", PASSWORD), ("bob", "builder")):
            self.assertEqual(self.result(login, plain(username, password)).user, username)
        self.assertEqual(self.result(login, plain("bob", PASSWORD)), FAILED)

    def test_an_empty_password_proves_nothing(self) -> None:
        """Some directories take it for a login without a name."""
        checker = Checker(always(b"alice"))
        self.assertEqual(self.result(self.login(checker), plain("alice", "")), FAILED)
        self.assertEqual(checker.asked, [])

    def test_later(self) -> None:
        for late, status in ((succeed, "authenticated"), (None, "authentication_failed")):
            waiting: Deferred[Any] = Deferred()
            answer = self.login(Checker(always(waiting))).step(plain("a", "b"))
            assert isinstance(answer, Deferred)
            self.assertNoResult(answer)
            if late:
                waiting.callback(b"alice")
            else:
                waiting.errback(UnauthorizedLogin())
            self.assertEqual(self.successResultOf(answer).status, status)


class TokenTests(AuthCase):
    """`token`."""

    def test_tokens(self) -> None:
        login = self.login(self.tokens(dev="one"), self.tokens(ops="two"))
        self.assertEqual(self.result(login, token("one")), AuthResult(status="authenticated", user="dev"))
        self.assertEqual(self.result(login, token("two")).user, "ops")
        for wrong in ("", "One", "x" * 4000, "\x00", "dev"):
            self.assertEqual(self.result(login, token(wrong)), FAILED)
        self.assertEqual(login.failures, 5)
        self.assertEqual(self.events, [])


@implementer(ICredentialsChecker)
class Directory:
    """Somebody's checker of verifiers, that knows nothing of `knows`."""

    credentialInterfaces = (IVerifierCredentials,)

    def requestAvatarId(self, credentials: Any) -> Any:
        """Who is not alice breaks it."""
        if credentials.username == "mallory":
            raise KeyError(credentials.username)
        if credentials.username != "alice":
            raise UnauthorizedLogin
        return credentials.check(ALICE).addCallback(
            lambda fits: b"alice" if fits else fail(UnauthorizedLogin())
        )


class ScramTests(AuthCase):
    """`scram-sha-256`, by the client of scramp."""

    def setUp(self) -> None:
        super().setUp()
        self.checker = self.users(alice=ALICE, **{"a=b,c": ALICE, "IX": ALICE})

    def _first(self, username: str = "alice") -> str:
        return f"n,,n={username},r=nonce"

    def test_the_right_password(self) -> None:
        login = self.login(self.checker)
        for username in ("alice", "a=b,c", "\N{ROMAN NUMERAL NINE}"):
            result = self.by_scram(login, username, PASSWORD)
            self.assertEqual(result.status, "authenticated")
            self.assertEqual(result.user, username.replace("\N{ROMAN NUMERAL NINE}", "IX"))
        self.assertEqual(login.failures, 0)

    def test_a_wrong_password_and_an_unknown_user(self) -> None:
        for username, password in (
            ("alice", "wrong"),
            ("bob", PASSWORD),
            ("a:b", PASSWORD),
            ("x" * 300, PASSWORD),
            ("alice", ""),
        ):
            login = self.login(self.checker)
            self.assertEqual(self.by_scram(login, username, password), FAILED)
            self.assertEqual(login.failures, 1)
        self.assertEqual(self.events, [])

    def test_the_longest_name(self) -> None:
        name = "x" * 256
        self.assertEqual(self.by_scram(self.login(self.users(**{name: ALICE})), name, PASSWORD).user, name)

    def test_an_unknown_user_looks_like_a_user(self) -> None:
        """The same salt always, the same count, and no two alike."""
        seen = [
            self.challenge(self.login(self.checker), self._first(name)).partition(",")[2]
            for name in ("alice", "bob", "bob", "carol", "a:b", "c:d")
        ]
        self.assertEqual(seen[1], seen[2])
        self.assertEqual(len(set(seen)), 5)
        self.assertEqual({len(each) for each in seen}, {len(seen[0])})
        self.assertEqual({each.partition(",i=")[2] for each in seen}, {"4096"})

    def test_several_files(self) -> None:
        other = Verifier.make("other", 4096, lambda count: b"b" * count)
        login = self.login(self.users(alice=ALICE), self.users(alice=other, bob=other))
        self.assertEqual(self.by_scram(login, "alice", PASSWORD).user, "alice")
        self.assertEqual(self.by_scram(login, "bob", "other").user, "bob")
        self.assertEqual(self.by_scram(login, "alice", "other"), FAILED)

    def test_the_nonce_is_new_each_time(self) -> None:
        login = self.login(self.checker)
        nonces = set()
        for _ in range(3):
            nonces.add(self.challenge(login, self._first()).partition(",")[0])
            self.result(login, scram("c=biws"))
        self.assertEqual(len(nonces), 3)
        self.assertTrue(all(nonce.startswith("r=nonce") and len(nonce) == 31 for nonce in nonces))

    def test_first_messages_that_are_refused(self) -> None:
        for first in (
            "",
            ",",
            "n",
            "n,,",
            "n,,n=alice",
            "n,,r=nonce",
            "n,,n=,r=nonce",
            "n,,n=alice,r=",
            "n,,n=al=ice,r=nonce",
            "n,,n=alice,r=n\xe4",
            "n,,n=\ue000,r=nonce",
            "n,,m=x,n=alice,r=nonce",
            "n,,n=alice,n=bob,r=nonce",
            "n,a=alice,n=alice,r=nonce",
            "p=tls-unique,,n=alice,r=nonce",
            "p=tls-exporter,,n=alice,r=nonce",
            "p=x,,n=alice,r=nonce",
            "q,,n=alice,r=nonce",
            "c=biws,r=nonce,p=AAAA",
            "n,,n=alice,r=" + "x" * 500,
            "n,,n=" + "\ufdfa" * 40 + ",r=x",
        ):
            login = self.login(self.checker)
            self.assertEqual(self.result(login, scram(first)), FAILED, first)
            self.assertEqual(login.failures, 1)
        self.assertEqual(self.events, [])

    def test_a_client_that_could_bind_channels(self) -> None:
        """It believes that the server cannot, and is right."""
        login = self.login(self.checker)
        self.assertTrue(self.challenge(login, "y,,n=alice,r=nonce").startswith("r=nonce"))

    def test_a_long_name_is_refused_before_it_is_prepared(self) -> None:
        with patch("scramp.core.saslprep", lambda text: self.fail("it was prepared")):
            self.result(self.login(self.checker), scram("n,,n=" + "\ufdfa" * 40 + ",r=x"))
        self.assertEqual(self.events, [])

    def _final(self, login: Login, change: Callable[[str], str]) -> AuthResult:
        client = ScramClient(["SCRAM-SHA-256"], "alice", PASSWORD)
        client.set_server_first(self.challenge(login, client.get_client_first()))
        return self.result(login, scram(change(client.get_client_final())))

    def test_final_messages_that_are_refused(self) -> None:
        def part(letter: str, value: str) -> Callable[[str], str]:
            return lambda final: ",".join(
                f"{letter}={value}" if each.startswith(f"{letter}=") else each for each in final.split(",")
            )

        proof = b64encode(bytes(32)).decode()
        changes: dict[str, Callable[[str], str]] = {
            "nothing": lambda final: "",
            "no proof": lambda final: final.partition(",p=")[0],
            "an empty proof": part("p", ""),
            "a wrong proof": part("p", proof),
            "a short proof": part("p", proof[4:]),
            "no base64": part("p", "*" * 44),
            "not in ASCII": part("p", "ä" * 44),
            "another nonce": part("r", "nonce"),
            "a nonce cut short": lambda final: final.replace(",p=", "x,p="),
            "another header": part("c", b64encode(b"y,,").decode()),
            "a header that is no base64": part("c", "*"),
            "an extension that was not in the proof": lambda final: final.replace(",p=", ",x=y,p="),
            "one that must be understood": lambda final: f"m=x,{final}",
            "another order": lambda final: ",".join(reversed(final.split(","))),
            "a NUL": lambda final: final.replace(",p=", "\x00,p="),
            "a surrogate pair": part("r", "\U0001f600"),
        }
        for name, change in changes.items():
            login = self.login(self.checker)
            self.assertEqual(self._final(login, change), FAILED, name)
            self.assertEqual(login.failures, 1, name)
        self.assertEqual(self.events, [])
        self.assertEqual(self._final(self.login(self.checker), lambda final: final).user, "alice")

    def test_a_proof_is_good_once(self) -> None:
        login = self.login(self.checker)
        client = ScramClient(["SCRAM-SHA-256"], "alice", PASSWORD)
        client.set_server_first(self.challenge(login, client.get_client_first()))
        final = client.get_client_final()
        self.assertEqual(self.result(login, scram(final)).user, "alice")
        self.assertEqual(self.result(login, scram(final)), FAILED)
        self.challenge(login, client.client_first_bare.join(["n,,", ""]))
        self.assertEqual(self.result(login, scram(final)), FAILED)

    def test_a_first_message_in_place_of_the_final_one(self) -> None:
        """It is a failed login, so that nobody gets challenges without end; after it all begins anew."""
        login = self.login(self.checker)
        self.challenge(login, self._first())
        self.assertEqual(self.result(login, scram(self._first())), FAILED)
        self.assertEqual(login.failures, 1)
        self.assertEqual(self.by_scram(login, "alice", PASSWORD).user, "alice")

    def test_a_user_who_goes_in_the_midst_of_it(self) -> None:
        """Once the file was read anew, what was begun before leads to nothing."""
        path = Path(self.checker.path)
        content = path.read_text()
        other = Verifier.make("other", 4096, lambda count: b"b" * count)
        for changed in ("", f"alice:{other.format()}\n"):
            path.write_text(content)
            self.checker.reload()
            login = self.login(self.checker)
            client = ScramClient(["SCRAM-SHA-256"], "alice", PASSWORD)
            client.set_server_first(self.challenge(login, client.get_client_first()))
            path.write_text(changed)
            self.checker.reload()
            self.assertEqual(self.result(login, scram(client.get_client_final())), FAILED)

    def test_one_decoy_however_a_name_is_spelt(self) -> None:
        """As there is one verifier: else different times for the spellings would tell who is no user."""
        seen: list[Verifier] = []

        class Asked:
            def __init__(self, username: str) -> None:
                self.username = username

            def check(self, verifier: Verifier) -> bool:
                seen.append(verifier)
                return False

        for username in ("nobody", "\N{FULLWIDTH LATIN SMALL LETTER N}obody", "no\N{SOFT HYPHEN}body"):
            credentials: Any = Asked(username)
            self.failureResultOf(self.checker.requestAvatarId(credentials), UnauthorizedLogin)
        self.assertEqual(len(set(seen)), 1)

    def test_the_mechanism_may_be_left_out_of_the_second_step(self) -> None:
        """As section 6 writes it; of a first message it is a part."""
        login = self.login(self.checker)
        client = ScramClient(["SCRAM-SHA-256"], "alice", PASSWORD)
        first = client.get_client_first()
        error = self.assertRaises(BadMessage, login.step, Auth(data=first))
        self.assertIn("$.mechanism", str(error))
        client.set_server_first(self.challenge(login, first))
        self.assertEqual(self.result(login, Auth(data=client.get_client_final())).user, "alice")
        self.assertRaises(BadMessage, login.step, Auth(data="x"))
        self.assertEqual(login.failures, 0)

    def test_another_mechanism_in_place_of_the_final_one(self) -> None:
        login = self.login(self.checker, self.tokens(dev="one"))
        client = ScramClient(["SCRAM-SHA-256"], "alice", PASSWORD)
        client.set_server_first(self.challenge(login, client.get_client_first()))
        self.assertEqual(self.result(login, token("wrong")), FAILED)
        self.assertEqual(self.result(login, scram(client.get_client_final())), FAILED, "it was given up")
        self.assertEqual(self.result(login, token("one")).user, "dev")

    def test_a_bad_message_does_not_end_an_exchange(self) -> None:
        login = self.login(self.checker)
        client = ScramClient(["SCRAM-SHA-256"], "alice", PASSWORD)
        client.set_server_first(self.challenge(login, client.get_client_first()))
        self.assertRaises(BadMessage, login.step, Auth(mechanism="scram-sha-256"))
        self.assertEqual(self.result(login, scram(client.get_client_final())).user, "alice")

    def test_no_cycles(self) -> None:
        """An exchange that is given up goes at once, and so does one that came to its end."""

        class Watched(Login):
            """A login that can be watched."""

        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for finish in (False, True):
            login = Watched(self.authenticator(self.checker), True, None)
            gone = weakref.ref(login)
            if finish:
                self.by_scram(login, "alice", PASSWORD)
            self.challenge(login, self._first())
            exchange = weakref.ref(login._exchange)
            del login
            self.assertEqual((gone(), exchange()), (None, None))

    def test_a_checker_of_others(self) -> None:
        login = self.login(Directory())
        self.assertEqual(self.by_scram(login, "alice", PASSWORD).user, "alice")
        self.assertEqual(self.by_scram(login, "alice", "wrong"), FAILED)
        self.assertEqual(self.result(login, scram(self._first("bob"))), FAILED)
        self.assertEqual(self.events, [])
        self.assertEqual(self.result(login, scram(self._first("mallory"))), FAILED)
        self.assertIn("a checker failed: KeyError at ", self.log())
        self.assertNotIn("mallory", self.log())

    def test_a_checker_that_accepts_without_a_check(self) -> None:
        class Careless(Checker):
            credentialInterfaces: ClassVar[Any] = (IVerifierCredentials,)

        login = self.login(Careless(always(b"alice")))
        self.assertEqual(self.result(login, scram(self._first())), FAILED)
        login = self.login(Careless(lambda credentials: credentials.check(ALICE) and b"alice"))
        self.assertEqual(self.by_scram(login, "alice", "wrong"), FAILED)
        self.assertEqual(self.by_scram(login, "alice", PASSWORD).user, "alice")
        self.assertEqual(self.events, [])

    def test_scramp_breaks(self) -> None:
        """Which it should not."""
        first, final = "scramp.core.ScramServer.set_client_first", "scramp.core.ScramServer.set_client_final"
        for place in (first, final):
            login = self.login(self.checker)
            if place == final:
                self.challenge(login, self._first())
            with patch(place, side_effect=KeyError("secret")):
                self.assertEqual(self.result(login, scram(self._first())), FAILED)
            self.assertIn("a checker failed: KeyError at ", self.log())
            self.assertNotIn("secret", self.log())
            self.events.clear()

    PIECES: ClassVar[Any] = st.sampled_from(
        [
            "n",
            "y",
            "p=tls-unique",
            ",",
            "n=",
            "r=",
            "c=",
            "p=",
            "a=",
            "m=",
            "=2C",
            "=3D",
            "alice",
            "biws",
            "nonce",
        ]
    )

    @given(
        st.lists(st.text() | st.lists(PIECES | st.text(max_size=3), max_size=9).map("".join), max_size=4),
        examples=300,
    )
    def test_any_messages(self, messages: list[str]) -> None:
        """They end in a challenge or in a failed login."""
        login = self.login(self.checker)
        for data in messages:
            answer = login.step(scram(data))
            if isinstance(answer, Deferred):
                self.assertEqual(self.successResultOf(answer), FAILED)
            else:
                msgspec.json.encode(answer)
        self.assertEqual(self.events, [])

    @given(st.text(max_size=60), st.integers(0, 90), st.integers(0, 5), examples=300)
    def test_any_change_of_a_final_message(self, put: str, place: int, cut: int) -> None:
        login = self.login(self.checker, random=bytes)
        client = ScramClient(["SCRAM-SHA-256"], "alice", PASSWORD, c_nonce="nonce")
        client.set_server_first(self.challenge(login, client.get_client_first()))
        final = client.get_client_final()
        changed = final[:place] + put + final[place + cut :]
        if self.result(login, scram(changed)) != FAILED:
            # The last letter of the proof has two bits that say nothing.
            rest, _, proof = changed.partition(",p=")
            self.assertEqual(rest, final.partition(",p=")[0])
            self.assertEqual(b64decode(proof), b64decode(final.partition(",p=")[2]))
        self.assertEqual(self.events, [])

    @given(st.text(min_size=1, max_size=12), st.text(max_size=12), examples=100)
    def test_any_user_and_password(self, username: str, password: str) -> None:
        """SCRAM and plain agree; and the name is given as the file has it."""
        try:
            stored = Verifier.make(password, 4096, lambda count: bytes(count))
            username = normal_name(username)
        except ValueError:
            return
        checker = self.users(**{username: stored})
        login = self.login(checker)
        self.assertEqual(self.result(login, plain(username, password)).user, username)
        try:
            self.assertEqual(self.by_scram(login, username, password).user, username)
        except ScramException as error:
            self.fail(f"the client refused: {error}")


class BackOffTests(AuthCase):
    """When answers go out."""

    def setUp(self) -> None:
        super().setUp()
        self.shared = self.authenticator(self.tokens(dev="one"))

    def _step(self, value: str, address: Hashable = "1.2.3.4") -> Deferred[AuthResult]:
        answer = Login(self.shared, True, address).step(token(value))
        assert isinstance(answer, Deferred)
        return answer

    def _seconds(self, answer: Deferred[AuthResult]) -> float:
        """How long the answer waits."""
        start = self.clock.seconds()
        done: list[float] = []
        answer.addCallback(lambda _: done.append(self.clock.seconds()))
        for call in sorted(self.clock.getDelayedCalls(), key=lambda call: call.getTime()):
            self.clock.advance(call.getTime() - self.clock.seconds())
        return done[0] - start

    def test_after_failures(self) -> None:
        self.assertEqual([self._seconds(self._step("wrong")) for _ in range(6)], [0, 0.25, 0.5, 1, 2, 2])
        self.assertEqual(self._seconds(self._step("one")), 2, "a success tells no sooner")
        self.assertEqual(self._seconds(self._step("wrong", "5.6.7.8")), 0)
        self.assertEqual(self._seconds(self._step("wrong")), 2, "nor does it forgive")

    def test_all_at_once(self) -> None:
        answers = [self._step("wrong") for _ in range(4)]
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [0.25, 0.5, 1])
        self.clock.pump([0.25, 0.25, 0.5])
        for answer in answers:
            self.assertEqual(self.successResultOf(answer), FAILED)

    def test_the_delay_is_that_of_the_end_of_a_check(self) -> None:
        hands = Hands()
        self.shared = self.authenticator(self.users(alice=ALICE), run=FairQueue(hands.submit, 4).run)
        for password in ("wrong", "wrong", PASSWORD):
            Login(self.shared, True, "a").step(plain("alice", password))
        for _ in range(3):
            hands.run()
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [0.25, 0.5])

    def test_forgotten(self) -> None:
        self._step("wrong")
        self.clock.advance(60)
        self.assertEqual(self._seconds(self._step("wrong")), 0)

    def test_a_unix_socket(self) -> None:
        for _ in range(5):
            self.assertEqual(self.successResultOf(self._step("wrong", None)), FAILED)

    def test_scram(self) -> None:
        """Its challenges do not wait."""
        self.shared = self.authenticator(self.users(alice=ALICE))
        login = Login(self.shared, True, "a")
        for waits in (0, 0.25, 0.5):
            self.challenge(login, "n,,n=alice,r=x")
            answer = login.step(scram("wrong"))
            assert isinstance(answer, Deferred)
            self.assertEqual(self._seconds(answer), waits)
        self.assertEqual(login.failures, MAX_FAILURES)


class CancelTests(AuthCase):
    """A connection that is lost while its proof is checked."""

    def _cancel(self, answer: object) -> None:
        assert isinstance(answer, Deferred)
        self.assertNoResult(answer)
        answer.cancel()
        self.failureResultOf(answer, CancelledError)

    def test_while_it_waits_for_its_turn(self) -> None:
        hands = Hands()
        queue = FairQueue(hands.submit, 1)
        login = self.login(self.users(alice=ALICE), run=queue.run)
        login.step(plain("alice", PASSWORD))
        self._cancel(login.step(plain("alice", PASSWORD)))
        self.assertEqual(len(queue), 0)
        hands.run()
        self.assertEqual((hands.jobs, login.failures), ([], 0))

    def test_while_it_is_hashed(self) -> None:
        hands = Hands()
        next_one = Checker(refuse)
        login = self.login(self.users(alice=ALICE), next_one, run=FairQueue(hands.submit, 1).run)
        self._cancel(login.step(plain("alice", "wrong")))
        hands.run()
        self.assertEqual((next_one.asked, login.failures), ([], 0))

    def test_while_it_is_delayed(self) -> None:
        login = Login(self.authenticator(self.tokens(dev="one")), True, "a")
        self.result(login, token("wrong"))
        self._cancel(login.step(token("wrong")))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(login.failures, 2, "it had failed")

    def test_a_checker_that_goes_on(self) -> None:
        """Whatever it says then, nobody listens, and no other is asked."""
        for outcome in (b"alice", UnauthorizedLogin(), KeyError()):

            def stubborn(deferred: Deferred[Any], outcome: Any = outcome) -> None:
                if isinstance(outcome, Exception):
                    deferred.errback(outcome)
                else:
                    deferred.callback(outcome)

            next_one = Checker(refuse)
            authenticator = self.authenticator(Checker(always(Deferred(stubborn))), next_one)
            authenticator.back_off.failed("address", 0)
            login = Login(authenticator, True, "address")
            self._cancel(login.step(plain("a", "b")))
            self.assertEqual((next_one.asked, login.failures, self.clock.getDelayedCalls()), ([], 0, []))
        self.assertEqual(self.events, [])
