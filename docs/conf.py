"""Sphinx reads this file: ``sphinx-build -W docs docs/_build``."""

import re
from pathlib import Path

_version_file = Path(__file__).resolve().parent.parent / "tcpjson" / "_version.py"
_version = re.search(r'__version__ = "(.+)"', _version_file.read_text(encoding="utf-8"))
assert _version is not None, f"no version in {_version_file}"

project = "tcpjson"
author = "The tcpjson maintainers"
copyright = "2026, The tcpjson maintainers"
release = version = _version[1]

exclude_patterns = ["_build"]
nitpicky = True
html_theme = "alabaster"
