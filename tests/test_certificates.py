"""Certificates: of clients, who are known by them, and of the server, which reads them anew on SIGHUP."""

from __future__ import annotations

import functools
import re
import signal
import socket
import ssl
import threading
import warnings
from pathlib import Path

from tests.harness import LOOPBACK, TIMEOUT, Ended, Peer, Server, ServerTestCase, folder, shared, until
from tests.identities import (
    CLIENT,
    SERVER,
    Authority,
    Identity,
    authority,
    new_path,
    new_source,
    plain,
    scram,
    shown,
    token,
    tokens,
    users,
    write,
)
from tests.test_options import serve


@functools.cache
def people() -> Authority:
    """The authority of the clients."""
    return Authority()


@functools.cache
def own() -> Identity:
    """A certificate for servers."""
    return authority().issue(usages=[SERVER])


def clients_only() -> Server:
    """A server for clients with certificates, which tests share."""
    return shared("--client-ca", str(people().file), ports=(own().port,))


TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class CertificateTestCase(ServerTestCase):
    """Tests with certificates of their own."""

    def secure(
        self,
        server: Server,
        identity: Identity | None = None,
        *,
        version: ssl.TLSVersion | None = None,
        index: int = 0,
        name: str = "127.0.0.1",
        header: bytes = b"",
        source: str | None = None,
        trusted: Authority | None = None,
    ) -> Peer:
        """
        A connection with TLS, which has not read `welcome`.

        Args:
            server: the server, and `index`: which of its ports.
            identity: the certificate that it shows.
            version: the version that it speaks; the best that both know when None.
            name: whom it asks for and expects.
            header: what it says before TLS.
            source: the address that it comes from, the usual one when None.
            trusted: the authority that it trusts alone, if it is not the usual one.

        Raises:
            ssl.SSLError: the handshake failed.
        """
        raw = socket.create_connection(server.tcp_address(index), TIMEOUT, source and (source, 0))
        self.addCleanup(raw.close)
        raw.sendall(header)
        context = (trusted or authority()).context(identity, version)
        connection = context.wrap_socket(raw, server_hostname=name)
        self.addCleanup(connection.close)
        return Peer(connection)

    def greeted(self, peer: Peer) -> Peer:
        """The client, which has read `welcome`."""
        peer.welcome = peer.receive()
        self.assertEqual(peer.welcome["type"], "welcome")
        return peer

    def served(self, peer: Peer) -> None:
        """See that a client is."""
        self.assertEqual(peer.ask({"type": "echo", "content": "served"})["content"], "served")

    def serial(self, server: Server, index: int = 0, name: str = "127.0.0.1") -> int:
        """The number of the certificate that a server shows now."""
        peer = self.greeted(self.secure(server, index=index, name=name))
        assert isinstance(peer.socket, ssl.SSLSocket)
        return shown(peer.socket)

    def hang_up(self, server: Server) -> list[str]:
        """Send SIGHUP; returns what the server logs about it."""
        before = len(server.log)
        server.signal(signal.SIGHUP)
        server.wait_for(r"\] (nothing to )?read anew", since=before)
        # When it has logged the end of a connection that came later, it has said all.
        with socket.create_connection(server.address, TIMEOUT) as later:
            port = later.getsockname()[1]
        server.wait_for(rf"\] disconnected \S+:{port} ", since=before)
        return [line.partition("] ")[2] for line in server.log[before:] if "read anew" in line]


