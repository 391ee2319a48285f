"""TLS: certificates that are read anew while the server serves, and who a client's certificate says it is."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from os.path import abspath
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from OpenSSL.crypto import Error as OpenSSLError
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from tcpjson.transports import layers

# The `sslmethod=` of Twisted's `ssl:` that do not go below TLS 1.2 here, and the highest version of each.
_METHODS = {
    "TLS_METHOD": 0,
    "TLS_SERVER_METHOD": 0,
    "SSLv23_METHOD": 0,
    "TLSv1_2_METHOD": SSL.TLS1_2_VERSION,
}
# For TLS 1.2; all with forward secrecy. The last two come to use with parameters for them only.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20"

# Characters of a user's name.
_MAX_NAME = 256

_PEM = re.compile(rb"-----BEGIN ([^\n]+?)-----.*?-----END \1-----", re.DOTALL)
# What OpenSSL says of a connection whose handshake is done (SSL_state_string_long).
_DONE = b"SSL negotiation finished successfully"


@dataclass(frozen=True)
class Credential:
    """What a server proves who it is with."""

    #: The file of the certificate.
    path: Path
    certificate: x509.Certificate
    #: The DNS names of the certificate, in lower case; `*.` stands for any first label.
    names: Sequence[bytes]
    #: The authorities in between, from the issuer of the certificate on.
    chain: Sequence[x509.Certificate]
    key: Any


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """
    Makes the server's side of TLS connections, 1.2 or higher, that cannot be resumed or renegotiated.

    Args:
        load: reads the credentials, at least one. The first serves clients that name no server, or an
            unknown one; of several for the same name, the one that expires last serves it.
        client_ca: a PEM file of authorities; each client must show a certificate that one of them issued.
        dh_parameters: a PEM file of parameters for Diffie-Hellman without elliptic curves.
        highest: the highest version of TLS, as OpenSSL numbers it; 0 for any.
        wall: tells the time of day in seconds since 1970.

    Raises:
        ValueError: with one line, if any file cannot be used.
    """

    def __init__(
        self,
        load: Callable[[], Sequence[Credential]],
        client_ca: str | None = None,
        *,
        dh_parameters: str | None = None,
        highest: int = 0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._load = load
        self._client_ca = None if client_ca is None else abspath(client_ca)
        self._dh_parameters = None if dh_parameters is None else abspath(dh_parameters)
        self._highest = highest
        self._wall = wall
        self.reload()

    def reload(self) -> None:
        """
        Read all files anew, for the connections to come.

        Raises:
            ValueError: with one line; what was read before stays in use.
        """
        credentials = self._load()
        authorities = self._authorities()
        by_name = {name: each for each in sorted(credentials, key=_end) for name in each.names}
        default = credentials[0]
        if default.names:
            default = by_name[default.names[0]]
        served = {id(each): each for each in (default, *by_name.values())}
        contexts = {key: self._context(each, authorities) for key, each in served.items()}
        usual = contexts[id(default)]
        named = {name: contexts[id(each)] for name, each in by_name.items()}

        def choose(connection: SSL.Connection) -> None:
            name = (connection.get_servername() or b"").lower()
            wildcard = b"*." + name.partition(b".")[2]
            # Certificate and key change; all else is the same in each of the contexts.
            connection.set_context(named.get(name) or named.get(wildcard) or usual)

        if len(contexts) > 1:
            # Needs memory that is both written to and executed, which systemd may forbid.
            usual.set_tlsext_servername_callback(choose)
        self._usual = usual
        self._expires = min(map(_end, served.values()))

    @property
    def expires(self) -> datetime:
        """When the first of the certificates in use expires, in UTC."""
        return self._expires

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        return SSL.Connection(self._usual)

    def _authorities(self) -> Sequence[x509.Certificate]:
        if self._client_ca is None:
            return ()
        authorities = list(_read([self._client_ca]).certificates)
        if not authorities:
            raise ValueError(f"{self._client_ca}: no certificate in it")
        end = max(authority.not_valid_after_utc for authority in authorities)
        if end.timestamp() <= self._wall():
            raise ValueError(f"{self._client_ca}: expired on {end:%Y-%m-%d}")
        return authorities

    def _context(self, credential: Credential, authorities: Sequence[x509.Certificate]) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_max_proto_version(self._highest)
        # A client could come back with its session, and its certificate would not be looked at again: not at
        # its end, nor by the authorities of today. So there are no sessions. The tickets that OpenSSL sends
        # in TLS 1.3 all the same lead to nothing.
        context.set_options(SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # An idle connection keeps no buffers for records (benchmarks/memory.py).
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_cipher_list(_CIPHERS)
        file: object = credential.path
        try:
            context.use_certificate(credential.certificate)
            context.use_privatekey(credential.key)
            for certificate in credential.chain:
                context.add_extra_chain_cert(certificate)
            if self._dh_parameters is not None:
                file = self._dh_parameters
                context.load_tmp_dh(self._dh_parameters)
        except (SSL.Error, OpenSSLError) as error:
            # The last reason is the plainest.
            raise ValueError(f"{file}: {error.args[0][-1][2]}") from None
        if authorities:
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
            store = context.get_cert_store()
            assert store is not None
            # An authority may stand in the file without the one above it.
            store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
            try:
                for authority in authorities:
                    store.add_cert(X509.from_cryptography(authority))
                    context.add_client_ca(authority)
            except (SSL.Error, OpenSSLError):
                raise ValueError(f"{self._client_ca}: a broken certificate") from None
        return context


def _end(credential: Credential) -> datetime:
    return credential.certificate.not_valid_after_utc


# Files.


@dataclass(frozen=True)
class _Found:
    """Certificates, and private keys by their public keys, each with the file it is in."""

    certificates: dict[x509.Certificate, Path]
    keys: dict[bytes, tuple[Any, Path]]


def _read(paths: Iterable[str | Path]) -> _Found:
    """What is in PEM files."""
    found = _Found({}, {})
    for path in map(Path, paths):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        blocks = list(_PEM.finditer(text))
        if len(blocks) != text.count(b"-----BEGIN "):
            raise ValueError(f"{path}: cut short")
        if not blocks:
            raise ValueError(f"{path}: not PEM")
        for block in blocks:
            kind = block[1].decode(errors="replace")
            try:
                if kind == "CERTIFICATE":
                    found.certificates[x509.load_pem_x509_certificate(block[0])] = path
                elif kind.endswith("PRIVATE KEY"):
                    key = load_pem_private_key(block[0], None)
                    found.keys[_public_bytes(key)] = key, path
            except TypeError:
                raise ValueError(f"{path}: the key is encrypted") from None
            except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
                raise ValueError(f"{path}: a broken {kind.lower()}") from None
    return found


def _credentials(found: _Found) -> list[Credential]:
    """A credential for each certificate to which there is a key."""
    credentials = []
    for certificate, path in found.certificates.items():
        try:
            key, _ = found.keys.get(_public_bytes(certificate), (None, None))
            names = _names(certificate)
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"{path}: a broken certificate") from None
        if key is not None:
            chain = _chain(certificate, found.certificates)
            credentials.append(Credential(path, certificate, names, chain, key))
    used = {_public_bytes(credential.key) for credential in credentials}
    for public, (_, path) in found.keys.items():
        if public not in used:
            raise ValueError(f"{path}: the key of another certificate")
    return credentials


def _public_bytes(holder: Any) -> bytes:
    """The public key of a certificate, or that to a private key."""
    public: bytes = holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return public


def _names(certificate: x509.Certificate) -> list[bytes]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower().encode() for name in extension.value.get_values_for_type(x509.DNSName)]


def _chain(certificate: x509.Certificate, others: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """The issuers of a certificate, without the root, which a peer must know for itself."""
    chain: list[x509.Certificate] = []
    last = certificate
    while issuers := [
        other
        for other in others
        if other.issuer != other.subject and other not in (certificate, *chain) and _issued(last, other)
    ]:
        last = max(issuers, key=lambda issuer: issuer.not_valid_after_utc)
        chain.append(last)
    return chain


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


def _load_files(key: str, certificate: str, chain: str | None) -> list[Credential]:
    found = _read([certificate] if chain is None else [certificate, chain])
    if not found.certificates:
        raise ValueError(f"{certificate}: no certificate in it")
    keys = _read([key]).keys
    if not keys:
        raise ValueError(f"{key}: no key in it")
    return _credentials(_Found(found.certificates, keys))


def _load_folder(folder: str) -> list[Credential]:
    credentials = _credentials(_read(sorted(Path(folder).rglob("*.pem"))))
    if not credentials:
        raise ValueError(f"{folder}: no certificate with its key in a file *.pem")
    return credentials


# Descriptions.


def split_tls(
    description: str, client_ca: str | None = None, *, wall: Callable[[], float] = time.time
) -> tuple[str, ServerTLS]:
    """
    Take apart a description of an endpoint that begins with `ssl:` or `tls:`, in the syntax of Twisted.

    Returns:
        the description of the endpoint below, and what makes its TLS.

    Raises:
        ValueError: with one line.
    """
    (kind, *arguments), options = _parse(description)
    parser = _PARSERS[kind]
    try:
        bound = inspect.signature(parser).bind(*arguments, **options)
    except TypeError as error:
        raise ValueError(str(error)) from None
    below, make = parser(*bound.args, **bound.kwargs)
    return below, make(client_ca, wall=wall)


def _parse(description: str) -> tuple[list[str], dict[str, str]]:
    """The arguments by position and by name."""
    parts = [[""]]
    characters = iter(description)
    for character in characters:
        if character == ":":
            parts.append([""])
        elif character == "=" and len(parts[-1]) == 1:
            parts[-1].append("")
        else:
            parts[-1][-1] += next(characters, "") if character == "\\" else character
    return [part[0] for part in parts if len(part) == 1], {
        part[0]: part[1] for part in parts if len(part) == 2
    }


def _join(kind: str, port: str, **options: str | None) -> str:
    parts = ["systemd"] if port == _SYSTEMD else [kind, quoteStringArgument(port).replace("=", r"\=")]
    parts += [f"{name}={quoteStringArgument(value)}" for name, value in options.items() if value is not None]
    return ":".join(parts)


# The parameters have the names and the order that Twisted gave them; behind those are the ones of `systemd:`,
# which can be the port. Paths are made absolute: the server may change its working folder before it reads the
# files anew.

_SYSTEMD = "systemd"


def _ssl(
    port: str,
    privateKey: str = "server.pem",
    certKey: str | None = None,
    sslmethod: str = "TLS_METHOD",
    interface: str | None = None,
    backlog: str | None = None,
    extraCertChain: str | None = None,
    dhParameters: str | None = None,
    domain: str | None = None,
    index: str | None = None,
    name: str | None = None,
) -> tuple[str, Callable[..., ServerTLS]]:
    if sslmethod not in _METHODS:
        raise ValueError(f"sslmethod={sslmethod} is no method of TLS 1.2 or higher")
    chain = None if extraCertChain is None else abspath(extraCertChain)
    load = partial(_load_files, abspath(privateKey), abspath(certKey or privateKey), chain)
    make = partial(ServerTLS, load, dh_parameters=dhParameters, highest=_METHODS[sslmethod])
    socket = {"domain": domain, "index": index, "name": name}
    return _join("tcp", port, interface=interface, backlog=backlog, **socket), make


def _tls(
    path: str,
    port: str = "443",
    backlog: str | None = None,
    interface: str | None = None,
    domain: str | None = None,
    index: str | None = None,
    name: str | None = None,
) -> tuple[str, Callable[..., ServerTLS]]:
    make = partial(ServerTLS, partial(_load_folder, abspath(path)))
    if interface is None and port != _SYSTEMD:
        interface = "::"
    socket = {"domain": domain, "index": index, "name": name}
    return _join("tcp6", port, backlog=backlog, interface=interface, **socket), make


_PARSERS: dict[str, Callable[..., tuple[str, Callable[..., ServerTLS]]]] = {"ssl": _ssl, "tls": _tls}


# Clients.


def handshake_error(error: BaseException | None) -> str:
    """What OpenSSL says of a handshake that failed, as one word; empty for other errors."""
    if isinstance(error, SSL.Error) and error.args and error.args[0]:
        return "_".join(str(error.args[0][-1][2]).split())
    return ""


def peer_identity(transport: object) -> str | None:
    """
    The subject of the certificate that the peer of a transport has shown and that was verified, or None.

    Its common name, if it has just one; else the whole subject, as text of RFC 4514; the fingerprint of the
    certificate where that is empty or longer than 256 characters. It may hold any characters that the
    authority let pass.
    """
    for layer in layers(transport):
        if isinstance(layer, TLSMemoryBIOProtocol):
            return _identity(layer.getHandle())
    return None


def _identity(connection: SSL.Connection) -> str | None:
    # Before the end of the handshake the certificate is there, but not the proof that it is the peer's own.
    if connection.get_state_string() != _DONE or not connection.get_verify_mode() & SSL.VERIFY_PEER:
        return None
    certificate = connection.get_peer_certificate(as_cryptography=True)
    if certificate is None:
        return None
    subject = certificate.subject
    names = [str(attribute.value) for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    name = names[0] if len(names) == 1 and names[0] else subject.rfc4514_string()
    # It stands in every message that is relayed.
    if 0 < len(name) <= _MAX_NAME:
        return name
    return f"sha256:{certificate.fingerprint(SHA256()).hex()}"
