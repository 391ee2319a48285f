"""The mutation check: is there a unit test that notices when a guard is gone?"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from tests.guards.finder import Guard, without
from tests.guards.known import END_TO_END, KINDS, KNOWN, Known
from tests.guards.runner import PACKAGE, GuardsError, Outcome, check, guards, prepare, sources, survey

# How many guards `--short` takes out.
_SAMPLE = 100

# Of a guard that is known not to be missed, seconds in which to see whether that is still so.
_KNOWN_SECONDS = 3.0

_COLUMNS = ("module", "guards", "noticed", "by hanging", "known", "survived")


def parse(arguments: Sequence[str] | None) -> Namespace:
    modules = list(sources())
    parser = ArgumentParser(
        prog="python -m tests.guards",
        description="Takes each guard out in turn and runs the unit tests that come by it until one is red.",
        epilog="The status is 1 if a guard survived that is not in known.py, or a row of that is not true.",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="MODULE",
        help="only this module, as core/framing.py, or all below a folder, as core; may be given again",
    )
    parser.add_argument("--short", action="store_true", help=f"only {_SAMPLE} guards, taken at random")
    parser.add_argument(
        "--seed", type=int, default=0, help="of --short: the same sample for the same number; 0"
    )
    parser.add_argument(
        "--known",
        action="store_true",
        help="only what known.py names, with all tests that come by it; else they have a few seconds each",
    )
    parser.add_argument("--list", action="store_true", help="only say what would be taken out")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time; the processors"
    )
    parser.add_argument(
        "--end-to-end",
        action="store_true",
        help="only those guards of known.py that a test with real processes notices: see that it does",
    )
    options = parser.parse_args(arguments)
    for name in options.only or ():
        if not any(_below(module, name) for module in modules):
            parser.error(f"--only {name}: there is no such module")
    if options.workers < 1:
        parser.error("--workers: 1 or more")
    return options


def _below(module: str, name: str) -> bool:
    return module in (name, f"{name}.py") or module.startswith(f"{name.rstrip('/')}/")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    start = time.monotonic()
    found = guards()
    names = {guard.name for guard in found}
    wrong = [
        f"known.py: no such guard: {name}" for known in KNOWN for name in known.guards if name not in names
    ]
    chosen = [
        guard
        for guard in found
        if not options.only or any(_below(guard.module, name) for name in options.only)
    ]
    if options.known:
        known = {name for each in KNOWN for name in each.guards}
        chosen = [guard for guard in chosen if guard.name in known]
    if options.short:
        chosen = random.Random(options.seed).sample(chosen, min(_SAMPLE, len(chosen)))
    try:
        if options.list:
            for guard in chosen:
                print(f"{PACKAGE.name}/{guard.module}:{guard.line}: {guard.source}: {guard.change}")
        elif options.end_to_end:
            wrong += end_to_end(chosen)
        else:
            wrong += take_out(chosen, options.workers, thorough=options.known)
    except GuardsError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if wrong:
        print("", *wrong, sep="\n")
    if not (options.list or options.end_to_end):
        print(f"\n{len(chosen)} of {len(found)} guards, {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


def take_out(chosen: Sequence[Guard], workers: int, *, thorough: bool) -> list[str]:
    """Take out guards, print the table, and return what is wrong; `thorough`: with all tests, always."""
    prepare()
    seen = survey(workers)
    if seen.failed:
        raise GuardsError(f"red with all guards in place: {', '.join(sorted(seen.failed))}")
    texts = sources()
    known = {name: each for each in KNOWN for name in each.guards}
    plan = {guard: seen.tests(guard) for guard in chosen}
    for guard, tests in plan.items():
        if guard.name in known and not thorough:
            plan[guard] = _some(tests, seen.seconds)
    outcomes: list[Outcome] = []
    at_import = {guard for guard in chosen if seen.at_import(guard)}
    for outcome in check(plan, seen.seconds, workers, at_import):
        outcomes.append(outcome)
        if sys.stderr.isatty():
            print(f"\r{len(outcomes)} of {len(chosen)}", end="", file=sys.stderr)
    outcomes.sort(key=lambda outcome: (outcome.guard.module, outcome.guard.line, outcome.guard.index))
    print_table(outcomes, known)
    wrong = []
    for outcome in outcomes:
        guard = outcome.guard
        if not outcome.noticed and guard.name not in known:
            line = texts[guard.module].splitlines()[guard.line - 1].strip()
            wrong += [f"{PACKAGE.name}/{guard.module}:{guard.line}: {line}", f"    {guard.name}"]
        elif outcome.noticed and guard.name in known:
            wrong.append(f"known.py: noticed by {outcome.noticed}: {guard.name}")
    return wrong


def _some(tests: Sequence[str], seconds: Mapping[str, float]) -> list[str]:
    """The first of some tests: those that are done within `_KNOWN_SECONDS`."""
    ends = accumulate(seconds[test] for test in tests)
    return [test for test, end in zip(tests, ends, strict=True) if end <= _KNOWN_SECONDS]


def print_table(outcomes: Iterable[Outcome], known: dict[str, Known]) -> None:
    """A line a module, and what the known ones are."""
    rows: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        row = rows.setdefault(outcome.guard.module, Counter())
        row["guards"] += 1
        if outcome.noticed:
            row["by hanging" if outcome.hung else "noticed"] += 1
        elif outcome.guard.name in known:
            row["known"] += 1
            kinds[known[outcome.guard.name].kind] += 1
        else:
            row["survived"] += 1
    rows["all"] = sum(rows.values(), Counter())
    width = max(map(len, rows), default=0)
    print(f"{_COLUMNS[0]:{width}}", *(f"{column:>10}" for column in _COLUMNS[1:]), sep="  ")
    for module, row in rows.items():
        print(f"{module:{width}}", *(f"{row[column]:10}" for column in _COLUMNS[1:]), sep="  ")
    print("\nknown:", ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS))


# With real processes.


def end_to_end(chosen: Iterable[Guard]) -> list[str]:
    """See that the test named for a guard is red without it and green with it; returns what is wrong."""
    by_name = {guard.name: guard for guard in chosen}
    wrong = []
    for known in KNOWN:
        names = [name for name in known.guards if known.kind == END_TO_END and name in by_name]
        if names and not _green(known.test, None):
            wrong.append(f"red with all guards in place: {known.test}")
            continue
        for name in names:
            green = _green(known.test, by_name[name])
            print(f"{'not noticed' if green else 'noticed'} by {known.test}: {name}", flush=True)
            if green:
                wrong.append(f"known.py: not noticed by {known.test}: {name}")
    return wrong


def _green(test: str, guard: Guard | None) -> bool:
    """Whether a test passes in a copy of the project without a guard."""
    project = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(prefix="tcpjson-guards-") as name:
        copy = Path(name)
        leftovers = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, copy / "tcpjson", ignore=leftovers)
        for part in ("tests", "twisted"):
            shutil.copytree(project / part, copy / part, ignore=leftovers)
        if guard is not None:
            path = copy / "tcpjson" / guard.module
            source = path.read_text(encoding="utf-8")
            path.write_text(ast.unparse(without(source, guard)), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-m", "twisted.trial", "--temp-directory", copy / "temp", test],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
        except subprocess.TimeoutExpired:
            return False
        if "Ran 0 tests" in done.stdout:
            raise GuardsError(f"known.py: no such test: {test}")
        return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
