"""All of `tcpjson.vectors`, played in memory; and the matchers, which must be able to fail."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import Interface, implementer

from tcpjson.auth import MAX_FAILURES, ITokenCredentials
from tcpjson.core.backoff import DELAYS
from tcpjson.core.limits import Limits
from tcpjson.testing import MemoryServer, Peer
from tcpjson.vectors import Matcher, Options, Piece, Vector, load, strict_json

# The least with which every vector can be played.
MAX_LENGTH = 131_072

# What is longer is not sent byte by byte in its middle.
LONG = 6_000

VECTORS = load()

Cut = Callable[[list[bytes]], list[bytes]]


def whole(pieces: list[bytes]) -> list[bytes]:
    """Each piece in a read of its own."""
    return pieces


def joined(pieces: list[bytes]) -> list[bytes]:
    """All in one read: behind each frame stands the next."""
    return [b"".join(pieces)]


def single(pieces: list[bytes]) -> list[bytes]:
    """Byte by byte."""
    data = b"".join(pieces)
    reads = [data[place : place + 1] for place in range(min(LONG, len(data)))]
    middle, end = data[LONG:-LONG], data[max(LONG, len(data) - LONG) :]
    reads += [middle[place : place + 1448] for place in range(0, len(middle), 1448)]
    return reads + [end[place : place + 1] for place in range(len(end))]


def compare(who: str, payloads: list[bytes], matchers: list[Matcher]) -> list[str]:
    """What is wrong with what one client got."""
    wrong = []
    if len(payloads) != len(matchers):
        wrong.append(f"{who}: {len(payloads)} frames, not {len(matchers)}")
    for number, (payload, matcher) in enumerate(zip(payloads, matchers, strict=False)):
        mismatch = matcher.mismatch(payload)
        if mismatch is not None:
            wrong.append(f"{who} {number}: {mismatch}")
    return wrong


@implementer(ICredentialsChecker)
class Tokens:
    """Knows the tokens of a vector."""

    credentialInterfaces: ClassVar[tuple[type[Interface], ...]] = (ITokenCredentials,)

    def __init__(self, tokens: dict[str, str]) -> None:
        self._names = {token: name for name, token in tokens.items()}

    def requestAvatarId(self, credentials: ITokenCredentials) -> Deferred[bytes | tuple[()]]:
        name = self._names.get(credentials.token)
        return fail(UnauthorizedLogin()) if name is None else succeed(name.encode())


def started(vector: Vector) -> MemoryServer:
    """A server as a vector wants it."""
    tokens = vector.options.tokens
    return MemoryServer(
        limits=Limits(max_length=MAX_LENGTH),
        strict=vector.options.strict,
        checkers=[Tokens(tokens)] if tokens else [],
    )


def pair(server: MemoryServer, vector: Vector) -> tuple[Peer, Peer]:
    """The second client of a vector, authenticated where that is asked for, and the sender."""
    second = welcomed(server)
    for token in list(vector.options.tokens.values())[:1]:
        second.send({"type": "auth", "mechanism": "token", "token": token})
        [result] = second.receive()
        assert result["status"] == "authenticated"
    return second, welcomed(server)


def send(server: MemoryServer, sender: Peer, reads: list[bytes]) -> None:
    """Have the sender send, and wait out the answers to failed logins."""
    for read in reads:
        sender.send_bytes(read)
    server.advance(sum(DELAYS[:MAX_FAILURES]))


def welcomed(server: MemoryServer) -> Peer:
    """A client that has read its welcome."""
    peer = server.connect()
    [welcome] = peer.receive()
    assert (welcome["type"], welcome["max_length"]) == ("welcome", MAX_LENGTH)
    return peer


def play(vector: Vector, cut: Cut = whole) -> list[str]:
    """Play a vector as the package says; returns what was wrong, in a line each."""
    server = started(vector)
    second, sender = pair(server, vector)
    send(server, sender, cut(vector.pieces(MAX_LENGTH)))
    wrong = compare("sender", sender.receive_payloads(), vector.expect)
    wrong += compare("other", second.receive_payloads(), vector.others)
    if sender.closed != (vector.then == "closed"):
        wrong.append("closed" if sender.closed else "not closed")
    for peer in (second,) if sender.closed else (second, sender):
        peer.send({"type": "ping", "timestamp": vector.name})
        replies = [(reply["type"], reply.get("ping_timestamp")) for reply in peer.receive()]
        if replies != [("pong", vector.name)]:
            wrong.append("a ping got no pong")
    server.stop()
    return [f"{vector.name}: {line}" for line in wrong]


class VectorTests(SynchronousTestCase):
    """The server against every vector."""

    def _assert_all_pass(self, cut: Cut) -> None:
        wrong = [line for vector in VECTORS for line in play(vector, cut)]
        self.assertEqual(wrong, [])

    def test_whole(self) -> None:
        self._assert_all_pass(whole)

    def test_joined(self) -> None:
        self._assert_all_pass(joined)

    def test_byte_by_byte(self) -> None:
        self._assert_all_pass(single)

    def test_bytes_are_only_cut(self) -> None:
        for pieces in ([b"abc", b"d"], [bytes(range(256)) * 100], [bytes(LONG)], [bytes(LONG * 2 + 1)]):
            for cut in (whole, joined, single):
                self.assertEqual(b"".join(cut(pieces)), b"".join(pieces))
        self.assertEqual(len(single([bytes(100)])), 100)

    def test_what_is_played_can_fail(self) -> None:
        """One answer less or more, another answer, another end."""
        [vector] = [vector for vector in VECTORS if vector.name == "text-plain"]
        self.assertEqual(play(vector), [])
        for changes in (
            {"expect": vector.expect[:-1]},
            {"expect": [*vector.expect, vector.expect[0]]},
            {"expect": vector.expect[::-1]},
            {"others": [vector.expect[0]]},
            {"then": "closed"},
            {"options": Options(strict=True)},
            {"options": Options(tokens={"alice": "sesame"})},
            {"send": vector.send[1:]},
            {"send": [*vector.send, "00"]},
        ):
            changed = msgspec.structs.replace(vector, **changes)
            self.assertNotEqual(play(changed), [], changes)

    def test_who_is_known_matters(self) -> None:
        """Other tokens, or none, lead to other answers."""
        [vector] = [vector for vector in VECTORS if vector.name == "auth-then-broadcast"]
        self.assertEqual(play(vector), [])
        [(name, token)] = vector.options.tokens.items()
        for tokens in ({}, {name: token + "x"}, {name + "x": token}):
            changed = msgspec.structs.replace(vector, options=Options(tokens=tokens))
            self.assertNotEqual(play(changed), [], tokens)


class DataTests(SynchronousTestCase):
    """The vectors as data."""

    def test_names_are_unique(self) -> None:
        counts = Counter(vector.name for vector in VECTORS)
        self.assertEqual([name for name, count in counts.items() if count > 1], [])

    def test_the_sections_of_a_classic_client_are_there(self) -> None:
        self.assertLessEqual({"1", "2", "3"}, {vector.section for vector in VECTORS})
        self.assertLessEqual(
            {vector.section for vector in VECTORS if vector.level == "classic"}, {"1", "2", "3", "9"}
        )
        self.assertEqual({vector.level for vector in VECTORS}, {"classic", "full"})

    def test_each_says_why(self) -> None:
        self.assertEqual([vector.name for vector in VECTORS if not vector.why.strip()], [])

    def test_each_sends_something(self) -> None:
        self.assertEqual([v.name for v in VECTORS if not b"".join(v.pieces(MAX_LENGTH))], [])

    def test_options_are_those_that_are_defined(self) -> None:
        self.assertEqual(
            {(vector.options.strict, bool(vector.options.tokens)) for vector in VECTORS},
            {(False, False), (True, False), (False, True)},
        )

    def test_failed_logins_stand_last(self) -> None:
        """In their file; a runner that plays one after another on one server is not slowed down for long."""
        failing = [
            any(matcher.fields.get("status") == "authentication_failed" for matcher in vector.expect)
            for vector in VECTORS
            if vector.options.tokens
        ]
        self.assertIn(True, failing)
        self.assertEqual(failing, sorted(failing))

    def test_pieces(self) -> None:
        for piece, expected in (
            (Piece(hex="6162", times=3), b"ababab"),
            (Piece(hex="61", fill=8), b"aa"),
            (Piece(oversize=1), b"\0\0\0\x0b"),
            (Piece(oversize=0), b"\0\0\0\x0a"),
        ):
            self.assertEqual(piece.encode(10), expected)

    def test_every_matcher_can_fail(self) -> None:
        """No expectation is so loose that any object fits it."""
        for vector in VECTORS:
            for matcher in (*vector.expect, *vector.others):
                self.assertIsNotNone(matcher.mismatch(b'{"type":"other"}'), vector.name)

    def test_every_part_of_every_matcher_can_fail(self) -> None:
        """Each field that is named must be there; each that is to be absent must not."""
        for vector in VECTORS:
            for payload, matcher in answers(vector):
                self.assertIsNone(matcher.mismatch(payload), vector.name)
                message = json.loads(payload)
                for name in {*matcher.fields, *matcher.numbers, *matcher.forms, *matcher.contains}:
                    for broken in (without(message, name), {**message, name: ["wrong"]}):
                        # As JSON the numbers may look different: they are looked at in another test.
                        changed = msgspec.json.encode(broken)
                        self.assertIsNotNone(matcher.mismatch(changed), f"{vector.name}: {name}")
                for name in matcher.absent:
                    changed = msgspec.json.encode({**message, name: None})
                    self.assertIsNotNone(matcher.mismatch(changed), f"{vector.name}: {name}")
                for text in matcher.without:
                    changed = payload[:-1] + b',"more":"' + text.encode() + b'"}'
                    self.assertIsNotNone(matcher.mismatch(changed), f"{vector.name}: {text}")


def answers(vector: Vector) -> list[tuple[bytes, Matcher]]:
    """What the server answers to the sender of a vector, and what it must be; very long answers left out."""
    server = started(vector)
    _, sender = pair(server, vector)
    send(server, sender, vector.pieces(MAX_LENGTH))
    server.stop()
    pairs = list(zip(sender.receive_payloads(), vector.expect, strict=True))
    return [(payload, matcher) for payload, matcher in pairs if len(payload) < LONG]


def without(message: dict[str, Any], name: str) -> dict[str, Any]:
    """A message less a field."""
    return {key: value for key, value in message.items() if key != name}


class MatcherTests(SynchronousTestCase):
    """Each part of a matcher: what fits, and what does not."""

    def _assert_fits(self, matcher: Matcher, good: list[str], bad: list[str]) -> None:
        for text in good:
            self.assertIsNone(matcher.mismatch(text.encode()), text)
        for text in bad:
            mismatch = matcher.mismatch(text.encode())
            self.assertIsNotNone(mismatch, text)
            self.assertNotIn("\n", mismatch or "")

    def test_fields(self) -> None:
        self._assert_fits(
            Matcher(fields={"a": 1, "b": {"x": [True, None], "y": ""}}),
            [
                '{"a":1,"b":{"x":[true,null],"y":""}}',
                '{"b":{"y":"","x":[true,null]},"a":1.0,"c":0}',
            ],
            [
                '{"a":1}',
                '{"a":true,"b":{"x":[true,null],"y":""}}',
                '{"a":"1","b":{"x":[true,null],"y":""}}',
                '{"a":1,"b":{"x":[1,null],"y":""}}',
                '{"a":1,"b":{"x":[true],"y":""}}',
                '{"a":1,"b":{"x":[null,true],"y":""}}',
                '{"a":1,"b":{"x":[true,null],"y":"","z":0}}',
                '{"a":1,"b":[]}',
                '{"a":1,"b":null}',
            ],
        )

    def test_null_is_not_absent(self) -> None:
        self._assert_fits(Matcher(fields={"a": None}), ['{"a":null}'], ["{}", '{"a":0}', '{"a":false}'])
        self._assert_fits(Matcher(absent=["a"]), ["{}", '{"b":{"a":1}}'], ['{"a":null}', '{"a":1}'])

    def test_numbers(self) -> None:
        self._assert_fits(
            Matcher(numbers={"a": ["0.10", "1e2"]}),
            ['{"a":[0.10,1e2]}', '{"a":[0.10,{"b":1E+2}]}', '{"a":["5",0.10,"\\"6",1e+2],"b":7}'],
            [
                '{"a":[0.1,1e2]}',
                '{"a":[0.10,100]}',
                '{"a":[1e2,0.10]}',
                '{"a":0.10}',
                '{"a":"0.10 1e2"}',
                "{}",
            ],
        )

    def test_forms(self) -> None:
        for form, good, bad in (
            (
                "timestamp",
                ['"2024-01-01T12:00:00.000Z"', '"2024-02-29T23:59:59.999Z"'],
                [
                    '"2024-01-01T12:00:00Z"',
                    '"2024-01-01T12:00:00.000"',
                    '"2024-01-01 12:00:00.000Z"',
                    '"2024-01-01T12:00:00.000+00:00"',
                    '"2023-02-29T12:00:00.000Z"',
                    '"2024-01-01T24:00:01.000Z"',
                    '"2024-01-01T12:00:00.000Z "',
                    "1704110400",
                    "null",
                ],
            ),
            ("string", ['""', '"a"'], ["null", "1", "[]"]),
            ("nonempty", ['"a"'], ['""', "null", "1"]),
            ("integer", ["0", "-5"], ["1.0", "1e2", "true", '"1"', "null"]),
            ("count", ["0", "7"], ["-1", "1.0", "false", '"1"']),
            ("address", ['"127.0.0.1:5000"', '"[::1]:5000"', '"unix:1"'], ['"::1:5000"', '"a"', '":1"', "1"]),
            ("object", ["{}", '{"a":1}'], ["[]", "null", '"{}"']),
            ("boolean", ["true", "false"], ["0", "null", '"true"']),
        ):
            matcher = msgspec.convert({"forms": {"a": form}}, Matcher)
            self._assert_fits(
                matcher, [f'{{"a":{text}}}' for text in good], ["{}", *(f'{{"a":{text}}}' for text in bad)]
            )

    def test_contains(self) -> None:
        self._assert_fits(
            Matcher(contains={"a": "$.x"}), ['{"a":"at $.x!"}'], ['{"a":"$.y"}', '{"a":["$.x"]}', "{}"]
        )

    def test_without(self) -> None:
        self._assert_fits(Matcher(without=["secret"]), ["{}"], ['{"secret":1}', '{"a":[{"b":"a secret"}]}'])

    def test_only_an_object_fits(self) -> None:
        self._assert_fits(Matcher(), ["{}"], ["[]", "1", '"a"', "null", "", "{", "{} {}", '{"a":NaN}'])

    def test_parts_are_all_looked_at(self) -> None:
        matcher = Matcher(fields={"a": 1}, forms={"b": "string"}, absent=["c"])
        self._assert_fits(matcher, ['{"a":1,"b":""}'], ['{"a":1}', '{"b":""}', '{"a":1,"b":"","c":1}'])


class StrictTests(SynchronousTestCase):
    """The parser that a runner checks the server's payloads with."""

    def test_what_it_takes(self) -> None:
        for text in (
            '{"a":[1,-2.5e3,"é\\ud83d\\ude00\\\\ud800",null,true]}',
            "[" * 66 + "]" * 66,
            str(2**64 - 1),
        ):
            self.assertEqual(strict_json(text.encode()), json.loads(text))

    def test_what_it_refuses(self) -> None:
        for payload in (
            b"",
            b"{",
            b"NaN",
            b"[Infinity]",
            b"[-Infinity]",
            b'"\xff"',
            b"\xef\xbb\xbf{}",
            rb'"\ud800"',
            rb'"\udc00\ud800"',
            rb'"\\\ud800"',
            rb'{"\ud800":1}',
            b"[" * 67 + b"]" * 67,
            b"18446744073709551616",
            b"-9223372036854775809",
            b"1e999",
            b'"\n"',
            b"01",
        ):
            self.assertRaises(ValueError, strict_json, payload)
