"""The router's certificates: given ones as they are, else an own authority and a certificate for ``*.DOMAIN``.

``keys/tls.pem`` (certificate chain and key) is the default; every ``*.pem`` in ``keys/tls.d`` is offered to clients that
ask for its names (SNI).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.clock import now
from foundation.settings import Settings

_LIFE = timedelta(days=825)
"""The longest that Apple's systems accept for a certificate of a private authority."""
_AUTHORITY_LIFE = timedelta(days=3650)


def ensure(settings: Settings) -> tuple[Path, ...]:
    """The PEM files and directories for HAProxy, the default certificate first; made when there is none."""
    keys = settings.home / "keys"
    directory = keys / "tls.d"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    default = keys / "tls.pem"
    if not default.exists():
        _issue(keys, default, settings.domain)
    return (default, directory) if any(directory.glob("*.pem")) else (default,)


def stamp(settings: Settings) -> Sequence[tuple[str, int, int]]:
    """Changes whenever a certificate does."""
    keys = settings.home / "keys"
    files = [keys / "tls.pem", *sorted((keys / "tls.d").glob("*.pem"))] if settings.https else []
    return [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.exists()]


def _issue(keys: Path, target: Path, domain: str) -> None:
    issuer, issuer_key = _authority(keys / "ca.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    # Clients accept no wildcard directly below a top level: at *.localhost they warn, as for any unknown authority.
    names = [domain, f"*.{domain}"]
    certificate = (
        _builder(domain, issuer.subject, key, _LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    _write(target, _pem(certificate) + _pem(issuer) + _private(key))


def _authority(path: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if path.exists():
        text = path.read_bytes()
        key = serialization.load_pem_private_key(text, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate(text), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Davit local authority")])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder("Davit local authority", name, key, _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(path, _pem(certificate) + _private(key))
    return certificate, key


def _builder(common_name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, life: timedelta) -> x509.CertificateBuilder:
    start = now() - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + life)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, data: bytes) -> None:
    """Write a secret file whole or not at all, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
