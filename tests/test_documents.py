"""Each block of code in README.rst and docs/*.rst is a file that is run, is run, or stands in a table."""

from __future__ import annotations

import functools
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import tcpjson
from tcpjson.core import errors
from tcpjson.testing import MemoryServer
from tests import documents, test_wireshark
from tests.documents import (
    DOCUMENTS,
    EXAMPLES,
    ROOT,
    Block,
    Failed,
    Workshop,
    blocks,
    commands,
    environment,
    masked,
    shape,
)
from tests.harness import TIMEOUT, ServerTestCase, certificates, encode, frame
from tests.identities import new_path, users, write
from tests.strangers import Classic

#: Blocks that another test runs, or whose words it compares: the document, how the block begins, that test.
ELSEWHERE = (
    ("clients.rst", r"answers = await gather", "test_documents.FragmentTests.test_many_requests"),
    ("clients.rst", r"Client\(reactor, ", "test_documents.FragmentTests.test_tls_and_logins"),
    ("console.rst", r"python -m tcpjson\.console \[", "test_documents.FragmentTests.test_usage"),
    ("protocol.rst", r'C \{"type":"auth","id"', "test_protocol_document.DocumentTests.test_a_login_by_token"),
    (
        "protocol.rst",
        r'C \{"type":"auth","mech',
        "test_protocol_document.DocumentTests.test_a_login_by_scram",
    ),
    ("protocol.rst", r"import struct, zlib", "test_protocol_document.DocumentTests.test_a_compressed_frame"),
    ("protocol.rst", r"[SC] 0000  ", "test_protocol_document.DocumentTests.test_a_session_in_bytes"),
    ("protocol.rst", r"open  ", "test_protocol_document.TableTests.test_the_diagram"),
    ("security.rst", r"\$ python -m tcpjson\.passwd users", "test_passwd.ProgramTests.test_a_life"),
    ("security.rst", r"import ssl\n", "test_documents.FragmentTests.test_tls_by_hand"),
    ("security.rst", r'send\(\{"type": "auth"', "test_documents.FragmentTests.test_tls_by_hand"),
    ("security.rst", r"\[tcpjson\.server#info\] conn", "test_options.LogTests.test_a_line_each"),
    (
        "writing-a-client.rst",
        r"\$ .*conform .* --only length-zero",
        "test_documents.FragmentTests.test_a_classic_server",
    ),
    ("writing-a-client.rst", r"\$ tshark ", "test_documents.FragmentTests.test_a_capture"),
    ("systemd.rst", r"--port systemd:", "test_systemd.ActivationTests.test_tls_and_headers"),
)

_INSTALLS = "it installs packages; tests/test_packaging.py installs the wheel and the checkout"
_ROOT = "it is for root, and changes the system; tests/test_systemd.py runs what the unit says"
_LONG = "it takes minutes, and what it measures is this machine"
_PRINTED = "a command that takes minutes printed it"

#: Blocks that are not run: the document, how the block begins, and why not. What they call must exist, with
#: the options that are given, and command lines of twistd are parsed.
NOT_RUN = (
    ("README.rst", r"python3 -m venv ", _INSTALLS),
    ("performance.rst", r"pip install \. uvloop", _INSTALLS),
    ("performance.rst", r"pip install '\.\[bench\]'", _INSTALLS),
    ("performance.rst", r"scenario  what", _PRINTED),
    ("performance.rst", r"python -m benchmarks\.", _LONG),
    ("performance.rst", r"echo, payload  ", _PRINTED),
    ("reliability.rst", r"python3 -m venv ", _INSTALLS),
    ("reliability.rst", r"(\$ )?python -m tests\.", "it takes minutes; its short form is one of the tests"),
    ("reliability.rst", r"(fault|seed|module|1\.5 minutes) ", _PRINTED),
    ("security.rst", r"python3 -m venv /opt", _ROOT),
    ("start.rst", r"python3 -m venv ", _INSTALLS),
    ("systemd.rst", r"python3 -m venv /opt", _ROOT),
    ("systemd.rst", r"● tcpjson\.service", _ROOT),
)

