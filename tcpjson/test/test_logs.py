"""The lines of the log, whatever the events hold, and where they go."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import string
import sys
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from twisted.application.service import Application, IServiceCollection, MultiService
from twisted.internet.task import Clock
from twisted.logger import (
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    formatEventAsClassicLogText,
    globalLogPublisher,
)
from twisted.python import log as classic_log
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson.logs import (
    MAX_FIELD,
    MAX_LINE,
    MAX_TRACEBACK,
    LogObserver,
    LogSetup,
    json_line,
    text_line,
    text_of,
    traceback_of,
)
from tcpjson.notices import Notices
from tcpjson.test.hypo import given

NOON = 1704110400.25


class Odd:
    """It cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def an_event(format: str | None = "hello", level: Any = LogLevel.info, /, **fields: Any) -> LogEvent:
    usual = {"log_format": format, "log_level": level, "log_time": NOON, "log_namespace": "tcpjson.x"}
    return {**usual, **fields}


def a_failure(error: Exception) -> Failure:
    try:
        raise error
    except Exception:
        return Failure()


class Case(SynchronousTestCase):
    def of(self, event: LogEvent) -> dict[str, Any]:
        """What the line of JSON holds."""
        line = json_line(event)
        self.assertTrue(line.isascii() and line.endswith("\n") and line[:-1].isprintable(), repr(line))
        self.assertTrue(len(line) <= MAX_LINE, len(line))

        def constant(name: str) -> Any:
            raise AssertionError(f"{name} is no JSON")

        fields = json.loads(line, parse_constant=constant)
        assert isinstance(fields, dict)
        return fields


VALUES: st.SearchStrategy[Any] = (
    st.text()
    | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]))
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**20000)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.binary()
    | st.lists(st.text(), max_size=3)
    | st.builds(Odd)
    | st.builds(lambda text: a_failure(ValueError(text)), st.text())
    | st.text(min_size=1).map(lambda text: text * 3000)
)
NAMES = (
    st.text(string.ascii_lowercase + "_", min_size=1)
    | st.text()
    | st.sampled_from(
        [
            *("time", "level", "event", "message", "failure", "format", "isError", "why", "system", "client"),
            *(
                "user",
                "code",
                "log_failure",
                "log_traceback",
                "log_system",
                "log_time",
                "log_level",
                "log_namespace",
            ),
            *("log_flattened", "log_text", "log_trace", "log_source"),
        ]
    )
)
FORMATS = st.none() | st.text() | VALUES | st.just("{a} {b!r} {user}") | st.just("{message} {0} {nothing}")


