"""The files of SCRAM-SHA-256 verifiers and of hashed tokens: what a line says, and who is in them."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

#: How often a new password is hashed: 30 ms of one core a login, on the client's side too. A line may have
#: a count within the bounds.
ITERATIONS = 100_000
MIN_ITERATIONS = 4096
MAX_ITERATIONS = 10_000_000
#: Bytes of a name, in UTF-8.
MAX_NAME = 256
#: Bytes of a new password, in UTF-8: with the longest name, and all of it in escapes, it fits the frame of
#: 4,096 bytes that a client may send before it is known.
MAX_PASSWORD = 1024
# Bytes: of a new salt, and the least that a salt in the file must have.
_SALT = 16
_MIN_SALT = 12
_KEY = 32
# Bytes of a digest by which a token is looked up; all of it is compared.
_PREFIX = 16

_SECRET = re.compile(r"#\s*salt secret:\s*(\S+)")
_VERIFIER = re.compile(r"SCRAM-SHA-256\$([0-9]{1,9}):([^$:]+)\$([^$:]+):([^$:]+)")
_DIGEST = re.compile(r"[0-9a-f]{64}")

Entry = TypeVar("Entry")


def saslprep(text: str, limit: int) -> str:
    """
    The form in which names and passwords are compared (RFC 4013).

    Args:
        limit: the bytes it may have in UTF-8.

    Raises:
        ValueError: it is longer, or holds what must not be in it. Nothing of it is said.
        ImportError: it is beyond ASCII, and scramp is not installed.
    """
    if is_long(text, limit):
        raise ValueError(f"it is longer than {limit} bytes")
    if text.isascii() and text.isprintable():
        return text
    from scramp.core import ScramException  # type: ignore[import-untyped]  # it has no types
    from scramp.core import saslprep as prepare

    try:
        prepared: str = prepare(text)
    except ScramException:
        raise ValueError("it holds a character that is not allowed") from None
    return prepared


def is_long(text: str, limit: int) -> bool:
    """
    Whether a text has more than `limit` bytes in UTF-8, or will have them after `saslprep`: that takes
    microseconds a character, and makes some of them eighteen, so it is better asked before.
    """
    if len(text.encode(errors="replace")) > limit:
        return True
    return len(unicodedata.normalize("NFKC", text).encode(errors="replace")) > limit


def check_name(name: str) -> str:
    """
    The name, which must fit a line of the file.

    Raises:
        ValueError: why it does not. The name is not in the text.
    """
    if not name:
        raise ValueError("it is empty")
    if len(name.encode(errors="replace")) > MAX_NAME:
        raise ValueError(f"it is longer than {MAX_NAME} bytes")
    if ":" in name:
        raise ValueError("it must not hold a colon")
    if not name.isprintable():
        raise ValueError("it holds a character that is not allowed")
    if name != name.strip() or name.startswith("#"):
        raise ValueError("it must not begin with # or with a space, nor end with a space")
    return name


def normal_name(name: str) -> str:
    """The user name as it stands in the file. Raises as `saslprep` and `check_name`."""
    return check_name(saslprep(name, MAX_NAME))


class Verifier(NamedTuple):
    """What a server keeps of a password (RFC 5802, section 3)."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes

    @classmethod
    def make(cls, password: str, iterations: int, random: Callable[[int], bytes]) -> Verifier:
        """
        The verifier of a new password. It hashes: some 30 ms a hundred thousand iterations.

        Args:
            password: not empty.
            iterations: `MIN_ITERATIONS` to `MAX_ITERATIONS`.
            random: returns as many random bytes as it is asked for.

        Raises:
            ValueError, ImportError: as `saslprep`.
        """
        salt = random(_SALT)
        salted = hashlib.pbkdf2_hmac("sha256", saslprep(password, MAX_PASSWORD).encode(), salt, iterations)
        return cls(salt, iterations, _stored_key(salted), hmac.digest(salted, b"Server Key", "sha256"))

    def matches(self, password: str) -> bool:
        """Whether it is the verifier of the password. It hashes, whatever the password."""
        try:
            prepared = saslprep(password, MAX_PASSWORD)
        except ValueError:
            # A login with it costs as much as any other.
            prepared = password
        salted = hashlib.pbkdf2_hmac("sha256", prepared.encode(), self.salt, self.iterations)
        return hmac.compare_digest(_stored_key(salted), self.stored_key)

    def format(self) -> str:
        """As it stands in a line behind the name, and in PostgreSQL."""
        salt, stored, server = (
            b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key)
        )
        return f"SCRAM-SHA-256${self.iterations}:{salt}${stored}:{server}"


def _stored_key(salted: bytes) -> bytes:
    return hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()


def _base64(text: str, least: int, most: int) -> bytes:
    try:
        content = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not least <= len(content) <= most:
        raise ValueError("a value is not base64, or not as long as it must be")
    return content


