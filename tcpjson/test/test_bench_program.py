"""The benchmark's program: what it is told, what it makes of the figures, and what it prints."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import runpy
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.bench import (
    comparing,
    contenders,
    html,
    latency,
    limiting,
    machine,
    measuring,
    options,
    processes,
    program,
    runner,
    scenarios,
    servers,
    table,
    target,
    workers,
)
from tcpjson.bench.certificate import Certificate, make_certificate
from tcpjson.bench.contenders import Contender
from tcpjson.bench.jobs import Address, Report
from tcpjson.bench.progress import Progress
from tcpjson.bench.results import LIMITS, Latency, Machine, Ratio, Result, Run, Skipped
from tcpjson.bench.scenarios import SCENARIOS, Step
from tcpjson.bench.servers import ServerFailed, Started
from tcpjson.bench.target import Target, Unfit
from tcpjson.bench.wire import frame
from tcpjson.bench.workers import GeneratorFailed, Workers
from tcpjson.test.hypo import given
from tcpjson.test.test_bench_work import WorkTestCase, job

_ADDRESS = Address(family=socket.AF_INET, at=("127.0.0.1", 1))
_STEP = Step(scenario="small", label="echo", kind="echo", clients=3, size=100, in_flight=5)
_MACHINE = Machine(
    processor="a processor", processors=2, memory_bytes=2**32, system="Linux", python="CPython", packages={}
)


def result(**fields: Any) -> Result:
    """One of a scenario."""
    defaults: dict[str, Any] = {
        "scenario": "small",
        "label": "echo",
        "clients": 3,
        "seconds": 1.0,
        "messages": 10,
        "per_second": 10.0,
        "bytes_per_second": 1000.0,
        "checked": 10,
    }
    return Result(**{**defaults, **fields})


def made_run(*results: Result, **fields: Any) -> Run:
    """One with these results."""
    return Run(
        started="2024-01-01T12:00:00+00:00",
        version="1",
        machine=_MACHINE,
        command=["python"],
        results=list(results),
        **fields,
    )


class LimitingTests(SynchronousTestCase):
    """What a run was limited by."""

    def limited(self, **fields: Any) -> str:
        return limiting.limited_by(**{"server_cpu": 0.5, "generator_cpu": 0.5, "per_second": 10.0, **fields})

    def test_busy(self) -> None:
        """Who is busy; where both are, the server."""
        self.assertEqual(self.limited(server_cpu=0.95), "server")
        self.assertEqual(self.limited(server_cpu=0.95, generator_cpu=0.99), "server")
        self.assertEqual(self.limited(generator_cpu=0.95), "generator")
        self.assertEqual(self.limited(generator_cpu=0.95, server_cpu=None), "generator")
        self.assertEqual(self.limited(), "unknown")
        self.assertEqual(self.limited(server_cpu=None), "unknown")

    def test_rate(self) -> None:
        """A rate that was kept is what limited it; one that was not is not."""
        self.assertEqual(self.limited(rate=10.0, server_cpu=0.95), "the given rate")
        self.assertEqual(self.limited(rate=20.0, server_cpu=0.95), "server")

    def test_allowed(self) -> None:
        """A server's own rate limit."""
        self.assertEqual(self.limited(allowed=10.5), "the server's rate limit")
        self.assertEqual(self.limited(allowed=100.0, server_cpu=0.95), "server")

    @given(
        st.none() | st.floats(0, 3),
        st.floats(0, 2),
        st.floats(0, 1e6),
        st.none() | st.floats(1, 1e6),
        st.none() | st.floats(1, 1e6),
    )
    def test_words(self, server: Any, generator: float, per_second: float, rate: Any, allowed: Any) -> None:
        """For each there are words."""
        found = limiting.limited_by(
            server_cpu=server, generator_cpu=generator, per_second=per_second, rate=rate, allowed=allowed
        )
        self.assertIn(found, limiting.WORDS)
        self.assertEqual(tuple(limiting.WORDS), LIMITS)


class ComparingTests(SynchronousTestCase):
    """Rounds."""

    def test_median(self) -> None:
        """What was counted is summed, what was measured is a median."""
        found = comparing.median(
            [
                result(per_second=rate, messages=int(rate), checked=1, server_cpu_us=cpu, note=f"{rate:g}")
                for rate, cpu in ((30.0, 1.0), (10.0, 3.0), (20.0, 9.0))
            ]
        )
        self.assertEqual((found.per_second, found.server_cpu_us, found.note), (20.0, 3.0, "20"))
        self.assertEqual((found.messages, found.checked, found.seconds), (60, 3, 3.0))
        self.assertIsNone(found.memory_bytes)

    def test_lacking(self) -> None:
        """A figure that one round lacks is that of the middle round; a wrong reply is not forgotten."""
        found = comparing.median(
            [result(per_second=1.0, server_cpu_us=None, wrong=2, note="wrong"), result(server_cpu_us=5.0)]
        )
        self.assertEqual((found.server_cpu_us, found.wrong, found.note), (5.0, 2, "wrong"))

    def test_ratio(self) -> None:
        """The median of the ratios within the rounds, not the ratio of the medians."""
        ours = [result(per_second=rate, server_cpu_us=1.0) for rate in (10.0, 20.0, 90.0)]
        theirs = [result(per_second=rate, server_cpu_us=2.0, server="peer") for rate in (10.0, 5.0, 30.0)]
        found = comparing.ratio(ours, theirs)
        self.assertEqual((found.throughput, found.cpu, found.memory), (3.0, 0.5, None))
        self.assertEqual((found.server, found.rounds, found.scenario), ("peer", 3, "small"))

    def test_no_throughput(self) -> None:
        """Where all do the same, or nothing, there is none; nor is there a ratio to nothing."""
        found = comparing.ratio([result(rate=5.0)], [result(rate=5.0, server_cpu_us=0.0)])
        self.assertEqual((found.throughput, found.cpu), (None, None))
        found = comparing.ratio([result(memory_bytes=10.0)], [result(memory_bytes=20.0)])
        self.assertEqual((found.throughput, found.memory), (None, 0.5))


