"""A new key for everything that is sealed: ``davit config:rotate-keys``.

Whoever is killed in it leaves everything readable: old keys stay until nothing that is committed, or under way, needs them.
The next run goes on where that one stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from cryptography.fernet import InvalidToken
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from foundation.clock import now
from state import audit, db, vault

BATCH = 100
"""Rows that one transaction changes: at most some 9 MB of sealed config vars, and others wait only for a moment."""
LONGEST_WRITE = timedelta(minutes=10)
"""A row is written at the most so long after its time was taken."""


def rotate(say: Callable[[str], None]) -> int:
    """Make a new key, encrypt everything with it, and forget the old keys.

    Args:
        say: told what is done, step by step.

    Returns:
        How many values were encrypted anew.

    Raises:
        VaultError: a value is damaged, or another rotation is at work; the old keys are kept.
    """
    with vault.changing_keys():
        _begin(say)
        count = _reseal(say)
        while not _finished(count):  # what was written with an old key, or copied, while we were at it
            count += _reseal(say)
        vault.forget_old_keys()
        say("The old keys are forgotten.")
    return count


def _begin(say: Callable[[str], None]) -> None:
    if vault.has_old_keys():
        say("There is more than one key: an earlier rotation did not end. Going on with the newest.")
        return
    vault.add_key()
    say("Made a new key; what is set from now on is encrypted with it.")


def _reseal(say: Callable[[str], None]) -> int:
    count = 0
    for table, column in vault.SEALED:
        last, done = "", 0
        while (batch := _reseal_batch(table, column, last)) is not None:
            last, changed = batch
            done += changed
        if done:
            say(f"Encrypted {table.__tablename__}.{column} anew: {done}.")
        count += done
    return count


def _reseal_batch(table: Any, column: str, after: str) -> tuple[str, int] | None:
    """Encrypt anew what needs it among the next rows; the last row's id and how many were changed; None behind the last.

    A row that somebody is changing is left to the next round: two who wait for each other's rows would wait for ever.
    """
    value, changed = getattr(table, column), 0
    question = select(table.id, value).where(table.id > after).order_by(table.id).limit(BATCH)
    with db.transaction() as session:
        rows = session.execute(question.with_for_update(key_share=True, skip_locked=True)).all()
        for id, sealed in rows:
            if sealed is None or vault.is_newest(sealed):
                continue
            fresh = {column: _fresh(table, column, id, sealed), "updated_at": table.updated_at}  # nobody updated it
            session.execute(update(table).where(table.id == id).values(fresh).execution_options(synchronize_session=False))
            changed += 1
    return (rows[-1][0], changed) if rows else None


def _fresh(table: Any, column: str, id: str, sealed: bytes) -> bytes:
    try:
        return vault.reseal(sealed)
    except InvalidToken:
        raise vault.VaultError(
            f"The row {id} of {table.__tablename__}.{column} cannot be decrypted with any key, so the old keys are kept. "
            "Restore the row, or the key that made it, from a backup, and run this again."
        ) from None


def _finished(count: int) -> bool:
    """Whether the newest key made all there is; said while nobody writes, and on the disk when it is said.

    All rows are looked at while others write; what they wrote meanwhile, or had begun to, is looked at when nobody does.
    """
    since = now() - LONGEST_WRITE
    if not all(_is_done(table, column) for table, column in vault.SEALED):
        return False
    with db.alone() as session:
        if not all(_is_done_since(session, table, column, since) for table, column in vault.SEALED):
            return False
        audit.record(session, None, "config:rotate-keys", values=count)
    return True


def _is_done(table: Any, column: str) -> bool:
    value, last = getattr(table, column), ""
    while True:
        with db.snapshot() as session:
            rows = session.execute(select(table.id, value).where(table.id > last).order_by(table.id).limit(BATCH)).all()
        if not all(sealed is None or vault.is_newest(sealed) for _, sealed in rows):
            return False
        if not rows:
            return True
        last = rows[-1][0]


def _is_done_since(session: Session, table: Any, column: str, since: datetime) -> bool:
    question = select(getattr(table, column)).where(table.updated_at >= since)
    found = session.execute(question.execution_options(yield_per=BATCH))
    return all(sealed is None or vault.is_newest(sealed) for (sealed,) in found)
