"""Who may be a client: logins, what is served before them, what failures cost; and secrets stay secret."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import ssl
import threading
import time
from pathlib import Path

from tests.harness import (
    CUT,
    LOOPBACK,
    TIMEOUT,
    Ended,
    Message,
    Peer,
    Server,
    ServerTestCase,
    certificates,
    encode,
    folder,
    frame,
    shared,
    until,
)
from tests.identities import (
    Scram,
    dial_unix,
    new_path,
    new_source,
    plain,
    plain_message,
    scram,
    token,
    token_message,
    tokens,
    users,
    write,
)
from tests.test_options import Program, serve

# All secrets here, wrong ones too, hold this word; nothing that the server says or logs may.
MARK = "hunter"
ALICE = "hunter2-alice"
WRONG = "hunter-wrong"
PASSWORDS = {
    "alice": ALICE,
    "bob": "hunter2 bob",
    "x=1,y": "hunter=2,x",
    "Jürgen": "hunter-\N{GREEK SMALL LETTER OMEGA}",
    "IX": "hunter-IX",
}
SENSOR = "hunter-sensor-p86cfjYXPsxY6Y4OtWmUIZqb"
SPARE = "hunter-spare-0000000000000000000000000"
TOKENS = {SENSOR: "sensor-7", SPARE: "sensor-7", "hunter-third": "a third"}

# Rounds that take a processor 40 ms or more: far above what a message takes.
HARD = 200_000


@functools.cache
def users_file() -> Path:
    """A file of users."""
    return write(new_path(".users"), users(PASSWORDS))


@functools.cache
def hard_file() -> Path:
    """One whose passwords take long to check."""
    return write(new_path(".users"), users({"alice": ALICE}, HARD))


@functools.cache
def tokens_file() -> Path:
    """A file of tokens."""
    return write(new_path(".tokens"), tokens(TOKENS))


def by_scram() -> tuple[str, ...]:
    """The option for the users."""
    return "--auth", f"scram:{users_file()}"


def by_token() -> tuple[str, ...]:
    """The option for the tokens."""
    return "--auth", f"token:{tokens_file()}"


class AuthTestCase(ServerTestCase):
    """
    Tests of servers that ask who comes. Each comes from an address of its own: failures of the others do not
    delay it.
    """

    def setUp(self) -> None:
        self.source = new_source()

    def tearDown(self) -> None:
        for server, start in self.servers:
            self.assertNotIn(MARK, "\n".join(server.log[start:]))

    def given(self) -> tuple[str, ...]:
        """The options of the shared server."""
        return by_scram()

    @property
    def server(self) -> Server:
        return self.watch(shared(*self.given(), ports=(self.port,)))

    def client(self, server: Server | None = None, source: str | None = None) -> Peer:
        """A client that has read `welcome`, from the address of this test or from another."""
        return self.connect(server, source=source or self.source)

    def logged_in(self, result: Message, user: str) -> None:
        """See that an answer says so."""
        found = (result["type"], result.get("status"), result.get("user"))
        self.assertEqual(found, ("auth_result", "authenticated", user), result)

    def failed(self, result: Message) -> None:
        """See that an answer says so, and nothing else."""
        self.assertEqual(
            {name: value for name, value in result.items() if name != "timestamp"},
            {"type": "auth_result", "status": "authentication_failed"},
        )

    def refused(self, answer: Message, code: str, where: str = "") -> None:
        """See that an answer is an error after which the connection goes on."""
        self.assertEqual((answer["type"], answer.get("code"), answer.get("fatal")), ("error", code, False))
        self.assertIn(where, answer["message"])
        self.assertNotIn(MARK, str(answer))

    def served(self, peer: Peer) -> None:
        """See that a client is."""
        self.assertEqual(peer.ask({"type": "echo", "content": "served"})["content"], "served")

    def user(self, name: str, server: Server | None = None) -> Peer:
        """A client that has logged in."""
        peer = self.client(server)
        self.logged_in(scram(peer, name, PASSWORDS[name]), name)
        return peer


class ScramTests(AuthTestCase):
    """`--auth scram:FILE` on a port in the clear."""

    def test_login(self) -> None:
        """From `welcome` to the log, which all say who it is."""
        bob = self.user("bob")
        peer = self.client()
        self.assertEqual(peer.welcome["auth"], ["scram-sha-256"])
        limits = peer.welcome["limits"]
        self.assertEqual((limits["auth_timeout"], limits["pre_auth_max_length"]), (5, 4096))
        login = Scram("alice", ALICE)
        challenge = peer.ask(login.first() | {"id": "a"})
        self.assertEqual((challenge["type"], challenge["id"]), ("auth_challenge", "a"))
        result = peer.ask(login.final(challenge) | {"id": 2})
        self.assertEqual(set(result), {"type", "status", "user", "data", "id", "timestamp"})
        self.assertEqual(result["id"], 2)
        self.logged_in(result, "alice")
        login.check(result)
        self.served(peer)
        self.assertEqual(peer.ask({"type": "broadcast", "content": "hello"})["recipients"], 1)
        message = bob.receive()
        self.assertEqual((message["from_user"], message["from_client"]), ("alice", peer.client_id))
        self.server.wait_for(rf"\] connected {peer.client_id} user='alice' clients=\d+$")
        peer.close()
        self.assertEqual(self.figures(peer.client_id)["user"], "'alice'")

    def test_the_second_step_says_no_mechanism(self) -> None:
        """As section 6 writes it."""
        peer = self.client()
        login = Scram("alice", ALICE)
        final = login.final(peer.ask(login.first()))
        del final["mechanism"]
        self.logged_in(peer.ask(final), "alice")

    def test_names(self) -> None:
        for name, password in PASSWORDS.items():
            self.logged_in(scram(self.client(), name, password), name)
        # Another way to write it (RFC 4013).
        self.logged_in(scram(self.client(), "\N{ROMAN NUMERAL NINE}", "hunter-\N{ROMAN NUMERAL NINE}"), "IX")

    def test_three_failures(self) -> None:
        """The connection goes on after two, and ends with the third, of which the client is told first."""
        witness = self.user("bob")
        before = witness.stats()["details"]["failed_logins"]
        peer = self.client()
        for _ in range(3):
            self.failed(scram(peer, "alice", WRONG))
        error = peer.ending()
        self.assertEqual(error["code"], "auth_failed")
        peer.close()
        self.assertEqual(self.figures(peer.client_id)["reason"], "auth_failed")
        self.assertEqual(witness.stats()["details"]["failed_logins"], before + 3)
        self.same_reasons(self.server, witness)

    def test_success_after_failures(self) -> None:
        peer = self.client()
        self.failed(scram(peer, "alice", WRONG))
        self.failed(scram(peer, "bob", ALICE))
        self.logged_in(scram(peer, "alice", ALICE), "alice")
        self.served(peer)

    def test_an_unknown_user(self) -> None:
        """Nothing tells that there is none: a challenge that is always the same, and the same answer."""
        salts: dict[str, set[tuple[str, str]]] = {}
        for name in ("alice", "mallory", "trent"):
            for _ in range(2):
                peer = self.client(source=new_source())
                login = Scram(name, WRONG)
                challenge = peer.ask(login.first())
                fields = dict(field.split("=", 1) for field in challenge["data"].split(","))
                self.assertEqual(list(fields), ["r", "s", "i"])
                salts.setdefault(name, set()).add((fields["s"], fields["i"]))
                self.failed(peer.ask(login.final(challenge)))
        self.assertEqual([len(each) for each in salts.values()], [1, 1, 1])
        [(alice, rounds)], [(mallory, _)], [(trent, _)] = salts.values()
        self.assertEqual(len({alice, mallory, trent}), 3)
        self.assertEqual(len({len(alice), len(mallory), len(trent)}), 1)
        self.assertEqual({each[1] for pairs in salts.values() for each in pairs}, {rounds})

    def test_a_proof_that_was_overheard(self) -> None:
        """All that a client said, said again, lets nobody in."""
        peer = self.client()
        login = Scram("alice", ALICE)
        first = login.first()
        final = login.final(peer.ask(first))
        self.logged_in(peer.ask(final), "alice")
        thief = self.client()
        self.assertEqual(thief.ask(first)["type"], "auth_challenge")
        self.failed(thief.ask(final))

    def test_broken_first_messages(self) -> None:
        """Each is a failed login, and no failure of the server's."""
        for data in (
            "",
            "x",
            "n,,",
            "n,,n=alice",
            "n,,n=,r=",
            "n,,r=abc,n=alice",
            "n,,n=alice,r=\N{SNOWMAN}\0",
            "n,,n=ali=zz,r=abc",
            "n,a=bob,n=alice,r=abc",
            "p=tls-unique,,n=alice,r=abc",
            f"n,,n=alice,r={'x' * 600}",
            "n,,m=ext,n=alice,r=abc",
            ",,,,",
            "n" * 4000,
        ):
            peer = self.client(source=new_source())
            self.failed(peer.ask({"type": "auth", "mechanism": "scram-sha-256", "data": data}))
            self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")

    def test_broken_last_messages(self) -> None:
        nonce = "r=abc"
        for data in (
            "",
            "x",
            "c=biws",
            f"c=biws,{nonce}",
            f"c=biws,{nonce},p=",
            "c=biws,{},p=",
            "c=biws,{},p=AAAA",
            "c=eSws,{},p=AAAA",
            "c=biws,{},p=\N{SNOWMAN}",
            "c=biws,{},p=" + "A" * 43 + "=",
            "{},p=AAAA",
            "," * 50,
        ):
            peer = self.client(source=new_source())
            login = Scram("alice", ALICE)
            challenge = peer.ask(login.first())
            data = data.replace("{}", challenge["data"].partition(",")[0])
            self.failed(peer.ask({"type": "auth", "mechanism": "scram-sha-256", "data": data}))
            self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")

    def test_no_secrets_in_the_clear(self) -> None:
        """`plain` and `token` are refused, and that is no failed login."""
        peer = self.client()
        for _ in range(4):
            self.refused(plain(peer, "alice", ALICE), "bad_message", "$.mechanism")
            self.refused(token(peer, SENSOR), "bad_message", "$.mechanism")
        self.refused(peer.ask({"type": "auth", "mechanism": "SCRAM-SHA-256"}), "bad_message", "$.mechanism")
        self.logged_in(scram(peer, "alice", ALICE), "alice")

    def test_a_password_beside_a_proof(self) -> None:
        """A client that sends what it should keep is told."""
        peer = self.client()
        message = Scram("alice", ALICE).first() | {"password": ALICE}
        self.refused(peer.ask(message), "bad_message", "$.password")
        self.logged_in(scram(peer, "alice", ALICE), "alice")

    def test_after_the_login(self) -> None:
        """Once is enough."""
        peer = self.user("alice")
        self.refused(peer.ask(Scram("bob", PASSWORDS["bob"]).first() | {"id": 5}), "bad_message")
        self.refused(plain(peer, "bob", ALICE), "bad_message")
        self.user("bob")
        self.assertEqual(peer.ask({"type": "broadcast", "content": 1})["recipients"], 1)

    def test_hello(self) -> None:
        """Before the login and behind it."""
        peer = self.client()
        hello = {"type": "hello", "heartbeat": True}
        self.assertTrue(peer.ask(hello)["heartbeat"])
        self.logged_in(scram(peer, "alice", ALICE), "alice")
        self.refused(peer.ask(hello), "bad_message")
        self.assertTrue(self.user("bob").ask(hello)["heartbeat"])

    def test_requests_behind_the_proof(self) -> None:
        """What is sent at once with it is served after it, be it longer than a guest's message may be."""
        peer = self.client()
        login = Scram("alice", ALICE)
        final = login.final(peer.ask(login.first()))
        sizes = (1, 5000, 100_000, 1)
        peer.send(final, *({"type": "echo", "content": "x" * size} for size in sizes))
        self.logged_in(peer.receive(), "alice")
        self.assertEqual([len(peer.receive()["content"]) for _ in sizes], [*sizes])

    def test_requests_behind_a_wrong_proof(self) -> None:
        peer = self.client()
        login = Scram("alice", WRONG)
        final = login.final(peer.ask(login.first()))
        peer.send(
            final, {"type": "echo", "content": "x"}, {"type": "ping"}, {"type": "echo", "content": "x" * 5000}
        )
        self.failed(peer.receive())
        self.refused(peer.receive(), "unauthenticated")
        self.assertEqual(peer.receive()["type"], "pong")
        self.assertEqual(peer.ending()["code"], "too_large")