class TableTests(SynchronousTestCase):
    """What is printed."""

    def test_one(self) -> None:
        """A server's results."""
        found = table.lines(
            made_run(
                result(server_cpu_us=1.234, server_cpu=0.99, in_flight=5, limited_by="server"),
                result(
                    scenario="latency",
                    rate=10.0,
                    limited_by="the given rate",
                    latency=Latency([(50.0, 0.0001), (99.0, 0.0123)], 0.0001, 1.5, 10),
                ),
                result(scenario="idle", memory_bytes=1234.5, checked=0),
                skipped=[Skipped("tls", "tcpjson", "no TLS")],
                server="tcpjson/1",
            )
        )
        text = "\n".join(found)
        self.assertIn("a server of our own: tcpjson/1; CPython, 2 x a processor, 4 GiB, Linux", found[0])
        rows = [" ".join(line.split()) for line in found]
        self.assertIn("small echo 3 x 5 10 0.0 1.23 99% 0% 10 0 server", rows)
        self.assertIn("latency echo 3 10 0.0 - - 0% 10 0 the given rate", rows)
        self.assertIn("latency: 50 % 100 us, 99 % 12.3 ms, longest 1.50 s", found)
        self.assertIn("idle: 3 connections, 1,234 bytes of memory each", found)
        self.assertIn("limited by server (small): the server took all", text)
        self.assertIn("limited by the given rate (latency): ", text)
        self.assertIn("tls was not measured: no TLS", found)
        self.assertEqual(found[-1], "20 replies were checked, all of them were right")

    def test_wrong(self) -> None:
        """Wrong replies are told, and what strangers say is escaped."""
        found = table.lines(made_run(result(wrong=2, note="\x1b[31m"), where="host:1"))
        self.assertEqual(found[-1], "10 replies were checked, 2 of them were wrong")
        self.assertIn("small: \\x1b[31m", found)
        self.assertTrue(found[0].startswith("host:1: a classic server; "))

    def test_steps(self) -> None:
        """Of a scenario with several steps, the step is named."""
        found = table.lines(made_run(result(label="one", note="a"), result(label="two", note="b")))
        self.assertIn("small, one: a", found)
        self.assertIn("small, two: b", found)

    def test_several(self) -> None:
        """Several servers, and their ratios."""
        found = table.lines(
            made_run(
                result(limited_by="server"),
                result(server="peer", limited_by="generator", note="slow"),
                skipped=[Skipped("tls", "peer", "no")],
                ratios=[
                    Ratio(scenario="small", label="echo", server="peer", rounds=3, throughput=1.5, cpu=0.25)
                ],
            )
        )
        self.assertEqual(sum("echo (peer)" in line for line in found), 1)
        self.assertIn("small, peer: slow", found)
        self.assertIn("tls was not measured with peer: no", found)
        self.assertIn("median of 3 rounds", "\n".join(found))
        self.assertIn(["small", "echo", "peer", "1.50", "0.25", "-"], [line.split() for line in found])
        self.assertTrue(any(line.startswith("limited by generator: ") for line in found))

    def test_little(self) -> None:
        """Nothing but what was skipped; a machine whose memory is not known."""
        run = made_run(skipped=[Skipped("idle", "tcpjson", "far away")])
        run.machine = msgspec.structs.replace(_MACHINE, memory_bytes=None)
        found = table.lines(run)
        self.assertIn("idle was not measured: far away", found)
        self.assertNotIn("GiB", found[0])


class OptionsTests(SynchronousTestCase):
    """The command line."""

    def refused(self, *words: str) -> str:
        self.patch(sys, "stderr", told := io.StringIO())
        with self.assertRaises(SystemExit) as caught:
            options.read(words)
        self.assertEqual(caught.exception.code, 2)
        return told.getvalue().splitlines()[-1]

    def test_bounds(self) -> None:
        """Numbers out of their bounds, and what are none."""
        for words in (
            ("--duration", "0"),
            ("--duration", "601"),
            ("--duration", "nan"),
            ("--duration", "x"),
            ("--rate", "0.5"),
            ("--rate", "1e7"),
        ):
            self.assertIn("must be ", self.refused(*words))
        for words in (
            ("--clients", "0"),
            ("--clients", "20001"),
            ("--clients", "1.5"),
            ("--clients", "9" * 5000),
            ("--processes", "65"),
        ):
            self.assertIn("must be a whole number from 1 to ", self.refused(*words))

    def test_together(self) -> None:
        """What does not go together."""
        self.assertIn("leave out HOST:PORT", self.refused("host", "--peers"))
        self.assertIn("of which server", self.refused("--ca", "file"))
        self.assertIn("one of them", self.refused("--peers", "--tls"))
        self.assertIn("invalid choice", self.refused("--scenario", "none"))

    def test_right(self) -> None:
        """What is said is read."""
        found = options.read(["host:1", "--ca", "f", "--duration", "0.2", "--clients", "5", "--rate", "7"])
        self.assertEqual((found.where, found.tls, found.duration), ("host:1", True, 0.2))
        self.assertEqual((found.clients, found.rate), (5, 7.0))
        self.assertEqual(options.read([]).duration, 5.0)
        self.assertFalse(options.read([]).tls)

    def test_chosen(self) -> None:
        """Scenarios, each once."""
        default = ["small", "large", "latency", "fanout", "storm", "idle", "tls"]
        self.assertEqual(options.chosen(None), default)
        self.assertEqual(options.chosen(["tls", "small", "tls"]), ["small", "tls"])
        self.assertEqual(options.chosen(["all"]), list(SCENARIOS))


