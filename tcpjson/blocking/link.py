"""The thread behind a blocking client: it connects, serves the connection, and connects anew."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, NoReturn
from weakref import WeakSet

from tcpjson._version import __version__
from tcpjson.blocking.conversation import Conversation, Trace
from tcpjson.blocking.stream import Stream, addresses, unix
from tcpjson.core.errors import (
    ClientError,
    Disconnected,
    PermanentError,
    ProtocolError,
    QueueFull,
    TooLarge,
)
from tcpjson.core.handshake import Credentials, Handshake, Json, ServerInfo
from tcpjson.core.heartbeat import Heartbeat, Verdict
from tcpjson.core.limits import CLOSE_TIMEOUT
from tcpjson.core.replies import LATE, Replies
from tcpjson.core.requests import with_id, with_timestamp
from tcpjson.core.retry import FullJitter
from tcpjson.timestamps import Timestamps

log = logging.getLogger("tcpjson.blocking")

# Seconds in which an address takes a connection, TLS included; and in which the server then lets us in.
_CONNECT_TIME = 10.0
# Seconds that the end of the program waits for what is still to be sent.
_AT_EXIT = 2.0

# What OpenSSL says of what is no record of TLS.
_NO_TLS = "WRONG_VERSION_NUMBER"


class Phase(Enum):
    """What a link is at."""

    #: It was never served yet, and ends when it cannot be.
    FIRST = "first"
    #: Served.
    READY = "ready"
    #: Served, by a server that shuts down: what was asked is answered, and nothing more is taken.
    LEAVING = "leaving"
    #: It was served, and tries to be again.
    AGAIN = "again"
    #: Served, and told to end: what waits is sent, what the server still says is heard.
    CLOSING = "closing"
    #: Gone, for good.
    ENDED = "ended"


#: The steps from one phase to another. What is not here must not happen.
STEPS = {
    (Phase.FIRST, Phase.READY),
    (Phase.FIRST, Phase.ENDED),
    (Phase.READY, Phase.AGAIN),
    (Phase.READY, Phase.CLOSING),
    (Phase.READY, Phase.ENDED),
    (Phase.READY, Phase.LEAVING),
    (Phase.LEAVING, Phase.AGAIN),
    (Phase.LEAVING, Phase.CLOSING),
    (Phase.LEAVING, Phase.ENDED),
    (Phase.AGAIN, Phase.READY),
    (Phase.AGAIN, Phase.ENDED),
    (Phase.CLOSING, Phase.ENDED),
}

# Those that another is awaited in, before anything is sent.
_UNSERVED = (Phase.FIRST, Phase.LEAVING, Phase.AGAIN)
# Those in which replies come.
_SERVED = (Phase.READY, Phase.LEAVING)


class Waiter:
    """A thread that waits for a reply."""

    __slots__ = ("_done", "error", "key", "replies", "reply")

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()
        #: Where it waits, and its key there; None where the request waits for a connection.
        self.replies: Replies[Waiter] | None = None
        self.key = 0
        self.reply: Json = {}
        self.error: Exception | None = None

    def answer(self, reply: Json) -> None:
        """The reply came."""
        self.reply = reply
        self._done.release()

    def fail(self, error: Exception) -> None:
        """It will not come."""
        self.error = error
        self._done.release()

    def wait(self, timeout: float) -> bool:
        """Whether it came, or is known not to come, within so many seconds."""
        return self._done.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


class Request(NamedTuple):
    """A message that is to be sent."""

    #: Its `type`; None for plain text.
    kind: str | None
    #: Without an id, where a waiter waits.
    payload: bytes
    #: Whether a classic server finds in it the timestamp that it may look for, or can have none.
    stamped: bool
    waiter: Waiter | None = None


class Options:
    """What a link is to do. Sizes are in bytes, times in seconds."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        path: str | None,
        tls: ssl.SSLContext | None,
        credentials: Credentials | None,
        reconnect: bool,
        retries: int | None,
        queue_offline: bool,
        max_queue: int,
        max_length: int,
        compress: bool,
        trace: Trace | None,
        random: Callable[[], float],
        clock: Callable[[], float],
        wall: Callable[[], float],
        hear: Callable[[], Callable[[Json], None] | None],
    ) -> None:
        self.host = host
        self.port = port
        self.path = path
        self.tls = tls
        self.credentials = credentials
        self.reconnect = reconnect
        self.retries = retries
        self.queue_offline = queue_offline
        self.max_queue = max_queue
        self.max_length = max_length
        self.compress = compress
        self.trace = trace
        self.random = random
        self.clock = clock
        self.wall = wall
        #: Gives what is to be told of every message; None when its owner is gone.
        self.hear = hear

    @property
    def where(self) -> str:
        """Where the server is, for people."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Told(Exception):
    """The link was told to end."""


# Those whose threads run; what a fork and the end of the program must look after.
_links: WeakSet[Link] = WeakSet()


class Link:
    """
    One client's way to its server, from `connect` to `disconnect`: a daemon thread that owns the socket.

    What the thread and others share is guarded by a lock that nobody holds for long.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        # A signal's handler may send, or disconnect, in the midst of the same.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._phase = Phase.FIRST
        # Set by who may hold no lock: the owner is gone.
        self._abandoned = False
        #: Why it was not, or is not, served.
        self.error: Exception | None = None
        #: What the last welcome said, and who the client is for the server.
        self.server: ServerInfo | None = None
        self.user: str | None = None
        self._replies = Replies[Waiter]()
        # Payloads that the thread has not seen yet, and their bytes; and those of the frames that the socket
        # has not taken, which only the thread changes.
        self._outgoing: list[bytes] = []
        self._fresh = 0
        self._rest = 0
        # What waits for a connection, and its bytes.
        self._pending: deque[Request] = deque()
        self._pending_size = 0
        self._timestamps = Timestamps(options.wall)
        # Whether the thread was told that there is something for it.
        self._signalled = False
        self._waker, self._wake_end = socket.socketpair()
        self._waker.setblocking(False)
        self._wake_end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        self._stream: Stream | None = None
        self._registered = 0
        # The frames that are being sent, and what the socket took of them.
        self._buffer = b""
        self._offset = 0
        # Bytes that were to be sent over this connection, and what the socket took.
        self._sent = 0
        self._taken = 0
        self._jitter = FullJitter(options.random)
        # Attempts that went wrong, since the last that did not.
        self._failures = 0
        self.thread = threading.Thread(target=self._run, name=f"tcpjson {options.where}", daemon=True)

    def start(self) -> None:
        """Begin to connect. Raises `RuntimeError` when there can be no more threads."""
        _links.add(self)
        try:
            self.thread.start()
        except BaseException:
            self.close()
            if self.thread.ident is None:
                self._let_loose()
            raise

    # For other threads.

    @property
    def phase(self) -> Phase:
        """What it is at."""
        return self._phase

    def wait_until_decided(self, timeout: float) -> bool:
        """Whether it is served, or has ended, within so many seconds."""
        with self._lock:
            return self._changed.wait_for(
                lambda: self._phase not in _UNSERVED, min(timeout, threading.TIMEOUT_MAX)
            )

    def wait_until_ended(self, timeout: float) -> None:
        """Wait for the end, so many seconds at most."""
        with self._lock:
            self._changed.wait_for(lambda: self._phase is Phase.ENDED, timeout)

    def submit(self, request: Request) -> None:
        """
        Send a message, or keep it until there is a connection.

        Raises:
            Disconnected, QueueFull, TooLarge: it is not sent.
        """
        with self._lock:
            if self._phase is Phase.READY:
                self._put(request)
            elif self._options.queue_offline and self._phase in _UNSERVED:
                self._keep(request)
            else:
                raise Disconnected(f"not connected to {self._options.where}{_because(self.error)}")

    def _put(self, request: Request, bounded: bool = True) -> None:
        """
        Have a message sent over the connection there is; `bounded`: if there is room. The lock is held.
        """
        kind, payload, stamped, waiter = request
        replies = self._replies
        assert self.server is not None
        if replies.classic and not stamped:
            payload = with_timestamp(payload, self._timestamps.now())
        if waiter is not None and not replies.classic:
            payload = with_id(payload, replies.next_key)
        size = len(payload)
        longest = self.server.max_length
        waiting = self._fresh + self._rest
        if longest is not None and size > longest:
            raise TooLarge(f"a message of {size} bytes: the server takes {longest}")
        if bounded and waiting and waiting + size > self._options.max_queue:
            raise QueueFull(f"{waiting} bytes wait to be sent")
        if waiter is not None:
            # If what follows is cut short, `forget` finds it.
            waiter.replies, waiter.key = replies, replies.next_key
            replies.add(waiter, kind or "")
        elif kind is not None:
            replies.note(kind)
        self._outgoing.append(payload)
        self._fresh += size
        self.wake()

    def _keep(self, request: Request) -> None:
        """Have a message wait for a connection. The lock is held."""
        size = len(request.payload)
        if self._pending and self._pending_size + size > self._options.max_queue:
            raise QueueFull(f"{self._pending_size} bytes wait for a connection")
        self._pending_size += size
        self._pending.append(request)

    def forget(self, waiter: Waiter) -> None:
        """A thread waits no more. What it asked for is not sent if there was no connection meanwhile."""
        with self._lock:
            replies = waiter.replies
            if replies is not None:
                # Not of the connection there is now: there its key can be another's.
                replies.forget(waiter.key)
                if replies.classic and replies is self._replies and self._phase is Phase.READY:
                    # If the reply never comes, the one to this says so.
                    self._put(_PING, bounded=False)
                return
            for request in self._pending:
                if request.waiter is waiter:
                    self._pending.remove(request)
                    self._pending_size -= len(request.payload)
                    break

    def close(self, error: Exception | None = None) -> None:
        """End it: what is queued is sent first, and what the server still has to say is heard."""
        with self._lock:
            if self._phase in _SERVED:
                self._fail_replies(error)
                self._fail_pending(error)
                self._step(Phase.CLOSING)
            elif self._phase is not Phase.CLOSING:
                self._end(error)
            self.signal()

    def let_go(self) -> None:
        """The owner is gone: `close`, for one who may be called in the midst of anything."""
        self._abandoned = True
        self.signal()

    def wake(self) -> None:
        """Have the thread look at what is new, if it was not told to already. The lock is held."""
        if not self._signalled:
            # First the signal: an exception between the two costs one that is needless, and loses none.
            self.signal()
            self._signalled = True

    def signal(self) -> None:
        """Have the thread go on; anybody may call it, at any time."""
        # When the thread has ended, there is nobody to tell.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def after_fork(self) -> None:
        """In a child process: the thread stayed with the parent, and so does the connection."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.error = Disconnected("the process has forked: connect again")
        self._phase = Phase.ENDED
        self._replies.clear()
        self._pending.clear()
        # Nothing is sent, and the selector is not asked to forget the socket: it is the parent's, too.
        self._registered = 0
        self._let_loose()

    # Changes that everybody sees; the lock is held.

    def _step(self, phase: Phase) -> None:
        if (self._phase, phase) not in STEPS:
            raise RuntimeError(f"a link that is {self._phase.value} cannot be {phase.value}")
        self._phase = phase
        self._changed.notify_all()

    def _end(self, error: Exception | None) -> None:
        """It is over; `error`: why, if not for the last reason."""
        if self._phase is not Phase.ENDED:
            self.error = error or self.error
            self._fail_replies(error)
            self._fail_pending(error)
            self._step(Phase.ENDED)

    def _fail_replies(self, error: Exception | None) -> None:
        """No reply comes over this connection any more."""
        for waiter in self._replies.clear():
            waiter.fail(Disconnected(f"no reply came{_because(error)}"))

    def _fail_pending(self, error: Exception | None) -> None:
        """There will be no other connection."""
        for request in self._pending:
            if request.waiter is not None:
                request.waiter.fail(Disconnected(f"not connected{_because(error)}"))
        self._pending.clear()
        self._pending_size = 0

    # The thread.

    def _run(self) -> None:
        error: Exception | None = None
        try:
            while True:
                error = self._attempt()
                until = self._lost(error)
                if until is None:
                    return
                self._pause(until)
        except _Told:
            pass
        # In a thread nobody else would hear of it.
        except BaseException as bug:
            log.exception("%s: the client has ended by an error of its own", self._options.where)
            error = Disconnected(f"the client has failed: {type(bug).__name__}: {bug}")
        finally:
            with self._lock:
                self._end(None if self._told() else error)
            _links.discard(self)
            self._let_loose()

    def _let_loose(self) -> None:
        """Close all that is open."""
        self._drop()
        self._selector.close()
        self._waker.close()
        self._wake_end.close()

    def _told(self) -> bool:
        return self._abandoned or self._phase in (Phase.CLOSING, Phase.ENDED)

    def _attempt(self) -> Exception:
        """Connect, and be served until that ends; returns why it did. Raises `_Told`."""
        try:
            self._serve(self._connect())
        except (ClientError, ProtocolError, OSError) as error:
            return _detached(error)
        except _Told:
            raise
        except Exception as bug:
            log.exception("%s: an error of the client's own", self._options.where)
            return Disconnected(f"the client has failed: {type(bug).__name__}: {bug}")
        finally:
            self._drop()

    def _lost(self, error: Exception) -> float | None:
        """The connection is gone, or there was none: returns when to try for another, None for never."""
        options = self._options
        where = options.where
        self._heed()
        was_ready = self._phase in _SERVED
        self._failures = 1 if was_ready else self._failures + 1
        over = options.retries is not None and self._failures > options.retries
        what = f"{'the connection is lost: ' if was_ready else ''}{error}"
        if self._phase is Phase.FIRST or over or not options.reconnect or isinstance(error, PermanentError):
            # Before anybody can be told: it explains what they are told.
            log.error("%s: %s%s", where, what, "; given up" if over else "")
            with self._lock:
                self._end(error)
            return None
        delay = self._jitter.next(getattr(error, "retry_after", None))
        until = options.clock() + delay
        log.warning("%s: %s; trying again in %.1f s", where, what, delay)
        with self._lock:
            self._heed()
            self.error = error
            if was_ready:
                self._fail_replies(error)
                self._outgoing.clear()
                self._fresh = 0
                self._step(Phase.AGAIN)
        return until

    def _pause(self, until: float) -> None:
        """Wait. Raises `_Told`."""
        while self._options.clock() < until:
            self._select(until)
            self._heed()

    def _heed(self) -> None:
        """Go no further where the link was told to end. Raises `_Told`."""
        if self._told():
            raise _Told

    # Connecting.

    def _connect(self) -> Stream:
        """A new connection, with TLS where that is asked for. Raises `Disconnected`."""
        options = self._options
        try:
            choices = addresses(options.host, options.port) if options.path is None else [unix(options.path)]
        except (OSError, ValueError) as error:
            raise Disconnected(f"{options.host} is not found: {_reason(error)}") from None
        problem: Exception = OSError("there is no address")
        for family, address in choices:
            self._heed()
            try:
                return self._reach(family, address)
            except (OSError, ValueError) as error:
                problem = error
                self._drop()
        raise Disconnected(f"cannot connect: {_reason(problem)}")

    def _reach(self, family: int, address: object) -> Stream:
        """A connection to one address."""
        stream = self._stream = Stream(family, address)
        deadline = self._options.clock() + _CONNECT_TIME
        connected = 0
        while not connected:
            connected = self._select(deadline, selectors.EVENT_WRITE)
            # Both may have happened, and the signal comes once.
            self._heed()
            if not connected:
                self._in_time(deadline, "no answer")
        stream.finish()
        if self._options.tls is not None:
            # The socket is to be another object, which the selector does not know.
            self._register(0)
            stream.begin_tls(self._options.tls, self._options.host)
            while not stream.shake_hands():
                self._select(deadline, stream.wanted)
                self._heed()
                self._in_time(deadline, "no TLS handshake")
        return stream

    def _in_time(self, deadline: float, what: str) -> None:
        if self._options.clock() >= deadline:
            raise TimeoutError(f"{what} in {_CONNECT_TIME:g} seconds")

    # Talking.

    def _serve(self, stream: Stream) -> NoReturn:
        """Talk with the server until that ends, by an exception."""
        options = self._options
        secure = options.tls is not None or options.path is not None
        handshake = Handshake(f"tcpjson/{__version__}", options.credentials, secure, options.compress)
        trace = None if options.trace is None else self._trace
        conversation = Conversation(handshake, trace, options.max_length)
        self._sent = self._taken = 0
        try:
            deadline = options.clock() + _CONNECT_TIME
            while True:
                self._turn(stream, conversation, deadline)
                if conversation.ready:
                    # Whoever was told so may have sent something, and told us to end.
                    break
                self._heed()
                self._in_time(deadline, "no welcome" if handshake.server is None else "no end of the login")
            self._talk(stream, conversation)
        except (Disconnected, OSError):
            # What the server said before is worth more.
            if conversation.farewell is not None:
                raise conversation.farewell from None
            raise
        if self._phase is not Phase.ENDED:
            self._part(stream, conversation)
        raise _Told

    def _trace(self, direction: str, payloads: Sequence[bytes]) -> None:
        trace = self._options.trace
        if trace is not None:
            try:
                trace(direction, payloads)
            except Exception:
                self._options.trace = None
                log.exception("%s: nothing more is traced", self._options.where)

    def _welcomed(self, handshake: Handshake) -> None:
        """The server serves us."""
        with self._lock:
            self._heed()
            server = self.server = handshake.server
            assert server is not None
            self.user = handshake.user
            self.error = None
            self._replies = Replies(server.classic)
            self._step(Phase.READY)
            pending, self._pending = self._pending, deque()
            self._pending_size = 0
            for request in pending:
                try:
                    self._put(request, bounded=False)
                except TooLarge as error:
                    if request.waiter is not None:
                        request.waiter.fail(error)
                    else:
                        log.warning("%s: not sent: %s", self._options.where, error)
        self._jitter.reset()
        log.info("%s: connected", self._options.where)

    def _leave(self, farewell: Exception) -> None:
        """The server takes nothing more."""
        with self._lock:
            if self._phase is Phase.READY:
                self.error = farewell
                self._step(Phase.LEAVING)

    def _talk(self, stream: Stream, conversation: Conversation) -> None:
        """Until the link is told to end."""
        clock = self._options.clock
        assert self.server is not None
        heartbeat = Heartbeat(self.server.silence, clock(), conversation.received)
        while not self._told():
            self._turn(stream, conversation, heartbeat.next_look(clock()))
            sent = self._sent + self._fresh
            verdict = heartbeat.look(clock(), conversation.received, sent, self._taken, False)
            if verdict is Verdict.DEAD:
                raise Disconnected("the server has fallen silent")
            if verdict is Verdict.PING:
                with self._lock:
                    self._put(_PING, bounded=False)

    def _part(self, stream: Stream, conversation: Conversation) -> None:
        """Send what waits, and hear the server out."""
        clock = self._options.clock
        deadline = clock() + CLOSE_TIMEOUT
        ended = False
        with contextlib.suppress(ClientError, ProtocolError, OSError):
            if self._options.tls is not None:
                # TLS can lose what comes when we have ended our side. All comes before the answer to a ping.
                answer = Waiter()
                with self._lock:
                    self._put(_PING._replace(waiter=answer), bounded=False)
                while clock() < deadline and not answer.wait(0):
                    self._turn(stream, conversation, deadline)
            while clock() < deadline:
                if not (ended or self._outgoing or self._rest or conversation.due):
                    stream.end()
                    ended = True
                # What the socket takes at once is nothing to wait for.
                self._turn(stream, conversation, deadline if ended or self._rest else 0.0)

    def _turn(self, stream: Stream, conversation: Conversation, until: float) -> None:
        """Send what there is; then wait for something to do, and do it."""
        gathered = not self._rest
        if gathered:
            self._gather(conversation)
        self._flush(stream)
        if not (gathered or self._rest):
            # For what was put in the queue meanwhile there may be no signal.
            until = 0.0
        events = 0 if stream.pending else self._select(until, stream.wanted | self._wanted())
        if events & selectors.EVENT_READ or stream.pending or stream.blocked:
            data = stream.receive()
            if data:
                conversation.feed(data)
                self._hand_out(conversation)
            elif data is not None:
                raise Disconnected("the server has closed the connection")

    def _wanted(self) -> int:
        return selectors.EVENT_WRITE if self._rest else 0

    def _gather(self, conversation: Conversation) -> None:
        """Make frames of all that is to be sent."""
        with self._lock:
            self._signalled = False
            payloads, self._outgoing = self._outgoing, []
            # It counts while frames are made of it.
            self._rest, self._fresh = self._fresh, 0
        payloads = conversation.due_payloads() + payloads
        self._buffer = conversation.frames(payloads) if payloads else b""
        self._offset = 0
        self._sent += len(self._buffer)
        self._rest = len(self._buffer)

    def _flush(self, stream: Stream) -> None:
        """Send what the socket has room for."""
        if not self._rest:
            return
        with memoryview(self._buffer) as view:
            while self._rest:
                count = stream.send(view[self._offset :])
                if not count:
                    return
                self._offset += count
                self._taken += count
                self._rest -= count
        self._buffer = b""

    def _hand_out(self, conversation: Conversation) -> None:
        """Give all messages that are complete to those who wait for them, and to the callback."""
        before = conversation.passed_over
        while self._phase is not Phase.ENDED and (messages := conversation.take()):
            if conversation.ready and self._phase in (Phase.FIRST, Phase.AGAIN):
                self._welcomed(conversation.handshake)
            if conversation.farewell is not None:
                self._leave(conversation.farewell)
            with self._lock:
                take = self._replies.take
                waiters = [take(message) for message in messages]
            for message, waiter in zip(messages, waiters, strict=True):
                if waiter is not None and waiter is not LATE:
                    waiter.answer(message)
                hear = self._options.hear()
                if hear is not None:
                    try:
                        hear(message)
                    # Not even its SystemExit is to end the thread.
                    except BaseException:
                        log.exception("%s: the message callback has failed", self._options.where)
        if conversation.passed_over and not before:
            log.warning(
                "%s: the server sent what is no message, which is passed over, and so is more of it",
                self._options.where,
            )

    # The selector.

    def _select(self, until: float, events: int = 0) -> int:
        """Wait until a time for events of the stream, or for somebody's signal; returns the events."""
        self._register(events)
        found = 0
        for key, mask in self._selector.select(max(0.0, until - self._options.clock())):
            if key.fileobj is self._wake_end:
                with contextlib.suppress(BlockingIOError):
                    self._wake_end.recv(4096)
            else:
                found = mask
        return found

    def _register(self, events: int) -> None:
        """Have the selector wait for these events of the stream."""
        if events == self._registered:
            return
        assert self._stream is not None
        if not self._registered:
            self._selector.register(self._stream, events)
        elif not events:
            self._selector.unregister(self._stream)
        else:
            self._selector.modify(self._stream, events)
        self._registered = events

    def _drop(self) -> None:
        """Close the connection, if there is one."""
        if self._stream is not None:
            self._register(0)
            self._stream.close()
            self._stream = None
        self._buffer = b""
        self._offset = self._rest = 0


_PING = Request("ping", b'{"type":"ping"}', stamped=False)


def _because(error: Exception | None) -> str:
    return "" if error is None else f": {error}"


def _reason(error: Exception) -> str:
    """What is wrong, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason == _NO_TLS:
        return "what answers does not speak TLS"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.replace('_', ' ').lower()}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _detached(error: Exception) -> Exception:
    """An error to keep: without its traceback, which holds what was received; of the system, in our words."""
    if isinstance(error, OSError):
        error = Disconnected(_reason(error))
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _at_exit() -> None:
    """What a program sent before its end is sent, if the servers take it."""
    links = list(_links)
    for link in links:
        link.close()
    until = time.monotonic() + _AT_EXIT
    for link in links:
        link.wait_until_ended(max(0.0, until - time.monotonic()))


def _after_fork() -> None:
    for link in list(_links):
        link.after_fork()
    _links.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
