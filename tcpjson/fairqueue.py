"""Blocking functions, off the reactor, a few at a time and in turn for each who asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

Result = TypeVar("Result")


class FairQueue:
    """
    Runs functions through `submit`, and takes the waiting ones one from each key in turn: who asks for many
    delays only itself.

    Nothing is kept of a function that has run or was cancelled, nor of a key without waiting functions.

    Args:
        submit: runs a function elsewhere; its Deferred fires with the outcome. It is never cancelled.
        workers: how many functions may run at once, 1 or more.
    """

    def __init__(self, submit: Callable[[Callable[[], Any]], Deferred[Any]], workers: int) -> None:
        self._submit = submit
        self._free = workers
        # The keys in the order of their turns, each with its functions in the order of their coming.
        self._waiting: OrderedDict[Hashable, dict[Deferred[Any], Callable[[], Any]]] = OrderedDict()

    def __len__(self) -> int:
        """How many functions wait."""
        return sum(map(len, self._waiting.values()))

    def run(self, key: Hashable, function: Callable[..., Result], *args: Any) -> Deferred[Result]:
        """
        Have `function(*args)` run when it is the turn of `key`.

        The Deferred fires with what it returns or raises. Cancelling it forgets a function that waits; one
        that runs is left to its end, and its outcome to nobody.
        """
        result: Deferred[Result] = Deferred(partial(self._forget, key))
        self._waiting.setdefault(key, {})[result] = partial(function, *args)
        self._start()
        return result

    def _forget(self, key: Hashable, result: Deferred[Any]) -> None:
        jobs = self._waiting.get(key, {})
        if jobs.pop(result, None) is not None and not jobs:
            del self._waiting[key]

    def _start(self) -> None:
        while self._free and self._waiting:
            key, jobs = self._waiting.popitem(last=False)
            result = next(iter(jobs))
            job = jobs.pop(result)
            if jobs:
                self._waiting[key] = jobs
            self._free -= 1
            maybeDeferred(self._submit, job).addBoth(self._done, result)

    def _done(self, outcome: Any, result: Deferred[Any]) -> None:
        self._free += 1
        self._start()
        if result.called:
            return
        if isinstance(outcome, Failure):
            result.errback(outcome)
        else:
            result.callback(outcome)
