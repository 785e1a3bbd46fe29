"""Passwords, the second factor, browsers that are logged in, command lines that log in by the browser."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import Conflict, DavitError, InvalidParams, NotFound, Unauthorized
from state import accounts, logins, passwords, people, signatures, throttle, two_factor, web_sessions
from state.models import Account, SecondFactor

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def _nobody_guessed() -> Iterator[None]:
    throttle.passwords.forget()
    throttle.codes.forget()
    yield


def _code(secret: str, at: float) -> str:
    return TOTP(base64.b32decode(secret), 6, SHA1(), 30).generate(int(at)).decode()


def _enrol(session: Session, account: Account, at: float) -> tuple[str, list[str]]:
    secret = two_factor.begin(session, account).secret
    return secret, two_factor.confirm(session, account, _code(secret, at), at)


def test_a_password_opens_its_account_and_no_other(session: Session, owner: Account, stranger: Account) -> None:
    passwords.assign(session, owner, owner, PASSWORD)
    assert passwords.authenticate(session, " Ann@Example.com ", PASSWORD) is owner
    for email, password in (("ann@example.com", "wrong"), ("eve@example.com", PASSWORD), ("nobody@example.com", PASSWORD)):
        with pytest.raises(Unauthorized, match=accounts.INVALID_CREDENTIALS):
            passwords.authenticate(session, email, password)


def test_who_guesses_passwords_is_no_longer_listened_to(session: Session, owner: Account) -> None:
    passwords.assign(session, owner, owner, PASSWORD)
    for _ in range(throttle.passwords.most):
        with pytest.raises(Unauthorized):
            passwords.authenticate(session, owner.email, "wrong")
    with pytest.raises(throttle.TooManyAttempts):
        passwords.authenticate(session, owner.email.upper(), PASSWORD)


def test_guesses_are_forgotten_after_a_while_and_never_fill_memory() -> None:
    guesses = throttle.WrongGuesses("password", most=1, seconds=0, names=2)
    for name in "abc":
        guesses.begin(name)
    assert len(guesses._times) == 2


def test_guesses_that_come_at_once_are_counted_before_anybody_looks_at_them() -> None:
    guesses = throttle.WrongGuesses("password", most=2)
    first, _ = guesses.begin("ann"), guesses.begin("Ann")
    with pytest.raises(throttle.TooManyAttempts):
        guesses.begin("ann")
    guesses.was_right("ann", first)
    guesses.begin("ann")


def test_changing_a_password_takes_the_present_one_and_logs_browsers_out(session: Session, owner: Account) -> None:
    passwords.change(session, owner, None, PASSWORD)
    text, _ = web_sessions.start(session, owner, "Firefox")
    _, kept = web_sessions.start(session, owner, "Chromium")
    for present in (None, "wrong"):
        with pytest.raises(InvalidParams, match="password"):
            passwords.change(session, owner, present, "another long password")
    passwords.change(session, owner, PASSWORD, "another long password", keep=kept)
    assert [row.id for row in web_sessions.all_of(session, owner)] == [kept.id]
    with pytest.raises(Unauthorized):
        web_sessions.find(session, text)


def test_a_second_factor_is_asked_for_once_it_is_confirmed(session: Session, owner: Account) -> None:
    at = time.time()
    secret = two_factor.begin(session, owner).secret
    two_factor.check(session, owner, None)  # begun is not on
    with pytest.raises(InvalidParams, match="not right"):
        two_factor.confirm(session, owner, "000000" if _code(secret, at) != "000000" else "000001", at)
    assert len(two_factor.confirm(session, owner, _code(secret, at), at)) == two_factor.RECOVERY_CODES
    assert owner.two_factor
    for code in (None, "", "12345", "１２３４５６", "not a code", "\udcff"):
        with pytest.raises(two_factor.TwoFactorRequired):
            two_factor.check(session, owner, code, at)
    two_factor.check(session, owner, _code(secret, at + 30), at + 30)
    with pytest.raises(Conflict):
        two_factor.begin(session, owner)


def test_a_code_opens_once_and_only_near_its_time(session: Session, owner: Account) -> None:
    at = time.time()
    secret, _ = _enrol(session, owner, at)
    for code, when in ((_code(secret, at), at), (_code(secret, at + 300), at), (_code(secret, at + 60), at + 300)):
        with pytest.raises(two_factor.TwoFactorRequired):
            two_factor.check(session, owner, code, when)
    two_factor.check(session, owner, _code(secret, at + 60), at + 90)  # one step behind
    with pytest.raises(two_factor.TwoFactorRequired):
        two_factor.check(session, owner, _code(secret, at + 60), at + 90)


def test_guessed_codes_are_no_longer_listened_to(session: Session, owner: Account) -> None:
    at = time.time()
    secret, recovery = _enrol(session, owner, at)
    for _ in range(throttle.codes.most):
        with pytest.raises(two_factor.TwoFactorRequired):
            two_factor.check(session, owner, "999 999", at - 10_000)
    for code in (_code(secret, at + 30), recovery[0]):
        with pytest.raises(throttle.TooManyAttempts):
            two_factor.check(session, owner, code, at + 30)


def test_a_recovery_code_opens_once(session: Session, owner: Account) -> None:
    at = time.time()
    _, recovery = _enrol(session, owner, at)
    two_factor.check(session, owner, recovery[3].upper(), at)
    with pytest.raises(two_factor.TwoFactorRequired):
        two_factor.check(session, owner, recovery[3], at)
    fresh = two_factor.recovery_codes(session, owner, recovery[0])
    with pytest.raises(two_factor.TwoFactorRequired):
        two_factor.check(session, owner, recovery[1], at)
    two_factor.disable(session, owner, owner, fresh[0])
    two_factor.check(session, owner, None)
    assert not owner.two_factor


def test_only_an_admin_turns_anothers_second_factor_off_without_a_code(session: Session, owner: Account, stranger: Account) -> None:
    _enrol(session, owner, time.time())
    with pytest.raises(two_factor.TwoFactorRequired):
        two_factor.disable(session, stranger, owner)
    admin = accounts.create(session, None, "root@example.com", admin=True)
    two_factor.disable(session, admin, owner)
    assert not owner.two_factor


def test_the_secret_is_sealed(session: Session, owner: Account) -> None:
    secret, _ = _enrol(session, owner, time.time())
    row = session.query(SecondFactor).one()
    assert secret.encode() not in row.secret
    two_factor.check(session, owner, _code(secret, time.time() + 30), time.time() + 30)


def test_a_login_takes_both_factors(session: Session, owner: Account) -> None:
    passwords.assign(session, owner, owner, PASSWORD)
    _, recovery = _enrol(session, owner, time.time())
    with pytest.raises(two_factor.TwoFactorRequired):
        logins.finish(session, owner.id, None)
    assert owner.last_login is None
    assert logins.finish(session, owner.id, recovery[0]) is owner
    assert owner.last_login is not None
    with pytest.raises(Unauthorized):
        logins.finish(session, "nobody", None)


def test_a_browser_stays_logged_in_until_it_is_logged_out_or_unused(session: Session, owner: Account, stranger: Account) -> None:
    text, row = web_sessions.start(session, owner, "Firefox")
    assert web_sessions.find(session, text).account is owner
    assert not web_sessions.needs_touch(row)
    for wrong in (text + "x", "", "\udcff"):
        with pytest.raises(Unauthorized):
            web_sessions.find(session, wrong)
    with pytest.raises(NotFound):
        web_sessions.end(session, stranger, row.id)
    row.last_seen_at = now() - web_sessions.IDLE
    session.flush()
    with pytest.raises(Unauthorized):
        web_sessions.find(session, text)
    web_sessions.touch(session, row)
    row.expires_at = now() - timedelta(seconds=1)
    session.flush()
    assert web_sessions.all_of(session, owner) == []
    web_sessions.start(session, owner, "Chromium")
    assert len(session.query(type(row)).all()) == 1, "what is over is forgotten"


def test_a_command_line_is_logged_in_when_somebody_allows_it_and_hears_so_once(session: Session, owner: Account) -> None:
    given = logins.ask("heroku on my laptop", "192.0.2.1")
    asked, waiting = logins.asked(given.browser), logins.waiting(given.waiting)
    assert (asked.description, asked.source) == ("heroku on my laptop", "192.0.2.1")
    assert not logins.is_answered(session, waiting)
    logins.approve(session, owner, asked)
    with pytest.raises(Conflict):
        logins.deny(session, owner, asked)
    made = logins.collect(session, waiting)
    assert made is not None
    assert accounts.authenticate_token(session, made[0]) is owner
    assert logins.collect(session, waiting) is None


def test_a_command_line_that_is_refused_gets_nothing(session: Session, owner: Account) -> None:
    given = logins.ask("heroku", "192.0.2.1")
    logins.deny(session, owner, logins.asked(given.browser))
    assert logins.is_answered(session, logins.waiting(given.waiting))
    assert logins.collect(session, logins.waiting(given.waiting)) is None


def test_the_secrets_of_a_login_open_only_what_they_are_for(davit_home: object, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    given = logins.ask("heroku", "192.0.2.1")
    for wrong in (given.waiting, given.browser[:-4], "x", ""):
        with pytest.raises(NotFound):
            logins.asked(wrong)
    later = time.time() + logins.REQUEST_SECONDS + 2
    monkeypatch.setattr(signatures.time, "time", lambda: later)
    with pytest.raises(DavitError, match="expired"):
        logins.asked(given.browser)


def test_a_removed_account_leaves_no_way_in(session: Session, owner: Account, stranger: Account) -> None:
    passwords.assign(session, stranger, stranger, PASSWORD)
    _enrol(session, stranger, time.time())
    text, _ = web_sessions.start(session, stranger, "Firefox")
    given = logins.ask("heroku", "192.0.2.1")
    logins.approve(session, stranger, logins.asked(given.browser))
    people.remove(session, owner, stranger)
    session.expire_all()
    with pytest.raises(Unauthorized):
        web_sessions.find(session, text)
    assert logins.collect(session, logins.waiting(given.waiting)) is None