class JSONTests(Case):
    """`json_line`."""

    def test_a_line(self) -> None:
        event = an_event("connected {client}{_user}", event="connected", clients=3, client="c:1", _user="")
        self.assertEqual(
            json_line(event),
            '{"time":"2024-01-01T12:00:00.250Z","level":"info","event":"connected","client":"c:1","clients":3,'
            '"message":"connected c:1"}\n',
        )

    def test_what_comes_first(self) -> None:
        event = an_event(size=1, code="x", user=None, client="c", event="e")
        names = ["time", "level", "event", "client", "user", "code", "size", "message"]
        self.assertEqual(list(self.of(event)), names)
        self.assertIsNone(self.of(event)["user"])

    def test_what_has_no_name(self) -> None:
        fields = self.of(an_event("twistd {version} starting up", LogLevel.debug, version="1"))
        self.assertEqual(
            fields,
            {
                "time": "2024-01-01T12:00:00.250Z",
                "level": "debug",
                "event": "log",
                "logger": "tcpjson.x",
                "version": "1",
                "message": "twistd 1 starting up",
            },
        )

    def test_values(self) -> None:
        for value, written in (
            (True, True),
            (None, None),
            (1.5, 1.5),
            (-(2**63) + 1, -(2**63) + 1),
            (2**63, str(2**63)),
            (math.inf, "inf"),
            (-math.inf, "-inf"),
            (LogLevel.info, "<LogLevel=info>"),
            (b"x\xff", "b'x\\xff'"),
            ([1, "a"], "[1, 'a']"),
            (ValueError("no"), "no"),
            ("\x1b[2J\r\n\u2028\x7f\x85\ud800\N{SNOWMAN}", "\x1b[2J\r\n\u2028\x7f\x85\ud800\N{SNOWMAN}"),
            ("x" * 5000, "x" * MAX_FIELD),
            (["x" * 5000], ("['" + "x" * 5000)[:MAX_FIELD]),
            (Odd(), "(Odd: RuntimeError)"),
        ):
            self.assertEqual(self.of(an_event(a=value))["a"], written)
        self.assertEqual(self.of(an_event(a=math.nan))["a"], "nan")

    def test_names_that_are_taken(self) -> None:
        event = an_event(
            "{time} {level}", time=1, level=2, message=("x",), failure=3, format=4, why=5, system=6
        )
        fields = self.of({**event, "isError": 1})
        self.assertEqual(set(fields), {"time", "level", "event", "logger", "message"})
        self.assertEqual((fields["message"], fields["level"]), ("1 2", "info"))

    def test_what_is_for_the_message_alone(self) -> None:
        fields = self.of(an_event("{a}{_a}", a=1, _a=2, log_source=3))
        self.assertEqual((fields["message"], "_a" in fields, "log_source" in fields), ("12", False, False))

    def test_the_message_is_one_line(self) -> None:
        """For those who print it."""
        fields = self.of(an_event("{a} {b}", a="x\n2024 forged", b=ValueError("\x1b[2J")))
        self.assertEqual(fields["message"], r"x\n2024 forged \x1b[2J")
        self.assertEqual(fields["a"], "x\n2024 forged")

    def test_times(self) -> None:
        for time in (math.nan, math.inf, 1e300, None, "noon"):
            self.assertIsNone(self.of({**an_event(), "log_time": time})["time"])
        self.assertIsNone(self.of({})["time"])

    def test_an_empty_event(self) -> None:
        fields = self.of({})
        self.assertEqual((fields["level"], fields["event"], fields["message"]), ("info", "log", ""))

    def test_what_cannot_be_formatted(self) -> None:
        for event in (
            an_event("{missing}"),
            an_event("{a.b}", a=1),
            an_event("{a", a=1),
            an_event("{a}", a=Odd()),
            {**an_event(), "log_format": 7},
            {**an_event(), "log_flattened": {}},
        ):
            fields = self.of({**event, "event": "e", "client": "c:1"})
            self.assertEqual((fields["event"], fields["client"], fields["level"]), ("e", "c:1", "info"))
            self.assertNotEqual(fields["message"], "")

    def test_what_cannot_be_written_at_all(self) -> None:
        class Level:
            @property
            def name(self) -> str:
                raise RuntimeError

        fields = self.of(an_event("hello", Level()))
        self.assertEqual((fields["event"], fields["level"]), ("log_failed", "error"))
        self.assertIn("RuntimeError", fields["message"])
        self.assertRegex(fields["time"], "^20..-.*Z$")

    def test_failures(self) -> None:
        fields = self.of(an_event("it broke", LogLevel.critical, log_failure=a_failure(ValueError("no"))))
        self.assertEqual((fields["message"], fields["level"]), ("it broke", "critical"))
        self.assertTrue(fields["failure"].startswith("Traceback"))
        self.assertTrue(fields["failure"].endswith("builtins.ValueError: no\n"))

    def test_failures_without_end(self) -> None:
        """Of a long one, the beginning says where it was, and the end what."""
        fields = self.of(an_event(log_failure=a_failure(ValueError("y" * 100_000 + "end"))))
        self.assertTrue(MAX_TRACEBACK <= len(fields["failure"]) < MAX_TRACEBACK + 10)
        self.assertTrue(fields["failure"].startswith("Traceback"))
        self.assertTrue(fields["failure"].endswith("yend\n"))
        self.assertIn("\n...\n", fields["failure"])

    def test_failures_that_cannot_be_printed(self) -> None:
        class Broken(Failure):
            def getTraceback(self, *arguments: Any, **more: Any) -> str:
                raise RuntimeError

        self.assertEqual(
            self.of(an_event(log_failure=Broken(ValueError())))["failure"], "(no traceback: RuntimeError)"
        )

    def test_lines_of_twisted_s_older_log(self) -> None:
        written: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            written.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        classic_log.msg("two\nlines", system="factory")
        classic_log.err(a_failure(ValueError("no")), "it {broke}")
        classic_log.err(a_failure(ValueError("so")))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        message, failure, unnamed = map(self.of, written)
        self.assertEqual((message["message"], message["level"]), (r"two\nlines", "info"))
        self.assertEqual((failure["message"], failure["level"]), ("it {broke}", "critical"))
        self.assertIn("ValueError: no", failure["failure"])
        self.assertEqual(unnamed["message"], "Unhandled Error")

    def test_lines_that_another_observer_had_before(self) -> None:
        """One of Twisted's older ones writes into the event."""
        event = an_event("it broke {a}", log_failure=a_failure(ValueError("no")), a=1)

        @implementer(ILogObserver)
        def older(event: LogEvent) -> None:
            """It comes after one that changes the event."""

        LegacyLogObserverWrapper(older)(event)
        fields = self.of(event)
        self.assertEqual((fields["message"], fields["a"]), ("it broke 1", 1))
        self.assertIn("ValueError: no", fields["failure"])
        self.assertEqual(set(fields), {"time", "level", "event", "logger", "a", "message", "failure"})

    def test_what_notices_kept(self) -> None:
        clock = Clock()
        written: list[dict[str, Any]] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            written.append(self.of(event))

        notices = Notices(clock, Logger(namespace="x", observer=observe))
        for number in range(3):
            notices.failure("handler_failed", "it broke", a_failure(ValueError(number)), number=number)
        clock.advance(60)
        first, second = written
        self.assertIn("ValueError: 0", first["failure"])
        self.assertIn("ValueError: 1", second["failure"])
        self.assertEqual(
            (second["event"], second["unsaid"], second["level"]), ("handler_failed", 1, "critical")
        )
        self.assertEqual(second["message"], "it broke (and 1 more in 60 s)")

    def test_long_names(self) -> None:
        self.assertEqual(self.of(an_event(**{"x" * 100: 1}))["x" * 64], 1)

    def test_many_long_fields(self) -> None:
        """Texts are cut shorter, before any field is left out."""
        long = "\N{SNOWMAN}" * 5000
        fields = self.of(an_event("{f0}", event="e", client="c", **{f"f{n}": long for n in range(10)}))
        self.assertEqual(fields["f9"], "\N{SNOWMAN}" * 128)
        fields = self.of(an_event(long, event="e", log_failure=a_failure(ValueError(long))))
        self.assertEqual((fields["event"], "failure" in fields), ("e", True))

    def test_fields_without_end(self) -> None:
        fields = self.of(
            an_event(
                "hello", event="e" * 99, client="c", user="u", code="x", **{f"f{n}": n for n in range(9999)}
            )
        )
        self.assertEqual(
            fields,
            {
                "time": "2024-01-01T12:00:00.250Z",
                "level": "info",
                "event": "e" * 16,
                "client": "c",
                "user": "u",
                "code": "x",
                "message": "hello",
            },
        )

    @given(st.dictionaries(NAMES, VALUES, max_size=8), FORMATS, examples=400)
    def test_any_event(self, fields: dict[str, Any], format: Any) -> None:
        event = {**an_event(), "log_format": format, **fields}
        written = self.of(event)
        for name in ("time", "level", "event", "message"):
            self.assertIn(name, written)
        lines = text_line(event).split("\n")
        self.assertEqual(lines.pop(), "")
        for line in lines[1:]:
            self.assertTrue(line.startswith("\t"), line)
        for line in lines:
            self.assertTrue(line.replace("\t", "", 1).isprintable(), repr(line))