def _verifier(text: str) -> Verifier:
    match = _VERIFIER.fullmatch(text)
    if match is None:
        raise ValueError("not NAME:SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY")
    iterations = int(match[1])
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"the iterations must be {MIN_ITERATIONS} to {MAX_ITERATIONS}")
    return Verifier(
        _base64(match[2], _MIN_SALT, 255), iterations, *(_base64(match[i], _KEY, _KEY) for i in (3, 4))
    )


def _digest(text: str) -> bytes:
    if not _DIGEST.fullmatch(text):
        raise ValueError("not NAME:HASH, the SHA-256 of a token in 64 small hexadecimal digits")
    return bytes.fromhex(text)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {number}: not UTF-8") from None


def name_in(line: str) -> str | None:
    """The name that a line is about; None in a comment and in a blank line."""
    return None if line.startswith("#") or not line.strip() else line.partition(":")[0]


def _entries(content: bytes, parse: Callable[[str], Entry]) -> Iterator[tuple[int, str, Entry]]:
    """
    The number, the name and the rest of each line that has them.

    Raises:
        ValueError: the number of a line, and what is wrong with it; nothing of what stands there.
    """
    for number, line in enumerate(_text(content).split("\n"), 1):
        name = name_in(line)
        if name is None:
            continue
        try:
            entry = parse(line.partition(":")[2].strip())
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        yield number, name, entry


class Verifiers:
    """
    Who may log in with a password, and a verifier for everybody else, so that none can tell who that is.

    Args:
        content: a file with a line `NAME:SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY` for each user;
            `#` begins a comment.
        secret: what the verifiers of unknown users are made from, where the file holds no secret.

    Raises:
        ValueError: one line that says where and what is wrong; nothing of the content is in it.
    """

    def __init__(self, content: bytes, secret: bytes) -> None:
        self._secret = _secret_in(content) or secret
        self._users: dict[str, Verifier] = {}
        for number, name, verifier in _entries(content, _verifier):
            try:
                normal = normal_name(name)
            except ValueError as error:
                raise ValueError(f"line {number}: the name: {error}") from None
            if normal != name:
                raise ValueError(f"line {number}: the name is not in its normal form, RFC 4013")
            if name in self._users:
                raise ValueError(f"line {number}: the user stands in an earlier line, too")
            self._users[name] = verifier
        # What an unknown user's verifier looks like is drawn from these: sorted, so that one user more or
        # less changes it for few.
        self._shapes = sorted((user.iterations, len(user.salt)) for user in self._users.values())

    def __len__(self) -> int:
        return len(self._users)

    def find(self, name: str) -> Verifier | None:
        """The verifier of a user."""
        return self._users.get(name)

    def decoy(self, name: str) -> Verifier:
        """A verifier for a user who is not there: always the same one for a name, and no password fits."""
        seed = hmac.digest(self._secret, name.encode(), "sha256")
        shapes = self._shapes or [(ITERATIONS, _SALT)]
        iterations, length = shapes[int.from_bytes(seed[:8]) * len(shapes) >> 64]
        content = hashlib.shake_256(seed).digest(length + 2 * _KEY)
        return Verifier(content[:length], iterations, content[length:-_KEY], content[-_KEY:])


def _secret_in(content: bytes) -> bytes | None:
    for number, line in enumerate(_text(content).split("\n"), 1):
        if match := _SECRET.match(line):
            try:
                return _base64(match[1], 16, 255)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return None


def secret_line(random: Callable[[int], bytes]) -> str:
    """The comment of a new file that holds what the verifiers of unknown users are made from."""
    return f"# salt secret: {b64encode(random(32)).decode()}\n"


def hash_token(token: str) -> bytes:
    """The SHA-256 of a token: it is random, so nothing slower is needed."""
    return hashlib.sha256(token.encode()).digest()


class Tokens:
    """
    Who may log in with a token. Several tokens may have one name, so that they can be replaced one by one.

    Args:
        content: a file with a line `NAME:HASH` for each token; `#` begins a comment.

    Raises:
        ValueError: as `Verifiers`.
    """

    def __init__(self, content: bytes) -> None:
        self._names: dict[bytes, tuple[bytes, str]] = {}
        for number, name, digest in _entries(content, _digest):
            try:
                check_name(name)
            except ValueError as error:
                raise ValueError(f"line {number}: the name: {error}") from None
            if digest[:_PREFIX] in self._names:
                raise ValueError(f"line {number}: the token stands in an earlier line, too")
            self._names[digest[:_PREFIX]] = digest, name

    def __len__(self) -> int:
        return len(self._names)

    def find(self, token: str) -> str | None:
        """The name of a token; None for an unknown one."""
        digest = hash_token(token)
        known, name = self._names.get(digest[:_PREFIX], (b"", ""))
        return name if hmac.compare_digest(known, digest) else None
