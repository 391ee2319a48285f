"""A certificate for a server of our own."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import msgspec

_NAME = "127.0.0.1"
_DAY = datetime.timedelta(days=1)


class Certificate(msgspec.Struct, frozen=True):
    """What a server over TLS and its clients need: the server's endpoint, and the file of the authority."""

    port: str
    authority: str


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate for 127.0.0.1 that vouches for itself, in files of a folder; it lasts a day."""
    # pyOpenSSL, which the server needs for TLS, brings it along.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(_NAME))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    # What an endpoint's string takes for its own.
    key_text, certificate_text = (
        str(file).replace("\\", "\\\\").replace(":", "\\:") for file in (key_file, certificate_file)
    )
    port = f"ssl:0:interface={_NAME}:privateKey={key_text}:certKey={certificate_text}"
    return Certificate(port, str(certificate_file))
