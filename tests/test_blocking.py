"""The blocking client, pool and server against real ones: killed, restarted, stopped and drained."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from typing import Any

from tcpjson import ConnectionPool, Password, TCPClient, Token
from tcpjson.core.errors import AuthenticationFailed, ClientError, Disconnected, GoingAway, RequestTimeout
from tests.harness import TIMEOUT, Message, Server, ServerTestCase, certificates, command, until
from tests.identities import authority, new_path, tokens, users, write

# As a program writes it that knows no better.
SNIPPET = """
from tcpjson import TCPClient

def on_message(message):
    print(message["type"], flush=True)

client = TCPClient('localhost', {port})
client.set_message_callback(on_message)
if client.connect():
    client.ping(); client.echo("Hello Server!"); client.broadcast("Hello all clients!")
    client.get_server_stats(); client.send_custom_message("custom_type", {{"data": "value"}})
    client.send_message("plain text"); client.send_message({{"type": "anything"}})
    client.disconnect()
"""


class Program:
    """A Python program in a process of its own."""

    def __init__(self, source: str) -> None:
        _, environment = command()
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> tuple[int, str, str]:
        """Its status, and what else it printed."""
        output, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, output, errors

    def stop(self) -> None:
        """End it by force."""
        self.process.kill()
        self.process.communicate()


class Asker(threading.Thread):
    """Sends numbered requests, one after the other, until it is told to stop; counts what became of them."""

    def __init__(self, client: TCPClient, name: str, size: int = 0) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._name = name
        self._size = size
        self._told = threading.Event()
        self.outcomes = Counter[str]()
        self.wrong: list[object] = []

    def run(self) -> None:
        number = 0
        while not self._told.is_set():
            content = f"{self._name} {number} ".ljust(self._size, "x")
            number += 1
            try:
                reply = self._client.request("echo", content=content, timeout=TIMEOUT)
            except (Disconnected, GoingAway) as error:
                self.outcomes[type(error).__name__] += 1
                # There is nobody to ask; who asked again at once would do nothing else.
                self._told.wait(0.001)
            except Exception as error:
                self.wrong.append(error)
            else:
                self.outcomes["answered"] += 1
                if reply["content"] != content:
                    self.wrong.append((content, reply["content"]))

    def stop(self) -> None:
        self._told.set()
        self.join(TIMEOUT)


class BlockingTestCase(ServerTestCase):
    """Clients of real servers."""

    def setUp(self) -> None:
        super().setUp()
        # What they log of servers that are killed is no news.
        self.patch(logging.getLogger("tcpjson.blocking"), "disabled", True)

    def client(self, server: Server, **options: Any) -> TCPClient:
        """A connected client."""
        host, port = server.address
        client = TCPClient(host, port, **options)
        self.addCleanup(client.disconnect)
        self.assertTrue(client.connect(), client.error)
        return client

    def restart(self, server: Server, *options: str) -> Server:
        """Another server at the port of one that is gone."""
        return self.start(*options, ports=[f"tcp:{server.address[1]}:interface=127.0.0.1"])

    def askers(self, client: TCPClient, count: int = 8, size: int = 0) -> list[Asker]:
        """Threads that ask, each answered some times already."""
        askers = [Asker(client, f"thread {number}", size) for number in range(count)]
        for asker in askers:
            self.addCleanup(asker.stop)
            asker.start()
        self.all_answered(askers)
        return askers

    def all_answered(self, askers: list[Asker], count: int = 50) -> None:
        """Wait until each was answered so many times more."""
        before = [asker.outcomes["answered"] for asker in askers]
        until(
            lambda: all(
                asker.outcomes["answered"] >= was + count or asker.wrong
                for asker, was in zip(askers, before, strict=True)
            ),
            "all threads are answered",
        )
        self.assertEqual([asker.wrong for asker in askers], [[]] * len(askers))

    def run_program(self, source: str) -> Program:
        program = Program(source)
        self.addCleanup(program.stop)
        return program


class SnippetTests(BlockingTestCase):
    """The program that is in the documentation."""

    def test_as_it_is_written(self) -> None:
        """Each answer is printed, though the program ends at once."""
        server = self.server
        with socket.create_connection(server.address) as other:
            other.settimeout(TIMEOUT)
            program = self.run_program(SNIPPET.format(port=server.address[1]))
            status, output, errors = program.end()
        self.assertEqual((status, errors), (0, ""))
        self.assertEqual(
            output.split(),
            [
                *("welcome", "hello_response", "pong", "echo_response", "broadcast_sent", "server_stats"),
                *("response", "echo", "response"),
            ],
        )

    def test_nobody_answers(self) -> None:
        """It prints why, and ends."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        status, output, errors = self.run_program(SNIPPET.format(port=port)).end()
        self.assertEqual((status, output), (0, ""))
        self.assertEqual(errors, f"localhost:{port}: cannot connect: Connection refused\n")

    def test_the_end_without_disconnect(self) -> None:
        """What was sent arrives, and the program does not hang."""
        server = self.start()
        host, port = server.address
        program = self.run_program(
            f"""
            from tcpjson import TCPClient
            client = TCPClient({host!r}, {port})
            client.set_message_callback(lambda message: client)
            client.connect()
            for number in range(1000):
                client.echo(number)
            """
        )
        self.assertEqual(program.end(), (0, "", ""))
        # And `hello`.
        ends = server.wait_for(r"disconnected .* reason=(\S+) .* messages_in=(\d+)")
        self.assertEqual((ends[0][1], ends[0][2]), ("client_closed", "1001"))

    def test_the_end_while_the_server_stands_still(self) -> None:
        server = self.start()
        host, port = server.address
        program = self.run_program(
            f"""
            import sys
            from tcpjson import TCPClient
            client = TCPClient({host!r}, {port})
            client.connect()
            print("ready", flush=True)
            sys.stdin.readline()
            client.echo("x")
            """
        )
        self.assertEqual(program.line(), "ready")
        server.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert program.process.stdin is not None
        program.process.stdin.write("\n")
        self.assertEqual(program.end(), (0, "", ""))
        self.assertLess(time.monotonic() - began, 10)

    def test_an_interrupted_request(self) -> None:
        """Ctrl+C in the midst of a wait: the client works on."""
        server = self.start()
        host, port = server.address
        program = self.run_program(
            f"""
            from tcpjson import TCPClient
            client = TCPClient({host!r}, {port})
            client.connect()
            for number in range(3):
                try:
                    print("asking", flush=True)
                    while True:
                        client.request("echo", content=number)
                except KeyboardInterrupt:
                    print(client.request("echo", content=number)["content"], flush=True)
            client.disconnect()
            """
        )
        for number in range(3):
            self.assertEqual(program.line(), "asking")
            server.signal(signal.SIGSTOP)
            program.process.send_signal(signal.SIGINT)
            server.signal(signal.SIGCONT)
            self.assertEqual(program.line(), str(number))
        self.assertEqual(program.end(), (0, "", ""))