class ClientTests(CertificateTestCase):
    """`--client-ca`."""

    @property
    def server(self) -> Server:
        return self.watch(clients_only())

    def refused(self, server: Server, identity: Identity | None, version: ssl.TLSVersion) -> None:
        """See that a client gets no `welcome`, and that the log says why."""
        raw = socket.create_connection(server.tcp_address(0), TIMEOUT, (new_source(), 0))
        self.addCleanup(raw.close)
        host, port = raw.getsockname()
        received = b""
        try:
            connection = authority().context(identity, version).wrap_socket(raw, server_hostname="127.0.0.1")
            self.addCleanup(connection.close)
            # In TLS 1.3 the client hears of it only now.
            while data := connection.recv(65536):
                received += data
        except (ssl.SSLError, ConnectionResetError):
            pass
        self.assertEqual(received, b"")
        self.assertEqual(server.disconnects(f"{host}:{port}")["reason"], "handshake_failed")

    def test_welcome(self) -> None:
        """Whoever shows the right certificate is known at once, and asked for nothing."""
        server = self.server
        for version in (TLS_1_2, TLS_1_3):
            alice = self.greeted(self.secure(server, people().issue("alice"), version=version))
            bob = self.greeted(self.secure(server, people().issue("Bób, the 2nd"), version=version))
            self.assertEqual(alice.welcome["auth"], [])
            self.assertNotIn("auth_timeout", alice.welcome["limits"])
            alice.ask({"type": "broadcast", "content": 1})
            message = bob.receive()
            self.assertEqual((message["from_user"], message["from_client"]), ("alice", alice.client_id))
            bob.ask({"type": "broadcast", "content": 1})
            self.assertEqual(alice.receive()["from_user"], "Bób, the 2nd")
            server.wait_for(rf"\] connected {alice.client_id} user='alice' clients=")
            answer = plain(alice, "bob", "secret")
            self.assertEqual((answer["code"], answer["fatal"]), ("bad_message", False))
            alice.close()
            self.assertEqual(server.disconnects(alice.client_id)["user"], "'alice'")

    def test_names(self) -> None:
        """Without just one common name it is the whole subject. There may be an authority in between."""
        child = Authority(people())
        for identity, name in (
            (people().issue(), "O=Tests"),
            (people().issue("a", "b"), "CN=b,CN=a,O=Tests"),
            (people().issue("only", usages=[CLIENT]), "only"),
            (child.issue("grandchild"), "grandchild"),
        ):
            peer = self.greeted(self.secure(self.server, identity))
            self.served(peer)
            witness = self.greeted(self.secure(self.server, people().issue("witness")))
            peer.ask({"type": "broadcast", "content": 1})
            self.assertEqual(witness.receive()["from_user"], name)

    def test_no_welcome(self) -> None:
        """Without a certificate, or with a wrong one."""
        stranger = Authority()
        wrong = {
            "none": None,
            "foreign": stranger.issue("alice"),
            "expired": people().issue("alice", days=-1),
            "to come": people().issue("alice", days=366),
            "for servers": people().issue("alice", usages=[SERVER]),
            "of the server's own authority": authority().issue("alice"),
        }
        for identity in wrong.values():
            for version in (TLS_1_2, TLS_1_3):
                self.refused(self.server, identity, version)

    def test_no_way_back(self) -> None:
        """A session is not resumed: each connection shows its certificate."""
        for version in (TLS_1_2, TLS_1_3):
            context = authority().context(people().issue("alice"), version)
            session = None
            for _ in range(2):
                raw = socket.create_connection(self.server.address, TIMEOUT)
                self.addCleanup(raw.close)
                connection = context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
                self.addCleanup(connection.close)
                self.served(self.greeted(Peer(connection)))
                self.assertFalse(connection.session_reused)
                session = connection.session

    def test_behind_a_balancer(self) -> None:
        server = self.start("--client-ca", str(people().file), ports=[f"haproxy:{own().port}"])
        header = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 9999\r\n"
        peer = self.greeted(self.secure(server, people().issue("alice"), header=header))
        self.assertEqual(peer.client_id, "203.0.113.7:56324")
        server.wait_for(r"\] connected 203.0.113.7:56324 user='alice' ")

    def test_another_port_in_the_clear(self) -> None:
        """There `--auth` says who comes; on the TLS port a certificate is demanded all the same."""
        path = write(new_path(".users"), users({"carol": "secret"}))
        ports = [own().port, LOOPBACK]
        server = self.start("--client-ca", str(people().file), "--auth", f"scram:{path}", ports=ports)
        alice = self.greeted(self.secure(server, people().issue("alice")))
        self.assertEqual(alice.welcome["auth"], [])
        raw = socket.create_connection(server.tcp_address(1), TIMEOUT)
        self.addCleanup(raw.close)
        carol = self.greeted(Peer(raw))
        self.assertEqual(carol.welcome["auth"], ["scram-sha-256"])
        self.assertEqual(carol.ask({"type": "echo"})["code"], "unauthenticated")
        self.assertEqual(scram(carol, "carol", "secret")["user"], "carol")
        carol.ask({"type": "broadcast", "content": 1})
        self.assertEqual(alice.receive()["from_user"], "carol")
        self.refused(server, None, TLS_1_3)


