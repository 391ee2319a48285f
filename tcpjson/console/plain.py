"""The console on a terminal that can do nothing but show lines, or without prompt_toolkit."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tcpjson.console.board import Board
from tcpjson.console.interactive import Interactive
from tcpjson.console.link import Make
from tcpjson.console.rendering import MAX_LINE, Line
from tcpjson.console.stdio import LineIO


class Plain:
    """
    Args:
        clock: the reactor.
        make, where, as_json: as of `Interactive`.
        notices: what to show at the start.
    """

    def __init__(
        self, clock: IReactorTime, make: Make, where: str, notices: list[Line], as_json: bool = False
    ) -> None:
        self._board = Board(clock, self._show)
        self._console = Interactive(clock, make, where, self._board, talkative=True, as_json=as_json)
        self._notices = notices
        self._released: Deferred[None] | None = None
        self._interrupted = False
        self._stopped = False
        #: Both ends of the terminal.
        self.io = LineIO(self)
        #: The exit status.
        self.done: Deferred[int] = Deferred()

    def start(self) -> None:
        """Connect, after `io` was. Raises `ValueError`: there is no such place."""
        self.io.broken.addCallback(lambda result: self.stop(0))
        self._board.say(self._notices)
        self._console.start()

    def tell(self, text: str) -> None:
        """Show a notice."""
        self._board.say([Line("notice", text)])

    def _show(self, lines: list[Line]) -> Deferred[None] | None:
        for line in lines:
            self.io.write(line.plain(MAX_LINE))
        return self._released

    # The input; the output may be held by Ctrl-S.

    full = False

    def line(self, text: str | None) -> None:
        """Take a line; None: it was too long."""
        self._interrupted = False
        if text is None:
            self._board.say([Line("error", "the line is too long")])
        elif (command := self._console.read(text)) is not None:
            if command.name == "exit":
                self.stop(0)
            else:
                self._console.do(command)

    def end(self) -> None:
        """Nothing more will be typed."""
        self.stop(0)

    def hold(self) -> None:
        """What was written is not read."""
        self._released = Deferred()

    def release(self) -> None:
        """It is read again."""
        released, self._released = self._released, None
        if released is not None:
            released.callback(None)

    def interrupt(self) -> None:
        """Ctrl-C: the terminal has forgotten the line that was being typed. The second in a row ends."""
        # It has shown ^C, and is still in that line.
        self.io.write("")
        if self._interrupted:
            self.stop(0)
            return
        self._interrupted = True
        self._board.say([Line("notice", "Ctrl-C again, or /exit, to leave")])

    def stop(self, status: int) -> None:
        """Leave."""
        if not self._stopped:
            self._stopped = True
            self._console.close().addBoth(lambda result: self.done.callback(status))
