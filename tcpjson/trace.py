"""What goes over a connection, written to a file: a line of JSON for each frame."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import IO

import msgspec
from msgspec import Raw
from twisted.logger import Logger

from tcpjson.redaction import shown
from tcpjson.timestamps import Timestamps

log = Logger()

#: Bytes of a payload that are written.
MAX_PAYLOAD = 64 * 1024

_check_grammar = msgspec.json.Decoder(Raw).decode

# In JSON, white space between its tokens; what is not to reach a terminal, or ends a line for some reader.
_SPACE = str.maketrans("\t\n\r", "   ")
_UNPRINTABLE = re.compile("[^ -~]+")


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def _described(payload: bytes) -> str:
    """The last fields of a line."""
    fit = shown(payload)
    if len(fit) > MAX_PAYLOAD:
        text = fit[:MAX_PAYLOAD].decode(errors="backslashreplace")
        return f'"text":{json.dumps(text)},"cut":true'
    try:
        _check_grammar(fit)
        text = fit.decode()
    except (ValueError, RecursionError):
        return f'"text":{json.dumps(fit.decode(errors="backslashreplace"))}'
    # As it came, to the last digit.
    return f'"message":{_UNPRINTABLE.sub(_escape, text.translate(_SPACE))}'


class Trace:
    """
    Writes each frame as a line of JSON, in ASCII: `time`, `direction` (`"sent"` or `"received"`), `length`
    (bytes of the payload) and `message`, or for what is no JSON, `text`. Of a payload that is longer than
    64 KiB, `text` is the beginning, and `cut` is true. Passwords, tokens and what proves them stand as
    `(hidden)`.

    All frames of a call are written at once and handed to the system: the file can be read while it grows,
    and when the program is killed, nothing is missing but what a kill in the midst of the last write cuts.
    It may be called in any thread. When it cannot write, it logs that and is silent from then on.

    Args:
        file: of text.
        wall: tells the time in seconds since 1970.
    """

    def __init__(self, file: IO[str], wall: Callable[[], float] = time.time) -> None:
        self._file = file
        self._timestamps = Timestamps(wall)
        self._lock = Lock()
        self._ended = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], wall: Callable[[], float] = time.time) -> Trace:
        """
        A trace at the end of a file, which only its owner may read where this makes it.

        Raises:
            OSError: it cannot be opened.
        """
        before = "\n" if os.path.isfile(path) and _ends_within_a_line(path) else ""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        file = os.fdopen(fd, "w", encoding="ascii")
        file.write(before)
        return cls(file, wall)

    def __call__(self, direction: str, payloads: Sequence[bytes]) -> None:
        """Write what was sent or received at once."""
        with self._lock:
            if self._ended:
                return
            before = f'{{"time":"{self._timestamps.now()}","direction":{json.dumps(direction)},"length":'
            lines = [f"{before}{len(payload)},{_described(payload)}}}\n" for payload in payloads]
            try:
                self._file.write("".join(lines))
                self._file.flush()
            except (OSError, ValueError) as error:
                self._ended = True
                log.warn("the trace ends here: {error}", error=error)

    def close(self) -> None:
        """Close the file. What comes then is not written."""
        with self._lock:
            self._ended = True
            # What could not be written is tried once more, and fails once more.
            with suppress(OSError):
                self._file.close()


def _ends_within_a_line(path: str | os.PathLike[str]) -> bool:
    """Whether the file of an earlier trace was cut, by a crash or a full disk."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() not in (b"", b"\n")
