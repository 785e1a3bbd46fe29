"""The dashboard's cookies: the session, the visit before it, what to say once, the theme; and the anti-forgery token.

All are HttpOnly and SameSite=Lax, and Secure wherever the page came over TLS. The anti-forgery token is an HMAC of the
session's (before it: the visit's) secret; what pages show is masked afresh each time, so that a compressed page gives
nothing away about it (BREACH).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING

from flask import Response, g, request

from api import links
from foundation.errors import NotFound

if TYPE_CHECKING:
    from dashboard.signed_in import SignedIn

SESSION, VISIT, FLASH, THEME = "davit_session", "davit_visit", "davit_flash", "davit_theme"
THEMES = ("system", "light", "dark")
YEAR = 365 * 24 * 3600
_SIZE = 32


def _name(name: str) -> str:
    """Over TLS under a name that browsers take from this very host only (RFC 6265bis, ``__Host-``)."""
    return f"__Host-{name}" if request.is_secure else name


def get(name: str) -> str:
    """What the browser sent."""
    return request.cookies.get(_name(name), "")[:500]


def put(response: Response, name: str, value: str, seconds: int | None = None) -> None:
    """Set a cookie; ``seconds`` None keeps it until the browser is closed."""
    response.set_cookie(
        _name(name), value, max_age=seconds, path="/", httponly=True, samesite="Lax", secure=request.is_secure
    )


def drop(response: Response, name: str) -> None:
    """Have the browser forget it."""
    response.delete_cookie(_name(name), path="/", httponly=True, samesite="Lax", secure=request.is_secure)


def set_flash(response: Response, message: str) -> None:
    """Have the next page say ``message``."""
    put(response, FLASH, links.sign("flash", {"text": message[:400]}, 60), 60)


def flash() -> str:
    """What the page before wanted said; it is not said again."""
    sent = request.cookies.get(_name(FLASH))
    if not sent:
        return ""
    g.flash_shown = True
    try:
        return str(links.read("flash", sent)["text"])
    except (NotFound, KeyError):
        return ""


def theme() -> str:
    """``light``, ``dark``, or ``system``: as the browser prefers."""
    sent = get(THEME)
    return sent if sent in THEMES else "system"


def visit() -> str:
    """The secret of a visitor who has not signed in; a new one when the browser has none (set with the response)."""
    if "visit" not in g:
        sent = get(VISIT)
        g.visit = sent if len(sent) >= 32 else secrets.token_urlsafe(32)
        g.new_visit = g.visit != sent
    return str(g.visit)


def _token(signed: SignedIn | None) -> bytes:
    secret = signed.secret if signed else visit()
    return hmac.new(secret.encode(), b"davit anti-forgery", hashlib.sha256).digest()


def csrf(signed: SignedIn | None) -> str:
    """The anti-forgery token for a page's forms."""
    mask = secrets.token_bytes(_SIZE)
    masked = bytes(a ^ b for a, b in zip(_token(signed), mask, strict=True))
    return base64.urlsafe_b64encode(mask + masked).decode().rstrip("=")


def is_ours(sent: str, signed: SignedIn | None) -> bool:
    """Whether an anti-forgery token is of this session."""
    try:
        raw = base64.urlsafe_b64decode(sent[:200] + "==")
    except ValueError:
        return False
    if len(raw) != 2 * _SIZE:
        return False
    return hmac.compare_digest(bytes(a ^ b for a, b in zip(raw[:_SIZE], raw[_SIZE:], strict=True)), _token(signed))


def finish(response: Response) -> Response:
    """After a page: set what it asked for, forget what was said; at the name of an app, neither."""
    if g.get("strange"):
        return response
    if g.get("new_visit"):
        put(response, VISIT, g.visit)
    if g.get("flash_shown"):
        drop(response, FLASH)
    return response
