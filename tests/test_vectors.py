"""All of `tcpjson.vectors`, played over sockets as its docstring says; the examples of docs/protocol.rst."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import os
import re
import textwrap
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.auth import TokenChecker
from tcpjson.testing import MemoryServer
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


DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "protocol.rst"

# A line of "A session in bytes": who, the offset, up to 16 bytes, the same as text.
_DUMP = re.compile(r"^   ([SC]) ([0-9a-f]{4})  ((?:[0-9a-f]{2} {1,2}){1,16}) *(.*)$", re.MULTILINE)


def dumped(text: str) -> list[tuple[str, dict[int, bytes]]]:
    """The frames of a text in hexadecimal: who sent each, and the bytes of its lines by their offsets."""
    frames: list[tuple[str, dict[int, bytes]]] = []
    for who, offset, digits, _ in _DUMP.findall(text):
        if int(offset, 16) == 0:
            frames.append((who, {}))
        assert frames[-1][0] == who
        frames[-1][1][int(offset, 16)] = bytes.fromhex(digits)
    return frames


def payloads(text: str, section: str) -> list[dict[str, Any]]:
    """The JSON objects that stand in the examples of a section, each in a line behind C or S."""
    [body] = re.findall(rf"^{re.escape(section)}\n-+\n(.*?)^\d+\. ", text, re.MULTILINE | re.DOTALL)
    return [json.loads(line) for line in re.findall(r"^   [CS] (\{.*\})$", body, re.MULTILINE)]


class DocumentTests(SynchronousTestCase):
    """What docs/protocol.rst shows is what happens."""

    def test_a_session_in_bytes(self) -> None:
        text = DOCUMENT.read_text(encoding="utf-8")
        frames = dumped(text)
        self.assertEqual([who for who, _ in frames], ["S", "C", "S", "C", "S"])
        for *_, digits, shown in _DUMP.findall(text):
            characters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in bytes.fromhex(digits))
            self.assertEqual(shown, characters)
        server = MemoryServer()
        self.addCleanup(server.stop)
        peer = server.connect()
        for who, lines in frames:
            if who == "C":
                # When the ping comes, as the times in its answer say; nothing of what is sent is left out.
                server.advance(1.25 - server.clock.seconds())
                peer.send_bytes(b"".join(lines.values()))
                continue
            came = peer.transport.value()
            peer.transport.clear()
            self.assertEqual({at: came[at : at + len(line)] for at, line in lines.items()}, lines)
            self.assertEqual(max(lines) + len(lines[max(lines)]), len(came))

    def test_a_login_by_scram(self) -> None:
        """The values are those that follow from the password, by RFC 5802 and without any library for it."""
        text = DOCUMENT.read_text(encoding="utf-8")
        first, challenge, final, result = payloads(text, "6. Authentication")[2:]
        bare = first["data"].removeprefix("n,,")
        without_proof, _, proof = final["data"].rpartition(",p=")
        fields = dict(part.split("=", 1) for part in challenge["data"].split(","))
        rounds = int(fields["i"])
        salted = hashlib.pbkdf2_hmac("sha256", b"pencil", b64decode(fields["s"]), rounds)
        signed = ",".join((bare, challenge["data"], without_proof)).encode()
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        self.assertEqual(b64decode(proof), bytes(a ^ b for a, b in zip(client_key, signature, strict=True)))
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        verifier = b64encode(hmac.digest(server_key, signed, "sha256")).decode()
        self.assertEqual(result["data"], f"v={verifier}")
        self.assertEqual((bare.partition(",")[0], result["user"]), ("n=user", "user"))

    def test_a_compressed_frame(self) -> None:
        """The lines of Python of section 7."""
        [code] = re.findall(
            r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)",
            DOCUMENT.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        names: dict[str, Any] = {}
        exec(textwrap.dedent(code), names)
        server = MemoryServer()
        self.addCleanup(server.stop)
        peer = server.connect()
        peer.send({"type": "hello", "compression": ["zlib"]})
        peer.send_bytes(names["compressed"](b'{"type":"ping","timestamp":7}'))
        *_, pong = peer.receive()
        self.assertEqual((pong["type"], pong["ping_timestamp"]), ("pong", 7))

    def test_a_login_by_token(self) -> None:
        text = DOCUMENT.read_text(encoding="utf-8")
        ask, result = payloads(text, "6. Authentication")[:2]
        tokens = {result["user"]: ask["token"]}
        server = MemoryServer(checkers=[TokenChecker(token_file(tuple(tokens.items())))])
        self.addCleanup(server.stop)
        peer = server.connect()
        self.assertEqual(peer.receive()[0]["auth"], [ask["mechanism"]])
        peer.send(ask)
        self.assertEqual(peer.receive(), [result])
