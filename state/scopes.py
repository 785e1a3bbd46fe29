"""What a token may be used for: the Platform API's OAuth scopes.

``global`` opens everything. ``identity`` opens who its account is. ``read`` and ``write`` open apps, but nothing that shows or
reaches their config vars and releases, which take ``read-protected`` and ``write-protected``: running code in an app is
reaching its config vars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from foundation.errors import Forbidden, InvalidParams

Scope = Literal["global", "identity", "read", "write", "read-protected", "write-protected"]

_OPENS: dict[str, frozenset[str]] = {
    "global": frozenset(("global", "identity", "read", "write", "read-protected", "write-protected")),
    "identity": frozenset(("identity",)),
    "read": frozenset(("read",)),
    "write": frozenset(("read", "write")),
    "read-protected": frozenset(("read", "read-protected")),
    "write-protected": frozenset(("read", "write", "read-protected", "write-protected")),
}
SCOPES = tuple(_OPENS)


def check(names: Sequence[Any]) -> list[str]:
    """``names`` when they are scopes.

    Raises:
        InvalidParams: there is none, or an unknown one.
    """
    if wrong := [name for name in names if name not in SCOPES]:
        raise InvalidParams(f"Field scope: there is no scope “{str(wrong[0])[:40]}”; there are {', '.join(SCOPES)}.")
    if not names:
        raise InvalidParams(f"Field scope must name at least one of {', '.join(SCOPES)}.")
    return list(dict.fromkeys(names))


def opens(held: Sequence[Any], needed: Scope) -> bool:
    """Whether a token with the scopes ``held`` may do what takes ``needed``."""
    return any(needed in _OPENS.get(name, frozenset()) for name in held)


def demand(held: Sequence[Any], needed: Scope) -> None:
    """Refuse a token whose scopes do not open ``needed``.

    Raises:
        Forbidden: the sentence names what it takes.
    """
    if not opens(held, needed):
        raise Forbidden(f"Your token does not allow that: its scope is {', '.join(map(str, held))}, and it takes {needed}.")
