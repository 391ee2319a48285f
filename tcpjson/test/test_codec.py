"""Whatever bytes come, each payload becomes one message, and nothing is raised."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import numbers
import uuid
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, Protocol, TypedDict, TypeVar, cast

import msgspec
from hypothesis import strategies as st
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, defstruct
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import classic
from tcpjson.core.codec import Codec, check_fields
from tcpjson.core.errors import Forbidden
from tcpjson.core.messages import Auth, Broadcast, Custom, Echo, GetStats, Hello, Message, Ping, Refused, Text
from tcpjson.handlers import Router, Session
from tcpjson.test import oracle
from tcpjson.test.hypo import given
from tcpjson.testing import MemoryServer


class Move(Message, tag="move"):
    """A user's own message."""

    x: int
    name: str = ""
    path: tuple[dict[str, float], ...] = ()


TYPES: list[type[Message]] = [Ping, Echo, Broadcast, GetStats, Auth, Move]
TAGS = {"ping", "echo", "broadcast", "get_stats", "auth", "move"}

lax = Codec(TYPES)
strict = Codec(TYPES, strict=True)


def decode(payload: bytes, codec: Codec = lax) -> Message:
    """The message of one payload."""
    [message] = codec.decode([payload])
    return message


def code(message: Message) -> str:
    """The code of a refusal, or the name of the message's class."""
    return message.error.code if isinstance(message, Refused) else type(message).__name__


# JSON texts, and others that are nearly so; which of them are, the oracle says.
GRAMMAR = [
    *("0", "-0", "1", "-1", "10", "1.0", "1.50", "1e5", "1E5", "1e+5", "1e-5", "-1.5e-5", "0e0", "0.0E-0"),
    *("00", "01", "-01", "+1", "-", "--1", "- 1", ".5", "-.5", "1.", "1.e5", "1e", "1e+", "1e5.5", "1ee5"),
    *(
        "1 2",
        "1,2",
        "1_000",
        "0x10",
        "1f",
        "1n",
        "\u0661",
        "NaN",
        "-NaN",
        "nan",
        "Infinity",
        "-Infinity",
        "1.0.0",
    ),
    *("true", "false", "null", "True", "TRUE", "tru", "truee", "nul", "undefined", "None", "void 0"),
    *('""', '"a"', '"é"', '"😀"', '"\x7f"', '" "', r'"\""', r'"\\"', r'"\/"', r'"\b\f\n\r\t"', '"\'"'),
    *(r'"\u0041"', r'"\u00e9"', r'"\uD83D\uDE00"', r'"\ud83d\ude00"', r'"\u0000"', '"\u2028\u2029"'),
    *(
        '"',
        '"a',
        'a"',
        "'a'",
        '"\x00"',
        '"\x1f"',
        '"\n"',
        '"\t"',
        r'"\x41"',
        r'"\a"',
        r'"\v"',
        r'"\ "',
        r'"\"',
    ),
    *(r'"\u"', r'"\u1"', r'"\u12"', r'"\u123"', r'"\u123g"', r'"\u+123"', r'"\U0041"', r'"\u{41}"'),
    *(r'"\ud800"', r'"\udc00"', r'"\udc00\ud800"', r'"\ud800\ud800"', r'"\ud800x"', r'"\ud800\n"'),
    *(r'"\ud83d\u0041"', r'"\ud83dde00"', r'"\udfff"', r'"\uDBFF"', r'"\ud83d\ude0"', r'"\ud83d😀"'),
    *("[]", "[ ]", "[1]", "[1,2]", "[\n1\t,\r2 ]", "[[],[]]", "[", "]", "[1", "[1,", "[,]", "[,1]", "[1,]"),
    *("[1 2]", "[1;2]", "[1,,2]", "[1]]", "[[1]", "[1}", "[1:2]", "(1)", "[1]x", "[1],", "[1]\x00"),
    *("{}", "{ }", '{"a":1}', '{"a" : 1 , "b" : 2}', '{"":0}', '{"a":{"b":[]}}', r'{"\u0061":1}', '{"é":1}'),
    *("{", "}", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "{,}", "{a:1}", "{'a':1}", "{1:1}"),
    *('{"a" 1}', '{"a"::1}', '{"a":1 "b":2}', '{"a":1;"b":2}', '{"a":1}}', '{{"a":1}}', '{"a":}', "{:1}"),
    *('{"a":1}x', '{"a",1}', "{null:1}", '{["a"]:1}', r'{"\ud800":1}', '{"a\n":1}', '{"a\x00":1}'),
    *(
        "/**/1",
        "1/**/",
        "// x\n1",
        "#1",
        "1;",
        "\v1",
        "\f1",
        "\xa01",
        "\u30001",
        "\ufeff1",
        "1\ufeff",
        "\x001",
    ),
    *("", " ", "\n", " 1", "1 ", "\r\n\t 1\t\r\n ", " \x0c{}", "\r{", "\t[1", "\n{x}"),
]