class ClientTests(BlockingTestCase):
    """What a client goes through."""

    def test_many_threads(self) -> None:
        """Long messages are compressed, in both directions."""
        client = self.client(self.server)
        assert client.server is not None
        self.assertEqual(client.server.compression, ("zlib",))
        askers = self.askers(client, size=3000)
        for asker in askers:
            asker.stop()
        peer = self.connect()
        figures = peer.stats()["details"]
        self.assertEqual([asker.outcomes.keys() for asker in askers], [{"answered"}] * 8)
        count = sum(asker.outcomes["answered"] for asker in askers)
        self.assertLess(figures["bytes_in"], count * 1000)

    def test_pipelined(self) -> None:
        """Thousands without waiting: each is answered once, in order."""
        client = self.client(self.server)
        found: list[int] = []
        done = threading.Event()

        def callback(message: Message) -> None:
            if message["type"] == "echo_response":
                found.append(message["content"])
                if len(found) == 20_000:
                    done.set()

        client.set_message_callback(callback)
        for number in range(20_000):
            self.assertTrue(client.echo(number))
        self.assertTrue(done.wait(TIMEOUT))
        self.assertEqual(found, list(range(20_000)))

    def test_killed_and_restarted(self) -> None:
        """No request is left without an answer or an error, and no answer is another's."""
        server = self.start()
        client = self.client(server)
        askers = self.askers(client)
        for _ in range(2):
            server.signal(signal.SIGKILL)
            server.wait()
            server = self.restart(server)
            self.all_answered(askers)
        for asker in askers:
            asker.stop()
            self.assertGreater(asker.outcomes["Disconnected"], 0)

    def test_drained_and_restarted(self) -> None:
        server = self.start()
        client = self.client(server)
        askers = self.askers(client)
        server.signal(signal.SIGTERM)
        server.wait()
        self.restart(server)
        self.all_answered(askers)
        self.assertNotIn("Traceback", "\n".join(server.log))

    def test_queued_while_restarted(self) -> None:
        """With `offline="queue"` nothing fails that was asked after the connection was lost."""
        server = self.start()
        client = self.client(server, offline="queue")
        server.signal(signal.SIGKILL)
        server.wait()
        until(lambda: not client.connected, "the client has noticed")
        askers = [Asker(client, f"thread {number}") for number in range(8)]
        for asker in askers:
            asker.start()
        self.restart(server)
        self.all_answered(askers)
        for asker in askers:
            asker.stop()
            self.assertEqual(asker.outcomes.keys(), {"answered"})

    def test_a_server_that_stands_still(self) -> None:
        server = self.start()
        client = self.client(server)
        server.signal(signal.SIGSTOP)
        with self.assertRaises(RequestTimeout):
            client.request("echo", content="late", timeout=0.2)
        self.assertTrue(client.echo("also late"))
        server.signal(signal.SIGCONT)
        self.assertEqual(client.request("echo", content="next", timeout=TIMEOUT)["content"], "next")
        self.assertTrue(client.connected)

    def test_pings_of_the_server(self) -> None:
        """They are answered: a client that is silent stays."""
        server = self.start("--heartbeat=0.2")
        client = self.client(server)
        found = Counter[str]()
        client.set_message_callback(lambda message: found.update([message["type"]]))
        until(lambda: found["ping"] >= 3, "three pings")
        self.assertEqual(client.request("get_stats")["connected_clients"], 1)

    def test_no_more_than_the_server_takes(self) -> None:
        server = self.start("--max-length=5000")
        client = self.client(server)
        self.assertFalse(client.echo("x" * 5000))
        self.assertTrue(client.echo("x" * 4000))
        self.assertTrue(client.connected)

    def test_a_unix_socket(self) -> None:
        path = str(new_path(".sock"))
        server = self.start(
            "--auth", f"token:{write(new_path('.tokens'), tokens({'sesame': 'ann'}))}", ports=[f"unix:{path}"]
        )
        with TCPClient(path=server.addresses[0], credentials=Token("sesame")) as client:
            self.assertEqual(client.user, "ann")
            self.assertEqual(client.request("echo", content=1)["content"], 1)


