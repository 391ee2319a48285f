"""The limits: their defaults are the protocol's, and wrong ones are refused."""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.limits import LARGEST_FRAME, PRE_AUTH_MAX_LENGTH, RATE_POLICIES, Limits


class LimitsTests(SynchronousTestCase):
    """`Limits`."""

    def test_defaults(self) -> None:
        limits = Limits()
        self.assertEqual(limits.max_length, 1_048_576)
        self.assertEqual(limits.max_queue, 8 * 1_048_576)
        self.assertEqual(limits.frame_timeout, 30)
        self.assertEqual(limits.write_timeout, 10)
        self.assertEqual(limits.auth_timeout, 5)
        self.assertEqual(limits.heartbeat, 25)
        self.assertEqual(limits.grace, 10)

    def test_off_by_default(self) -> None:
        limits = Limits()
        off = ("max_connections", "max_connections_per_ip", "messages_per_second", "bytes_per_second")
        for name in (*off, "message_burst", "byte_burst", "idle_timeout"):
            self.assertIsNone(getattr(limits, name), name)
        self.assertEqual(limits.rate_policy, "throttle")

    def test_each_must_be_greater_than_nothing(self) -> None:
        for name in set(Limits.__struct_fields__) - {"rate_policy"}:
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

    def test_a_burst_of_less_than_one(self) -> None:
        """Nobody could ever send one."""
        for name in ("message_burst", "byte_burst"):
            error = self.assertRaises(ValueError, Limits, **{name: 0.9})
            self.assertEqual(str(error), f"{name} must be at least 1")
        limits = Limits(message_burst=1, byte_burst=1)
        self.assertEqual((limits.message_burst, limits.byte_burst), (1, 1))

    def test_policies(self) -> None:
        self.assertEqual(RATE_POLICIES, ("throttle", "close", "observe"))
        for policy in RATE_POLICIES:
            self.assertEqual(Limits(rate_policy=policy).rate_policy, policy)
        for policy in ("", "Throttle", "drop"):
            error = self.assertRaises(ValueError, Limits, rate_policy=policy)
            self.assertEqual(str(error), "rate_policy must be one of throttle, close, observe")

    def test_a_changed_copy_is_checked(self) -> None:
        limits = Limits(max_connections=5)
        self.assertEqual(msgspec.structs.replace(limits, max_connections=None), Limits())
        self.assertRaises(ValueError, msgspec.structs.replace, limits, max_connections=0)


class AnnouncedTests(SynchronousTestCase):
    """What `welcome` says of the limits (section 4)."""

    def test_in_force(self) -> None:
        """What is not enforced is not said."""
        limits = Limits(max_queue=1000, frame_timeout=1.5, write_timeout=2)
        said = {"max_queue": 1000, "frame_timeout": 1.5, "write_timeout": 2}
        self.assertEqual(limits.announced(auth=False), said)
        limits = msgspec.structs.replace(limits, idle_timeout=7)
        self.assertEqual(limits.announced(auth=False), {**said, "idle_timeout": 7})

    def test_rates(self) -> None:
        """A client is told of those that slow it down or cut it off, each by itself."""
        one = Limits(messages_per_second=5, message_burst=50)
        usual = Limits().announced(auth=False)
        self.assertEqual(one.announced(auth=False), {**usual, "messages_per_second": 5})
        both = Limits(messages_per_second=5, bytes_per_second=6.5, rate_policy="close")
        rates = {"messages_per_second": 5, "bytes_per_second": 6.5}
        self.assertEqual(both.announced(auth=False), {**usual, **rates})
        observed = msgspec.structs.replace(both, rate_policy="observe")
        self.assertEqual(observed.announced(auth=False), usual)

    def test_authentication(self) -> None:
        self.assertEqual(PRE_AUTH_MAX_LENGTH, 4096)
        usual = Limits().announced(auth=False)
        self.assertEqual(
            Limits(auth_timeout=4).announced(auth=True),
            {**usual, "auth_timeout": 4, "pre_auth_max_length": 4096},
        )
        self.assertEqual(Limits(max_length=4097).announced(auth=True)["pre_auth_max_length"], 4096)
        self.assertEqual(Limits(max_length=100).announced(auth=True)["pre_auth_max_length"], 100)

    def test_only_what_section_4_names(self) -> None:
        everything = Limits(
            idle_timeout=1,
            messages_per_second=1,
            bytes_per_second=1,
            max_connections=1,
            max_connections_per_ip=1,
        )
        self.assertEqual(
            set(everything.announced(auth=True)),
            {"max_queue", "messages_per_second", "bytes_per_second", "frame_timeout"}
            | {"write_timeout", "idle_timeout", "auth_timeout", "pre_auth_max_length"},
        )
