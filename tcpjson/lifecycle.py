"""What an application does when the server and its clients come and go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from tcpjson.coroutines import forget_cancelled
from tcpjson.deadlines import Deadlines
from tcpjson.handlers import Hook, Moment, Router, Server, Session, name_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from tcpjson.notices import Notices

log = Logger()


class StartFailed(Exception):
    """An `on_start` raised: the server does not start. It was logged with its traceback."""


async def _call(hooks: Sequence[Hook], subject: Session | Server) -> None:
    for hook in hooks:
        result = hook(subject)
        if isinstance(result, Awaitable):
            await result


class _Occasion:
    """One reason to call some hooks; `done` is called when all of these have done."""

    __slots__ = ("_done", "moment", "unfinished")

    def __init__(self, moment: Moment, done: Callable[[], None]) -> None:
        self.moment = moment
        self._done = done
        # One more, until all have begun.
        self.unfinished = 1

    def one_less(self) -> None:
        """One has done, or is waited for no more."""
        self.unfinished -= 1
        if not self.unfinished:
            self._done()


class Lifecycle:
    """
    Calls the hooks of a router, each of which may take some seconds and no more.

    Args:
        clock: calls later.
        router: has the hooks.
        timeout: seconds after which one is cancelled.
        notices: tells of those that fail.
    """

    def __init__(self, clock: IReactorTime, router: Router, timeout: float, notices: Notices) -> None:
        self._clock = clock
        self._notices = notices
        self._router = router
        self._timeout = timeout
        self._deadlines = Deadlines[Deferred[None]](clock, self._expired)
        # What is waited for, each with its moment.
        self._unfinished: dict[Deferred[None], _Occasion] = {}
        self._waiting: list[Deferred[None]] = []
        self._started = False
        self._waits = True
        # There when it stops as soon as nothing is waited for.
        self._stopping: Server | None = None
        self._connect = router.hooks("on_connect")
        self._disconnect = router.hooks("on_disconnect")
        self._stop = router.hooks("on_stop")
        #: Whether `connected` and `disconnected` are of any use.
        self.watches_clients = bool(self._connect or self._disconnect)
        #: Seconds that its end may take, once the last client is gone.
        self.farewell = timeout * (bool(self._disconnect) + bool(self._stop))

    def start(self, server: Server) -> None:
        """
        Call what is to be called before the server listens.

        Raises:
            StartFailed: one of these failed, the line says which and how.
        """
        for hook in self._router.hooks("on_start"):
            try:
                hook(server)
            except Exception as error:
                log.failure("on_start failed", event="hook_failed")
                reason = f"{type(error).__name__}: {error}"
                raise StartFailed(f"on_start: {name_of(hook)}: {reason}") from error
        self._started = self._waits = True

    def connected(self, session: Session) -> Deferred[None]:
        """Call what is to be called for a new client; fires when that is done, and fails as it does."""
        return Deferred.fromCoroutine(_call(self._connect, session))

    def disconnected(self, session: Session, done: Callable[[], None] = lambda: None) -> None:
        """Call what is to be called for a client that is gone, and `done` when that is done."""
        self._see_to("on_disconnect", self._disconnect, session, done)

    def stop(self, server: Server) -> None:
        """Call what is to be called when all is over, and nothing is unfinished; once after each start."""
        if self._started:
            self._started = False
            self._stopping = server
            self._go_on()

    def settled(self) -> Deferred[None]:
        """Fires when all of it is done that is to be done for clients that are gone, and for the end."""
        settled = Deferred[None]()
        self._waiting.append(settled)
        self._go_on()
        return settled

    def cancel(self) -> None:
        """Wait for nothing any more."""
        self._waits = False
        while self._unfinished:
            self._expired(next(iter(self._unfinished)))

    def _see_to(
        self, moment: Moment, hooks: Sequence[Hook], subject: Session | Server, done: Callable[[], None]
    ) -> None:
        """Call all of them, whatever comes of each."""
        occasion = _Occasion(moment, done)
        for hook in hooks:
            deferred = Deferred.fromCoroutine(_call([hook], subject))
            occasion.unfinished += 1
            self._unfinished[deferred] = occasion
            self._deadlines.set(deferred, self._clock.seconds() + self._timeout)
            deferred.addBoth(self._finished, moment, deferred)
        occasion.one_less()
        if not self._waits:
            self.cancel()

    def _expired(self, deferred: Deferred[None]) -> None:
        # First: what is cancelled may go on all the same.
        occasion = self._unfinished.pop(deferred)
        moment = occasion.moment
        self._notices.warn("hook_late", "{moment} was not done in time", item=moment, moment=moment)
        occasion.one_less()
        deferred.cancel()
        self._go_on()

    def _finished(self, failure: Failure | None, moment: Moment, deferred: Deferred[None]) -> None:
        occasion = self._unfinished.pop(deferred, None)
        self._deadlines.clear(deferred)
        if failure is not None and (occasion is not None or not forget_cancelled(failure)):
            self._notices.failure("hook_failed", "{moment} failed", failure, item=moment, moment=moment)
        if occasion is not None:
            occasion.one_less()
        self._go_on()

    def _go_on(self) -> None:
        """Where nothing is unfinished, stop if that is due, and tell those who wait."""
        if not self._unfinished and self._stopping is not None:
            server, self._stopping = self._stopping, None
            self._see_to("on_stop", self._stop, server, lambda: None)
        if not self._unfinished:
            self._deadlines.stop()
            waiting, self._waiting = self._waiting, []
            for settled in waiting:
                settled.callback(None)
