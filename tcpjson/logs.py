"""The log, as lines of text or of JSON, in which no stranger writes lines of his own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, formatEvent
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from zope.interface import implementer

from tcpjson.core.text import printable
from tcpjson.timestamps import format_timestamp

#: What `--log-format` takes.
FORMATS = ("text", "json")
#: Characters of a text in a field that are written.
MAX_FIELD = 1024
#: Characters of a line of JSON, and of a line of text without its traceback.
MAX_LINE = 16 * 1024
#: Characters of a traceback.
MAX_TRACEBACK = 8 * 1024

# Names that every line of JSON has, and those of Twisted's older log events.
_TAKEN = frozenset({"time", "level", "event", "message", "failure", "format", "isError", "system", "why"})
# What comes first in a line, where it is there.
_WHO = ("client", "user", "code")
# Characters of a field's name.
_NAME = 64
# How long texts may be, at first and when the line has become too long.
_LENGTHS = (MAX_FIELD, 128, 16)

_BRACES = str.maketrans({"{": "{{", "}": "}}"})

_encode = json.JSONEncoder(separators=(",", ":")).encode


def text_of(value: object) -> str:
    """A value as text, whatever it does when it is asked for it."""
    try:
        return str(value)
    except Exception as error:
        return f"({type(value).__name__}: {type(error).__name__})"


def traceback_of(failure: Failure) -> str:
    """Where a failure was and what it is; of what is longer than 8 kB, the beginning and the end."""
    try:
        text: str = failure.getTraceback()
    except Exception as error:
        text = f"(no traceback: {type(error).__name__})"
    return _ends(text, MAX_TRACEBACK)


def _ends(text: str, longest: int) -> str:
    """A text, or its beginning and its end."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 5]}\n...\n{text[-half:]}"


def _read(event: LogEvent) -> tuple[LogEvent, str]:
    """A log event with its texts cut, and its traceback, which may be empty."""
    read = {
        name: value[:MAX_FIELD] if isinstance(value, str) and not name.startswith("log_") else value
        for name, value in event.items()
    }
    failure: Any = read.get("log_failure")
    if failure is None and isinstance(read.get("failure"), Failure):
        # Of Twisted's older `log.err`, whose text has the traceback in it.
        failure = read["failure"]
        read["log_format"] = text_of(read["why"]).translate(_BRACES) if read.get("why") else None
    if failure is None:
        # What `tcpjson.notices` kept of one.
        return read, text_of(read.get("log_traceback", ""))
    if read.get("log_format") is None:
        read["log_format"] = "Unhandled Error"
    return read, traceback_of(failure)


