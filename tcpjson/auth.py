"""Authentication (docs/protocol.rst, section 6) on twisted.cred: credentials, checkers, logins."""

from __future__ import annotations

import hmac
import os
import secrets
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from msgspec import UNSET, UnsetType
from twisted.cred.checkers import ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import ICredentials, IUsernamePassword, UsernamePassword
from twisted.cred.error import LoginFailed, UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface, implementer

from tcpjson.core.backoff import BackOff
from tcpjson.core.errors import BadMessage
from tcpjson.core.messages import Auth, AuthChallenge, AuthResult
from tcpjson.verifiers import Tokens, Verifier, Verifiers, is_long, normal_name

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

log = Logger()

#: The failed login that ends a connection.
MAX_FAILURES = 3

# Bytes of a client's first SCRAM message: the longest name, and a nonce.
_MAX_FIRST = 512
# Random bytes of our nonce.
_NONCE = 18


class IVerifierCredentials(ICredentials):
    """Something that can be proved against a `tcpjson.verifiers.Verifier`."""

    username: str = Attribute("The user name as the client gave it.")

    def check(verifier: Verifier) -> bool | Deferred[bool]:
        """
        Whether it fits. A checker calls it once, before its `requestAvatarId` returns, and with a verifier
        of its own making when it does not know the user: else anybody can tell who is a user.
        """


class ITokenCredentials(ICredentials):
    """A token."""

    token: str = Attribute("The token as the client gave it.")


#: The credentials that a checker may ask for: `supportedInterfaces` of strcred.
SUPPORTED: tuple[type[Interface], ...] = (IVerifierCredentials, ITokenCredentials, IUsernamePassword)


