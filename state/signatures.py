"""Secrets that need not be remembered: what they stand for is in them, signed with a key of this Davit's."""

from __future__ import annotations

import hmac
import secrets
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer

from foundation import disk
from foundation.errors import NotFound
from foundation.settings import settings


def key_file() -> Path:
    """Where the signing key is."""
    return settings().home / "keys" / "url.key"


@lru_cache(maxsize=4)
def _key(path: Path) -> bytes:
    if not disk.is_written(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk.write_first(path, secrets.token_bytes(32))
    return path.read_bytes()


def ensure_key() -> None:
    """Make the signing key if there is none."""
    _key(key_file())


def _signer(kind: str) -> URLSafeSerializer:
    return URLSafeSerializer(_key(key_file()), salt=f"davit.{kind}")


def sign(kind: str, what: dict[str, Any], lifetime: float, *, steady: bool = False) -> str:
    """The secret that lets its bearer have ``what``.

    Args:
        kind: what it is for; a secret of one kind opens no other.
        what: JSON; anybody who has the secret can read it.
        lifetime: seconds.
        steady: the same secret for a while (between one and two lifetimes), so that what it is shown in keeps its ETag.
    """
    now = time.time()
    end = (now // lifetime + 2) * lifetime if steady else now + lifetime
    return str(_signer(kind).dumps({**what, "end": int(end)}))


def read(kind: str, secret: str) -> dict[str, Any]:
    """What :func:`sign` was given.

    Raises:
        NotFound: it is not one of ours, or has expired.
    """
    try:
        what: dict[str, Any] = _signer(kind).loads(secret)
    except BadSignature:
        raise NotFound("There is no such address, or it was cut short.") from None
    if what["end"] < time.time():
        raise NotFound("That address has expired; ask for a new one.")
    return what


def mark(kind: str, text: str) -> str:
    """A few characters that are others as soon as ``text`` is another, and that tell nothing of it to who has not our key."""
    return hmac.new(_key(key_file()), f"davit.{kind}\0{text}".encode("utf-8", "surrogatepass"), "sha256").hexdigest()[:20]