def _field(value: object, longest: int) -> object:
    """A value as JSON has it; a text, where it is no simple one."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, float) and isfinite(value):
        return float(value)
    return text_of(value)[:longest]


def _time(event: LogEvent) -> str | None:
    try:
        return format_timestamp(event["log_time"])
    # It is not there, or is no time of any day.
    except Exception:
        return None


def _fields(event: LogEvent, traceback: str, longest: int) -> dict[str, object]:
    """What a line of JSON holds, with all texts cut."""
    level = event.get("log_level")
    fields: dict[str, object] = {
        "time": _time(event),
        "level": text_of(getattr(level, "name", "info"))[:longest],
        "event": text_of(event.get("event", "log"))[:longest],
    }
    if "event" not in event:
        fields["logger"] = text_of(event.get("log_namespace"))[:longest]
    for name in (*_WHO, *event):
        if name in event and name not in _TAKEN and not name.startswith(("log_", "_")):
            fields[name[:_NAME]] = _field(event[name], longest)
    fields["message"] = printable(formatEvent(event), 4 * longest)
    if traceback:
        fields["failure"] = _ends(traceback, 8 * longest)
    return fields


def json_line(event: LogEvent) -> str:
    """
    A log event as a line of JSON, in ASCII, of 16 kB at most: `time` (ISO 8601 in UTC), `level`, `event`
    (`log` where it has no name; `logger` then says which module it is of), `client`, `user` and `code` where
    they are known, the other fields, `message`, and for a failure `failure`, its traceback. Fields whose name
    begins with an underscore are for the message alone. Raises nothing.
    """
    try:
        read, traceback = _read(event)
        for longest in _LENGTHS:
            line = _encode(_fields(read, traceback, longest)) + "\n"
            if len(line) <= MAX_LINE:
                return line
        few = {name: read[name] for name in read if name in ("event", *_WHO) or name.startswith("log_")}
        return _encode(_fields(few, traceback, _LENGTHS[-1])) + "\n"
    except Exception as error:
        return _encode(_fields(_broken(error), "", MAX_FIELD)) + "\n"


def text_line(event: LogEvent) -> str:
    """
    A log event as twistd writes it, but in one line but for the traceback, whose lines begin with a tab:
    what cannot be printed is escaped. Empty for what has no text. Raises nothing.
    """
    try:
        read, traceback = _read(event)
        line = printable(eventAsText(read, includeTraceback=False), MAX_LINE)
    except Exception as error:
        line, traceback = eventAsText(_broken(error)), ""
    if not traceback:
        return f"{line}\n" if line else ""
    return "\n\t".join([line, *(printable(each) for each in traceback.strip().split("\n"))]) + "\n"


def _broken(error: Exception) -> LogEvent:
    """In place of a log event that cannot be written."""
    return {
        "event": "log_failed",
        "log_level": LogLevel.error,
        "log_time": time.time(),
        "log_namespace": __name__,
        "log_format": "a line of the log could not be written: {error}",
        "error": type(error).__name__,
    }


_LINES: dict[str, Callable[[LogEvent], str]] = {"text": text_line, "json": json_line}


@implementer(ILogObserver)
class LogObserver:
    """
    Writes the log, each event at once. While that fails it is silent; then it tells how many are missing.

    Args:
        write: writes bytes, or raises `OSError` or `ValueError`.
        format: one of `FORMATS`.
    """

    def __init__(self, write: Callable[[bytes], object], format: str) -> None:
        self._write = write
        self._line = _LINES[format]
        self._lost = 0

    def __call__(self, event: LogEvent) -> None:
        text = self._line(event)
        if self._lost:
            missing = {
                "event": "lines_lost",
                "log_level": LogLevel.error,
                "log_time": event.get("log_time"),
                "log_namespace": __name__,
                "log_format": "{lines} lines of the log are missing here: they could not be written",
                "lines": self._lost,
            }
            # The last one may have been cut.
            text = f"\n{self._line(missing)}{text}"
        try:
            self._write(text.encode())
        except (OSError, ValueError):
            self._lost += 1
        else:
            self._lost = 0


class LogSetup:
    """
    What `--log-format` asks for, where twistd logs to.

    Args:
        format: one of `FORMATS`.
        twistd: its options; None where there is no twistd.
        reactor: rotates the file.

    Raises:
        ValueError: one of twistd's options says otherwise; a line that names it.
    """

    def __init__(self, format: str, twistd: Mapping[str, Any] | None, reactor: Any) -> None:
        self._format = format
        self._reactor = reactor
        self._options = twistd or {}
        # They come with formats of their own.
        others = [f"--{name}" for name in ("logger", "syslog") if self._options.get(name)]
        if others and format != FORMATS[0]:
            raise ValueError(f"--log-format {format}: twistd's {others[0]} has a format of its own")
        self._ours = twistd is not None and not others
        self._daemon = not self._options.get("nodaemon")
        if self._ours and self._daemon and self._options.get("logfile") == "-":
            raise ValueError("--logfile -: what runs in the background cannot log to stdout")

    def attach(self, application: object) -> None:
        """
        Have twistd log in the format, from its first line on. To be called before it begins to.

        Args:
            application: as of `Service.setServiceParent`; nothing is done where it is none.

        Raises:
            OSError: the log file cannot be opened.
        """
        if self._ours and isinstance(application, Componentized):
            application.setComponent(ILogObserver, LogObserver(self._open(), self._format))

    def _open(self) -> Callable[[bytes], object]:
        """Where twistd would log to."""
        name = self._options.get("logfile")
        if name == "-" or not (name or self._daemon):
            # Where it was closed, its number may be that of another file by now.
            return (lambda data: None) if sys.stdout is None else partial(_write_all, sys.stdout.fileno())
        file = LogFile.fromFullPath(name or "twistd.log")
        if not signal.getsignal(signal.SIGUSR1):
            signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(file.rotate))
        write: Callable[[bytes], object] = file.write
        return write


def _write_all(descriptor: int, data: bytes) -> None:
    # Python's own buffer would keep what a full disk does not take.
    while data:
        data = data[os.write(descriptor, data) :]