class ScenariosTests(SynchronousTestCase):
    """The steps of the scenarios."""

    def test_all(self) -> None:
        """Each has its own name, and keeps to the bounds."""
        for clients, rate in ((None, None), (7, 9.0)):
            for name, scenario in SCENARIOS.items():
                found = scenario.steps(clients, rate)
                self.assertEqual({step.scenario for step in found}, {name})
                self.assertEqual(len({(step.label, step.clients) for step in found}), len(found))
                for step in found:
                    self.assertLessEqual(step.clients, scenarios.MOST_CLIENTS)
                    self.assertGreaterEqual(step.in_flight, 1)
                    if name != "scaling" and clients:
                        self.assertEqual(step.clients, 7)
                    self.assertEqual(step.rate is None, name != "latency")
                    if rate and step.rate:
                        self.assertEqual(step.rate, 9.0)

    def test_labels(self) -> None:
        """They are for people."""
        labels = [step.label for name in ("sizes", "scaling") for step in SCENARIOS[name].steps(None, None)]
        for label in ("echo of 10 bytes", "echo of 100 kB", "echo, 1 client", "echo, 10 clients"):
            self.assertIn(label, labels)


class ProgressTests(SynchronousTestCase):
    """How far it is."""

    def test_bar(self) -> None:
        """A line that is written again and again, and gone in the end."""
        out = io.StringIO()
        progress = Progress(out, 4.0, True)
        progress.begin("one", 2.0)
        progress.tick(1.0)
        progress.begin("two", 2.0)
        progress.tick(100.0)
        progress.end()
        shown = out.getvalue().split("\r")[1:]
        self.assertEqual([text[26:31] for text in shown[:-1]], ["   0%", "  25%", "  50%", " 100%"])
        self.assertIn("two", shown[3])
        self.assertNotIn("\n", out.getvalue())
        self.assertEqual(shown[-1], "\x1b[K")

    def test_no_terminal(self) -> None:
        """A line for each."""
        out = io.StringIO()
        progress = Progress(out, 4.0, False)
        progress.begin("one", 2.0)
        progress.tick(1.0)
        progress.end()
        self.assertEqual(out.getvalue(), "tcpjson.bench: one\n")

    def test_no_time(self) -> None:
        """What takes no time is done."""
        out = io.StringIO()
        Progress(out, 0.0, True).begin("one", 0.0)
        self.assertIn("100%", out.getvalue())


