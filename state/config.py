"""Config vars: what the person set, encrypted; every change is a release."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sqlalchemy.orm import Session

from foundation.errors import InvalidParams
from state import audit, notify, releases, signatures, vault
from state.db import lock_app
from state.meanwhile import ChangedMeanwhile
from state.models import Account, App, Release

LIMIT = 64 * 1024
"""Bytes of names and values together (Heroku's limit)."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_OURS = frozenset(("PORT", "DYNO"))


def read(app: App) -> dict[str, str]:
    """The config vars as last set, by name."""
    return dict(sorted(vault.reveal(app.config).items()))


def mark(app: App, name: str, value: str) -> str:
    """What a page carries in place of a value, to say later what the value was when it was shown.

    Line ends are all the same to it: browsers send back others than they were given (CRLF).
    """
    lines = value.replace("\r\n", "\n").replace("\r", "\n")
    return signatures.mark("config", f"{app.id}\0{name}\0{lines}")


def change(
    session: Session, account: Account, app: App, updates: Mapping[str, str | None], *, seen: Mapping[str, str] | None = None
) -> Release | None:
    """Set (a string) and unset (None) config vars; returns the release that this makes, None when nothing changed.

    Args:
        seen: the config vars that there were when the person looked, by name, as :func:`mark` gives them; None when it is
            not known what they saw.

    Raises:
        InvalidParams: a name or value cannot be used, or all together are too large.
        ChangedMeanwhile: one of ``updates`` is not what was seen.
    """
    lock_app(session, app.id)
    session.refresh(app, ["config"])
    before = vault.reveal(app.config)
    if seen is not None:
        marks = {name: mark(app, name, value) for name, value in before.items()}
        differs = [name for name, value in updates.items() if before.get(name) != value and marks.get(name) != seen.get(name)]
        if differs:
            raise ChangedMeanwhile(sorted(differs))
    after = dict(before)
    for name, value in updates.items():
        if value is None:
            after.pop(name, None)
        else:
            after[_check_name(name)] = _check_value(name, value)
    if sum(len(k.encode()) + len(v.encode()) for k, v in after.items()) > LIMIT:
        raise InvalidParams(f"Config vars may not exceed {LIMIT // 1024} KB together.")
    if after == before:
        return None
    app.config = vault.seal(after)
    gone = sorted(name for name in before if name not in after)
    new = sorted(name for name in after if before.get(name) != after[name])
    words = [f"{verb} {', '.join(names)} config vars" for verb, names in (("Set", new), ("Remove", gone)) if names]
    description = ", ".join(words)
    audit.record(session, account, "config:set", app, set=new, removed=gone)
    notify.announce(session, app.id, f"{description} by user {account.email}")
    return releases.create(session, app, account, kind="config", description=description)


def check(name: object, value: object) -> None:
    """Whether a config var can be called, and hold, this.

    Raises:
        InvalidParams: it cannot; the sentence says why.
    """
    _check_value(_check_name(name), value)


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidParams(
            f"Config var name {name!r} is not valid: use letters, digits and underscores, not starting with a digit."
        )
    if name in _OURS:
        raise InvalidParams(f"Config var {name} is set by Davit for every dyno and cannot be changed.")
    return name


def _check_value(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidParams(f"The value of config var {name} must be a string.")
    if "\x00" in value:
        raise InvalidParams(f"The value of config var {name} contains a NUL byte, which no environment variable can hold.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidParams(f"The value of config var {name} is not valid UTF-8.") from None
    return value