class GrammarTests(SynchronousTestCase):
    """What is JSON and what is not, as the standard library has it."""

    def setUp(self) -> None:
        self.valid = [text for text in GRAMMAR if oracle.is_json(text)]

    def test_the_table_has_both_kinds(self) -> None:
        self.assertIn('"😀"', self.valid)
        self.assertNotIn("01", self.valid)
        self.assertGreater(len(self.valid), 50)
        self.assertGreater(len(GRAMMAR) - len(self.valid), 100)

    def _assert_decoded(self, around: str, kind: str, codec: Codec = lax) -> None:
        for text in GRAMMAR:
            message = decode((around % text).encode(), codec)
            # All that is no JSON within an object is bad_json (section 1).
            expected = kind if text in self.valid else "bad_json"
            self.assertEqual(code(message), expected, text)

    def test_as_a_value_that_comes_back(self) -> None:
        self._assert_decoded('{"type":"echo","content":%s}', "Echo")

    def test_as_a_value_that_is_passed_over(self) -> None:
        self._assert_decoded('{"extra":%s,"type":"ping"}', "Ping")
        self._assert_decoded('{"extra":[{"b":%s}],"type":"ping"}', "Ping")

    def test_in_an_object_of_another_type(self) -> None:
        self._assert_decoded('{"type":"other","a":%s}', "Custom")
        self._assert_decoded('{"a":%s}', "Custom")
        self._assert_decoded('{"type":"other","a":%s}', "unknown_type", strict)

    def test_in_an_array(self) -> None:
        for text in GRAMMAR:
            expected = "Text" if oracle.is_json(f"[{text}]") else "bad_json"
            self.assertEqual(code(decode(f"[{text}]".encode())), expected, text)

    def test_as_a_name(self) -> None:
        for text in GRAMMAR:
            expected = "Custom" if oracle.is_json(f"{{{text}:1}}") else "bad_json"
            self.assertEqual(code(decode(f"{{{text}:1}}".encode())), expected, text)

    def test_alone(self) -> None:
        """What does not begin with a brace or a bracket is text, valid or not (sections 1 and 3)."""
        for text in GRAMMAR:
            message, first = decode(text.encode()), text.lstrip(" \t\r\n")[:1]
            if not text:
                expected = "bad_frame"
            elif text.startswith("\ufeff") or (text not in self.valid and first in ("{", "[")):
                expected = "bad_json"
            else:
                expected = "Custom" if first == "{" else "Text"
            self.assertEqual(code(message), expected, text)
            if isinstance(message, Text):
                # The text as it came, or the JSON text of its value.
                self.assertEqual(isinstance(message.original, Raw), text in self.valid, text)
                original = message.original
                self.assertEqual(original if isinstance(original, str) else bytes(original).decode(), text)

    def test_alone_and_strict(self) -> None:
        for text in GRAMMAR:
            if not text:
                expected = "bad_frame"
            elif text not in self.valid:
                expected = "bad_json"
            else:
                expected = "unknown_type" if text.lstrip()[:1] == "{" else "bad_message"
            self.assertEqual(code(decode(text.encode(), strict)), expected, text)


