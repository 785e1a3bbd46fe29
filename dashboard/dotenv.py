"""Reading a pasted .env file: NAME=VALUE lines as shells, docker and the dotenv libraries have them."""

from __future__ import annotations

import re

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
    lines = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff").split("\n")
    number = 0
    while number < len(lines):
        line, first = lines[number], number + 1
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise InvalidParams(f"Line {first} is not NAME=VALUE: “{line.strip()[:40]}”.")
        value = match["value"]
        if value[:1] in ("'", '"'):
            while (end := _closing(value)) is None and number < len(lines):
                value += "\n" + lines[number]
                number += 1
            if end is None:
                raise InvalidParams(f"Line {first}: the quote that begins the value of {match['name']} is not closed.")
            value = _unquoted(value[: end + 1])
        else:
            value = re.split(r"\s#", value, maxsplit=1)[0].strip()
        found[match["name"]] = value
    return found


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