class ScramProxyTests(AuthTestCase):
    """Behind a balancer."""

    proxied = True

    def test_login(self) -> None:
        peer = self.client()
        self.assertEqual(peer.welcome["auth"], ["scram-sha-256"])
        self.assertTrue(peer.client_id.startswith(f"{self.source}:"))
        self.logged_in(scram(peer, "alice", ALICE), "alice")
        self.served(peer)

    def test_no_secrets_in_the_clear(self) -> None:
        self.refused(plain(self.client(), "alice", ALICE), "bad_message", "$.mechanism")


class GuestTests(AuthTestCase):
    """What is served to clients that have not logged in."""

    def test_nothing_but_a_login(self) -> None:
        peer = self.client()
        for message in (
            {"type": "echo", "content": 1},
            {"type": "broadcast", "content": 1},
            {"type": "get_stats"},
            {"type": "move", "x": 1},
            {"type": "pong"},
            {},
            [1],
            "text",
        ):
            self.refused(peer.ask(message), "unauthenticated")
        peer.write(frame(b"text"))
        self.refused(peer.receive(), "unauthenticated")
        answer = peer.ask({"type": "get_stats", "id": "x"})
        self.refused(answer, "unauthenticated")
        self.assertEqual(answer["id"], "x")
        self.assertEqual(peer.ask({"type": "ping", "timestamp": 1})["ping_timestamp"], 1)
        peer.write(frame(b"{"))
        self.refused(peer.receive(), "bad_json")
        peer.write(frame(b""))
        self.refused(peer.receive(), "bad_frame")
        self.logged_in(scram(peer, "alice", ALICE), "alice")

    def test_short_messages(self) -> None:
        """4,096 bytes are served, 4,097 are not, as soon as their length has come."""
        peer = self.client()
        empty = len(b'{"type":"ping","timestamp":""}')
        peer.write(frame(b'{"type":"ping","timestamp":"%s"}' % (b"x" * (4096 - empty))))
        self.assertEqual(len(peer.receive()["ping_timestamp"]), 4096 - empty)
        peer.write((4097).to_bytes(4, "big"))
        self.assertEqual(peer.ending()["code"], "too_large")
        peer.close()
        self.assertEqual(self.figures(peer.client_id)["reason"], "too_large")

    def test_nobody_yet(self) -> None:
        """Guests get no broadcast, and do not count."""
        alice = self.user("alice")
        self.alone(alice)
        guest = self.client()
        half = self.client()
        self.assertEqual(half.ask(Scram("bob", "x").first())["type"], "auth_challenge")
        self.assertEqual(alice.ask({"type": "broadcast", "content": 1})["recipients"], 0)
        self.assertEqual(alice.stats()["connected_clients"], 1)
        # Had it got the broadcast, that would come first.
        self.assertEqual(guest.ask({"type": "ping"})["type"], "pong")
        self.logged_in(scram(guest, "bob", PASSWORDS["bob"]), "bob")
        self.assertEqual(alice.stats()["connected_clients"], 2)
        self.assertEqual(alice.ask({"type": "broadcast", "content": 2})["recipients"], 1)
        self.assertEqual(guest.receive()["content"], 2)
        self.assertEqual([line for line in self.server.log if f"connected {half.client_id} " in line], [])

    def test_a_place(self) -> None:
        """A guest takes one of `--max-connections`."""
        server = self.start(*by_scram(), "--max-connections", "1")
        guest = self.client(server)
        second = self.connect(server, greet=False)
        self.assertEqual(second.ending()["code"], "server_full")
        self.logged_in(scram(guest, "alice", ALICE), "alice")