class UTF8Tests(SynchronousTestCase):
    """Payloads that are not UTF-8 (section 1)."""

    BROKEN = (
        b"\xff",
        b"\xc3",
        b"\x80",
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xf4\x90\x80\x80",
        b"\xf0\x9f\x98",
    )

    def test_anywhere(self) -> None:
        for broken in self.BROKEN:
            for around in (
                b"%b",
                b'"%b"',
                b"hello %b",
                b'{"type":"ping","timestamp":"%b"}',
                b'{"type":"ping","extra":"%b"}',
                b'{"type":"ping","%b":1}',
                b'{"type":"%b"}',
                b'{"type":"other","x":"%b"}',
                b'{"id":"%b"}',
                b'["%b"]',
            ):
                self.assertEqual(code(decode(around % broken)), "bad_json", around % broken)

    def test_the_place_is_said(self) -> None:
        message = decode(b'{"a":"\xff"}')
        assert isinstance(message, Refused)
        self.assertIn("byte 6", str(message.error))

    def test_byte_order_marks(self) -> None:
        """Refused at the very beginning only."""
        for payload in (b"\xef\xbb\xbf", b'\xef\xbb\xbf{"type":"ping"}', b"\xef\xbb\xbf1", b"\xef\xbb\xbfhi"):
            self.assertEqual(code(decode(payload)), "bad_json")
            self.assertEqual(code(decode(payload, strict)), "bad_json")
        self.assertEqual(code(decode(b"hi \xef\xbb\xbf")), "Text")
        self.assertEqual(code(decode(b'{"type":"echo","content":"\xef\xbb\xbf"}')), "Echo")

    def test_other_encodings(self) -> None:
        """A parser that guesses encodings would take these."""
        for encoding in ("utf-16", "utf-32"):
            self.assertEqual(code(decode('{"type":"ping"}'.encode(encoding))), "bad_json", encoding)
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            # Many NULs, but UTF-8: text, or bad_json where a brace comes first.
            self.assertNotEqual(code(decode('{"type":"ping"}'.encode(encoding))), "Ping", encoding)


class FieldTests(SynchronousTestCase):
    """Types and fields (section 2)."""

    def _assert_codes(self, *cases: tuple[str, str], codec: Codec = lax) -> None:
        for payload, expected in cases:
            self.assertEqual(code(decode(payload.encode(), codec)), expected, payload)

    def test_each_type(self) -> None:
        for payload, expected in (
            ('{"type":"ping"}', Ping()),
            ('{"type":"ping","timestamp":"t","client_info":{}}', Ping(timestamp=Raw(b'"t"'))),
            ('{"type":"echo"}', Echo()),
            ('{"type":"echo","content":[1.50]}', Echo(content=Raw(b"[1.50]"))),
            ('{"type":"broadcast","content":null}', Broadcast(content=Raw(b"null"))),
            ('{"type":"get_stats"}', GetStats()),
            ('{"type":"auth","mechanism":"plain"}', Auth(mechanism="plain")),
            ('{"type":"move","x":-3,"path":[{"a":1.5}]}', Move(x=-3, path=({"a": 1.5},))),
        ):
            self.assertEqual(repr_of(decode(payload.encode())), repr_of(expected), payload)

    def test_what_is_left_out(self) -> None:
        """A ping without a timestamp is answered with null, an echo without content with an empty string."""
        self.assertEqual(bytes(Ping().timestamp), b"null")
        self.assertEqual(bytes(Echo().content), b'""')
        self.assertEqual(bytes(Broadcast().content), b'""')

    def test_the_type_wherever_it_stands(self) -> None:
        self._assert_codes(
            ('{"type":"ping"}', "Ping"),
            (' \t\r\n{ "type" : "ping" } \n', "Ping"),
            ('{"content":[{"type":"ping"}],"type":"echo"}', "Echo"),
            (r'{"type":"p\u0069ng"}', "Ping"),
            (r'{"t\u0079pe":"ping"}', "Ping"),
            ('{"x":{"type":"ping"}}', "Custom"),
        )

    def test_a_type_that_is_none_of_ours(self) -> None:
        self._assert_codes(
            ('{"type":"pong"}', "Custom"),
            ('{"type":"Ping"}', "Custom"),
            ('{"type":" ping"}', "Custom"),
            ('{"type":""}', "Custom"),
            ('{"Type":"ping"}', "Custom"),
            ("{}", "Custom"),
            ('{"type":"text"}', "Custom"),
            ('{"type":"Custom"}', "Custom"),
        )

    def test_a_type_that_is_no_string(self) -> None:
        for value in ("null", "1", "1.5", "true", "[]", "{}", '["ping"]', '{"type":"ping"}', "1e999"):
            for codec in (lax, strict):
                self._assert_codes((f'{{"type":{value}}}', "bad_message"), codec=codec)
                self._assert_codes((f'{{"a":1,"type":{value},"id":1}}', "bad_message"), codec=codec)

    def test_a_wrong_field_is_named(self) -> None:
        for payload, place in (
            ('{"type":1}', "$.type"),
            ('{"type":"move","x":"1"}', "$.x"),
            ('{"type":"move","x":1.5}', "$.x"),
            ('{"type":"move","x":null}', "$.x"),
            ('{"type":"move"}', "`x`"),
            ('{"type":"move","x":1,"path":[{"a":1},{"a":"b"}]}', "$.path[1]"),
            ('{"type":"ping","id":true}', "$.id"),
        ):
            message = decode(payload.encode())
            assert isinstance(message, Refused)
            self.assertEqual(message.error.code, "bad_message", payload)
            self.assertIn(place, str(message.error))

    def test_strict(self) -> None:
        self._assert_codes(
            ('{"type":"ping"}', "Ping"),
            ('{"type":"other"}', "unknown_type"),
            ('{"type":""}', "unknown_type"),
            ("{}", "unknown_type"),
            ("[]", "bad_message"),
            ('"text"', "bad_message"),
            ("42", "bad_message"),
            ("text", "bad_json"),
            ("", "bad_frame"),
            ('{"type":"move","x":"1"}', "bad_message"),
            codec=strict,
        )

    def test_an_unknown_type_is_named_and_cut(self) -> None:
        message = decode(b'{"type":"%b"}' % (b"x" * 1000), strict)
        assert isinstance(message, Refused)
        self.assertIn("x" * 64, str(message.error))
        self.assertNotIn("x" * 65, str(message.error))

    def test_auth_is_never_sent_back(self) -> None:
        """Section 6: not even when it is wrong, or another field is."""
        for payload in (
            b'{"type":"auth","password":"secret"}',
            b'{"type":"auth","id":[],"password":"secret"}',
            b'{"type":"auth","password":"secret"',
            b'{"type":["auth"],"password":"secret"}',
            rb'{"type":"auth","password":"secret\ud800"}',
        ):
            message = decode(payload)
            self.assertIn(type(message), (Auth, Refused))
            self.assertNotIn("secret", repr(message))

    def test_types_that_share_a_tag(self) -> None:
        class Ping2(Message, tag="ping"):
            pass

        self.assertRaises(TypeError, Codec, [Ping, Ping2])

    def test_a_single_type(self) -> None:
        codec = Codec([Ping])
        self.assertEqual(code(decode(b'{"type":"ping"}', codec)), "Ping")
        self.assertEqual(code(decode(b'{"type":"echo"}', codec)), "Custom")


