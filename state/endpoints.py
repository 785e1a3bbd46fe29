"""SNI endpoints: an app's own certificates, and the domains that are served with them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import Conflict, InvalidParams, NotFound
from state import audit, notify, vault
from state.models import Account, App, Domain, SniEndpoint

LIMIT = 100
"""Endpoints of one app."""
CHAIN_LIMIT = 64 << 10
_CHAIN_LONGEST = 10
_WORDS = ("tyrannosaurus", "stegosaurus", "iguanodon", "diplodocus", "pteranodon", "triceratops", "ankylosaurus", "velociraptor")


@dataclass(frozen=True)
class Certificate:
    """What a certificate says.

    Attributes:
        names: host names it is for, the subject's name when it lists none; ``*.example.com`` may be among them.
        self_signed: whether it is its own issuer.
    """

    names: tuple[str, ...]
    subject: str
    issuer: str
    starts_at: datetime
    ends_at: datetime
    self_signed: bool

    def covers(self, hostname: str) -> bool:
        """Whether a client that asks for ``hostname`` accepts the names (RFC 9525)."""
        _, _, above = hostname.partition(".")
        return hostname in self.names or f"*.{above}" in self.names


def describe(chain: str) -> Certificate:
    """What the first certificate of a chain says."""
    first = x509.load_pem_x509_certificates(chain.encode())[0]
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = [str(name.value) for name in first.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return Certificate(
        tuple(name.lower() for name in names), _text(first.subject), _text(first.issuer), first.not_valid_before_utc,
        first.not_valid_after_utc, first.issuer == first.subject,
    )  # fmt: skip


def _text(name: x509.Name) -> str:
    return "".join(f"/{part.rfc4514_attribute_name}={part.value!s}" for part in name)


def check(chain: str, key: str) -> str:
    """A certificate chain and its key as they are kept: the chain from the server's certificate up, then nothing else.

    Raises:
        InvalidParams: one cannot be read, they do not belong together, the chain is broken, or it has ended.
    """
    certificates = _read_chain(chain)
    private = _read_key(key)
    if _public(private.public_key()) != _public(certificates[0].public_key()):
        matching = [one for one in certificates if _public(one.public_key()) == _public(private.public_key())]
        if not matching:
            raise InvalidParams("Field private_key does not belong to the certificate: their public keys differ.")
        certificates = [matching[0], *(one for one in certificates if one is not matching[0])]
    certificates = _in_order(certificates)
    first = certificates[0]
    if first.not_valid_after_utc <= now():
        ended = f"{first.not_valid_after_utc:%Y-%m-%d}"
        raise InvalidParams(f"Field certificate_chain: the certificate ended on {ended}; get a new one.")
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in certificates)


def _read_chain(chain: str) -> list[x509.Certificate]:
    if len(chain) > CHAIN_LIMIT:
        raise InvalidParams(f"Field certificate_chain may have at most {CHAIN_LIMIT >> 10} KB.")
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
        for one in certificates:
            one.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidParams(
            "Field certificate_chain holds no PEM certificates that can be read: it begins with -----BEGIN CERTIFICATE-----."
        ) from None
    if len(certificates) > _CHAIN_LONGEST:
        raise InvalidParams(f"Field certificate_chain has more than {_CHAIN_LONGEST} certificates.")
    return certificates


def _read_key(key: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    try:
        private = serialization.load_pem_private_key(key.encode(), None)
    except TypeError:
        raise InvalidParams("Field private_key is encrypted with a passphrase; give it without one.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidParams("Field private_key is no PEM private key that can be read.") from None
    if not isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise InvalidParams("Field private_key must be an RSA, ECDSA or Ed25519 key.")
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size < 2048:
        raise InvalidParams(f"Field private_key is an RSA key of {private.key_size} bits; clients want at least 2048.")
    return private


def _public(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _in_order(certificates: list[x509.Certificate]) -> list[x509.Certificate]:
    """The first certificate and then each one's issuer; uploads have them in any order.

    Raises:
        InvalidParams: one signs none of the others, or a signature is false.
    """
    ordered, rest = certificates[:1], certificates[1:]
    while rest:
        issuer = next((one for one in rest if one.subject == ordered[-1].issuer), None)
        if issuer is None:
            raise InvalidParams(
                f"Field certificate_chain is broken: no certificate in it is the issuer of {_text(ordered[-1].subject)}, "
                f"which is {_text(ordered[-1].issuer)}."
            )
        try:
            ordered[-1].verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise InvalidParams(
                f"Field certificate_chain is broken: {_text(ordered[-1].subject)} is not signed by {_text(issuer.subject)}."
            ) from None
        ordered.append(issuer)
        rest.remove(issuer)
    return ordered


def all_of(session: Session, app: App) -> list[SniEndpoint]:
    """The app's endpoints, by name."""
    return list(session.scalars(select(SniEndpoint).where(SniEndpoint.app_id == app.id).order_by(SniEndpoint.name)))


