"""All of `tcpjson.vectors`, played over sockets as its docstring says."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence

from tcpjson.vectors import Matcher, Options, Vector, load
from tests.harness import Ended, Peer, Server, ServerTestCase, folder, shared

_SYNC = "the end of this vector"


@functools.cache
def token_file(tokens: tuple[tuple[str, str], ...]) -> str:
    """A file with the hashes of tokens, as `--auth token:FILE` reads it."""
    lines = [f"{name}:{hashlib.sha256(token.encode()).hexdigest()}\n" for name, token in tokens]
    path = folder() / f"tokens-{hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]}"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        file.writelines(lines)
    return str(path)


def arguments(options: Options) -> tuple[str, ...]:
    """The options of a vector, as the command line has them."""
    given: tuple[str, ...] = ("--strict",) if options.strict else ()
    if options.tokens:
        # Also on the ports in the clear.
        given += ("--auth", f"token:{token_file(tuple(options.tokens.items()))}", "--allow-plain-auth")
    return given


class VectorTests(ServerTestCase):
    """Over TCP, each piece in a write of its own."""

    def setUp(self) -> None:
        self._seconds: dict[Server, Peer] = {}

    def play(self, vector: Vector) -> list[str]:
        """Play one; returns what was wrong, in a line each."""
        server = self.watch(shared(*arguments(vector.options), ports=(self.port,)))
        # Each vector leaves it as new.
        second = self._seconds.get(server)
        if second is None:
            second = self._seconds[server] = self.connect(server)
            for token in list(vector.options.tokens.values())[:1]:
                result = second.ask({"type": "auth", "mechanism": "token", "token": token})
                self.assertEqual(result["status"], "authenticated")
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
        early: list[bytes] = []
        try:
            first, *others = vector.pieces(sender.welcome["max_length"])
            sender.write(first)
            if vector.section == "7" and others:
                while not sender.compresses:
                    early.append(sender.payload())
            for piece in others:
                sender.write(piece)
        except OSError:
            if vector.then != "closed":
                raise
        wrong = self._compare("sender", sender, vector.expect, early)
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

    def _compare(
        self, who: str, peer: Peer, matchers: list[Matcher], early: Sequence[bytes] = ()
    ) -> list[str]:
        """Compare what a client got, and gets, with what it is to get."""
        wrong = []
        for number, matcher in enumerate(matchers):
            mismatch = matcher.mismatch(early[number] if number < len(early) else peer.payload())
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
