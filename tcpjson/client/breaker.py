"""A circuit breaker: a server that is unwell is left alone for a while."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.python.failure import Failure

from tcpjson.core.breaker import (
    FAILURES,
    RESET,
    SLOW,
    Breaker,
    Call,
    CircuitOpen,
    Figures,
    State,
    unwell,
)

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

__all__ = ["Call", "CircuitBreaker", "CircuitOpen", "Figures", "State"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class CircuitBreaker:
    """
    Closed, it lets calls through. After `failures` of them failed in a row it opens, and every call fails at
    once with `CircuitOpen`. After `reset` seconds it is half open: one call is let through, whose outcome
    closes it or opens it again.

    A call fails by an error that says that the server is unwell, or by lasting `slow` seconds. Other errors
    are answers of a server that is well, or say nothing of it, as that the call was cancelled: those count
    neither way, and after a trial of that kind the next call is one.

    Args:
        clock: the reactor; only its `seconds` is used.
        failures: how many in a row open it, 1 or more.
        slow: seconds after which a call has failed; it goes on all the same. More than 0, and less than the
            time-out of the requests, or it makes no difference.
        reset: seconds for which it stays open, more than 0.
        unwell: what an exception says of the server: True, unwell; False, well; None, nothing.

    Raises:
        ValueError: a number is out of its bounds.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        failures: int = FAILURES,
        slow: float = SLOW,
        reset: float = RESET,
        unwell: Callable[[BaseException], bool | None] = unwell,
    ) -> None:
        self._seconds = clock.seconds
        self._breaker = Breaker(failures=failures, slow=slow, reset=reset, now=clock.seconds())
        self._unwell = unwell

    @property
    def state(self) -> State:
        """Closed, open or half open."""
        return self.figures().state

    def figures(self) -> Figures:
        """The state, since when and how often it opened; the calls, failures, slow and rejected ones."""
        return self._breaker.figures(self._seconds())

    def wait(self) -> float:
        """Seconds until a call may be let through; 0: one would be now."""
        return self._breaker.wait(self._seconds())

    @overload
    def call(
        self,
        function: Callable[Arguments, Deferred[Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Deferred[Result]:
        """Call a function that returns a Deferred."""

    @overload
    def call(
        self,
        function: Callable[Arguments, Coroutine[Any, Any, Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Deferred[Result]:
        """Call a function that is a coroutine's."""

    @overload
    def call(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Deferred[Result]:
        """Call a function that returns the result."""

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        """
        Call a function, which may return a Deferred or a coroutine, if the circuit allows it.

        The Deferred fires with the outcome, or fails with `CircuitOpen`, whose `retry_after` tells when to
        try again; the function is not called then. Cancelling it cancels what the function returned.
        """
        try:
            call = self.begin()
        except CircuitOpen as error:
            return fail(error)
        return maybeDeferred(function, *args, **kwargs).addBoth(self._ended, call)

    def _ended(self, outcome: Any, call: Call) -> Any:
        self.ended(call, outcome.value if isinstance(outcome, Failure) else None)
        return outcome

    def begin(self) -> Call:
        """
        For what is no one function: a call begins. It must be given to `ended`, however it ends.

        Raises:
            CircuitOpen: it must not.
        """
        return self._breaker.begin(self._seconds())

    def ended(self, call: Call, error: BaseException | None) -> None:
        """A call that was begun has ended, by an error or well."""
        self._breaker.ended(call, False if error is None else self._unwell(error), self._seconds())
