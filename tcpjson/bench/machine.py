"""What it is measured on."""

from __future__ import annotations

import os
import platform
import re
import ssl
from importlib import metadata
from pathlib import Path

from tcpjson.bench.results import Machine

_PACKAGES = ("tcpjson", "twisted", "msgspec", "pyopenssl", "hdrhistogram")
_MODEL = re.compile(r"^(?:model name|Hardware|Processor)\s*:\s*(.+)$", re.MULTILINE)


def processors() -> int:
    """How many this program may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _model(proc: Path) -> str:
    try:
        match = _MODEL.search((proc / "cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def machine(proc: Path = Path("/proc")) -> Machine:
    """This one."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    packages["openssl"] = ssl.OPENSSL_VERSION.removeprefix("OpenSSL ").split()[0]
    return Machine(
        processor=_model(proc),
        processors=processors(),
        memory_bytes=_memory(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=packages,
    )