def repr_of(message: Message) -> list[Any]:
    """A message by its class and fields, for `Raw` does not show what it holds."""
    fields = [getattr(message, name) for name in message.__struct_fields__]
    return [type(message), *(bytes(field) if isinstance(field, Raw) else field for field in fields)]


class IdTests(SynchronousTestCase):
    """The `id` of a request (section 2)."""

    # JSON texts, and what they are as an id; None where they are a bad one.
    IDS: tuple[tuple[str, str | int | None], ...] = (
        ('""', ""),
        ('"a"', "a"),
        (r'"\u0061"', "a"),
        ('"' + "x" * 128 + '"', "x" * 128),
        ('"' + "😀" * 128 + '"', "😀" * 128),
        ("0", 0),
        ("-1", -1),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        ('"' + "x" * 129 + '"', None),
        ('"' + "é" * 129 + '"', None),
        (str(2**63), None),
        (str(-(2**63) - 1), None),
        (str(2**64), None),
        ("9" * 5000, None),
        ("1.5", None),
        ("1e999", None),
        ("true", None),
        ("false", None),
        ("[]", None),
        ("[1]", None),
        ("{}", None),
        ('{"id":1}', None),
        ("[" * 60 + "]" * 60, None),
    )

    def test_on_known_types(self) -> None:
        """A bad one is bad_message."""
        for text, request_id in self.IDS:
            for payload in (f'{{"type":"ping","id":{text}}}', f'{{"id":{text},"type":"move","x":1}}'):
                message = decode(payload.encode())
                if request_id is None:
                    self.assertEqual(code(message), "bad_message", text[:50])
                else:
                    self.assertNotIsInstance(message, Refused)
                    self.assertEqual(message.id, request_id)

    def test_on_others(self) -> None:
        """A bad one is ignored."""
        for text, request_id in self.IDS:
            for payload in (f'{{"type":"other","id":{text}}}', f'{{"id":{text}}}'):
                message = decode(payload.encode())
                self.assertIsInstance(message, Custom)
                self.assertEqual(message.id, request_id, text[:50])
                # Strict: the error carries it, where it is a good one.
                refused = decode(payload.encode(), strict)
                self.assertEqual((code(refused), refused.id), ("unknown_type", request_id))

    def test_null_is_none(self) -> None:
        for payload in (b'{"type":"ping","id":null}', b'{"type":"other","id":null}', b'{"id":null}'):
            self.assertIsNone(decode(payload).id)

    def test_an_error_carries_it(self) -> None:
        for payload in (
            b'{"type":1,"id":"a"}',
            b'{"type":"move","x":"1","id":"a"}',
            b'{"id":"a","type":null}',
        ):
            message = decode(payload)
            self.assertEqual((code(message), message.id), ("bad_message", "a"))

    def test_only_the_outermost_counts(self) -> None:
        self.assertIn(decode(b'{"x":{"id":5}}').id, (UNSET, None))
        self.assertIn(decode(b'{"type":"echo","content":{"id":5}}').id, (UNSET, None))


