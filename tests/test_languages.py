"""docs/examples/classic_client.*: the same client in five languages, on a real server and on hostile ones."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.documents import EXAMPLES, masked
from tests.harness import TIMEOUT, Message, ServerTestCase, encode, folder, frame
from tests.strangers import (
    NO_WELCOME,
    ODD_WELCOME,
    WELCOME,
    Classic,
    Script,
    Stranger,
    Visit,
    error,
    refuses,
    says,
    silent,
)

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

# Transfers a byte at a time, and is interrupted at every third call.
SHORT = """
#include <errno.h>
#include <sys/socket.h>
static int interrupted(void) { static int calls; errno = EINTR; return ++calls % 3 == 0; }
ssize_t send(int file, const void *data, size_t size, int flags)
{ return interrupted() ? -1 : sendto(file, data, size > 0, flags, 0, 0); }
ssize_t recv(int file, void *data, size_t size, int flags)
{ return interrupted() ? -1 : recvfrom(file, data, size > 0, flags, 0, 0); }
"""

ENDED = "the connection ended before a whole message was there"
OTHERS: Message = {"type": "broadcast", "from_client": "a:2", "content": 'a "type", {"type": "pong"} é\n'}
MEANWHILE = 'meanwhile: "broadcast"\n'


def tool(*names: str) -> str:
    """The first of these programs that is here; skips the test where none is."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise SkipTest(f"needs {' or '.join(names)}")


