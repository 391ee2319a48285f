"""The page of a real server in a real browser: what a person finds there, and that nothing else happens."""

from __future__ import annotations

import atexit
import functools
import re
import signal
import socket
from collections.abc import Sequence
from typing import Any

from tcpjson.metrics.views import seconds, size
from tests.browser import Browser
from tests.harness import LOOPBACK, Message, Peer, Server, ServerTestCase, until
from tests.identities import new_path, token, tokens, write

# What one client holds up: with sockets' buffers that small, nearly all of it waits in the server.
_SMALL = 4096
_BIG = "x" * 300_000

_HOSTILE = "<img src=/x onerror=alert(1)></td></script><b>eve"

# Scripts that look at the page.

_OVERFLOW = """
[document.documentElement.scrollWidth - window.innerWidth,
 [...document.querySelectorAll('body *')].filter(each => each.getClientRects().length && !each.closest('svg')
   && getComputedStyle(each).position !== 'absolute' && !each.closest('thead')
   && each.getBoundingClientRect().right > window.innerWidth + 1).map(each => each.outerHTML.slice(0, 200))]
"""

# The least contrast of a text with what is behind it, as WCAG counts it, and where.
_CONTRAST = """
(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = parse(color).map((each) => each / 255)
      .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor, parts = parse(color);
      if (parts.length < 4 || parts[3] === 1) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  let worst = [99, ''];
  for (const each of document.querySelectorAll('body *')) {
    const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !each.getClientRects().length || each.disabled) continue;
    const two = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => b - a);
    const ratio = (two[0] + 0.05) / (two[1] + 0.05);
    if (ratio < worst[0]) worst = [ratio, each.outerHTML.slice(0, 200)];
  }
  return [...worst, light(getComputedStyle(document.body).backgroundColor)];
})()
"""


@functools.cache
def browser() -> Browser:
    """The browser that the tests of this process share."""
    found = Browser()
    atexit.register(found.close)
    return found


class PageTestCase(ServerTestCase):
    """Servers with a page, and a browser that begins anew."""

    def setUp(self) -> None:
        self.browser = browser()
        self.browser.open("about:blank")
        self.browser.scripts(True)
        self.browser.prefer("light")
        self.browser.size(1280, 900)
        self.browser.events.clear()

    def serve(self, *options: str, metrics: str = LOOPBACK) -> tuple[Server, str]:
        """A server and the URL of its page."""
        sockets = ("--send-buffer", "65536", "--max-queue", "1048576", "--write-timeout", "120")
        server = self.start("--metrics", metrics, *sockets, *options)
        return server, server.wait_for(r"metrics on (http://\S+)")[0][1]

    def broadcast(self, peer: Peer, times: int) -> None:
        """Send something big to all others."""
        for _ in range(times):
            peer.send({"type": "broadcast", "content": _BIG})
            while peer.receive()["type"] != "broadcast_sent":
                pass

    def entries(self) -> list[str]:
        """The lines at the top of the page that say what to look at."""
        found = self.browser.evaluate("[...document.querySelectorAll('#attention li')].map(e => e.innerText)")
        return [" ".join(line.split()) for line in found]

    def rows(self, name: str) -> list[list[str]]:
        """The cells of a table, row by row."""
        found: list[list[str]] = self.browser.evaluate(
            f"[...document.querySelectorAll('[data-rows={name}] tr')]"
            ".map(row => [...row.cells].map(cell => cell.innerText))"
        )
        return found

    def live(self) -> None:
        """Wait until the page is."""
        self.browser.wait_for_text("live", "#state")

    def harmless(self, url: str) -> None:
        """See that the browser had nothing to complain of, and asked for nothing elsewhere."""
        self.assertEqual(self.browser.complaints(), [])
        for asked in self.browser.requested():
            self.assertTrue(asked.startswith((url, "data:")), asked)
        self.assertIn(url, self.browser.requested())

    def trouble(self, *options: str, names: Sequence[str] = ()) -> Trouble:
        """A server with a client that does not read, one that was closed for that, and one that is well."""
        return Trouble(self, *self.serve(*options), names)