class DepthTests(SynchronousTestCase):
    """Nesting (section 1): 64 levels always pass; much deeper, nothing breaks."""

    def test_64_levels(self) -> None:
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            text = opening * 64 + "1" + closing * 64
            self.assertEqual(code(decode(f'{{"type":"echo","content":{text}}}'.encode())), "Echo")
            self.assertEqual(code(decode(f'{{"type":"ping","extra":{text}}}'.encode())), "Ping")
            self.assertEqual(code(decode(text.encode())), "Text" if opening == "[" else "Custom")

    def test_any_depth_is_taken_or_bad_json(self) -> None:
        """Where the parser's own limit lies depends on the release of Python and on the stack."""
        for depth in (*range(900, 1010), 5000, 100_000):
            for around in ("%s", '{"a":%s}', '{"type":"echo","content":%s}', '{"type":"move","x":1,"y":%s}'):
                for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth):
                    kind = code(decode((around % text).encode()))
                    self.assertIn(kind, ("bad_json", "Text", "Custom", "Echo", "Move"))
                    self.assertTrue(kind == "bad_json" or depth < 100_000)


class Share(Message, tag="share"):
    """A user's own message that holds what is not read."""

    content: Raw


class CheckedTests(SynchronousTestCase):
    """What an application handles is fit for any client before it is handed over (section 1)."""

    BAD = ("1e999", "18446744073709551616", "[-9223372036854775809]", "[" * 65 + "]" * 65)
    GOOD = ("1e308", "18446744073709551615", '"1e999"', "[" * 64 + "]" * 64)

    def test_all_of_a_message_is_checked(self) -> None:
        codec = Codec([Ping, Echo, Share], checked=[Share])
        for around in (
            '{"type":"share","content":%s,"id":7}',
            '{"type":"share","content":0,"id":7,"more":%s}',
        ):
            for text in self.BAD:
                message = decode((around % text).encode(), codec)
                self.assertEqual((code(message), message.id), ("bad_json", 7), text)
            for text in self.GOOD:
                self.assertEqual(code(decode((around % text).encode(), codec)), "Share", text)

    def test_of_no_other(self) -> None:
        """What the server itself sends back, it looks at then."""
        codec = Codec([Ping, Echo, Share], checked=[Share])
        for text in self.BAD:
            self.assertEqual(code(decode(f'{{"type":"ping","more":{text}}}'.encode(), codec)), "Ping")

    def test_in_a_batch(self) -> None:
        codec = Codec([Ping, Echo, Share], checked=[Share])
        batch = [b'{"type":"share","content":%b}' % text.encode() for text in (*self.BAD, *self.GOOD)]
        kinds = [code(message) for message in codec.decode([*batch, b'{"type":"ping"}', b"text"])]
        self.assertEqual(kinds, ["bad_json"] * 4 + ["Share"] * 4 + ["Ping", "Text"])

    def _replies(self, router: Router, payloads: list[str]) -> list[str]:
        server = MemoryServer(routers=[router])
        peer = server.connect()
        peer.receive()
        peer.send_payload(*(payload.encode() for payload in payloads))
        return [reply.get("code", reply["type"]) for reply in peer.receive()]

    def test_what_a_handler_sends_back(self) -> None:
        """Not the server has failed, but the client."""
        router = Router()

        @router.handler
        def share(session: Session, message: Share) -> dict[str, Any]:
            return {"type": "shared", "content": message.content}

        for texts, expected in ((self.BAD, "bad_json"), (self.GOOD, "shared")):
            payloads = [f'{{"type":"share","content":{text}}}' for text in texts]
            self.assertEqual(self._replies(router, payloads), [expected] * len(texts))

    def test_what_is_no_message_of_a_type(self) -> None:
        """The same holds for other types and for text."""
        router = Router()

        @router.handler
        def custom(session: Session, message: Custom) -> dict[str, Any]:
            return {"type": "mine", "content": message.original}

        @router.handler
        def text(session: Session, message: Text) -> dict[str, Any]:
            return {"type": "mine", "content": message.original}

        self.assertEqual(self._replies(router, list(self.BAD)), ["bad_json"] * len(self.BAD))
        # Plain text is no value, whatever it looks like.
        texts = ["plain", "see " + "[" * 200, "call " + "9" * 30]
        self.assertEqual(self._replies(router, [*self.GOOD, *texts]), ["mine"] * (len(self.GOOD) + 3))
        for value, expected in ((self.BAD[0], "bad_json"), ("[" * 64 + "]" * 64, "bad_json"), ("1", "mine")):
            self.assertEqual(self._replies(router, [f'{{"type":"other","a":{value}}}']), [expected])


