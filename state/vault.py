"""Config vars and other secrets at rest: encrypted with Fernet (AES-128-CBC + HMAC-SHA256, cryptography's fernet specification).

The keys are lines of ``DAVIT_HOME/keys/config.keys`` (mode 0600), the newest first: it encrypts, all of them decrypt, so
that keys rotate (:mod:`state.rotation`) without a moment in which something cannot be read. Every use looks whether the file
changed: a process that runs knows a new key at once.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from foundation import disk
from foundation.errors import DavitError
from foundation.settings import settings
from state.models import App, AppSetup, LogDrain, OAuthClient, Release, SecondFactor, SniEndpoint, Webhook

SEALED: list[tuple[Any, str]] = [
    (App, "config"), (Release, "config"), (SecondFactor, "secret"), (OAuthClient, "secret"), (Webhook, "credentials"),
    (LogDrain, "url"), (SniEndpoint, "private_key"), (AppSetup, "overrides"),
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
    """Replace the file so that a power cut leaves the old keys or the new ones."""
    disk.write(path, b"\n".join(keys) + b"\n")


@dataclass(frozen=True)
class _Keys:
    """The keys of one state of the file, the newest first, and those that this process knew before.

    A row that was read before a rotation ended is decrypted after it: with a key that the file has no more.
    """

    path: Path
    stamp: tuple[int, int, int]
    lines: tuple[bytes, ...]
    before: tuple[bytes, ...] = ()

    @property
    def newest(self) -> Fernet:
        return Fernet(self.lines[0])

    @property
    def all(self) -> MultiFernet:
        return MultiFernet([Fernet(line) for line in (*self.lines, *self.before)])


_REMEMBERED = 8
_loaded: _Keys | None = None


def _keys() -> _Keys:
    global _loaded
    path, known = key_file(), _loaded
    try:
        figures = path.stat()
        stamp = (figures.st_mtime_ns, figures.st_ino, figures.st_size)
        if known is not None and known.path == path and known.stamp == stamp:
            return known
        lines = tuple(path.read_bytes().split())
    except FileNotFoundError:
        raise VaultError(f"The key file {path} is missing, so config vars cannot be read; restore it from a backup.") from None
    except OSError as error:
        raise VaultError(f"The key file {path} cannot be read ({error.strerror}); run this as its owner.") from None
    earlier = (*known.lines, *known.before) if known is not None and known.path == path else ()
    try:
        fresh = _Keys(path, stamp, lines, tuple(line for line in earlier if line not in lines)[:_REMEMBERED])
        assert fresh.newest and fresh.all
    except (ValueError, IndexError):
        raise VaultError(f"The key file {path} is damaged, so config vars cannot be read; restore it from a backup.") from None
    _loaded = fresh
    return fresh


def seal(values: dict[str, str]) -> bytes:
    """Encrypt a JSON object of strings with the newest key.

    Call it in the transaction that writes the result: a rotation waits for that before it forgets a key.
    """
    return _keys().newest.encrypt(json.dumps(values, sort_keys=True).encode())


def reveal(sealed: bytes) -> dict[str, str]:
    """Decrypt what :func:`seal` made.

    Raises:
        VaultError: no key fits; the sentence names the key file.
    """
    try:
        values: dict[str, str] = json.loads(_keys().all.decrypt(sealed))
    except InvalidToken:
        raise VaultError(
            f"Config vars cannot be decrypted: none of the keys in {key_file()} made them; restore that file from a backup."
        ) from None
    return values


def opens(home: Path, sealed: list[bytes]) -> bool:
    """Whether the keys of a home, which need not be this process's, decrypt one of what :func:`seal` made somewhere."""
    path = home / "keys" / "config.keys"
    if not sealed or not disk.is_written(path):
        return False
    try:
        keys = MultiFernet([Fernet(line) for line in path.read_bytes().split()])
    except ValueError:
        return False  # damaged; who needs them says so
    for text in sealed:
        with suppress(InvalidToken):
            keys.decrypt(text)
            return True
    return False


def is_newest(sealed: bytes) -> bool:
    """Whether the newest key made ``sealed`` (by its signature alone: nothing is decrypted)."""
    try:
        _keys().newest.extract_timestamp(sealed)
    except InvalidToken:
        return False
    return True


def reseal(sealed: bytes) -> bytes:
    """The same encrypted with the newest key.

    Raises:
        InvalidToken: no key fits.
    """
    return _keys().all.rotate(sealed)


@contextmanager
def changing_keys() -> Iterator[None]:
    """While the keys are changed, nobody else changes them.

    Raises:
        VaultError: somebody else is at it; or there are no keys that this user may change.
    """
    path = key_file()
    _keys()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise VaultError("Another `davit config:rotate-keys` is at work; wait for it.", id="conflict", status=409) from None
    except PermissionError:
        raise VaultError(f"Only the owner of DAVIT_HOME may change the keys in {path.parent}; run this as that user.") from None
    finally:
        os.close(directory)


def has_old_keys() -> bool:
    """Whether there is a key besides the newest."""
    return len(_keys().lines) > 1


def add_key() -> None:
    """Make a new newest key; in force, and on the disk, when this returns."""
    path = key_file()
    _write_keys(path, [Fernet.generate_key(), *_keys().lines])


def forget_old_keys() -> None:
    """Keep only the newest key: for :mod:`state.rotation`, which knows when nothing needs the others any more."""
    path = key_file()
    _write_keys(path, list(_keys().lines[:1]))
