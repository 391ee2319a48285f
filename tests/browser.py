"""A headless Chromium, driven over a pair of pipes (the Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from twisted.trial.unittest import SkipTest

from tests.harness import TIMEOUT, folder, until

_NAMES = ("chromium", "chromium-browser", "google-chrome")

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--mute-audio",
    "--metrics-recording-only",
    "--hide-scrollbars",
    # Names lead nowhere: whatever leaves this machine fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

# Puts its descriptors where the browser looks for them, commands at 3 and answers at 4, and becomes it.
_LAUNCHER = """
import fcntl, os, sys
commands, answers, *words = sys.argv[1:]
moved = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 100) for each in (commands, answers)]
for number, descriptor in enumerate(moved, 3):
    os.dup2(descriptor, number)
os.execv(words[0], words)
"""


def find() -> str:
    """
    The path of the browser.

    Raises:
        SkipTest: there is none.
    """
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    raise SkipTest("needs chromium")


class Browser:
    """
    A browser with one page, to be used in `with`, which ends it.

    Raises:
        SkipTest: there is none here, or it does not start.
    """

    def __init__(self) -> None:
        program = find()
        self._profile = tempfile.mkdtemp(prefix="browser-", dir=folder())
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCHER, str(commands), str(answers)),
                *(program, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(commands, answers),
            # Its own children end with it.
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._buffer = bytearray()
        self._number = 0
        self._session: str | None = None
        #: What the browser told of, in its order: messages with `method` and `params`.
        self.events: list[dict[str, Any]] = []
        try:
            found = self.call("Target.getTargets")["targetInfos"]
        except (OSError, AssertionError) as error:
            self.close()
            raise SkipTest(f"chromium does not start: {error}") from None
        target = next(each["targetId"] for each in found if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(TIMEOUT)
        os.close(self._out)
        os.close(self._in)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _receive(self, timeout: float) -> dict[str, Any]:
        """The next thing that the browser says, or nothing when it says nothing in time."""
        deadline = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                return {}
            data = os.read(self._in, 1 << 20)
            if not data:
                raise AssertionError("the browser ended")
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\0")
        self._buffer = bytearray(rest)
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """
        A command of the protocol; returns its result.

        Raises:
            AssertionError: it failed, or there was no answer in time.
        """
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while (left := deadline - time.monotonic()) > 0:
            message = self._receive(left)
            if message.get("id") == self._number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
        raise AssertionError(f"no answer to {method}")

    def listen(self, seconds: float) -> None:
        """Let time pass; what the browser tells of meanwhile is in `events`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._receive(left)

    def open(self, url: str) -> None:
        """Load a page, and wait until all of it is there."""
        loaded = len(self.events)
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise AssertionError(f"{url}: {answer['errorText']}")

        def done() -> bool:
            self._receive(0.05)
            return any(event["method"] == "Page.loadEventFired" for event in self.events[loaded:])

        until(done, f"{url} is loaded")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, which works where the page itself may run no scripts."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def text(self, selector: str = "body") -> str:
        """What a person can read of an element: what is hidden is left out."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def wait_for_text(self, text: str, selector: str = "body") -> str:
        """Wait until a text can be read; returns all that can be."""
        shown = ""

        def there() -> bool:
            nonlocal shown
            shown = self.text(selector)
            return text in shown

        try:
            until(there, f"{text!r} is shown")
        except AssertionError as error:
            raise AssertionError(f"{error}; what is: {shown}") from None
        return shown

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """The size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def prefer(self, scheme: str) -> None:
        """Whether the user wants pages `dark` or `light`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def scripts(self, allowed: bool) -> None:
        """Whether pages that are loaded from now on may run scripts."""
        self.call("Emulation.setScriptExecutionDisabled", value=not allowed)

    def complaints(self) -> list[str]:
        """What went to the console as a warning or an error, and exceptions, since the start."""
        found = []
        for event in self.events:
            method, parameters = event["method"], event.get("params", {})
            if method == "Log.entryAdded" and parameters["entry"]["level"] in ("warning", "error"):
                found.append(parameters["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in (
                "warning",
                "error",
                "assert",
            ):
                found.append(str(parameters["args"]))
            elif method == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
        return found

    def requested(self) -> list[str]:
        """The URLs that were asked for since the start."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page: all of it, or what a person sees at once."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