_MARKS = ("file:", "more of:", "run:", "log", "output", "options")
_COMMAND = re.compile(r"(?:^|\s|/)python -m ([\w.]+)(.*)")


@functools.cache
def all_blocks() -> list[Block]:
    """Those of all documents."""
    return [block for document in DOCUMENTS for block in blocks(document)]


def begins(block: Block, row: tuple[str, str, str]) -> bool:
    """Whether a row of a table is about a block."""
    return block.document == row[0] and re.match(row[1], block.text) is not None


def not_run() -> list[Block]:
    return [block for block in all_blocks() if not block.mark and any(begins(block, row) for row in NOT_RUN)]


def found(document: str, beginning: str) -> str:
    """The one block of a document that begins so."""
    [block] = [
        each
        for each in all_blocks()
        if each.document == document and re.match(beginning, each.text) is not None
    ]
    return block.text


class AccountTests(SynchronousTestCase):
    """There is a reason to believe each block."""

    def test_each_block(self) -> None:
        """It is a file of docs/examples, is run as its mark says, or stands in one row of one table."""
        wrong = []
        for block in all_blocks():
            rows = [row for row in (*ELSEWHERE, *NOT_RUN) if begins(block, row)]
            if block.mark == "literalinclude":
                fine = (ROOT / "docs" / block.argument).resolve().is_relative_to(EXAMPLES)
            elif block.mark == "docs/examples/":
                fine = block.text == (EXAMPLES / block.argument).read_text(encoding="utf-8")
            elif block.mark in _MARKS:
                fine = hasattr(RunTests, f"test_{stem(block.document)}")
            else:
                fine = len(rows) == 1
            if not fine or (block.mark and rows):
                wrong.append(f"{block} ({block.mark} {block.argument}, rows: {rows})")
        self.assertEqual(wrong, [])

    def test_each_example(self) -> None:
        """One of the tests of examples names it."""
        tests = [ROOT / "tests" / f"test_{name}.py" for name in ("examples", "languages", "applications")]
        text = "".join(path.read_text(encoding="utf-8") for path in tests)
        unknown = [path.name for path in EXAMPLES.iterdir() if not re.search(rf"\b{path.stem}\b", text)]
        self.assertEqual(unknown, [])

    def test_each_row(self) -> None:
        """It is about a block that is there, and the test that it names exists."""
        for row in (*ELSEWHERE, *NOT_RUN):
            self.assertTrue([block for block in all_blocks() if begins(block, row)], row)
        for *_, name in ELSEWHERE:
            module, case, method = name.rsplit(".", 2)
            self.assertTrue(
                callable(getattr(getattr(importlib.import_module(f"tests.{module}"), case), method)), name
            )

    def test_no_other_kinds_of_blocks(self) -> None:
        """What this does not look for is not there: doctests, quoted literal blocks, code in files."""
        for document in DOCUMENTS:
            text = document.read_text(encoding="utf-8")
            self.assertEqual(re.findall(r"^ *>>> .*", text, re.MULTILINE), [], document.name)
            self.assertEqual(re.findall(r"::\n\n[!-/:-@[-`{-~] .*", text), [], document.name)
            self.assertEqual(
                re.findall(r"^\.\. (?:include|raw|highlight|doctest|testcode)::", text, re.M), []
            )

    def test_marks(self) -> None:
        """None stands where no block is."""
        for document in DOCUMENTS:
            text = document.read_text(encoding="utf-8")
            marks = re.findall(
                r"^ *\.\. (?:docs/examples/|file: |more of: |run: |log$|output$|options$)", text, re.M
            )
            marked = [block for block in blocks(document) if block.mark not in ("", "literalinclude")]
            self.assertEqual(len(marks), len(marked), document.name)

    def test_what_is_not_run(self) -> None:
        """Its commands of twistd are taken; the modules that it calls exist, and have the options."""
        workshop = Workshop()
        self.addCleanup(workshop.close)
        calls: dict[str, set[str]] = {}
        for block in not_run():
            workshop.parse(block.text)
            for module, rest in _COMMAND.findall(block.text.replace("\\\n", " ")):
                given = re.findall(r"\s(--[\w-]+)", re.split(r"&&|#", rest)[0])
                calls.setdefault(module, set()).update(given)
        for module, options in calls.items():
            ended = subprocess.run(
                [sys.executable, "-m", module, "--help"],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                timeout=TIMEOUT,
                check=False,
            )
            self.assertEqual(ended.returncode, 0, ended.stdout)
            unknown = {option for option in options if not re.search(rf"{option}\b", ended.stdout)}
            self.assertEqual(unknown, set(), module)


