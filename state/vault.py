"""Config vars and other secrets at rest: encrypted with Fernet (AES-128-CBC + HMAC-SHA256, cryptography's fernet specification).

The keys are lines of ``DAVIT_HOME/keys/config.keys`` (mode 0600), the newest first: it encrypts, all of them decrypt, so
that keys rotate without a moment in which something cannot be read.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import select
from sqlalchemy.orm import Session

from foundation.errors import DavitError
from foundation.settings import settings
from state.models import App, AppSetup, LogDrain, OAuthClient, Release, SecondFactor, SniEndpoint, Webhook

SEALED: list[tuple[Any, str]] = [
    (App, "config"), (Release, "config"), (SecondFactor, "secret"), (OAuthClient, "secret"), (Webhook, "credentials"),
    (LogDrain, "url"), (SniEndpoint, "private_key"),
    (AppSetup, "overrides"),
]  # fmt: skip
"""Every column that holds what :func:`seal` made."""


class VaultError(DavitError):
    """Config vars cannot be decrypted with the keys that are there."""

    id, status = "config_unreadable", 500


def key_file() -> Path:
    """Where the keys are."""
    return settings().home / "keys" / "config.keys"


def ensure_keys() -> None:
    """Make the first key when there is none."""
    path = key_file()
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_keys(path, [Fernet.generate_key()])


def _write_keys(path: Path, keys: list[bytes]) -> None:
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(b"\n".join(keys) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


@lru_cache(maxsize=4)
def _fernet(path: Path, stamp: int) -> MultiFernet:
    return MultiFernet([Fernet(line) for line in path.read_bytes().split()])


def _keys() -> MultiFernet:
    path = key_file()
    try:
        return _fernet(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise VaultError(f"The key file {path} is missing, so config vars cannot be read; restore it from a backup.") from None


def seal(values: dict[str, str]) -> bytes:
    """Encrypt a JSON object of strings."""
    return _keys().encrypt(json.dumps(values, sort_keys=True).encode())


def reveal(sealed: bytes) -> dict[str, str]:
    """Decrypt what :func:`seal` made.

    Raises:
        VaultError: no key fits; the sentence names the key file.
    """
    try:
        values: dict[str, str] = json.loads(_keys().decrypt(sealed))
    except InvalidToken:
        raise VaultError(
            f"Config vars cannot be decrypted: none of the keys in {key_file()} made them; restore that file from a backup."
        ) from None
    return values


def rotate(session: Session) -> int:
    """Make a new key, encrypt everything with it, forget the old keys when that is committed; returns how many rows."""
    path = key_file()
    old = path.read_bytes().split()
    _write_keys(path, [Fernet.generate_key(), *old])
    keys, count = _keys(), 0
    for table, column in SEALED:
        for row in session.scalars(select(table)):
            if (sealed := getattr(row, column)) is not None:
                setattr(row, column, keys.rotate(sealed))
                count += 1
    return count


def forget_old_keys() -> None:
    """Keep only the newest key; call after the transaction of :func:`rotate` has committed."""
    path = key_file()
    _write_keys(path, path.read_bytes().split()[:1])
