"""Terminal output as HTML: colours (ECMA-48 SGR) become classes, other control sequences vanish, text is escaped.

Output of builds and logs is hostile: nothing of it reaches the page but text and the class names below. What is rendered in
pieces carries a :class:`Pen` from one piece to the next, small enough to be part of a stream's cursor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

_SEQUENCE = re.compile(
    r"\x1b\[(?P<codes>[0-9;:]{0,64})m"  # SGR
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # other CSI sequences
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: titles, links
    r"|\x1b[P^_X][^\x1b]*(?:\x1b\\)?"  # DCS, PM, APC, SOS
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)


@dataclass(frozen=True)
class Pen:
    """What the next character looks like: colours 0 to 15 (None: the default), bold, faint, italic, underlined."""

    ink: int | None = None
    paper: int | None = None
    bold: bool = False
    faint: bool = False
    italic: bool = False
    underlined: bool = False

    @property
    def classes(self) -> str:
        """Its class names, empty for plain text."""
        names = [f"a{self.ink}"] if self.ink is not None else []
        names += [f"g{self.paper}"] if self.paper is not None else []
        flags = (("ab", self.bold), ("af", self.faint), ("ai", self.italic), ("au", self.underlined))
        return " ".join(names + [name for name, on in flags if on])

    def __str__(self) -> str:
        """As part of a cursor; :func:`parse` reads it."""
        flags = self.bold + 2 * self.faint + 4 * self.italic + 8 * self.underlined
        return ".".join(str(-1 if value is None else value) for value in (self.ink, self.paper)) + f".{flags}"


PLAIN = Pen()


def parse(text: str) -> Pen:
    """A pen from its text; plain when it is none (cursors come from clients)."""
    try:
        ink, paper, flags = (int(part) for part in text.split("."))
    except ValueError:
        return PLAIN
    if not (-1 <= ink <= 15 and -1 <= paper <= 15 and 0 <= flags <= 15):
        return PLAIN
    return Pen(
        None if ink < 0 else ink, None if paper < 0 else paper, bool(flags & 1), bool(flags & 2), bool(flags & 4), bool(flags & 8)
    )


def render(text: str | bytes, pen: Pen = PLAIN) -> Markup:
    """Whole output at once; see :func:`pieces`."""
    return pieces(text, pen)[0]


def pieces(text: str | bytes, pen: Pen = PLAIN) -> tuple[Markup, Pen]:
    """HTML of ``text`` written with ``pen``, and the pen afterwards; a carriage return writes its line anew."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = text.replace("\r\n", "\n")
    out: list[str] = []
    for number, line in enumerate(text.split("\n")):
        if number:
            out.append("\n")
        if "\r" in line:
            line = _overwritten(line)
        pen = _line(line, pen, out)
    return Markup("".join(out)), pen  # noqa: S704 - every piece of it was escaped


def _overwritten(line: str) -> str:
    """What a line shows in the end that was written over again and again (progress bars): the last that is not empty."""
    return next((part for part in reversed(line.split("\r")) if part), "")


def _line(line: str, pen: Pen, out: list[str]) -> Pen:
    at = 0
    for match in _SEQUENCE.finditer(line):
        _put(line[at : match.start()], pen, out)
        at = match.end()
        if match["codes"] is not None:
            pen = _changed(pen, match["codes"])
    _put(line[at:], pen, out)
    return pen


def _put(text: str, pen: Pen, out: list[str]) -> None:
    if not text:
        return
    classes = pen.classes
    out.append(f'<span class="{classes}">{escape(text)}</span>' if classes else str(escape(text)))


_FLAGS: dict[int, dict[str, bool]] = {
    1: {"bold": True}, 2: {"faint": True}, 3: {"italic": True}, 4: {"underlined": True},
    22: {"bold": False, "faint": False}, 23: {"italic": False}, 24: {"underlined": False},
}  # fmt: skip


def _changed(pen: Pen, codes: str) -> Pen:
    """ECMA-48, 8.3.117, and the colours of ITU T.416 as terminals write them."""
    numbers = [int(code) if code.isdigit() else 0 for code in re.split("[;:]", codes)]
    at = 0
    while at < len(numbers):
        code = numbers[at]
        at += 1
        if code == 0:
            pen = PLAIN
        elif code in _FLAGS:
            pen = replace(pen, **_FLAGS[code])
        elif 30 <= code <= 37 or 90 <= code <= 97:
            pen = replace(pen, ink=code - 30 if code < 90 else code - 82)
        elif 40 <= code <= 47 or 100 <= code <= 107:
            pen = replace(pen, paper=code - 40 if code < 100 else code - 92)
        elif code == 39:
            pen = replace(pen, ink=None)
        elif code == 49:
            pen = replace(pen, paper=None)
        elif code in (38, 48):
            colour, used = _extended(numbers[at:])
            at += used
            pen = replace(pen, ink=colour) if code == 38 else replace(pen, paper=colour)
    return pen


def _extended(rest: list[int]) -> tuple[int | None, int]:
    """One of 256 colours, or red, green and blue, as the nearest of the sixteen; and how many numbers it took."""
    if rest[:1] == [5] and len(rest) > 1:
        return _of_256(rest[1]), 2
    if rest[:1] == [2] and len(rest) > 3:
        return _nearest(*rest[1:4]), 4
    return None, len(rest)


def _of_256(number: int) -> int | None:
    if number < 16:
        return number
    if number < 232:
        cube = number - 16
        return _nearest(*(51 * (cube // step % 6) for step in (36, 6, 1)))
    if number < 256:
        return _nearest(*[8 + 10 * (number - 232)] * 3)
    return None


def _nearest(red: int, green: int, blue: int) -> int:
    bright = 8 if max(red, green, blue) > 170 else 0
    least = max(red, green, blue) // 2
    return bright + (red > least) + 2 * (green > least) + 4 * (blue > least) if max(red, green, blue) > 40 else 0