class VersionTests(CertificateTestCase):
    """TLS 1.2 and 1.3, and nothing older, whatever the port."""

    def test_versions(self) -> None:
        place = new_path(".certificates")
        place.mkdir()
        write(place / "1.pem", own().key_pem + own().certificate_pem)
        ports = [own().port, f"tls:{place}:port=0:interface=127.0.0.1", f"haproxy:{own().port}"]
        server = self.start("--client-ca", str(people().file), ports=ports)
        alice = people().issue("alice")
        for index in range(len(ports)):
            header = b"PROXY UNKNOWN\r\n" if "haproxy" in ports[index] else b""
            for version, name in ((TLS_1_2, "TLSv1.2"), (TLS_1_3, "TLSv1.3")):
                peer = self.greeted(self.secure(server, alice, version=version, index=index, header=header))
                assert isinstance(peer.socket, ssl.SSLSocket)
                self.assertEqual(peer.socket.version(), name)
            raw = socket.create_connection(server.tcp_address(index), TIMEOUT)
            self.addCleanup(raw.close)
            raw.sendall(header)
            context = authority().context(alice)
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = ssl.TLSVersion.TLSv1_1
            error = self.assertRaises(ssl.SSLError, context.wrap_socket, raw, server_hostname="127.0.0.1")
            self.assertIn("ALERT_PROTOCOL_VERSION", str(error.reason))


class RefusalTests(CertificateTestCase):
    """What cannot be, or would be no protection, is refused at the start, in one line."""

    def test_lines(self) -> None:
        good, other = own(), authority().issue()
        ca = str(people().file)
        none = new_path(".none")
        text = write(new_path(".pem"), "no certificate")
        cut = write(new_path(".pem"), good.certificate_pem[:-40])
        broken = write(new_path(".pem"), good.certificate_pem.replace(b"MII", b"AAA", 1))
        empty = new_path(".folder")
        empty.mkdir()
        interface = "interface=127.0.0.1"
        rows = {
            ("--client-ca", ca): "--client-ca: no --port has TLS",
            ("--client-ca", ca, "--port", good.port, "--port", LOOPBACK): "asks nobody",
            ("--client-ca", str(good.key), "--port", good.port): f"{good.key}: no certificate",
            ("--client-ca", str(cut), "--port", good.port): f"{cut}: cut short",
            (
                "--port",
                f"ssl:0:{interface}:privateKey={none}:certKey={good.certificate}",
            ): f"{none}: No such file",
            ("--port", f"ssl:0:{interface}:privateKey={good.key}:certKey={text}"): f"{text}: not PEM",
            (
                "--port",
                f"ssl:0:{interface}:privateKey={good.key}:certKey={broken}",
            ): f"{broken}: a broken certificate",
            (
                "--port",
                f"ssl:0:{interface}:privateKey={other.key}:certKey={good.certificate}",
            ): "another certificate",
            ("--port", f"tls:{empty}:port=0:{interface}"): f"{empty}: no certificate",
        }
        programs = [(serve(*row), what) for row, what in rows.items()]
        for program, what in programs:
            status, output = program.ended()
            self.assertEqual(status, 1, output)
            self.assertEqual(len(output.splitlines()), 1, output)
            self.assertRegex(output, "^tcpjson: --(port|client-ca)")
            self.assertIn(what, output)


