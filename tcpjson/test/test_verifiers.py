"""The files of verifiers and tokens."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from unittest.mock import patch

from hypothesis import strategies as st
from scramp.core import ScramException, ScramMechanism  # type: ignore[import-untyped]  # it has no types
from scramp.core import saslprep as scramp_saslprep
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.test.hypo import given
from tcpjson.verifiers import (
    ITERATIONS,
    MAX_ITERATIONS,
    MAX_NAME,
    MAX_PASSWORD,
    MIN_ITERATIONS,
    Tokens,
    Verifier,
    Verifiers,
    check_name,
    hash_token,
    normal_name,
    saslprep,
    secret_line,
)

# As PostgreSQL's documentation and RFC 7677 have it: "pencil".
SALT = "W22ZaJ0SNY7soEsUEjb6gQ=="
STORED = "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
SERVER = "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
PENCIL = f"SCRAM-SHA-256$4096:{SALT}${STORED}:{SERVER}"

NAMES = st.text(min_size=1, max_size=8)


def zeros(count: int) -> bytes:
    """No random bytes at all."""
    return bytes(count)


def line(name: str, iterations: int = 4096, salt: bytes = bytes(16)) -> str:
    """A user that nobody can be."""
    return f"{name}:{Verifier(salt, iterations, bytes(32), bytes(32)).format()}\n"


class NameTests(SynchronousTestCase):
    """`saslprep`, `check_name` and `normal_name`."""

    @given(st.text(max_size=20), examples=500)
    def test_as_scramp(self, text: str) -> None:
        try:
            expected = scramp_saslprep(text)
        except ScramException:
            self.assertRaises(ValueError, saslprep, text, 1000)
        else:
            self.assertEqual(saslprep(text, 1000), expected)

    def test_of_ascii_it_keeps_what_scramp_keeps(self) -> None:
        for code in range(128):
            text = f"a{chr(code)}b"
            try:
                expected = scramp_saslprep(text)
            except ScramException:
                self.assertRaises(ValueError, saslprep, text, 1000)
            else:
                self.assertEqual(saslprep(text, 1000), expected)

    def test_without_scramp(self) -> None:
        with patch.dict("sys.modules", {"scramp": None, "scramp.core": None}):
            self.assertEqual(saslprep("secret word", 1000), "secret word")
            self.assertRaises(ImportError, saslprep, "ä", 1000)

    def test_the_limit_is_in_bytes(self) -> None:
        self.assertEqual(saslprep("a" * 256, 256), "a" * 256)
        self.assertEqual(saslprep("ä" * 128, 256), "ä" * 128)
        for text in ("a" * 257, "ä" * 128 + "a", "\ufdfa" * 8, "a\u0308" * 100):
            self.assertRaises(ValueError, saslprep, text, 256)

    def test_a_long_text_is_refused_before_it_is_prepared(self) -> None:
        """That would take milliseconds."""
        with patch("scramp.core.saslprep", lambda text: self.fail("it was prepared")):
            self.assertRaises(ValueError, saslprep, "\ufdfa" * 85, 256)

    def test_names(self) -> None:
        for name in ("alice", "Alice B.", "a=b,c", "ä", "名", "a#", "x" * MAX_NAME):
            self.assertEqual(normal_name(name), name)
            self.assertEqual(check_name(name), name)

    def test_names_are_brought_to_their_normal_form(self) -> None:
        self.assertEqual(normal_name("\N{ROMAN NUMERAL FOUR}\N{SOFT HYPHEN}"), "IV")

    def test_names_that_fit_no_line(self) -> None:
        for name in (
            *("", "a:b", "a\nb", "a\x00", "\x7f", "a\x85", " a", "a ", "#a", "x" * (MAX_NAME + 1)),
            *("ä" * 128 + "a", "\N{FULLWIDTH COLON}", "\N{FULLWIDTH NUMBER SIGN}", "\N{SOFT HYPHEN}"),
            *("\N{NO-BREAK SPACE}a", "\udcff", "\u2028"),
        ):
            self.assertRaises(ValueError, normal_name, name)
        with self.assertRaises(ValueError) as caught:
            check_name("a:b")
        self.assertEqual(str(caught.exception), "it must not hold a colon")
        for name in ("", "a:b", "a\nb", " a", "a ", "#a", "ä" * 128 + "a", "\udcff", "\u2028"):
            self.assertRaises(ValueError, check_name, name)

    @given(NAMES)
    def test_a_name_is_a_line_of_its_own(self, name: str) -> None:
        try:
            normal = normal_name(name)
        except ValueError:
            return
        users = Verifiers(line(normal).encode(), b"")
        self.assertIsNotNone(users.find(normal))
        self.assertEqual(normal_name(normal), normal)


class VerifierTests(SynchronousTestCase):
    """`Verifier`."""

    def test_the_password_of_the_rfc(self) -> None:
        """RFC 7677, section 3."""
        [verifier] = [Verifiers(f"user:{PENCIL}".encode(), b"").find("user")]
        assert verifier is not None
        self.assertTrue(verifier.matches("pencil"))
        for wrong in ("Pencil", "", "pencil ", "p" * 4000, "\ufdfa" * 1300, "\x00", "\ue000"):
            self.assertFalse(verifier.matches(wrong))
        self.assertEqual(verifier.format(), PENCIL)

    @given(st.text(min_size=1, max_size=10), st.binary(min_size=16, max_size=16), examples=30)
    def test_made_as_scramp_makes_it(self, password: str, salt: bytes) -> None:
        mechanism = ScramMechanism("SCRAM-SHA-256")
        try:
            _, stored_key, server_key, _ = mechanism.make_auth_info(password, 5000, salt)
        except ScramException:
            self.assertRaises(ValueError, Verifier.make, password, 5000, lambda count: salt)
            return
        verifier = Verifier.make(password, 5000, lambda count: salt[:count])
        self.assertEqual(verifier, (salt, 5000, stored_key, server_key))
        self.assertTrue(verifier.matches(password))

    def test_passwords_have_one_form(self) -> None:
        verifier = Verifier.make("I\N{SOFT HYPHEN}X", 4096, zeros)
        for same in ("IX", "\N{ROMAN NUMERAL NINE}"):
            self.assertTrue(verifier.matches(same))

    def test_a_password_that_saslprep_refuses(self) -> None:
        """PostgreSQL takes it as it is."""
        password = "a\x07b"
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), bytes(16), 4096)
        stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        verifier = Verifier(bytes(16), 4096, stored_key, bytes(32))
        self.assertTrue(verifier.matches(password))
        self.assertRaises(ValueError, Verifier.make, password, 4096, zeros)

    def test_a_new_password_can_be_sent(self) -> None:
        Verifier.make("x" * MAX_PASSWORD, 4096, zeros)
        self.assertRaises(ValueError, Verifier.make, "x" * (MAX_PASSWORD + 1), 4096, zeros)

    def test_every_login_is_hashed(self) -> None:
        """A password that none can have takes as long as any."""
        counts: list[int] = []
        real = hashlib.pbkdf2_hmac

        def counted(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
            counts.append(iterations)
            return real(name, password, salt, iterations)

        verifier = Verifier.make("x", 4097, zeros)
        with patch("hashlib.pbkdf2_hmac", counted):
            for password in ("x", "", "\x00", "y" * 4000, "\ufdfa" * 1300):
                verifier.matches(password)
        self.assertEqual(counts, [4097] * 5)


class VerifiersTests(SynchronousTestCase):
    """`Verifiers`: the file."""

    def _refused(self, content: str | bytes) -> str:
        content = content.encode() if isinstance(content, str) else content
        with self.assertRaises(ValueError) as caught:
            Verifiers(content, b"")
        return str(caught.exception)

    def test_lines(self) -> None:
        users = Verifiers(
            f"# a comment\n\n  \nalice:{PENCIL}\r\n{line('bob')}#carol:{PENCIL}\nd e:{PENCIL}".encode(), b""
        )
        found = {name for name in ("alice", "bob", "carol", "#carol", "d e", "") if users.find(name)}
        self.assertEqual(found, {"alice", "bob", "d e"})
        self.assertEqual(len(users), 3)

    def test_an_empty_file(self) -> None:
        self.assertIsNone(Verifiers(b"", b"").find("alice"))

    def test_what_is_wrong_and_where(self) -> None:
        form = "line 2: not NAME:SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY"
        base64 = "line 2: a value is not base64, or not as long as it must be"
        for second, wrong in (
            ("bob", form),
            ("bob:secret", form),
            ("bob:", form),
            (PENCIL, form),
            ("bob:" + PENCIL.replace("256", "1"), form),
            (f"bob:{PENCIL}:x", form),
            ("bob:" + PENCIL.replace("4096", "-4096"), form),
            ("bob:" + PENCIL.replace("4096", "4096x"), form),
            ("bob:" + PENCIL.replace(SALT, ""), form),
            ("bob:" + PENCIL.replace("4096", "4095"), "line 2: the iterations must be 4096 to 10000000"),
            ("bob:" + PENCIL.replace("4096", "10000001"), "line 2: the iterations must be 4096 to 10000000"),
            ("bob:" + PENCIL.replace(SALT, SALT[:-1]), base64),
            ("bob:" + PENCIL.replace(SALT, "*" + SALT), base64),
            ("bob:" + PENCIL.replace(SALT, "ä" + SALT), base64),
            ("bob:" + PENCIL.replace(SALT, b64encode(bytes(11)).decode()), base64),
            ("bob:" + PENCIL.replace(SALT, b64encode(bytes(256)).decode()), base64),
            ("bob:" + PENCIL.replace(STORED, b64encode(bytes(31)).decode()), base64),
            ("bob:" + PENCIL.replace(SERVER, b64encode(bytes(33)).decode()), base64),
            (f":{PENCIL}", "line 2: the name: it is empty"),
            (
                f" bob:{PENCIL}",
                "line 2: the name: it must not begin with # or with a space, nor end with a space",
            ),
            (f"{'b' * 257}:{PENCIL}", "line 2: the name: it is longer than 256 bytes"),
            (f"b\x00b:{PENCIL}", "line 2: the name: it holds a character that is not allowed"),
            (f"\N{ROMAN NUMERAL NINE}:{PENCIL}", "line 2: the name is not in its normal form, RFC 4013"),
            (f"alice:{PENCIL}", "line 2: the user stands in an earlier line, too"),
        ):
            self.assertEqual(self._refused(f"alice:{PENCIL}\n{second}\n"), wrong)
        self.assertEqual(self._refused(b"#\n#\n\xff"), "line 3: not UTF-8")

    def test_the_bounds(self) -> None:
        for iterations in (MIN_ITERATIONS, MAX_ITERATIONS):
            for salt in (bytes(12), bytes(255)):
                found = Verifiers(line("a", iterations, salt).encode(), b"").find("a")
                self.assertEqual(found, (salt, iterations, bytes(32), bytes(32)))

    def test_scramp_takes_what_is_within_the_bounds(self) -> None:
        for iterations in (MIN_ITERATIONS, MAX_ITERATIONS):
            server = ScramMechanism("SCRAM-SHA-256").make_server(
                lambda name, i=iterations: (bytes(12), bytes(32), bytes(32), i)
            )
            server.set_client_first("n,,n=a,r=b")
            self.assertTrue(server.get_server_first().endswith(f"i={iterations}"))

    @given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    def test_any_content(self, content: bytes) -> None:
        for before in (b"", b"alice:SCRAM-SHA-256$", b"# salt secret: "):
            try:
                Verifiers(before + content, b"")
            except ValueError as error:
                self.assertRegex(str(error), r"\Aline \d+: [ -~]+\Z")


class DecoyTests(SynchronousTestCase):
    """`Verifiers.decoy`: what is said of those who are not there."""

    def test_always_the_same(self) -> None:
        first, again = (Verifiers(line("alice").encode(), b"secret") for _ in range(2))
        self.assertEqual(first.decoy("bob"), again.decoy("bob"))
        self.assertNotEqual(first.decoy("bob").salt, first.decoy("carol").salt)
        self.assertNotEqual(first.decoy("bob").salt, Verifiers(b"", b"other").decoy("bob").salt)

    def test_the_secret_of_the_file(self) -> None:
        """It goes before the other, which lasts no longer than the process."""
        content = (secret_line(zeros) + line("alice")).encode()
        one, two = Verifiers(content, b"one"), Verifiers(content, b"two")
        self.assertEqual(one.decoy("bob"), two.decoy("bob"))
        other = Verifiers((secret_line(lambda count: b"x" * count) + line("alice")).encode(), b"one")
        self.assertNotEqual(one.decoy("bob"), other.decoy("bob"))

    def test_a_broken_secret(self) -> None:
        for secret in ("x", b64encode(bytes(15)).decode(), "*" * 24):
            with self.assertRaises(ValueError) as caught:
                Verifiers(f"\n# salt secret: {secret}\n".encode(), b"")
            self.assertEqual(
                str(caught.exception), "line 2: a value is not base64, or not as long as it must be"
            )

    def test_an_empty_file(self) -> None:
        decoy = Verifiers(b"", b"secret").decoy("bob")
        self.assertEqual((decoy.iterations, len(decoy.salt)), (ITERATIONS, 16))
        self.assertEqual((len(decoy.stored_key), len(decoy.server_key)), (32, 32))

    def test_it_looks_like_the_others(self) -> None:
        """Each count and length of salt as often as it is there; one user more changes it for few."""
        lines = [line(f"a{number}", 5000, bytes(12)) for number in range(30)]
        lines += [line(f"b{number}", 6000, bytes(20)) for number in range(10)]
        names = [f"n{number}" for number in range(1000)]

        def shapes(lines: list[str]) -> list[tuple[int, int]]:
            users = Verifiers("".join(lines).encode(), b"secret")
            return [(decoy.iterations, len(decoy.salt)) for decoy in map(users.decoy, names)]

        before = shapes(lines)
        self.assertEqual(set(before), {(5000, 12), (6000, 20)})
        self.assertTrue(200 < before.count((6000, 20)) < 300)
        after = shapes([*lines, line("c", 5000, bytes(12))])
        self.assertLess(sum(old != new for old, new in zip(before, after, strict=True)), 30)

    def test_the_salt_tells_nothing_of_the_keys(self) -> None:
        decoy = Verifiers(b"", b"secret").decoy("bob")
        self.assertEqual(len({decoy.salt[:16], decoy.stored_key[:16], decoy.server_key[:16]}), 3)


class TokensTests(SynchronousTestCase):
    """`Tokens`: the file."""

    def _line(self, name: str, token: str) -> str:
        return f"{name}:{hashlib.sha256(token.encode()).hexdigest()}\n"

    def _refused(self, content: str) -> str:
        with self.assertRaises(ValueError) as caught:
            Tokens(content.encode())
        return str(caught.exception)

    def test_found(self) -> None:
        tokens = Tokens(f"# x\n\n{self._line('a', 'one')}{self._line('b', 'two')}".encode())
        found = [tokens.find(token) for token in ("one", "two", "three", "", "One", "ä" * 2000)]
        self.assertEqual(found, ["a", "b", None, None, None, None])
        self.assertEqual(len(tokens), 2)

    def test_several_of_one_name(self) -> None:
        tokens = Tokens((self._line("a", "one") + self._line("a", "two")).encode())
        self.assertEqual([tokens.find("one"), tokens.find("two")], ["a", "a"])

    def test_all_of_the_hash_is_compared(self) -> None:
        digest = hash_token("one")
        tokens = Tokens(f"a:{digest[:16].hex()}{bytes(16).hex()}".encode())
        self.assertIsNone(tokens.find("one"))

    def test_what_is_wrong_and_where(self) -> None:
        good = self._line("a", "one")
        form = "line 2: not NAME:HASH, the SHA-256 of a token in 64 small hexadecimal digits"
        for second, wrong in (
            ("b", form),
            ("b:", form),
            ("b:one", form),
            (good.replace("a:", "b:")[:-2], form),
            (self._line("b", "two").upper(), form),
            (self._line("b", "two").replace("\n", "0"), form),
            (self._line("b", "one"), "line 2: the token stands in an earlier line, too"),
            (self._line("", "two"), "line 2: the name: it is empty"),
            (self._line("b\x00", "two"), "line 2: the name: it holds a character that is not allowed"),
        ):
            self.assertEqual(self._refused(good + second), wrong)
        with self.assertRaises(ValueError) as caught:
            Tokens(b"\xff")
        self.assertEqual(str(caught.exception), "line 1: not UTF-8")

    def test_a_file_of_the_other_kind(self) -> None:
        self.assertRaises(ValueError, Tokens, f"a:{PENCIL}".encode())
        self.assertRaises(ValueError, Verifiers, self._line("a", "one").encode(), b"")
