"""What is built installs whole, shows its command to ``twistd``, and leaves Twisted whole when it goes.

The project is copied and built anew, and installed where Twisted is but tcpjson is not, so the tests find the
same whether the tcpjson that runs them comes from a checkout, a wheel or an editable install.
"""

from __future__ import annotations

import atexit
import configparser
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

# "tests" may be a symbolic link beside an installed package: resolved, it leads to the project.
PROJECT = Path(__file__).resolve().parent.parent
PLUGINS = {"twisted/plugins/tcpjson_plugin.py", "twisted/plugins/tcpjson_cred.py"}

# What a build or an earlier run leaves behind: a new build would take some of it for source.
LEFTOVERS = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".tox",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "_trial_temp*",
    "*.egg-info",
    "dropin.cache",
    "build",
    "dist",
)

# What the environments need besides what tcpjson itself requires: pip builds the editable install there.
BUILD_REQUIREMENTS = ["setuptools"]

TWISTD = "from twisted.scripts.twistd import run; run()"


def run(command: Iterable[str | Path], cwd: Path, **environment: str) -> str:
    """
    Run a command and return what it printed.

    Args:
        command: the program and its arguments.
        cwd: the folder to run it in; none of this process's paths are handed on by PYTHONPATH.
        environment: variables to set.

    Raises:
        AssertionError: it ended with another status than 0; the message holds what it printed.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(command),
        cwd=cwd,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{done.args} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout


@functools.cache
def workspace() -> Path:
    """Return a folder for this process, removed at its end: what is built in it serves all tests."""
    folder = Path(tempfile.mkdtemp(prefix="tcpjson-packaging-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def source() -> Path:
    """Return a copy of the project without leftovers of other builds."""
    return Path(shutil.copytree(PROJECT, workspace() / "source", ignore=LEFTOVERS))


@functools.cache
def built() -> tuple[Path, Path]:
    """Return the source distribution and the wheel, which is built from that and not from the checkout."""
    output = workspace() / "dist"
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source()], workspace())
    [sdist] = output.glob("*.tar.gz")
    [wheel] = output.glob("*.whl")
    return sdist, wheel


def names(wheel: Path) -> set[str]:
    """Return the names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def requirements(distribution: str, wanted: str) -> set[str]:
    """Return the normalized names of what an installed distribution requires, the extra `wanted` included."""
    found = set()
    for line in metadata.requires(distribution) or ():
        name, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
        if extra is None or extra[1] == wanted:
            found.add(re.split(r"[^\w.-]", name.strip(), maxsplit=1)[0].lower())
    return found


