"""OAuth clients: programs of somebody's that act for others, who allow it (RFC 6749, authorization code grant).

    client = oauth.create_client(session, me, "Dashboard", "https://dash.example.com/back")
    code, token = oauth.grant(session, you, client, ["read"], "Dashboard")       # you allow it; the client gets the code
    access, refresh, token = oauth.exchange(session, code, secret)               # and its server changes it for tokens
    access, refresh, token = oauth.refresh(session, refresh, secret)             # again and again

An authorization is one row of ``tokens``, from the grant until it is taken away; its access token changes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation import line
from foundation.clock import now
from foundation.errors import InvalidParams, NotFound, Unauthorized
from state import accounts, audit, vault
from state.models import Account, OAuthClient, Token

GRANT_LIFETIME = timedelta(minutes=5)
ACCESS_LIFETIME = timedelta(hours=8)
REFUSED = "The grant, refresh token or client secret is not valid."
_NEAR = ("localhost", "127.0.0.1", "::1")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def check_redirect(uri: str) -> str:
    """``uri`` when people may be sent there with a grant.

    Raises:
        InvalidParams: it is no HTTPS URL (HTTP is taken on the loopback).
    """
    try:
        parts = urlsplit(uri)
        good = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _NEAR)
    except ValueError:
        good = False
    if not good or not parts.hostname or len(uri) > 1000 or any(char <= " " for char in uri):
        raise InvalidParams("Field redirect_uri must be an https:// URL (http:// only on localhost).")
    return uri


def create_client(session: Session, account: Account, name: str, redirect_uri: str) -> OAuthClient:
    """Make a client of ``account``'s.

    Raises:
        InvalidParams: the redirect URI cannot be used, or the name is not one line.
    """
    line.demand("name", name)
    row = OAuthClient(account_id=account.id, name=name, redirect_uri=check_redirect(redirect_uri), secret=_new_secret())
    session.add(row)
    session.flush()
    audit.record(session, account, "clients:create", name=name)
    return row


def _new_secret() -> bytes:
    return vault.seal({"secret": secrets.token_urlsafe(32)})


def secret_of(row: OAuthClient) -> str:
    """The client's secret, which its owner may see."""
    return vault.reveal(row.secret)["secret"]


def clients(session: Session, account: Account) -> list[OAuthClient]:
    """The account's clients, oldest first."""
    return list(session.scalars(select(OAuthClient).where(OAuthClient.account_id == account.id).order_by(OAuthClient.created_at)))


def find_client(session: Session, account: Account, identity: str) -> OAuthClient:
    """One of the account's clients, by id.

    Raises:
        NotFound: it has none such.
    """
    row = session.get(OAuthClient, identity)
    if row is None or row.account_id != account.id:
        raise NotFound("Couldn't find that OAuth client.")
    return row


def update_client(session: Session, account: Account, row: OAuthClient, name: str | None, redirect_uri: str | None) -> None:
    """Change the client's name or redirect URI.

    Raises:
        InvalidParams: the redirect URI cannot be used, or the name is not one line.
    """
    line.demand("name", name)
    if redirect_uri is not None:
        row.redirect_uri = check_redirect(redirect_uri)
    if name is not None:
        row.name = name
    session.flush()
    audit.record(session, account, "clients:update", name=row.name)


def rotate(session: Session, account: Account, row: OAuthClient) -> None:
    """Give the client a new secret; the old one opens nothing any more."""
    row.secret = _new_secret()
    session.flush()
    audit.record(session, account, "clients:rotate", name=row.name)


def destroy_client(session: Session, account: Account, row: OAuthClient) -> None:
    """Remove the client with all that people allowed it."""
    for token in session.scalars(select(Token).where(Token.client_id == row.id)):
        session.delete(token)
    session.delete(row)
    session.flush()
    audit.record(session, account, "clients:destroy", name=row.name)


def grant(session: Session, account: Account, client_id: str, scope: list[str], description: str) -> tuple[str, Token]:
    """``account`` allows a client to act for it; returns the code that the client exchanges, and the authorization.

    Raises:
        NotFound: there is no such client. InvalidParams: the description is not one line.
    """
    line.demand("description", description)
    client = session.get(OAuthClient, client_id)
    if client is None:
        raise NotFound("Couldn't find that OAuth client.")
    code = secrets.token_urlsafe(32)
    row = Token(
        account_id=account.id, sha256=_digest(secrets.token_urlsafe(32)), description=description or client.name, scope=scope,
        client_id=client.id, grant_sha256=_digest(code), grant_expires_at=now() + GRANT_LIFETIME, expires_at=now(),
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    audit.record(session, account, "authorizations:create", description=row.description, client=client.name)
    return code, row


def exchange(session: Session, code: str, secret: str) -> tuple[str, str, Token]:
    """Change a grant's code for an access token and a refresh token, once.

    Raises:
        Unauthorized: the code or the client's secret is wrong, or it is too late.
    """
    row = session.scalar(select(Token).where(Token.grant_sha256 == _digest(code)).with_for_update(of=Token))
    if row is None or row.grant_expires_at is None or row.grant_expires_at <= now():
        raise Unauthorized(REFUSED)
    return _renew(session, row, secret)


def refresh(session: Session, token: str, secret: str) -> tuple[str, str, Token]:
    """Change a refresh token for a new access token and the next refresh token.

    Raises:
        Unauthorized: the token or the client's secret is wrong.
    """
    row = session.scalar(select(Token).where(Token.refresh_sha256 == _digest(token)).with_for_update(of=Token))
    if row is None:
        raise Unauthorized(REFUSED)
    return _renew(session, row, secret)


def _renew(session: Session, row: Token, secret: str) -> tuple[str, str, Token]:
    client = session.get(OAuthClient, row.client_id)
    if client is None or not hmac.compare_digest(secret_of(client).encode(), secret.encode(errors="replace")):
        raise Unauthorized(REFUSED)
    refresh_token = secrets.token_urlsafe(32)
    row.grant_sha256 = row.grant_expires_at = None
    row.refresh_sha256 = _digest(refresh_token)
    row.expires_at = now() + ACCESS_LIFETIME
    access = accounts.renew_token(session, row)
    return access, refresh_token, row
