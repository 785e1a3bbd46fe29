"""Acts that an owner may want a second look at: with the two-factor guard they take a code, or a pre-authorization.

    guard.demand(session, account, token, app, code)   # before the act
    guard.authorize(session, account, token, app, code)  # PUT …/pre-authorizations: for ten minutes no code is asked for
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import Forbidden, InvalidParams
from state import audit, features, two_factor
from state.models import Account, App, PreAuthorization, Token

LIFETIME = timedelta(minutes=10)


def applies(session: Session, account: Account, app: App) -> bool:
    """Whether the account's guarded acts on the app take a code."""
    return features.enabled(session, app, features.GUARD) or features.enabled_for(session, account, features.GUARD)


def demand(session: Session, account: Account, token: Token | None, app: App, code: str | None) -> None:
    """Let a guarded act pass, or not.

    Args:
        token: that the caller showed; None in a browser's session.
        code: a two-factor code, or None.

    Raises:
        TwoFactorRequired: it takes a code that is missing or wrong.
        Forbidden: it takes a code, and the account has no second factor.
    """
    if not applies(session, account, app):
        return
    if not account.two_factor:
        raise Forbidden(f"{app.name} has the two-factor guard: turn two-factor authentication on to do that.")
    if code is None and token is not None and _authorized(session, token, app):
        return
    try:
        two_factor.check(session, account, code)
    except two_factor.TwoFactorRequired as problem:
        problem.app_name = app.name  # clients pre-authorize for the app that the error names
        raise


def _authorized(session: Session, token: Token, app: App) -> bool:
    query = select(PreAuthorization.id).where(
        PreAuthorization.token_id == token.id, PreAuthorization.app_id == app.id, PreAuthorization.expires_at > now()
    )
    return session.scalar(query.limit(1)) is not None


def authorize(session: Session, account: Account, token: Token | None, app: App, code: str | None) -> PreAuthorization:
    """Take a code now, so that this token's guarded acts on the app need none for ten minutes.

    Raises:
        TwoFactorRequired: the code is missing or wrong.
        InvalidParams: the account has no second factor.
    """
    if not account.two_factor or token is None:
        raise InvalidParams("Two-factor authentication is off for your account, so there is nothing to authorize.")
    two_factor.check(session, account, code)
    session.execute(delete(PreAuthorization).where(PreAuthorization.expires_at <= now()))
    row = PreAuthorization(token_id=token.id, app_id=app.id, expires_at=now() + LIFETIME)
    session.add(row)
    session.flush()
    audit.record(session, account, "apps:pre-authorize", app)
    return row