class TLSTests(AuthTestCase):
    """The same file over TLS, where passwords may be sent as they are."""

    tls = True

    def test_login(self) -> None:
        for log_in in (plain, scram):
            for name, password in PASSWORDS.items():
                peer = self.client()
                self.assertEqual(peer.welcome["auth"], ["scram-sha-256", "plain"])
                self.logged_in(log_in(peer, name, password), name)
                self.served(peer)
        self.logged_in(plain(self.client(), "\N{ROMAN NUMERAL NINE}", "hunter-IX"), "IX")

    def test_from_user(self) -> None:
        peer, witness = self.client(), self.client()
        self.logged_in(plain(witness, "bob", PASSWORDS["bob"]), "bob")
        self.logged_in(plain(peer, "Jürgen", PASSWORDS["Jürgen"]), "Jürgen")
        peer.ask({"type": "broadcast", "content": 1})
        self.assertEqual(witness.receive()["from_user"], "Jürgen")
        self.server.wait_for(rf"\] connected {peer.client_id} user='J\\xfcrgen' clients=")

    def test_three_failures(self) -> None:
        """Wrong passwords and unknown users get the same answer."""
        for names in (("alice", "alice", "bob"), ("mallory", "", "m" * 300)):
            peer = self.client(source=new_source())
            for name in names:
                self.failed(plain(peer, name, WRONG))
            self.assertEqual(peer.ending()["code"], "auth_failed")
            peer.close()
            self.assertEqual(self.figures(peer.client_id)["reason"], "auth_failed")

    def test_odd_passwords(self) -> None:
        """None of them is a failure of the server's."""
        for name, password in (
            ("alice", ""),
            ("", ""),
            ("alice", "\0"),
            ("alice", MARK + "\N{SNOWMAN}\u200b"),
            ("alice", MARK * 600),
            ("alice\0", ALICE),
            ("alice:", ALICE),
            ("# salt secret", ALICE),
            ("alice", "\ufdfa" * 600),
        ):
            peer = self.client(source=new_source())
            self.failed(plain(peer, name, password))
            self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")

    def test_requests_behind_the_password(self) -> None:
        """What comes at once with it waits until it is checked."""
        peer = self.client()
        content = "x" * 200_000
        peer.send(plain_message("alice", ALICE), {"type": "echo", "content": content}, {"type": "ping"})
        self.logged_in(peer.receive(), "alice")
        self.assertEqual(peer.receive()["content"], content)
        self.assertEqual(peer.receive()["type"], "pong")

    def test_another_way_in_the_middle(self) -> None:
        """A client may give an exchange up."""
        peer = self.client()
        self.assertEqual(peer.ask(Scram("alice", ALICE).first())["type"], "auth_challenge")
        self.logged_in(plain(peer, "bob", PASSWORDS["bob"]), "bob")


