"""Accounts, tokens, SSH keys."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from foundation import disk, line
from foundation.clock import now
from foundation.errors import Conflict, InvalidParams, NotFound, Unauthorized
from foundation.settings import settings
from state import audit
from state.models import Account, SshKey, Token

_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}")
_KEY_KINDS = frozenset(
    ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
     "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")
)  # fmt: skip
INVALID_CREDENTIALS = "Invalid credentials provided."


def create(session: Session, by: Account | None, email: str, *, name: str | None = None, admin: bool = False) -> Account:
    """Make an account.

    Raises:
        InvalidParams: the address is not one, or the name not one line.
        Conflict: it is taken.
    """
    email = check_address(email)
    line.demand("name", name)
    if session.scalar(select(Account).where(Account.email == email)):
        raise Conflict(f"There is already an account for {email}.")
    account = Account(email=email, name=name, is_admin=admin)
    session.add(account)
    session.flush()
    audit.record(session, by, "accounts:create", email=email, admin=admin)
    return account


def normal(email: str) -> str:
    """An e-mail address as it is kept and looked for, whatever letters it is written with."""
    return email.strip().lower()


def check_address(email: str) -> str:
    """An e-mail address as it is kept.

    Raises:
        InvalidParams: it is none.
    """
    email = normal(email)
    if not _EMAIL.fullmatch(email) or not line.is_one(email):
        raise InvalidParams(f"“{line.of(email)}” is not an e-mail address; it must look like name@example.com.")
    return email


def issue_token(
    session: Session, account: Account, description: str, *, lifetime: timedelta | None = None, scope: list[str] | None = None
) -> tuple[str, Token]:
    """Make an API token; returns its text (shown once, never stored) and its row.

    Raises:
        InvalidParams: the description is not one line.
    """
    line.demand("description", description)
    text = _new_token()
    token = Token(
        account_id=account.id,
        sha256=_digest(text),
        description=description,
        scope=scope or ["global"],
        expires_at=now() + lifetime if lifetime else None,
        lifetime=int(lifetime.total_seconds()) if lifetime else None,
    )
    session.add(token)
    session.flush()
    audit.record(session, account, "authorizations:create", description=description)
    return text, token


def renew_token(session: Session, token: Token) -> str:
    """Give an authorization another token, which is returned (shown once); its present one opens nothing any more."""
    text = _new_token()
    token.sha256 = _digest(text)
    session.flush()
    return text


def _new_token() -> str:
    return "davit-" + secrets.token_urlsafe(32)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def find_token(session: Session, text: str, at: datetime | None = None) -> Token:
    """The valid token with this text, its account loaded.

    Raises:
        Unauthorized: none, or it has expired.
    """
    token = session.scalar(select(Token).where(Token.sha256 == _digest(text)))
    if token is None or (token.expires_at and token.expires_at <= (at or now())):
        raise Unauthorized(INVALID_CREDENTIALS)
    return token


def mark(token: Token) -> str:
    """What tells a token's present text from those before and after it, and nothing about it."""
    return _digest(token.sha256)[:16]


def bearer(session: Session, token_id: str, marked: str | None = None) -> Account:
    """The account that a token, known by its id, speaks for now.

    Args:
        marked: the :func:`mark` that it must still have; None where its text does not matter.

    Raises:
        Unauthorized: it was taken away or renewed, or has expired.
    """
    token = session.get(Token, token_id)
    if token is None or (token.expires_at and token.expires_at <= now()) or (marked is not None and marked != mark(token)):
        raise Unauthorized(INVALID_CREDENTIALS)
    return token.account


def authenticate_token(session: Session, text: str) -> Account:
    """The account that a token belongs to.

    Raises:
        Unauthorized: no such token, or it has expired.
    """
    return find_token(session, text).account


def parse_key(text: str) -> tuple[str, str, str]:
    """Read an OpenSSH public key line: (``kind base64``, ``SHA256:…`` fingerprint, comment).

    Raises:
        InvalidParams: it is none, with what a public key looks like.
    """
    words = text.strip().split(None, 2)
    problem = InvalidParams("That is not an SSH public key; it must be one line like “ssh-ed25519 AAAA… you@example.com”.")
    if len(words) < 2 or words[0] not in _KEY_KINDS or "\n" in text.strip():
        raise problem
    try:
        blob = base64.b64decode(words[1], validate=True)
    except ValueError:
        raise problem from None
    kind = words[0].encode()
    if blob[: 4 + len(kind)] != len(kind).to_bytes(4, "big") + kind:
        raise problem
    fingerprint = "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"{words[0]} {words[1]}", fingerprint, words[2] if len(words) > 2 else ""


def add_key(session: Session, account: Account, public_key: str) -> SshKey:
    """Let the holder of an SSH key act as ``account``.

    Raises:
        InvalidParams: not a public key.
        Conflict: an account has it already.
    """
    key, fingerprint, comment = parse_key(public_key)
    if session.scalar(select(SshKey).where(SshKey.fingerprint == fingerprint)):
        raise Conflict("That SSH key is already in use by an account.")
    row = SshKey(account_id=account.id, fingerprint=fingerprint, public_key=key, comment=line.of(comment)[:255])
    session.add(row)
    session.flush()
    audit.record(session, account, "keys:add", fingerprint=fingerprint)
    return row


def keys(session: Session, account: Account) -> list[SshKey]:
    """The account's SSH keys, oldest first."""
    return list(session.scalars(select(SshKey).where(SshKey.account_id == account.id).order_by(SshKey.created_at)))


def remove_key(session: Session, account: Account, identity: str) -> SshKey:
    """Take a key away, named by id, fingerprint or comment.

    Raises:
        NotFound: the account has no such key.
    """
    for key in keys(session, account):
        if identity in (key.id, key.fingerprint, key.comment):
            session.delete(key)
            audit.record(session, account, "keys:remove", fingerprint=key.fingerprint)
            return key
    raise NotFound("Couldn't find that SSH key.")


def authenticate_key(session: Session, public_key: str) -> Account | None:
    """The account that an SSH public key (OpenSSH text) belongs to, or None."""
    try:
        _, fingerprint, _ = parse_key(public_key)
    except InvalidParams:
        return None
    row = session.scalar(select(SshKey).where(SshKey.fingerprint == fingerprint))
    return row.account if row else None


def owner_token_file() -> Path:
    """Where the machine's owner finds the token that makes ``davit`` work here without a login."""
    return settings().home / "owner-token"


def owner_token(session: Session) -> Token | None:
    """The token in the owner's file, when there is one and it is known."""
    try:
        text = owner_token_file().read_text().strip()
    except OSError:
        return None
    return session.scalar(select(Token).where(Token.sha256 == _digest(text)))


def write_owner_token(text: str) -> None:
    """From now on commands on this machine work with this token."""
    disk.write(owner_token_file(), text.encode() + b"\n")


def ensure_owner(session: Session) -> None:
    """On the first start make the owner's account (an admin); make sure that the owner's token works."""
    account = session.scalar(select(Account).where(Account.is_admin).order_by(Account.created_at).limit(1))
    if account is None:
        account = create(session, None, f"owner@{settings().domain}", name="Owner", admin=True)
    path = owner_token_file()
    if path.exists():
        try:
            find_token(session, path.read_text().strip())
            return
        except Unauthorized:
            pass
    text, _ = issue_token(session, account, "the owner of this machine")
    write_owner_token(text)


def count(session: Session) -> int:
    """How many accounts there are."""
    return session.scalar(select(func.count()).select_from(Account)) or 0
