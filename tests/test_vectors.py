"""All of `tcpjson.vectors`, played over sockets as its docstring says."""

from __future__ import annotations

import json

from tcpjson.vectors import Matcher, Vector, load
from tests.harness import Ended, Peer, Server, ServerTestCase, shared

_SYNC = "the end of this vector"


class VectorTests(ServerTestCase):
    """Over TCP, each piece in a write of its own."""

    def setUp(self) -> None:
        self._seconds: dict[Server, Peer] = {}

    def play(self, vector: Vector) -> list[str]:
        """Play one; returns what was wrong, in a line each."""
        options = tuple(f"--{name}" for name, given in vector.options.items() if given)
        server = self.watch(shared(*options, ports=(self.port,)))
        # Each vector leaves it as new.
        second = self._seconds.get(server)
        if second is None:
            second = self._seconds[server] = self.connect(server)
        self.alone(second)
        sender = self.connect(server)
        try:
            wrong = self._converse(vector, sender, second)
        except (Ended, OSError, ValueError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        if wrong:
            del self._seconds[server]
            second.close()
        sender.close()
        return [f"{vector.name}: {line}" for line in wrong]

    def _converse(self, vector: Vector, sender: Peer, second: Peer) -> list[str]:
        try:
            for piece in vector.pieces(sender.welcome["max_length"]):
                sender.write(piece)
        except OSError:
            if vector.then != "closed":
                raise
        wrong = self._compare("sender", sender, vector.expect)
        wrong += self._compare("other", second, vector.others)
        # Only now is it sure that the other's copies were handed out: the answers to the sender came before.
        pong = second.ask({"type": "ping", "timestamp": _SYNC})
        if (pong.get("type"), pong.get("ping_timestamp")) != ("pong", _SYNC):
            wrong.append(f"the other got more: {json.dumps(pong)[:200]}")
        if vector.then == "open":
            pong = sender.ask({"type": "ping", "timestamp": _SYNC})
            if (pong.get("type"), pong.get("ping_timestamp")) != ("pong", _SYNC):
                wrong.append(f"the sender got more: {json.dumps(pong)[:200]}")
        else:
            wrong += [f"after the last: {json.dumps(message)[:200]}" for message in sender.rest()]
        return wrong

    def _compare(self, who: str, peer: Peer, matchers: list[Matcher]) -> list[str]:
        wrong = []
        for number, matcher in enumerate(matchers):
            mismatch = matcher.mismatch(peer.payload())
            if mismatch is not None:
                wrong.append(f"{who} {number}: {mismatch}")
        return wrong

    def test_all(self) -> None:
        """One after another; what fails is told of all of them."""
        vectors = load()
        self.assertGreater(len(vectors), 50)
        wrong = [line for vector in vectors for line in self.play(vector)]
        self.assertEqual(wrong, [])


class VectorProxyTests(VectorTests):
    """Behind a proxy, where bytes pass another layer."""

    proxied = True


class VectorTLSTests(VectorTests):
    """Over TLS."""

    tls = True