class UnixTests(AuthTestCase):
    """On a Unix socket nobody reads what is sent, either."""

    @functools.cached_property
    def port(self) -> str:
        return f"unix:{folder() / 'auth.sock'}:mode=600"

    def unix(self) -> Peer:
        """A client."""
        peer = dial_unix(self.server)
        self.addCleanup(peer.close)
        return peer

    def test_login(self) -> None:
        for log_in in (plain, scram):
            peer = self.unix()
            self.assertEqual(peer.welcome["auth"], ["scram-sha-256", "plain"])
            self.logged_in(log_in(peer, "alice", ALICE), "alice")
            self.served(peer)

    def test_nothing_waits(self) -> None:
        """It has no address whose failures could count."""
        start = time.monotonic()
        for _ in range(3):
            peer = self.unix()
            for _ in range(3):
                self.failed(scram(peer, "alice", WRONG))
            self.assertEqual(peer.ending()["code"], "auth_failed")
        # Nine failures of an address wait 11 s and more.
        self.assertLess(time.monotonic() - start, 8)


class AllowPlainTests(AuthTestCase):
    """`--allow-plain-auth` on a port in the clear."""

    def given(self) -> tuple[str, ...]:
        return (*by_scram(), "--allow-plain-auth")

    def test_login(self) -> None:
        for log_in in (plain, scram):
            peer = self.client()
            self.assertEqual(peer.welcome["auth"], ["scram-sha-256", "plain"])
            self.logged_in(log_in(peer, "alice", ALICE), "alice")
        self.failed(plain(self.client(), "alice", WRONG))


class TokenTests(AuthTestCase):
    """`--auth token:FILE`, over TLS."""

    tls = True

    def given(self) -> tuple[str, ...]:
        return by_token()

    def test_login(self) -> None:
        witness = self.client()
        self.assertEqual(witness.welcome["auth"], ["token"])
        self.logged_in(token(witness, "hunter-third"), "a third")
        for each in (SENSOR, SPARE):
            peer = self.client()
            self.logged_in(token(peer, each), "sensor-7")
            self.served(peer)
            peer.ask({"type": "broadcast", "content": 1})
            self.assertEqual(witness.receive()["from_user"], "sensor-7")
            peer.close()
            self.assertEqual(self.figures(peer.client_id)["user"], "'sensor-7'")

    def test_wrong_tokens(self) -> None:
        for wrong in (
            ("", SENSOR[:-1], f"{SENSOR} "),
            (SENSOR.upper(), "sensor-7", MARK + "\N{SNOWMAN}" * 500),
        ):
            peer = self.client(source=new_source())
            for each in wrong:
                self.failed(token(peer, each))
            self.assertEqual(peer.ending()["code"], "auth_failed")
            peer.close()
            self.assertEqual(self.figures(peer.client_id)["reason"], "auth_failed")

    def test_other_mechanisms(self) -> None:
        peer = self.client()
        self.refused(plain(peer, "alice", ALICE), "bad_message", "$.mechanism")
        self.refused(peer.ask(Scram("alice", ALICE).first()), "bad_message", "$.mechanism")
        self.logged_in(token(peer, SENSOR), "sensor-7")


