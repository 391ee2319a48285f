"""Logins of `tcpjson.client.Client` at real servers and at false ones, and what leaves the client."""

from __future__ import annotations

import functools
import json
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scramp import ScramMechanism  # type: ignore[import-untyped]  # it has no types
from twisted.internet.defer import maybeDeferred
from twisted.protocols import portforward

from tcpjson.core.errors import AuthenticationFailed, Disconnected, ProtocolMismatch
from tcpjson.core.handshake import Json, Login
from tcpjson.credentials import Password, Token
from tcpjson.trace import Trace
from tcpjson.verifiers import Verifier
from tests.harness import LOOPBACK, Ended, Message, Server, folder, frame, shared
from tests.identities import CLIENT, SERVER, Authority, Identity, authority, new_path, tokens, users, write
from tests.strangers import WELCOME, Script, Stranger, Visit
from tests.test_client import ClientTestCase

SECRET = "hunter-two-and-three"
MEMORY = ("--auth", f"memory:alice:{SECRET}")


@functools.cache
def by_scram() -> tuple[str, ...]:
    """The option for a user."""
    return "--auth", f"scram:{write(new_path('.users'), users({'alice': SECRET}))}"


@functools.cache
def by_token() -> tuple[str, ...]:
    """The option for a token."""
    return "--auth", f"token:{write(new_path('.tokens'), tokens({SECRET: 'alice'}))}"


@functools.cache
def people() -> Authority:
    """The authority of clients."""
    return Authority()


@functools.cache
def own() -> Identity:
    """A server's certificate."""
    return authority().issue(usages=[SERVER])


@functools.cache
def trusted() -> Path:
    """A folder with the authority of servers, as endpoints' descriptions name them."""
    path = new_path(".roots")
    path.mkdir()
    write(path / "ca.pem", authority().pem)
    return path


class _Outgoing(portforward.ProxyServer):
    factory: Tap

    def connectionMade(self) -> None:
        self.factory.last = self.transport
        self.factory.sent.append(b"")
        self.number = len(self.factory.sent) - 1
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self.factory.sent[self.number] += data
        super().dataReceived(data)

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]  # without a default there, too
        self.factory.lost += 1
        super().connectionLost(reason)


class Tap(portforward.ProxyFactory):
    """Passes all on, and keeps what clients sent."""

    protocol = _Outgoing
    noisy = False

    def __init__(self, server: Server) -> None:
        super().__init__(*server.address)
        #: What each connection brought.
        self.sent: list[bytes] = []
        #: How many are gone.
        self.lost = 0
        #: The transport of the last connection.
        self.last: Any = None

    def cut(self) -> None:
        """Lose the last connection."""
        self.last.abortConnection()


class LoginTestCase(ClientTestCase):
    def use(self, *options: str, port: str = LOOPBACK) -> Server:
        """A server with these options, that others use too; whoever fails there delays the others."""
        server = shared(*options, ports=(port,))
        self.servers.append((server, len(server.log)))
        return server

    def tap(self, server: Server) -> Tap:
        """A way to a server on which all that is sent is seen; `where` tells the client of it."""
        tap = Tap(server)
        listening = self.reactor.listenTCP(0, tap, interface="127.0.0.1")
        self.addCleanup(self.until, lambda: tap.lost == len(tap.sent), "all connections are closed")
        self.addCleanup(maybeDeferred, listening.stopListening)
        self.where = f"127.0.0.1:{listening.getHost().port}"
        return tap

    def kinds(self, data: bytes) -> list[tuple[str, str | None]]:
        """The types of the messages that were sent, and the mechanisms."""
        found = []
        while data:
            length = int.from_bytes(data[:4], "big")
            message = json.loads(data[4 : 4 + length])
            found.append((message["type"], message.get("mechanism")))
            data = data[4 + length :]
        return found

    async def gone(self, tap: Tap) -> None:
        """Wait until there was a connection, and is none any more."""
        await self.until(lambda: tap.sent and tap.lost == len(tap.sent), "the connection is closed")


