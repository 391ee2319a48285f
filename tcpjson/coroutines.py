"""Coroutines, at the price of a call where they wait for nothing."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred


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
    return False, context.run(Deferred.fromCoroutine, _rest(coroutine, awaited))


def _rest(coroutine: Coroutine[Any, Any, Any], awaited: Any) -> Generator[Any, Any, Any]:
    """What is left of a coroutine that waits."""
    try:
        while True:
            try:
                value = yield awaited
            except GeneratorExit:
                # Nobody waits for it any more, nor for the coroutine, which the collector may have closed.
                coroutine.close()
                raise
            # Whatever it is, it is for the coroutine.
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(value)
    except StopIteration as stop:
        return stop.value
