"""The limits: their defaults are the protocol's, and wrong ones are refused."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.limits import LARGEST_FRAME, Limits


class LimitsTests(SynchronousTestCase):
    """`Limits`."""

    def test_defaults(self) -> None:
        limits = Limits()
        self.assertEqual(limits.max_length, 1_048_576)
        self.assertEqual(limits.max_queue, 8 * 1_048_576)
        self.assertEqual(limits.frame_timeout, 30)
        self.assertEqual(limits.write_timeout, 10)

    def test_each_must_be_greater_than_nothing(self) -> None:
        for name in Limits.__struct_fields__:
            for value in (0, -1, -0.5, float("nan"), float("inf")):
                error = self.assertRaises(ValueError, Limits, **{name: value})
                self.assertEqual(str(error), f"{name} must be greater than 0")

    def test_small_values_are_taken(self) -> None:
        limits = Limits(max_length=1, max_queue=1, frame_timeout=0.001)
        self.assertEqual((limits.max_length, limits.max_queue, limits.frame_timeout), (1, 1, 0.001))

    def test_the_largest_frame(self) -> None:
        self.assertEqual(LARGEST_FRAME, 268_435_456)
        self.assertEqual(Limits(max_length=LARGEST_FRAME).max_length, LARGEST_FRAME)
        error = self.assertRaises(ValueError, Limits, max_length=LARGEST_FRAME + 1)
        self.assertEqual(str(error), "max_length must be at most 268435456")

    def test_a_long_frame_may_take_longer(self) -> None:
        """30 seconds, and one more for each 16 KiB announced (section 1)."""
        limits = Limits()
        self.assertEqual(limits.frame_allowance(0), 30)
        self.assertEqual(limits.frame_allowance(16 * 1024), 31)
        self.assertEqual(limits.frame_allowance(1_048_576), 94)
        self.assertEqual(Limits(frame_timeout=2).frame_allowance(32 * 1024), 4)

    def test_welcome_says_what_is_in_force(self) -> None:
        """Section 4; what is not enforced yet is not said."""
        limits = Limits(max_queue=1000, frame_timeout=1.5, write_timeout=2)
        self.assertEqual(limits.announced(), {"max_queue": 1000, "frame_timeout": 1.5, "write_timeout": 2})
