"""The second factor: one-time passwords (TOTP, RFC 6238: SHA-1, 6 digits, 30 seconds, as every authenticator app has them).

    enrolment = two_factor.begin(session, account)            # show enrolment.uri as a QR code, or enrolment.secret
    recovery = two_factor.confirm(session, account, "123456") # from now on every login takes a code; show recovery once
    two_factor.check(session, account, code)                  # raises TwoFactorRequired; a code opens once
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import Conflict, DavitError, InvalidParams
from foundation.settings import settings
from state import audit, throttle, vault
from state.models import Account, SecondFactor

STEP_SECONDS = 30
RECOVERY_CODES = 10
_CODE = re.compile(r"[0-9]{6}")
_DRIFT = (0, -1, 1)
"""Time steps that are looked at: clocks differ by less than half a minute, or it takes as long to type (RFC 6238, 5.2)."""


class TwoFactorRequired(DavitError):
    """A two-factor code is missing or wrong; clients ask the person for one and call again (Heroku's id)."""

    id, status = "two_factor", 403
    app_name: str | None = None


@dataclass(frozen=True)
class Enrolment:
    """What an authenticator app needs: ``secret`` (base32) to type in, ``uri`` (otpauth://…) to scan."""

    secret: str
    uri: str


def _totp(secret: bytes) -> TOTP:
    return TOTP(secret, 6, SHA1(), STEP_SECONDS, enforce_key_length=False)  # noqa: S303


def _row(session: Session, account: Account) -> SecondFactor | None:
    """The account's row, locked: a code must not be used twice at once (on SQLite all writers wait for each other anyway)."""
    return session.scalar(select(SecondFactor).where(SecondFactor.account_id == account.id).with_for_update())


def _secret(row: SecondFactor) -> bytes:
    return base64.b32decode(vault.reveal(row.secret)["totp"])


def begin(session: Session, account: Account) -> Enrolment:
    """Give the account a new secret, which is not asked for until :func:`confirm`.

    Raises:
        Conflict: two-factor authentication is on already.
    """
    row = _row(session, account)
    if row and row.confirmed_at:
        raise Conflict("Two-factor authentication is on already; disable it first to use another device.", status=422)
    text = base64.b32encode(secrets.token_bytes(20)).decode()
    if row is None:
        row = SecondFactor(account_id=account.id, secret=b"")
        session.add(row)
    row.secret, row.last_step, row.recovery = vault.seal({"totp": text}), 0, []
    session.flush()
    return Enrolment(text, _totp(base64.b32decode(text)).get_provisioning_uri(account.email, f"Davit {settings().domain}"))


def confirm(session: Session, account: Account, code: str, at: float | None = None) -> list[str]:
    """Turn two-factor authentication on; returns the recovery codes, which are shown only now.

    Args:
        code: what the authenticator app shows.
        at: seconds since the epoch; now when None.

    Raises:
        InvalidParams: nothing was begun, or the code is wrong.
        Conflict: it is on already.
        TooManyAttempts: codes were wrong too often of late.
    """
    row = _row(session, account)
    if row is None:
        raise InvalidParams("Begin two-factor authentication first, so that there is a secret to put into the app.")
    if row.confirmed_at:
        raise Conflict("Two-factor authentication is on already.", status=422)
    guess = throttle.codes.begin(account.id)
    if not _take_code(row, code, at):
        raise InvalidParams("That two-factor code is not right; check the clock of the device and give the code it shows now.")
    throttle.codes.was_right(account.id, guess)
    row.confirmed_at, account.two_factor = now(), True
    audit.record(session, account, "2fa:enable")
    return _renew(row)


def _renew(row: SecondFactor) -> list[str]:
    codes = [secrets.token_hex(8) for _ in range(RECOVERY_CODES)]
    row.recovery = [hashlib.sha256(code.encode()).hexdigest() for code in codes]
    return codes


def recovery_codes(session: Session, account: Account, code: str | None) -> list[str]:
    """Make new recovery codes, shown only now; the old ones open nothing any more.

    Raises:
        TwoFactorRequired: the code is missing or wrong.
        InvalidParams: two-factor authentication is off.
    """
    if not account.two_factor:
        raise InvalidParams("Two-factor authentication is off; there are no recovery codes without it.")
    check(session, account, code)
    row = _row(session, account)
    assert row is not None
    audit.record(session, account, "2fa:recovery-codes")
    return _renew(row)


def disable(session: Session, by: Account, account: Account, code: str | None = None) -> None:
    """Turn it off: one's own with a code; an admin does it for others who lost their device.

    Raises:
        TwoFactorRequired: it is one's own and the code is missing or wrong.
    """
    if by.id == account.id or not by.is_admin:
        check(session, account, code)
    session.execute(delete(SecondFactor).where(SecondFactor.account_id == account.id))
    account.two_factor = False
    audit.record(session, by, "2fa:disable", email=account.email)


def check(session: Session, account: Account, code: str | None, at: float | None = None) -> None:
    """Take a code (or a recovery code) of the account's; returns at once when it has no second factor.

    Raises:
        TwoFactorRequired: the code is missing or wrong, or was used before.
        TooManyAttempts: codes were wrong too often of late.
    """
    row = _row(session, account)
    if row is None or not row.confirmed_at:
        return
    if not code:
        raise TwoFactorRequired("A two-factor code is required: send it as the header Heroku-Two-Factor-Code.")
    guess = throttle.codes.begin(account.id)
    if not (_take_code(row, code, at) or _take_recovery(session, row, account, code)):
        raise TwoFactorRequired("That two-factor code is not right, or was used before; wait for the next one.")
    throttle.codes.was_right(account.id, guess)
    session.flush()


def _take_code(row: SecondFactor, code: str, at: float | None) -> bool:
    """Whether ``code`` is one of the present moment that was not used; it is from now on."""
    code = code.strip().replace(" ", "")
    if not _CODE.fullmatch(code):
        return False
    totp, step = _totp(_secret(row)), int((time.time() if at is None else at) // STEP_SECONDS)
    for drift in _DRIFT:
        fits = hmac.compare_digest(totp.generate((step + drift) * STEP_SECONDS), code.encode())
        if fits and step + drift > row.last_step:
            row.last_step = step + drift
            return True
    return False


def _take_recovery(session: Session, row: SecondFactor, account: Account, code: str) -> bool:
    digest = hashlib.sha256(code.strip().lower().encode(errors="replace")).hexdigest()
    if digest not in row.recovery:
        return False
    row.recovery = [left for left in row.recovery if left != digest]
    audit.record(session, account, "2fa:recovery-code", left=len(row.recovery))
    return True
