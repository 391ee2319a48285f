"""The console on a terminal, by prompt_toolkit: the line that is typed, and messages above it."""

# Without the extra `console` nothing of prompt_toolkit has a type, and with it nothing is to be ignored.
# mypy: disable-error-code="import-not-found", allow-subclassing-any, allow-untyped-decorators
# mypy: no-warn-return-any, no-warn-unreachable

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import is_searching
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tcpjson.console.board import Board
from tcpjson.console.commands import COMMANDS, Command
from tcpjson.console.history import History, is_secret
from tcpjson.console.interactive import Interactive
from tcpjson.console.link import Make
from tcpjson.console.rendering import MAX_LINE, Line

_STYLE = Style.from_dict(
    {
        "answer": "ansigreen",
        "heard": "ansicyan",
        "notice": "ansibrightblack",
        "error": "ansired",
        "bottom-toolbar": "noreverse",
        "connected": "ansigreen",
        "waiting": "ansiyellow",
        "stopped": "ansired",
    }
)

# Seconds after which the toolbar is drawn anew: it counts them.
_REFRESH = 1.0


class _Left(Exception):
    """Who typed has left."""


class CommandCompleter(Completer):
    """Completes commands, and what may stand behind some of them."""

    def __init__(self, types: Callable[[], Iterable[str]]) -> None:
        self._types = types

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        words = text.split(" ")
        choices: Iterable[str] = ()
        if len(words) == 1 and text.startswith("/"):
            choices = [f"/{name} " if what else f"/{name}" for name, (what, _) in COMMANDS.items()]
        elif len(words) == 2 and words[0] == "/json":
            choices = ("on", "off")
        elif len(words) == 2 and words[0] == "/custom":
            choices = [f"{kind} " for kind in sorted(self._types())]
        last = words[-1]
        for choice in choices:
            if choice.startswith(last):
                yield Completion(choice, -len(last), display=choice.rstrip())


class Terminal:
    """
    Args:
        clock: the reactor, one of asyncio.
        make, where, as_json: as of `Interactive`.
        history: what was typed before.
        colour: whether to use any.
        input, output: the terminal; the program's own, when None.
    """

    def __init__(
        self,
        clock: IReactorTime,
        make: Make,
        where: str,
        history: History,
        *,
        as_json: bool = False,
        colour: bool = True,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._board = Board(clock)
        self._console = Interactive(clock, make, where, self._board, as_json=as_json)
        self._history = history
        self._session: PromptSession[str] = PromptSession(
            "> ",
            completer=CommandCompleter(lambda: self._console.types),
            complete_while_typing=False,
            history=_Remembered(history),
            bottom_toolbar=self._toolbar,
            refresh_interval=_REFRESH,
            enable_suspend=True,
            key_bindings=self._bindings(),
            style=_STYLE,
            color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
            input=input,
            output=output,
        )
        self._console.changed = self._session.app.invalidate
        self._prompt: asyncio.Task[str] | None = None

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        # In a search it leaves that.
        @bindings.add("c-c", filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            self.interrupt()

        return bindings

    def _toolbar(self) -> FormattedText:
        style, text = self._console.state
        return FormattedText([(f"class:{style}", text)])

    def tell(self, text: str) -> None:
        """Show a notice."""
        self._board.say([Line("notice", text)])

    def _show(self, lines: list[Line]) -> Deferred[None]:
        parts: list[tuple[str, str]] = []
        for line in lines:
            label, text = line.shown(MAX_LINE)
            # Of what has a label, that alone has a colour.
            parts += [(f"class:{line.style}", label), ("" if label else f"class:{line.style}", f"{text}\n")]
        shown = FormattedText(parts)

        def show() -> None:
            print_formatted_text(
                shown,
                end="",
                style=_STYLE,
                output=self._session.app.output,
                color_depth=self._session.color_depth,
            )

        return Deferred.fromFuture(asyncio.ensure_future(run_in_terminal(show)))

    async def run(self) -> None:
        """
        Read lines and do what they say, until the end.

        Raises:
            ValueError: there is no such place to connect to.
        """
        self._board.write = self._show
        self._console.start()
        loop = asyncio.get_running_loop()
        command: Command | None = None
        try:
            while command is None or command.name != "exit":
                self._prompt = asyncio.ensure_future(self._session.prompt_async(handle_sigint=False))
                if command is not None:
                    # Drawing the prompt takes longer than the answer, whose time is taken.
                    loop.call_soon(self._console.do, command)
                command = self._console.read(await self._prompt)
        except (_Left, EOFError, asyncio.CancelledError):
            pass
        finally:
            await self._console.close().asFuture(loop)

    def interrupt(self) -> None:
        """Ctrl-C: forget the line that is being typed; where there is none, leave."""
        app = self._session.app
        if self._session.default_buffer.text:
            self._session.default_buffer.reset()
            app.invalidate()
        elif app.is_running:
            app.exit(exception=_Left())

    def stop(self) -> None:
        """Leave, whatever is being typed."""
        if self._prompt is not None:
            self._prompt.cancel()


class _Remembered(InMemoryHistory):
    """What was typed, with what a file knows."""

    def __init__(self, history: History) -> None:
        super().__init__(history.load())
        self._kept = history

    def append_string(self, string: str) -> None:
        if not is_secret(string):
            super().append_string(string)

    def store_string(self, string: str) -> None:
        super().store_string(string)
        self._kept.add(string)
