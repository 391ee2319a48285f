"""What a client shows who it is with: a password or a token (docs/protocol.rst, section 6)."""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

from tcpjson.core.errors import AuthenticationFailed
from tcpjson.core.handshake import Json, Login

#: How often a server may have a password hashed: seldom makes guessing cheap, and this often takes half a
#: second of one core.
MIN_ITERATIONS = 4096
MAX_ITERATIONS = 2_000_000

_SCRAM = "scram-sha-256"
# Random bytes of our nonce.
_NONCE = 18


def _checked(what: str, text: str) -> str:
    """The text. Where it raises, nothing of it is said."""
    if not isinstance(text, str):
        raise TypeError(f"the {what} must be a str")
    if not text:
        raise ValueError(f"the {what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the {what} holds a character that is none") from None
    return text


def _none_fits(what: str, mechanisms: Sequence[str]) -> AuthenticationFailed:
    offered = ", ".join(mechanisms)
    return AuthenticationFailed(f"the server takes no {what} on this connection, but {offered!r:.100}")


def _in_the_clear(what: str) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"the {what} would be sent in the clear, for all on the way to read: use TLS, or allow_plain=True"
    )


class _OneStep:
    """The secret itself, and the server's word."""

    def __init__(self, first: Json) -> None:
        self.first = first

    def answer(self, data: str) -> Json:
        raise AuthenticationFailed("the server asks for more than the protocol says")

    def finish(self, data: str | None) -> None:
        """It proves nothing: what was to be known of the server, TLS or the Unix socket said before."""


class _Scram:
    """A proof that the password is known, and the server's that it knows it, too (RFC 5802, RFC 7677)."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.first: Json = {"mechanism": _SCRAM, "data": client.get_client_first()}

    # Whatever scramp makes of what a stranger sent, it is no login; and what it says of it is left out.
    def answer(self, data: str) -> Json:
        client = self._client
        try:
            client.set_server_first(data)
            iterations = int(client.iterations)
            if MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
                return {"mechanism": _SCRAM, "data": client.get_client_final()}
        except Exception:
            raise AuthenticationFailed("the server's challenge is none") from None
        raise AuthenticationFailed(
            f"the server wants the password hashed {iterations} times,"
            f" not {MIN_ITERATIONS} to {MAX_ITERATIONS}"
        )

    def finish(self, data: str | None) -> None:
        try:
            self._client.set_server_final(data)
        except Exception:
            raise AuthenticationFailed("the server did not prove that it knows the password") from None


class Password:
    """
    A user name and a password, for any number of connections.

    Where the server offers `scram-sha-256`, the password itself is never sent, and the server must prove that
    it knows it, too; that needs the extra `auth` and takes a moment of hashing at each connection. Else it is
    sent as it is: over TLS or a Unix socket, which keep it from others.

    Args:
        username, password: not empty.
        allow_plain: also send it in the clear, for all on the way to read, where the server offers nothing
            better.
        random: returns as many random bytes as it is asked for.

    Raises:
        TypeError, ValueError: what is wrong with one of them; nothing of it is said.
    """

    def __init__(
        self,
        username: str,
        password: str,
        *,
        allow_plain: bool = False,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._username = _checked("user name", username)
        self._password = _checked("password", password)
        self._allow_plain = allow_plain
        self._random = random

    def __repr__(self) -> str:
        return f"<Password of {self._username!r}>"

    def begin(self, mechanisms: Sequence[str], secure: bool) -> Login:
        """As `tcpjson.core.handshake.Credentials`."""
        allowed = secure or self._allow_plain
        if _SCRAM in mechanisms:
            try:
                import scramp  # type: ignore[import-untyped]  # it has no types
            except ImportError:
                # In the clear it would be for want of a package that everybody can read the password.
                if not secure or "plain" not in mechanisms:
                    raise AuthenticationFailed(
                        "the package scramp is missing: pip install 'tcpjson[auth]'"
                    ) from None
            else:
                return self._scram(scramp)
        if "plain" not in mechanisms:
            raise _none_fits("password", mechanisms)
        if not allowed:
            raise _in_the_clear("password")
        return _OneStep({"mechanism": "plain", "username": self._username, "password": self._password})

    def _scram(self, scramp: Any) -> _Scram:
        nonce = b64encode(self._random(_NONCE)).decode()
        try:
            return _Scram(
                scramp.ScramClient(["SCRAM-SHA-256"], self._username, self._password, c_nonce=nonce)
            )
        except Exception:
            raise AuthenticationFailed(
                "the user name or the password holds a character that is not allowed"
            ) from None


class Token:
    """
    A token, for any number of connections. It is sent as it is, over TLS or a Unix socket.

    Args:
        token: not empty.
        allow_plain: also send it in the clear, for all on the way to read.

    Raises:
        TypeError, ValueError: what is wrong with it; nothing of it is said.
    """

    def __init__(self, token: str, *, allow_plain: bool = False) -> None:
        self._token = _checked("token", token)
        self._allow_plain = allow_plain

    def __repr__(self) -> str:
        return "<Token>"

    def begin(self, mechanisms: Sequence[str], secure: bool) -> Login:
        """As `tcpjson.core.handshake.Credentials`."""
        if "token" not in mechanisms:
            raise _none_fits("token", mechanisms)
        if not (secure or self._allow_plain):
            raise _in_the_clear("token")
        return _OneStep({"mechanism": "token", "token": self._token})