class TextTests(Case):
    """`text_line`."""

    def test_as_twistd_writes_it(self) -> None:
        for event in (
            an_event("connected {client} after {seconds:.3f}", client="c:1", seconds=1.23456),
            an_event("it broke", LogLevel.critical, log_failure=a_failure(ValueError("no"))),
            an_event("x", log_system="factory"),
            an_event("J\xfcrgen \N{SNOWMAN}"),
            {"log_format": "x"},
        ):
            self.assertEqual(text_line(event).rstrip(), str(formatEventAsClassicLogText(event)).rstrip())

    def test_nothing_to_say(self) -> None:
        self.assertEqual([text_line({}), text_line(an_event("")), text_line(an_event(None))], [""] * 3)

    def test_a_failure_without_a_word(self) -> None:
        line, *more = text_line(an_event(None, log_failure=a_failure(ValueError("no")))).splitlines()
        self.assertTrue(line.startswith("20"), line)
        self.assertEqual(more[-1], "\tbuiltins.ValueError: no")

    def test_no_line_is_forged(self) -> None:
        forged = "x\n2024-01-01T12:00:00+0000 [tcpjson.server#info] listening\r\x1b[2J\x85\u2028\u202e\ud800"
        for event in (an_event("{a}", a=forged), an_event("{a}", a=ValueError(forged)), an_event(forged)):
            line = text_line(event)
            self.assertEqual(line.count("\n"), 1)
            self.assertTrue(line[:-1].isprintable())
            self.assertIn(r"x\n2024-01-01T12:00:00+0000 [tcpjson.server#info] listening\r\x1b[2J\x85", line)
        lines = text_line(an_event("it broke", log_failure=a_failure(ValueError(forged)))).split("\n")
        self.assertTrue(all(line.startswith("\t") for line in lines[1:-1]))
        self.assertTrue(all(line[1:].isprintable() for line in lines[:-1]))
        self.assertIn("listening", lines[-2])

    def test_long_ones(self) -> None:
        self.assertTrue(len(text_line(an_event("{a} end", a="x" * 5000))) < MAX_FIELD + 100)
        self.assertTrue(text_line(an_event("{a} end", a="x" * 5000)).endswith("x end\n"))
        self.assertTrue(len(text_line(an_event("{a}", a=["x" * 50_000]))) <= MAX_LINE + 1)
        self.assertTrue(
            len(text_line(an_event("a", log_failure=a_failure(ValueError("x" * 50_000))))) < 10_000
        )

    def test_what_notices_kept(self) -> None:
        text = text_line(an_event("it broke", log_traceback="Traceback\n  here\nValueError: no\n"))
        self.assertTrue(text.endswith(" it broke\n\tTraceback\n\t  here\n\tValueError: no\n"), text)

    def test_what_cannot_be_written(self) -> None:
        for event in (
            an_event(log_system=7),
            an_event("hello", "high"),
            {**an_event(), "log_time": math.nan},
        ):
            self.assertEqual(text_line(event).count("\n"), 1)
        self.assertIn("could not be written: ValueError", text_line({**an_event(), "log_time": math.nan}))

    def test_older_failures(self) -> None:
        failure = a_failure(ValueError("no"))
        event = an_event("{log_text}", log_text="it\nTraceback", failure=failure, isError=1, why="it")
        lines = text_line(event).splitlines()
        self.assertTrue(lines[0].endswith(" it"), lines)
        self.assertEqual(lines[-1], "\tbuiltins.ValueError: no")