class TLSTests(BlockingTestCase):
    """TLS, and who somebody is."""

    tls = True

    def test_an_authority(self) -> None:
        path = new_path(".pem")
        identity = authority().issue()
        server = self.start(ports=[identity.port])
        write(path, authority().pem)
        client = self.client(server, tls=path)
        askers = self.askers(client, size=100_000)
        for asker in askers:
            asker.stop()
        stranger = TCPClient(*server.address, tls=certificates().client)
        self.assertFalse(stranger.connect())
        self.assertRegex(str(stranger.error), "certificate is not valid")

    def test_killed_and_restarted(self) -> None:
        server = self.start()
        client = self.client(server, tls=certificates().client)
        askers = self.askers(client)
        server.signal(signal.SIGKILL)
        server.wait()
        self.start(ports=[certificates().port.replace("ssl:0:", f"ssl:{server.address[1]}:")])
        self.all_answered(askers)

    def test_answers_before_the_end(self) -> None:
        """What was asked before `disconnect` is answered."""
        found: list[int] = []
        client = self.client(self.server, tls=certificates().client)
        client.set_message_callback(
            lambda message: found.append(message["content"]) if "content" in message else None
        )
        for number in range(5000):
            client.echo(number)
        client.disconnect()
        self.assertEqual(found, list(range(5000)))
        ends = self.server.wait_for(r"disconnected .* reason=(\S+) .* messages_in=500")
        self.assertEqual(ends[-1][1], "client_closed")

    def test_a_certificate_of_the_client(self) -> None:
        identity = authority().issue("device 7")
        server = self.start("--client-ca", str(authority().file), ports=[identity.port])
        client = self.client(server, tls=authority().context(identity))
        self.assertEqual(client.request("echo", content=1)["content"], 1)
        stranger = TCPClient(*server.address, tls=authority().context())
        self.assertFalse(stranger.connect())
        self.assertIsInstance(stranger.error, Disconnected)


class LoginTests(BlockingTestCase):
    """Passwords and tokens."""

    def setUp(self) -> None:
        super().setUp()
        self.users = write(new_path(".users"), users({"ann": "sesame"}))

    def test_scram(self) -> None:
        """Once more at each connection."""
        server = self.start("--auth", f"scram:{self.users}")
        client = self.client(server, credentials=Password("ann", "sesame"))
        self.assertEqual(client.user, "ann")
        server.signal(signal.SIGKILL)
        server.wait()
        self.restart(server, "--auth", f"scram:{self.users}")
        until(lambda: client.connected, "it has logged in again")
        self.assertEqual(client.request("echo", content=1)["content"], 1)

    def test_who_is_not_let_in(self) -> None:
        server = self.start("--auth", f"scram:{self.users}")
        for credentials in (Password("ann", "wrong"), Token("sesame"), None):
            client = TCPClient(*server.address, credentials=credentials)
            self.assertFalse(client.connect())
            self.assertIsInstance(client.error, AuthenticationFailed)
            self.assertFalse(client.ping())

    def test_a_password_that_is_changed(self) -> None:
        """The client that knows the old one does not try for ever."""
        server = self.start("--auth", f"scram:{self.users}")
        client = self.client(server, credentials=Password("ann", "sesame"))
        server.signal(signal.SIGKILL)
        server.wait()
        other = write(new_path(".users"), users({"ann": "other"}))
        self.restart(server, "--auth", f"scram:{other}")
        until(lambda: isinstance(client.error, AuthenticationFailed), "it has given up")
        with self.assertRaises(ClientError):
            client.request("ping")


