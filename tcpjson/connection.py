"""One client of the server: whether there is room for it, who it is, and whether it is still there."""

from __future__ import annotations

from msgspec import UNSET
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tcpjson.auth import MAX_FAILURES, SCRAM, Login
from tcpjson.core import compression, errors
from tcpjson.core.backoff import DELAYS
from tcpjson.core.errors import (
    AuthFailed,
    AuthTimeout,
    BadMessage,
    HandlerTimeout,
    HeartbeatTimeout,
    IdleTimeout,
    Internal,
    ProtocolError,
)
from tcpjson.core.heartbeat import Heartbeat, Silence, Verdict
from tcpjson.core.limits import PRE_AUTH_MAX_LENGTH
from tcpjson.core.messages import (
    Auth,
    AuthChallenge,
    AuthResult,
    HeartbeatPing,
    Hello,
    HelloResponse,
    Message,
)
from tcpjson.core.ratelimit import Meter
from tcpjson.core.session import Event, State, advance
from tcpjson.coroutines import forget_cancelled
from tcpjson.exchange import Exchange
from tcpjson.protocol import BATCH, Hold
from tcpjson.proxied import IProxyListener, is_proxied
from tcpjson.tls import handshake_error, peer_identity
from tcpjson.transports import client_id_of, descriptor_of, is_encrypted, network_of

log = Logger()