class Trouble:
    """A server with three clients, who log in with tokens where there are names."""

    def __init__(self, case: PageTestCase, server: Server, url: str, names: Sequence[str]) -> None:
        self.server, self.url = server, url
        self._case, self._names = case, names
        self.well = self._connect(0)
        self.gone = self._connect(1, receive_buffer=_SMALL)
        until(self._closed, "the one that does not read is closed")
        self.slow = self._connect(2, receive_buffer=_SMALL)
        case.broadcast(self.well, 2)

    def _connect(self, index: int, **options: Any) -> Peer:
        peer = self._case.connect(self.server, **options)
        if self._names:
            result: Message = token(peer, f"secret {index}")
            self._case.assertEqual(result["user"], self._names[index])
        return peer

    def _closed(self) -> bool:
        self._case.broadcast(self.well, 1)
        pattern = rf"{re.escape(self.gone.client_id)}\b.*slow_consumer"
        return any(re.search(pattern, line) for line in self.server.log)


class TestPage(PageTestCase):
    """What a person finds."""

    def test_who_is_slow_and_why_one_was_closed(self) -> None:
        """From the page alone: who is slow and why, who was closed and why; of the third, nothing."""
        trouble = self.trouble()
        self.browser.open(trouble.url)
        self.live()
        text = self.browser.wait_for_text(f"{trouble.slow.client_id}: does not read")
        self.assertNotIn("JavaScript", text)
        slow, closed = self.entries()
        self.assertRegex(
            slow, rf"^Slow {re.escape(trouble.slow.client_id)}: does not read.*[\d.]+ KiB wait for it"
        )
        self.assertRegex(slow, "closed when it takes nothing for 2 min, or at 1 MiB")
        self.assertRegex(
            closed, rf"^Closed {re.escape(trouble.gone.client_id)}, .*it did not read what was sent"
        )
        first, *others = self.rows("slowest")
        self.assertEqual(first[0], trouble.slow.client_id)
        self.assertIn("does not read", first[1])
        self.assertEqual(
            [(row[0], row[1]) for row in others], [(trouble.well.client_id, "nothing is wrong with it")]
        )
        ((client, why, _, code, *_),) = self.rows("closed")
        self.assertEqual((client, code), (trouble.gone.client_id, "slow_consumer"))
        self.assertIn("did not read", why)
        # It is live: a client that comes is counted, and a message that is answered.
        self.assertIn("Clients\n2\n", text)
        self.connect(trouble.server)
        self.browser.wait_for_text("Clients\n3\n")
        self.harmless(trouble.url)

    def test_charts(self) -> None:
        """Once a second a point is added, and a line says what the highest is; nothing else is asked for."""
        server, url = self.serve()
        peers = [self.connect(server) for _ in range(5)]
        self.browser.open(url)
        path = "document.querySelector('[data-chart=clients] path').getAttribute('d').match(/[ML]/g).length"
        until(lambda: self.browser.evaluate(path) >= 7, "seven points")
        self.assertIn("up to 5 in 2 min", self.browser.text())
        for peer in peers[1:]:
            peer.close()
        self.browser.wait_for_text("Clients\n1\n")
        self.assertIn("up to 5 in 2 min", self.browser.text())
        self.assertEqual(set(self.browser.requested()), {url, f"{url}events"})
        self.harmless(url)

    def test_without_javascript(self) -> None:
        """The same can be read, and comes anew by itself."""
        trouble = self.trouble()
        self.browser.scripts(False)
        self.browser.open(trouble.url)
        text = self.browser.text()
        slow, closed = self.entries()
        self.assertIn(f"{trouble.slow.client_id}: does not read", slow)
        self.assertIn(f"{trouble.gone.client_id}, ", closed)
        self.assertIn("Clients\n2\n", text)
        self.assertIn("without JavaScript", text)
        self.assertEqual(self.rows("slowest")[0][0], trouble.slow.client_id)
        self.assertEqual(self.browser.evaluate("document.querySelector('#all').getClientRects().length"), 0)
        self.connect(trouble.server)
        self.browser.wait_for_text("Clients\n3\n")
        self.harmless(trouble.url)

    def test_phone(self) -> None:
        """At the width of a phone nothing stands over the edge, whatever names there are."""
        names = ["w" * 250, "long name " * 20 + "x", _HOSTILE * 2]
        file = write(new_path(".tokens"), tokens({f"secret {i}": name for i, name in enumerate(names)}))
        trouble = self.trouble("--auth", f"token:{file}", "--allow-plain-auth", names=names)
        for width in (390, 320, 768):
            self.browser.size(width, 844, phone=True)
            self.browser.open(trouble.url)
            self.live()
            self.browser.evaluate("document.querySelector('details').open = true")
            self.browser.wait_for_text("1 to 2 of 2")
            self.assertEqual(self.browser.evaluate(_OVERFLOW), [0, []], width)
        self.assertIn("does not read", self.entries()[0])
        # Rows are cards there, and still rows for whoever has them read out.
        self.browser.size(390, 844, phone=True)
        self.assertEqual(
            self.browser.evaluate(
                "getComputedStyle(document.querySelector('[data-rows=closed] td')).display"
            ),
            "grid",
        )
        tree = self.browser.call("Accessibility.getFullAXTree")["nodes"]
        roles = {node["role"]["value"] for node in tree}
        self.assertTrue({"table", "row", "cell", "columnheader", "heading", "status"} <= roles, roles)
        self.harmless(trouble.url)

    def test_light_and_dark(self) -> None:
        """The colours are those that the user wants, and all that is written can be read (WCAG AA)."""
        trouble = self.trouble()
        self.browser.open(trouble.url)
        self.live()
        self.browser.evaluate("document.querySelector('details').open = true")
        self.browser.wait_for_text("1 to 2 of 2")
        for scheme, dark in (("light", False), ("dark", True)):
            self.browser.prefer(scheme)
            contrast, where, ground = self.browser.evaluate(_CONTRAST)
            self.assertGreaterEqual(contrast, 4.5, where)
            self.assertEqual(ground < 0.1, dark)

    def test_hostile_names(self) -> None:
        """A user's name is text, in the page as it is loaded, in what is live, and in the list of all."""
        names = ["ada", _HOSTILE, _HOSTILE + "2"]
        file = write(new_path(".tokens"), tokens({f"secret {i}": name for i, name in enumerate(names)}))
        trouble = self.trouble("--auth", f"token:{file}", "--allow-plain-auth", names=names)
        for scripts in (False, True):
            self.browser.scripts(scripts)
            self.browser.open(trouble.url)
            if scripts:
                self.live()
                self.browser.evaluate("document.querySelector('details').open = true")
                self.browser.wait_for_text("1 to 2 of 2")
                self.assertEqual({row[1] for row in self.rows("clients")}, {"ada", _HOSTILE + "2"})
            slow, closed = self.entries()
            self.assertIn(f"(user {_HOSTILE}2): does not read", slow)
            self.assertIn(f"(user {_HOSTILE}), ", closed)
            self.assertEqual(self.rows("slowest")[0][2], _HOSTILE + "2")
            self.assertEqual(self.browser.evaluate("document.querySelectorAll('img, td b').length"), 0)
        self.harmless(trouble.url)

    def test_all_clients(self) -> None:
        """The list of all is sorted as one wants, page by page, and kept up to date."""
        server, url = self.serve()
        peers = [self.connect(server) for _ in range(53)]
        for peer in peers[:2]:
            peer.send(*[{"type": "ping"}] * 5)
            for _ in range(5):
                peer.receive()
        self.browser.open(url)
        self.live()
        self.browser.evaluate("document.querySelector('summary').click()")
        self.browser.wait_for_text("1 to 50 of 53")
        disabled = "['previous', 'next'].map(name => document.getElementById(name).disabled)"
        self.assertEqual(self.browser.evaluate(disabled), [True, False])
        self.choose("messages_in")
        two = {peer.client_id for peer in peers[:2]}
        until(lambda: {row[0] for row in self.rows("clients")[:2]} == two, "those that sent most come first")
        self.press("order")
        until(lambda: {row[0] for row in self.rows("clients")[:2]}.isdisjoint(two), "they come last")
        self.press("next")
        self.browser.wait_for_text("51 to 53 of 53")
        self.assertEqual({row[0] for row in self.rows("clients")[1:]}, two)
        self.assertEqual(self.browser.evaluate(disabled), [False, True])
        self.press("previous")
        self.browser.wait_for_text("1 to 50 of 53")
        self.press("next")
        self.browser.wait_for_text("51 to 53 of 53")
        # When there is no such page any more, the one before it is shown.
        for peer in peers[:10]:
            peer.close()
        self.browser.wait_for_text("1 to 43 of 43")
        self.harmless(url)

    def choose(self, sort: str) -> None:
        """Choose what the list of all is sorted by."""
        self.browser.evaluate(
            f"(e => {{ e.value = '{sort}'; e.dispatchEvent(new Event('change')); }})"
            "(document.getElementById('sort'))"
        )

    def press(self, name: str) -> None:
        """Press a button, by the keyboard."""
        self.browser.evaluate(f"document.getElementById('{name}').focus()")
        for kind in ("keyDown", "keyUp"):
            self.browser.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                code="Enter",
                text="\r",
                windowsVirtualKeyCode=13,
            )

    def test_words(self) -> None:
        """The list of all says sizes and times as the server does."""
        _, url = self.serve()
        self.browser.open(url)
        script = self.browser.evaluate("document.querySelector('script').textContent")
        start, end = script.index("function digits"), script.index("function clients")
        sizes = [
            0,
            1,
            1023,
            1024,
            1100,
            1536,
            1024**2 - 1,
            1024**2,
            5 * 1024**2 + 300_000,
            3 * 1024**3,
            1024**4,
            2**47,
        ]
        times = [
            0,
            0.0000004,
            0.00025,
            0.0012,
            0.0345,
            0.25,
            0.9,
            1,
            1.29,
            59.94,
            60,
            119,
            3599,
            3600,
            11_130,
            86_400,
            180_000,
        ]
        found = self.browser.evaluate(
            f"(() => {{ {script[start:end]};"
            f" return [{sizes}.map(size), {times}.map(seconds), seconds(null)]; }})()"
        )
        self.assertEqual(found, [[size(each) for each in sizes], [seconds(each) for each in times], ""])


