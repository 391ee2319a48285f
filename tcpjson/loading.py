"""Finds the routers that a command line names."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback

from tcpjson.handlers import Router

# What stands between us and a module, and its calls of ours.
_NOT_ITS_OWN = ("<frozen ", str(importlib.__file__), os.path.join(os.path.dirname(__file__), ""))
# What Python brings, and what is installed.
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def load_router(where: str) -> Router:
    """
    The `Router` that `where` names, as `package.module:name`. The current folder comes first on the path.

    Raises:
        ValueError: there is none, or its module cannot be imported; one line says why, and where.
    """
    module_name, _, name = where.partition(":")
    if not (name and all(part.isidentifier() for part in module_name.split("."))):
        raise ValueError("it must be MODULE:NAME, as game.moves:router")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        value: object = importlib.import_module(module_name)
        for part in name.split("."):
            value = getattr(value, part, None)
    # A module can do anything: what it does wrong is for its author, who needs the place more than our own.
    except (Exception, SystemExit) as error:
        raise ValueError(_fault(error, module_name)) from None
    if not isinstance(value, Router):
        kind = "there is none of that name" if value is None else f"it is a {type(value).__name__}"
        raise ValueError(f"not a tcpjson.Router: {kind}")
    if value.empty:
        raise ValueError("there is no handler in it: mark one with @router.handler")
    return value


def _fault(error: BaseException, module_name: str) -> str:
    """What went wrong in a module, in one line, with the place in it."""
    if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
        hint = "; leave .py out" if module_name.endswith(".py") else ""
        return f"no module {error.name}{hint}"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_ITS_OWN)
    ]
    # What its author wrote before what that calls; but all of it may be installed.
    frames = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)] or frames
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {text}" if frames else text
