"""Who clients are: files of users and tokens, logins, certificates of clients and of servers."""

from __future__ import annotations

import functools
import itertools
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from scramp import ScramClient  # type: ignore[import-untyped]  # it has no types

from tcpjson.verifiers import Verifier, hash_token, secret_line
from tests.harness import TIMEOUT, Message, Peer, Server, folder

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

HERE = ("127.0.0.1", "localhost")

_numbers = itertools.count(1)
_sources = itertools.count(1)


def new_source() -> str:
    """An address of this machine's that no client came from before: nobody's failures count for it."""
    number = next(_sources)
    return f"127.1.{number // 250}.{number % 250 + 2}"


def new_path(suffix: str) -> Path:
    """The path of a file that is not there yet."""
    return folder() / f"{next(_numbers)}{suffix}"


def write(path: Path, content: str | bytes) -> Path:
    """Write a file at once, that only its owner may read; returns its path."""
    data = content.encode() if isinstance(content, str) else content
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.chmod(0o600)
    new.replace(path)
    return path


def users(passwords: Mapping[str, str], iterations: int = 4096) -> str:
    """The content of a file for `--auth scram:`."""
    lines = [secret_line(os.urandom)]
    for name, password in passwords.items():
        lines.append(f"{name}:{Verifier.make(password, iterations, os.urandom).format()}\n")
    return "".join(lines)


def tokens(names: Mapping[str, str]) -> str:
    """The content of a file for `--auth token:`, from names by their tokens."""
    return "".join(f"{name}:{hash_token(token).hex()}\n" for token, name in names.items())


# Logins.


class Scram:
    """The client's side of SCRAM-SHA-256, by the package scramp."""

    def __init__(self, username: str, password: str) -> None:
        self._client = ScramClient(["SCRAM-SHA-256"], username, password)

    def first(self) -> Message:
        """The message that begins it."""
        data = self._client.get_client_first()
        return {"type": "auth", "mechanism": "scram-sha-256", "data": data}

    def final(self, challenge: Message) -> Message:
        """The message with the proof."""
        self._client.set_server_first(challenge["data"])
        return {"type": "auth", "mechanism": "scram-sha-256", "data": self._client.get_client_final()}

    def check(self, result: Message) -> None:
        """
        See that the server knew the password, too.

        Raises:
            ScramException: it did not.
        """
        self._client.set_server_final(result["data"])


def scram(peer: Peer, username: str, password: str) -> Message:
    """Log in by `scram-sha-256`; returns `auth_result`. What the server proves is checked."""
    login = Scram(username, password)
    challenge = peer.ask(login.first())
    if challenge["type"] != "auth_challenge":
        return challenge
    result = peer.ask(login.final(challenge))
    if result.get("status") == "authenticated":
        login.check(result)
    return result


def plain_message(username: str, password: str) -> Message:
    """The message of a login by `plain`."""
    return {"type": "auth", "mechanism": "plain", "username": username, "password": password}


def plain(peer: Peer, username: str, password: str) -> Message:
    """Log in by `plain`; returns the answer."""
    return peer.ask(plain_message(username, password))


def token_message(token: str) -> Message:
    """The message of a login by `token`."""
    return {"type": "auth", "mechanism": "token", "token": token}


def token(peer: Peer, value: str) -> Message:
    """Log in by `token`; returns the answer."""
    return peer.ask(token_message(value))


def dial_unix(server: Server) -> Peer:
    """A client of the Unix socket that a server listens on; it has read `welcome`."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT)
    connection.connect(server.addresses[0])
    peer = Peer(connection)
    peer.welcome = peer.receive()
    return peer


# Certificates.


class Identity:
    """A certificate with its key, each in a file."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, chain: bytes) -> None:
        self.serial = certificate.serial_number
        self.key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.certificate_pem = certificate.public_bytes(Encoding.PEM) + chain

    @functools.cached_property
    def key(self) -> Path:
        """The file of the key."""
        return write(new_path(".key.pem"), self.key_pem)

    @functools.cached_property
    def certificate(self) -> Path:
        """The file of the certificate, and of those of the authorities in between."""
        return write(new_path(".pem"), self.certificate_pem)

    @property
    def port(self) -> str:
        """The endpoint of a server with this certificate."""
        return f"ssl:0:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"


class Authority:
    """A certificate authority that issues what it is asked for."""

    def __init__(self, parent: Authority | None = None) -> None:
        self._made: trustme.CA = trustme.CA() if parent is None else parent._made.create_child_ca()
        self.pem = self._made.cert_pem.bytes()
        self._chain = b"" if parent is None else self.pem
        self._certificate = x509.load_pem_x509_certificate(self.pem)
        key = load_pem_private_key(self._made.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    @functools.cached_property
    def file(self) -> Path:
        """Its certificate, for `--client-ca`."""
        return write(new_path(".ca.pem"), self.pem)

    def issue(
        self,
        *names: str,
        hosts: Sequence[str] = HERE,
        usages: Sequence[x509.ObjectIdentifier] = (SERVER, CLIENT),
        days: float = 100,
    ) -> Identity:
        """
        A certificate.

        Args:
            names: the common names of its subject.
            hosts: the names and addresses that it is for.
            usages: what it may be used for.
            days: from now to its end; it began a year before that.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        end = datetime.now(UTC) + timedelta(days=days)
        organization = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests")]
        common = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
        alternatives: list[x509.GeneralName] = [
            x509.IPAddress(ip_address(host)) if host[0].isdecimal() else x509.DNSName(host) for host in hosts
        ]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(organization + common))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=365))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Identity(certificate, key, self._chain)

    def context(
        self, identity: Identity | None = None, version: ssl.TLSVersion | None = None
    ) -> ssl.SSLContext:
        """What a client needs that trusts this authority alone, shows a certificate, speaks one version."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem.decode())
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


@functools.cache
def authority() -> Authority:
    """The authority of this process's servers."""
    return Authority()


def shown(connection: ssl.SSLSocket) -> int:
    """The serial number of the certificate that the server showed."""
    certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number
