"""TLS: certificates from files, read anew, and who a client is by its own."""

from __future__ import annotations

import base64
import contextlib
import gc
import itertools
import os
import ssl
import warnings
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID as EKU
from cryptography.x509.oid import NameOID
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

import tcpjson.tls
from tcpjson.proxied import ProxiedEndpoint
from tcpjson.test.hypo import given
from tcpjson.tls import ServerTLS, handshake_error, peer_identity, split_tls
from tcpjson.tlstransport import TLSEndpoint

# Certificates run from here on, whatever the day is; those that are to have ended, until just after.
START = datetime(2020, 1, 1, tzinfo=UTC)
LATER = datetime(2120, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ENDED = START + DAY
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 9999\r\n"


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def pem_of(*parts: Any) -> bytes:
    """Certificates and private keys in PEM."""
    return b"".join(
        part.public_bytes(Encoding.PEM)
        if isinstance(part, x509.Certificate)
        else part.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for part in parts
    )


def armoured(label: str, der: bytes) -> bytes:
    """PEM of what may be nothing that can be read."""
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


class Holder:
    """A key, and a certificate of it."""

    def __init__(
        self,
        subject: str | x509.Name,
        issuer: Holder | None = None,
        *,
        names: tuple[str, ...] = (),
        usage: x509.ObjectIdentifier | None = None,
        authority: bool = False,
        start: datetime = START,
        end: datetime = LATER,
        key: Any = None,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        if isinstance(subject, str):
            subject = common_name(subject)
        builder = (
            x509.CertificateBuilder(
                subject_name=subject,
                issuer_name=subject if issuer is None else issuer.certificate.subject,
                public_key=self.key.public_key(),
                not_valid_before=start,
                not_valid_after=end,
            )
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(authority, None), True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        self.certificate: x509.Certificate = builder.sign(
            self.key if issuer is None else issuer.key, SHA256()
        )

    @property
    def pem(self) -> bytes:
        return pem_of(self.certificate, self.key)


ROOT = Holder("root", authority=True)
OTHER_ROOT = Holder("other root", authority=True)
SERVER = Holder("server", ROOT, names=("localhost",))
ALICE = Holder("alice", ROOT)

# PEM without sense.
BROKEN = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
BROKEN_KEY = BROKEN.replace(b"CERTIFICATE", b"PRIVATE KEY")
# prime256v1, and a curve that nobody uses.
CURVE, ODD_CURVE = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106")


@implementer(IHandshakeListener)
class Recorder(Protocol):
    """Keeps what happens to it, and says back what it hears."""

    def __init__(self) -> None:
        self.identity: str | None = None
        self.early: str | None = None
        self.shaken = 0
        self.data = b""

    def connectionMade(self) -> None:
        self.early = peer_identity(self.transport)

    def handshakeCompleted(self) -> None:
        self.shaken += 1
        self.identity = peer_identity(self.transport)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        assert self.transport is not None
        self.transport.write(data)


class Keeper:
    """An endpoint that keeps the factory it is given."""

    factory: Any

    def listen(self, factory: Any) -> Deferred[Any]:
        self.factory = factory
        return succeed("the port")


def trust(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let a client's context trust our root."""
    context.load_verify_locations(cadata=pem_of(ROOT.certificate).decode())
    # From Python 3.13 on, more is asked of certificates than ours have.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def client_context() -> SSL.Context:
    """A client's of pyOpenSSL, which alone can ask for a renegotiation; it verifies nothing."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    return context


def shuttle(*ends: SSL.Connection) -> None:
    """Let each end go on, and give the other what it has to say."""
    for end, other in (ends, ends[::-1]):
        with contextlib.suppress(SSL.Error):
            end.do_handshake()
        with contextlib.suppress(SSL.Error):
            end.recv(1000)
        with contextlib.suppress(SSL.WantReadError):
            other.bio_write(end.bio_read(1 << 16))


RSA_KEY = rsa.generate_private_key(65537, 2048)


def ffdhe2048() -> bytes:
    """The group of RFC 7919, which is made of the digits of e."""
    term, digits = 1 << 2100, 0
    for number in itertools.count(1):
        digits += term
        term //= number
        if not term:
            break
    prime = (1 << 2048) - (1 << 1984) + ((digits >> (2100 - 1918)) + 560316 << 64) - 1
    numbers = b"\x02\x82\x01\x01\0" + prime.to_bytes(256, "big") + b"\x02\x01\x02"
    body = base64.encodebytes(b"\x30\x82" + len(numbers).to_bytes(2, "big") + numbers)
    return b"-----BEGIN DH PARAMETERS-----\n" + body + b"-----END DH PARAMETERS-----\n"


class Meeting:
    """
    A client with TLS, and what an endpoint made for it, in memory.

    Args:
        factory: builds the server's side.
        context: of the client.
        name: of the server, as the client asks for it.
        session: that the client wants to resume.
    """

    def __init__(
        self,
        factory: Any,
        context: ssl.SSLContext,
        name: str | None = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.7", 1))
        self.server = factory.buildProtocol(None)
        self.server.makeConnection(self.transport)
        self.inner = self.server
        while isinstance(self.inner, ProtocolWrapper):
            self.inner = self.inner.wrappedProtocol
        self._clock: Clock = factory.clock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.client = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        #: Why the client gave up.
        self.error = ""
        self._shaken = False
        self.heard = b""

    def step(self) -> bytes:
        """What the client sends next."""
        try:
            if not self._shaken:
                self.client.do_handshake()
                self._shaken = True
            while data := self.client.read(1000):
                self.heard += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = str(error.reason)
        return self._outgoing.read()

    def take(self) -> bytes:
        """What the server has sent."""
        self._clock.advance(0)
        data: bytes = self.transport.value()
        self.transport.clear()
        self._incoming.write(data)
        return data

    def run(self) -> Meeting:
        """Let both go on until neither has anything to say."""
        while (data := self.step()) or self.take():
            if data:
                self.server.dataReceived(data)
        return self

    def say(self, data: bytes) -> bytes:
        """Send bytes through TLS; returns what comes back."""
        self.heard = b""
        self.client.write(data)
        self.run()
        return self.heard

    @property
    def served(self) -> bool:
        """Whether the two can talk."""
        return not self.transport.disconnecting and self.inner.shaken == 1 and self.say(b"hello") == b"hello"

    @property
    def seen(self) -> str:
        """The name of the certificate that the client was shown."""
        der = self.client.getpeercert(True)
        assert der is not None
        [name] = x509.load_der_x509_certificate(der).subject
        return str(name.value)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.clock = Clock()

    def write(self, name: str, *parts: Any) -> str:
        """A file, of bytes or of certificates and keys; returns its path."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(part if isinstance(part, bytes) else pem_of(part) for part in parts))
        return str(path)

    def files(self, holder: Holder = SERVER, **options: str) -> str:
        """A description of an endpoint with the holder's files, which are written."""
        key = self.write("key.pem", holder.key)
        certificate = self.write("cert.pem", holder.certificate)
        more = "".join(f":{name}={value}" for name, value in options.items())
        return f"ssl:9999:privateKey={key}:certKey={certificate}{more}"

    def creator(self, *authorities: Holder, **options: str) -> ServerTLS:
        """A server's TLS, which asks for clients of these authorities, if any."""
        client_ca = None
        if authorities:
            client_ca = self.write("ca.pem", *(authority.certificate for authority in authorities))
        return split_tls(self.files(SERVER, **options), client_ca)[1]

    def factory(self, creator: ServerTLS) -> Any:
        """The factory that an endpoint with TLS listens with."""
        keeper: Any = Keeper()
        listening = TLSEndpoint(creator, keeper, self.clock).listen(Factory.forProtocol(Recorder))
        self.assertEqual(self.successResultOf(listening), "the port")
        keeper.factory.clock = self.clock
        return keeper.factory

    def context(self, holder: Holder | None = None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client's, which shows the certificate of the holder."""
        context = trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if holder is not None:
            context.load_cert_chain(self.write("client.pem", holder.pem))
        return context

    def meet(
        self,
        creator: ServerTLS,
        holder: Holder | None = None,
        version: ssl.TLSVersion | None = None,
        name: str | None = "localhost",
    ) -> Meeting:
        """A connection, its handshake done as far as it goes."""
        context = self.context(holder, version)
        context.check_hostname = False
        return Meeting(self.factory(creator), context, name).run()

    def meet_blindly(self, creator: ServerTLS, name: str | None = "localhost") -> Meeting:
        """A client that takes any certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return Meeting(self.factory(creator), context, name).run()

    def refusal(self, description: str, client_ca: str | None = None) -> str:
        """The one line that says why there is no server, without the folder."""
        error = self.assertRaises(ValueError, split_tls, description, client_ca)
        line = str(error)
        self.assertEqual(line.splitlines(), [line])
        return line.replace(f"{self.folder}/", "")


class ConnectionTests(Case):
    """What is agreed with a client."""

    def test_both_versions(self) -> None:
        creator = self.creator()
        for version in VERSIONS:
            meeting = self.meet(creator, version=version)
            self.assertTrue(meeting.served, version)
            self.assertEqual(meeting.seen, "server")
            self.assertIsNone(meeting.client.compression())
            self.assertIsNone(meeting.inner.identity)

    def test_no_lower_version(self) -> None:
        """Not even where OpenSSL is told to allow anything."""
        self.patch(tcpjson.tls, "_CIPHERS", b"ALL:@SECLEVEL=0")
        context = self.context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            # Python knows, too, that nobody should.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        for creator in (self.creator(), self.creator(sslmethod="SSLv23_METHOD")):
            meeting = Meeting(self.factory(creator), context).run()
            self.assertEqual(meeting.error, "TLSV1_ALERT_PROTOCOL_VERSION")
            self.assertTrue(meeting.transport.disconnecting)
            self.assertEqual(meeting.inner.shaken, 0)

    def test_only_with_forward_secrecy(self) -> None:
        for ciphers, common in (
            ("ECDHE+AESGCM", True),
            ("ECDHE+CHACHA20", True),
            ("DHE+AESGCM", False),
            ("RSA+AESGCM", False),
            ("ECDHE+SHA256", False),
        ):
            rsa_server = Holder("server", ROOT, names=("localhost",), key=RSA_KEY)
            for holder in (SERVER, rsa_server):
                creator = split_tls(self.files(holder))[1]
                context = self.context(version=ssl.TLSVersion.TLSv1_2)
                with contextlib.suppress(ssl.SSLError):
                    context.set_ciphers(ciphers)
                    self.assertEqual(Meeting(self.factory(creator), context).run().served, common, ciphers)

    def test_parameters_for_diffie_hellman(self) -> None:
        rsa_server = Holder("server", ROOT, names=("localhost",), key=RSA_KEY)
        context = self.context(version=ssl.TLSVersion.TLSv1_2)
        context.set_ciphers("DHE+AESGCM")
        parameters = self.write("dh.pem", ffdhe2048())
        creator = split_tls(self.files(rsa_server, dhParameters=parameters))[1]
        self.assertTrue(Meeting(self.factory(creator), context).run().served)

    def test_a_method_of_one_version(self) -> None:
        self.assertEqual(self.meet(self.creator(sslmethod="TLSv1_2_METHOD")).client.version(), "TLSv1.2")
        for method in ("TLS_METHOD", "TLS_SERVER_METHOD", "SSLv23_METHOD"):
            self.assertEqual(self.meet(self.creator(sslmethod=method)).client.version(), "TLSv1.3")

    def test_no_renegotiation(self) -> None:
        """A client that asks for one more handshake gets none, however often it asks."""
        connection = self.creator().serverConnectionForTLS(None)
        connection.set_accept_state()
        client = SSL.Connection(client_context())
        client.set_connect_state()
        for _ in range(3):
            shuttle(client, connection)
        self.assertEqual(client.get_state_string(), connection.get_state_string())
        before = connection.get_finished()
        client.renegotiate()
        for _ in range(3):
            shuttle(client, connection)
        self.assertEqual(connection.get_finished(), before)
        self.assertEqual(connection.total_renegotiations(), 0)

    def test_nothing_is_logged_by_the_factory(self) -> None:
        self.assertFalse(self.factory(self.creator()).noisy)


class ClientCertificateTests(Case):
    """Who may come in, and as whom."""

    def test_a_certificate_of_the_authority(self) -> None:
        creator = self.creator(ROOT)
        for version in VERSIONS:
            meeting = self.meet(creator, ALICE, version)
            self.assertTrue(meeting.served, version)
            self.assertEqual(meeting.inner.identity, "alice")

    def test_several_authorities(self) -> None:
        creator = self.creator(OTHER_ROOT, ROOT)
        for holder in (ALICE, Holder("bob", OTHER_ROOT)):
            self.assertTrue(self.meet(creator, holder).served)

    def test_an_authority_without_the_one_above_it(self) -> None:
        between = Holder("between", ROOT, authority=True)
        creator = self.creator(between)
        self.assertEqual(self.meet(creator, Holder("bob", between)).inner.identity, "bob")
        self.assertFalse(self.meet(creator, ALICE).served)

    def test_what_is_refused(self) -> None:
        """Whatever the client believes of the handshake, the protocol never hears of its end."""
        creator = self.creator(ROOT)
        for holder, old, new in (
            (None, "SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV13_ALERT_CERTIFICATE_REQUIRED"),
            (Holder("eve", OTHER_ROOT), "TLSV1_ALERT_UNKNOWN_CA", None),
            (Holder("eve"), "TLSV1_ALERT_UNKNOWN_CA", None),
            (Holder("eve", ALICE), "TLSV1_ALERT_UNKNOWN_CA", None),
            (Holder("eve", ROOT, end=ENDED), "SSLV3_ALERT_CERTIFICATE_EXPIRED", None),
            (Holder("eve", ROOT, start=LATER - DAY), "SSLV3_ALERT_BAD_CERTIFICATE", None),
            (Holder("eve", ROOT, usage=EKU.SERVER_AUTH), "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", None),
        ):
            for version, reason in zip(VERSIONS, (old, new or old), strict=True):
                meeting = self.meet(creator, holder, version)
                self.assertEqual(meeting.error, reason)
                self.assertEqual((meeting.inner.shaken, meeting.inner.data), (0, b""))
                self.assertTrue(meeting.transport.disconnecting)
                self.assertIsNone(peer_identity(meeting.inner.transport))
        self.assertTrue(self.meet(creator, Holder("bob", ROOT, usage=EKU.CLIENT_AUTH)).served)

    def test_clients_learn_which_authorities(self) -> None:
        client = SSL.Connection(client_context())
        client.set_connect_state()
        connection = self.creator(ROOT, OTHER_ROOT).serverConnectionForTLS(None)
        connection.set_accept_state()
        shuttle(client, connection)
        shuttle(client, connection)
        names = [name.commonName for name in client.get_client_ca_list()]
        self.assertEqual(names, ["root", "other root"])

    def test_not_before_the_proof(self) -> None:
        """Until the client has shown that the key is its own, it is nobody."""
        for version in VERSIONS:
            meeting = Meeting(self.factory(self.creator(ROOT)), self.context(ALICE, version), "localhost")
            meeting.server.dataReceived(meeting.step())
            meeting.take()
            flight = meeting.step()
            while flight:
                self.assertIsNone(peer_identity(meeting.inner.transport))
                length = 5 + int.from_bytes(flight[3:5], "big")
                record, flight = flight[:length], flight[length:]
                meeting.server.dataReceived(record)
            self.assertEqual(peer_identity(meeting.inner.transport), "alice")
            self.assertIsNone(meeting.inner.early)

    def test_not_without_verification(self) -> None:
        """A certificate that nobody has verified says nothing."""

        @implementer(IOpenSSLClientConnectionCreator)
        class Careless:
            def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
                return SSL.Connection(client_context())

        factory = TLSMemoryBIOFactory(Careless(), True, Factory.forProtocol(Recorder), self.clock)
        client: Any = factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 1))
        there = StringTransport()
        client.makeConnection(there)
        server = self.factory(self.creator()).buildProtocol(None)
        here = StringTransport()
        server.makeConnection(here)
        for _ in range(3):
            for transport, other in ((there, server), (here, client)):
                if data := transport.value():
                    transport.clear()
                    other.dataReceived(data)
        self.assertEqual(client.wrappedProtocol.shaken, 1)
        self.assertIsNotNone(client.getHandle().get_peer_certificate(as_cryptography=True))
        self.assertIsNone(peer_identity(client))

    def test_none_where_none_is_demanded(self) -> None:
        """As by a creator of somebody else, which asks for a certificate, and does without."""

        class Lenient(ServerTLS):
            def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
                connection = super().serverConnectionForTLS(protocol)
                connection.set_verify(SSL.VERIFY_PEER)
                return connection

        strict = self.creator(ROOT)
        strict.__class__ = Lenient
        for holder, name in ((None, None), (ALICE, "alice")):
            meeting = self.meet(strict, holder)
            self.assertTrue(meeting.served)
            self.assertEqual(meeting.inner.identity, name)

    def test_not_without_tls(self) -> None:
        self.assertIsNone(peer_identity(StringTransport()))
        self.assertIsNone(peer_identity(None))

    def test_the_name(self) -> None:
        creator = self.creator(ROOT)
        for attributes, name in (
            ([(NameOID.COMMON_NAME, "O=x,CN=\n\x1b \N{SNOWMAN}")], "O=x,CN=\n\x1b \N{SNOWMAN}"),
            ([(NameOID.ORGANIZATION_NAME, "here"), (NameOID.COMMON_NAME, "carol")], "carol"),
            ([(NameOID.ORGANIZATION_NAME, "here"), (NameOID.COUNTRY_NAME, "FR")], "C=FR,O=here"),
            ([(NameOID.COMMON_NAME, "a"), (NameOID.COMMON_NAME, "b")], "CN=b,CN=a"),
            ([(NameOID.COMMON_NAME, ""), (NameOID.ORGANIZATION_NAME, "here")], "O=here,CN="),
            ([(NameOID.COMMON_NAME, "x" * 256)], "x" * 256),
            ([(NameOID.COMMON_NAME, "x" * 257)], None),
            ([], None),
        ):
            with warnings.catch_warnings():
                # No name should be empty.
                warnings.simplefilter("ignore", UserWarning)
                subject = x509.Name([x509.NameAttribute(*each, _validate=False) for each in attributes])
                holder = Holder(subject, ROOT)
                meeting = self.meet(creator, holder)
            fingerprint = f"sha256:{holder.certificate.fingerprint(SHA256()).hex()}"
            self.assertEqual(meeting.inner.identity, fingerprint if name is None else name)

    def test_what_is_said_of_a_handshake_that_failed(self) -> None:
        error = SSL.Error([("SSL routines", "", "http request")])
        self.assertEqual(handshake_error(error), "http_request")
        for other in (SSL.Error(), SSL.Error([]), SSL.ZeroReturnError(), ValueError("x"), None):
            self.assertEqual(handshake_error(other), "")

    def test_behind_a_proxy(self) -> None:
        """Whether its header comes before TLS or within."""
        creator = self.creator(ROOT)
        keeper: Any = Keeper()
        endpoint = TLSEndpoint(creator, ProxiedEndpoint(keeper), self.clock)
        self.successResultOf(endpoint.listen(Factory.forProtocol(Recorder)))
        self.assertFalse(keeper.factory.noisy)
        keeper.factory.clock = self.clock
        before = Meeting(keeper.factory, self.context(ALICE))
        before.server.dataReceived(V1)
        self.assertTrue(before.run().served)
        self.assertEqual(before.inner.identity, "alice")
        self.assertEqual(before.inner.transport.getPeer(), IPv4Address("TCP", "192.0.2.1", 4711))

        inside = ProxiedEndpoint(TLSEndpoint(creator, keeper, self.clock))
        self.successResultOf(inside.listen(Factory.forProtocol(Recorder)))
        keeper.factory.clock = self.clock
        within = Meeting(keeper.factory, self.context(ALICE)).run()
        self.assertEqual(within.say(V1 + b"hello"), b"hello")
        self.assertEqual(peer_identity(within.inner.transport), "alice")

    def test_no_way_around_by_an_old_session(self) -> None:
        for authorities in ((), (ROOT,)):
            creator = self.creator(*authorities)
            factory = self.factory(creator)
            for version in VERSIONS:
                context = self.context(ALICE, version)
                first = Meeting(factory, context).run()
                self.assertTrue(first.served)
                again = Meeting(factory, context, session=first.client.session).run()
                self.assertTrue(again.served)
                self.assertFalse(again.client.session_reused, version)
                self.assertEqual(again.inner.identity, "alice" if authorities else None)

    def test_no_way_around_by_a_session_of_before(self) -> None:
        for version in VERSIONS:
            creator = self.creator(ROOT)
            factory = self.factory(creator)
            context = self.context(ALICE, version)
            first = Meeting(factory, context).run()
            self.assertTrue(first.served)
            self.write("ca.pem", OTHER_ROOT.certificate)
            creator.reload()
            again = Meeting(factory, context, session=first.client.session).run()
            self.assertEqual(again.error, "TLSV1_ALERT_UNKNOWN_CA")
            self.assertEqual(again.inner.shaken, 0)
            # Who was let in before stays.
            self.assertEqual(first.say(b"still here"), b"still here")


class ReloadTests(Case):
    """Files that are read anew."""

    def test_new_files_for_new_connections(self) -> None:
        creator = self.creator(ROOT)
        self.assertEqual(creator.expires, LATER)
        old = self.meet(creator, ALICE)
        self.files(Holder("new server", ROOT, names=("localhost",), end=LATER - DAY))
        self.assertEqual(self.meet(creator, ALICE).seen, "server")
        creator.reload()
        self.assertEqual(creator.expires, LATER - DAY)
        self.assertEqual(self.meet(creator, ALICE).seen, "new server")
        self.assertTrue(old.served)
        self.assertEqual(old.inner.identity, "alice")

    def test_broken_files_change_nothing(self) -> None:
        creator = self.creator(ROOT, dhParameters=self.write("dh.pem", ffdhe2048()))
        old = self.meet(creator, ALICE)
        good = {
            name: (self.folder / name).read_bytes() for name in ("key.pem", "cert.pem", "ca.pem", "dh.pem")
        }
        # All but what breaks is new: nothing of it may come into use.
        new = Holder("new server", ROOT, names=("localhost",), end=LATER - DAY)
        for broken in good:
            self.files(new)
            self.write("ca.pem", OTHER_ROOT.certificate)
            for content in (None, b"", b"nonsense", good[broken][:100]):
                if content is None:
                    (self.folder / broken).unlink()
                else:
                    self.write(broken, content)
                error = self.assertRaises(ValueError, creator.reload)
                self.assertIn(broken, str(error))
                self.assertEqual(self.meet(creator, ALICE).seen, "server")
                self.assertEqual(creator.expires, LATER)
            for name, data in good.items():
                self.write(name, data)
            creator.reload()
        self.assertTrue(old.served)

    def test_the_old_is_let_go(self) -> None:
        """Reading anew leaves nothing behind."""
        creator = self.creator(ROOT)
        contexts = weakref.ref(creator.serverConnectionForTLS(None).get_context())
        self.assertIsNotNone(contexts())
        creator.reload()
        gc.collect()
        self.assertIsNone(contexts())


class FileTests(Case):
    """What files may hold, and the one line that says what is wrong with them."""

    def test_one_file(self) -> None:
        other = BROKEN.replace(b"CERTIFICATE", b"EC PARAMETERS")
        path = self.write("both.pem", b"Bag Attributes\n", other, SERVER.key, SERVER.certificate)
        creator = split_tls(f"ssl:9999:privateKey={path}")[1]
        self.assertTrue(self.meet(creator).served)

    def test_by_position(self) -> None:
        key, certificate = self.write("k", SERVER.key), self.write("c", SERVER.certificate)
        below, creator = split_tls(f"ssl:9999:{key}:{certificate}:TLS_METHOD:127.0.0.1:7")
        self.assertEqual(below, "tcp:9999:interface=127.0.0.1:backlog=7")
        self.assertTrue(self.meet(creator).served)

    def test_what_cannot_be_used(self) -> None:
        key = self.write("k", SERVER.key)
        certificate = self.write("c", SERVER.certificate)
        secret = self.write(
            "secret",
            SERVER.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
        )
        exchange = Holder("exchange", ROOT, key=X25519PrivateKey.generate())
        odd = x509.load_der_x509_certificate(
            SERVER.certificate.public_bytes(Encoding.DER).replace(CURVE, ODD_CURVE)
        )
        private = SERVER.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        odd_key = armoured("PRIVATE KEY", private.replace(CURVE, ODD_CURVE))
        der = SERVER.certificate.public_bytes(Encoding.DER)
        version = armoured("CERTIFICATE", der.replace(b"\xa0\x03\2\1\2", b"\xa0\x03\2\1\5"))
        names = armoured("CERTIFICATE", der.replace(b"\x82\x09localhost", b"\x82\x0alocalhost"))
        for wrong, line in (
            (f"privateKey={key}x:certKey={certificate}", "kx: No such file or directory"),
            (f"privateKey={key}:certKey={certificate}x", "cx: No such file or directory"),
            (f"privateKey={self.folder}:certKey={certificate}", f"{self.folder}: Is a directory"),
            (f"privateKey={self.write('a', b'nonsense')}:certKey={certificate}", "a: not PEM"),
            (f"privateKey={self.write('b', pem_of(SERVER.key)[:-9])}:certKey={certificate}", "b: cut short"),
            (f"privateKey={self.write('d', BROKEN_KEY)}:certKey={certificate}", "d: a broken private key"),
            (f"privateKey={key}:certKey={self.write('e', BROKEN)}", "e: a broken certificate"),
            (f"privateKey={secret}:certKey={certificate}", "secret: the key is encrypted"),
            (f"privateKey={certificate}:certKey={certificate}", "c: no key in it"),
            (f"privateKey={key}:certKey={key}", "k: no certificate in it"),
            (f"privateKey={key}", "k: no certificate in it"),
            (
                f"privateKey={self.write('f', ALICE.key)}:certKey={certificate}",
                "f: the key of another certificate",
            ),
            (
                f"privateKey={key}:certKey={certificate}:extraCertChain={key}y",
                "ky: No such file or directory",
            ),
            (f"privateKey={key}:certKey={certificate}:dhParameters={key}z", "kz: no such file"),
            (f"privateKey={key}:certKey={certificate}:dhParameters={key}", "k: passed a null parameter"),
            (f"privateKey={self.write('g', exchange.pem)}", "g: unknown certificate type"),
            (f"privateKey={key}:certKey={self.write('h', odd)}", "h: a broken certificate"),
            (f"privateKey={self.write('i', odd_key)}:certKey={certificate}", "i: a broken private key"),
            (f"privateKey={key}:certKey={self.write('j', version)}", "j: a broken certificate"),
            (f"privateKey={key}:certKey={self.write('l', names)}", "l: a broken certificate"),
            (
                f"privateKey={key}:certKey={certificate}:sslmethod=TLSv1_1_METHOD",
                "sslmethod=TLSv1_1_METHOD is no method of TLS 1.2 or higher",
            ),
            (f"certkey={certificate}", "got an unexpected keyword argument 'certkey'"),
        ):
            self.assertEqual(self.refusal(f"ssl:9999:{wrong}"), line)
        self.assertEqual(self.refusal("ssl"), "missing a required argument: 'port'")

    def test_a_clients_authority_that_cannot_be_used(self) -> None:
        files = self.files()
        ended = Holder("old root", authority=True, end=ENDED)
        for path, line in (
            (self.write("none") + "x", "nonex: No such file or directory"),
            (self.write("empty"), "empty: not PEM"),
            (self.write("key", ROOT.key), "key: no certificate in it"),
            (self.write("ended", ended.certificate), "ended: expired on 2020-01-02"),
        ):
            self.assertEqual(self.refusal(files, path), line)
        both = self.write("both", ended.certificate, ROOT.certificate)
        self.assertTrue(self.meet(split_tls(files, both)[1], ALICE).served)
        # It is the moment given that counts.
        path = str(self.folder / "ended")
        split_tls(files, path, wall=lambda: ENDED.timestamp() - 1)
        self.assertRaises(ValueError, split_tls, files, path, wall=ENDED.timestamp)

    def test_the_chain(self) -> None:
        """The authorities in between are sent in the right order, from whichever file; the root is not."""
        above = Holder("above", ROOT, authority=True)
        between = Holder("between", above, authority=True)
        renewed = Holder("between", above, authority=True)
        foreign = Holder("between", above, authority=True, key=X25519PrivateKey.generate())
        shorter = Holder("between", above, authority=True, key=between.key, end=LATER - DAY)
        server = Holder("server", between, names=("localhost",))
        mixed = [
            holder.certificate for holder in (above, ROOT, renewed, foreign, OTHER_ROOT, shorter, between)
        ]
        key = self.write("key.pem", server.key)
        for first, second in (([], mixed), (mixed, [])):
            certificate = self.write("cert.pem", server.certificate, *first)
            description = f"ssl:9999:privateKey={key}:certKey={certificate}"
            if second:
                description += f":extraCertChain={self.write('chain.pem', *second)}"
            client = SSL.Connection(client_context())
            client.set_connect_state()
            connection = split_tls(description)[1].serverConnectionForTLS(None)
            connection.set_accept_state()
            shuttle(client, connection)
            shuttle(client, connection)
            chain = client.get_peer_cert_chain(as_cryptography=True)
            self.assertEqual(chain, [holder.certificate for holder in (server, between, above)])

    def test_an_authority_with_an_unknown_key(self) -> None:
        between = Holder("between", ROOT, authority=True)
        der = between.certificate.public_bytes(Encoding.DER).replace(CURVE, ODD_CURVE)
        odd = x509.load_der_x509_certificate(der)
        path = self.write("all.pem", SERVER.key, Holder("server", between, key=SERVER.key).certificate, odd)
        self.assertEqual(self.refusal(f"ssl:9999:privateKey={path}"), "all.pem: a broken certificate")

    def test_authorities_that_issue_each_other(self) -> None:
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
        one = Holder("one", Holder("two", key=keys[1]), authority=True, key=keys[0])
        two = Holder("two", Holder("one", key=keys[0]), authority=True, key=keys[1])
        server = Holder("server", one, names=("localhost",))
        path = self.write("all.pem", server.key, *(each.certificate for each in (server, one, two)))
        creator = split_tls(f"ssl:9999:privateKey={path}")[1]
        self.assertTrue(self.meet_blindly(creator).served)

    def test_an_expired_certificate_is_served(self) -> None:
        """It is for the one who runs the server to see `expires`."""
        creator = split_tls(self.files(Holder("server", ROOT, end=ENDED)))[1]
        self.assertEqual(creator.expires, ENDED)
        self.assertEqual(self.meet_blindly(creator).seen, "server")


class FolderTests(Case):
    """A folder of files: which certificate is for whom."""

    def folder_of(self, *holders: Holder) -> str:
        for number, holder in enumerate(holders):
            self.write(f"{number}.pem", holder.pem)
        return f"tls:{self.folder}:port=9999"

    def shown(self, creator: ServerTLS, name: str | None) -> str:
        return self.meet_blindly(creator, name).seen

    def test_by_name(self) -> None:
        description = self.folder_of(
            Holder("first", ROOT, names=("a.example", "c.example")),
            Holder("second", ROOT, names=("B.Example", "*.b.example")),
            Holder("third", ROOT, names=("x.b.example",), end=LATER - DAY),
            Holder("fourth", ROOT),
        )
        creator = split_tls(description)[1]
        for name, shown in (
            ("a.example", "first"),
            ("X.B.EXAMPLE", "third"),
            ("c.example", "first"),
            ("b.example", "second"),
            ("y.b.example", "second"),
            ("x.b.example", "third"),
            ("z.y.b.example", "first"),
            ("example", "first"),
            ("elsewhere.example", "first"),
            (None, "first"),
        ):
            self.assertEqual(self.shown(creator, name), shown, name)
        self.assertEqual(creator.expires, LATER - DAY)

    def test_clients_are_asked_whatever_the_name(self) -> None:
        holders = [Holder(name, ROOT, names=(name,)) for name in ("a.example", "b.example")]
        description = self.folder_of(*holders)
        (self.folder / "ca").mkdir()
        creator = split_tls(description, self.write("ca/ca", ROOT.certificate))[1]
        factory = self.factory(creator)
        for name in ("a.example", "b.example"):
            for version in VERSIONS:
                context = self.context(ALICE, version)
                meeting = Meeting(factory, context, name).run()
                self.assertEqual((meeting.seen, meeting.inner.identity), (name, "alice"))
                again = Meeting(factory, context, name, meeting.client.session).run()
                self.assertEqual((again.client.session_reused, again.inner.identity), (False, "alice"))
                eve = self.meet(creator, Holder("eve", OTHER_ROOT), version, name)
                self.assertEqual((eve.inner.shaken, eve.error), (0, "TLSV1_ALERT_UNKNOWN_CA"))

    def test_of_two_the_one_that_lasts(self) -> None:
        names = ("a.example",)
        old = Holder("old", ROOT, names=names, end=ENDED)
        renewed = Holder("renewed", ROOT, names=names, key=old.key)
        other = Holder("other", ROOT, names=names, end=LATER - DAY)
        creator = split_tls(self.folder_of(old, renewed, other))[1]
        for name in ("a.example", None):
            self.assertEqual(self.shown(creator, name), "renewed")
        self.assertEqual(creator.expires, LATER)

    def test_keys_and_chains_in_files_of_their_own(self) -> None:
        """As in the folders of certbot; and the root does no harm."""
        between = Holder("between", ROOT, authority=True)
        for name in ("a.example", "b.example"):
            holder = Holder(name, between, names=(name,))
            self.write(f"{name}/cert.pem", holder.certificate)
            self.write(f"{name}/chain.pem", between.certificate, ROOT.certificate)
            self.write(f"{name}/fullchain.pem", holder.certificate, between.certificate)
            self.write(f"{name}/privkey.pem", holder.key)
            self.write(f"{name}/README", b"not a certificate")
        factory = self.factory(split_tls(f"tls:{self.folder}")[1])
        for name in ("a.example", "b.example"):
            self.assertTrue(Meeting(factory, self.context(), name).run().served)

    def test_no_reading_for_a_peer(self) -> None:
        creator = split_tls(self.folder_of(SERVER))[1]
        for path in self.folder.iterdir():
            path.unlink()
        self.assertEqual(self.shown(creator, "unknown.example"), "server")
        error = self.assertRaises(ValueError, creator.reload)
        self.assertEqual(str(error), f"{self.folder}: no certificate with its key in a file *.pem")
        self.assertEqual(self.shown(creator, "localhost"), "server")

    def test_the_working_folder_changes(self) -> None:
        """As that of a server in the background may, before it reads its files anew."""
        self.write("a.pem", SERVER.pem)
        self.write("ca", ROOT.certificate)
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.folder)
        creators = [
            split_tls("tls:.")[1],
            split_tls("ssl:1:privateKey=a.pem:extraCertChain=ca", "ca")[1],
            split_tls("ssl:1:privateKey=a.pem:certKey=a.pem")[1],
        ]
        os.chdir(before)
        for creator in creators:
            creator.reload()

    def test_what_cannot_be_used(self) -> None:
        self.write("a.pem", ALICE.certificate)
        nothing = "no certificate with its key in a file *.pem"
        self.assertEqual(self.refusal(f"tls:{self.folder}"), f"{self.folder}: {nothing}")
        self.assertEqual(self.refusal(f"tls:{self.folder}/none"), f"none: {nothing}")
        self.write("b.pem", SERVER.pem)
        self.write("c.pem", ROOT.key)
        self.assertEqual(self.refusal(f"tls:{self.folder}"), "c.pem: the key of another certificate")
        self.write("c.pem", b"nonsense")
        self.assertEqual(self.refusal(f"tls:{self.folder}"), "c.pem: not PEM")
        self.assertEqual(self.refusal("tls"), "missing a required argument: 'path'")


class DescriptionTests(Case):
    """The endpoint below."""

    def listening(self, description: str) -> tuple[int, int, str]:
        """Port, backlog and interface at which an endpoint listens."""
        reactor = MemoryReactor()
        serverFromString(reactor, description).listen(Factory())
        [(port, _, backlog, interface)] = reactor.tcpServers
        return port, backlog, interface

    def test_what_is_below(self) -> None:
        key = self.write("both.pem", SERVER.pem)
        for description, below in (
            (f"ssl:9999:privateKey={key}", "tcp:9999"),
            (f"ssl:privateKey={key}:port=1", "tcp:1"),
            (f"ssl:1:interface=127.0.0.1:privateKey={key}:backlog=7", "tcp:1:interface=127.0.0.1:backlog=7"),
            (rf"ssl:1:{key}:interface=\:\:1", r"tcp:1:interface=\:\:1"),
            (rf"ssl:1\=2\:3:{key}", r"tcp:1\=2\:3"),
            (f"tls:{self.folder}", r"tcp6:443:interface=\:\:"),
            (
                rf"tls:{self.folder}:port=9999:interface=\:\:1:backlog=9",
                r"tcp6:9999:backlog=9:interface=\:\:1",
            ),
            (f"tls:{self.folder}:9999:9:127.0.0.1", "tcp6:9999:backlog=9:interface=127.0.0.1"),
        ):
            self.assertEqual(split_tls(description)[0], below)
        self.assertEqual(self.listening(below), (9999, 9, "127.0.0.1"))

    @given(st.lists(st.sampled_from(["\\:", "\\\\", "\\=", "\\a", "=", "a", "%", " "])))
    def test_as_twisted_understands_it(self, pieces: list[str]) -> None:
        interface = "".join(pieces)
        key = self.write("both.pem", SERVER.pem)
        below, _ = split_tls(f"ssl:1:interface={interface}:backlog=2:privateKey={key}")
        self.assertEqual(self.listening(below), self.listening(f"tcp:1:interface={interface}:backlog=2"))

    @given(st.text("\\:=a.% \N{SNOWMAN}", min_size=1).filter(lambda name: name not in (".", "..")))
    def test_any_name_of_a_file(self, name: str) -> None:
        path = self.write(name, SERVER.pem)
        folder = self.write(f"{name}x/a.pem", SERVER.pem)
        quoted = quoteStringArgument(path)
        self.assertEqual(split_tls(f"ssl:1:privateKey={quoted}")[0], "tcp:1")
        self.assertEqual(split_tls("ssl:1:" + quoted.replace("=", "\\="))[0], "tcp:1")
        quoted = quoteStringArgument(str(Path(folder).parent))
        self.assertEqual(split_tls(f"tls:path={quoted}:port=1:interface=")[0], "tcp6:1:interface=")

    def test_a_backslash_at_the_end(self) -> None:
        self.assertEqual(self.refusal("tls:/none\\"), "/none: no certificate with its key in a file *.pem")
