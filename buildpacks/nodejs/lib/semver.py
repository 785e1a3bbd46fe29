"""Version ranges as npm writes them (https://github.com/npm/node-semver#ranges), for released versions."""

from __future__ import annotations

import re
from collections.abc import Iterable

Version = tuple[int, int, int]
PARTIAL = r"[v=\s]*(\d+|[xX*])(?:\.(\d+|[xX*])(?:\.(\d+|[xX*])(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?)?)?"
TOP = (1 << 62, 0, 0)


class InvalidRange(ValueError):
    """It is no range that npm would understand."""


def parse(text: str) -> Version | None:
    """A version; None when it is none, or a prerelease."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)(?:\+[0-9A-Za-z.-]+)?", text.strip())
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def newest(range: str, versions: Iterable[str]) -> str | None:
    """The highest of ``versions`` in ``range``."""
    bounds = intervals(range)
    found = [(version, text) for text in versions if (version := parse(text)) and any(low <= version < high for low, high in bounds)]
    return max(found)[1] if found else None


def contains(range: str, version: str) -> bool:
    return newest(range, [version]) is not None


def intervals(range: str) -> list[tuple[Version, Version]]:
    """The half-open intervals that a range is made of.

    Raises:
        InvalidRange
    """
    return [interval for part in range.split("||") if (interval := _intersection(part.strip()))]


def _intersection(text: str) -> tuple[Version, Version] | None:
    hyphen = re.fullmatch(rf"{PARTIAL}\s+-\s+{PARTIAL}", text)
    if hyphen:
        low, _ = _span(hyphen.groups()[:3])
        _, high = _span(hyphen.groups()[3:])
        return (low, high) if low < high else None
    low, high = (0, 0, 0), TOP
    rest = text or "*"
    while rest:
        match = re.match(rf"\s*(\^|~>?|>=|<=|>|<|=)?\s*{PARTIAL}(?=\s|,|$)[\s,]*", rest)
        if match is None:
            raise InvalidRange(text)
        one_low, one_high = _comparator(match[1] or "", match.groups()[1:])
        low, high = max(low, one_low), min(high, one_high)
        rest = rest[match.end() :]
    return (low, high) if low < high else None


def _comparator(operator: str, parts: tuple[str | None, ...]) -> tuple[Version, Version]:
    low, high = _span(parts)
    if operator in ("", "="):
        return low, high
    if operator == ">=":
        return low, TOP
    if operator == ">":
        return high, TOP
    if operator == "<":
        return (0, 0, 0), low
    if operator == "<=":
        return (0, 0, 0), high
    if high == TOP:
        return low, high
    if operator.startswith("~"):
        return low, ((low[0], low[1] + 1, 0) if parts[1] and parts[1].isdigit() else high)
    return low, _caret(low, parts)


def _caret(low: Version, parts: tuple[str | None, ...]) -> Version:
    """Up to the next change of the leftmost part that is not zero."""
    major, minor, patch = low
    if major or not (parts[1] or "").isdigit():
        return (major + 1, 0, 0)
    if minor or not (parts[2] or "").isdigit():
        return (0, minor + 1, 0)
    return (0, 0, patch + 1)


def _span(parts: tuple[str | None, ...]) -> tuple[Version, Version]:
    """What a partial version stands for: 1.2 is everything from 1.2.0 to below 1.3.0."""
    numbers = []
    for part in parts:
        if part is None or not part.isdigit():
            break
        numbers.append(int(part))
    if not numbers:
        return (0, 0, 0), TOP
    padded = (*numbers, 0, 0)[:3]
    upper = [*numbers[:-1], numbers[-1] + 1, 0, 0][:3]
    return (padded[0], padded[1], padded[2]), (upper[0], upper[1], upper[2])
