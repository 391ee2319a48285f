"""What a check works with: connections to the server, and what is known of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from tcpjson.conform.pace import Pace, Patience
from tcpjson.conform.target import Target
from tcpjson.conform.verdicts import Failed, Skip, Transcript
from tcpjson.conform.wire import MAX_LENGTH, Message, Peer, shown
from tcpjson.core.errors import AuthenticationFailed
from tcpjson.core.handshake import Credentials, Login
from tcpjson.vectors import Matcher

# Seconds that an answer to `auth` may be held back after failures of this address (section 6), and a little.
AUTH_DELAY = 2.5
# Seconds of a deadline that is played without being asked for.
QUICK = 2.0
# Seconds in which connections that were closed have to be gone.
_SETTLE = 1.0
# Errors in place of `welcome` that are no fault of the server's.
_FULL = ("server_full", "too_many_connections")
_STATS = Matcher(fields={"type": "server_stats"}, forms={"connected_clients": "count"})
# Messages that may come before an answer, where nobody knows yet who else is there.
_BEFORE = 500
# Fields of auth with a secret.
_SECRET = ("password", "token")


class Facts(NamedTuple):
    """What `welcome` says of the server, or what holds where it does not say it."""

    protocol: bool
    server: str
    max_length: int
    heartbeat: float | None
    compression: tuple[str, ...]
    features: tuple[str, ...]
    auth: tuple[str, ...]
    limits: dict[str, float]


def facts(welcome: Message) -> Facts:
    """What a `welcome` says, as far as it can be understood."""
    size = welcome.get("max_length")
    limits = welcome.get("limits")
    numbers = limits.items() if isinstance(limits, dict) else ()
    heartbeat = welcome.get("heartbeat")
    return Facts(
        "protocol" in welcome,
        name if isinstance(name := welcome.get("server"), str) else "",
        size if isinstance(size, int) and 0 < size < 1 << 31 and size is not True else MAX_LENGTH,
        float(heartbeat) if isinstance(heartbeat, (int, float)) and _is_positive(heartbeat) else None,
        _names(welcome.get("compression")),
        _names(welcome.get("features")),
        _names(welcome.get("auth")),
        {name: float(value) for name, value in numbers if _is_positive(value)},
    )


def _names(value: object) -> tuple[str, ...]:
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value is not True and 0 < value < 1e12


class Scene:
    """
    The server, and our connections to it.

    Args:
        target: where it is.
        patience: how long we wait.
        transcript: is told what goes over the wire.
        credentials: who we are, where it asks.
        slow: make checks that take long, too.
        vector_tokens: the server knows the tokens of the vectors.
        word: one that no other client sends.
    """

    def __init__(
        self,
        target: Target,
        patience: Patience,
        transcript: Transcript,
        *,
        credentials: Credentials | None = None,
        slow: bool = False,
        vector_tokens: bool = False,
        word: str = "conform",
    ) -> None:
        self.target = target
        self.patience = patience
        self.transcript = transcript
        self.credentials = credentials
        self.slow = slow
        self._vector_tokens = vector_tokens
        self._word = word
        self._number = 0
        self._peers: list[Peer] = []
        self._ours: set[str] = set()
        self._lasting: dict[str, Peer] = {}
        #: Why nobody can log in where there are no credentials.
        self.no_login = "the server asks for a login: give --token-file, or --user"
        #: What the first `welcome` said.
        self.facts = facts({})
        self.strict = False
        #: Whether a `pong` says which ping it is for.
        self.pongs_tell = True
        #: Clients that are not ours.
        self.strangers = 0

    # What a check may ask for.

    def nonce(self) -> str:
        """A text that was never sent before."""
        self._number += 1
        return f"{self._word}-{self._number}"

    def need(self, condition: object, reason: str) -> None:
        """Skip the check unless a condition holds."""
        if not condition:
            raise Skip(reason)

    @property
    def plays_tokens(self) -> bool:
        """Whether the vectors with tokens can be played."""
        return self._vector_tokens and self.facts.auth == ("token",)

    def wait_long(self, seconds: float, why: str) -> None:
        """The check waits so long for a deadline; skip it where that is long and nobody asked for it."""
        if seconds > QUICK and not self.slow:
            raise Skip(f"{why}: give --slow")
        self.patience.extend(seconds)

    # Connections.

    def dial(self, name: str = "client") -> Peer:
        """A connection on which nothing was said or heard. Raises `Failed`."""
        try:
            stream = self.target.connect(self.patience.until(), self.patience.now)
        except OSError as error:
            raise Failed(
                f"cannot connect: {error.strerror or error}", isinstance(error, TimeoutError)
            ) from None
        self.transcript.note(name, "connects")
        peer = Peer(stream, name, self.transcript, self.patience, self._is_foreign)
        peer.max_length = self.facts.max_length
        limits = self.facts.limits
        rates = limits.get("messages_per_second"), limits.get("bytes_per_second")
        if rates != (None, None):
            peer.pace = Pace(*rates, clock=self.patience.now)
        self._peers.append(peer)
        return peer

    def greet(self, name: str = "client") -> Peer:
        """A connection that has read `welcome`. Raises `Failed`, and `Skip` where the server is full."""
        end = self.patience.now() + _SETTLE
        while True:
            peer = self.dial(name)
            first = peer.receive()
            if first.get("type") == "welcome":
                break
            if first.get("code") not in _FULL or first.get("type") != "error":
                raise Failed(f"expected a welcome, got {shown(first)}")
            # Connections of ours that were closed may still be counted.
            if self.patience.now() > end:
                raise Skip(f"the server takes no more connections: {first['code']}")
            peer.close()
            time.sleep(0.05)
        peer.welcome = first
        self._ours.add(peer.client_id)
        return peer

    def connect(self, name: str = "client") -> Peer:
        """A client that is served: it has logged in where that is asked for. Raises as `greet`."""
        self.need(not self.facts.auth or self.credentials, self.no_login)
        mark = self.transcript.mark()
        peer = self.greet(name)
        if self.facts.auth:
            self.log_in(peer)
        how = ", is welcomed and logs in" if self.facts.auth else " and is welcomed"
        self.transcript.fold(mark, name, f"connects{how}")
        return peer

    def begin_login(self, mechanisms: Iterable[str]) -> Login:
        """A login by one of some mechanisms. Raises `Skip` where we cannot."""
        if self.credentials is None:
            raise Skip(self.no_login)
        try:
            login = self.credentials.begin(list(mechanisms), self.target.secure)
        except AuthenticationFailed as error:
            raise Skip(str(error)) from None
        for name in _SECRET:
            if name in login.first:
                self.transcript.hide(login.first[name])
        return login

    def log_in(self, peer: Peer, mechanisms: Iterable[str] | None = None) -> Message:
        """Log in, by one of some mechanisms; returns the `auth_result`. Raises `Failed`, or `Skip`."""
        login = self.begin_login(self.facts.auth if mechanisms is None else mechanisms)
        self.patience.extend(AUTH_DELAY)
        wait = self.patience.seconds + AUTH_DELAY
        peer.send({"type": "auth", **login.first})
        answer = peer.receive(wait)
        if answer.get("type") == "auth_challenge":
            try:
                fields = login.answer(str(answer.get("data")))
            except AuthenticationFailed as error:
                raise Failed(f"the challenge is wrong: {error}") from None
            peer.send({"type": "auth", **fields})
            answer = peer.receive(wait)
        if (answer.get("type"), answer.get("status")) != ("auth_result", "authenticated"):
            raise Failed(f"expected to be authenticated, got {shown(answer)}")
        data = answer.get("data")
        try:
            login.finish(data if isinstance(data, str) else None)
        except AuthenticationFailed as error:
            raise Failed(str(error)) from None
        return answer

    def secrets(self) -> list[str]:
        """What must never come back: the secrets of our logins, as far as they are sent at all."""
        found = []
        for mechanism in self.facts.auth:
            try:
                first = self.begin_login([mechanism]).first
            except Skip:
                continue
            found += [first[name] for name in _SECRET if name in first]
        return found

    def lasting(self, name: str) -> Peer:
        """A client that stays for the checks to come, as long as they succeed and are vectors."""
        if name not in self._lasting:
            self._lasting[name] = self.connect(name)
            self._peers.remove(self._lasting[name])
        return self._lasting[name]

    def drop(self, name: str) -> None:
        """A client that lasts shall not hear what comes now."""
        if name in self._lasting:
            self._lasting.pop(name).close()

    def clear(self, keep: bool = False) -> None:
        """A check is over: close what it opened, and what lasts, too, unless it is to be kept."""
        if not keep:
            self._peers += self._lasting.values()
            self._lasting.clear()
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        self._ours = {peer.client_id for peer in self._lasting.values()}

    # What more than one check does.

    def pong(self, peer: Peer, word: str) -> Message:
        """Ping, and return the pong, whatever comes before it. Raises `Failed`."""
        return self.answer(peer, {"type": "ping", "timestamp": word}, "pong")

    def answer(self, peer: Peer, request: Message, *kinds: str) -> Message:
        """Send a request; return the first message of some types, whatever comes before. Raises `Failed`."""
        peer.send(request)
        for _ in range(_BEFORE):
            message = peer.receive()
            if message.get("type") in kinds:
                return message
        raise Failed(f"expected {' or '.join(kinds)}, got {shown(message)}")

    def sync(self, peer: Peer, who: str = "the client") -> None:
        """See that nothing is on its way to a client: a ping gets its pong, and nothing comes before."""
        word = self.nonce()
        answer = peer.ask({"type": "ping", "timestamp": word})
        if answer.get("type") != "pong" or (self.pongs_tell and answer.get("ping_timestamp") != word):
            raise Failed(f"{who} got what it should not, before the pong to its ping: {shown(answer)}")

    def stats(self, peer: Peer) -> Message:
        """The server's statistics. Raises `Failed`."""
        peer.send({"type": "get_stats"})
        return peer.expect(_STATS)

    def count(self, peer: Peer) -> int:
        """How many clients the server says are connected. Raises `Failed`."""
        return int(self.stats(peer)["connected_clients"])

    def settle(self, peer: Peer, ours: int, seconds: float = _SETTLE) -> None:
        """Wait until no more than so many clients of ours are connected, but not for ever."""
        mark = self.transcript.mark()
        end = self.patience.now() + seconds
        while self.count(peer) > self.strangers + ours and self.patience.now() < end:
            time.sleep(0.01)
        self.transcript.fold(mark, peer.name, "")

    def count_strangers(self) -> None:
        """Look how many clients there are that are not ours. Raises `Failed`, or `Skip`."""
        peer = self.connect("counter")
        end = self.patience.now() + _SETTLE
        while True:
            stats = self.answer(peer, {"type": "get_stats"}, "server_stats")
            count = stats.get("connected_clients")
            others = count - 1 if isinstance(count, int) else 0
            # Those of ours that were closed may be counted for a moment.
            if others <= 0 or self.patience.now() > end:
                break
            time.sleep(0.02)
        self.strangers = max(0, others)

    def _is_foreign(self, message: Message) -> bool:
        """Whether a message is a broadcast of a client that is not ours, where there are such."""
        return (
            self.strangers > 0
            and message.get("type") == "broadcast"
            and message.get("from_client") not in self._ours
        )