class ServerTests(LoginTestCase):
    """Logins at real servers."""

    async def test_scram_in_the_clear(self) -> None:
        """The password never leaves, and both sides prove that they know it."""
        for options in (by_scram(), (*by_scram(), *by_token(), *MEMORY, "--allow-plain-auth")):
            tap = self.tap(self.use(*options))
            client = await self.connected(self.where, credentials=Password("alice", SECRET))
            self.assertEqual(client.user, "alice")
            await client.ping()
            await client.close()
            [sent] = tap.sent
            self.assertNotIn(SECRET.encode(), sent)
            expected = [("hello", None), ("auth", "scram-sha-256"), ("auth", "scram-sha-256")]
            self.assertEqual(self.kinds(sent), [*expected, ("ping", None)])

    async def test_never_in_the_clear(self) -> None:
        """What would give the secret away is not sent, though the server would take it."""
        for options, credentials in (
            (MEMORY, Password("alice", SECRET)),
            (by_token(), Token(SECRET)),
        ):
            server = await self.start(*options, "--allow-plain-auth")
            tap = self.tap(server)
            client = self.client(self.where, credentials=credentials)
            reason = await self.fails(client.connect(), AuthenticationFailed)
            self.assertIn("allow_plain=True", str(reason))
            self.assertFalse(client.running)
            await self.gone(tap)
            # Nothing at all, and only once.
            self.assertEqual(tap.sent, [b""])

    async def test_in_the_clear_where_that_is_allowed(self) -> None:
        for options, credentials, mechanism in (
            (MEMORY, Password("alice", SECRET, allow_plain=True), "plain"),
            (by_token(), Token(SECRET, allow_plain=True), "token"),
            # What is better is taken all the same.
            (by_scram(), Password("alice", SECRET, allow_plain=True), "scram-sha-256"),
        ):
            tap = self.tap(self.use(*options, "--allow-plain-auth"))
            client = await self.connected(self.where, credentials=credentials)
            self.assertEqual(client.user, "alice")
            await client.close()
            self.assertIn(("auth", mechanism), self.kinds(tap.sent[0]))
            self.assertEqual(SECRET.encode() in tap.sent[0], mechanism != "scram-sha-256")

    async def test_over_tls(self) -> None:
        """There, the secret itself may be sent; nobody on the way reads it."""
        for options, credentials in (
            (MEMORY, Password("alice", SECRET)),
            (by_token(), Token(SECRET)),
            (by_scram(), Password("alice", SECRET)),
        ):
            tap = self.tap(self.use(*options, port=own().port))
            client = await self.connected(self.where, credentials=credentials, ca=str(authority().file))
            self.assertEqual(client.user, "alice")
            await client.close()
            self.assertNotIn(SECRET.encode(), tap.sent[0])
            self.assertNotIn(b"auth", tap.sent[0])

    async def test_on_a_unix_socket(self) -> None:
        for number, (options, credentials) in enumerate(
            (
                (MEMORY, Password("alice", SECRET)),
                (by_token(), Token(SECRET)),
                (by_scram(), Password("alice", SECRET)),
            )
        ):
            path = folder() / f"login{number}.sock"
            await self.start(*options, ports=[f"unix:{path}"])
            client = await self.connected(f"unix:{path}", credentials=credentials)
            self.assertEqual(client.user, "alice")

    async def test_wrong(self) -> None:
        """One attempt, one connection, and a clear word; nothing is tried again."""
        told: list[str] = []
        for options, credentials in (
            (by_scram(), Password("alice", "wrong")),
            (by_scram(), Password("bob", SECRET)),
            (MEMORY, Password("alice", "wrong", allow_plain=True)),
            (by_token(), Token("wrong", allow_plain=True)),
        ):
            server = await self.start(*options, "--allow-plain-auth")
            tap = self.tap(server)
            told.clear()
            client = self.client(
                self.where,
                credentials=credentials,
                on_failure=lambda error: told.append("failure"),
                on_retry=lambda error, seconds: told.append("retry"),
            )
            reason = await self.fails(client.connect(), AuthenticationFailed)
            self.assertNotIn(SECRET, repr(reason))
            await self.fails(client.ping(), AuthenticationFailed)
            await self.gone(tap)
            self.assertEqual(told, ["failure"])
            self.assertEqual((len(tap.sent), client.running, self.calls()), (1, False, 0))
            self.assertEqual(sum("login failed" in line for line in server.log), 1)

    async def test_nothing_that_fits(self) -> None:
        for options, credentials, offered in (
            (by_scram(), Token(SECRET), "scram-sha-256"),
            (by_token(), Password("alice", SECRET), "token"),
        ):
            tap = self.tap(self.use(*options, "--allow-plain-auth"))
            client = self.client(self.where, credentials=credentials)
            reason = await self.fails(client.connect(), AuthenticationFailed)
            self.assertIn(offered, str(reason))
            await self.gone(tap)
            self.assertEqual(tap.sent, [b""])

    async def test_a_server_that_asks_nobody(self) -> None:
        """It is not told."""
        tap = self.tap(self.use())
        for credentials in (Password("alice", SECRET, allow_plain=True), Token(SECRET, allow_plain=True)):
            client = await self.connected(self.where, credentials=credentials)
            self.assertIsNone(client.user)
            await client.ping()
            await client.close()
            self.assertEqual(self.kinds(tap.sent[-1]), [("hello", None), ("ping", None)])

    async def test_each_connection(self) -> None:
        """Who comes back logs in again, with a proof of its own."""
        server = self.use(*by_scram())
        tap = self.tap(server)
        client = await self.connected(self.where, credentials=Password("alice", SECRET))
        for count in (2, 3):
            tap.cut()
            # It may be back at once.
            await self.until(lambda: len(tap.sent) == count and client.connected, "it is back")  # noqa: B023
            self.assertEqual((client.user, len(tap.sent)), ("alice", count))
        await client.ping()
        self.assertEqual(len({sent[: sent.find(b'"ping"')] for sent in tap.sent}), 3)
        await client.close()

    async def test_proofs_are_made_in_a_thread(self) -> None:
        """The reactor goes on meanwhile."""
        threads: list[int] = []

        class Watched(Password):
            def begin(self, mechanisms: Sequence[str], secure: bool) -> Login:
                login = super().begin(mechanisms, secure)
                answer = login.answer

                def watched(data: str) -> Json:
                    threads.append(threading.get_ident())
                    return answer(data)

                login.answer = watched  # type: ignore[method-assign]  # that is the watch
                return login

        client = await self.connected(self.use(*by_scram()), credentials=Watched("alice", SECRET))
        self.assertEqual(client.user, "alice")
        self.assertEqual(len(threads), 1)
        self.assertNotEqual(threads[0], threading.get_ident())

    async def test_trace(self) -> None:
        """It shows the logins, and no secrets."""
        for options, credentials in (
            (by_scram(), Password("alice", SECRET)),
            (MEMORY, Password("alice", SECRET, allow_plain=True)),
            (by_token(), Token(SECRET, allow_plain=True)),
        ):
            path = new_path(".trace")
            trace = Trace.open(path)
            self.addCleanup(trace.close)
            server = self.use(*options, "--allow-plain-auth")
            client = await self.connected(server, credentials=credentials, trace=trace)
            await client.echo("seen")
            await client.close()
            text = path.read_text()
            self.assertNotIn(SECRET, text)
            lines = [json.loads(line) for line in text.splitlines()]
            kinds = [(line["direction"], line["message"]["type"]) for line in lines]
            for expected in (("received", "welcome"), ("sent", "auth"), ("received", "auth_result")):
                self.assertIn(expected, kinds)
            self.assertIn("seen", text)
            for line in lines:
                message = line["message"]
                if message["type"].startswith("auth"):
                    shown = message.keys() & {"data", "password", "token"}
                    self.assertEqual({message[name] for name in shown}, {"(hidden)"} if shown else set())