def needs(tool: str) -> None:
    """Skip the test where a program is not installed."""
    if shutil.which(tool) is None:
        raise SkipTest(f"needs {tool}")


def stem(document: str) -> str:
    """What the test of a document is called."""
    return Path(document).stem.lower().replace("-", "_")


class RunTests(SynchronousTestCase):
    """The blocks that say that they are run are run, a document after the other."""

    def run_all(self, name: str) -> None:
        """Run those of a document."""
        [document] = [each for each in DOCUMENTS if each.name == name]
        workshop = Workshop()
        self.addCleanup(workshop.close)
        for block in blocks(document):
            workshop.run(block)

    def test_readme(self) -> None:
        self.run_all("README.rst")

    def test_start(self) -> None:
        self.run_all("start.rst")

    def test_handlers(self) -> None:
        self.run_all("handlers.rst")

    def test_writing_a_client(self) -> None:
        self.run_all("writing-a-client.rst")

    def test_production(self) -> None:
        self.run_all("production.rst")

    def test_monitoring(self) -> None:
        needs("curl")
        needs("promtool")
        self.run_all("monitoring.rst")

    def test_security(self) -> None:
        needs("openssl")
        self.run_all("security.rst")


SAMPLE = """
A paragraph, which ends here::

    one
      deeper

    more

.. run: shell

Two lines
of a paragraph::

    two

* A point.

  .. file: a.py

  .. code-block:: python
     :caption: no code

     three

.. output

::

    four

.. literalinclude:: examples/five.py
   :language: python

.. note::

   six::

       seven
"""


