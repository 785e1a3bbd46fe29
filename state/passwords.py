"""Passwords: argon2id, as OWASP's password storage cheat sheet has it.

Hashing takes its time, which nobody should have to wait for who only wants to write into the database. So a face runs its write
transactions by :func:`apart`: what asks for a hash in one ends it, changes nothing, and is run again when the hash is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation.errors import InvalidParams, Unauthorized
from state import audit, throttle, web_sessions
from state.accounts import INVALID_CREDENTIALS
from state.db import snapshot
from state.models import Account, WebSession

SHORTEST = 12
_strangers = threading.BoundedSemaphore(2)  # one check takes 19 MiB: strangers must not take them all at once
_known = threading.BoundedSemaphore(2)  # nor keep those waiting who are logged in
_T = TypeVar("_T")
_Question = tuple[str, str]
"""(hash, password): whether they fit; (_NEW, password): a new hash; (_NOBODY, password): no, after the same time."""
_NEW, _NOBODY = "new", "nobody"
_answers: ContextVar[dict[_Question, str | None] | None] = ContextVar("answers", default=None)


class _NotYet(Exception):
    """A hash is wanted in a write transaction."""

    def __init__(self, question: _Question, turns: threading.BoundedSemaphore) -> None:
        super().__init__("hashing")
        self.question, self.turns = question, turns


def apart(attempt: Callable[[], _T]) -> _T:
    """Call ``attempt``, which is one write transaction, such that hashing is done while it is not under way."""
    answers: dict[_Question, str | None] = {}
    before = _answers.set(answers)
    try:
        while True:
            try:
                return attempt()
            except _NotYet as wanted:
                answers[wanted.question] = _hashed(wanted.question, wanted.turns)
    finally:
        _answers.reset(before)


def _ask(question: _Question, turns: threading.BoundedSemaphore) -> str | None:
    """The hash; None when the password does not fit it.

    Raises:
        _NotYet: in :func:`apart`, for the first time.
    """
    answers = _answers.get()
    if answers is None:
        return _hashed(question, turns)
    if question not in answers:
        raise _NotYet(question, turns)
    return answers[question]


def _hashed(question: _Question, turns: threading.BoundedSemaphore) -> str | None:
    known, password = question
    with turns:
        if known == _NEW:
            return _hasher().hash(password)
        try:
            _hasher().verify(_nobody() if known == _NOBODY else known, password)
        except (VerificationError, InvalidHashError):
            return None
        return known


@lru_cache(maxsize=1)
def _hasher() -> PasswordHasher:
    return PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)


@lru_cache(maxsize=1)
def _nobody() -> str:
    """A hash that is checked when there is no account, so that time does not tell who has one."""
    return _hasher().hash("nobody has this password")


def check_new(password: object) -> str:
    """``password`` when it may become one.

    Raises:
        InvalidParams: it is too short or too long.
    """
    if not isinstance(password, str) or not SHORTEST <= len(password) <= 512:
        raise InvalidParams(f"A password must have {SHORTEST} to 512 characters.")
    return password


def assign(session: Session, by: Account, account: Account, password: object, *, keep: WebSession | None = None) -> None:
    """Let ``account`` log in with a password from now on; browsers that are logged in (but for ``keep``) are logged out.

    Raises:
        InvalidParams: it is too short or too long.
    """
    account.password_hash = _ask((_NEW, check_new(password)), _known)
    web_sessions.end_all(session, account, keep=keep)
    audit.record(session, by, "accounts:password", email=account.email)


def confirm(session: Session, account: Account, current: str | None) -> None:
    """Whoever sits there knows the account's password.

    Raises:
        InvalidParams: it is missing or wrong.
        TooManyAttempts: it was wrong too often of late.
    """
    if not current:
        raise InvalidParams("Field password (the present password) is required.")
    try:
        authenticate(session, account.email, current, turns=_known)
    except Unauthorized:
        raise InvalidParams("Field password is not the present password.") from None


def change(session: Session, account: Account, current: str | None, new: object, *, keep: WebSession | None = None) -> None:
    """An account's own change of its password, which takes the present one when there is one.

    Raises:
        InvalidParams: the present one is missing or wrong, or the new one is too short or too long.
        TooManyAttempts: the present one was wrong too often of late.
    """
    if account.password_hash is not None:
        confirm(session, account, current)
    assign(session, account, account, new, keep=keep)


def known(email: str, password: str) -> str:
    """The id of the account that :func:`authenticate` gives; nothing of the database is held while the password is looked at.

    Raises:
        Unauthorized, TooManyAttempts: as there.
    """

    def attempt() -> str:
        with snapshot() as session:
            return authenticate(session, email, password).id

    return apart(attempt)


def authenticate(
    session: Session, email: str, password: str, *, turns: threading.BoundedSemaphore = _strangers
) -> Account:
    """The account that this address and password open (the second factor is not asked for here: see :mod:`state.logins`).

    Args:
        turns: who checks at the same time at the most.

    Raises:
        Unauthorized: none; the same sentence, and the same time, for an unknown address and a wrong password.
        TooManyAttempts: the password for this address was wrong too often of late.
    """
    email = email.strip().lower()
    guess = throttle.passwords.begin(email)
    account = session.scalar(select(Account).where(Account.email == email))
    known = account.password_hash if account else None
    try:
        fits = _ask((known or _NOBODY, password), turns) is not None
    except _NotYet:
        throttle.passwords.was_right(email, guess)  # it is counted when it is answered
        raise
    if account is None or known is None or not fits:
        raise Unauthorized(INVALID_CREDENTIALS)
    throttle.passwords.was_right(email, guess)
    return account
