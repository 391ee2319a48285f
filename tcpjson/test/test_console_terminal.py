"""The console by prompt_toolkit, on a terminal in memory."""

# Without the extra `console` nothing of prompt_toolkit has a type, and with it nothing is to be ignored.
# mypy: disable-error-code="import-not-found", no-warn-return-any, no-warn-unreachable

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tcpjson.client import Client
from tcpjson.console.history import History
from tcpjson.testing import MemoryClient, MemoryServer

# Turns of the loop in which all that is to happen happens: completion and drawing take several.
_TURNS = 2000


class TerminalTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        if importlib.util.find_spec("prompt_toolkit") is None:
            raise SkipTest("needs prompt_toolkit: pip install 'tcpjson[console]'")
        self.server = MemoryServer()
        self.clients: list[MemoryClient] = []
        self.path = Path(self.mktemp())

    def make(self, where: str, **callbacks: Any) -> Client:
        if where == "nowhere":
            raise ValueError("nowhere: no such place")
        self.clients.append(self.server.client(**callbacks))
        return self.clients[-1]

    def run_terminal(
        self,
        script: Callable[[Typist], Awaitable[None]],
        where: str = "here",
        colour: bool = True,
    ) -> str:
        """Have somebody type until the console ends; returns what was shown, escape sequences included."""
        from prompt_toolkit.data_structures import Size
        from prompt_toolkit.input import create_pipe_input
        from prompt_toolkit.output.vt100 import Vt100_Output

        from tcpjson.console.terminal import Terminal

        shown: Any = Screen()

        async def run() -> None:
            with create_pipe_input() as pipe:
                shown.answer = pipe.send_text
                size = Size(rows=40, columns=200)
                output = Vt100_Output(shown, lambda: size, term="xterm")
                terminal = Terminal(
                    self.server.clock,
                    self.make,
                    where,
                    History(self.path),
                    colour=colour,
                    input=pipe,
                    output=output,
                )
                running = asyncio.ensure_future(terminal.run())
                typist = Typist(self.server, terminal, pipe, shown, running)
                try:
                    await script(typist)
                    await typist.until(running.done)
                finally:
                    running.cancel()
                    await typist.until(running.done)
                running.result()

        asyncio.run(run())
        text: str = shown.text
        return text


class Screen:
    """A terminal, which says where its cursor is when it is asked: how the toolbar comes by its place."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""
        self.answer: Callable[[str], None] = print

    def write(self, text: str) -> int:
        self.text += text
        for _ in range(text.count("\x1b[6n")):
            self.answer("\x1b[1;1R")
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


class Typist:
    """Who types."""

    def __init__(
        self, server: MemoryServer, terminal: Any, pipe: Any, screen: Screen, running: asyncio.Task[None]
    ) -> None:
        self._server = server
        self.terminal = terminal
        self._pipe = pipe
        self._screen = screen
        self.running = running

    @property
    def line(self) -> str:
        """What stands in the line that is typed."""
        return str(self.terminal._session.default_buffer.text)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let all go on until something holds."""
        for _ in range(_TURNS):
            if condition():
                return
            self._server.advance(0.125)
            # Threads and descriptors have their turns, too.
            await asyncio.sleep(0.001)
        raise AssertionError(f"it does not come to that: {self._screen.text[-2000:]!r}")

    async def type(self, text: str, shows: str | None = None) -> None:
        """Type; wait until something more is shown, and that nobody reads what was typed."""
        before = len(self._screen.text)
        self._pipe.send_text(text)
        if shows is not None:
            await self.until(lambda: shows in self._screen.text[before:])

    async def until_line(self, text: str) -> None:
        """Wait until this stands in the line."""
        await self.until(lambda: self.line == text)


