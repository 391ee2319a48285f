"""CPU time of the server a message: tcpjson of this checkout beside that of another revision.

How it is measured is said in ``benchmarks/runs.py``. Both are copied into temporary folders first, so that
all rounds measure the same files, whatever is edited meanwhile; of this checkout, the files as they are,
committed or not. Both run under this Python, with the packages installed for it. To see how far two runs of
the same code differ, compare a checkout without changes with HEAD.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.runs import Comparison, add_arguments, check_arguments, compare
from benchmarks.servers import (
    ROOT,
    TCPJSON,
    BenchmarkError,
    Kind,
    end_on_sigterm,
    environment,
    raise_file_limit,
    usable,
)

TARGET = 1.10
ECHOES = ("echo100", "echo10k", "object", "round")
WORKS = ("echo100", "round", "cast1", "cast20")
SERVED = ("tcpjson", "twisted")  # what the server consists of


def git(*arguments: str) -> bytes:
    """
    What git says about this checkout; it changes nothing.

    Raises:
        BenchmarkError: git is not there, or refuses.
    """
    try:
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *arguments], check=True, capture_output=True
        ).stdout
    except FileNotFoundError:
        raise BenchmarkError("git is not there") from None
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"git {arguments[0]}: {error.stderr.decode(errors='replace').strip()}") from None


def described(revision: str) -> tuple[str, str]:
    """The whole name of a commit and a line about it."""
    commit = git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    return commit, git("show", "--no-patch", "--format=%h %s", commit).decode(errors="replace").strip()


def copy_revision(commit: str, folder: Path) -> None:
    """Put the files of a revision into a folder."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", commit, *SERVED))) as archive:
        archive.extractall(folder, filter="data")


def copy_checkout(folder: Path) -> None:
    """Put the files of this checkout into a folder."""
    for name in SERVED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc", "dropin.cache"))


def server_in(folder: Path, name: str, label: str, words: Sequence[str]) -> Kind:
    """
    The server whose files are in a folder.

    Raises:
        BenchmarkError: Python would take another tcpjson, or cannot import it.
    """
    imported = subprocess.run(
        [sys.executable, "-c", "import tcpjson; print(tcpjson.__file__)"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
    )
    if imported.returncode:
        raise BenchmarkError(f"{label} cannot be imported:\n{imported.stderr.strip()}")
    found = Path(imported.stdout.strip()).resolve()
    if found.parent.parent != folder.resolve():
        raise BenchmarkError(f"{label}: Python takes tcpjson from {found} and not from {folder}")
    return replace(TCPJSON.with_words(words), name=name, label=label, root=folder)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.revisions", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("revision", help="what git calls it: a commit, a tag, a branch")
    add_arguments(parser, WORKS, 15, 0.5)
    for name, whose in (("option", "both servers' commands"), ("our-option", "that of this checkout only")):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="WORD",
            help=f"one more word for {whose}, as --{name}=--strict",
        )
    options = parser.parse_args(arguments)
    check_arguments(parser, options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    raise_file_limit()
    if not usable([TCPJSON.name]):
        return 1
    try:
        commit, subject = described(options.revision)
        with tempfile.TemporaryDirectory(prefix="tcpjson-bench-") as folder:
            before, ours = Path(folder, "before"), Path(folder, "ours")
            copy_revision(commit, before)
            copy_checkout(ours)
            theirs = server_in(before, "before", subject.partition(" ")[0], options.option)
            mine = server_in(ours, "ours", "this checkout", [*options.option, *options.our_option])
            changed = git("status", "--porcelain", "--", *SERVED)
            print(f"this checkout: {described('HEAD')[1]}{', with changes' if changed else ''}")
            print(f"beside it:     {subject}", flush=True)
            targets = dict.fromkeys(ECHOES, TARGET)
            compare(Comparison(mine, theirs, targets), [theirs, mine], options)
        print(
            "the ratio is this checkout's CPU time to the other's: the median of the rounds, least and most\n"
            "in brackets; 1.00 is no difference, and the target is for echoes"
        )
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
