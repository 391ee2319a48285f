"""Who a program says that it is: the options for it, and the secrets that it must not say."""

from __future__ import annotations

import argparse
import getpass
import sys
import warnings
from collections.abc import Callable, Sequence

from tcpjson.credentials import Password, Token

#: Bytes of a file with a secret.
_MAX_SECRET = 4096


def add_options(parser: argparse.ArgumentParser) -> None:
    """Have a command line say who logs in, and what it trusts."""
    parser.add_argument("--user", metavar="NAME", help="log in, with a password that is asked for")
    parser.add_argument("--password-file", metavar="FILE", help="with --user: the password is its first line")
    parser.add_argument("--token-file", metavar="FILE", help="log in with a token, the first line of a file")
    parser.add_argument(
        "--allow-plain-auth", action="store_true", help="send passwords and tokens in the clear, too"
    )
    parser.add_argument(
        "--ca", metavar="FILE", help="speak TLS, with servers that an authority in it vouches for"
    )


def read(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    Read a command line that has these options.

    Raises:
        SystemExit: with 2, it is wrong; with 0, help was asked for.
    """
    options = parser.parse_args(arguments)
    if options.user is not None and options.token_file is not None:
        parser.error("--user and --token-file: one of them")
    if options.password_file is not None and options.user is None:
        parser.error("--password-file: whose? Give --user, too")
    return options


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            # One byte more than fits shows one that is too long.
            line = file.readline(_MAX_SECRET + 3)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    secret = line.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise ValueError(f"{path}: its first line is empty")
    if len(secret) > _MAX_SECRET:
        raise ValueError(f"{path}: its first line is longer than {_MAX_SECRET} bytes")
    try:
        return secret.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no UTF-8") from None


def ask_password(name: str) -> str:
    """
    Ask on the terminal, which does not show it.

    Raises:
        ValueError: there is no terminal, or nothing was typed.
    """
    with warnings.catch_warnings():
        # Without a terminal it would go on and show what is typed.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            password = getpass.getpass(f"Password of {name}: ")
        except getpass.GetPassWarning:
            raise ValueError("no terminal to ask for the password on: use --password-file") from None
        except EOFError:
            print(file=sys.stderr)
            raise ValueError("no password was given") from None
    if not password:
        raise ValueError("no password was given")
    return password


def credentials(
    options: argparse.Namespace, ask: Callable[[str], str] = ask_password
) -> Password | Token | None:
    """
    Who the options say we are.

    Raises:
        ValueError: with one line, which has nothing of the secret.
    """
    if options.token_file is not None:
        return Token(_first_line(options.token_file), allow_plain=options.allow_plain_auth)
    if options.user is None:
        return None
    file = options.password_file
    password = ask(options.user) if file is None else _first_line(file)
    return Password(options.user, password, allow_plain=options.allow_plain_auth)