class TerminalTests(TerminalTestCase):
    def test_commands(self) -> None:
        async def script(typist: Typist) -> None:
            await typist.until(lambda: self.clients and self.clients[-1].connected)
            await typist.type("/ping\r", " ms")
            await typist.type("/pnig\r", "did you mean /ping?")
            await typist.type("a\x1b[Db\r", "ba")
            await typist.type("/exit\r")

        shown = self.run_terminal(script)
        self.assertIn("connected to here as 127.0.0.1:50000", shown)
        self.assertFalse(self.clients[0].connected)

    def test_nothing_of_a_stranger_is_obeyed(self) -> None:
        async def script(typist: Typist) -> None:
            await typist.until(lambda: self.clients and self.clients[-1].connected)
            self.server.connect().send({"type": "broadcast", "content": "ev\x1b]0;il\x07\x9b\u202e"})
            await typist.type("", "ev\\x1b]0;il\\x07\\x9b\\u202e")
            await typist.type("\x04")

        self.run_terminal(script)

    def test_a_line_survives(self) -> None:
        """What others send, and the connection, do not touch the line that is typed."""

        async def script(typist: Typist) -> None:
            await typist.until(lambda: self.clients and self.clients[-1].connected)
            await typist.type("half a")
            await typist.until_line("half a")
            self.server.connect().send({"type": "broadcast", "content": "hello"})
            await typist.type("", "hello")
            self.clients[0].wire.refuses = True
            self.clients[0].wire.cut()
            await typist.type("", "reconnecting in")
            self.clients[0].wire.refuses = False
            await typist.type("", "connected to here as")
            await typist.type(" line\r", "half a line")
            await typist.type("\x04")

        self.run_terminal(script)

    def test_tell(self) -> None:
        async def script(typist: Typist) -> None:
            await typist.until(lambda: self.clients and self.clients[-1].connected)
            typist.terminal.tell("mind that")
            await typist.type("", "mind that")
            await typist.type("\x04")

        self.run_terminal(script)

    def test_control_c(self) -> None:
        """The first clears the line, one at an empty line ends."""

        async def script(typist: Typist) -> None:
            await typist.type("abc")
            await typist.until_line("abc")
            await typist.type("\x03")
            await typist.until_line("")
            self.assertFalse(typist.running.done())
            await typist.type("\x03")

        self.run_terminal(script)

    def test_control_c_in_a_search(self) -> None:
        """It leaves that, and not the console."""

        async def script(typist: Typist) -> None:
            layout = typist.terminal._session.app.layout
            await typist.type("\x12")
            await typist.until(lambda: layout.is_searching)
            await typist.type("\x03")
            await typist.until(lambda: not layout.is_searching or typist.running.done())
            self.assertFalse(typist.running.done())
            await typist.type("\x03")

        self.run_terminal(script)

    def test_control_d(self) -> None:
        async def script(typist: Typist) -> None:
            await typist.type("\x04")

        self.run_terminal(script)

    def test_stopped(self) -> None:
        async def script(typist: Typist) -> None:
            await typist.type("abc")
            await typist.until_line("abc")
            typist.terminal.stop()

        self.run_terminal(script)

    def test_stopped_and_interrupted_before_it_began(self) -> None:
        async def script(typist: Typist) -> None:
            typist.terminal.stop()
            typist.terminal.interrupt()
            await typist.type("\x04")

        self.run_terminal(script)

    def test_no_such_place(self) -> None:
        async def script(typist: Typist) -> None:
            pass

        self.assertRaises(ValueError, self.run_terminal, script, "nowhere")

    def test_completion(self) -> None:
        async def script(typist: Typist) -> None:
            await typist.until(lambda: self.clients and self.clients[-1].connected)
            for typed, completed in (
                ("/st\t", "/stats"),
                ("/cu\t", "/custom "),
                ("/custom get\t", "/custom get_stats "),
                ("/json of\t", "/json off"),
            ):
                await typist.type(typed)
                await typist.until_line(completed)
                await typist.type("\x03")
                await typist.until_line("")
            await typist.type("a b\t")
            await typist.until_line("a b")
            await typist.type("\x03")
            await typist.until_line("")
            await typist.type("/e\t", "/exit")
            await typist.type("\x03")
            await typist.until_line("")
            await typist.type("\x03")

        self.run_terminal(script)

    def test_history(self) -> None:
        """It is there in the next run; secrets are not, in either."""

        async def first(typist: Typist) -> None:
            await typist.type("/ping\r", " ms")
            await typist.type("my secret\r", "echo")
            await typist.type("\x1b[A")
            await typist.until_line("/ping")
            await typist.type("\x03")
            await typist.until_line("")
            await typist.type("\x04")

        async def second(typist: Typist) -> None:
            await typist.type("\x1b[A")
            await typist.until_line("/ping")
            await typist.type("\r", "> ")
            await typist.type("/exit\r")

        self.run_terminal(first)
        self.assertEqual(self.path.read_text(), "/ping\n")
        self.run_terminal(second)
        self.assertEqual(self.path.read_text(), "/ping\n/exit\n")

    def test_colour(self) -> None:
        async def script(typist: Typist) -> None:
            await typist.until(lambda: self.clients and self.clients[-1].connected)
            await typist.type("/ping\r", " ms")
            await typist.type("/pnig\r", "did you mean")
            await typist.type("/e\t", "/exit")
            await typist.type("\x03")
            await typist.until_line("")
            await typist.type("\x04")

        for colour in (True, False):
            shown = self.run_terminal(script, colour=colour)
            for code in ("\x1b[0;31m", "\x1b[0;32m"):
                self.assertEqual(code in shown, colour, shown)
            # Of whatever: 30 to 49, 90 to 107.
            coloured = re.findall(r"\x1b\[(?:\d+;)*(?:[349]\d|10[0-7])[;m]", shown)
            self.assertEqual(bool(coloured), colour, coloured)

    def test_the_prompt_is_there_before_the_request(self) -> None:
        """Drawing it does not count as part of the round trip."""

        async def script(typist: Typist) -> None:
            await typist.until(lambda: self.clients and self.clients[-1].connected)
            session, console = typist.terminal._session, typist.terminal._console
            do = console.do
            drawn: list[bool] = []

            def watched(command: Any) -> None:
                drawn.append(session.app.is_running)
                do(command)

            console.do = watched
            await typist.type("/ping\r", " ms")
            self.assertEqual(drawn, [True])
            await typist.type("\x04")

        self.run_terminal(script)