class ProcessesTests(SynchronousTestCase):
    """What the system tells of processes."""

    def setUp(self) -> None:
        self.proc = Path(self.mktemp())
        (self.proc / "net").mkdir(parents=True)

    def test_own(self) -> None:
        """Of this one all is known."""
        begin = processes.cpu_seconds(os.getpid())
        assert begin is not None
        while (processes.cpu_seconds(os.getpid()) or 0) <= begin:
            pass
        if Path("/proc/self/smaps_rollup").exists():
            memory = processes.resident_bytes(os.getpid())
            assert memory is not None
            self.assertGreater(memory, 2**20)

    def test_unknown(self) -> None:
        """Of one that is not there nothing is."""
        self.assertIsNone(processes.cpu_seconds(2**22 + 1))
        self.assertIsNone(processes.cpu_seconds(2**200))
        self.assertIsNone(processes.resident_bytes(1, self.proc))
        self.assertIsNone(processes.waited_seconds(1, self.proc))
        self.assertIsNone(processes.listener(1, self.proc))

    def test_files(self) -> None:
        """What stands in the files, and what should not."""
        (self.proc / "7").mkdir()
        (self.proc / "7" / "schedstat").write_text("5 2500000000 3\n")
        self.assertEqual(processes.waited_seconds(7, self.proc), 2.5)
        (self.proc / "7" / "schedstat").write_text("5")
        self.assertIsNone(processes.waited_seconds(7, self.proc))
        rollup = self.proc / "7" / "smaps_rollup"
        rollup.write_text("first line\nRss:      12 kB\n")
        self.assertEqual(processes.resident_bytes(7, self.proc), 12 * 1024)
        rollup.write_text("Rss: x kB\n")
        self.assertIsNone(processes.resident_bytes(7, self.proc))
        rollup.write_text("nothing\n")
        self.assertIsNone(processes.resident_bytes(7, self.proc))

    def test_listener(self) -> None:
        """Who listens on a port."""
        lines = [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt  uid timeout inode",
            "   0: 0100007F:270F 00000000:0000 0A 0:0 0:0 0 0 0 77 1",
            "   1: 0100007F:270F 00000000:0000 01 0:0 0:0 0 0 0 78 1",
            "   2: short",
        ]
        (self.proc / "net" / "tcp").write_text("\n".join(lines))
        self.assertIsNone(processes.listener(9999, self.proc))
        for pid, inode in ((5, 78), (6, 77)):
            folder = self.proc / str(pid) / "fd"
            folder.mkdir(parents=True)
            (folder / "0").symlink_to("/dev/null")
            (folder / "3").symlink_to(f"socket:[{inode}]")
        (self.proc / "8").mkdir()
        self.assertEqual(processes.listener(9999, self.proc), 6)
        self.assertIsNone(processes.listener(9998, self.proc))

    def test_really(self) -> None:
        """This process, where the system tells."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            found = processes.listener(listener.getsockname()[1])
        if Path("/proc/net/tcp").exists():
            self.assertEqual(found, os.getpid())


class MachineTests(SynchronousTestCase):
    """Where it runs."""

    def test_this(self) -> None:
        """This one has a name, and what matters is installed."""
        found = machine.machine()
        self.assertTrue(found.processor)
        self.assertGreaterEqual(found.processors, 1)
        self.assertIn("msgspec", found.packages)
        self.assertIn("openssl", found.packages)

    def test_elsewhere(self) -> None:
        """A system that tells little."""
        proc = Path(self.mktemp())
        proc.mkdir()
        (proc / "cpuinfo").write_text("flags: x\n")
        self.patch(platform, "processor", lambda: "")
        self.patch(platform, "machine", lambda: "z80")
        self.patch(machine, "_PACKAGES", ("no-such-package",))

        def unknown(name: str) -> int:
            raise ValueError(name)

        self.patch(machine, "os", type("System", (), {"cpu_count": lambda: None, "sysconf": unknown}))
        found = machine.machine(proc)
        self.assertEqual((found.processor, found.processors, found.memory_bytes), ("z80", 1, None))
        self.assertEqual(list(found.packages), ["openssl"])
        self.patch(platform, "processor", lambda: "a name")
        self.assertEqual(machine.machine(proc / "none").processor, "a name")


class RunnerTests(SynchronousTestCase):
    """Figures."""

    target = Target(address=_ADDRESS, pid=1)

    def test_jobs(self) -> None:
        """The clients and the rate are divided; no process has none."""
        step = msgspec.structs.replace(_STEP, rate=10.0, clients=5)
        found = runner.jobs(step, self.target, 2.0, 3, "x")
        self.assertEqual([each.clients for each in found], [2, 2, 1])
        self.assertEqual(sum(each.rate or 0 for each in found), 10.0)
        self.assertEqual(len({each.seed for each in found}), 3)
        self.assertEqual([each.phase for each in found], [0, 1 / 3, 2 / 3])
        self.assertEqual(len(runner.jobs(step, self.target, 2.0, 9, "x")), 5)
        for kind in ("fanout", "hold"):
            alone = msgspec.structs.replace(step, kind=kind)
            self.assertEqual(len(runner.jobs(alone, self.target, 2.0, 3, "x")), 1)

    def test_check(self) -> None:
        """What a server cannot do."""
        small = msgspec.structs.replace(self.target, max_length=250)
        with self.assertRaisesRegex(runner.Skip, "250 bytes"):
            runner.check(_STEP, small)
        runner.check(_STEP, msgspec.structs.replace(self.target, max_length=300))
        hold = msgspec.structs.replace(_STEP, kind="hold")
        with self.assertRaisesRegex(runner.Skip, "own machine"):
            runner.check(hold, msgspec.structs.replace(self.target, pid=None))
        runner.check(hold, self.target)
        tls = msgspec.structs.replace(_STEP, tls=True)
        with self.assertRaisesRegex(runner.Skip, "--tls"):
            runner.check(tls, self.target)
        secure = msgspec.structs.replace(_ADDRESS, tls=True)
        runner.check(tls, msgspec.structs.replace(self.target, address=secure))

    def test_allowed(self) -> None:
        """What a server's limits allow."""
        self.assertIsNone(runner.allowed(_STEP, self.target))
        limited = msgspec.structs.replace(self.target, messages_per_second=50.0)
        self.assertEqual(runner.allowed(_STEP, limited), 150.0)
        limited = msgspec.structs.replace(limited, bytes_per_second=1500.0)
        self.assertEqual(runner.allowed(_STEP, limited), 30.0)
        self.assertIsNone(runner.allowed(msgspec.structs.replace(_STEP, kind="storm"), limited))

    def report(self, **fields: Any) -> Report:
        figures = {"messages": 100, "seconds": 2.0, "bytes": 1000, "checked": 100, "cpu_seconds": 0.5}
        return Report(**{**figures, **fields})

    def test_result(self) -> None:
        """Several processes are one."""
        found = runner.result(
            _STEP, [self.report(), self.report(cpu_seconds=1.9, note="a note")], spent=1.0, waited=0.0
        )
        self.assertEqual((found.messages, found.per_second, found.bytes_per_second), (200, 100.0, 1000.0))
        self.assertEqual((found.server_cpu, found.server_cpu_us), (0.5, 5000.0))
        self.assertEqual((found.generator_cpu, found.limited_by), (0.95, "generator"))
        self.assertAlmostEqual(found.generator_cpu_us, 12000.0)
        self.assertEqual(found.note, "a note; 2 processes generated it")
        self.assertIsNone(found.latency)

    def test_waited(self) -> None:
        """Who waits for a processor is busy."""
        found = runner.result(_STEP, [self.report()], spent=1.2, waited=0.7)
        self.assertEqual((found.server_cpu, found.limited_by), (0.6, "server"))
        self.assertIn("35% of the time", found.note)
        found = runner.result(_STEP, [self.report(waited_seconds=1.4)], spent=None)
        self.assertEqual(found.limited_by, "generator")

    def test_nothing(self) -> None:
        """Where nothing was done, nothing is divided by it."""
        found = runner.result(_STEP, [self.report(messages=0, seconds=0.0)], spent=1.0)
        self.assertEqual((found.per_second, found.server_cpu_us, found.server_cpu), (0, None, None))

    def test_wrong(self) -> None:
        """What was wrong, and what was not answered, is said."""
        step = msgspec.structs.replace(_STEP, rate=5.0)
        found = runner.result(
            step,
            [
                self.report(),
                self.report(wrong=3, first_wrong="xyz", unanswered=4, histogram=latency.encoded({5: 7})),
            ],
            spent=None,
        )
        self.assertEqual(found.wrong, 3)
        self.assertIn("the first wrong reply: xyz", found.note)
        self.assertIn("4 requests", found.note)
        assert found.latency is not None
        self.assertEqual(found.latency.count, 7)