def built(source: Path, *words: str) -> str:
    """The program that a compiler makes of a source, silently."""
    program = Path(tempfile.mkdtemp(dir=folder())) / "classic_client"
    # Those of Go: no module, no network, nothing left in the home of who runs the tests.
    own = {"GO111MODULE": "off", "GOPROXY": "off", "GOFLAGS": "", "GOCACHE": str(folder() / "go")}
    words = (*words, "-o", str(program), str(source))
    # The newer Gos build their library first.
    ended = subprocess.run(
        words, env={**os.environ, **own}, capture_output=True, text=True, timeout=10 * TIMEOUT, check=False
    )
    if ended.returncode or ended.stdout or ended.stderr:
        raise AssertionError(f"{words}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return str(program)


def compiled(source: Path, *options: str) -> str:
    """What the C compiler makes of a source."""
    return built(source, tool("cc", "gcc", "clang"), *STRICT, *options)


@functools.cache
def sanitizers() -> tuple[str, ...]:
    """Options with which a program looks after itself; none where the compiler has no such thing."""
    source = folder() / "nothing.c"
    source.write_text("int main(void)\n{\n    return 0;\n}\n", encoding="ascii")
    try:
        subprocess.run([compiled(source, *SANITIZERS)], capture_output=True, check=True)
    except (AssertionError, subprocess.CalledProcessError):
        return ()
    return SANITIZERS


@functools.cache
def command(source: Path) -> list[str]:
    """How to run a source; it is built first where it must be."""
    match source.suffix:
        case ".go":
            return [built(source, tool("go"), "build")]
        case ".c":
            return [compiled(source, *sanitizers())]
        case suffix:
            programs = {".py": sys.executable, ".js": "node", ".sh": "bash"}
            return [tool(programs[suffix]), str(source)]


def reply(message: Message) -> Message:
    """What a server answers, and nothing that it may leave out."""
    match message["type"]:
        case "ping":
            return {"type": "pong"}
        case "echo":
            return {"type": "echo_response", "content": message["content"]}
        case "broadcast":
            return {"type": "broadcast_sent", "recipients": 0}
        case "get_stats":
            return {"type": "server_stats", "connected_clients": 1}
    return {"type": "response", "original_message": message}


def serves(
    write: Callable[[Visit, bytes], None] = Visit.write,
    reply: Callable[[Message], Message] = reply,
    encode: Callable[[Message], bytes] = encode,
    **welcome: object,
) -> Script:
    """
    Serves as it should.

    Args:
        write: sends the frame of one message.
        reply, encode: make it.
        welcome: what differs in the welcome.
    """

    def script(visit: Visit) -> None:
        write(visit, encode(WELCOME | welcome))
        while True:
            write(visit, encode(reply(visit.receive())))

    return script


def bytewise(visit: Visit, data: bytes) -> None:
    """A byte at a time."""
    for value in data:
        visit.write(bytes([value]))


def together(visit: Visit, data: bytes) -> None:
    """Two messages in one segment."""
    visit.write(encode(OTHERS) + data)


def across(visit: Visit, data: bytes) -> None:
    """A message, and the beginning of the next one; then the rest."""
    visit.write(encode(OTHERS) + data[:6])
    visit.write(data[6:])


def spread(message: Message) -> bytes:
    """JSON over many lines, and an empty one behind it."""
    return frame(json.dumps(message, indent=2).encode() + b"\r\n\n")


def narrow(message: Message) -> bytes:
    """JSON in UTF-8, without a space; names stand there that are none, and fields that nobody knows."""
    strange = {"a": "type", "b": ["text", {"": ""}], "c": 'text"'}
    return frame(json.dumps(strange | message, ensure_ascii=False, separators=(",", ":")).encode())


class PythonTests(ServerTestCase):
    """In Python; the other languages are below."""

    name = "classic_client.py"
    #: Whether what is not UTF-8 is found wherever it stands.
    checks_utf8 = True

    def command(self) -> list[str]:
        """How to run the client."""
        return command(EXAMPLES / self.name)

    def visit(
        self, where: tuple[str, int], command: list[str] | None = None, **variables: str
    ) -> tuple[int, str, str]:
        """Run the client; returns its status, what it printed, and what it printed as an error."""
        # So that what these find is not taken for an error of the client's.
        own = {
            "ASAN_OPTIONS": "exitcode=99:max_allocation_size_mb=4:allocator_may_return_null=0",
            "UBSAN_OPTIONS": "exitcode=99:print_stacktrace=1",
        }
        ended = subprocess.run(
            [*(command or self.command()), where[0], str(where[1])],
            env={**os.environ, **own, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    def meets(self, script: Script, command: list[str] | None = None) -> tuple[int, str, str]:
        """Run the client on a stranger that does with it what a script says."""
        with Stranger(script) as stranger:
            return self.visit(("127.0.0.1", stranger.port), command)

    def succeeds(self, result: tuple[int, str, str], what: str = "", **fields: object) -> None:
        """See that it printed what it should, but for fields that another welcome or other replies have."""
        status, output, told = result
        lines = (EXAMPLES / "classic_client.txt").read_text(encoding="utf-8")
        for name, value in fields.items():
            lines, count = re.subn(rf" {name} .*", lambda _: f" {name} {json.dumps(value)}", lines)  # noqa: B023
            self.assertEqual(count, 1)
        self.assertEqual((status, told), (0, ""), what)
        self.assertEqual(masked(output), masked(lines), what)

    def fails(self, result: tuple[int, str, str], reason: str, what: str = "") -> None:
        """See that it said why, in one line and nothing more, and has the status that says so."""
        status, output, told = result
        self.assertEqual(status, 1, what)
        self.assertRegex(told, rf"\Aclassic_client: {reason}\n\Z", what)
        self.assertTrue((output + told).replace("\n", "").isprintable(), what)

    # Servers that do as they should.

    def test_server(self) -> None:
        """By the name of the host, which may have an address, too, where nobody listens."""
        server = self.start()
        self.succeeds(self.visit(("localhost", server.address[1])))
        server.wait_for("disconnected .* reason=client_closed ")

    def test_another_client(self) -> None:
        """It gets the broadcast, and is counted."""
        server = self.start()
        peer = self.connect(server)
        self.succeeds(self.visit(server.address), recipients=1, connected_clients=2)
        self.assertEqual(peer.receive()["content"], {"text": "тест"})

    def test_classic_server(self) -> None:
        """One that sends no more than it must; a field less is no reason to fail."""
        with Classic() as server:
            self.succeeds(self.visit(("127.0.0.1", server.port)))
            self.assertEqual(
                [message["type"] for message in server.received if isinstance(message, dict)],
                ["ping", "echo", "broadcast", "get_stats", "move"],
            )
        with Classic({"welcome": ("client_id",), "broadcast_sent": ("recipients",)}) as server:
            self.succeeds(self.visit(("127.0.0.1", server.port)), client_id=None, recipients=None)

    def test_spellings(self) -> None:
        """JSON may look this way or that."""
        for spelled in (spread, narrow):
            self.succeeds(self.meets(serves(encode=spelled)), spelled.__name__)

    def test_partial_reads(self) -> None:
        self.succeeds(self.meets(serves(bytewise)))

    def test_two_messages_at_once(self) -> None:
        for write in (together, across):
            status, output, told = self.meets(serves(write))
            self.assertEqual(output.count(MEANWHILE), 6, write.__name__)
            self.succeeds((status, output.replace(MEANWHILE, ""), told), write.__name__)

    def test_odd_welcome(self) -> None:
        for name, fields in ODD_WELCOME.items():
            client_id = (WELCOME | fields)["client_id"]
            self.succeeds(self.meets(serves(**fields)), name, client_id=client_id)

    def test_long(self) -> None:
        """As long as a message may be: what the server takes, and what stands around it."""
        for max_length in (100, 1048576):
            for length, fits in ((max_length + 4096, True), (max_length + 4097, False)):
                message = encode({**OTHERS, "content": ""})
                padded = encode({**OTHERS, "content": "x" * (4 + length - len(message))})
                write = functools.partial(self._behind_welcome, padded)
                status, output, told = self.meets(serves(write, max_length=max_length))
                if fits:
                    self.assertEqual(output.count(MEANWHILE), 5)
                    self.succeeds((status, output.replace(MEANWHILE, ""), told))
                else:
                    self.fails((status, output, told), f"a message of {length} bytes is too long")

    @staticmethod
    def _behind_welcome(before: bytes, visit: Visit, data: bytes) -> None:
        """Send a frame before each other than the welcome."""
        visit.write(data if b'"welcome"' in data else before + data)

    # Servers that do not.

    def test_cut(self) -> None:
        """The end comes before a message, in its length, in its payload; in the first or another."""
        welcome, pong = encode(WELCOME), encode({"type": "pong"})
        for count in (0, 1, 3, 4, 5, len(welcome) - 1):
            self.fails(self.meets(says(welcome[:count], close=True)), ENDED, f"{count} bytes")
        for count in (0, 1, 3, 4, 5, len(pong) - 1):
            self.fails(self.meets(says(pong[:count], close=True, welcome=True)), ENDED, f"{count} bytes")

    def test_reset(self) -> None:
        def resets(visit: Visit) -> None:
            visit.write(encode(WELCOME)[:5])
            visit.reset()

        self.fails(self.meets(resets), ".+")

    def test_gone(self) -> None:
        """What is sent finds nobody: the ping is answered by force, and to write behind it is an error."""
        answers = (WELCOME, {"type": "pong"}, {"type": "pong"})
        self.fails(self.meets(says(b"".join(map(encode, answers)), close=True)), ".+")

    def test_huge(self) -> None:
        """It is refused at once, and no memory is taken for it."""
        for length in (2**31 - 1, 2**31, 2**32 - 1):
            head = length.to_bytes(4, "big")
            reason = f"a message of {length} bytes is too long"
            self.fails(self.meets(says(head)), reason)
            self.fails(self.meets(says(head + b"{" * 1000, welcome=True)), reason)
            for max_length in (10**30, -1, 0, 2**32):
                welcome = encode(WELCOME | {"max_length": max_length})
                self.fails(self.meets(says(welcome + head)), reason, str(max_length))

    def test_no_server(self) -> None:
        for name, data in NO_WELCOME.items():
            self.fails(self.meets(says(data, close=True)), ".+", name)
        # It has a port, but does not listen.
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            self.fails(self.visit(nobody.getsockname()), ".+")

    def test_no_object(self) -> None:
        payloads = [b"", b"hello", b"[1, 2]", b"5", b"null", b'"type"']
        if self.checks_utf8:
            payloads.append(encode(WELCOME)[4:].replace(b"hello", b"\xff"))
        for payload in payloads:
            data = frame(payload)
            self.fails(self.meets(says(data)), "what came is no JSON object", repr(payload))

    def test_errors_are_shown(self) -> None:
        """Whatever they hold, and instead of the welcome, too; they do nothing to a terminal."""
        told = r'error "server_full": "no: server_full"'
        self.fails(self.meets(refuses("server_full")), told)
        for fields, told in (
            ({}, r'error "forbidden": "no: forbidden"'),
            ({"message": '\x1b[31m"red"'}, r'error "forbidden": "\\u001b\[31m\\"red\\""'),
            ({"message": None, "code": 5}, "error 5: null"),
        ):
            message = error("forbidden") | fields
            self.fails(self.meets(says(encode(message), welcome=True)), told, told)
        self.fails(self.meets(says(encode({"type": "error"}), welcome=True)), "error null: null")
        # JSON need not escape those that begin with U+0080.
        payload = json.dumps(error("forbidden", message="\x80\x9b31m\x9f©т"), ensure_ascii=False)
        told = r'error "forbidden": "(\\u0080\\u009b31m\\u009f\\u00a9\\u0442|\?\?31m\?©т)"'
        self.fails(self.meets(says(frame(payload.encode()), welcome=True)), told)
        raw = encode(error("forbidden")).replace(b"no: ", b"\x1b[3m")
        self.fails(self.meets(says(raw, welcome=True)), ".+")
        long = encode(error("x" * 10_000, message="y" * 10_000))
        self.fails(self.meets(says(long, welcome=True)), 'error "x+"?: "y+"?')

    def test_another_echo(self) -> None:
        for text in ("?????", "тестт", "", None, ["тест"]):

            def other(message: Message) -> Message:
                answer = reply(message)
                return answer | {"content": {"text": text}} if "content" in answer else answer  # noqa: B023

            self.fails(self.meets(serves(reply=other)), "the echo is another", repr(text))

    def test_what_the_server_would_refuse(self) -> None:
        """It is not sent: the server hears the ping, and no more."""
        heard = []

        def hears(message: Message) -> Message:
            heard.append(message["type"])
            return reply(message)

        reason = r"the server takes no message of \d+ bytes"
        self.fails(self.meets(serves(reply=hears, max_length=20)), reason)
        self.assertEqual(heard, ["ping"])

    def test_silence(self) -> None:
        """With a second instead of ten."""
        text, count = re.subn(
            r"(?i)\b(timeout( = | +|=))10\b", r"\g<1>1", (EXAMPLES / self.name).read_text("utf-8")
        )
        self.assertEqual(count, 1)
        source = Path(tempfile.mkdtemp(dir=folder())) / self.name
        source.write_text(text, encoding="utf-8")
        reason = "nothing came for 1 seconds"
        hurried = command(source)
        self.fails(self.meets(silent, hurried), reason)
        self.fails(self.meets(says(encode({"type": "pong"})[:9], welcome=True), hurried), reason)


class NodeTests(PythonTests):
    """In JavaScript."""

    name = "classic_client.js"


class GoTests(PythonTests):
    """In Go."""

    name = "classic_client.go"
    checks_utf8 = False


class CTests(PythonTests):
    """In C."""

    name = "classic_client.c"
    checks_utf8 = False

    def test_partial_writes(self) -> None:
        """And interrupted ones, and reads."""
        shim = folder() / "short.c"
        shim.write_text(SHORT, encoding="ascii")
        library = compiled(shim, "-D_POSIX_C_SOURCE=200809L", "-shared", "-fPIC")
        program = compiled(EXAMPLES / self.name)
        server = self.start()
        self.succeeds(self.visit(server.address, [program], LD_PRELOAD=library))
        self.assertIn("connected", server.log[-1])


class BashTests(PythonTests):
    """In bash."""

    name = "classic_client.sh"
    checks_utf8 = False
