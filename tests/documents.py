"""
The blocks of code in README.rst and docs/*.rst, and a folder in which they are run.

A comment before a block, or before the paragraph that ends with its `::`, says what is done with it, in the
order of the document, in one folder for each document:

    .. docs/examples/NAME    it is this file
    .. file: NAME            it is written to a file of this name
    .. more of: NAME         it stands behind what the file has already
    .. run: shell            a script of the shell, which must not fail
    .. run: python           a program
    .. run: console          lines `$ COMMAND`, and behind each all that it prints; it may fail
    .. run: server           the same, but the last command goes on: shown is how its output begins; it is
                             ended by the next one, or by the end of the document
    .. run: console, HOW     HOW: `served anew`, the server is started again before, with the files as they
                             are now; or `unserved`, it is ended before
    .. log                   lines that the server prints, too
    .. output                what the block above printed
    .. options               command lines of twistd, or their ends from `--port` on, which must be taken

In the folder there are `key.pem`, `cert.pem`, `ca.pem`, `users` (alice, bob; `secret`), `tokens` (sensor-7,
`secret`), `docs/examples`, and the alerts of `contrib/prometheus`. In outputs a line `[...]` stands for any
lines, and what differs from run to run is not compared. Ports 9999 and 9100 (that of `--metrics`) are others,
free ones, on loopback; where a command of the package leaves the former to the default, it is put in.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

from tests.harness import TIMEOUT, certificates, command, until
from tests.identities import tokens, users, write

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
ALERTS = ROOT / "contrib" / "prometheus" / "alerts.yml"
DOCUMENTS = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]

#: Seconds that a line of the log may take.
PATIENCE = 10.0

# What differs from run to run.
_MASKS = (
    (r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", ""),
    (r"[ \t]+$", ""),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(?:Z|\d{3})", "TIME"),
    # How many vectors and checks there are.
    (r" +\d+ (passed|skipped)", r" N \1"),
    (r"\bskipped \d+:", "skipped N:"),
    (r"\b((?:tcp|ssl):)\d+(?::interface=127\.0\.0\.1)?", r"\1PORT"),
    (r"127\.0\.0\.1:\d+|localhost:\d+", "HOST:PORT"),
    (r"\b[0-9a-f]{8}\b", "WORD"),
    (r"\b[\w-]{43}\n", "TOKEN\n"),
    (r"\btcpjson/[\w.+]+", "tcpjson/VERSION"),
    (r"\d+(?:\.\d+)?(?:e-\d+)? ?(ms|s|seconds|bytes)\b", r"N \1"),
    (r'("length":)\d+', r"\1N"),
    (r"\b(uptime_seconds|total_messages)(\W+)\d+", r"\1\2N"),
    (r"\b(seconds|bytes_in|bytes_out)=[\d.]+", r"\1=N"),
    (r'("(?:\w*seconds|bytes_in|bytes_out|size)":) ?[\d.e-]+', r"\1 N"),
)

# Where a block may begin: a directive, or a paragraph that ends with two colons.
_DIRECTIVE = re.compile(
    r"( *)\.\. (code-block|code|sourcecode|literalinclude|parsed-literal|highlight):: *(.*)"
)
_PARAGRAPH = re.compile(r"( *)(?!\.\. )\S?.*::")
_MARK = re.compile(r" *\.\. (docs/examples/|file: |more of: |run: |log$|output$|options$)(.*)")


class Block(NamedTuple):
    """A block of code: the line where it begins, its mark and what stands behind that, its text."""

    document: str
    line: int
    mark: str
    argument: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}, line {self.line}: {self.text.partition(chr(10))[0]}"


def blocks(document: Path) -> list[Block]:
    """All blocks of code of a document, in their order."""
    lines = document.read_text(encoding="utf-8").splitlines()
    found = []
    number = 0
    while number < len(lines):
        directive = _DIRECTIVE.fullmatch(lines[number])
        start = directive or _PARAGRAPH.fullmatch(lines[number])
        number += 1
        if start is None:
            continue
        first = number - 1
        while directive is None and first and lines[first - 1].strip():
            first -= 1
        before = [line for line in lines[:first] if line.strip()][-1:]
        mark = _MARK.fullmatch(before[0]) if before else None
        body = []
        while number < len(lines) and (not lines[number].strip() or lines[number].startswith(start[1] + " ")):
            body.append(lines[number])
            number += 1
        text = textwrap.dedent("\n".join(body)).strip("\n") + "\n"
        if directive is not None and directive[2] == "literalinclude":
            found.append(Block(document.name, first + 1, "literalinclude", directive[3], text))
            continue
        # Options of a directive end with an empty line.
        if directive is not None and text.startswith(":"):
            text = text.partition("\n\n")[2]
        kind, argument = (mark[1].strip(), mark[2]) if mark is not None else ("", "")
        found.append(Block(document.name, first + 1, kind, argument, text))
    return found


def masked(text: str) -> str:
    """The text, without what differs from run to run."""
    for pattern, name in _MASKS:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text


def shape(text: str) -> str:
    """A pattern for outputs that are like this one; a line `[...]` stands for any lines."""
    return "(?:.*\n)*".join(re.escape(part) for part in masked(text).split("[...]\n"))


def environment() -> dict[str, str]:
    """One in which `python` is this one, and finds the package."""
    _, variables = command()
    path = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    return {**variables, "PATH": path, "PYTHONIOENCODING": "utf-8"}


def commands(text: str) -> list[tuple[str, str]]:
    """The lines `$ COMMAND` of a text, without the dollar, and what stands behind each."""
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n", text, flags=re.MULTILINE)
    if parts[0]:
        raise AssertionError(f"no command: {parts[0]!r}")
    return list(zip(parts[1::2], parts[2::2], strict=True))


_ASKS = r"(python -m tcpjson\.(?:console|demo))"

# Parses command lines of twistd, from standard input, in a folder that has the files they name.
_PARSE = """
import json, os, sys
from twisted.internet.testing import MemoryReactorClock
from tcpjson import tap
sys.path.insert(0, os.getcwd())
for words in json.load(sys.stdin):
    options = tap.Options()
    options.parseOptions(words)
    for port in options["ports"]:
        tap.port_from(port, MemoryReactorClock(), options["client-ca"])
    if options["metrics"]:
        tap.open_metrics_port(options["metrics"], MemoryReactorClock())
