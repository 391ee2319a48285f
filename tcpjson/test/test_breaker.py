"""The circuit breaker: its table, what counts, and when."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.client.breaker import CircuitBreaker
from tcpjson.core.breaker import (
    TRANSITIONS,
    Breaker,
    Call,
    CircuitOpen,
    Event,
    Figures,
    State,
    unwell,
)
from tcpjson.core.errors import (
    CODES,
    AuthenticationFailed,
    BadMessage,
    ClientError,
    Disconnected,
    Forbidden,
    Internal,
    QueueFull,
    RequestTimeout,
    TooLarge,
    error_of,
)
from tcpjson.test.hypo import given

# Written once more, by hand: from a state, by an event, to a state.
STEPS = """
    closed     tripped  open
    open       rested   half_open
    half_open  healed   closed
    half_open  tripped  open
"""

FAILURES, SLOW, RESET = 3, 4.0, 16.0


class TableTests(SynchronousTestCase):
    """The steps."""

    def test_each_step_and_no_other(self) -> None:
        rows = [line.split() for line in STEPS.split("\n") if line.strip()]
        self.assertEqual(
            TRANSITIONS, {(State(state), Event(event)): State(after) for state, event, after in rows}
        )

    def test_every_state_is_left_and_reached(self) -> None:
        self.assertEqual({state for state, _ in TRANSITIONS}, set(State))
        self.assertEqual(set(TRANSITIONS.values()), set(State))


class UnwellTests(SynchronousTestCase):
    """What errors say of a server."""

    def test_the_client_s_own_errors(self) -> None:
        self.assertEqual([unwell(error) for error in (Disconnected(), RequestTimeout())], [True, True])
        others = (
            QueueFull(),
            AuthenticationFailed(),
            TypeError(),
            ValueError(),
            CancelledError(),
            KeyError(),
        )
        self.assertEqual({unwell(error) for error in (*others, GeneratorExit())}, {None})

    def test_what_the_server_says(self) -> None:
        says = {code: unwell(error_of({"type": "error", "code": code})) for code in CODES}
        self.assertEqual(
            {code for code, said in says.items() if said},
            {
                "internal",
                "timeout",
                "going_away",
                "slow_consumer",
                "server_full",
                "too_many_connections",
                "rate_limited",
            },
        )
        self.assertEqual({code for code, said in says.items() if said is None}, {"too_large"})

    def test_a_code_of_its_own(self) -> None:
        """It has answered."""
        self.assertIs(unwell(error_of({"code": "no_such_game"})), False)
        self.assertIs(unwell(error_of({})), False)


class BreakerTests(SynchronousTestCase):
    """`Breaker`."""

    def setUp(self) -> None:
        self.breaker = Breaker(failures=FAILURES, slow=SLOW, reset=RESET, now=0)

    def call(self, failed: bool | None, now: float) -> None:
        """A call that takes no time."""
        self.breaker.ended(self.breaker.begin(now), failed, now)

    def fails(self, now: float, count: int = FAILURES) -> None:
        """So many calls fail."""
        for _ in range(count):
            self.call(True, now)

    def state(self, now: float) -> State:
        """The state at a time."""
        return self.breaker.figures(now).state

    def rejects(self, now: float) -> float:
        """A call must not be let through; returns when to try again."""
        error = self.assertRaises(CircuitOpen, self.breaker.begin, now)
        self.assertEqual(error.retry_after, wait := self.breaker.wait(now))
        return wait

    def test_closed_at_first(self) -> None:
        self.assertEqual(self.breaker.figures(5), Figures(State.CLOSED, 0, 0, 0, 0, 0, 0))
        self.assertEqual(self.breaker.wait(5), 0)

    def test_failures_in_a_row_open_it(self) -> None:
        self.fails(1, FAILURES - 1)
        self.assertIs(self.state(1), State.CLOSED)
        self.call(True, 2)
        self.assertEqual(self.breaker.figures(3), Figures(State.OPEN, 2, 1, FAILURES, FAILURES, 0, 0))

    def test_a_success_begins_the_row_anew(self) -> None:
        self.fails(0, FAILURES - 1)
        self.call(False, 0)
        self.fails(0, FAILURES - 1)
        self.assertIs(self.state(0), State.CLOSED)
        self.fails(0, 1)
        self.assertIs(self.state(0), State.OPEN)

    def test_what_says_nothing_counts_neither_way(self) -> None:
        self.fails(0, FAILURES - 1)
        self.call(None, 0)
        self.assertIs(self.state(0), State.CLOSED)
        self.fails(0, 1)
        self.assertEqual(self.breaker.figures(0).failures, FAILURES)
        self.assertIs(self.state(0), State.OPEN)

    def test_open_lets_nothing_through(self) -> None:
        self.fails(2)
        self.assertEqual(self.rejects(2), RESET)
        self.assertEqual(self.rejects(2 + RESET - 0.5), 0.5)
        figures = self.breaker.figures(2 + RESET - 0.5)
        self.assertEqual((figures.calls, figures.rejected, figures.since), (FAILURES, 2, 2))

    def test_one_trial_after_a_while(self) -> None:
        self.fails(2)
        self.assertIs(self.state(2 + RESET - 0.125), State.OPEN)
        figures = self.breaker.figures(2 + RESET + 3)
        self.assertEqual((figures.state, figures.since), (State.HALF_OPEN, 2 + RESET))
        self.breaker.begin(30)
        self.assertEqual(self.rejects(30), SLOW)
        self.assertEqual(self.rejects(31), SLOW - 1)

    def test_a_good_trial_closes_it(self) -> None:
        self.fails(2)
        self.call(False, 20)
        self.assertIs(self.state(20), State.CLOSED)
        self.assertEqual(self.breaker.figures(21).since, 20)
        # The failures of before are forgotten.
        self.fails(21, FAILURES - 1)
        self.assertIs(self.state(21), State.CLOSED)

    def test_a_bad_trial_opens_it(self) -> None:
        self.fails(2)
        self.call(True, 20)
        figures = self.breaker.figures(20)
        self.assertEqual((figures.state, figures.since, figures.opened), (State.OPEN, 20, 2))
        self.assertEqual(self.rejects(20), RESET)
        self.assertEqual(self.breaker.wait(20 + RESET), 0)

    def test_a_trial_that_says_nothing_is_free_again(self) -> None:
        self.fails(2)
        self.call(None, 20)
        self.assertEqual((self.state(20), self.breaker.wait(20)), (State.HALF_OPEN, 0))
        self.call(False, 20)
        self.assertIs(self.state(20), State.CLOSED)

    def test_a_slow_call_fails_while_it_lasts(self) -> None:
        calls = [self.breaker.begin(now) for now in range(FAILURES)]
        self.assertIs(self.state(FAILURES - 1 + SLOW - 0.125), State.CLOSED)
        figures = self.breaker.figures(100)
        self.assertEqual((figures.failures, figures.slow, figures.opened), (FAILURES, FAILURES, 1))
        # It was as open as long as if somebody had looked at once.
        self.assertEqual((figures.state, figures.since), (State.HALF_OPEN, FAILURES - 1 + SLOW + RESET))
        for call in calls:
            self.breaker.ended(call, True, 100)
        self.assertEqual(self.breaker.figures(100), figures, "each was counted")

    def test_slow_and_then_well_has_failed(self) -> None:
        calls = [self.breaker.begin(0) for _ in range(FAILURES)]
        for call in calls:
            self.breaker.ended(call, False, SLOW)
        figures = self.breaker.figures(SLOW)
        self.assertEqual((figures.state, figures.slow), (State.OPEN, FAILURES))

    def test_just_in_time(self) -> None:
        for _ in range(FAILURES):
            self.breaker.ended(self.breaker.begin(0), False, SLOW - 0.125)
        self.assertEqual(self.breaker.figures(100), Figures(State.CLOSED, 0, 0, FAILURES, 0, 0, 0))

    def test_a_slow_trial_opens_it(self) -> None:
        self.fails(0)
        trial = self.breaker.begin(RESET)
        figures = self.breaker.figures(RESET + SLOW)
        self.assertEqual((figures.state, figures.since, figures.opened), (State.OPEN, RESET + SLOW, 2))
        # Nobody looked for long: it is half open again, and a late success decides nothing.
        self.breaker.ended(trial, False, 100)
        figures = self.breaker.figures(100)
        self.assertEqual((figures.state, figures.since), (State.HALF_OPEN, RESET + SLOW + RESET))

    def test_what_began_before_decides_nothing(self) -> None:
        """Of many under way, some fail; what the others lead to is counted, and no more."""
        breaker = Breaker(failures=2, slow=1000, reset=RESET, now=0)
        calls = [breaker.begin(0) for _ in range(12)]
        for call in calls[:2]:
            breaker.ended(call, True, 1)
        breaker.ended(calls[2], False, 2)
        self.assertIs(breaker.figures(2).state, State.OPEN)
        trial = breaker.begin(1 + RESET)
        for call, failed in zip(calls[3:6], (False, True, None), strict=True):
            breaker.ended(call, failed, 1 + RESET)
        self.assertGreater(breaker.wait(1 + RESET), 0, "the trial is under way")
        breaker.ended(trial, False, 1 + RESET)
        self.assertIs(breaker.figures(1 + RESET).state, State.CLOSED)
        for call in calls[6:]:
            breaker.ended(call, True, 2 + RESET)
        figures = breaker.figures(2 + RESET)
        self.assertEqual((figures.state, figures.failures, figures.opened), (State.CLOSED, 9, 1))

    def test_a_call_ends_once(self) -> None:
        call = self.breaker.begin(0)
        for _ in range(FAILURES):
            self.breaker.ended(call, True, 0)
        self.assertEqual(self.breaker.figures(0).failures, 1)

    def test_nothing_is_kept_of_calls_that_never_end(self) -> None:
        for now in range(1000):
            try:
                self.breaker.begin(now)
            except CircuitOpen:
                continue
        self.assertLessEqual(len(self.breaker._running), SLOW)

    def test_bounds(self) -> None:
        for wrong in (
            {"failures": 0},
            {"slow": 0.0},
            {"slow": float("inf")},
            {"slow": float("nan")},
            {"reset": -1.0},
            {"reset": float("inf")},
        ):
            error = self.assertRaises(ValueError, Breaker, now=0, **wrong)
            self.assertIn(next(iter(wrong)), str(error))

    @given(
        st.lists(
            st.one_of(
                st.just("begin"),
                st.integers(1, 40).map(lambda eighths: eighths / 8),
                st.tuples(st.integers(0, 5), st.sampled_from([True, True, False, None])),
            ),
            max_size=80,
        ),
        examples=300,
    )
    def test_as_with_timers(self, steps: list[str | float | tuple[int, bool | None]]) -> None:
        """It is at each time what one is that is told of each moment by a timer."""
        model = Model()
        breaker = Breaker(failures=2, slow=2, reset=3, now=0)
        running: list[tuple[Call, Running]] = []
        for step in steps:
            now = model.clock.seconds()
            if isinstance(step, float):
                model.clock.pump([0.125] * int(step * 8))
            elif isinstance(step, tuple):
                index, failed = step
                if index < len(running):
                    call, shadow = running.pop(index)
                    breaker.ended(call, failed, now)
                    model.ended(shadow, failed)
            else:
                try:
                    call = breaker.begin(now)
                except CircuitOpen as error:
                    self.assertGreater(error.retry_after, 0)
                    self.assertIsNone(model.begin())
                else:
                    begun = model.begin()
                    assert begun is not None
                    running.append((call, begun))
            # Looking changes nothing: sometimes nobody does.
            if isinstance(step, tuple):
                self.assertEqual(breaker.figures(model.clock.seconds()), model.figures())
        self.assertEqual(breaker.figures(model.clock.seconds()), model.figures())


class Running:
    """A call of `Model`."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.over = False