class Run(Protocol):
    """What `FairQueue.run` is."""

    def __call__(self, key: Hashable, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Call the function elsewhere, when it is the turn of `key`."""


@implementer(IVerifierCredentials)
class PlainCredentials:
    """A password, hashed by `run` in the turn of `address`."""

    def __init__(self, username: str, password: str, run: Run, address: Hashable) -> None:
        self.username = username
        self._password = password
        self._run = run
        self._address = address

    def check(self, verifier: Verifier) -> Deferred[bool]:
        return self._run(self._address, verifier.matches, self._password)


@implementer(IVerifierCredentials)
class ScramCredentials:
    """A user name whose proof comes later: `proved` is fired with whether it was right."""

    def __init__(self) -> None:
        self.username = ""
        self.verifier: Verifier | None = None
        self.proved: Deferred[bool] = Deferred()

    def check(self, verifier: Verifier) -> Deferred[bool]:
        self.verifier = verifier
        return self.proved


@implementer(ITokenCredentials)
class TokenCredentials:
    """A token."""

    def __init__(self, token: str) -> None:
        self.token = token


class PasswordCredentials(UsernamePassword):
    """A user name and a password, for the checkers of others."""

    def checkPassword(self, password: bytes | str) -> bool:
        if isinstance(password, str):
            password = password.encode()
        return hmac.compare_digest(self.password, password)


def _password_credentials(checker: object, username: str, password: str) -> PasswordCredentials:
    name: Any = username.encode()
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        # Where strcred's "memory:" made it, its names are text.
        users: dict[Any, Any] = checker.users
        name = username if username in users else name
    return PasswordCredentials(name, password.encode())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            others = os.fstat(file.fileno()).st_mode & 0o077
            content = file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if others:
        log.warn("{path} is open to others than its owner: chmod 600", event="open_file", path=path)
    return content


class _FileChecker(ABC):
    """
    Checks against the content of a file.

    Raises:
        ValueError: one line with the path and what is wrong; nothing of the content is in it.
    """

    #: What the lines of the file are.
    entries: ClassVar[str]

    def __init__(self, path: str) -> None:
        # A server in the background changes its working folder.
        self.path = os.path.abspath(path)
        self.reload()

    def reload(self) -> None:
        """Read the file again. On an error, which is raised as above, the old content stays."""
        content = _read(self.path)
        try:
            count = self._load(content)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        if not count:
            log.warn(
                "{path} has no {what}: nobody can log in by it",
                event="empty_file",
                path=self.path,
                what=self.entries,
            )

    @abstractmethod
    def _load(self, content: bytes) -> int:
        """Take the content in, or raise `ValueError`. Returns how many entries it has."""


@implementer(ICredentialsChecker)
class VerifierChecker(_FileChecker):
    """Checks passwords, plain or by SCRAM, against a file of `tcpjson.verifiers.Verifiers`."""

    credentialInterfaces: ClassVar[tuple[type[Interface], ...]] = (IVerifierCredentials,)
    entries = "users"

    def __init__(self, path: str, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        if find_spec("scramp") is None:
            raise ValueError("the package scramp is missing: pip install scramp")
        self._secret = random(32)
        super().__init__(path)

    def _load(self, content: bytes) -> int:
        self._verifiers = Verifiers(content, self._secret)
        return len(self._verifiers)

    def knows(self, username: str) -> bool:
        """Whether there is such a user."""
        return self._find(username)[1] is not None

    def requestAvatarId(self, credentials: IVerifierCredentials) -> Deferred[bytes | tuple[()]]:
        name, verifier = self._find(credentials.username)
        # It is made for a user who is known, too: both take the same time. However a name is spelt, it has
        # one decoy, as it has one verifier.
        decoy = self._verifiers.decoy(name or credentials.username)
        checked: Deferred[Any] = maybeDeferred(credentials.check, verifier or decoy)
        return checked.addCallback(self._user_if, name, verifier)

    def _user_if(self, fits: bool, name: str, verifier: Verifier | None) -> bytes:
        # The file may have been read anew meanwhile.
        if not fits or verifier is None or self._verifiers.find(name) != verifier:
            raise UnauthorizedLogin
        return name.encode()

    def _find(self, username: str) -> tuple[str, Verifier | None]:
        try:
            name = normal_name(username)
        except ValueError:
            return "", None
        return name, self._verifiers.find(name)


@implementer(ICredentialsChecker)
class TokenChecker(_FileChecker):
    """Checks tokens against a file of `tcpjson.verifiers.Tokens`."""

    credentialInterfaces: ClassVar[tuple[type[Interface], ...]] = (ITokenCredentials,)
    entries = "tokens"

    def _load(self, content: bytes) -> int:
        self._tokens = Tokens(content)
        return len(self._tokens)

    def requestAvatarId(self, credentials: ITokenCredentials) -> Deferred[bytes | tuple[()]]:
        name = self._tokens.find(credentials.token)
        return fail(UnauthorizedLogin()) if name is None else succeed(name.encode())


#: The mechanism whose proof takes two steps.
SCRAM = "scram-sha-256"
# The mechanisms, best first: the credentials that serve each, and whether it may be used in the clear.
_MECHANISMS: dict[str, tuple[set[type[Interface]], bool]] = {
    SCRAM: ({IVerifierCredentials}, True),
    "plain": ({IVerifierCredentials, IUsernamePassword}, False),
    "token": ({ITokenCredentials}, False),
}


def _user_name(avatar: object) -> str:
    if isinstance(avatar, bytes):
        avatar = avatar.decode(errors="replace")
    if not isinstance(avatar, str) or not avatar:
        raise TypeError("the avatar id of a user must be a name")
    return avatar


class Authenticator:
    """
    What all connections have in common: the checkers, and who failed lately.

    Args:
        checkers: those of twisted.cred, in the order in which they are asked.
        clock: tells the time in seconds and calls later.
        run: runs what takes long off the reactor, as `FairQueue.run`.
        allow_plain: also take passwords and tokens that come in the clear.
        random: returns as many random bytes as it is asked for.
    """

    def __init__(
        self,
        checkers: Sequence[ICredentialsChecker],
        clock: IReactorTime,
        run: Run,
        *,
        allow_plain: bool = False,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.checkers = tuple(checkers)
        self.clock = clock
        self.run = run
        self.allow_plain = allow_plain
        self.random = random
        self.back_off = BackOff()
        self._offered = {safe: self._mechanisms(self.checkers, safe) for safe in (False, True)}
        if self.for_interface(IVerifierCredentials):
            import scramp  # type: ignore[import-untyped]  # it has no types

            self.scramp = scramp

    def _mechanisms(self, checkers: Sequence[ICredentialsChecker], confidential: bool) -> tuple[str, ...]:
        served = {interface for checker in checkers for interface in checker.credentialInterfaces}
        return tuple(
            mechanism
            for mechanism, (interfaces, clear) in _MECHANISMS.items()
            if interfaces & served and (clear or confidential or self.allow_plain)
        )

    def mechanisms(self, confidential: bool) -> tuple[str, ...]:
        """The mechanisms for a connection, best first: confidential is one over TLS or on a Unix socket."""
        return self._offered[confidential]

    def usable(self, checker: ICredentialsChecker, confidential: bool) -> bool:
        """Whether there is a mechanism by which `checker` can be asked on such a connection."""
        return bool(self._mechanisms([checker], confidential))

    def for_interface(self, interface: type[Interface]) -> list[ICredentialsChecker]:
        """The checkers that take such credentials."""
        return [checker for checker in self.checkers if interface in checker.credentialInterfaces]

    def ask_verifiers(self, credentials: IVerifierCredentials) -> Any:
        """Ask the first of the checkers with verifiers that knows the user, or else the first."""
        checkers = self.for_interface(IVerifierCredentials)
        known = (each for each in checkers if not hasattr(each, "knows") or each.knows(credentials.username))
        return next(known, checkers[0]).requestAvatarId(credentials)


class _Exchange:
    """
    A SCRAM exchange whose first message came; `challenge` is the answer to it.

    Raises:
        UnauthorizedLogin: the message is none, or asks for what is not served.
        Exception: what the checker raised.
    """

    def __init__(self, authenticator: Authenticator, first: str) -> None:
        if is_long(first, _MAX_FIRST):
            raise UnauthorizedLogin
        self._credentials = credentials = ScramCredentials()
        asked: list[Deferred[Any]] = []

        # It does not refer to the exchange, which so is part of no cycle.
        def look_up(username: str) -> tuple[bytes, bytes, bytes, int] | None:
            credentials.username = username
            asked.append(maybeDeferred(authenticator.ask_verifiers, credentials))
            if credentials.verifier is None:
                return None
            salt, iterations, stored_key, server_key = credentials.verifier
            return salt, stored_key, server_key, iterations

        nonce = b64encode(authenticator.random(_NONCE)).decode()
        self._refusal = authenticator.scramp.ScramException
        self._server = authenticator.scramp.ScramMechanism("SCRAM-SHA-256").make_server(
            look_up, s_nonce=nonce
        )
        try:
            self._server.set_client_first(first)
            self.challenge: str = self._server.get_server_first()
        except self._refusal:
            failures: list[Failure] = []
            for avatar in asked:
                avatar.addErrback(failures.append)
            for failure in failures:
                failure.raiseException()
            raise UnauthorizedLogin from None
        [self._avatar] = asked

    def finish(self, final: str) -> Deferred[Any]:
        """Check the client's last message; fires with the avatar id. `signature` is the answer to it then."""
        fits = False
        try:
            self._server.set_client_final(final)
            self.signature: str = self._server.get_server_final()
            fits = True
        except self._refusal:
            pass
        self._credentials.proved.callback(fits)
        # Whatever the checker makes of it, there is no login without a proof.
        return self._avatar.addCallback(_if_proved, fits)


def _if_proved(avatar: object, fits: bool) -> object:
    if not fits:
        raise UnauthorizedLogin
    return avatar


class _Attempt:
    """
    One proof that is checked, and whose answer waits out the back-off.

    Args:
        login: where it was made.
        asks: what asks the checkers, one after the other until one accepts; each returns an avatar id, or
            raises, or returns a Deferred that does.
        exchange: the one that this concludes.
    """

    def __init__(
        self, login: Login, asks: list[Callable[[], Any]], exchange: _Exchange | None = None
    ) -> None:
        self._login = login
        self._asks = asks
        self._exchange = exchange
        self._pending: Deferred[Any] | IDelayedCall
        # None when it has fired or was cancelled.
        self._answer: Deferred[AuthResult] | None = None

    def start(self) -> Deferred[AuthResult]:
        """The Deferred of the answer. Cancelling it ends all that goes on for it."""
        answer: Deferred[AuthResult] = Deferred(self._cancel)
        self._answer = answer
        self._ask()
        return answer

    def _cancel(self, answer: Deferred[AuthResult]) -> None:
        self._answer = None
        self._asks.clear()
        self._pending.cancel()

    def _ask(self) -> None:
        if not self._asks:
            self._conclude(None)
            return
        self._pending = asked = maybeDeferred(self._asks.pop(0))
        asked.addCallback(_user_name).addCallbacks(self._conclude, self._refused)

    def _refused(self, failure: Failure) -> None:
        if self._answer is None:
            return
        if not failure.check(LoginFailed):
            # Its text may hold a name or a password.
            kind = type(failure.value).__name__
            where = "{1}:{2}".format(*failure.frames[-1]) if failure.frames else "an unknown place"
            log.error("a checker failed: {kind} at {where}", event="checker_failed", kind=kind, where=where)
        self._ask()

    def _conclude(self, user: str | None) -> None:
        if self._answer is None:
            return
        self._asks.clear()
        result = AuthResult(status="authentication_failed")
        if user is not None:
            result = AuthResult(status="authenticated", user=user)
            if self._exchange is not None:
                result.data = self._exchange.signature
        delay = self._login._concluded(user is not None)
        if delay:
            clock = self._login._authenticator.clock
            self._pending = clock.callLater(delay, self._fire, self._answer, result)
        else:
            self._fire(self._answer, result)

    def _fire(self, answer: Deferred[AuthResult], result: AuthResult) -> None:
        self._answer = None
        answer.callback(result)


class Login:
    """
    The steps by which one connection authenticates.

    Args:
        authenticator: the server's.
        confidential: whether nobody else reads the connection: TLS, or a Unix socket.
        address: whose failures delay its answers, and whose passwords wait for each other; None on a Unix
            socket, where nothing is delayed.
    """

    def __init__(self, authenticator: Authenticator, confidential: bool, address: Hashable) -> None:
        self._authenticator = authenticator
        self._confidential = confidential
        self._address = address
        self._exchange: _Exchange | None = None
        #: How many logins failed. The connection ends when they are `MAX_FAILURES`.
        self.failures = 0

    def step(self, message: Auth) -> AuthChallenge | Deferred[AuthResult]:
        """
        Take a message. None may follow before the Deferred of the one before has fired; cancel that when the
        connection is lost.

        Between a challenge and the message that answers it, a message of another mechanism gives the exchange
        up. So does, as a failed login, any other SCRAM message: nobody gets challenges without end.

        Raises:
            BadMessage: the mechanism is not offered, or fields are missing, or hold a secret for nothing. It
                does not count as a failed login.
        """
        mechanism = message.mechanism
        if mechanism is UNSET:
            if self._exchange is None:
                raise BadMessage("missing - at `$.mechanism`")
            mechanism = SCRAM
        if mechanism not in self._authenticator.mechanisms(self._confidential):
            raise BadMessage("not offered on this connection - at `$.mechanism`")
        for secret, purpose in (("password", "plain"), ("token", "token")):
            if mechanism != purpose and getattr(message, secret) is not UNSET:
                raise BadMessage(f"not for this mechanism - at `$.{secret}`")
        if mechanism == "plain":
            asks = self._plain(_given(message, "username"), _given(message, "password"))
        elif mechanism == "token":
            credentials = TokenCredentials(_given(message, "token"))
            checkers = self._authenticator.for_interface(ITokenCredentials)
            asks = [partial(checker.requestAvatarId, credentials) for checker in checkers]
        else:
            return self._scram(_given(message, "data"))
        self._exchange = None
        return _Attempt(self, asks).start()

    def _plain(self, username: str, password: str) -> list[Callable[[], Any]]:
        asks: list[Callable[[], Any]] = []
        authenticator = self._authenticator
        if authenticator.for_interface(IVerifierCredentials):
            ours = PlainCredentials(username, password, authenticator.run, self._address)
            asks.append(partial(authenticator.ask_verifiers, ours))
        # An empty password is no proof, and is a login without a name to some directories.
        if password:
            for checker in authenticator.for_interface(IUsernamePassword):
                theirs = _password_credentials(checker, username, password)
                asks.append(partial(checker.requestAvatarId, theirs))
        return asks

    def _scram(self, data: str) -> AuthChallenge | Deferred[AuthResult]:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            return _Attempt(self, [partial(exchange.finish, data)], exchange).start()
        try:
            self._exchange = _Exchange(self._authenticator, data)
        # Whatever a checker raises is a failed login, as when a Deferred brings it.
        except Exception:
            return _Attempt(self, [Failure().raiseException]).start()
        return AuthChallenge(data=self._exchange.challenge)

    def _concluded(self, authenticated: bool) -> float:
        """Count an attempt; returns the seconds that its answer waits."""
        back_off, now = self._authenticator.back_off, self._authenticator.clock.seconds()
        delay = back_off.delay(self._address, now)
        if not authenticated:
            self.failures += 1
            back_off.failed(self._address, now)
        return delay


def _given(message: Auth, field: str) -> str:
    value: str | UnsetType = getattr(message, field)
    if value is UNSET:
        raise BadMessage(f"missing - at `$.{field}`")
    return value
