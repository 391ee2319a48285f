"""The order of the measurements: scenarios, their steps, rounds, and the servers in turn."""

from __future__ import annotations

from collections.abc import Sequence

from tcpjson.bench.comparing import median, ratio
from tcpjson.bench.contenders import OURS, Contender
from tcpjson.bench.peers import PeerError
from tcpjson.bench.progress import Progress
from tcpjson.bench.results import Result, Run, Skipped
from tcpjson.bench.runner import Skip, measure
from tcpjson.bench.scenarios import Step
from tcpjson.bench.servers import ServerFailed
from tcpjson.bench.target import Unfit
from tcpjson.bench.workers import GeneratorFailed

_FAILURES = (GeneratorFailed, ServerFailed, PeerError, Unfit)


class Measuring:
    """
    Measures scenario after scenario.

    Args:
        run: gets the results.
        contenders: the servers, the first of which is the one that matters.
        seconds: for each scenario and server.
        rounds: in how many turns.
        processes: of the generator.
        progress: is told how far it is.
    """

    def __init__(
        self,
        run: Run,
        contenders: Sequence[Contender],
        *,
        seconds: float,
        rounds: int,
        processes: int,
        progress: Progress,
    ) -> None:
        self._run = run
        self._contenders = contenders
        self._seconds = seconds
        self._rounds = rounds
        self._processes = processes
        self._progress = progress

    def scenario(self, steps: Sequence[Step]) -> None:
        """
        Measure a scenario. A peer that fails is left out of a step, and the run says so.

        Raises:
            GeneratorFailed, ServerFailed, Unfit: the server that matters failed.
        """
        for step in steps:
            self._step(step, self._seconds / len(steps) / self._rounds)

    def _step(self, step: Step, seconds: float) -> None:
        found: dict[str, list[Result]] = {each.label: [] for each in self._contenders if each.takes(step)}
        for number in range(self._rounds):
            # To and fro, so that nobody is always the first.
            for contender in self._contenders[:: -1 if number % 2 else 1]:
                if contender.label in found:
                    self._turn(step, contender, seconds, found)
        results = {label: each for label, each in found.items() if each}
        self._run.results += [median(each) for each in results.values()]
        mine = results.pop(OURS, None)
        if mine is not None:
            self._run.ratios += [ratio(mine, theirs) for theirs in results.values()]

    def _turn(self, step: Step, contender: Contender, seconds: float, found: dict[str, list[Result]]) -> None:
        several = f", {contender.label}" if len(self._contenders) > 1 else ""
        self._progress.begin(f"{step.scenario}: {step.label}{several}", seconds)
        try:
            with contender.start(step) as target:
                if contender is self._contenders[0]:
                    self._run.server = target.server
                result = measure(
                    step,
                    target,
                    seconds=seconds,
                    count=self._processes,
                    tick=self._progress.tick,
                    server=contender.label,
                    driver=contender.driver,
                )
        except Skip as skip:
            self._leave_out(step, contender, str(skip), found)
        except _FAILURES as error:
            if contender is self._contenders[0]:
                raise
            self._leave_out(step, contender, str(error), found)
        else:
            found[contender.label].append(result)

    def _leave_out(self, step: Step, contender: Contender, why: str, found: dict[str, list[Result]]) -> None:
        del found[contender.label]
        skipped = Skipped(step.scenario, contender.label, why)
        if skipped not in self._run.skipped:
            self._run.skipped.append(skipped)