class ManyTests(AuthTestCase):
    """Several `--auth`, of our kinds and of Twisted's."""

    @functools.cached_property
    def others(self) -> tuple[Path, Path]:
        """Another file of users, in which some are the same, and one of `--auth file:`."""
        more = write(new_path(".users"), users({"carol": "hunter-carol", "alice": "hunter-other"}))
        return more, write(new_path(".passwords"), "dave:hunter-dave\nerin:hunter-erin\n")

    def test_all(self) -> None:
        more, passwords = self.others
        server = self.start(
            *by_scram(),
            *by_token(),
            "--auth",
            f"scram:{more}",
            "--auth",
            "memory:frank:hunter-frank",
            "--auth",
            f"file:{passwords}",
            "--allow-plain-auth",
        )
        peer = self.client(server)
        self.assertEqual(peer.welcome["auth"], ["scram-sha-256", "plain", "token"])
        self.logged_in(token(peer, SENSOR), "sensor-7")
        for log_in in (plain, scram):
            for name, password in (("alice", ALICE), ("carol", "hunter-carol")):
                peer = self.client(server)
                self.logged_in(log_in(peer, name, password), name)
                self.served(peer)
            # The first file that knows a user decides.
            self.failed(log_in(self.client(server, new_source()), "alice", "hunter-other"))
        for name in ("dave", "erin", "frank"):
            peer = self.client(server)
            self.logged_in(plain(peer, name, f"hunter-{name}"), name)
            self.failed(scram(self.client(server, new_source()), name, f"hunter-{name}"))
        for name in ("dave", "frank", "mallory", ""):
            for password in ("", WRONG):
                self.failed(plain(self.client(server, new_source()), name, password))

    def test_memory(self) -> None:
        """A checker that came with Twisted."""
        server = self.start("--auth", "memory:alice:hunter2", "--allow-plain-auth")
        peer = self.client(server)
        self.assertEqual(peer.welcome["auth"], ["plain"])
        self.failed(plain(peer, "alice", WRONG))
        self.refused(scram(peer, "alice", "hunter2"), "bad_message", "$.mechanism")
        self.logged_in(plain(peer, "alice", "hunter2"), "alice")
        self.served(peer)

    def test_a_port_of_each_kind(self) -> None:
        """What is offered depends on the port: over TLS tokens, in the clear no mechanism that gives away."""
        server = self.start(*by_scram(), ports=[LOOPBACK, certificates().port])
        clear = self.client(server)
        self.assertEqual(clear.welcome["auth"], ["scram-sha-256"])
        raw = socket.create_connection(server.tcp_address(1), TIMEOUT, (self.source, 0))
        self.addCleanup(raw.close)
        private = Peer(certificates().client.wrap_socket(raw, server_hostname="127.0.0.1"))
        self.addCleanup(private.close)
        self.assertEqual(private.receive()["auth"], ["scram-sha-256", "plain"])
        self.refused(plain(clear, "alice", ALICE), "bad_message")
        self.logged_in(plain(private, "alice", ALICE), "alice")


class PluginTests(AuthTestCase):
    """A checker of somebody else's, found as a plugin of Twisted's."""

    plugin = """
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import ICheckerFactory
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import implementer

@implementer(ICredentialsChecker)
class Checker:
    credentialInterfaces = (IUsernamePassword,)

    def requestAvatarId(self, credentials):
        from twisted.internet import reactor
        name, password = credentials.username, credentials.password
        answer = Deferred()
        if name == b"raises":
            raise RuntimeError(password)
        elif name == b"fails":
            answer.errback(ValueError(password))
        elif name == b"nobody":
            answer.callback(())
        elif name == b"refuses":
            reactor.callLater(0.1, answer.errback, UnauthorizedLogin(password))
        elif password == b"hunter2" and credentials.checkPassword(b"hunter2"):
            reactor.callLater(0.1, answer.callback, name.upper())
        return answer

@implementer(ICheckerFactory, IPlugin)
class Factory:
    authType = "theirs"
    authHelp = "Theirs."
    argStringFormat = "A number."
    credentialInterfaces = Checker.credentialInterfaces

    def generateChecker(self, argstring):
        int(argstring)
        return Checker()

theirs = Factory()
"""

    def setUp(self) -> None:
        super().setUp()
        place = new_path(".plugins")
        (place / "twisted" / "plugins").mkdir(parents=True)
        write(place / "twisted" / "plugins" / "theirs.py", self.plugin)
        path = os.environ.get("PYTHONPATH")
        self.patch(
            os, "environ", os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{place}" if path else str(place)}
        )

    def test_login(self) -> None:
        server = self.start("--auth", "theirs:1", "--allow-plain-auth")
        peer = self.client(server)
        self.logged_in(plain(peer, "carol", "hunter2"), "CAROL")
        self.served(peer)
        for name in ("raises", "fails", "nobody", "refuses"):
            self.failed(plain(self.client(server, new_source()), name, f"{MARK}-{name}"))
        found = [line for line in server.log if "a checker failed: " in line]
        self.assertEqual(len(found), 3, found)

    def test_no_answer(self) -> None:
        """A checker that waits for ever costs nobody else anything, and its client a handler's time."""
        server = self.start("--auth", "theirs:1", "--allow-plain-auth", "--handler-timeout", "1")
        stuck = self.client(server)
        start = time.monotonic()
        stuck.send(plain_message("dave", WRONG))
        self.logged_in(plain(self.client(server), "carol", "hunter2"), "CAROL")
        self.refused(stuck.receive(), "timeout")
        self.assertGreaterEqual(time.monotonic() - start, 1)
        self.logged_in(plain(stuck, "carol", "hunter2"), "CAROL")

    def test_what_it_says_of_its_argument(self) -> None:
        """Is not repeated: it may be a password."""
        status, output = serve("--auth", f"theirs:{MARK}").ended()
        self.assertEqual((status, output), (1, "tcpjson: --auth theirs: ValueError\n"))


class OpenTests(ServerTestCase):
    """A server that asks nobody."""

    def test_auth(self) -> None:
        peer = self.connect()
        self.assertEqual(peer.welcome["auth"], [])
        self.assertNotIn("auth_timeout", peer.welcome["limits"])
        for message in (
            plain_message("alice", ALICE),
            token_message(SENSOR),
            Scram("alice", ALICE).first(),
            {"type": "auth", "password": [ALICE], "mechanism": 5},
        ):
            error = peer.ask(message | {"id": 9})
            self.assertEqual((error["code"], error["fatal"], error["id"]), ("bad_message", False, 9))
            self.assertNotIn(MARK, str(error))
        self.assertEqual(peer.ask({"type": "echo"})["type"], "echo_response")
        # What others are told shows that nobody was taken for somebody.
        self.connect().ask({"type": "broadcast", "content": 1})
        self.assertNotIn("from_user", peer.receive())
        self.assertNotIn(MARK, "\n".join(self.server.log))