@implementer(IHandshakeListener, IProxyListener)
class Connection(Exchange):
    """One client, made by `TCPJSONServerFactory`."""

    #: Whether it was refused at once, for want of room.
    turned_away = False
    #: What more is known of its end, in one word.
    detail = ""

    # In the class until they are needed: a connection that is idle is small.
    _admitted = False
    # Whether the application was told of it.
    _introduced = False
    _network: str | None = None
    _login: Login | None = None
    _greeted = False
    _answers_pings = False
    _heartbeat: Heartbeat | None = None
    _idle: Silence | None = None

    # The beginning, and the end.

    def connectionMade(self) -> None:
        super().connectionMade()
        factory = self.factory
        limits = factory.limits
        self.MAX_LENGTH = limits.max_length
        self.opened = self._clock.seconds()
        refusal = factory.opened(self)
        self._admitted = refusal is None
        self._name()
        encrypted = is_encrypted(self.transport)
        proxied = is_proxied(self.transport)
        if refusal is None and not proxied:
            refusal = self._claim()
        if refusal is not None:
            self._turn_away(refusal, encrypted)
            return
        if limits.messages_per_second is not None or limits.bytes_per_second is not None:
            self._meter = Meter(limits, self.opened)
            self._limited = True
        if encrypted or proxied or factory.authenticator is not None:
            factory.auth_deadlines.set(self, self.opened + limits.auth_timeout)
        if not (encrypted or proxied):
            self._identified()

    def handshakeCompleted(self) -> None:
        """The TLS handshake is done."""
        self._identified()

    def proxyHeaderReceived(self) -> None:
        """The PROXY header has come."""
        self._identified()

    def _claim(self) -> ProtocolError | None:
        """Count the connection for its address, or say why there are too many from there."""
        network = network_of(self.transport.getPeer())
        if network is None:
            return None
        refusal = self.factory.admission.claim(network)
        if refusal is None:
            self._network = network
        return refusal

    def _turn_away(self, refusal: ProtocolError, handshake: bool) -> None:
        """End a connection for which there is no room; `handshake`: TLS has not begun, and need not."""
        self.turned_away = True
        self.factory.refused(self, refusal.code)
        if self._admitted:
            self._admitted = False
            self.factory.admission.leave()
        descriptor = descriptor_of(self.transport)
        if handshake:
            self.reason = refusal.code
            self.transport.abortConnection()
            ended = Failure(ConnectionAborted())
        else:
            self.fail(refusal)
            if self.factory.may_linger():
                return
            ended = Failure(ConnectionDone())
        if descriptor is not None:
            # At once, as the reactor does it: Twisted's ways to close take a turn of the reactor, in which a
            # hundred others are accepted, and there are no files for them.
            descriptor.connectionLost(ended)

    def _identified(self) -> None:
        """The peer's address is known: welcome it, or ask who it is."""
        if self._state is not State.OPEN:
            return
        factory = self.factory
        self._name()
        if is_proxied(self.transport) and (refusal := self._claim()):
            self._turn_away(refusal, False)
            return
        if factory.draining:
            self.fail(self.going_away)
            return
        identity = peer_identity(self.transport)
        if identity is not None:
            self.user = identity
            factory.stats.logins["certificate", "authenticated"] += 1
        if factory.authenticator is None or identity is not None:
            self._state = advance(self._state, Event.IDENTIFIED)
            self._serve()
            self._send_now([factory.welcome(self.client_id, ())])
            self._introduce()
            return
        self._state = advance(self._state, Event.CHALLENGED)
        self.dialect = factory.dialects.guest
        self.MAX_LENGTH = min(self.MAX_LENGTH, PRE_AUTH_MAX_LENGTH)
        # What stands behind an `auth` is read when that is decided.
        self.batch = 1
        mechanisms = factory.authenticator.mechanisms(self._confidential)
        self._login = Login(factory.authenticator, self._confidential, self._network)
        self._send_now([factory.welcome(self.client_id, mechanisms)])
        if not mechanisms:
            self.fail(AuthFailed("there is no way to authenticate in the clear"))

    @property
    def _confidential(self) -> bool:
        """Whether nobody between reads what is sent: a password, say."""
        if is_encrypted(self.transport):
            return True
        return isinstance(self.transport.getHost(), UNIXAddress) and not is_proxied(self.transport)

    def _serve(self) -> None:
        """The client is one from now on."""
        factory = self.factory
        factory.auth_deadlines.clear(self)
        now = self._clock.seconds()
        limits = factory.limits
        if limits.idle_timeout is not None:
            self._idle = Silence(now, self._life())
            factory.silence_deadlines.set(self, self._idle.next_look(now, limits.idle_timeout))
        if not self._greeted:
            self.dialect = factory.dialects.opening
        else:
            self._expect_pongs()
        factory.join(self)

    def auth_expired(self) -> None:
        """It took too long to say who it is."""
        if self._state is State.OPEN:
            self.detail = "not_done_in_time"
            self.transport.abortConnection()
        elif self._state is State.READY:
            self._turn_out(HandlerTimeout())
        elif self._checking is not None:
            self._cancel(self._checking)
        else:
            self.fail(AuthTimeout())

    def _name(self) -> None:
        peer = self.transport.getPeer()
        if not isinstance(peer, UNIXAddress):
            self.client_id = client_id_of(peer)
        elif not self.client_id:
            self.client_id = f"unix:{self.factory.stats.connections}"

    def inputEnded(self) -> None:
        # It cannot answer a ping any more, and what waits for it is watched over by write_timeout.
        self.factory.silence_deadlines.clear(self)
        super().inputEnded()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._state is State.OPEN:
            # The PROXY header may have come all the same.
            self._name()
            self.detail = self.detail or handshake_error(reason.value)
            if not (self.detail or is_encrypted(self.transport)):
                self.detail = "no_proxy_header"
        super().connectionLost(reason)
        if self._introduced:
            # What the application has still to do for it bounds how many others may come.
            self.factory.lifecycle.disconnected(self, self._make_way)
        else:
            self._make_way()
        self.factory.closed(self)

    def _make_way(self) -> None:
        """There is room for another connection."""
        if self._admitted:
            self.factory.admission.leave()
        if self._network is not None:
            self.factory.admission.release(self._network)

    # `hello`, `auth` and heartbeats.

    def hello(self, message: Hello) -> Message | None:
        """The handler of `hello` (section 5)."""
        factory = self.factory
        dialects = factory.dialects
        if self._greeted or self.dialect not in (dialects.guest, dialects.opening):
            raise BadMessage("hello comes once, and before all but auth and ping")
        self._greeted = True
        self._answers_pings = message.heartbeat and factory.limits.heartbeat is not None
        chosen = next((name for name in message.compression if name in factory.compression), None)
        if self._order is not None:
            # The answer waits behind others, and only what follows it may be compressed.
            chosen = None
        if self._state is State.READY:
            self._expect_pongs()
            # What stands behind it in the same read was decoded, and is to be understood anew.
            self.hold(Hold.TURN)
            self.turnOver()
        response = HelloResponse(heartbeat=self._answers_pings, compression=chosen)
        if chosen is None:
            return response
        self._reply([self._answer(response, message)])
        assert factory.turn is not None
        self._send_gathered(factory.turn)
        self._reader.inflate = compression.inflate
        self.compresses = True
        return None

    def _expect_pongs(self) -> None:
        """`hello` was said: ping the client if it wants it."""
        factory = self.factory
        interval = factory.limits.heartbeat
        if not self._answers_pings or interval is None:
            self.dialect = factory.dialects.ready
            return
        self.dialect = factory.dialects.beating
        now = self._clock.seconds()
        self._heartbeat = Heartbeat(interval, now, self.bytes_in)
        self._look_again(now)

    def authenticate(self, message: Auth) -> Message | None:
        """The handler of `auth` (section 6)."""
        login = self._login
        if login is None:
            text = "no authentication is asked for" if self.user is None else "authenticated already"
            raise BadMessage(text)
        step = login.step(message)
        if isinstance(step, AuthChallenge):
            return step
        # Neither the wait for the check nor the back-off count as the client's time. All else does, its being
        # over its rate too: it could stay for ever.
        now = self._clock.seconds()
        deadlines = self.factory.auth_deadlines
        left = (deadlines.clear(self) or now) - now
        # A checker, or the queue before it, that takes as long as no handler may; the back-off comes on top.
        deadlines.set(self, now + self.factory.limits.handler_timeout + max(DELAYS))
        self.hold(Hold.AUTH)
        self._checking = step
        step.addBoth(self._checked, message, login, left)
        return None

    def _checked(self, result: AuthResult | Failure, message: Auth, login: Login, left: float) -> None:
        """It is known whether the client is who it says."""
        self._checking = None
        if self._state is not State.AUTHENTICATING:
            return
        self.factory.auth_deadlines.clear(self)
        if isinstance(result, Failure):
            # It was cancelled, which alone makes it fail.
            self._reply([self._refusal(HandlerTimeout(), message)])
        else:
            self._reply([self._answer(result, message)])
            self.factory.stats.logins[message.mechanism or SCRAM, result.status] += 1
            if result.user is not UNSET:
                self._login = None
                self.user = result.user
                self._state = advance(self._state, Event.AUTHENTICATED)
                self.MAX_LENGTH = self.factory.limits.max_length
                self.batch = BATCH
                self._serve()
                self._introduce()
            else:
                self.factory.login_failed(self, message.mechanism or SCRAM)
        if self._login is not None:
            if login.failures >= MAX_FAILURES:
                self.fail(AuthFailed())
                return
            self.factory.auth_deadlines.set(self, self._clock.seconds() + left)
        self._decided()

    def _decided(self) -> None:
        """Go on with what the client sent meanwhile, unless there is something else to wait for."""
        if self._checking is None:
            self._depart()
            self.release_now(Hold.AUTH)
            self._make_room()

    def _introduce(self) -> None:
        """Tell the application of a new client; what that sends waits until it is done."""
        lifecycle = self.factory.lifecycle
        if not lifecycle.watches_clients:
            return
        self._introduced = True
        self._checking = introduction = lifecycle.connected(self)
        introduction.addBoth(self._introduction_done)
        if self._checking is not None:
            self.hold(Hold.AUTH)
            limit = self.factory.limits.handler_timeout
            self.factory.auth_deadlines.set(self, self._clock.seconds() + limit)

    def _introduction_done(self, failure: Failure | None) -> None:
        self._checking = None
        self.factory.auth_deadlines.clear(self)
        if self._state is not State.READY:
            if failure is not None and not forget_cancelled(failure):
                self._failed("on_connect failed for {client}, who is gone", failure)
            return
        if failure is not None:
            error = failure.value
            if not isinstance(error, ProtocolError):
                self._failed("on_connect failed for {client}", failure)
                error = Internal()
            self._turn_out(error)
        self._decided()

    def _turn_out(self, error: ProtocolError) -> None:
        """The application does not want the client, or cannot have it."""
        error.forget_origin()
        reason = error.code if error.fatal else errors.CLOSED_BY_HANDLER
        self._finish(reason, self._error_payload(error, fatal=True))

    def _life(self) -> object:
        """What changes with every sign of life (section 1)."""
        return self.bytes_in, self._outbox.progress()

    def look_for_life(self) -> None:
        """See whether the client is still there."""
        now = self._clock.seconds()
        # No deadline runs on while it is we who do not read, or have not done yet what it asks.
        held = bool(self._holds)
        timeout = self.factory.limits.idle_timeout
        if self._idle is not None and timeout is not None:
            if held or self._running:
                self._idle.restart(now)
            elif self._idle.seconds(now, self._life()) >= timeout:
                self.fail(IdleTimeout())
                return
        if self._heartbeat is not None:
            outbox = self._outbox
            verdict = self._heartbeat.look(now, self.bytes_in, outbox.sent, outbox.acknowledged, held)
            if verdict is Verdict.DEAD:
                self.fail(HeartbeatTimeout())
                return
            if verdict is Verdict.PING:
                self.send(HeartbeatPing())
        if not self._holds & Hold.ENDING:
            self._look_again(now)

    def _look_again(self, now: float) -> None:
        looks = []
        timeout = self.factory.limits.idle_timeout
        if self._idle is not None and timeout is not None:
            looks.append(self._idle.next_look(now, timeout))
        if self._heartbeat is not None:
            looks.append(self._heartbeat.next_look(now))
        self.factory.silence_deadlines.set(self, min(looks))