class PoolTests(BlockingTestCase):
    """Threads that share a pool."""

    def test_killed_and_restarted(self) -> None:
        server = self.start()
        stop = threading.Event()
        outcomes = [Counter[str]() for _ in range(8)]
        wrong: list[object] = []
        pool = ConnectionPool(*server.address, pool_size=4)
        self.addCleanup(pool.close)

        def use(name: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    with pool.connection() as client:
                        reply = client.request("echo", content=[name, number])
                except Disconnected:
                    outcomes[name]["Disconnected"] += 1
                    stop.wait(0.001)
                except Exception as error:
                    wrong.append(error)
                else:
                    outcomes[name]["answered"] += 1
                    if reply["content"] != [name, number]:
                        wrong.append(reply)

        threads = [threading.Thread(target=use, args=(name,), daemon=True) for name in range(8)]
        for thread in threads:
            thread.start()
        self.addCleanup(stop.set)
        until(lambda: all(each["answered"] > 20 for each in outcomes), "all are answered")
        server.signal(signal.SIGKILL)
        server.wait()
        server = self.restart(server)
        before = [each["answered"] for each in outcomes]
        until(
            lambda: all(each["answered"] > was + 20 for each, was in zip(outcomes, before, strict=True)),
            "all are answered again",
        )
        peer = self.connect(server)
        self.assertLessEqual(peer.stats()["connected_clients"], 4 + 1)
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
        self.assertEqual(wrong, [])
        pool.close()
        self.alone(peer)


class ServerTests(BlockingTestCase):
    """`TCPServer` in a program of its own."""

    SERVER = """
    import logging, sys
    from tcpjson import TCPServer
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    server = TCPServer(host='localhost', port={port})
    server.start()
    print("ended", server.port)
    """

    def serve(self, port: int = 0) -> tuple[Program, int]:
        program = self.run_program(self.SERVER.format(port=port))
        line = program.line()
        self.assertRegex(line, r"^tcpjson: listening on localhost:\d+$")
        return program, int(line.rpartition(":")[2])

    def test_until_it_is_told_to_end(self) -> None:
        """Its clients hear of it, and what they asked is answered."""
        for number in (signal.SIGINT, signal.SIGTERM):
            program, port = self.serve()
            with TCPClient(port=port, offline="queue") as client:
                askers = self.askers(client, 2)
                program.process.send_signal(number)
                status, output, errors = program.end()
                self.assertEqual((status, output), (0, f"ended {port}\n"), errors)
                self.assertRegex(errors, "INFO:tcpjson.server:.*reason=going_away")
                self.assertNotIn("Traceback", errors)
                self.serve(port)
                self.all_answered(askers)
                for asker in askers:
                    asker.stop()

    def test_told_twice(self) -> None:
        """Nobody is waited for."""
        program, port = self.serve()
        with socket.create_connection(("127.0.0.1", port)) as idle:
            # It closes nothing.
            idle.recv(10)
            began = time.monotonic()
            program.process.send_signal(signal.SIGINT)
            program.process.send_signal(signal.SIGTERM)
            program.process.send_signal(signal.SIGINT)
            self.assertEqual(program.end()[0], 0)
            self.assertLess(time.monotonic() - began, 5)

    def test_a_port_that_is_taken(self) -> None:
        _, port = self.serve()
        status, output, errors = self.run_program(self.SERVER.format(port=port)).end()
        self.assertEqual((status, output), (1, ""))
        self.assertRegex(errors.splitlines()[-1], r"OSError: .*Address already in use")

    def test_in_a_thread(self) -> None:
        """And once in a process only."""
        program = self.run_program(
            """
            import threading
            from tcpjson import TCPClient, TCPServer
            server = TCPServer(port=0, announce=lambda line: None)
            thread = threading.Thread(target=server.start)
            thread.start()
            print(server.wait_until_ready(30))
            with TCPClient(port=server.port) as client:
                print(client.request("echo", content="x")["content"])
            server.stop()
            thread.join()
            try:
                TCPServer(port=0).start()
            except RuntimeError as error:
                print(error)
            """
        )
        status, output, errors = program.end()
        self.assertEqual((status, errors), (0, ""))
        self.assertEqual(
            output.splitlines(),
            ["True", "x", "the reactor runs, or has run, already: one start() in a process"],
        )
