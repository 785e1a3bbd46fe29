"""Reading a pasted .env file: NAME=VALUE lines as shells, docker and the dotenv libraries have them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from foundation.errors import InvalidParams

_LINE = re.compile(r"\s*(?:export\s+)?(?P<name>[^=\s#][^=]*?)\s*=[ \t]*(?P<value>.*)", re.S)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$", "`": "`"}


def parse(text: str) -> dict[str, str]:
    """The variables of a .env file; where a name comes twice the last one counts.

    Values may be quoted: in single quotes everything is as it is, in double quotes ``\\n`` and the like are escapes; quoted
    values may span lines. Without quotes a value ends before ``' #'``. References to other variables are not expanded.

    Raises:
        InvalidParams: a line is neither a comment nor NAME=VALUE, or a quote is not closed; the sentence gives its number.
    """
    found: dict[str, str] = {}
    for entry in _entries(_lines(text)):
        if entry.problem:
            raise InvalidParams(entry.problem)
        found[entry.name] = entry.value
    return found


def without(text: str, names: Collection[str]) -> str:
    """A .env file whose lines for these names are comments; lines that cannot be read stay as they are."""
    lines = _lines(text)
    taken_out = {at for entry in _entries(lines) if entry.name in names for at in range(entry.first, entry.after)}
    return "\n".join(f"# {line}" if at in taken_out else line for at, line in enumerate(lines))


@dataclass(frozen=True)
class _Entry:
    """What the lines from ``first`` to before ``after`` say, or what is wrong with them."""

    first: int
    after: int
    name: str = ""
    value: str = ""
    problem: str = ""


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff").split("\n")


def _entries(lines: Sequence[str]) -> Iterator[_Entry]:
    number = 0
    while number < len(lines):
        line, first = lines[number], number
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            yield _Entry(first, number, problem=f"Line {first + 1} is not NAME=VALUE: “{line.strip()[:40]}”.")
            continue
        name, value = match["name"], match["value"]
        if value[:1] not in ("'", '"'):
            yield _Entry(first, number, name, re.split(r"\s#", value, maxsplit=1)[0].strip())
            continue
        while (end := _closing(value)) is None and number < len(lines):
            value += "\n" + lines[number]
            number += 1
        if end is None:
            problem = f"Line {first + 1}: the quote that begins the value of {name} is not closed."
            yield _Entry(first, number, name, problem=problem)
            return
        yield _Entry(first, number, name, _unquoted(value[: end + 1]))


def _closing(value: str) -> int | None:
    """Where the quote that begins ``value`` is closed."""
    at = 1
    while at < len(value):
        if value[at] == "\\" and value[0] == '"':
            at += 1
        elif value[at] == value[0]:
            return at
        at += 1
    return None


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    if value[0] == "'":
        return inner
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), inner, flags=re.S)