class TLSTests(LoginTestCase):
    """Certificates, of either side."""

    def tls(self, server: Server, **fields: object) -> str:
        """The description of an endpoint."""
        more = "".join(f":{name}={value}" for name, value in fields.items())
        return f"tls:127.0.0.1:{server.address[1]}:trustRoots={trusted()}{more}"

    async def test_a_client_certificate(self) -> None:
        """It says who the client is: nothing else is asked."""
        server = await self.start("--client-ca", str(people().file), ports=[own().port])
        alice = people().issue("alice", hosts=["alice.example"], usages=[CLIENT])
        to = self.tls(server, certificate=alice.certificate, privateKey=alice.key)
        heard: list[Message] = []
        for credentials in (None, Password("bob", SECRET)):
            client = await self.connected(to, credentials=credentials)
            self.assertIsNotNone(client.server)
            other = await self.connected(to)
            heard.clear()
            witness = await self.connected(to, on_message=heard.append)
            await other.broadcast("hello")
            await self.until(lambda: heard, "it is heard")
            self.assertEqual(heard[0]["from_user"], "alice")
            for each in (client, other, witness):
                await each.close()

    async def test_no_client_certificate(self) -> None:
        """TLS 1.3 lets it in at first. It is no welcome, and is tried again."""
        server = await self.start("--client-ca", str(people().file), ports=[own().port])
        stranger = authority().issue("alice", usages=[CLIENT])
        retries: list[Exception] = []
        for to in (
            self.tls(server),
            self.tls(server, certificate=stranger.certificate, privateKey=stranger.key),
        ):
            retries.clear()
            client = self.client(to, on_retry=lambda error, seconds: retries.append(error))
            client.start()
            await self.until(lambda: len(retries) >= 2, "it tries again")
            self.assertIsNone(client.server)
            self.assertRegex(str(retries[0]), "(?i)certificate|tls|ssl|alert|closed|lost")
            await client.close()

    async def test_authorities(self) -> None:
        """A server that the right one vouches for is trusted, and no other; nothing is said to it."""
        server = self.use(*by_token(), port=own().port)
        client = await self.connected(
            f"localhost:{server.address[1]}", credentials=Token(SECRET), ca=str(authority().file)
        )
        self.assertEqual(client.user, "alice")
        await client.close()
        heard: list[bytes] = []

        def script(visit: Visit) -> None:
            visit.send({**WELCOME, "auth": ["token", "plain"]})
            heard.extend(visit.payloads(2))

        foreign = people().issue("server", usages=[SERVER])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(foreign.certificate, foreign.key)
        stranger = self.stranger(script, context=context)
        for credentials in (Token(SECRET), Password("alice", SECRET)):
            client = self.client(stranger, ca=str(authority().file), credentials=credentials)
            reason = await self.fails(client.connect(timeout=1), Disconnected)
            self.assertRegex(str(reason), "(?i)certificate")
        self.assertGreaterEqual(stranger.accepted, 2)
        self.assertEqual(heard, [])
        # It would have heard something.
        client = self.client(stranger, ca=str(people().file), credentials=Token(SECRET))
        await self.fails(client.connect(timeout=1), Disconnected)
        self.assertIn(SECRET.encode(), heard[1])

    async def test_another_host(self) -> None:
        """A certificate that is good, and somebody else's."""
        other = authority().issue("server", hosts=["elsewhere.example"], usages=[SERVER])
        server = await self.start(*by_token(), ports=[other.port])
        client = self.client(server, ca=str(authority().file), credentials=Token(SECRET))
        reason = await self.fails(client.connect(timeout=1), Disconnected)
        self.assertRegex(str(reason), "(?i)certificate|127.0.0.1|verif")

    async def test_files_of_authorities(self) -> None:
        """One that is not there, or is none, is told at once."""
        broken = write(new_path(".pem"), "-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
        for path in (new_path(".pem"), write(new_path(".pem"), "nothing"), broken, own().key):
            with self.assertRaisesRegex(ValueError, path.name):
                self.client("127.0.0.1:1", ca=str(path))


def exchange(
    challenge: Callable[[str], str | None], result: Callable[[Any, Message], Message | None]
) -> Script:
    """
    A false server that asks for SCRAM.

    Args:
        challenge: makes the server's first message of that of an honest one, or None for no challenge.
        result: makes the answer to the proof, given the honest one's side and the message; or to the first
            message, where there was no challenge.
    """
    verifier = Verifier.make(SECRET, 4096, lambda count: b"s" * count)
    salt, iterations, stored_key, server_key = verifier

    def script(visit: Visit) -> None:
        server = ScramMechanism("SCRAM-SHA-256").make_server(
            lambda name: (salt, stored_key, server_key, iterations)
        )
        visit.send({**WELCOME, "auth": ["scram-sha-256", "plain", "token"]})
        while (message := visit.receive())["type"] != "auth":
            pass
        server.set_client_first(message["data"])
        data = challenge(server.get_server_first())
        if data is not None:
            visit.send({"type": "auth_challenge", "data": data, "id": message["id"]})
            message = visit.receive()
        answer = result(server, message)
        if answer is not None:
            visit.send({**answer, "id": message["id"]})
        visit.hold()

    return script


def iterations(count: int) -> Callable[[str], str]:
    """Asks for as many."""
    return lambda data: data.replace("i=4096", f"i={count}")


def honest(server: Any, message: Message) -> Message:
    """The answer of one that knows the password."""
    server.set_client_final(message["data"])
    return {
        "type": "auth_result",
        "status": "authenticated",
        "user": "alice",
        "data": server.get_server_final(),
    }


def without_proof(server: Any, message: Message) -> Message:
    """The answer of one that does not."""
    return {"type": "auth_result", "status": "authenticated", "user": "alice"}


class FalseServerTests(LoginTestCase):
    """Servers that want more than is theirs."""

    async def refused(
        self, script: Script, *words: str, kind: type[Exception] = AuthenticationFailed
    ) -> None:
        """See that the client stops at the first connection, and never sends the password."""
        seen: list[str] = []
        stranger = Stranger(script)
        self.addCleanup(stranger.stop)
        client = self.client(
            stranger,
            credentials=Password("alice", SECRET, allow_plain=True),
            trace=lambda direction, payloads: seen.extend(map(str, payloads)),
        )
        reason = await self.fails(client.connect(), kind)
        for word in words:
            self.assertIn(word, str(reason))
        self.assertNotIn(SECRET, "".join(seen))
        self.assertEqual((stranger.accepted, client.running, client.user), (1, False, None))

    async def test_an_honest_one(self) -> None:
        """What follows fails for other reasons than the exchange."""
        client = await self.connected(
            self.stranger(exchange(lambda data: data, honest)), credentials=Password("alice", SECRET)
        )
        self.assertEqual(client.user, "alice")

    async def test_proves_nothing(self) -> None:
        for data in (None, "", "v=", "v=" + "A" * 43 + "=", "e=other-error", 5, ["v="], {"v": 1}):

            def result(server: Any, message: Message, data: object = data) -> Message:
                return {**honest(server, message), "data": data}

            await self.refused(exchange(lambda data: data, result), "did not prove")
        await self.refused(exchange(lambda data: data, without_proof), "did not prove")

    async def test_no_challenge(self) -> None:
        """It lets everybody in, and hopes for what is said then."""
        await self.refused(exchange(lambda data: None, without_proof), "did not prove")

    async def test_wants_the_password_after_all(self) -> None:
        """A refusal does not lead to a weaker login."""
        failed = {"type": "auth_result", "status": "authentication_failed"}
        await self.refused(exchange(lambda data: data, lambda server, message: failed))
        await self.refused(exchange(lambda data: None, lambda server, message: failed))

    async def test_monstrous_work(self) -> None:
        """The client does not even begin with it."""
        for count in (2_000_001, 10_000_000):
            await self.refused(exchange(iterations(count), without_proof), f" {count} times")
        for count in (4_294_967_295, 10**100):
            await self.refused(exchange(iterations(count), without_proof), "challenge")

    async def test_work_that_is_too_easy(self) -> None:
        for count in (1, 4095):
            await self.refused(exchange(iterations(count), without_proof), "challenge")

    async def test_broken_challenges(self) -> None:
        for change in (
            lambda data: "",
            lambda data: "r=" + data[3:],
            lambda data: data.replace("r=", "r=x"),
            lambda data: data.replace("s=", "s=*"),
            lambda data: data + ",i=9999",
            lambda data: data.encode().hex(),
            lambda data: "e=unknown-user",
        ):
            await self.refused(exchange(change, without_proof), "challenge")

    async def test_challenges_without_end(self) -> None:
        """The second one is no exchange any more."""

        def script(visit: Visit) -> None:
            visit.send({**WELCOME, "auth": ["scram-sha-256"]})
            while (message := visit.receive())["type"] != "auth":
                pass
            client_nonce = message["data"].rpartition("r=")[2]
            data = f"r={client_nonce}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
            challenge = {"type": "auth_challenge", "data": data, "id": message["id"]}
            for _ in range(3):
                visit.send(challenge)
                try:
                    visit.receive()
                except Ended:
                    return
            visit.hold()

        await self.refused(script, "challenge", kind=ProtocolMismatch)

    async def test_a_challenge_to_a_token(self) -> None:
        """A secret that was sent whole is not asked for twice."""
        answers: list[bytes] = []

        def script(visit: Visit) -> None:
            visit.send({**WELCOME, "auth": ["token"]})
            while (message := visit.receive())["type"] != "auth":
                pass
            visit.send({"type": "auth_challenge", "data": "r=1", "id": message["id"]})
            answers.append(visit.payload())

        client = self.client(self.stranger(script), credentials=Token(SECRET, allow_plain=True))
        await self.fails(client.connect(), AuthenticationFailed)
        self.assertEqual((answers, client.running), ([], False))

    async def test_mechanisms_of_any_kind(self) -> None:
        """Names that are unknown, long, or nothing to be printed."""
        for names in (["magic"], ["x" * 10_000], ["\x1b[2Jplain"], [""], ["PLAIN", "Token"]):

            def script(visit: Visit, names: list[str] = names) -> None:
                visit.write(frame(json.dumps({**WELCOME, "auth": names}).encode()))
                visit.hold()

            stranger = self.stranger(script)
            client = self.client(stranger, credentials=Password("alice", SECRET, allow_plain=True))
            reason = await self.fails(client.connect(), AuthenticationFailed)
            self.assertTrue(str(reason).isprintable())
            self.assertLess(len(str(reason)), 300)