class SecretTests(AuthTestCase):
    """No password and no token, right or wrong, is in any answer or in the log, whatever is wrong with it."""

    def given(self) -> tuple[str, ...]:
        return (*by_scram(), *by_token(), "--auth", "memory:frank:hunter-frank", "--allow-plain-auth")

    def test_secrets(self) -> None:
        bad: list[object] = []
        for secret in (WRONG, SENSOR):
            good = (plain_message("alice", secret), token_message(secret), Scram("alice", secret).first())
            for message in good:
                bad += [message | {"mechanism": other} for other in (None, 5, secret, [secret], "plain ")]
                bad += [message | {"id": other} for other in (1.5, [secret], {secret: secret}, secret * 10)]
                for field in ("username", "password", "token", "data", "mechanism"):
                    bad += [message | {field: other} for other in ([secret], {secret: 1}, 5, None, True)]
                    bad.append({name: value for name, value in message.items() if name != field})
                bad.append(message | {"type": secret})
                bad.append([message])
            bad += [
                secret,
                {"type": "auth", secret: secret},
                {"type": "hello", "client": [secret], "auth": secret},
            ]
        answers: list[Message] = []
        peer = self.client(source=new_source())
        for each in bad:
            try:
                answers.append(peer.ask(each))
                if answers[-1].get("status") == "authenticated":
                    peer = self.client(source=new_source())
                broken = encode(each)[4:-2]
                peer.write(frame(broken))
                answers.append(peer.receive())
            except (Ended, *CUT):
                peer = self.client(source=new_source())
        self.assertGreater(len(answers), 200)
        for answer in answers:
            self.assertNotIn(MARK, str(answer).replace(str(answer.get("id")), ""))
        kinds = {answer.get("code") or answer.get("status") for answer in answers}
        self.assertTrue(
            {"bad_message", "bad_json", "unauthenticated", "authentication_failed"} <= kinds, kinds
        )

    def test_in_the_log(self) -> None:
        """Nor is anything of a proof, or of what a client calls itself."""
        peer = self.client()
        login = Scram("mallory", WRONG)
        first = login.first()
        challenge = peer.ask(first)
        final = login.final(challenge)
        self.failed(peer.ask(final))
        self.logged_in(token(peer, SENSOR), "sensor-7")
        peer.close()
        self.figures(peer.client_id)
        text = "\n".join(self.server.log)
        for secret in (first["data"][-20:], challenge["data"][-30:-8], final["data"][-30:], "mallory"):
            self.assertNotIn(secret, text)


class FailureTests(AuthTestCase):
    """Failed logins in the log."""

    def test_lines(self) -> None:
        """The first of an address is told at once, the others when the server ends: how many more."""
        server = self.start(*by_scram(), *by_token(), "--allow-plain-auth")
        first, second = (self.client(server, new_source()) for _ in range(2))
        self.failed(scram(first, "alice", WRONG))
        server.wait_for(rf"#warn\] login failed {first.client_id} mechanism=scram-sha-256$")
        self.failed(token(second, WRONG))
        server.wait_for(rf"#warn\] login failed {second.client_id} mechanism=token$")
        self.failed(scram(first, "alice", WRONG))
        self.failed(plain(first, "alice", WRONG))
        self.assertEqual(sum("login failed" in line for line in server.log), 2)
        server.stop()
        *_, last = (line for line in server.log if "login failed" in line)
        self.assertRegex(last, rf"{first.client_id} mechanism=plain \(and 1 more in \d+ s\)$")