"""


class Failed(AssertionError):
    """A block does not do what the document says."""


class Workshop:
    """
    A folder in which the blocks of a document are run, one after another.

    Raises:
        Failed: by `run`, with what was expected and what came.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tcpjson-"))
        self.files: dict[str, str] = {}
        self.port = self.metrics_port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._log = self.folder / ".log"
        self._printed = ""
        self._serving = ("", "")
        for name in ("key.pem", "ca.pem", "cert.pem"):
            source = certificates().key if name == "key.pem" else certificates().certificate
            write(self.folder / name, source.read_bytes())
        write(self.folder / "users", users({"alice": "secret", "bob": "secret"}))
        write(self.folder / "tokens", tokens({"secret": "sensor-7"}))
        for path in (*EXAMPLES.iterdir(), ALERTS):
            self.files[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")

    def close(self) -> None:
        """End the server, and remove the folder."""
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, block: Block) -> None:
        """Do with a block what its mark says; one without a mark, or that is a file, is left alone."""
        try:
            self._run(block)
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            raise Failed(f"{block}\n{error}") from error

    def _run(self, block: Block) -> None:
        match block.mark, block.argument:
            case "file:", name:
                self.files[name] = block.text
            case "more of:", name:
                self.files[name] += f"\n\n{block.text}"
            case "run:", "shell":
                self._printed = self._shell(f"set -e\n{block.text}", 0)
            case "run:", "python":
                self.files[".program.py"] = block.text
                self._printed = self._shell("python .program.py", 0)
            case "run:", ("console" | "console, served anew" | "console, unserved") as how:
                if how == "console, served anew":
                    self._serve(*self._serving)
                elif how == "console, unserved":
                    self._end()
                for line, output in commands(block.text):
                    self._compare(output, self._shell(line))
            case "run:", "server":
                *before, (line, output) = commands(block.text)
                for early, nothing in before:
                    self._compare(nothing, self._shell(early))
                self._serve(line, output)
            case "log", _:
                self._find_in_log(block.text.splitlines())
            case "output", _:
                self._compare(block.text, self._printed)
            case "options", _:
                self.parse(block.text)
            case "run:", other:
                raise AssertionError(f"no such mark: run: {other}")

    def _compare(self, expected: str, printed: str) -> None:
        if not re.fullmatch(shape(expected), masked(printed)):
            raise AssertionError(f"said to be printed:\n{expected}printed:\n{printed}")

    def _local(self, text: str) -> str:
        """A command line or a file with our port in it."""
        text = re.sub(rf"{_ASKS}(?=\s*(?:$|[-<>|;&]))", r"\1 localhost:9999", text, flags=re.MULTILINE)
        text = re.sub(rf"{_ASKS} localhost(?![\w:.])", r"\1 localhost:9999", text)
        text = re.sub(r"(twistd(?: -\S+)* tcpjson)\b(?!(?:.|\\\n)*--port)", r"\1 --port tcp:9999", text)
        text = re.sub(r"\b((?:tcp|ssl):9999)\b(?!:interface)", r"\1:interface=127.0.0.1", text)
        return text.replace("9999", str(self.port)).replace("9100", str(self.metrics_port))

    def _prepare(self, line: str) -> tuple[list[str], dict[str, str]]:
        for name, text in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._local(text), encoding="utf-8")
        variables = {**environment(), "HOME": str(self.folder), "TERM": "dumb", "PYTHONUNBUFFERED": "1"}
        return ["/bin/sh", "-c", self._local(line)], variables

    def _shell(self, line: str, status: int | None = None) -> str:
        """What a command prints, errors too. It must end with this status, if one is given."""
        words, variables = self._prepare(line)
        ended = subprocess.run(
            words,
            cwd=self.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=2 * TIMEOUT,
            check=False,
        )
        if status is not None and ended.returncode != status:
            raise AssertionError(f"status {ended.returncode}, printed:\n{ended.stdout}")
        return ended.stdout

    def _find_in_log(self, lines: list[str]) -> None:
        wanted = [re.compile(rf"^\s*{re.escape(masked(line).strip())}$", re.MULTILINE) for line in lines]
        try:
            until(lambda: all(each.search(self._logged()) for each in wanted), "in the log", PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}; there is:\n{self._logged()}") from None

    def _logged(self) -> str:
        return masked(self._log.read_text(encoding="utf-8")) if self._log.exists() else ""

    def _serve(self, line: str, output: str) -> None:
        self._end()
        self._serving = (line, output)
        self.port = self.metrics_port = 0
        before, and_then, last = line.rpartition("&& ")
        words, variables = self._prepare(f"{before}{and_then}exec {last}")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                words, cwd=self.folder, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        process = self.process
        until(lambda: process.poll() is not None or re.match(shape(output), self._logged()), "what is shown")
        if not re.match(shape(output), self._logged()):
            raise AssertionError(f"said to be printed:\n{output}printed:\n{self._logged()}")
        log_text = self._log.read_text(encoding="utf-8")
        found = re.search(r"listening on [^\"\n]*:(\d+)\"?", log_text)
        if found is None:
            raise AssertionError(f"it does not listen:\n{log_text}")
        self.port = int(found[1])
        if shown := re.search(r"metrics on \w+://[^\"\n]*:(\d+)/", log_text):
            self.metrics_port = int(shown[1])

    def _end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def parse(self, text: str) -> None:
        """See that all command lines of twistd in a text are taken, and all ports can be made."""
        lines = []
        for line in text.replace("\\\n", " ").splitlines():
            # Files are those of this folder, wherever they are said to be.
            here = re.sub(r"(?<=[=: ])/(?:\w+/)*", "", line)
            words = shlex.split(here, comments=True)
            twistd = [number for number, word in enumerate(words) if Path(word).name == "twistd"]
            if twistd:
                lines.append(words[words.index("tcpjson", twistd[0]) + 1 :])
            elif words[:1] == ["--port"]:
                lines.append(words)
        if not lines:
            return
        _, variables = self._prepare("")
        ended = subprocess.run(
            [sys.executable, "-c", _PARSE],
            cwd=self.folder,
            env=variables,
            input=json.dumps(lines),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        if (ended.returncode, ended.stdout) != (0, ""):
            raise AssertionError(f"{lines}\n{ended.stdout}")
