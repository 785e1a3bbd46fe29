"""Custom domains."""

from __future__ import annotations

import re

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from foundation.errors import Conflict, InvalidParams, NotFound
from foundation.settings import settings
from state import audit, notify, own_names
from state.models import Account, App, Domain

LIMIT = 1000
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOSTNAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})+")


def all_of(session: Session, app: App) -> list[Domain]:
    """The app's domains, its own name first."""
    return list(session.scalars(select(Domain).where(Domain.app_id == app.id).order_by(Domain.kind.desc(), Domain.created_at)))


def find(session: Session, app: App, identity: str) -> Domain:
    """The app's domain with this host name or id.

    Raises:
        NotFound: it has none.
    """
    row = session.scalar(
        select(Domain).where(Domain.app_id == app.id, or_(Domain.hostname == identity.lower(), Domain.id == identity))
    )
    if row is None:
        raise NotFound("Couldn't find that domain name.")
    return row


def add(session: Session, account: Account, app: App, hostname: object) -> Domain:
    """Route a host name to the app.

    Raises:
        InvalidParams: not a host name, a name below Davit's own domain, one of Davit's own, or too many.
        Conflict: some app has it already.
    """
    text = hostname.strip().rstrip(".").lower() if isinstance(hostname, str) else ""
    try:
        text = text.encode("idna").decode() if not text.isascii() else text
    except UnicodeError:
        text = ""
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
        raise Conflict(f"{text} is currently in use by another app.", id="invalid_params", status=422)
    own_names.refuse(session, text)
    row = Domain(app_id=app.id, hostname=text)
    session.add(row)
    session.flush()
    audit.record(session, account, "domains:add", app, hostname=text)
    notify.announce(session, app.id, f"Add domain {text} by user {account.email}")
    notify.router(session, app.id)
    return row


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
    notify.router(session, app.id)
    return row
