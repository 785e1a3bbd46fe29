"""Ranges of Python versions, as pyproject.toml has them: PEP 440's (``>=3.11,<3.13``, ``~=3.11``, ``==3.12.*``) and Poetry's
(``^3.11``, ``~3.11``, ``3.12.*``, ``^3.11 || ^3.13``)."""

from __future__ import annotations

import re

CLAUSE = re.compile(r"(===|==|!=|<=|>=|~=|<|>|\^|~|=|)v?(\d+(?:\.\d+)*)(\.\*)?")

Version = tuple[int, ...]


class UnknownRange(ValueError):
    """The text is no range that this module can read."""


def allows(text: str, version: str) -> bool:
    """Whether ``version``, such as ``3.13.5``, is in the range (``3.14.0rc1`` counts as ``3.14.0``); what says nothing allows all.

    Raises:
        UnknownRange: ``text`` cannot be read.
    """
    is_there = tuple(map(int, re.findall(r"\d+", version)[:3]))
    return any(all(_fits(clause, is_there) for clause in _clauses(part)) for part in re.split(r"\|\|?", text))


def _clauses(text: str) -> list[str]:
    together = re.sub(r"([<>=!~^])\s+", r"\1", text)
    return [clause for clause in re.split(r"[,\s]+", together) if clause not in ("", "*")]


def _fits(clause: str, version: Version) -> bool:
    match = CLAUSE.fullmatch(clause)
    if match is None:
        raise UnknownRange(clause)
    operator, named, wildcard = match[1], tuple(map(int, match[2].split("."))), bool(match[3])
    if operator in ("", "=", "==", "===", "!="):
        prefix = wildcard or (len(named) < 3 and operator != "!=")  # who writes 3.12 means any 3.12; who excludes it, 3.12.0
        same = version[: len(named)] == named if prefix else _padded(version) == _padded(named)
        return same != (operator == "!=")
    if operator in ("~", "~=", "^"):
        return _padded(named) <= _padded(version) < _padded(_end(operator, named))
    return {
        "<": _padded(version) < _padded(named), "<=": _padded(version) <= _padded(named),
        ">": _padded(version) > _padded(named), ">=": _padded(version) >= _padded(named),
    }[operator]  # fmt: skip


def _end(operator: str, named: Version) -> Version:
    """The first version that is too new: ``^3.11`` and ``~=3.11`` end at 4, ``~3.11`` at 3.12, ``~=3.11.2`` at 3.12."""
    if operator == "^":
        kept = next((place for place, number in enumerate(named, 1) if number), len(named))
    elif operator == "~=":
        kept = max(1, len(named) - 1)
    else:
        kept = min(2, len(named))
    return (*named[: kept - 1], named[kept - 1] + 1)


def _padded(version: Version) -> Version:
    return (*version, 0, 0, 0, 0)[:4]
