"""What an application hands over: the wrong kinds of things, told in one line where they come in."""

from __future__ import annotations


def check_numbers(**values: object) -> None:
    """Each is a number, or None. Raises `TypeError` with its name."""
    for name, value in values.items():
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, not {value!r:.50}")


def check_functions(**values: object) -> None:
    """Each can be called, or is None. Raises `TypeError` with its name."""
    for name, value in values.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function, not {value!r:.50}")


def check_kind(method: str, what: str, **values: object) -> None:
    """Each is `what`, which is known by this method, or None. Raises `TypeError` with its name."""
    for name, value in values.items():
        if value is not None and not callable(getattr(value, method, None)):
            raise TypeError(f"{name} must be {what}, not {value!r:.50}")
