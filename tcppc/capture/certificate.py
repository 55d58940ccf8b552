"""The self-signed certificates that --tls auto answers with where -C and -K are not given.

Made once and kept, so that the sensor looks the same after a restart; one ECDSA P-256 (cheap to sign with) and one
RSA-2048 for clients that know nothing newer. Nothing in them names the host or tcppc: subject, serial and dates are
drawn by lot.
"""

from __future__ import annotations

import datetime
import os
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

KINDS = ("ecdsa", "rsa")
_lots = random.SystemRandom()


class CertificateError(Exception):
    """Why there is no certificate, in one line."""


def pairs(folder: Path) -> list[tuple[str, str]]:
    """(certificate, key) files in `folder`, made where they are missing; CertificateError where that cannot be."""
    found = [(folder / f"{kind}.crt", folder / f"{kind}.key") for kind in KINDS]
    if not all(certificate.exists() and key.exists() for certificate, key in found):
        _make_all(folder)
    return [(str(certificate), str(key)) for certificate, key in found]


def _make_all(folder: Path) -> None:
    try:
        from cryptography.hazmat.primitives.asymmetric import ec, rsa
    except ImportError:
        raise CertificateError(
            "the package cryptography is missing: pip install 'tcppc[tls]', or give -C and -K"
        ) from None
    name = f"{_lots.choice(['gw', 'host', 'mail', 'ns', 'server', 'srv', 'web', 'www'])}{_lots.randrange(1, 100)}"
    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(
        seconds=_lots.randrange(86400, 86400 * 700)
    )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(folder, "ecdsa", ec.generate_private_key(ec.SECP256R1()), name, begin)
        _write(folder, "rsa", rsa.generate_private_key(65537, 2048), name, begin)
    except OSError as problem:
        raise CertificateError(
            f"{problem.filename or folder}: {problem.strerror}; capture.state_dir takes a folder to keep it in"
        ) from None


def _write(
    folder: Path, kind: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str, begin: datetime.datetime
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # The key first: a pair counts as there only with both, and each file appears whole.
    _replace(folder / f"{kind}.key", private)
    _replace(folder / f"{kind}.crt", made.public_bytes(pem))


def _replace(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 so that it is there whole or not at all."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