class DeadlineTests(AuthTestCase):
    """`--auth-timeout`."""

    def silent(self, server: Server, index: int, header: bytes = b"", hello: bytes = b"") -> Peer:
        """A client of a port that says so much, and no more."""
        raw = socket.create_connection(server.tcp_address(index), TIMEOUT, (self.source, 0))
        self.addCleanup(raw.close)
        raw.sendall(header + hello)
        return Peer(raw)

    def private(self, peer: Peer) -> Peer:
        """A client with TLS above what it is connected by."""
        connection = certificates().client.wrap_socket(peer.socket, server_hostname="127.0.0.1")
        self.addCleanup(connection.close)
        return Peer(connection)

    def test_silence(self) -> None:
        """On ports of all kinds, at whatever point; those that can be told why, are told."""
        path = folder() / "deadline.sock"
        tls = certificates().port
        server = self.start(
            *by_scram(),
            "--auth-timeout",
            "1",
            ports=[f"unix:{path}", LOOPBACK, f"haproxy:{LOOPBACK}", tls, f"haproxy:{tls}"],
        )
        header = f"PROXY TCP4 {self.source} 127.0.0.1 40000 9999\r\n".encode()
        start = time.monotonic()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        handshake = certificates().client.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        self.assertRaises(ssl.SSLWantReadError, handshake.do_handshake)
        client_hello = outgoing.read()
        greeted = [
            dial_unix(server),
            self.silent(server, 1),
            self.silent(server, 2, header),
            self.private(self.silent(server, 3)),
            self.private(self.silent(server, 4, header)),
        ]
        for peer in greeted:
            self.addCleanup(peer.close)
        for peer in greeted[1:]:
            peer.welcome = peer.receive()
        # One that begins to log in, and one that begins a message.
        for message in (encode(Scram("alice", ALICE).first()), b"\0\0"):
            peer = self.client_of(server)
            peer.write(message)
            greeted.append(peer)
        self.assertEqual(greeted[-2].receive()["type"], "auth_challenge")
        strangers = [
            self.silent(server, 2),
            self.silent(server, 2, header[:-1]),
            self.silent(server, 3),
            self.silent(server, 3, client_hello),
            self.silent(server, 3, client_hello[:50]),
            self.silent(server, 4),
            self.silent(server, 4, header),
            self.silent(server, 4, header, client_hello),
        ]
        known = self.client_of(server)
        self.logged_in(scram(known, "alice", ALICE), "alice")
        busy = self.client_of(server)
        trickle = threading.Thread(target=self.trickle, args=(busy,), daemon=True)
        trickle.start()
        for peer in greeted:
            self.assertEqual(peer.ending()["code"], "auth_timeout")
            self.assertGreaterEqual(time.monotonic() - start, 1)
        for peer in strangers:
            self.assertEqual(b"welcome" in self.everything(peer), False)
        *pongs, error = busy.rest()
        self.assertEqual({pong["type"] for pong in pongs}, {"pong"})
        self.assertEqual(error["code"], "auth_timeout")
        self.assertLess(time.monotonic() - start, 10)
        trickle.join(TIMEOUT)
        self.served(known)
        for peer in (*greeted, busy):
            peer.close()
        reasons = {"auth_timeout": len(greeted) + 1, "handshake_failed": len(strangers)}
        until(lambda: server.reasons() == reasons, f"{reasons}")

    def client_of(self, server: Server) -> Peer:
        """A client in the clear that has read `welcome`."""
        peer = self.silent(server, 1)
        peer.welcome = peer.receive()
        return peer

    def trickle(self, peer: Peer) -> None:
        """Ping every tenth of a second."""
        with contextlib.suppress(OSError):
            while True:
                peer.send({"type": "ping"})
                time.sleep(0.1)

    def everything(self, peer: Peer) -> bytes:
        """All bytes up to the end, be it a reset."""
        with contextlib.suppress(Ended):
            while peer.fill():
                pass
        return bytes(peer.buffer)


class BackOffTests(AuthTestCase):
    """What failures cost the address that they come from."""

    @property
    def port(self) -> str:
        return f"haproxy:{LOOPBACK}"

    def client(self, server: Server | None = None, source: str | None = None) -> Peer:
        """One behind a balancer, from whose own address all of them come."""
        peer = Peer(self.dial(server or self.server))
        peer.write(f"PROXY TCP4 {source or self.source} 127.0.0.1 40000 9999\r\n".encode())
        peer.welcome = peer.receive()
        return peer

    def given(self) -> tuple[str, ...]:
        # Less than the back-off, which is neither the client's time nor the checker's.
        return (*by_scram(), "--auth-timeout", "1.5", "--handler-timeout", "1")

    def test_back_off(self) -> None:
        """Each failure delays the next answer to its address, to others none; and nobody is locked out."""
        waiting = [self.client() for _ in range(7)]
        others = [self.client(source=new_source()) for _ in range(2)]
        finals = []
        for peer in waiting:
            login = Scram("alice", ALICE if peer is waiting[-1] else WRONG)
            finals.append(login.final(peer.ask(login.first())))
        start = time.monotonic()
        for peer, final in zip(waiting[:-1], finals, strict=False):
            peer.send(final)
        # By the time that others have logged in, the server has read all these.
        self.logged_in(scram(others[0], "alice", ALICE), "alice")
        self.failed(scram(others[1], "alice", WRONG))
        came_after = time.monotonic()
        waiting[-1].send(finals[-1])
        times: dict[Peer, float] = {}
        while len(times) < len(waiting):
            sockets = {peer.socket: peer for peer in waiting if peer not in times}
            ready, _, _ = select.select(list(sockets), [], [], TIMEOUT)
            self.assertTrue(ready)
            times |= {sockets[each]: time.monotonic() for each in ready}
        for peer in waiting[:-1]:
            self.failed(peer.receive())
        took = sorted(times[peer] - start for peer in waiting[:-1])
        for seconds, least in zip(took, (0, 0.25, 0.5, 1, 2, 2), strict=True):
            self.assertGreaterEqual(seconds, least)
            self.assertLess(seconds, least + 5)
        self.assertLess(came_after - start, took[-1], "others wait, too")
        self.assertGreaterEqual(times[waiting[-1]] - came_after, 2)
        self.logged_in(waiting[-1].receive(), "alice")
        self.served(waiting[-1])

    def test_a_ping_meanwhile(self) -> None:
        """A client whose answer waits is served nothing, and the others go on."""
        first = self.client()
        for _ in range(2):
            self.failed(scram(first, "alice", WRONG))
        second = self.client()
        login = Scram("alice", ALICE)
        final = login.final(second.ask(login.first()))
        start = time.monotonic()
        second.send(final, {"type": "ping"})
        self.assertEqual(first.ask({"type": "ping"})["type"], "pong")
        self.logged_in(second.receive(), "alice")
        self.assertGreaterEqual(time.monotonic() - start, 0.5)
        self.assertEqual(second.receive()["type"], "pong")


