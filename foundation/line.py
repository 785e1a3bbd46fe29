"""Text that stands as one line in other people's lists, logs and terminals: it ends no line, steers no terminal and turns no text
around."""

from __future__ import annotations

import unicodedata

from foundation.errors import InvalidParams

_STEERING = frozenset(("Cc", "Cf", "Zl", "Zp"))
"""Unicode's categories of what controls, formats, and ends lines and paragraphs."""
_JOINERS = "\u200c\u200d"
"""Formats that words of some languages, and emoji, are written with; they turn nothing around."""
RULE = "must be one line without control characters"


def _fits(char: str) -> bool:
    return unicodedata.category(char) not in _STEERING or char in _JOINERS


def is_one(text: str) -> bool:
    """Whether a text is such a line."""
    return all(map(_fits, text))


def demand(field: str, text: str | None) -> None:
    """Before an operation keeps what others will read.

    Raises:
        InvalidParams: it is none; the sentence names the field.
    """
    if text is not None and not is_one(text):
        raise InvalidParams(f"Field {field} {RULE}.")


def of(text: str) -> str:
    """What of a text fits into such a line."""
    return "".join(filter(_fits, text))
