"""`python -m tcpjson.passwd`: adds, changes and removes users, and makes and removes tokens."""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import getpass
import os
import re
import secrets
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence

from tcpjson.verifiers import (
    ITERATIONS,
    MAX_ITERATIONS,
    MAX_PASSWORD,
    MIN_ITERATIONS,
    Tokens,
    Verifier,
    Verifiers,
    check_name,
    hash_token,
    name_in,
    normal_name,
    saslprep,
    secret_line,
)

# Random bytes of a token.
_TOKEN = 32

Edit = Callable[[list[str]], list[str]]


def _iterations(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not MIN_ITERATIONS <= int(text) <= MAX_ITERATIONS:
        raise argparse.ArgumentTypeError(f"must be a whole number, {MIN_ITERATIONS} to {MAX_ITERATIONS}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tcpjson.passwd",
        description="Adds, changes or removes a user in a file for --auth scram:FILE, and asks for the"
        " password twice; with --token, makes or removes a token in a file for --auth token:FILE.",
        epilog="A running server reads its files again on SIGHUP.",
    )
    parser.add_argument("file", metavar="FILE", help="made if it is missing, with mode 600")
    parser.add_argument("name", metavar="NAME", help="the user, or the name of the token")
    parser.add_argument(
        "--delete", action="store_true", help="remove the user, or with --token all tokens of that name"
    )
    parser.add_argument(
        "--token",
        action="store_true",
        help="make a token and print it; only its hash is kept",
    )
    parser.add_argument(
        "--password-stdin", action="store_true", help="read the password from a line of the standard input"
    )
    parser.add_argument(
        "--iterations",
        type=_iterations,
        metavar="N",
        help=f"how often the password is hashed, {MIN_ITERATIONS} or more [default: {ITERATIONS}]",
    )
    return parser


def _ask() -> str:
    with warnings.catch_warnings():
        # Without a terminal it would go on and show what is typed.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            password = getpass.getpass("New password: ")
            again = getpass.getpass("The same again: ")
        except getpass.GetPassWarning:
            raise ValueError("no terminal to ask on: use --password-stdin") from None
        except (KeyboardInterrupt, EOFError):
            # What is said of it must not stand behind the prompt.
            print(file=sys.stderr)
            raise
    if password != again:
        raise ValueError("the passwords differ")
    return password


def _read_line() -> str:
    # One byte more than fits shows a password that is too long.
    line = sys.stdin.buffer.readline(MAX_PASSWORD + 3)
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise ValueError("the password is not UTF-8") from None


def _new_password(from_stdin: bool) -> str:
    password = _read_line() if from_stdin else _ask()
    if not password:
        raise ValueError("the password is empty")
    try:
        if not saslprep(password, MAX_PASSWORD):
            raise ValueError("it is empty")
    except ValueError as error:
        raise ValueError(f"the password: {error}") from None
    return password


def _without(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if name_in(line) != name]


def _verifier_of(name: str, verifier: Verifier) -> Edit:
    def edit(lines: list[str]) -> list[str]:
        line = f"{name}:{verifier.format()}\n"
        if not lines:
            lines = [secret_line(secrets.token_bytes)]
        if len(_without(lines, name)) == len(lines):
            return [*lines, line]
        return [line if name_in(old) == name else old for old in lines]

    return edit


def _hash_of(name: str, token: str) -> Edit:
    return lambda lines: [*lines, f"{name}:{hash_token(token).hex()}\n"]


@contextlib.contextmanager
def _locked(path: str, create: bool) -> Iterator[int]:
    """The file, open, which no other run of this program changes meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another run may have put a new file in its place while we waited.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _replace(path: str, old: os.stat_result, content: bytes) -> None:
    """Put a file of mode 600 and of the old one's owner in its place, at once and for good."""
    folder = os.path.dirname(path)
    descriptor, temporary = tempfile.mkstemp(prefix=".tcpjson-", dir=folder)
    try:
        with open(descriptor, "wb") as file:
            new = os.fstat(descriptor)
            if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(descriptor, old.st_uid, old.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    # An interrupt too must leave no copy behind.
    except BaseException:
        os.unlink(temporary)
        raise
    holder = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(holder)
    finally:
        os.close(holder)


def change(path: str, parse: Callable[[bytes], object], edit: Edit, *, create: bool) -> None:
    """
    Change the lines of a file.

    Args:
        path: the file; of a symbolic link, that which it leads to.
        parse: raises `ValueError` when the content is not what it must be, before and after.
        edit: gets the lines, their ends included, and returns the new ones.
        create: whether to begin with an empty file where there is none.

    Raises:
        ValueError, OSError: the file is as it was.
    """
    path = os.path.realpath(path)
    with _locked(path, create) as descriptor, open(descriptor, "rb", closefd=False) as file:
        content = file.read()
        try:
            parse(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        # Ends of lines are told as the server tells them, which goes by "\n" alone.
        lines = [f"{line}\n" for line in content.decode().split("\n")]
        lines = lines[:-1] if lines[-1] == "\n" else lines
        new = "".join(edit(lines)).encode()
        parse(new)
        _replace(path, os.fstat(descriptor), new)


def _remove(path: str, parse: Callable[[bytes], object], name: str) -> int:
    """Remove the lines of a name; returns how many there were."""
    count = 0

    def edit(lines: list[str]) -> list[str]:
        nonlocal count
        left = _without(lines, name)
        count = len(lines) - len(left)
        if not count:
            raise ValueError(f"there is no {name}")
        return left

    change(path, parse, edit, create=False)
    return count


def _run(options: argparse.Namespace) -> str:
    """Do what is asked; returns what to tell."""
    file = options.file
    try:
        name = check_name(options.name) if options.token else normal_name(options.name)
    except ValueError as error:
        raise ValueError(f"the name: {error}") from None
    parse = Tokens if options.token else (lambda content: Verifiers(content, b""))
    if options.delete:
        count = _remove(file, parse, name)
        tokens = "1 token" if count == 1 else f"{count} tokens"
        return f"removed {tokens} of {name} from {file}" if options.token else f"removed {name} from {file}"
    if options.token:
        token = base64.urlsafe_b64encode(secrets.token_bytes(_TOKEN)).decode().rstrip("=")
        change(file, parse, _hash_of(name, token), create=True)
        print(token, flush=True)
        return f"added a token of {name} in {file}, which is not shown again"
    password = _new_password(options.password_stdin)
    verifier = Verifier.make(password, options.iterations or ITERATIONS, secrets.token_bytes)
    change(file, parse, _verifier_of(name, verifier), create=True)
    return f"set the password of {name} in {file}"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the program; returns its exit status, 1 when it failed, which a line on standard error explains.

    Raises:
        SystemExit: with 2, the command line is wrong; with 0, help was asked for.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.token or options.delete) and (options.password_stdin or options.iterations is not None):
        parser.error("--password-stdin and --iterations are for new passwords")
    try:
        told = _run(options)
    except KeyboardInterrupt:
        told, status = "interrupted", 1
    except EOFError:
        told, status = "no password was given", 1
    except ImportError:
        told, status = "the package scramp is missing: pip install scramp", 1
    except OSError as error:
        told, status = f"{options.file}: {error.strerror}", 1
    except ValueError as error:
        told, status = str(error), 1
    else:
        told, status = f"{told}; a running server reads it on SIGHUP", 0
    print(f"tcpjson.passwd: {told}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
