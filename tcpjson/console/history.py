"""What was typed before, from one run to the next."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

#: Lines that are kept.
MAX_LINES = 1000
#: Characters of a line that is kept.
MAX_LINE = 4096

# What may be a secret stands near one of these; any letter may be written as an escape of JSON.
_SECRET = re.compile(r"auth|passw|secret|token|\\u", re.IGNORECASE)


def history_path(environment: Mapping[str, str]) -> Path | None:
    """Where the history is kept (the XDG Base Directory specification); None: there is no place."""
    state = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        home = environment.get("HOME", "")
        if not os.path.isabs(home):
            return None
        state = os.path.join(home, ".local", "state")
    return Path(state, "tcpjson", "history")


class History:
    """
    A file of lines, for its owner alone. Where it cannot be read or written, it is as if it were empty.

    Args:
        path: the file; None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> list[str]:
        """The lines, the oldest first. When there are many more than are kept, the others go."""
        try:
            if self._path is None:
                return []
            text = self._path.read_text(encoding="utf-8", errors="replace")
            lines = [line for line in text.split("\n") if 0 < len(line) <= MAX_LINE]
            if len(lines) > 2 * MAX_LINES or len(text) > 4 * MAX_LINES * MAX_LINE:
                self._replace(self._path, lines[-MAX_LINES:])
        except OSError:
            return []
        return lines[-MAX_LINES:]

    def _replace(self, path: Path, lines: list[str]) -> None:
        new = path.with_name(f"{path.name}.{os.getpid()}")
        with open(os.open(new, _NEW, 0o600), "w", encoding="utf-8", errors="replace") as file:
            file.writelines(f"{line}\n" for line in lines)
        new.replace(path)

    def add(self, line: str) -> None:
        """Keep a line, unless it has several parts, is very long, or may hold a secret."""
        if self._path is None or len(line) > MAX_LINE or not line.strip() or "\n" in line or is_secret(line):
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, _APPEND, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                # It may have been made by somebody else.
                os.fchmod(descriptor, 0o600)
                file.write(f"{line}\n")


_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def is_secret(line: str) -> bool:
    """Whether a line may hold a password or a token."""
    return _SECRET.search(line) is not None