def find(session: Session, app: App, identity: str) -> SniEndpoint:
    """The app's endpoint of this name or id.

    Raises:
        NotFound: it has none.
    """
    row = session.scalar(
        select(SniEndpoint).where(SniEndpoint.app_id == app.id, or_(SniEndpoint.name == identity, SniEndpoint.id == identity))
    )
    if row is None:
        raise NotFound("Couldn't find that SNI endpoint.")
    return row


def domains_of(session: Session, row: SniEndpoint) -> list[Domain]:
    """The domains that are served with it."""
    return list(session.scalars(select(Domain).where(Domain.sni_endpoint_id == row.id).order_by(Domain.hostname)))


def domains_by_endpoint(session: Session, app: App) -> dict[str, list[Domain]]:
    """As :func:`domains_of` for all of the app's endpoints by one query, by the endpoint's id."""
    served: dict[str, list[Domain]] = {}
    query = select(Domain).where(Domain.app_id == app.id, Domain.sni_endpoint_id.is_not(None)).order_by(Domain.hostname)
    for domain in session.scalars(query):
        served.setdefault(str(domain.sni_endpoint_id), []).append(domain)
    return served


def add(session: Session, account: Account, app: App, chain: str, key: str) -> SniEndpoint:
    """Keep a certificate for the app's domains.

    Raises:
        InvalidParams: certificate or key cannot be used (see :func:`check`), or there are too many.
    """
    present = {row.name for row in all_of(session, app)}
    if len(present) >= LIMIT:
        raise InvalidParams(f"An app has at most {LIMIT} SNI endpoints; remove one first.")
    whole = check(chain, key)
    drawn = iter(lambda: f"{random.choice(_WORDS)}-{random.randint(10000, 99999)}", None)
    name = next(name for name in drawn if name not in present)
    row = SniEndpoint(app_id=app.id, name=name, certificate_chain=whole, private_key=vault.seal({"key": key}))
    session.add(row)
    session.flush()
    audit.record(session, account, "certs:add", app, endpoint=name)
    notify.router(session, app.id)
    return row


def update(session: Session, account: Account, app: App, row: SniEndpoint, chain: str, key: str) -> SniEndpoint:
    """Put another certificate in the endpoint's place; its domains stay bound to it.

    Raises:
        InvalidParams: certificate or key cannot be used, or a domain that is bound to it is not among the new names.
    """
    whole = check(chain, key)
    for domain in domains_of(session, row):
        _must_cover(whole, domain.hostname)
    row.certificate_chain, row.private_key = whole, vault.seal({"key": key})
    audit.record(session, account, "certs:update", app, endpoint=row.name)
    notify.router(session, app.id)
    return row


def remove(session: Session, account: Account, app: App, row: SniEndpoint) -> SniEndpoint:
    """Forget a certificate.

    Raises:
        Conflict: a domain is served with it.
    """
    bound = domains_of(session, row)
    if bound:
        host = bound[0].hostname
        raise Conflict(f"The SNI endpoint {row.name} still serves {host}; give that domain another one first.", status=422)
    session.delete(row)
    audit.record(session, account, "certs:remove", app, endpoint=row.name)
    notify.router(session, app.id)
    return row


def bind(session: Session, account: Account, app: App, domain: Domain, identity: str | None) -> Domain:
    """Serve a domain with an endpoint's certificate, or (None) with Davit's own.

    Raises:
        NotFound: there is no such endpoint.
        InvalidParams: its certificate is not for that domain, or the domain is the app's own name.
    """
    if domain.kind == "heroku":
        raise InvalidParams(f"{domain.hostname} is the app's own name, which is served with Davit's certificate.")
    row = find(session, app, identity) if identity else None
    if row:
        _must_cover(row.certificate_chain, domain.hostname)
    if domain.sni_endpoint == row:
        return domain
    domain.sni_endpoint = row
    session.flush()
    audit.record(session, account, "domains:update", app, hostname=domain.hostname, endpoint=row.name if row else None)
    notify.router(session, app.id)
    return domain


def _must_cover(chain: str, hostname: str) -> None:
    said = describe(chain)
    if not said.covers(hostname):
        raise InvalidParams(f"The certificate is not for {hostname}; it is for {', '.join(said.names[:20]) or 'no host name'}.")
