"""Custom domains."""

from __future__ import annotations

import re
from dataclasses import replace

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from foundation.errors import Conflict, InvalidParams, NotFound
from foundation.outbound import Place
from foundation.settings import settings
from state import audit, notify, own_names
from state.db import ask, unless_taken
from state.models import Account, App, Domain

LIMIT = 1000
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOSTNAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})+")


def all_of(session: Session, app: App) -> list[Domain]:
    """The app's domains, its own name first."""
    return list(session.scalars(select(Domain).where(Domain.app_id == app.id).order_by(Domain.kind.desc(), Domain.created_at)))


def find(session: Session, app: App, identity: str) -> Domain:
    """The app's domain with this host name, however it is spelt, or id.

    Raises:
        NotFound: it has none.
    """
    row = session.scalar(
        select(Domain).where(Domain.app_id == app.id, or_(Domain.hostname == normal(identity), Domain.id == identity))
    )
    if row is None:
        raise NotFound("Couldn't find that domain name.")
    return row


def normal(hostname: str) -> str:
    """A host name as it is kept: in small letters, in ASCII (IDNA), without the root's dot; nothing where it cannot be one."""
    text = hostname.strip().rstrip(".").lower()
    try:
        return text if text.isascii() else text.encode("idna").decode()
    except UnicodeError:
        return ""


def add(session: Session, account: Account, app: App, hostname: object) -> Domain:
    """Route a host name to the app.

    Raises:
        InvalidParams: not a host name, a name below Davit's own domain, one of Davit's own, or too many.
        Conflict: some app has it already.
    """
    text = normal(hostname) if isinstance(hostname, str) else ""
    if text.startswith("*.") and _HOSTNAME.fullmatch(text[2:]):
        raise InvalidParams(f"Domain {text} is a wildcard, and Davit routes exact host names: add each name that the app serves.")
    if not _HOSTNAME.fullmatch(text) or text.replace(".", "").isdigit():
        raise InvalidParams(f"Domain {hostname!r} is not valid: give a full host name such as www.example.com.")
    own = settings().domain.lower()
    if text == own or text.endswith("." + own):
        raise InvalidParams(
            f"Domain {text} is below {own}, whose names Davit gives to apps; rename the app instead."
        )
    if (session.scalar(select(func.count()).where(Domain.app_id == app.id)) or 0) > LIMIT:
        raise InvalidParams(f"An app has at most {LIMIT} domains.")
    if session.scalar(select(Domain.id).where(Domain.hostname == text)):
        raise Conflict(_taken(text), id="invalid_params", status=422)
    own_names.refuse(session, text)
    row = Domain(app_id=app.id, hostname=text)
    session.add(row)
    with unless_taken(_taken(text)):
        session.flush()
    audit.record(session, account, "domains:add", app, hostname=text)
    notify.announce(session, app.id, f"Add domain {text} by user {account.email}")
    notify.router(session, app.id)
    return row


def marked(place: Place) -> Place:
    """The place, marked when its host is an app's custom domain: Davit calls none that leads to itself.

    Raises:
        Unavailable: the database does not answer.
    """
    found = ask("SELECT id FROM domains WHERE hostname = :hostname", hostname=place.host.rstrip(".").lower())
    return replace(place, ours=bool(found))


def _taken(hostname: str) -> str:
    return f"{hostname} is currently in use by another app."


def follow(session: Session) -> None:
    """Every app's own name is below DAVIT_DOMAIN as it is now; what it was when the app was made, no app is reached at any more.

    An app that has its new name as a custom domain already keeps that one's certificate. One whose new name is another app's
    custom domain keeps its old name until that is removed (:func:`claimed`), and so does one whose new name is Davit's own
    (:func:`withheld`): browsers would send it the cookies of who signs in there.
    """
    custom = {row.hostname: row for row in session.scalars(select(Domain).where(Domain.kind == "custom", _below()))}
    for row, app in _astray(session):
        wanted = own_names.of_app(app.name)
        if (same := custom.get(wanted)) is not None:
            if same.app_id != app.id:
                continue
            row.sni_endpoint_id = same.sni_endpoint_id
            session.delete(same)
            session.flush()
        else:
            try:
                own_names.refuse(session, wanted)
            except InvalidParams:
                continue
        row.hostname = wanted
    session.flush()


def claimed(session: Session) -> list[tuple[str, str, str]]:
    """Apps whose own name is a custom domain of another's: that host name, the app's name, and the other's."""
    names = {own_names.of_app(app.name): app.name for _, app in _astray(session)}
    others = select(Domain.hostname, App.name).join(App, App.id == Domain.app_id).where(Domain.kind == "custom", _below())
    return [(host, names[host], other) for host, other in session.execute(others.order_by(Domain.hostname)) if host in names]


def withheld(session: Session) -> list[tuple[str, str]]:
    """Apps that keep an old own name, because the one that they are to have is Davit's: that host name, and the app's name."""
    claims = {name for _, name, _ in claimed(session)}
    return sorted((own_names.of_app(app.name), app.name) for _, app in _astray(session) if app.name not in claims)


def _astray(session: Session) -> list[tuple[Domain, App]]:
    """The own names that are not what they are to be, and their apps."""
    own = func.lower(App.name + "." + settings().domain)
    query = select(Domain, App).join(App, App.id == Domain.app_id).where(Domain.kind == "heroku", Domain.hostname != own)
    return [(row, app) for row, app in session.execute(query)]


def _below() -> ColumnElement[bool]:
    return Domain.hostname.endswith("." + settings().domain.lower(), autoescape=True)


def remove(session: Session, account: Account, app: App, identity: str) -> Domain:
    """Stop routing a custom domain to the app.

    Raises:
        NotFound: it has none of that name.
        InvalidParams: it is the app's own name.
    """
    row = find(session, app, identity)
    if row.kind == "heroku":
        raise InvalidParams(f"{row.hostname} is the app's own name and stays with it; rename the app to change it.")
    session.delete(row)
    audit.record(session, account, "domains:remove", app, hostname=row.hostname)
    notify.announce(session, app.id, f"Remove domain {row.hostname} by user {account.email}")
    notify.router(session, app.id)
    return row