class WorkshopTests(SynchronousTestCase):
    """What makes the others fail."""

    def setUp(self) -> None:
        self.workshop = Workshop()
        self.addCleanup(self.workshop.close)

    def run_one(self, mark: str, text: str, argument: str = "") -> None:
        self.workshop.run(Block("a.rst", 1, mark, argument, text))

    def fails(self, mark: str, text: str, argument: str = "") -> str:
        """See that a block fails; returns what is said of it."""
        with self.assertRaises(Failed) as caught:
            self.run_one(mark, text, argument)
        return str(caught.exception)

    def test_blocks(self) -> None:
        path = new_path(".rst")
        path.write_text(SAMPLE, encoding="utf-8")
        self.assertEqual(
            [(block.line, block.mark, block.argument, block.text) for block in blocks(path)],
            [
                (2, "", "", "one\n  deeper\n\nmore\n"),
                (11, "run:", "shell", "two\n"),
                (20, "file:", "a.py", "three\n"),
                (27, "output", "", "four\n"),
                (31, "literalinclude", "examples/five.py", ":language: python\n"),
                (36, "", "", "seven\n"),
            ],
        )

    def test_outputs(self) -> None:
        self.run_one("run:", "$ echo a; echo b\na\nb\n$ echo c\nc\n", "console")
        self.run_one("run:", "$ seq 5\n1\n[...]\n5\n$ echo c\n[...]\nc\n", "console")
        for text in (
            "$ echo a\n",
            "$ echo a\nb\n",
            "$ seq 3\n1\n2\n",
            "$ seq 3\n1\n[...]\n2\n",
            "$ echo >&2 a\n",
        ):
            self.assertIn("said to be printed:", self.fails("run:", text, "console"))
        self.assertIn("no command", self.fails("run:", "echo a\n", "console"))
        self.run_one("run:", "echo a\n", "shell")
        self.run_one("output", "a\n")
        self.fails("output", "b\n")
        self.assertIn("status 1", self.fails("run:", "false\ntrue\n", "shell"))
        self.assertIn("ZeroDivisionError", self.fails("run:", "1 / 0\n", "python"))
        self.assertIn("no such mark", self.fails("run:", "true\n", "fast"))

    def test_files(self) -> None:
        self.run_one("file:", "print(1)\n", "a.py")
        self.run_one("more of:", "print(2)\n", "a.py")
        self.run_one("run:", "$ python a.py\n1\n2\n", "console")

    def test_options(self) -> None:
        self.run_one("options", "twistd -n tcpjson --port tcp:1 \\\n  --strict\n--port unix:/run/a.sock\n")
        self.assertIn("strct", self.fails("options", "twistd -n tcpjson --strct\n"))
        self.assertIn("users9", self.fails("options", "twistd -n tcpjson --auth scram:/etc/users9\n"))
        self.assertIn("privateKy", self.fails("options", "--port ssl:9999:privateKy=key.pem\n"))

    def test_a_server(self) -> None:
        shown = "[...]\n[tcpjson.service#info] listening on 127.0.0.1:9999\n"
        self.run_one("run:", f"$ twistd -n tcpjson\n{shown}", "server")
        first = self.workshop.process
        ask = "$ echo /ping | python -m tcpjson.console\n"
        self.run_one("run:", f"{ask}pong: 1 ms\n", "console")
        self.run_one("run:", f"{ask}pong: 1 ms\n", "console, served anew")
        self.assertIsNot(self.workshop.process, first)
        self.assertNotIn(self.workshop.port, (0, 9999))
        self.run_one("log", "[tcpjson.server#info] connected 127.0.0.1:1 clients=1\n")
        self.patch(documents, "PATIENCE", 0.1)
        wrong = "[tcpjson.server#info] connected 127.0.0.1:1 clients=7\n"
        self.assertIn("not in 0.1 seconds", self.fails("log", wrong))
        self.assertIn("cannot connect", self.fails("run:", f"{ask}pong: 1 ms\n", "console, unserved"))
        self.assertIn("no-such", self.fails("run:", f"$ twistd -n tcpjson --no-such\n{shown}", "server"))


