"""A certificate authority of one's own: a key pair in a file, and certificates for the names of one server."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation import disk
from foundation.clock import now

LIFE = timedelta(days=825)
"""The longest that Apple's systems accept for a certificate of a private authority."""
RENEWAL = timedelta(days=60)
"""A certificate that ends sooner is made anew."""
_AUTHORITY_LIFE = timedelta(days=3650)
NAME = "Davit local authority"


class Authority:
    """The authority in a file; made when there is none. Of several processes that make it at once, one's counts.

    Args:
        path: certificate and key, PEM (0600).
    """

    def __init__(self, path: Path) -> None:
        if not disk.is_written(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            disk.write_first(path, _make())
        text = path.read_bytes()
        key = serialization.load_pem_private_key(text, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self.certificate = x509.load_pem_x509_certificate(text)

    @property
    def pem(self) -> bytes:
        """The certificate alone: what clients are told to trust."""
        return _pem(self.certificate)

    def ensure(self, path: Path, names: Sequence[str]) -> None:
        """Have a certificate for ``names`` (host names and IP addresses, the first is its subject) in the file ``path``.

        A file that somebody else's authority signed stays as it is: its owner put it there.
        """
        if disk.is_written(path):
            try:
                present = x509.load_pem_x509_certificate(path.read_bytes())
            except ValueError:
                return  # whoever reads it will say so
            ours = present.issuer == self.certificate.subject
            if not ours or (_names(present) >= set(names) and present.not_valid_after_utc - RENEWAL > now()):
                return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        disk.write(path, self.issue(names))

    def issue(self, names: Sequence[str]) -> bytes:
        """A new certificate for ``names``, this authority's certificate, and the new key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(names[0], self.certificate.subject, key, LIFE)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate) + self.pem + _private(key)


def _make() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    # A number makes each authority's name its own: TLS libraries look authorities up by name.
    name = x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, NAME),
        x509.NameAttribute(NameOID.SERIAL_NUMBER, os.urandom(8).hex()),
    ])  # fmt: skip
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key, _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate) + _private(key)


def _builder(
    subject: str | x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, life: timedelta
) -> x509.CertificateBuilder:
    if isinstance(subject, str):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])])
    start = now() - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + life)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
