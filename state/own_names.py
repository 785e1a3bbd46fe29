"""Davit's own host names: no app gets one, and at an app's name nobody signs in.

A browser sends its cookies to every port of a host name (RFC 6265, 8.5). A dashboard that is opened at a name that the router
leads to an app would so hand the session of whoever signs in there to that app.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from foundation.errors import InvalidParams
from foundation.settings import settings
from state import web_sessions
from state.models import Account, App, Domain, WebSession

RESERVED = frozenset(("www", "api", "git", "registry", "dashboard", "admin", "davit"))
"""What no app is called: names below DAVIT_DOMAIN at which Davit itself may be reached."""


def of_app(name: str) -> str:
    """The host name that the app NAME has of its own."""
    return f"{name}.{settings().domain}".lower()


def host_of(header: str) -> str:
    """The host name in a Host header: without port and final dot, in lower case; empty for what is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def configured() -> frozenset[str]:
    """The names that this Davit is told it has: DAVIT_NAMES, DAVIT_API, the API's certificate, the host's own name."""
    found = {*settings().names, settings().api.reachable.host.lower(), socket.gethostname().lower()}
    pem = settings().home / "keys" / "api.pem"
    try:
        return frozenset(found | _certified(pem, pem.stat().st_mtime_ns))
    except (OSError, ValueError):
        return frozenset(found)  # the web process says what is wrong with it when it starts


@lru_cache(maxsize=4)
def _certified(pem: Path, changed: int) -> frozenset[str]:
    """The names in a certificate, as it was when it was ``changed``; ``*.example.com`` stands for none."""
    first = x509.load_pem_x509_certificates(pem.read_bytes())[0]
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(name.lower() for name in names if "*" not in name)


def is_an_apps(session: Session, host: str) -> bool:
    """Whether a host name leads to an app, or may lead to one tomorrow: there nobody's cookie may be set or taken."""
    if session.scalar(select(Domain.id).where(Domain.hostname == host)):
        return True
    label, _, above = host.partition(".")
    below = host.endswith("." + settings().domain.lower())
    return below and not (above == settings().domain.lower() and label in RESERVED) and host not in configured()


def taken(session: Session) -> list[tuple[Domain, App]]:
    """Davit's own names that an app has all the same, from before they were Davit's, and those apps."""
    query = select(Domain, App).join(App, App.id == Domain.app_id).where(Domain.hostname.in_(configured()))
    return [(domain, app) for domain, app in session.execute(query.order_by(Domain.hostname))]


def refuse(session: Session, hostname: str) -> None:
    """Before a host name becomes an app's. Whoever is signed in at it is no more: the app would be sent their cookies.

    Raises:
        InvalidParams: it is Davit's own, or an administrator is signed in at it.
    """
    administrators = select(WebSession.id).join(Account, Account.id == WebSession.account_id).where(Account.is_admin)
    if hostname in configured() or session.scalar(
        administrators.where(WebSession.host == hostname, web_sessions.in_force()).limit(1)
    ):
        raise InvalidParams(f"Domain {hostname} is a name of Davit's own, at which people sign in; choose another name.")
    session.execute(delete(WebSession).where(WebSession.host == hostname))