class Environment:
    """
    A virtual environment of its own, holding copies of the installed Twisted, msgspec and what these need.

    Args:
        name: the name of its folder in the workspace.
    """

    def __init__(self, name: str) -> None:
        self.root = workspace() / name
        venv.create(self.root, with_pip=False, symlinks=True)
        self.python = self.root / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = self.root / "lib" / version / "site-packages"
        self._copy(["twisted", "msgspec", *BUILD_REQUIREMENTS])
        self.twisted = self.digests("twisted")

    def _copy(self, wanted: list[str]) -> None:
        copied = set()
        while wanted:
            name = wanted.pop()
            if name in copied:
                continue
            copied.add(name)
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue  # wanted on other systems or other Pythons only
            wanted.extend(requirements(name, "tls"))
            for file in distribution.files or ():
                origin = Path(str(file.locate()))
                if ".." not in file.parts and "__pycache__" not in file.parts and origin.exists():
                    target = self.packages / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(origin, target)

    def digests(self, package: str) -> dict[str, str]:
        """Return a digest of each module of a package by its path, the plugins of others left out."""
        return {
            str(path.relative_to(self.packages)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (self.packages / package).rglob("*.py")
            if str(path.relative_to(self.packages)) not in PLUGINS
        }

    def pip(self, *arguments: str | Path) -> str:
        """Run the pip of this process's interpreter on the environment, without a package index."""
        return run([sys.executable, "-m", "pip", "--python", self.python, *arguments], workspace())

    def twistd(self, *arguments: str, **variables: str) -> str:
        """Run twistd in an empty folder and return what it printed."""
        with tempfile.TemporaryDirectory(dir=workspace()) as empty:
            return run([self.python, "-c", TWISTD, *arguments], Path(empty), **variables)


def listed(twistd_help: str) -> set[str]:
    """Return the names of the commands that `twistd --help` lists."""
    _, _, commands = twistd_help.partition("Commands:")
    return set(re.findall(r"^ {4}(\S+) ", commands, re.MULTILINE))


class ArchiveTests(SynchronousTestCase):
    """What stands in the wheel and in the source distribution."""

    def test_the_wheel_holds_each_module_of_the_package(self) -> None:
        """The packages are listed by name in setup.cfg: one that is forgotten there is found here."""
        modules = {str(path.relative_to(source())) for path in (source() / "tcpjson").rglob("*.py")}
        self.assertEqual(modules - names(built()[1]), set())

    def test_the_wheel_holds_the_plugin(self) -> None:
        self.assertEqual(PLUGINS - names(built()[1]), set())

    def test_the_wheel_holds_the_data(self) -> None:
        """The marker of the types, and the test vectors."""
        vectors = {str(path.relative_to(source())) for path in (source() / "tcpjson/vectors").glob("*.json")}
        self.assertNotEqual(vectors, set())
        self.assertEqual(({"tcpjson/py.typed"} | vectors) - names(built()[1]), set())

    def test_the_wheel_holds_nothing_else(self) -> None:
        """A file such as twisted/__init__.py would hide Twisted, and pip would delete Twisted's own."""
        others = {name for name in names(built()[1]) if not re.match(r"tcpjson(-[^/]+\.dist-info)?/", name)}
        self.assertEqual(others, PLUGINS)

    def test_the_version_is_that_of_the_package(self) -> None:
        said = run([sys.executable, "-c", "import tcpjson; print(tcpjson.__version__)"], source()).strip()
        self.assertEqual(built()[1].name, f"tcpjson-{said}-py3-none-any.whl")

    def test_the_source_distribution_holds_what_tests_and_documents_need(self) -> None:
        with tarfile.open(built()[0]) as archive:
            inside = {name.partition("/")[2] for name in archive.getnames()}
        wanted = {"README.rst", "LICENSE", "CHANGELOG.rst", "tox.ini", "docs/conf.py", "docs/index.rst"}
        wanted |= {str(path.relative_to(source())) for path in (source() / "tests").rglob("*.py")}
        wanted |= {f"contrib/systemd/tcpjson.{kind}" for kind in ("service", "socket")}
        self.assertEqual(wanted - inside, set())


class InstallTests(SynchronousTestCase):
    """Installing and removing, where Twisted is installed as pip installs it."""

    def test_a_wheel_comes_and_goes(self) -> None:
        """Installed, `twistd` knows the command; removed, each file of Twisted is as it was."""
        environment = Environment("wheel")
        before = listed(environment.twistd("--help"))
        self.assertIn("web", before)
        self.assertNotIn("tcpjson", before)

        environment.pip("install", "--quiet", "--no-index", "--no-deps", built()[1])
        self.assertEqual(listed(environment.twistd("--help")) - before, {"tcpjson"})
        self.assertIn("--port", environment.twistd("tcpjson", "--help"))

        environment.pip("uninstall", "--quiet", "--yes", "tcpjson")
        self.assertEqual(environment.digests("twisted"), environment.twisted)
        self.assertFalse((environment.packages / "tcpjson").exists())
        self.assertEqual(listed(environment.twistd("--help")), before)

    def test_an_editable_install_shows_the_plugin(self) -> None:
        environment = Environment("editable")
        environment.pip(
            "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--editable", source()
        )
        self.assertIn("tcpjson", listed(environment.twistd("--help")))
        self.assertIn("--port", environment.twistd("tcpjson", "--help"))

    def test_a_bare_checkout_runs(self) -> None:
        """With the checkout on PYTHONPATH, nothing needs to be installed."""
        environment = Environment("bare")
        path = str(source())
        self.assertIn("tcpjson", listed(environment.twistd("--help", PYTHONPATH=path)))
        self.assertIn("--port", environment.twistd("tcpjson", "--help", PYTHONPATH=path))


class ConfigurationTests(SynchronousTestCase):
    """Facts that stand in two files."""

    def test_tox_installs_the_lowest_releases_that_setup_cfg_allows(self) -> None:
        setup, tox = configparser.RawConfigParser(), configparser.RawConfigParser()
        setup.read(PROJECT / "setup.cfg", encoding="utf-8")
        tox.read(PROJECT / "tox.ini", encoding="utf-8")
        extras = setup["options.extras_require"]
        required = setup["options"]["install_requires"]
        required += "".join(extras[name] for name in ("auth", "console", "bench", "metrics"))
        allowed = required.strip().replace(">=", "==").splitlines()
        self.assertEqual(tox["testenv:py311-lowest"]["deps"].strip().splitlines(), allowed)
