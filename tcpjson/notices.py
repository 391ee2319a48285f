"""What an operator must act on, in the log once a minute, however often it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from tcpjson.logs import text_of, traceback_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

# Items that are told apart; what comes on top is one for each event.
_ITEMS = 256
_OTHERS = "other"
# Characters that are kept of a text until it is told.
_KEPT = 1024


class _Item:
    """What happens again and again."""

    __slots__ = ("due", "fields", "format", "level", "said", "silent")

    def __init__(self) -> None:
        #: When it was told last, and when it may be told again.
        self.said = self.due = 0.0
        #: How often it happened since then.
        self.silent = 0
        self.level = LogLevel.warn
        self.format = ""
        self.fields: dict[str, Any] = {}


class Notices:
    """
    Logs the first event of a kind at once, and from then on one in a while, with the number of the others.

    A line tells of the latest event, one with a traceback of the first since the line before: no traceback is
    made that nobody sees. It ends with ` (and 532 more in 60 s)`, and the log event has `unsaid`, 532; where
    it tells of all that happened, neither is there. The failure of such a line is text, `log_traceback`.

    Args:
        clock: the reactor.
        log: where to.
        interval: seconds from line to line.
    """

    def __init__(self, clock: IReactorTime, log: Logger, interval: float = 60.0) -> None:
        self._clock = clock
        self._log = log
        self._interval = interval
        # In the order in which they were told last.
        self._items: dict[tuple[str, str], _Item] = {}
        self._call: IDelayedCall | None = None

    def warn(self, event: str, format: str, /, *, item: str = "", **fields: Any) -> None:
        """
        Something happened.

        Args:
            event: the `event` of the log event.
            format, fields: as of `Logger.warn`. `{unsaid}` and `{unsaid_seconds}` are ours.
            item: what of the event is told apart: a code, a class.
        """
        found = self._silent(event, item)
        if found is None:
            self._log.warn(format, event=event, **fields)
        else:
            self._keep(found, LogLevel.warn, format, {"event": event, **fields})

    def failure(
        self, event: str, format: str, failure: Failure | None = None, /, *, item: str = "", **fields: Any
    ) -> None:
        """Something failed, as `warn`; `failure`: None for the exception that is being handled."""
        found = self._silent(event, item)
        if found is None:
            self._log.failure(format, failure, event=event, **fields)
        elif found.silent == 1:
            # A Failure would keep what its frames have.
            text = traceback_of(failure or Failure())
            self._keep(found, LogLevel.critical, format, {"event": event, **fields})
            found.fields["log_traceback"] = text

    def stop(self) -> None:
        """Tell what was not told, and leave no delayed call behind. It may be used again."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        items, self._items = self._items, {}
        for item in items.values():
            self._tell(item)

    def _silent(self, event: str, name: str) -> _Item | None:
        """What is to be told later, with one more counted; None where it is to be told at once."""
        now = self._clock.seconds()
        key = event, name
        item = self._items.get(key)
        if item is None and len(self._items) >= _ITEMS:
            self._forget(now)
            if len(self._items) >= _ITEMS:
                key = event, _OTHERS
                item = self._items.get(key)
        if item is None or (not item.silent and item.due <= now):
            self._said(key, item or _Item(), now)
            return None
        item.silent += 1
        if item.silent == 1 and (self._call is None or self._call.getTime() > item.due):
            self._look_at(item.due)
        return item

    def _forget(self, now: float) -> None:
        """Make room: what may be told again at once needs no place."""
        while self._items:
            key, item = next(iter(self._items.items()))
            if item.silent or item.due > now:
                break
            del self._items[key]

    def _said(self, key: tuple[str, str], item: _Item, now: float) -> None:
        self._items.pop(key, None)
        self._items[key] = item
        item.said = now
        item.due = now + self._interval
        item.silent = 0

    def _keep(self, item: _Item, level: Any, format: str, fields: dict[str, Any]) -> None:
        item.level = level
        item.format = format
        item.fields = {name: _kept(value) for name, value in fields.items()}

    def _tell(self, item: _Item) -> None:
        """Log what was kept, if there is any."""
        if item.silent:
            others = item.silent - 1
            fields: dict[str, Any] = item.fields
            format = item.format
            if others:
                seconds = self._clock.seconds() - item.said
                format += " (and {unsaid} more in {unsaid_seconds:.0f} s)"
                fields = {**fields, "unsaid": others, "unsaid_seconds": seconds}
            self._log.emit(item.level, format, **fields)

    def _look_at(self, when: float) -> None:
        if self._call is not None:
            self._call.cancel()
        self._call = self._clock.callLater(max(0.0, when - self._clock.seconds()), self._look)

    def _look(self) -> None:
        """Something is due."""
        self._call = None
        now = self._clock.seconds()
        for key, item in tuple(self._items.items()):
            if item.silent and item.due <= now:
                self._tell(item)
                self._said(key, item, now)
        due = [item.due for item in self._items.values() if item.silent]
        if due:
            self._look_at(min(due))


def _kept(value: object) -> object:
    """A value that holds nothing else, and little of itself; a text of it, where it is no simple one."""
    if value is None or isinstance(value, (int, float)):
        return value
    return (value if isinstance(value, str) else text_of(value))[:_KEPT]
