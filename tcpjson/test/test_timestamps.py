"""The time of day in UTC, to the millisecond."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.test.hypo import given
from tcpjson.timestamps import Timestamps, format_timestamp

NOON = 1704110400


class Wall:
    """A clock on the wall that is set by hand."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def written(milliseconds: int) -> str:
    """A time in milliseconds since 1970, written by the standard library."""
    whole, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03}Z"


class FormatTests(SynchronousTestCase):
    """`format_timestamp`."""

    def test_examples(self) -> None:
        for seconds, expected in (
            (NOON, "2024-01-01T12:00:00.000Z"),
            (NOON + 0.5, "2024-01-01T12:00:00.500Z"),
            (NOON - 0.25, "2024-01-01T11:59:59.750Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_735_689_599.875, "2024-12-31T23:59:59.875Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000Z"),
        ):
            self.assertEqual(format_timestamp(seconds), expected)

    def test_no_rounding_into_the_next_second(self) -> None:
        self.assertEqual(format_timestamp(NOON + 0.9999), "2024-01-01T12:00:00.999Z")


class TimestampsTests(SynchronousTestCase):
    """`Timestamps`, which writes again only what changed."""

    def test_across_a_millisecond(self) -> None:
        wall = Wall(NOON + 0.0625)
        timestamps = Timestamps(wall)
        self.assertEqual(timestamps.now(), "2024-01-01T12:00:00.062Z")
        wall.seconds = NOON + 0.0627
        self.assertEqual(timestamps.now(), "2024-01-01T12:00:00.062Z")
        wall.seconds = NOON + 0.0633
        self.assertEqual(timestamps.now(), "2024-01-01T12:00:00.063Z")

    def test_across_a_second(self) -> None:
        wall = Wall(NOON + 0.9995)
        timestamps = Timestamps(wall)
        self.assertEqual(timestamps.now(), "2024-01-01T12:00:00.999Z")
        wall.seconds = NOON + 1
        self.assertEqual(timestamps.now(), "2024-01-01T12:00:01.000Z")
        # The same millisecond of another second.
        wall.seconds = NOON + 60
        self.assertEqual(timestamps.now(), "2024-01-01T12:01:00.000Z")

    def test_a_clock_that_is_set_back(self) -> None:
        wall = Wall(NOON + 60)
        timestamps = Timestamps(wall)
        timestamps.now()
        wall.seconds = NOON
        self.assertEqual(timestamps.now(), "2024-01-01T12:00:00.000Z")

    def test_at_the_beginning_of_time(self) -> None:
        self.assertEqual(Timestamps(Wall(0.0)).now(), "1970-01-01T00:00:00.000Z")

    @given(st.lists(st.integers(0, 4_102_444_800_000), min_size=1, max_size=6), st.integers(-1500, 1500))
    def test_any_times(self, times: list[int], step: int) -> None:
        """Whole milliseconds, with a microsecond added so that no float falls short of them."""
        wall = Wall(0.0)
        timestamps = Timestamps(wall)
        for time in times:
            for milliseconds in (time, max(0, time + step)):
                wall.seconds = milliseconds / 1000 + 1e-5
                self.assertEqual(timestamps.now(), written(milliseconds))
                self.assertEqual(format_timestamp(wall.seconds), written(milliseconds))
