"""Bytes that a program printed, in any pieces, become lines that are safe to show. Pure.

A line ends at a newline. A longer one than :data:`LIMIT` is cut into pieces (Heroku: 10,000 bytes). Escape sequences stay,
because colours belong to the reader's terminal; whatever could start a new line in some reader and so forge another
line (carriage return, vertical tab, form feed, the separators that ``str.splitlines`` knows) and NUL become spaces;
bytes that are not UTF-8 become U+FFFD, or ``?`` in a line that would be longer than the limit by it.
"""

from __future__ import annotations

import re

LIMIT = 10_000
"""Bytes of a line at the most, before cleaning and after it."""

_BREAKS = re.compile(rb"[\x00\n\r\x0b\x0c\x1c-\x1e]")
_UNKNOWN = "\ufffd".encode()
_TEXT_BREAKS = re.compile("[\x00\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def clean(raw: bytes) -> bytes:
    """One line made safe: valid UTF-8 without line breaks or NUL; the ``\\r`` of a CRLF line end goes without a trace.

    What is no longer than :data:`LIMIT` stays so: U+FFFD has three bytes, and binary data would come out three times as long.
    """
    if raw.isascii():
        if not _BREAKS.search(raw):
            return raw
        return _BREAKS.sub(b" ", raw.removesuffix(b"\r"))
    text = raw.removesuffix(b"\r").decode("utf-8", "replace")
    safe = _TEXT_BREAKS.sub(" ", text).encode()
    return safe if len(safe) <= LIMIT else safe.replace(_UNKNOWN, b"?")


def cut(line: bytes) -> list[bytes]:
    """Pieces of at most :data:`LIMIT` bytes, not cut inside a UTF-8 character; all but the last are full."""
    pieces = []
    start = 0
    while len(line) - start > LIMIT:
        end = _boundary(line, start + LIMIT)
        pieces.append(line[start:end])
        start = end
    pieces.append(line[start:])
    return pieces


def _boundary(line: bytes, end: int) -> int:
    for back in range(4):  # a UTF-8 character has three continuation bytes at the most
        if line[end - back] & 0xC0 != 0x80:
            return end - back
    return end


def split_text(text: str) -> list[bytes]:
    """The safe lines of a text that one of Davit's own processes logs; an empty text is one empty line."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= LIMIT and b"\n" not in raw:
        return [clean(raw)]
    return [clean(piece) for line in raw.removesuffix(b"\n").split(b"\n") for piece in cut(line)]


class Splitter:
    """The lines of one stream, however its bytes arrive: any chunking gives the same lines.

    Holds at most :data:`LIMIT` bytes between calls.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._shown = False  # a part of the present line is out already: its bare end is not another, empty line

    @property
    def partial(self) -> bool:
        """Whether the beginning of an unfinished line waits."""
        return bool(self._rest)

    def feed(self, data: bytes, room: int) -> tuple[list[bytes], int]:
        """Take what was read.

        Args:
            data: the next bytes.
            room: lines that are wanted at the most; what is beyond is counted and forgotten, which costs a hundredth.

        Returns:
            (the finished lines, safe; the number of lines dropped).
        """
        raw = (self._rest + data if self._rest else data).split(b"\n", room)
        rest = raw.pop()
        dropped = 0
        if len(raw) == room and (newline := rest.rfind(b"\n")) >= 0:
            dropped = rest.count(b"\n")
            if not raw and self._shown:
                dropped -= rest.startswith((b"\n", b"\r\n"))
                self._shown = False
            rest = rest[newline + 1 :]
        if raw and self._shown:
            if raw[0] in (b"", b"\r"):
                del raw[0]
            self._shown = False
        if raw and max(map(len, raw)) > LIMIT:
            raw = [piece for line in raw for n, piece in enumerate(cut(line)) if not n or piece != b"\r"]
        if len(rest) > LIMIT:
            *pieces, rest = cut(rest)
            raw += pieces
            self._shown = True
        self._rest = rest
        dropped += max(0, len(raw) - room)
        return [clean(line) for line in raw[:room]], dropped

    def flush(self) -> bytes | None:
        """The unfinished line, when there is one and it has waited long enough or nothing more will come."""
        if not self._rest:
            return None
        rest, self._rest, self._shown = self._rest, b"", True
        return clean(rest)