# Payloads that are near to messages, and all others.
members = st.one_of(
    st.sampled_from(
        ['"type":"ping"', '"type":"echo"', '"type":"move"', '"type":"other"', '"type":1', '"x":1']
    ),
    st.sampled_from(['"id":"a"', '"id":7', '"id":null', '"id":[]', '"id":1e999', r'"id":"\ud800"']),
    st.builds('"content":{}'.format, oracle.texts()),
    st.builds('"extra":{}'.format, st.one_of(oracle.texts(), oracle.damaged())),
)
payloads = st.one_of(
    st.binary(max_size=30),
    st.text(max_size=20).map(str.encode),
    st.one_of(oracle.texts(), oracle.damaged()).map(str.encode),
    st.lists(members, max_size=4).map(lambda parts: ("{" + ",".join(parts) + "}").encode()),
)


class AnythingTests(SynchronousTestCase):
    """Whatever a peer sends."""

    @given(payloads, examples=600)
    def test_one_message_for_any_payload(self, payload: bytes) -> None:
        """Of the right kind, as far as the grammar says it."""
        first = payload.lstrip(b" \t\r\n")[:1]
        valid = True
        try:
            value = oracle.parse(payload)
        except ValueError:
            valid = False
        for codec, known in ((lax, "Custom"), (strict, "unknown_type")):
            kind = code(decode(payload, codec))
            if not payload:
                self.assertEqual(kind, "bad_frame")
            elif valid and isinstance(value, oracle.Pairs):
                names = [name for name, _ in value]
                if "type" not in names:
                    self.assertEqual(kind, known)
                elif len(set(names)) == len(names):
                    tag = dict(value)["type"]
                    if isinstance(tag, oracle.Number) or not isinstance(tag, str):
                        self.assertEqual(kind, "bad_message")
                    elif tag in TAGS:
                        self.assertIn(kind.lower(), (tag, "bad_message"))
                    else:
                        self.assertEqual(kind, known)
            elif valid:
                self.assertEqual(kind, "Text" if codec is lax else "bad_message")
            elif codec is strict or first in (b"{", b"["):
                self.assertEqual(kind, "bad_json")
            else:
                self.assertIn(kind, ("Text", "bad_json"))
                self.assertEqual(kind == "Text", is_plain(payload))

    @given(st.lists(payloads, max_size=5), examples=300)
    def test_a_batch_is_as_each_alone(self, batch: list[bytes]) -> None:
        for codec in (lax, strict):
            together = [repr_of(message) for message in codec.decode(batch)]
            alone = [repr_of(decode(payload, codec)) for payload in batch]
            self.assertEqual(list(map(str, together)), list(map(str, alone)))

    @given(st.lists(payloads, max_size=4), examples=300)
    def test_what_comes_back_and_what_others_get(self, batch: list[bytes]) -> None:
        """One reply to each, and every one a strict parser takes; others get only what it takes too."""
        server = MemoryServer()
        sender, other = server.connect(), server.connect()
        sender.receive_payloads()
        other.receive_payloads()
        relays = [payload.replace(b'"echo"', b'"broadcast"') for payload in batch]
        sender.send_payload(*batch, *relays)
        replies = sender.receive_payloads()
        self.assertEqual(len(replies), 2 * len(batch))
        for payload in (*replies, *other.receive_payloads()):
            self.assertTrue(oracle.relayable(payload, 65), payload)

    @given(oracle.texts(), examples=300)
    def test_any_value_to_the_last_digit(self, text: str) -> None:
        """Relayed, echoed, and within a message of another type; or refused as bad_json."""
        data = text.encode()
        server = MemoryServer()
        sender, other = server.connect(), server.connect()
        sender.receive_payloads()
        other.receive_payloads()
        sender.send_payload(
            b'{"type":"echo","content":%b}' % data,
            b'{"type":"broadcast","content":%b}' % data,
            b'{"type":"other","content":%b}' % data,
            b'{"content":%b,"type":"ping","timestamp":%b}' % (data, data),
        )
        echo, sent, response, pong = sender.receive_payloads()
        relayed = other.receive_payloads()
        value = oracle.parse(data)
        if oracle.relayable(data):
            self.assertEqual(oracle.field(echo, "content"), value)
            self.assertEqual(oracle.field(relayed[0], "content"), value)
            self.assertEqual(oracle.field(sent, "recipients"), oracle.Number("1"))
            self.assertEqual(oracle.field(pong, "ping_timestamp"), value)
        else:
            self.assertEqual(relayed, [])
            for refusal in (echo, sent, pong):
                self.assertEqual(oracle.field(refusal, "code"), "bad_json")
        # Here the object is a level of the value that comes back.
        if oracle.relayable(data, 63):
            original = dict(oracle.field(response, "original_message"))
            self.assertEqual(original, {"type": "other", "content": value})
        else:
            self.assertEqual(oracle.field(response, "code"), "bad_json")

    def test_the_classic_router_knows_all_that_is_decoded(self) -> None:
        self.assertEqual({Custom, Text, Refused} - set(classic.router.handlers), set())