class MeasureTests(WorkTestCase):
    """A step, done by real processes."""

    def measure(self, step: Step, pid: int | None) -> Result:
        address = msgspec.structs.replace(_ADDRESS, at=("127.0.0.1", self.server().port))
        there = Target(address=address, pid=pid)
        return runner.measure(step, there, seconds=0.05, count=2, tick=lambda seconds: None)

    def test_cpu(self) -> None:
        """Where the process may be looked at, its share is known."""
        found = self.measure(_STEP, os.getpid())
        assert found.server_cpu_us is not None
        self.assertGreater(found.server_cpu_us, 0)
        self.assertEqual((found.wrong, found.clients, found.size, found.in_flight), (0, 3, 100, 5))
        self.assertIsNone(self.measure(_STEP, None).server_cpu_us)

    def test_idle(self) -> None:
        """The memory of connections is what there is more than before, and never less than nothing."""
        sizes = [5000, 11_000]
        self.patch(processes, "resident_bytes", lambda pid: sizes.pop(0))
        self.patch(runner, "_SETTLE", 0.0)
        step = SCENARIOS["idle"].steps(3, None)[0]
        # Of these figures the second is read after what stood first has gone.
        sizes.insert(0, 7000)
        found = self.measure(step, os.getpid())
        self.assertEqual((found.memory_bytes, found.clients, found.messages), (2000.0, 3, 3))
        sizes[:] = [7000, 11_000, 5000]
        self.assertEqual(self.measure(step, os.getpid()).memory_bytes, 0)
        self.patch(processes, "resident_bytes", lambda pid: None)
        found = self.measure(step, os.getpid())
        self.assertIsNone(found.memory_bytes)
        self.assertIn("could not be read", found.note)


class MeasuringTests(SynchronousTestCase):
    """The order of things."""

    def setUp(self) -> None:
        self.turns: list[tuple[str, str]] = []
        self.fails: dict[str, Exception] = {}
        self.run_ = made_run()
        self.patch(measuring, "measure", self.measure)

    def measure(self, step: Step, target: Target, **fields: Any) -> Result:
        self.turns.append((step.label, fields["server"]))
        self.seconds = fields["seconds"]
        if fields["server"] in self.fails:
            raise self.fails[fields["server"]]
        return result(scenario=step.scenario, label=step.label, server=fields["server"])

    def contender(self, label: str, only: frozenset[str] | None = None) -> Contender:
        @contextlib.contextmanager
        def start(step: Step) -> Iterator[Target]:
            yield Target(address=_ADDRESS, server=f"{label}/1")

        return Contender(label=label, start=start, scenarios=only)

    def measuring(self, *which: Contender, rounds: int = 1) -> measuring.Measuring:
        self.out = io.StringIO()
        return measuring.Measuring(
            self.run_,
            which,
            seconds=6.0,
            rounds=rounds,
            processes=1,
            progress=Progress(self.out, 1.0, False),
        )

    def test_one(self) -> None:
        """The steps of a scenario share its time."""
        steps = [msgspec.structs.replace(_STEP, label=label) for label in ("a", "b")]
        self.measuring(self.contender("tcpjson")).scenario(steps)
        self.assertEqual(self.turns, [("a", "tcpjson"), ("b", "tcpjson")])
        self.assertEqual(self.seconds, 3.0)
        self.assertEqual([each.label for each in self.run_.results], ["a", "b"])
        self.assertEqual((self.run_.server, self.run_.ratios), ("tcpjson/1", []))
        self.assertIn("small: a\n", self.out.getvalue())

    def test_rounds(self) -> None:
        """Each in turn, to and fro; who cannot take part does not."""
        which = [self.contender("tcpjson"), self.contender("x"), self.contender("y", frozenset(("tls",)))]
        self.measuring(*which, rounds=3).scenario([_STEP])
        self.assertEqual([who for _, who in self.turns], ["tcpjson", "x", "x", "tcpjson", "tcpjson", "x"])
        self.assertEqual([each.server for each in self.run_.results], ["tcpjson", "x"])
        self.assertEqual([each.server for each in self.run_.ratios], ["x"])
        self.assertEqual(self.seconds, 2.0)
        self.assertIn("small: echo, x\n", self.out.getvalue())

    def test_skip(self) -> None:
        """What makes no sense is left out, and told once."""
        self.fails = {"tcpjson": runner.Skip("no"), "x": runner.Skip("no")}
        which = self.measuring(self.contender("tcpjson"), self.contender("x"), rounds=2)
        which.scenario([_STEP, _STEP])
        self.assertEqual(self.run_.results, [])
        self.assertEqual(self.run_.skipped, [Skipped("small", "tcpjson", "no"), Skipped("small", "x", "no")])

    def test_fails(self) -> None:
        """A peer that fails is left out; the server that matters is not."""
        self.fails = {"x": GeneratorFailed("gone")}
        self.measuring(self.contender("tcpjson"), self.contender("x"), rounds=2).scenario([_STEP])
        self.assertEqual(self.run_.skipped, [Skipped("small", "x", "gone")])
        self.assertEqual(len(self.run_.results), 1)
        self.fails = {"tcpjson": GeneratorFailed("gone")}
        with self.assertRaises(GeneratorFailed):
            self.measuring(self.contender("tcpjson")).scenario([_STEP])