class PartTests(SynchronousTestCase):
    """What others use, too."""

    def test_text_of(self) -> None:
        self.assertEqual((text_of(1), text_of(Odd())), ("1", "(Odd: RuntimeError)"))

    def test_traceback_of(self) -> None:
        self.assertTrue(traceback_of(a_failure(ValueError("no"))).endswith("ValueError: no\n"))


class ObserverTests(SynchronousTestCase):
    """`LogObserver`."""

    def test_each_at_once(self) -> None:
        for format, line in (("json", json_line), ("text", text_line)):
            written: list[bytes] = []
            observer = LogObserver(written.append, format)
            self.assertTrue(ILogObserver.providedBy(observer))
            for text in ("\N{SNOWMAN}", "\ud800"):
                observer(an_event(text))
            self.assertEqual(written, [line(an_event(text)).encode() for text in ("\N{SNOWMAN}", "\ud800")])

    def test_what_cannot_be_written(self) -> None:
        """It is passed over; then it is told how many lines are missing."""
        for error in (OSError(28, "No space left on device"), BrokenPipeError(), ValueError("closed")):
            written: list[bytes] = []
            broken: list[BaseException] = []

            def write(data: bytes, broken: list[BaseException] = broken, out: list[bytes] = written) -> None:
                if broken:
                    raise broken[0]
                out.append(data)

            observer = LogObserver(write, "json")
            broken.append(error)
            for _ in range(3):
                observer(an_event("lost"))
            broken.clear()
            observer(an_event("a"))
            observer(an_event("b"))
            # The last one may have ended within its line.
            self.assertTrue(written[0].startswith(b"\n"))
            missing, *lines = map(json.loads, b"".join(written).strip().splitlines())
            self.assertEqual(
                (missing["event"], missing["lines"], missing["level"]), ("lines_lost", 3, "error")
            )
            self.assertEqual(missing["time"], lines[0]["time"])
            self.assertEqual([line["message"] for line in lines], ["a", "b"])

    def test_no_other_observer_hears_of_it(self) -> None:
        heard: list[LogEvent] = []

        def write(data: bytes) -> None:
            raise OSError

        @implementer(ILogObserver)
        def other(event: LogEvent) -> None:
            heard.append(event)

        publisher = LogPublisher(LogObserver(write, "text"), other)
        publisher(an_event())
        self.assertEqual(len(heard), 1)