class HashingTests(AuthTestCase):
    """Each password that comes as it is costs 40 ms or more, for which nobody else shall wait."""

    crowd = 20

    def given(self) -> tuple[str, ...]:
        return ("--auth", f"scram:{hard_file()}", "--allow-plain-auth")

    def test_pings(self) -> None:
        """While a crowd gives wrong passwords, the round trips of a client stay short."""
        witness = self.client(source=new_source())
        self.logged_in(scram(witness, "alice", ALICE), "alice")
        start = time.monotonic()
        self.failed(plain(self.client(source=new_source()), "alice", WRONG))
        alone = time.monotonic() - start
        peers = [self.client() for _ in range(self.crowd)]
        for peer in peers:
            peer.send(plain_message("alice", WRONG))
        took = []
        for _ in range(200):
            start = time.monotonic()
            witness.ask({"type": "ping"})
            took.append(time.monotonic() - start)
        # Hashed on the reactor, all of the crowd would come before a ping or two.
        self.assertLess(max(took), alone * self.crowd / 2)
        self.assertLess(sorted(took)[-3], alone * self.crowd / 8)

    def test_turns(self) -> None:
        """A login from elsewhere does not wait for the whole crowd."""
        peers = [self.client() for _ in range(self.crowd)]
        other = self.client(source=new_source())
        for peer in peers:
            peer.send(plain_message("alice", ALICE))
        # Its welcome shows that the server has read from those before.
        self.client()
        self.logged_in(plain(other, "alice", ALICE), "alice")
        answered = 0
        for peer in peers:
            peer.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                peer.fill()
                answered += 1
            peer.socket.settimeout(TIMEOUT)
        self.assertLess(answered, self.crowd // 2)
        for peer in peers:
            self.logged_in(peer.receive(), "alice")

    def test_an_unknown_user_costs_the_same(self) -> None:
        """The fastest of several tries each: what disturbs only adds."""

        def fastest(name: str) -> float:
            took = []
            for _ in range(3):
                peer = self.client(source=new_source())
                start = time.monotonic()
                self.failed(plain(peer, name, WRONG))
                took.append(time.monotonic() - start)
            return min(took)

        known = fastest("alice")
        for name in ("mallory", "", "m" * 300):
            unknown = fastest(name)
            self.assertLess(unknown, known * 2)
            self.assertGreater(unknown, known / 2)


class StartTests(AuthTestCase):
    """What would be no protection, or cannot be read, is refused at the start, in one line."""

    def not_started(self, *rows: tuple[str, ...]) -> list[str]:
        """For each row of options the line that says why it is refused, which is all that is printed."""
        lines = []
        for program in [serve(*row) for row in rows]:
            status, output = program.ended()
            self.assertEqual(status, 1, output)
            self.assertEqual(len(output.splitlines()), 1, output)
            self.assertRegex(output, "^tcpjson: ")
            self.assertNotIn(MARK, output)
            lines.append(output.strip())
        return lines

    def test_secrets_in_the_clear(self) -> None:
        memory = ("--auth", f"memory:alice:{ALICE}")
        proxied = f"haproxy:unix:{folder() / 'clear.sock'}"
        rows = (
            ("--port", LOOPBACK, *memory),
            ("--port", LOOPBACK, *by_scram(), *by_token()),
            ("--port", certificates().port, "--port", LOOPBACK, *by_token()),
            # Whoever ends TLS before it cannot be seen.
            ("--port", proxied, *memory),
            by_token(),
        )
        for line, row in zip(self.not_started(*rows), rows, strict=True):
            kind = row[-1].partition(":")[0]
            self.assertTrue(line.startswith(f"tcpjson: --auth {kind}: --port "), line)
            self.assertIn("in the clear", line)
            self.assertIn("--allow-plain-auth", line)

    def test_files(self) -> None:
        """The path and the line are told, nothing of the content."""
        none = new_path(".none")
        verifier = users({"alice": ALICE}).splitlines()[1]
        broken = {
            f"alice:{ALICE}": "line 1",
            f"# x\n\n{verifier}\n\0{MARK}": "line 4",
            f"{verifier}\n{verifier}": "line 2",
        }
        rows: list[tuple[str, ...]] = [("--auth", f"scram:{folder()}"), ("--auth", f"token:{none}")]
        found = ["Is a directory", "No such file"]
        for content, what in broken.items():
            rows.append(("--auth", f"scram:{write(new_path('.users'), content)}"))
            found.append(what)
        path = write(new_path(".tokens"), f"sensor:{SENSOR}")
        rows.append(("--auth", f"token:{path}", "--allow-plain-auth"))
        found.append("line 1")
        lines = self.not_started(*rows)
        for line, row, what in zip(lines, rows, found, strict=True):
            kind, _, file = row[1].partition(":")
            self.assertTrue(line.startswith(f"tcpjson: --auth {kind}: {file}: "), line)
            self.assertIn(what, line)

    def test_kinds(self) -> None:
        rows = (
            ("--auth", f"bogus:{ALICE}"),
            ("--auth", f"memory:{ALICE}"),
            ("--auth", "anonymous"),
            ("--auth", "token:"),
        )
        for line, row in zip(self.not_started(*rows), rows, strict=True):
            self.assertIn("auth", line)
            self.assertEqual(line.count("--auth bogus"), row[-1].startswith("bogus"), line)

    def test_a_file_for_everybody(self) -> None:
        """That somebody else may read or change it is only warned of."""
        path = write(new_path(".users"), users({"alice": ALICE}))
        path.chmod(0o644)
        server = self.start("--auth", f"scram:{path}")
        server.wait_for(rf"#warn\] {path} is open to others than its owner: chmod 600$")
        self.logged_in(scram(self.client(server), "alice", ALICE), "alice")
        self.assertEqual([line for line in self.start(*by_scram()).log if "chmod" in line], [])

    def test_nobody(self) -> None:
        """A file without users lets nobody in."""
        server = self.start("--auth", f"scram:{write(new_path('.users'), '# none yet')}")
        self.failed(scram(self.client(server), "alice", ALICE))

    def test_help(self) -> None:
        status, output = Program("tcpjson", "--help-auth").ended()
        self.assertEqual(status, 0, output)
        for kind in ("scram", "token", "memory"):
            self.assertIn(kind, output)