class FolderTests(CertificateTestCase):
    """`tls:FOLDER`."""

    def test_names(self) -> None:
        """Each client gets the certificate for the name that it asks for, new ones after a SIGHUP."""
        place = new_path(".certificates")
        place.mkdir()
        first = authority().issue(hosts=("first.example", "127.0.0.1"))
        second = authority().issue(hosts=("second.example", "*.second.example"))
        write(place / "1.pem", first.key_pem + first.certificate_pem)
        write(place / "2.pem", second.certificate_pem + second.key_pem)
        server = self.start(ports=[f"tls:{place}:port=0:interface=\\:\\:1"])
        host, _ = server.address
        self.assertEqual(host, "::1")
        for name, identity in (
            ("first.example", first),
            ("127.0.0.1", first),
            ("second.example", second),
            ("a.second.example", second),
        ):
            self.assertEqual(self.serial(server, name=name), identity.serial)
        third = authority().issue(hosts=("third.example",))
        self.assertRaises(ssl.SSLCertVerificationError, self.serial, server, 0, "third.example")
        write(place / "3.pem", third.key_pem + third.certificate_pem)
        self.assertEqual(len(self.hang_up(server)), 1)
        self.assertEqual(self.serial(server, name="third.example"), third.serial)
        self.assertEqual(self.serial(server, name="first.example"), first.serial)
        # One file that is broken, and all stays as it was.
        (place / "1.pem").unlink()
        write(place / "3.pem", "nothing")
        line, end = self.hang_up(server)
        self.assertIn("3.pem: not PEM", line)
        self.assertEqual(end, "read anew, but for 1 of 1")
        self.assertEqual(self.serial(server, name="third.example"), third.serial)
        self.assertEqual(self.serial(server, name="first.example"), first.serial)

    def test_clients(self) -> None:
        """`--client-ca` holds for each of the names."""
        place = new_path(".certificates")
        place.mkdir()
        for number, host in enumerate(("first.example", "second.example")):
            identity = authority().issue(hosts=(host,))
            write(place / f"{number}.pem", identity.key_pem + identity.certificate_pem)
        server = self.start(
            "--client-ca", str(people().file), ports=[f"tls:{place}:port=0:interface=\\:\\:1"]
        )
        for host in ("first.example", "second.example"):
            peer = self.greeted(self.secure(server, people().issue("alice"), name=host))
            self.assertEqual(peer.welcome["auth"], [])
            with self.assertRaises((ssl.SSLError, Ended)):
                self.greeted(self.secure(server, name=host))


