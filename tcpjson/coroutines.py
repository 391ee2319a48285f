"""Coroutines, at the price of a call where they wait for nothing."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure


def start(coroutine: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
    """
    Run a coroutine, in a context of its own, until it waits for something.

    Returns:
        True and what it returned; or False and a Deferred of that, as `Deferred.fromCoroutine` makes, which
        costs several times as much.

    Raises:
        BaseException: what it raised before it waited.
    """
    context = copy_context()
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration as stop:
        return True, stop.value
    return False, Deferred.fromCoroutine(_rest(context, coroutine, awaited))


def forget_cancelled(failure: Failure) -> bool:
    """
    Whether a failure is that of something cancelled. It leads, by Twisted's own frames, to itself, and to all
    that these hold, messages among it: it is made to let go of them.
    """
    if not failure.check(CancelledError):
        return False
    failure.cleanFailure()
    return True


def _rest(context: Context, coroutine: Coroutine[Any, Any, Any], awaited: Any) -> Generator[Any, Any, Any]:
    """What is left of a coroutine that waits."""
    try:
        while True:
            try:
                value = yield awaited
            except GeneratorExit:
                # Nobody waits for it any more, nor for the coroutine, which the collector closes too.
                raise
            # Whatever it is, it is for the coroutine.
            except BaseException as error:
                awaited = context.run(coroutine.throw, error)
            else:
                awaited = context.run(coroutine.send, value)
    except StopIteration as stop:
        return stop.value
