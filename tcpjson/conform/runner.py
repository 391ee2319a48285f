"""Makes the checks, one after another, whatever the server does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tcpjson.conform import (
    classic,
    compressed,
    errors,
    framing,
    greeting,
    heartbeats,
    hello,
    login,
    messages,
    pressure,
    shutdown,
)
from tcpjson.conform.checks import CHECKS, SECTIONS, Check
from tcpjson.conform.gate import LOGIN, PING, WELCOME, learn
from tcpjson.conform.played import vector_checks
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Failed, Result, Skip, Verdict

#: Where the checks are: they enter themselves into the table.
MODULES = (
    *(framing, messages, classic, greeting, hello, login, compressed, heartbeats, errors, pressure),
    shutdown,
)
# Seconds for an answer, at the least, of a server that lets us wait for others.
_IMPATIENT = 0.25
# Nothing can be checked without them.
_GATES = (WELCOME, PING)
# How often a failure makes us look whether others have come.
_LOOKS = 5


def all_checks() -> list[Check]:
    """The vectors and the rest, section by section; those that delay others last."""
    checks = [*vector_checks(), *CHECKS]
    order = list(SECTIONS)
    return sorted(checks, key=lambda check: (check.last, order.index(check.section)))


class Runner:
    """
    Makes checks.

    Args:
        scene: what they work with.
        level: "classic", "full", or None: as `welcome` says.
        tell: is given each result.
        note: is given a line of what else people should know at once.
    """

    def __init__(
        self, scene: Scene, level: str | None, tell: Callable[[Result], None], note: Callable[[str], None]
    ) -> None:
        self._scene = scene
        self._level = level
        self._tell = tell
        self._note = note
        self._results: list[Result] = []
        # Why nothing more can be checked; and why nothing but what `welcome` says.
        self._gone = ""
        self._mute = ""
        self._looks = 0

    @property
    def level(self) -> str:
        """The level that is checked."""
        return self._level or ("full" if self._scene.facts.protocol else "classic")

    def run(self, checks: Sequence[Check]) -> list[Result]:
        """Make all of them; returns what came of them, in order."""
        for gate in _GATES:
            result = self._make(gate)
            if result.verdict is not Verdict.PASSED:
                self._mute = f"{gate.name}: {result.reason}"
                if gate is WELCOME:
                    self._gone = self._gone or self._mute
                break
        else:
            if self._scene.facts.auth:
                self._make(LOGIN)
            self._learn()
        for check in self._of_level(checks):
            self._make(check)
        self._scene.clear()
        return self._results

    def _of_level(self, checks: Iterable[Check]) -> Iterable[Check]:
        return (check for check in checks if self.level == "full" or check.level == "classic")

    def _learn(self) -> None:
        self._scene.patience.begin()
        try:
            learn(self._scene, self._note)
        except (Failed, Skip):
            # What is wrong the checks will tell.
            pass
        finally:
            self._scene.clear()

    def _make(self, check: Check) -> Result:
        result = self._once(check)
        if result.verdict in (Verdict.FAILED, Verdict.WARNED) and self._strangers_came():
            result = self._once(check)
        if result.verdict is Verdict.FAILED and not self._gone:
            self._look()
        self._results.append(result)
        self._tell(result)
        return result

    def _once(self, check: Check) -> Result:
        scene = self._scene
        began = scene.patience.now()
        verdict, reason = Verdict.SKIPPED, self._gone or self._mute * (check.section != "4")
        if not reason:
            verdict, reason = self._play(check)
        failed = verdict in (Verdict.FAILED, Verdict.WARNED)
        pieces = scene.transcript.pieces if failed else []
        return Result(
            section=check.section,
            name=check.name,
            level=check.level,
            must=check.must,
            rules=check.rules,
            why=check.why,
            verdict=verdict,
            reason=reason,
            pieces=pieces,
            seconds=scene.patience.now() - began,
        )

    def _play(self, check: Check) -> tuple[Verdict, str]:
        scene = self._scene
        if not _plays_vector(check):
            scene.clear()
        scene.transcript.clear()
        scene.patience.begin()
        wrong = Verdict.FAILED if check.must else Verdict.WARNED
        verdict, reason = Verdict.PASSED, ""
        try:
            check.play(scene)
        except Skip as skip:
            # Where nothing can be checked, not all is well.
            verdict, reason = wrong if check in _GATES else Verdict.SKIPPED, str(skip)
        except Failed as failed:
            verdict, reason = wrong, str(failed)
            if failed.hung:
                scene.patience.hurry(_IMPATIENT)
        except Exception as error:
            # Nobody thought of what the server sent; the other checks are still to come.
            verdict, reason = wrong, f"{type(error).__name__}: {error}"
        scene.clear(keep=verdict is not wrong)
        return verdict, reason

    def _strangers_came(self) -> bool:
        """Whether clients that are not ours are connected, which was not known."""
        scene = self._scene
        if scene.strangers or self._gone or self._looks >= _LOOKS:
            return False
        self._looks += 1
        scene.patience.begin()
        try:
            scene.count_strangers()
        except (Failed, Skip):
            pass
        finally:
            scene.clear()
        return scene.strangers > 0

    def _look(self) -> None:
        """See whether the server still serves."""
        scene = self._scene
        scene.patience.begin()
        try:
            with scene.patience.all():
                scene.pong(scene.greet("probe"), scene.nonce())
        except Skip:
            pass
        except Failed as failed:
            self._gone = f"the server no longer serves: {failed}"
        finally:
            scene.clear()


def _plays_vector(check: Check) -> bool:
    return check not in CHECKS