class FragmentTests(ServerTestCase):
    """Lines that are part of a program."""

    def test_many_requests(self) -> None:
        line = found("clients.rst", "answers = await gather")
        body = f"async def main(client):\n    {line.strip()}\n    return answers\n"
        names: dict[str, Any] = {}
        exec(f"from twisted.internet.defer import gatherResults\n{body}", names)
        server = MemoryServer()
        client = server.client()
        server.result(client.connect())
        self.assertEqual(server.result(names["main"](client)), list(range(1000)))

    def test_tls_and_logins(self) -> None:
        """Each line makes a client, which does not connect."""
        reactor = MemoryReactorClock()
        lines = found("clients.rst", r"Client\(reactor, ").replace(
            "cert.pem", str(certificates().certificate)
        )
        for line in lines.splitlines():
            made = eval(line, {**vars(tcpjson), "reactor": reactor})
            self.assertIn(type(made), (tcpjson.Client, tcpjson.TCPClient))

    def test_usage(self) -> None:
        usage = self.output("-m", "tcpjson.console", "--help").partition("\n\n")[0]
        shown = found("console.rst", r"python -m tcpjson\.console \[").strip()
        self.assertEqual(shown, f"{usage.split()[1]} -m tcpjson.console [WHERE] [options]")
        self.assertIn("[WHERE]", usage)

    def test_a_classic_server(self) -> None:
        """What the conformance kit says of one that is wrong."""
        [(line, shown)] = commands(found("writing-a-client.rst", r"\$ .*conform .* --only length-zero"))
        stranger = Classic()
        self.addCleanup(stranger.stop)
        words = line.replace("localhost:9999", stranger.where).split()
        printed = self.output(*words[1:], status=1)
        self.assertRegex(masked(printed), rf"\A{shape(shown)}\Z")

    def test_a_capture(self) -> None:
        """What tshark shows of the session that writing-a-client.rst has in words."""
        [(line, told)] = commands(found("writing-a-client.rst", r"\$ tshark "))
        server = MemoryServer()
        self.addCleanup(server.stop)
        peer = server.connect()
        capture = test_wireshark.Capture()
        capture.open(50000)
        capture.add(50000, "server", peer.transport.value())
        for sent in (
            encode({"type": "ping", "id": 1}),
            encode({"type": "hello", "compression": ["zlib"]}),
            encode({"type": "echo", "content": {"x": 1}, "id": 2}) + encode({"type": "get_stats", "id": 3}),
            frame(b"hello") + frame(b'{"type": "ping"') + frame(b""),
            test_wireshark.GET,
        ):
            peer.transport.clear()
            capture.add(50000, "client", sent)
            peer.send_bytes(sent)
            capture.add(50000, "server", peer.transport.value())
        path = capture.save()
        script = test_wireshark.SCRIPT.relative_to(ROOT)
        self.assertEqual(line, f"tshark -r session.pcap -X lua_script:{script} -Y tcpjson")
        lengths = re.compile(r"(?<=tcpjson )\d+")
        self.assertEqual(lengths.sub("N", test_wireshark.run(path, "-Y", "tcpjson")), lengths.sub("N", told))

    def test_log_lines(self) -> None:
        """What production.rst says of the log is in the sources, and each reason is one."""
        text = (ROOT / "docs" / "production.rst").read_text(encoding="utf-8")
        [table] = re.findall(r"^line  [^\n]*\n=+ +=+\n(.*?)^=+ ", text, re.MULTILINE | re.DOTALL)
        named = re.findall(r"``([^`]+)``", "\n".join(line[:49] for line in table.splitlines()))
        sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tcpjson").glob("*.py"))
        reasons = {*errors.CODES, errors.CONNECTION_LOST, errors.HANDSHAKE_FAILED}
        self.assertGreater(len(named), 10)
        for name in named:
            if name.startswith("reason="):
                self.assertIn(name.removeprefix("reason="), reasons)
            else:
                words = re.sub(r"^on_(dis)?connect ", "", name)
                self.assertTrue(words in sources or name in sources, name)

    def test_tls_by_hand(self) -> None:
        """In place of a line of the client of start.rst, and behind another, as the text says."""
        needs("openssl")
        workshop = Workshop()
        self.addCleanup(workshop.close)
        [certificate] = [each for each in all_blocks() if "-keyout key.pem" in each.text]
        workshop.run(certificate)
        connects = found("security.rst", "import ssl\n").replace(
            "cert.pem", str(workshop.folder / "cert.pem")
        )
        log_in = found("security.rst", r'send\(\{"type": "auth"')
        text = found("start.rst", "import json\nimport socket")
        [line] = [line for line in text.splitlines(keepends=True) if "create_connection" in line]
        [welcome] = [line for line in text.splitlines(keepends=True) if line.startswith("print(receive()[")]
        accounts = write(new_path(".users"), users({"alice": "…"}))
        keys = f"privateKey={workshop.folder}/key.pem:certKey={workshop.folder}/cert.pem"
        server = self.start("--auth", f"scram:{accounts}", ports=[f"ssl:0:interface=127.0.0.1:{keys}"])
        program = text.replace(line, connects.replace("9999", str(server.address[1])))
        program = program.replace(welcome, f"{welcome}{log_in}print(receive()['status'])\n")
        printed = self.output("-c", program).splitlines()
        self.assertEqual(printed[1], "authenticated")
        self.assertIn("echo_response", printed[2])

    def output(self, *words: str, status: int = 0) -> str:
        """What Python prints with arguments; its status must be this one."""
        ended = subprocess.run(
            [sys.executable, *words],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        self.assertEqual(ended.returncode, status, ended.stdout)
        return ended.stdout