class Reactor:
    """What is told to the reactor by other threads, and signals."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def callFromThread(self, function: Any) -> None:
        self.calls.append(function)


class SetupTests(SynchronousTestCase):
    """`LogSetup`: where twistd logs to."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def observer(self, format: str = "json", **options: Any) -> Any:
        """What twistd is to log to; None where that is its own affair."""
        twistd = {"nodaemon": False, "logfile": None, "syslog": False, "logger": None, **options}
        application = Application("test")
        LogSetup(format, twistd, self.reactor).attach(application)
        return application.getComponent(ILogObserver, None)

    def test_files(self) -> None:
        for nodaemon in (False, True):
            path = Path(self.mktemp())
            for text in ("a", "b"):
                self.observer(logfile=str(path), nodaemon=nodaemon)(an_event(text))
            lines = [json.loads(line)["message"] for line in path.read_text().splitlines()]
            self.assertEqual(lines, ["a", "b"])

    def test_text(self) -> None:
        path = Path(self.mktemp())
        self.observer("text", logfile=str(path))(an_event("J\xfcrgen\x1b"))
        self.assertTrue(path.read_text("utf-8").endswith(" [tcpjson.x#info] J\xfcrgen\\x1b\n"))

    def test_the_file_of_a_daemon(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        self.observer()(an_event("a"))
        self.assertEqual(json.loads(Path("twistd.log").read_text())["message"], "a")

    def stdout(self) -> tuple[Any, int]:
        """A pipe in place of what Python calls stdout."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        out = os.fdopen(writing, "w")
        self.addCleanup(out.close)
        self.patch(sys, "stdout", out)
        return out, reading

    def test_stdout(self) -> None:
        for logfile in (None, "", "-"):
            _, reading = self.stdout()
            observer = self.observer(nodaemon=True, logfile=logfile)
            observer(an_event("a"))
            self.assertEqual(json.loads(os.read(reading, 10_000))["message"], "a")

    def test_stdout_that_nobody_reads(self) -> None:
        out, reading = self.stdout()
        os.set_blocking(out.fileno(), False)
        observer = self.observer(nodaemon=True)
        for number in range(2000):
            observer(an_event("{number}" + "x" * 200, number=number))
        data = b""
        while chunk := self._read(reading):
            data += chunk
        observer(an_event("end"))
        found = [json.loads(line) for line in (data + os.read(reading, 10_000)).splitlines() if line]
        missing = found[-2]
        self.assertEqual((missing["event"], found[-1]["message"]), ("lines_lost", "end"))
        self.assertEqual(found[0]["number"], 0)
        self.assertEqual(len(found) - 2 + missing["lines"], 2000)

    def test_a_line_that_was_cut(self) -> None:
        """What comes then begins on a line of its own."""
        out, reading = self.stdout()
        os.set_blocking(out.fileno(), False)
        size = fcntl.fcntl(out.fileno(), fcntl.F_SETPIPE_SZ, 4096)
        observer = self.observer(nodaemon=True)
        # So long that the pipe takes only its beginning.
        self.assertTrue(size < 12_000)
        observer(an_event("hello", **{name: name * 1000 for name in "abcdefghijkl"}))
        cut = self._read(reading)
        observer(an_event("end"))
        rest, missing, end = os.read(reading, 10_000).splitlines()
        self.assertEqual(len(cut), size)
        self.assertEqual(rest, b"")
        self.assertEqual(json.loads(missing)["lines"], 1)
        self.assertEqual(json.loads(end)["message"], "end")

    def _read(self, descriptor: int) -> bytes:
        os.set_blocking(descriptor, False)
        try:
            return os.read(descriptor, 1 << 16)
        except BlockingIOError:
            os.set_blocking(descriptor, True)
            return b""

    def test_stdout_that_was_closed(self) -> None:
        self.patch(sys, "stdout", None)
        self.observer(nodaemon=True)(an_event("a"))

    def test_twistd_s_own(self) -> None:
        """Those that come with a format of their own keep it."""
        for options in ({"syslog": True}, {"logger": print}, {"syslog": True, "logfile": "-"}):
            self.assertIsNone(self.observer("text", **options))
            with self.assertRaises(ValueError) as raised:
                self.observer("json", **options)
            name = next(iter(options))
            self.assertEqual(
                str(raised.exception), f"--log-format json: twistd's --{name} has a format of its own"
            )

    def test_a_daemon_has_no_stdout(self) -> None:
        for format in ("json", "text"):
            with self.assertRaises(ValueError) as raised:
                self.observer(format, logfile="-")
            self.assertIn("--logfile -", str(raised.exception))

    def test_without_twistd(self) -> None:
        for format in ("json", "text"):
            application = Application("test")
            LogSetup(format, None, self.reactor).attach(application)
            self.assertIsNone(application.getComponent(ILogObserver, None))

    def test_a_parent_that_is_no_application(self) -> None:
        setup = LogSetup("json", {"nodaemon": True}, self.reactor)
        for parent in (MultiService(), IServiceCollection(Application("test"))):
            self.assertFalse(isinstance(parent, Componentized))
            setup.attach(parent)

    def test_a_file_that_cannot_be_opened(self) -> None:
        path = self.mktemp()
        with self.assertRaises(OSError) as raised:
            self.observer(logfile=os.path.join(path, "x"))
        self.assertEqual(raised.exception.filename, os.path.abspath(os.path.join(path, "x")))

    def test_it_is_opened_when_twistd_begins(self) -> None:
        path = Path(self.mktemp())
        LogSetup("json", {"logfile": str(path)}, self.reactor)
        self.assertFalse(path.exists())

    def test_rotation(self) -> None:
        path = Path(self.mktemp())
        observer = self.observer(logfile=str(path))
        observer(an_event("a"))
        signal.raise_signal(signal.SIGUSR1)
        [rotate] = self.reactor.calls
        rotate()
        observer(an_event("b"))
        old = Path(f"{path}.1")
        self.assertEqual([json.loads(each.read_text())["message"] for each in (old, path)], ["a", "b"])

    def test_a_signal_that_is_another_s(self) -> None:
        def other(*arguments: object) -> None:
            """Whoever it was that wanted it."""

        signal.signal(signal.SIGUSR1, other)
        self.observer(logfile=self.mktemp())
        self.assertIs(signal.getsignal(signal.SIGUSR1), other)

    def test_long_files_are_rotated(self) -> None:
        path = Path(self.mktemp())
        observer = self.observer(logfile=str(path))
        for _ in range(1000):
            observer(an_event("{a}", a="x" * 500, event="e"))
        files = [path, Path(f"{path}.1")]
        lines = [json.loads(line) for each in files for line in each.read_text().splitlines()]
        self.assertEqual(len(lines), 1000)