class Model:
    """A breaker with a timer for each thing that time brings; opens by 2 failures, or 2 seconds, for 3."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.state = State.CLOSED
        self.since = 0.0
        self.turn = self.row = self.opened = self.calls = self.failures = self.slow = self.rejected = 0
        self.trials = 0

    def figures(self) -> Figures:
        """As of `Breaker`."""
        return Figures(
            self.state, self.since, self.opened, self.calls, self.failures, self.slow, self.rejected
        )

    def become(self, state: State) -> None:
        """Change the state."""
        self.state, self.since, self.row, self.trials = state, self.clock.seconds(), 0, 0
        self.turn += 1
        if state is State.OPEN:
            self.opened += 1
            self.clock.callLater(3, self.become, State.HALF_OPEN)

    def begin(self) -> Running | None:
        """A call, if it may be."""
        if self.state is State.OPEN or (self.state is State.HALF_OPEN and self.trials):
            self.rejected += 1
            return None
        self.calls += 1
        self.trials += 1
        call = Running(self.turn)
        self.clock.callLater(2, self.late, call)
        return call

    def late(self, call: Running) -> None:
        """It has lasted long, or is over."""
        if not call.over:
            self.slow += 1
            self.ended(call, True)

    def ended(self, call: Running, failed: bool | None) -> None:
        """It has ended."""
        if call.over:
            return
        call.over = True
        self.failures += failed is True
        if call.turn == self.turn:
            if failed is None:
                self.trials = 0
            elif failed:
                self.row += 1
                if self.row == 2 or self.state is State.HALF_OPEN:
                    self.become(State.OPEN)
            else:
                self.row = 0
                if self.state is State.HALF_OPEN:
                    self.become(State.CLOSED)


class CircuitBreakerTests(SynchronousTestCase):
    """`CircuitBreaker`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.breaker = CircuitBreaker(self.clock, failures=FAILURES, slow=SLOW, reset=RESET)

    def given(self, deferred: Deferred[Any]) -> Deferred[Any]:
        """A function that returns what it is given."""
        return deferred

    def open(self) -> None:
        """Have it opened."""
        for _ in range(FAILURES):
            self.failureResultOf(self.breaker.call(fail, Disconnected()), Disconnected)
        self.assertIs(self.breaker.state, State.OPEN)

    def test_the_outcome(self) -> None:
        async def coroutine(value: int) -> int:
            return await succeed(value)

        def value(*, of: int) -> int:
            return of

        self.assertEqual(self.successResultOf(self.breaker.call(value, of=1)), 1)
        self.assertEqual(self.successResultOf(self.breaker.call(succeed, 2)), 2)
        self.assertEqual(self.successResultOf(self.breaker.call(coroutine, 3)), 3)
        self.assertEqual(self.breaker.figures().calls, 3)

    def test_the_error(self) -> None:
        async def coroutine(error: Exception) -> None:
            raise error

        def function(error: Exception) -> None:
            raise error

        error = Internal("x")
        for way in (coroutine, function, fail):
            self.assertIs(self.failureResultOf(self.breaker.call(way, error)).value, error)
        self.assertEqual((self.breaker.figures().failures, self.breaker.state), (3, State.OPEN))

    def test_open_calls_nothing(self) -> None:
        called: list[int] = []
        self.open()
        self.clock.advance(1)
        failure = self.failureResultOf(self.breaker.call(called.append, 1), CircuitOpen)
        self.assertEqual(failure.value.retry_after, RESET - 1)
        self.assertIn("15 seconds", str(failure.value))
        self.assertIsInstance(failure.value, ClientError)
        self.assertEqual((called, self.breaker.wait(), self.breaker.figures().rejected), ([], RESET - 1, 1))
        self.clock.advance(RESET - 1)
        self.assertIs(self.breaker.state, State.HALF_OPEN)
        self.successResultOf(self.breaker.call(called.append, 2))
        self.assertEqual((called, self.breaker.state), ([2], State.CLOSED))

    def test_the_caller_s_errors_do_not_open_it(self) -> None:
        for error in (Forbidden(), BadMessage(), TooLarge(), ValueError(), QueueFull()) * FAILURES:
            self.failureResultOf(self.breaker.call(fail, error), type(error))
        self.assertEqual((self.breaker.state, self.breaker.figures().failures), (State.CLOSED, 0))

    def test_a_choice_of_one_s_own(self) -> None:
        breaker = CircuitBreaker(
            self.clock, failures=1, slow=SLOW, reset=RESET, unwell=lambda error: isinstance(error, KeyError)
        )
        self.failureResultOf(breaker.call(fail, Disconnected()), Disconnected)
        self.assertIs(breaker.state, State.CLOSED)
        self.failureResultOf(breaker.call(fail, KeyError()), KeyError)
        self.assertIs(breaker.state, State.OPEN)

    def test_slow(self) -> None:
        """As soon as they are, and though they end well."""
        waiting: list[Deferred[str]] = [Deferred() for _ in range(FAILURES)]
        results = [self.breaker.call(partial(self.given, call)) for call in waiting]
        self.clock.advance(SLOW)
        self.failureResultOf(self.breaker.call(succeed, 1), CircuitOpen)
        for call in waiting:
            call.callback("late")
        self.assertEqual([self.successResultOf(result) for result in results], ["late"] * FAILURES)
        self.assertEqual((self.breaker.state, self.breaker.figures().slow), (State.OPEN, FAILURES))

    def test_cancelled(self) -> None:
        """What the function returned is cancelled; it counts neither way, and a trial is free again."""
        for _ in range(FAILURES):
            waiting: Deferred[None] = Deferred()
            result = self.breaker.call(self.given, waiting)
            result.cancel()
            self.assertTrue(waiting.called)
            self.failureResultOf(result, CancelledError)
        self.assertEqual((self.breaker.state, self.breaker.figures().failures), (State.CLOSED, 0))
        self.open()
        self.clock.advance(RESET)
        trial = self.breaker.call(self.given, Deferred())
        self.failureResultOf(self.breaker.call(succeed, 1), CircuitOpen)
        trial.cancel()
        self.failureResultOf(trial, CancelledError)
        self.assertEqual(self.successResultOf(self.breaker.call(succeed, 1)), 1)

    def test_cancelled_coroutine(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def coroutine() -> None:
            await waiting

        result = self.breaker.call(coroutine)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(self.breaker.figures().failures, 0)

    def test_calls_within_calls(self) -> None:
        """The outer one is no trial of its own."""
        self.open()
        self.clock.advance(RESET)
        result = self.breaker.call(lambda: self.breaker.call(succeed, 1))
        self.failureResultOf(result, CircuitOpen)
        self.assertIs(self.breaker.state, State.HALF_OPEN, "nobody was asked")
        self.assertEqual(self.successResultOf(self.breaker.call(succeed, 1)), 1)

    def test_begun_and_ended_by_hand(self) -> None:
        for error in (Disconnected(), None, Disconnected(), Disconnected(), Disconnected()):
            self.breaker.ended(self.breaker.begin(), error)
        self.assertIs(self.breaker.state, State.OPEN)
        self.assertRaises(CircuitOpen, self.breaker.begin)

    def test_no_timers(self) -> None:
        self.breaker.call(self.given, Deferred())
        self.open()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_failure_is_not_held(self) -> None:
        failure = Failure(Disconnected())
        self.breaker.call(fail, failure).addErrback(lambda failure: None)
        gone = weakref.ref(failure)
        del failure
        gc.collect()
        self.assertIsNone(gone())
