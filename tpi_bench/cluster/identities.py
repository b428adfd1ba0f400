"""Keys and certificates of a run (`network.tls=true`), made by the package `cryptography`.

Each device's agent makes one, and so does the launcher; the key stays where it was made.
"""

from __future__ import annotations

import datetime
import importlib.util
from dataclasses import dataclass, field

# A board without a clock of its own may think that it is 1970. A certificate is known by every one
# of its bytes and its key is gone after the run, so its dates say nothing.
_FROM = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Identity:
    """A private key and the certificate that shows who has it (PEM)."""

    key: str = field(repr=False)
    certificate: str


def can_encrypt() -> bool:
    """Whether the package is installed here."""
    return importlib.util.find_spec("cryptography") is not None


def make_identity(rank: int) -> Identity:
    """Of one rank, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tpi_bench rank {rank}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    own = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(own.decode(), certificate.public_bytes(pem).decode())
