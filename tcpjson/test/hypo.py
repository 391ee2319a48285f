"""Hypothesis under trial: `given` for test methods, with the example that failed in what trial prints."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.strategies import SearchStrategy
from twisted.trial.unittest import FailTest

# Failing examples are tried again in the next run. Trial empties its working folder, and a checkout is to
# stay clean, so they are kept elsewhere.
_HOME = Path(tempfile.gettempdir()) / f"tcpjson-hypothesis-{os.getuid()}"
set_hypothesis_home_dir(_HOME)
_DATABASE = DirectoryBasedExampleDatabase(_HOME / "examples")


def given(
    *strategies: SearchStrategy[Any], examples: int = 100
) -> Callable[[Callable[..., None]], Callable[[Any], None]]:
    """
    As `hypothesis.given`, for a method of a `SynchronousTestCase`.

    Args:
        strategies: one for each parameter of the method.
        examples: how many are tried.
    """

    def decorate(method: Callable[..., None]) -> Callable[[Any], None]:
        # On a busy machine, time says nothing: there are no deadlines, and no complaint of slow examples.
        prepare = settings(
            max_examples=examples,
            deadline=None,
            database=_DATABASE,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        )
        run = prepare(hypothesis.given(*strategies)(method))

        @functools.wraps(method)
        def test(case: Any) -> None:
            try:
                run(case)
            except Exception as error:
                notes = getattr(error, "__notes__", ())
                # Trial prints the exception and leaves its notes out.
                shown = "\n".join([f"{type(error).__name__}: {error}", *notes])
                raise FailTest(shown).with_traceback(error.__traceback__) from None

        # `wraps` left word that the test takes the parameters of the method.
        del test.__wrapped__
        return test

    return decorate