class ReloadTests(CertificateTestCase):
    """SIGHUP."""

    def files(self, identity: Identity) -> tuple[Path, Path, str]:
        """Copies of a certificate and its key, to be changed, and the endpoint with them."""
        key = write(new_path(".key.pem"), identity.key_pem)
        certificate = write(new_path(".pem"), identity.certificate_pem)
        return key, certificate, f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"

    def test_a_new_certificate(self) -> None:
        """New connections get it; the old ones go on."""
        first, second = own(), authority().issue()
        key, certificate, port = self.files(first)
        server = self.start(ports=[port, f"haproxy:{port}"])
        peer = self.greeted(self.secure(server))
        half = socket.create_connection(server.address, TIMEOUT)
        self.addCleanup(half.close)
        self.assertEqual(self.serial(server), first.serial)
        write(key, second.key_pem)
        write(certificate, second.certificate_pem)
        # Nothing happens before it is told.
        self.assertEqual(self.serial(server), first.serial)
        self.assertEqual(self.hang_up(server), ["read anew: certificates, passwords and tokens"])
        self.assertEqual(self.serial(server), second.serial)
        proxied = self.secure(server, index=1, header=b"PROXY UNKNOWN\r\n")
        assert isinstance(proxied.socket, ssl.SSLSocket)
        self.assertEqual(shown(proxied.socket), second.serial)
        self.served(self.greeted(proxied))
        self.served(peer)
        peer.send({"type": "echo", "content": "x" * 500_000})
        self.assertEqual(len(peer.receive()["content"]), 500_000)
        # One that came before has begun nothing yet: it is served, too.
        late = authority().context().wrap_socket(half, server_hostname="127.0.0.1")
        self.addCleanup(late.close)
        self.served(self.greeted(Peer(late)))

    def test_under_load(self) -> None:
        """Nobody who is connected, or connects meanwhile, notices."""
        _, _, port = self.files(own())
        server = self.start(ports=[port])
        busy = self.greeted(self.secure(server))
        wrong: list[str] = []
        stop = threading.Event()

        def talk() -> None:
            number = 0
            while not stop.is_set():
                if busy.ask({"type": "echo", "id": number})["id"] != number:
                    wrong.append(str(number))
                number += 1

        def come() -> None:
            while not stop.is_set():
                try:
                    self.greeted(self.secure(server)).close()
                except Exception as error:
                    wrong.append(repr(error))

        threads = [threading.Thread(target=each, daemon=True) for each in (talk, come)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            self.assertEqual(self.hang_up(server), ["read anew: certificates, passwords and tokens"])
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
            self.assertFalse(thread.is_alive())
        self.assertEqual(wrong, [])
        self.served(busy)

    def test_broken_files(self) -> None:
        """What was read before stays in use; a line for each says so."""
        first, other = own(), authority().issue()
        key, certificate, port = self.files(first)
        ca = write(new_path(".ca.pem"), people().pem)
        names = write(new_path(".users"), users({"alice": "secret"}))
        hashes = write(new_path(".tokens"), tokens({"secret-token": "sensor"}))
        server = self.start(
            "--auth",
            f"scram:{names}",
            "--auth",
            f"token:{hashes}",
            "--allow-plain-auth",
            ports=[port, LOOPBACK],
        )
        clients = self.start("--client-ca", str(ca), ports=[port])
        alice = people().issue("alice")
        peer = self.logs_in(server)
        known = self.greeted(self.secure(clients, alice))
        kept = "not read anew, the old stays in use: "
        for path, content, what in (
            (certificate, "x", "not PEM"),
            (certificate, other.certificate_pem, "the key of another certificate"),
            (key, other.key_pem, "the key of another certificate"),
            (key, first.key_pem[:-50], "cut short"),
            (names, "alice:secret", "line 1: "),
            (hashes, "secret-token", "line 1: "),
            (ca, "x", "not PEM"),
        ):
            good = path.read_bytes()
            write(path, content)
            lines = [*self.hang_up(server), *self.hang_up(clients)]
            failures = [line for line in lines if line.startswith(kept)]
            self.assertEqual(len(failures), 2 if path in (key, certificate) else 1, lines)
            for line in failures:
                self.assertIn(f"{path}: {what}" if path != certificate or content == "x" else what, line)
                self.assertNotIn("secret", line.replace(str(folder()), ""))
            write(path, good)
        for path in (key, certificate, ca, names, hashes):
            path.rename(path.with_suffix(".away"))
        lines = self.hang_up(server)
        self.assertEqual(len([line for line in lines if "No such file" in line]), 3, lines)
        lines = self.hang_up(clients)
        self.assertEqual(len([line for line in lines if "No such file" in line]), 1, lines)
        self.assertEqual(self.serial(server), first.serial)
        self.logs_in(server)
        self.served(peer)
        self.served(known)
        self.served(self.greeted(self.secure(clients, alice)))

    def logs_in(self, server: Server) -> Peer:
        """See that the user and the token of `test_broken_files` are known; returns a client."""
        sensor = self.greeted(self.secure(server, source=new_source()))
        self.assertEqual(token(sensor, "secret-token")["user"], "sensor")
        peer = self.greeted(self.secure(server, source=new_source()))
        self.assertEqual(plain(peer, "alice", "secret")["user"], "alice")
        return peer

    def test_users(self) -> None:
        """One who was removed cannot come again, and stays while connected; one who was added can come."""
        names = write(new_path(".users"), users({"alice": "secret", "bob": "one"}))
        hashes = write(new_path(".tokens"), tokens({"secret-token": "sensor"}))
        server = self.start(
            "--auth", f"scram:{names}", "--auth", f"token:{hashes}", "--allow-plain-auth", ports=[LOOPBACK]
        )
        alice, bob = self.connect(server), self.connect(server)
        self.assertEqual(scram(alice, "alice", "secret")["user"], "alice")
        self.assertEqual(scram(bob, "bob", "one")["user"], "bob")
        write(names, users({"carol": "new", "bob": "two"}))
        write(hashes, tokens({"new-token": "sensor"}))
        self.hang_up(server)
        for log_in in (scram, plain):
            for name, password, status in (
                ("alice", "secret", "authentication_failed"),
                ("bob", "one", "authentication_failed"),
                ("bob", "two", "authenticated"),
                ("carol", "new", "authenticated"),
            ):
                answer = log_in(self.connect(server, source=new_source()), name, password)
                self.assertEqual(answer["status"], status)
        for secret, status in (("secret-token", "authentication_failed"), ("new-token", "authenticated")):
            answer = token(self.connect(server, source=new_source()), secret)
            self.assertEqual(answer["status"], status)
        for peer in (alice, bob):
            self.served(peer)

    def test_another_authority(self) -> None:
        """Whom the old one let in stays; whoever comes needs a certificate of the new one."""
        old, new = people(), Authority()
        ca = write(new_path(".ca.pem"), old.pem)
        server = self.start("--client-ca", str(ca), ports=[own().port])
        before = self.greeted(self.secure(server, old.issue("old")))
        write(ca, new.pem)
        self.hang_up(server)
        self.greeted(self.secure(server, new.issue("new")))
        with self.assertRaises((ssl.SSLError, Ended)):
            self.greeted(self.secure(server, old.issue("old")))
        self.served(before)
        write(ca, new.pem + old.pem)
        self.hang_up(server)
        for each in (old, new):
            self.greeted(self.secure(server, each.issue("both")))

    def test_nothing_to_read(self) -> None:
        """A server without such files is not ended by it."""
        server = self.start(ports=[LOOPBACK])
        peer = self.connect(server)
        self.hang_up(server)
        self.served(peer)


class ExpiryTests(CertificateTestCase):
    """Certificates that soon end."""

    def days(self, peer: Peer) -> float | None:
        """What the statistics say."""
        found: float | None = peer.stats()["details"].get("certificate_days")
        return found

    def warnings(self, server: Server) -> list[float]:
        """The days of the warnings in the log; less than none where a certificate has ended."""
        days = []
        for line in server.log:
            if match := re.search(r"#warn\] a certificate of --port ssl:.* ends in (.*) days$", line):
                days.append(float(match[1]))
            if match := re.search(r"#error\] a certificate of --port ssl:.* has ended (.*) days ago$", line):
                days.append(-float(match[1]))
        return days

    def test_soon(self) -> None:
        """With less than 14 days the log warns, at the start and after SIGHUP; the figure is always there."""
        key, certificate = new_path(".key.pem"), new_path(".pem")
        port = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"

        def put(days: float) -> None:
            identity = authority().issue(days=days)
            write(key, identity.key_pem)
            write(certificate, identity.certificate_pem)

        put(13.9)
        server = self.start(ports=[port, own().port, LOOPBACK])
        until(lambda: self.warnings(server), "a warning at the start")
        self.assertEqual(self.warnings(server), [13.9])
        raw = socket.create_connection(server.tcp_address(2), TIMEOUT)
        self.addCleanup(raw.close)
        peer = self.greeted(Peer(raw))
        self.assertEqual(self.days(peer), 13.9)
        put(14.2)
        self.hang_up(server)
        self.assertEqual(self.days(peer), 14.2)
        self.assertEqual(self.warnings(server), [13.9])
        put(3)
        self.hang_up(server)
        self.assertEqual(self.days(peer), 3.0)
        self.assertEqual(self.warnings(server), [13.9, 3.0])
        # The other port's ends in a hundred.
        put(200)
        self.hang_up(server)
        self.assertEqual(self.days(peer), 100.0)
        # It has ended: that is for the operator to know, and no reason not to serve.
        put(-1)
        self.hang_up(server)
        self.assertEqual(self.days(peer), -1.0)
        self.assertEqual(self.warnings(server), [13.9, 3.0, -1.0])

    def test_without_tls(self) -> None:
        self.assertIsNone(self.days(self.connect()))