class TargetTests(WorkTestCase):
    """Where the server is, and what it says."""

    def reach(self, welcome: Any, **fields: Any) -> Target:
        greeting = welcome if isinstance(welcome, bytes) else frame(json.dumps(welcome).encode())
        port = self.server(greeting=greeting).port
        return target.reach(target.addresses(f"127.0.0.1:{port}", False, None), "there", **fields)

    def test_addresses(self) -> None:
        """What stands for an address, and what does not."""
        for where, at in (("127.0.0.1", ("127.0.0.1", 9999)), ("127.0.0.1:5", ("127.0.0.1", 5))):
            (found,) = target.addresses(where, True, "f")
            self.assertEqual((found.at, found.tls, found.ca, found.name), (at, True, "f", "127.0.0.1"))
        (found,) = target.addresses("[::1]:7", False, None)
        self.assertEqual((found.at[:2], found.name), (("::1", 7), "::1"))
        for where in ("", "host:0", "host:65536", "a:b:c", "unix:/x", "::1", "host:x"):
            with self.assertRaisesRegex(Unfit, "not HOST:PORT"):
                target.addresses(where, False, None)
        for where in ("no-such-host.invalid", "a" * 70 + ".invalid"):
            with self.assertRaises(Unfit):
                target.addresses(where, False, None)

    def test_local(self) -> None:
        """Loopback is here."""
        for host, here in (("127.0.0.1", True), ("::1", True), ("192.0.2.1", False), ("fe80::1%lo", False)):
            self.assertEqual(target.local(Address(family=socket.AF_INET, at=(host, 1))), here)

    def test_welcome(self) -> None:
        """What it says is known."""
        found = self.reach(
            {
                "type": "welcome",
                "server": "x/1\n",
                "max_length": 5000,
                "limits": {"messages_per_second": 50, "bytes_per_second": 1e3},
            }
        )
        self.assertEqual((found.server, found.max_length), ("x/1\\n", 5000))
        self.assertEqual((found.messages_per_second, found.bytes_per_second), (50, 1000.0))
        if Path("/proc/net/tcp").exists():
            self.assertEqual(found.pid, os.getpid())
        self.assertEqual(self.reach({"type": "welcome"}, pid=5).pid, 5)

    def test_odd(self) -> None:
        """Odd fields are none."""
        values: tuple[Any, ...] = ("x", [], {}, True, -1, 0, 10**400, None)
        for value in values:
            found = self.reach(
                {
                    "type": "welcome",
                    "server": value if value != "x" else 5,
                    "max_length": value,
                    "limits": value if value else {"messages_per_second": value},
                }
            )
            self.assertEqual((found.server, found.max_length, found.messages_per_second), ("", None, None))

    def test_unfit(self) -> None:
        """What cannot be measured is told in a line."""
        self.patch(target, "PATIENCE", 0.2)
        for welcome, why in (
            ({"type": "welcome", "auth": ["plain"]}, "login"),
            ({"type": "hi"}, "there: no welcome"),
            (b"", "there: no welcome came in time"),
            (b"SSH-2.0-OpenSSH\r\n", "there: no frames of tcpjson"),
        ):
            with self.assertRaisesRegex(Unfit, why):
                self.reach(welcome)

    def test_next(self) -> None:
        """Of several addresses, the first that serves."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            nobody = listener.getsockname()
        first = Address(family=socket.AF_INET, at=nobody)
        second = Address(family=socket.AF_INET, at=("127.0.0.1", self.server().port))
        self.assertEqual(target.reach([first, second], "there").address, second)
        with self.assertRaisesRegex(Unfit, "there: Connection refused"):
            target.reach([first], "there")


class WorkersTests(SynchronousTestCase):
    """The processes of the generator."""

    def workers(self, script: str, count: int = 1) -> Workers:
        command = (sys.executable, "-c", script)
        return Workers([job("hold", 1, seconds=0.0)] * count, lambda seconds: None, command)

    def test_words(self) -> None:
        """Each is told its job, and says two words, which may come in pieces."""
        script = """
import json, time
job = json.loads(input())
for part in ('{"type":', '"ready","seconds":2.5}\\n'):
    print(end=part, flush=True)
    time.sleep(0.05)
