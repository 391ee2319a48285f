"""Runs unit tests in forks of this process, each with one guard taken out."""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import pickle
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unittest
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

import hypothesis
from hypothesis import Phase
from twisted.trial.runner import TestLoader

import tcpjson
from tests.guards.finder import Guard, find, without

PACKAGE = Path(tcpjson.__file__).parent

# A test may take this many times what it takes with all guards, and some seconds more: of the processor, for
# a loop without an end, and of the clock, for what waits.
_PATIENCE = 10
_PROCESSOR_SECONDS = 3.0
_CLOCK_SECONDS = 60.0
# Bytes that a loop without an end may fill.
_MEMORY = 1 << 30

_REACTOR = "twisted.internet.reactor"

Key = TypeVar("Key")

_context = multiprocessing.get_context("fork")


class GuardsError(Exception):
    """The check cannot be made; the text says why."""


@dataclass
class Survey:
    """
    What the tests do while all guards are there.

    Args:
        seconds: how long each test takes, by its id.
        lines: the tests that run each line, by the path of the module below the package; "" is the import.
        failed: the tests of these modules that are red with all guards in place.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def tests(self, guard: Guard) -> list[str]:
        """The tests that come by a guard, the fastest first."""
        found = self._reaching(guard)
        if self.at_import(guard):
            # It has a part in all that the module's own tests do.
            stem = f"tcpjson.test.test_{Path(guard.module).stem}."
            found |= {test for test in self.seconds if test.startswith(stem)}
        return sorted(found - {""} - self.failed, key=lambda test: self.seconds[test])

    def at_import(self, guard: Guard) -> bool:
        """Whether something comes by a guard when the package is imported."""
        return "" in self._reaching(guard)

    def _reaching(self, guard: Guard) -> set[str]:
        lines = self.lines.get(guard.module, {})
        return set().union(*(lines.get(line, set()) for line in range(guard.line, guard.last + 1)))


@dataclass(frozen=True)
class Outcome:
    """What became of a guard: which test noticed, or how its process ended; `""` when none did."""

    guard: Guard
    noticed: str
    hung: bool = False


def sources() -> dict[str, str]:
    """The modules that have guards, by their path below the package: all but the tests and the vectors."""
    return {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ("test", "vectors")
    }


def guards() -> list[Guard]:
    """All guards of the package."""
    return [guard for module, source in sources().items() for guard in find(source, module)]


def _test_modules() -> list[str]:
    """The modules of unit tests; to be called only when Hypothesis is set up."""
    package = importlib.import_module("tcpjson.test")
    return [
        f"tcpjson.test.{each.name}"
        for each in pkgutil.iter_modules(package.__path__)
        if each.name.startswith("test_")
    ]


def quiet_hypothesis() -> None:
    """Have Hypothesis do the same in each fork; to be called before the tests are imported."""
    # Nobody reads the examples that fail here: they are neither made smaller nor kept.
    hypothesis.settings.register_profile(
        "guards", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
    )
    hypothesis.settings.load_profile("guards")
    _forget_examples()


def _forget_examples() -> None:
    hypo = importlib.import_module("tcpjson.test.hypo")
    vars(hypo)["_DATABASE"] = None


def prepare() -> None:
    """Import all that the forks need."""
    quiet_hypothesis()
    for name in _test_modules():
        # A reactor has descriptors, which forks would share: each fork imports what imports one.
        [(_, imports, _)] = in_forks({name: partial(_imports_reactor, name)}, 1)
        if imports is False:
            importlib.import_module(name)


def _imports_reactor(name: str) -> bool:
    importlib.import_module(name)
    return _REACTOR in sys.modules


def _case(test: str) -> unittest.TestCase:
    module, kind, method = test.rsplit(".", 2)
    found = importlib.import_module(module)
    if not hasattr(getattr(found, kind, None), method):
        raise GuardsError(f"no such test: {test}")
    case: unittest.TestCase = getattr(found, kind)(method)
    return case


def _limit(test_seconds: float | None) -> None:
    """End this process when a test takes too long, by signals that nobody catches; None: no more."""
    processor = clock = 0.0
    if test_seconds is not None:
        allowed = _PATIENCE * test_seconds
        processor, clock = allowed + _PROCESSOR_SECONDS, allowed + _CLOCK_SECONDS
    signal.setitimer(signal.ITIMER_PROF, processor)
    signal.setitimer(signal.ITIMER_REAL, clock)


# The survey.


def survey(workers: int) -> Survey:
    """
    Run all tests once and see which lines each of them runs, unless that is known for these files.

    Raises:
        GuardsError: coverage is missing.
    """
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.json")]):
        digest.update(path.read_bytes())
    cache = Path(tempfile.gettempdir()) / f"tcpjson-guards-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != os.getuid() or cache.is_symlink():
        raise GuardsError(f"{cache} is somebody else's")
    kept = cache / digest.hexdigest()
    with suppress(OSError, pickle.UnpicklingError, EOFError):
        known: Survey = pickle.loads(kept.read_bytes())
        return known
    if importlib.util.find_spec("coverage") is None:
        raise GuardsError("the package coverage is missing: pip install coverage")
    whole = Survey()
    failed: list[str] = []
    jobs = {name: partial(_survey_one, name) for name in _test_modules()}
    for name, result, status in in_forks(jobs, workers):
        if status:
            raise GuardsError(f"the process of {name} ended with {status}: {result}")
        seconds, lines, failures = result
        whole.seconds.update(seconds)
        failed += failures
        for module, by_line in lines.items():
            mine = whole.lines.setdefault(module, {})
            for line, tests in by_line.items():
                mine.setdefault(line, set()).update(tests)
    # One that runs nothing of the package has no part in this.
    reached = set().union(*(tests for by_line in whole.lines.values() for tests in by_line.values()))
    whole.failed = reached.intersection(failed)
    if whole.failed:
        return whole
    for old in cache.iterdir():
        old.unlink()
    part = kept.with_suffix(".part")
    part.write_bytes(pickle.dumps(whole))
    part.rename(kept)
    return whole


def _survey_one(name: str) -> tuple[dict[str, float], dict[str, dict[int, set[str]]], list[str]]:
    import coverage

    tracer = coverage.Coverage(
        data_file=None,
        config_file=False,
        include=[f"{PACKAGE}/*"],
        omit=[f"{PACKAGE}/test/*"],
        messages=False,
    )
    seconds: dict[str, float] = {}
    failed: list[str] = []
    tracer.start()
    # What is imported already shows no line of its import.
    _forget()
    suite = TestLoader().loadModule(importlib.import_module(name))
    for case in _cases(suite):
        tracer.switch_context(case.id())
        start = time.process_time()
        result = unittest.TestResult()
        case.run(result)
        seconds[case.id()] = time.process_time() - start
        if not result.wasSuccessful():
            failed.append(case.id())
    tracer.stop()
    data = tracer.get_data()
    lines: dict[str, dict[int, set[str]]] = {}
    for path in data.measured_files():
        by_line = {line: set(tests) for line, tests in data.contexts_by_lineno(path).items()}
        lines[str(Path(path).relative_to(PACKAGE))] = by_line
    return seconds, lines, failed


def _cases(suite: Any) -> Iterator[unittest.TestCase]:
    for each in suite:
        if isinstance(each, unittest.TestCase):
            yield each
        else:
            yield from _cases(each)


def in_forks(jobs: Mapping[Key, Callable[[], Any]], workers: int) -> Iterator[tuple[Key, Any, int]]:
    """
    What functions return in forks, some at a time, each in a folder of its own; in any order. With each comes
    the status of its process; where that is not 0, what is returned is a text, or None.
    """
    waiting = list(jobs.items())[::-1]
    running: dict[Any, tuple[Key, Connection, Any]] = {}
    folder = Path(tempfile.mkdtemp(prefix="tcpjson-guards-"))
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                key, job = waiting.pop()
                ours, theirs = _context.Pipe(duplex=False)
                process = _context.Process(target=_work, args=(job, theirs, folder))
                process.start()
                theirs.close()
                running[ours] = (key, ours, process)
            for ready in wait(list(running)):
                key, ours, process = running.pop(ready)
                result = None
                with suppress(EOFError):
                    result = ours.recv()
                process.join()
                ours.close()
                shutil.rmtree(folder / str(process.pid), ignore_errors=True)
                yield key, result, process.exitcode
    finally:
        for _, ours, process in running.values():
            process.kill()
            process.join()
            ours.close()
        shutil.rmtree(folder, ignore_errors=True)


def _work(job: Callable[[], Any], answer: Connection, folder: Path) -> None:
    """Do a job in a folder of its own, say nothing, and send what it returns."""
    mine = folder / str(os.getpid())
    mine.mkdir()
    os.chdir(mine)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    try:
        answer.send(job())
    except Exception:
        # Nobody reads what this process prints.
        answer.send(traceback.format_exc())
        raise


# One guard less.


def check(
    plan: Mapping[Guard, Sequence[str]],
    seconds: Mapping[str, float],
    workers: int,
    at_import: Container[Guard] = (),
) -> Iterator[Outcome]:
    """
    Take out guards, each in a fork, and run tests there until one is red. Outcomes come in any order.

    Args:
        plan: the tests for each guard, by their ids; `prepare` was called.
        seconds: how long each of these tests takes otherwise.
        workers: how many forks there are at a time.
        at_import: those for which the package has to be imported without them.

    Raises:
        GuardsError: something is wrong with the check itself.
    """
    texts = sources()
    live = _live_functions()
    gc.collect()
    gc.freeze()
    order = {guard: list(tests) for guard, tests in plan.items()}
    jobs = {
        guard: partial(
            _take_out,
            guard,
            texts[guard.module],
            {} if guard in at_import else live.get(guard.module, {}),
            tests,
            seconds,
        )
        for guard, tests in order.items()
    }
    try:
        for guard, noticed, status in in_forks(jobs, workers):
            if status == 1 and noticed:
                raise GuardsError(f"{guard.name}: {noticed}")
            if status:
                noticed = f"the process ended with {status}"
            # What noticed one, is the likeliest to notice its neighbours.
            for other, tests in order.items():
                if noticed in tests and (other.module, other.function) == (guard.module, guard.function):
                    tests.remove(noticed)
                    tests.insert(0, noticed)
            yield Outcome(guard, noticed, -status in (signal.SIGPROF, signal.SIGALRM))
    finally:
        gc.unfreeze()


def _take_out(
    guard: Guard,
    source: str,
    live: Mapping[tuple[str, int], list[FunctionType]],
    tests: Sequence[str],
    seconds: Mapping[str, float],
) -> str:
    """Take out a guard in this process; returns the test that noticed, `""` when none did."""
    status = Path("/proc/self/status").read_text()
    [size] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize:")]
    resource.setrlimit(resource.RLIMIT_AS, (1024 * size + _MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = compile(without(source, guard), str(PACKAGE / guard.module), "exec", dont_inherit=True)
    swapped = _swap(code, live)
    test = "the import"
    try:
        if not swapped:
            sys.meta_path.insert(0, _Finder(guard.module, code))
            _forget()
        for test in tests:
            _limit(seconds[test])
            result = unittest.TestResult()
            _case(test).run(result)
            if not result.wasSuccessful():
                return test
    except GuardsError:
        raise
    # What a test lets through is an end of the run.
    except BaseException as error:
        return f"{test}: {type(error).__name__}"
    finally:
        _limit(None)
    return ""


def _live_functions() -> dict[str, dict[tuple[str, int], list[FunctionType]]]:
    """All functions of the package's modules that are there now, by module, name and line."""
    found: dict[str, dict[tuple[str, int], list[FunctionType]]] = {}
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename.startswith(f"{PACKAGE}{os.sep}"):
            code = each.__code__
            module = os.path.relpath(code.co_filename, PACKAGE)
            by_name = found.setdefault(module, {})
            by_name.setdefault((code.co_qualname, code.co_firstlineno), []).append(each)
    return found


def _swap(new: CodeType, live: Mapping[tuple[str, int], list[FunctionType]]) -> bool:
    """Give functions of a module their new code; False where that cannot be done: some may have it."""
    changed = False
    seen = set()
    for code in _codes(new):
        key = (code.co_qualname, code.co_firstlineno)
        functions = live.get(key, [])
        if key in seen and functions:
            return False
        seen.add(key)
        for function in functions:
            if function.__code__ != code:
                try:
                    function.__code__ = code
                except ValueError:
                    return False
                changed = True
    return changed


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)


def _forget() -> None:
    """Have tcpjson imported anew."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "tcpjson":
            del sys.modules[name]
    _forget_examples()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Has one module come from code that is given."""

    def __init__(self, module: str, code: CodeType) -> None:
        names = ["tcpjson", *Path(module).with_suffix("").parts]
        self._package = names[-1] == "__init__"
        self._name = ".".join(names[:-1] if self._package else names)
        self._path = str(PACKAGE / module)
        self._code = code

    def find_spec(
        self, fullname: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            self._path,
            loader=self,
            submodule_search_locations=[str(PACKAGE)] if self._package else None,
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, vars(module))
