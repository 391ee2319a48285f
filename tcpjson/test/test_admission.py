"""No more connections than there may be, and as many as there may be."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.admission import Admission
from tcpjson.core.errors import ServerFull, TooManyConnections
from tcpjson.core.limits import Limits
from tcpjson.test.hypo import given

NETWORKS = ("192.0.2.1", "2001:db8::/64")


class AdmissionTests(SynchronousTestCase):
    """`Admission`."""

    def test_without_limits(self) -> None:
        admission = Admission(Limits())
        for _ in range(1000):
            self.assertIsNone(admission.enter())
            self.assertIsNone(admission.claim("192.0.2.1"))
        admission.release("192.0.2.1")
        admission.leave()
        self.assertEqual(admission.admitted, 999)
        self.assertEqual(len(admission._by_network), 0)

    def test_full(self) -> None:
        """Who is refused is not counted; when there is room again, the next is taken."""
        admission = Admission(Limits(max_connections=2))
        self.assertEqual([admission.enter(), admission.enter()], [None, None])
        for _ in range(3):
            self.assertIsInstance(admission.enter(), ServerFull)
        self.assertEqual(admission.admitted, 2)
        admission.leave()
        self.assertIsNone(admission.enter())
        self.assertIsInstance(admission.enter(), ServerFull)

    def test_too_many_from_one_network(self) -> None:
        """The others are not touched."""
        admission = Admission(Limits(max_connections_per_ip=1))
        self.assertIsNone(admission.claim("192.0.2.1"))
        self.assertIsInstance(admission.claim("192.0.2.1"), TooManyConnections)
        self.assertIsNone(admission.claim("192.0.2.2"))
        admission.release("192.0.2.1")
        self.assertIsNone(admission.claim("192.0.2.1"))

    def test_one_of_several_goes(self) -> None:
        """There is room for one more, not for two."""
        admission = Admission(Limits(max_connections_per_ip=2))
        admission.claim("192.0.2.1")
        admission.claim("192.0.2.1")
        admission.release("192.0.2.1")
        self.assertIsNone(admission.claim("192.0.2.1"))
        self.assertIsInstance(admission.claim("192.0.2.1"), TooManyConnections)

    def test_nothing_is_kept_of_who_is_gone(self) -> None:
        """Nor of who was refused: addresses come and go for years."""
        admission = Admission(Limits(max_connections_per_ip=1))
        for number in range(100):
            network = f"192.0.2.{number}"
            admission.claim(network)
            admission.claim(network)
            admission.release(network)
        self.assertEqual(len(admission._by_network), 0)

    @given(
        st.one_of(st.none(), st.integers(1, 5)),
        st.one_of(st.none(), st.integers(1, 3)),
        st.lists(st.tuples(st.sampled_from(["come", "go"]), st.sampled_from(NETWORKS)), max_size=60),
        examples=300,
    )
    def test_any_order(self, most: int | None, each: int | None, steps: list[tuple[str, str]]) -> None:
        """Connections come, claim, and go, as those of a server do."""
        admission = Admission(Limits(max_connections=most, max_connections_per_ip=each))
        there: Counter[str] = Counter()
        for step, network in steps:
            if step == "come":
                full = most is not None and there.total() >= most
                many = each is not None and there[network] >= each
                refusal = admission.enter()
                self.assertEqual(isinstance(refusal, ServerFull), full)
                if refusal is None:
                    refusal = admission.claim(network)
                    self.assertEqual(isinstance(refusal, TooManyConnections), many)
                    if refusal is None:
                        there[network] += 1
                    else:
                        admission.leave()
            elif there[network]:
                there[network] -= 1
                admission.release(network)
                admission.leave()
            self.assertEqual(admission.admitted, there.total())