assert input() == "go"
print(json.dumps({"type": "report", "messages": job["clients"], "seconds": 1, "bytes": 0, "checked": 0}))
"""
        with self.workers(script, 2) as running:
            self.assertEqual([ready.seconds for ready in running.ready()], [2.5, 2.5])
            self.assertEqual([report.messages for report in running.run()], [2, 2])

    def test_failures(self) -> None:
        """One that ends, speaks nonsense or out of turn, or cannot do it."""
        for script, why in (
            ("", "has ended"),
            ("print('x')", "nonsense"),
            ('print(\'{"type":"failed","why":"no way"}\')', "no way"),
            ('print(\'{"type":"report","messages":1,"seconds":1,"bytes":1,"checked":1}\')', "out of turn"),
        ):
            with self.workers(script) as running, self.assertRaisesRegex(GeneratorFailed, why):
                running.ready()
        self.patch(workers, "_LONGEST", 10)
        with (
            self.workers("print('x' * 100, end='', flush=True); input(); input()") as running,
            self.assertRaisesRegex(GeneratorFailed, "has ended"),
        ):
            running.ready()

    def test_silent(self) -> None:
        """One that says nothing is not waited for without an end; it is ended."""
        self.patch(workers, "_SPARE", -10.0)
        with (
            self.workers("import time; time.sleep(60)") as running,
            self.assertRaisesRegex(GeneratorFailed, "does not answer"),
        ):
            running.ready()
        self.assertIsNotNone(running._processes[0].returncode)

    def test_dead(self) -> None:
        """One that died is told nothing more."""
        with self.workers('print(\'{"type":"ready"}\')') as running:
            running.ready()
            running._processes[0].wait(10)
            with self.assertRaisesRegex(GeneratorFailed, "has ended"):
                running.run()

    def test_not_started(self) -> None:
        """When one cannot be started, the others are ended."""
        started: list[Any] = []

        def popen(*words: Any, **fields: Any) -> Any:
            if started:
                raise OSError("no more processes")
            started.append(subprocess.Popen(*words, **fields))
            return started[0]

        class Some:
            def __getattr__(self, name: str) -> Any:
                return popen if name == "Popen" else getattr(subprocess, name)

        self.patch(workers, "subprocess", Some())
        with self.assertRaises(OSError):
            self.workers("input(); input()", 2).__enter__()
        self.assertIsNotNone(started[0].returncode)


class ServersTests(SynchronousTestCase):
    """A server of our own."""

    def program(self, text: str) -> None:
        self.patch(servers, "_PROGRAM", text)

    def test_runs(self) -> None:
        """It listens, and is ended."""
        with servers.own_server() as started:
            socket.create_connection(("127.0.0.1", started.port), 10).close()
            os.kill(started.pid, 0)
        with self.assertRaises(ProcessLookupError):
            os.kill(started.pid, 0)

    def test_does_not_listen(self) -> None:
        """One that ends at once, or says nothing."""
        self.program("raise SystemExit('no')")
        with self.assertRaisesRegex(ServerFailed, "ended by itself; it said: no"), servers.own_server():
            self.fail("it must not come to that")
        self.program("import time; time.sleep(60)")
        self.patch(servers, "START", 0.1)
        with self.assertRaisesRegex(ServerFailed, "does not come to listen"), servers.own_server():
            self.fail("it must not come to that")

    def test_dies(self) -> None:
        """When it ends by itself, that is told in place of what the clients saw."""
        self.program(r"print('bad\nlistening on 127.0.0.1:5\x1b\n', flush=True); input()")
        with (
            self.assertRaisesRegex(ServerFailed, r"ended by itself; it said: listening on 127.0.0.1:5\\x1b"),
            servers.own_server() as started,
        ):
            os.kill(started.pid, signal.SIGKILL)
            raise GeneratorFailed("closed")
        with self.assertRaises(GeneratorFailed), servers.own_server():
            raise GeneratorFailed("closed")

    def test_stubborn(self) -> None:
        """One that does not want to end is ended by force."""
        self.program(
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('listening on 127.0.0.1:5', flush=True); time.sleep(60)"
        )
        self.patch(servers, "STOP", 0.1)
        with servers.own_server() as started:
            pass
        with self.assertRaises(ProcessLookupError):
            os.kill(started.pid, 0)


class ContendersTests(WorkTestCase):
    """Who is measured."""

    def test_ours(self) -> None:
        """A server of our own, with TLS where it is wanted."""
        folder = Path(self.mktemp())
        folder.mkdir()
        made = make_certificate(folder)
        wanted: list[Certificate | None] = []
        port = self.server().port

        @contextlib.contextmanager
        def own(certificate: Certificate | None) -> Iterator[Started]:
            wanted.append(certificate)
            yield Started(port, 5)

        self.patch(contenders, "own_server", own)
        with contenders.ours(lambda: made, False).start(_STEP) as found:
            self.assertEqual((found.pid, found.address.tls), (5, False))
            self.assertEqual(found.address.at, ("127.0.0.1", port))
        self.assertEqual(wanted, [None])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        port = self.server(tls=context).port
        for tls, step in ((True, _STEP), (False, msgspec.structs.replace(_STEP, tls=True))):
            with contenders.ours(lambda: made, tls).start(step) as found:
                self.assertEqual((found.address.tls, found.address.ca), (True, made.authority))
        self.assertEqual(wanted, [None, made, made])

    def test_running(self) -> None:
        """One that runs."""
        there = Target(address=_ADDRESS)
        with contenders.running(there).start(_STEP) as found:
            self.assertIs(found, there)

    def test_peers(self) -> None:
        """Those that speak our protocol greet; others need not."""
        port = self.server().port

        class Some:
            label = "peer"
            driver: str | None = None
            scenarios = frozenset(("small",))

            @contextlib.contextmanager
            def start(self) -> Iterator[Started]:
                yield Started(port, 5)

        other = Some()
        other.driver = "a.module"
        self.patch(contenders, "usable", lambda: [Some(), other])
        ours, theirs = contenders.peers()
        self.assertEqual((ours.driver, theirs.driver), ("tcpjson.bench.driver", "a.module"))
        self.assertTrue(ours.takes(_STEP))
        self.assertFalse(ours.takes(msgspec.structs.replace(_STEP, scenario="tls")))
        self.assertTrue(contenders.running(Target(address=_ADDRESS)).takes(_STEP))
        with ours.start(_STEP) as found:
            self.assertEqual((found.pid, found.address.at), (5, ("127.0.0.1", port)))
        port = 1
        with theirs.start(_STEP) as found:
            self.assertEqual((found.pid, found.address.at), (5, ("127.0.0.1", 1)))
        with self.assertRaisesRegex(Unfit, "peer: "), ours.start(_STEP):
            self.fail("it must not come to that")


class ProgramTests(WorkTestCase):
    """The whole, in this process; what it starts is other processes."""

    def setUp(self) -> None:
        self.patch(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True))
        self.patch(sys, "stderr", io.StringIO())

    @property
    def printed(self) -> str:
        out: Any = sys.stdout
        return str(out.buffer.getvalue().decode())

    @property
    def told(self) -> str:
        err: Any = sys.stderr
        return str(err.getvalue())

    def where(self, **fields: Any) -> str:
        return f"127.0.0.1:{self.server(**fields).port}"

    def run_(self, *words: str) -> int:
        return program.main(["--duration", "0.05", *words])

    def test_list(self) -> None:
        """All scenarios, and no more."""
        self.assertEqual(self.run_("--list"), 0)
        self.assertEqual([line.split()[0] for line in self.printed.splitlines()], list(SCENARIOS))

    def test_running(self) -> None:
        """One that runs, with files of what was found."""
        folder = Path(self.mktemp())
        folder.mkdir()
        self.patch(html, "page", lambda run: f"page of {len(run.results)}")
        words = ("--json", str(folder / "a.json"), "--html", str(folder / "a.html"))
        where = self.where()
        self.assertEqual(self.run_(where, "--scenario", "small", "--clients", "2", *words), 0)
        self.assertEqual((folder / "a.html").read_text(), "page of 1")
        found = msgspec.json.decode((folder / "a.json").read_bytes(), type=Run)
        self.assertEqual(found.where, where)
        self.assertEqual(found.command[:3], ["python", "-m", "tcpjson.bench"])
        self.assertGreater(found.results[0].messages, 0)
        self.assertIn("all of them were right", self.printed)

    def test_only_json(self) -> None:
        """Nothing else on standard output."""
        self.assertEqual(self.run_(self.where(), "--scenario", "tls", "--json", "-"), 0)
        found = msgspec.json.decode(self.printed, type=Run)
        self.assertIn("--tls", found.skipped[0].why)

    def test_wrong(self) -> None:
        """A wrong reply is a failure."""
        where = self.where(mangle=lambda message: frame(b"[]"))
        self.assertEqual(self.run_(where, "--scenario", "storm"), 1)
        self.assertIn("the first wrong reply: []", self.printed)

    def test_limits(self) -> None:
        """A server that limits what it takes is told of."""
        limits = {"messages_per_second": 5000, "bytes_per_second": 1e9}
        greeting = frame(json.dumps({"type": "welcome", "limits": limits}).encode())
        self.assertEqual(self.run_(self.where(greeting=greeting), "--scenario", "storm"), 0)
        self.assertIn("5,000 messages and 1,000,000,000 bytes a second", self.told)

    def test_unfit(self) -> None:
        """What cannot be done is told in a line, with status 2."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for words, why in (
            ((f"127.0.0.1:{port}",), "Connection refused"),
            (("a:b:c",), "not HOST:PORT"),
            (("--json", "/no/such/folder/x"), "/no/such/folder/x: it cannot be written"),
            (("--html", "/"), "/: it cannot be written"),
        ):
            self.patch(sys, "stderr", io.StringIO())
            self.assertEqual(self.run_(*words), 2)
            self.assertIn(why, self.told)
            self.assertEqual(self.told.count("\n"), 1)
            self.assertEqual(self.printed, "")

    def test_missing(self) -> None:
        """The package that counts latencies is asked for where they are measured."""
        self.patch(latency, "available", lambda: False)
        self.assertEqual(self.run_(), 2)
        self.assertIn("pip install 'tcpjson[bench]'", self.told)
        self.assertEqual(self.run_(self.where(), "--scenario", "storm"), 0)

    def test_file(self) -> None:
        """A file that cannot be written after all."""
        folder = Path(self.mktemp())
        folder.mkdir()
        path = folder / "there"
        self.patch(program, "check_output", lambda path: os.rmdir(folder) if path else None)
        self.assertEqual(self.run_(self.where(), "--scenario", "storm", "--json", str(path)), 1)
        self.assertIn(f"{path}: No such file", self.told)

    def contender(self, *outcomes: Any) -> None:
        """Measure what has these outcomes in turn."""
        left = list(outcomes)

        def measure(step: Step, target: Target, **fields: Any) -> Result:
            outcome = left.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return result(scenario=step.scenario)

        self.patch(measuring, "measure", measure)

    def test_fails(self) -> None:
        """What was measured before a failure is shown."""
        two = ("--scenario", "storm", "--scenario", "fanout")
        for error, status in (
            (GeneratorFailed("the server closed the connection"), 1),
            (Unfit("gone"), 1),
            (KeyboardInterrupt(), 130),
        ):
            self.contender(None, error)
            self.patch(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True))
            self.assertEqual(self.run_(self.where(), *two), status)
            self.assertIn("\nfanout ", self.printed)
            self.assertIn(str(error) or "interrupted", self.told)
        self.contender(GeneratorFailed("at once"))
        self.patch(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True))
        self.assertEqual(self.run_(self.where(), *two), 1)
        self.assertEqual(self.printed, "")
        self.contender(Unfit("at once"))
        self.assertEqual(self.run_(self.where(), *two), 2)

    def test_ours(self) -> None:
        """A server of our own, and those beside it; one certificate for all."""
        made: list[Path] = []

        def certificate(folder: Path) -> Certificate:
            made.append(folder)
            return Certificate("port", "authority")

        def ours(certificate: Any, tls: bool) -> Contender:
            self.assertIs(certificate(), certificate())
            return contenders.running(Target(address=_ADDRESS))

        self.patch(program, "make_certificate", certificate)
        self.patch(program, "ours", ours)
        self.patch(program, "peers", list)
        self.patch(program, "absent", lambda: {"Node": "no node"})
        self.contender(None, None, None)
        self.assertEqual(self.run_("--peers", "--scenario", "storm"), 0)
        self.assertIn("all was not measured: it lacks: no node", self.printed)
        self.assertEqual(len(made), 1)
        self.assertFalse(made[0].exists())
        self.contender(None)
        self.assertEqual(self.run_("--scenario", "storm", "--processes", "1"), 0)

    def test_ends(self) -> None:
        """Interrupted before anything, ended by a signal, and with nobody who reads."""
        errors: tuple[BaseException, ...] = (KeyboardInterrupt(), ServerFailed("no"), BrokenPipeError())
        for error, status in zip(errors, (130, 1, 141), strict=True):

            def fail(options: Any, error: BaseException = error) -> int:
                raise error

            self.patch(program, "run", fail)
            self.patch(os, "dup2", lambda one, other: None)
            out = type("Out", (), {"fileno": lambda self: 1, "write": lambda self, text: 0})
            self.patch(sys, "stdout", out())
            self.assertEqual(program.main([]), status)

        def killed(options: Any) -> int:
            signal.raise_signal(signal.SIGTERM)
            return 0

        self.patch(program, "run", killed)
        before = signal.getsignal(signal.SIGTERM)
        with self.assertRaises(SystemExit) as caught:
            program.main([])
        self.assertEqual(caught.exception.code, 143)
        self.assertIs(signal.getsignal(signal.SIGTERM), before)

    def test_arguments(self) -> None:
        """Without arguments, those of the command line."""
        self.patch(sys, "argv", ["bench", "--list"])
        with self.assertRaises(SystemExit) as caught:
            runpy.run_module("tcpjson.bench", run_name="__main__")
        self.assertEqual(caught.exception.code, 0)
        self.assertIn("small", self.printed)
        runpy.run_module("tcpjson.bench.__main__")
        runpy.run_module("tcpjson.bench.__main__")