class Point(Struct):
    x: float


class Tree(Message, tag="tree"):
    """A class that holds itself, and one that is written further down."""

    value: Later
    children: tuple[Tree, ...] = ()
    parent: Tree | None = None


class Later(Struct):
    tree: Tree | None = None


class Plain:
    """A class of no kind that msgspec knows."""


Item = TypeVar("Item")


class Box(Generic[Item]):
    """Another one, of any item."""


class Shape(Protocol):
    """Of which nobody can say what is an instance."""

    sides: int


class CheckFieldsTests(SynchronousTestCase):
    """`check_fields`: whether messages of a class can be decoded."""

    def fault(self, kind: type[Message]) -> str:
        text = str(self.assertRaises(TypeError, check_fields, kind))
        self.assertTrue(text.startswith(f"{__name__}.{kind.__qualname__}"), text)
        return text.removeprefix(f"{__name__}.{kind.__qualname__}")

    def of(self, annotation: object) -> type[Message]:
        """A class with one field, `what`."""
        return self.made(("what", annotation))

    def made(self, *fields: tuple[str, Any]) -> type[Message]:
        """A class with fields."""
        kind: Any = defstruct("Own", fields, bases=(Message,), tag="own", module=__name__)
        return cast("type[Message]", kind)

    def test_our_own(self) -> None:
        kinds: list[type[Message]] = [*TYPES, Custom, Text, Hello]
        for kind in kinds:
            check_fields(kind)

    def test_what_can_be_decoded(self) -> None:
        class Colour(enum.Enum):
            RED = "red"

        class Pair(NamedTuple):
            point: Point
            n: int

        class Typed(TypedDict):
            point: Point

        @dataclasses.dataclass
        class Data:
            points: list[Point]

        for annotation in (
            Any,
            # Of these a JSON value can be one.
            object,
            list[object],
            numbers.Integral,
            Raw,
            Raw | None,
            list,
            dict,
            bytes,
            None,
            Decimal,
            datetime.datetime,
            uuid.UUID,
            Colour,
            Point,
            Pair,
            Typed,
            Data,
            Literal["a", 1],
            Annotated[int, Meta(ge=0)],
            dict[str, Annotated[list[Point], Meta(max_length=3)]],
            tuple[int, Point, Annotated[str, Meta(pattern="^a")]],
            tuple[Point, ...],
            set[int] | str | None,
            dict[int, dict[str, frozenset[float]]],
            int | UnsetType,
        ):
            check_fields(self.of(annotation))

    def test_what_is_written_further_down(self) -> None:
        check_fields(Tree)

    def test_what_cannot(self) -> None:
        class Data(Struct):
            deep: dict[str, tuple[int, Plain]]

        class Values(NamedTuple):
            plain: Plain

        for annotation, strange in (
            (Plain, "Plain"),
            (complex, "complex"),
            (type, "type"),
            (list[Plain], "Plain"),
            (dict[str, Plain], "Plain"),
            (dict[complex, str], "complex"),
            (tuple[int, Plain], "Plain"),
            (Plain | None, "Plain"),
            (Annotated[list[Annotated[Plain, "why"]], Meta(max_length=3)], "Plain"),
            (Data, "Plain"),
            (list[Values], "Plain"),
            (Box, "Box"),
            (list[Box[int]], "Box"),
            (list[Shape], "Shape"),
        ):
            self.assertEqual(self.fault(self.of(annotation)), f".what: no JSON value is a {strange}")

    def test_the_field_is_named(self) -> None:
        class Own(Message, tag="own"):
            good: int
            bad: Plain
            worse: Plain

        self.assertEqual(self.fault(Own), ".bad: no JSON value is a Plain")

    def test_in_a_class_that_holds_itself(self) -> None:
        kind = self.made(("tree", Tree), ("bad", list[Plain]))
        self.assertEqual(self.fault(kind), ".bad: no JSON value is a Plain")

    def test_what_cannot_be_described(self) -> None:
        """Where msgspec can say nothing of a class that it decodes, as of some in its older releases."""

        def cannot(kind: object) -> None:
            raise TypeError

        self.patch(msgspec.inspect, "type_info", cannot)
        check_fields(Tree)

    def test_what_is_no_type(self) -> None:
        """One line says what msgspec makes of it."""

        class Own(Message, tag="own"):
            what: NoSuchName  # type: ignore[name-defined]  # noqa: F821  # which is the case

        self.assertEqual(self.fault(Own), ": name 'NoSuchName' is not defined")
        for annotation in (list[int] | tuple[int, ...], Annotated[int, Meta(pattern="a")], 3, list[int, int]):  # type: ignore[misc]  # which is the case
            text = self.fault(self.of(annotation))
            self.assertTrue(text.startswith(": "), text)
            self.assertEqual(len(text.splitlines()), 1)