class TestStaying(PageTestCase):
    """The page is left open."""

    def test_server_comes_again(self) -> None:
        """It says that the server is gone, and goes on by itself when it is back."""
        server, url = self.serve()
        self.browser.open(url)
        self.live()
        server.stop()
        self.browser.wait_for_text("connection lost, trying again", "#state")
        # At once, and not when nothing was heard for a while.
        self.assertRegex(self.browser.text("#age"), "^figures of [0-5] s ago$")
        port = url.rstrip("/").rpartition(":")[2]
        server, again = self.serve(metrics=f"tcp:{port}:interface=127.0.0.1")
        self.assertEqual(again, url)
        for _ in range(2):
            self.connect(server)
        self.live()
        self.browser.wait_for_text("Clients\n2\n")
        self.assertEqual(self.browser.text("#age"), "")
        for asked in self.browser.requested():
            self.assertTrue(asked.startswith(url), asked)

    def test_server_is_silent(self) -> None:
        """A server that is gone without a word is missed, too."""
        server, url = self.serve()
        self.browser.open(url)
        self.live()
        server.signal(signal.SIGSTOP)
        self.browser.wait_for_text("connection lost, trying again", "#state")
        self.assertIn("figures of ", self.browser.text("#age"))
        server.signal(signal.SIGCONT)
        self.live()

    def hide(self, hidden: bool) -> None:
        """Put the page behind others, or in front of them."""
        value = str(hidden).lower()
        self.browser.evaluate(
            f"Object.defineProperty(document, 'hidden', {{value: {value}, configurable: true}});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )

    def test_hidden(self) -> None:
        """While nobody sees it, it asks for nothing; then it goes on."""
        server, url = self.serve()
        self.connect(server)
        self.browser.open(url)
        self.live()
        self.browser.evaluate("document.querySelector('details').open = true")
        self.browser.wait_for_text("1 to 1 of 1")
        self.hide(True)
        self.browser.wait_for_text("paused", "#state")
        self.browser.listen(0.2)
        before = len(self.browser.events)
        self.connect(server)
        self.browser.listen(5.5)
        self.assertEqual([event["method"] for event in self.browser.events[before:]], [])
        self.assertIn("Clients\n1\n", self.browser.text())
        self.hide(False)
        self.browser.wait_for_text("Clients\n2\n")
        self.browser.wait_for_text("1 to 2 of 2")
        self.live()
        self.harmless(url)

    def look_on(self, url: str) -> socket.socket:
        """Somebody else who watches."""
        host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
        found = socket.create_connection((host, int(port)), 30)
        self.addCleanup(found.close)
        found.sendall(f"GET /events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        self.assertTrue(found.recv(4096).startswith(b"HTTP/1.1 200 "))
        return found

    def test_too_many_watch(self) -> None:
        """Then the page says so, comes anew every five seconds, and is live when there is room."""
        _, url = self.serve()
        watchers = [self.look_on(url) for _ in range(16)]
        self.browser.open(url)
        self.browser.wait_for_text("not live: too many watch", "#state")
        loads = self.browser.requested().count(url)
        until(lambda: self.browser.text() and self.browser.requested().count(url) > loads, "it comes anew")
        for watcher in watchers:
            watcher.close()
        self.live()