class Fragile(Message, tag="fragile"):
    """An application's class that looks at its fields itself."""

    fault: str = ""
    room: str = ""

    def __post_init__(self) -> None:
        if self.fault:
            raise {
                "value": ValueError("no such room"),
                "type": TypeError("no such room"),
                "key": KeyError("no such room"),
                "forbidden": Forbidden("not this room"),
            }[self.fault]


class PostInitTests(SynchronousTestCase):
    """What `__post_init__` raises."""

    codec = Codec([Fragile, Ping])

    def payload(self, fault: str) -> bytes:
        return f'{{"type":"fragile","id":7,"fault":"{fault}"}}'.encode()

    def test_what_is_wrong_with_the_fields(self) -> None:
        for fault in ("value", "type"):
            message = decode(self.payload(fault), self.codec)
            assert isinstance(message, Refused)
            self.assertEqual((message.error.code, message.id, message.fault), ("bad_message", 7, None))
            self.assertEqual(str(message.error), "no such room")

    def test_its_own_faults(self) -> None:
        """They come to where they are told and logged as those of handlers are."""
        for fault, kind in (("key", KeyError), ("forbidden", Forbidden)):
            message = decode(self.payload(fault), self.codec)
            assert isinstance(message, Refused)
            self.assertEqual((message.error.code, message.id), ("internal", 7))
            self.assertIsInstance(message.fault, kind)

    def test_the_others_of_a_read(self) -> None:
        ping = b'{"type":"ping"}'
        payloads = [ping, self.payload("key"), ping, self.payload("value"), self.payload(""), b"text"]
        self.assertEqual(
            list(map(code, self.codec.decode(payloads))),
            ["Ping", "internal", "Ping", "bad_message", "Fragile", "Text"],
        )

    def test_in_a_checked_class(self) -> None:
        """A fault stays what it is, whatever stands beside it."""
        codec = Codec([Fragile, Ping], checked=[Fragile])
        payload = b'{"type":"fragile","fault":"key","more":1e999}'
        self.assertEqual(code(decode(payload, codec)), "internal")
        self.assertEqual(code(decode(payload.replace(b"key", b""), codec)), "bad_json")


def is_plain(payload: bytes) -> bool:
    """Whether a payload that is no JSON text can be plain text: UTF-8 without a byte order mark."""
    try:
        return not payload.decode().startswith("\ufeff")
    except UnicodeDecodeError:
        return False
