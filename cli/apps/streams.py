"""What the API streams, on standard output as a rule. It is strangers' text: a terminal gets its colours, no other controls."""

from __future__ import annotations

import codecs
import re
import sys
from typing import BinaryIO

from cli.client import Client

_CONTROL = re.compile(
    r"(?P<colour>\x1b\[[0-9;:]*m)"  # SGR (ECMA-48, 8.3.117): it stays
    r"|\x1b\[[0-?]*[ -/]*[@-~]?"  # other control sequences
    r"|\x1b[PX^_\]][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # strings: titles, links, the clipboard
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)
_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[PX^_\]][^\x07\x1b\x9c]*\x1b?|[ -/]*)\Z")
_LONGEST = 4096


def harmless(line: str) -> str:
    """A line of a stranger's as a terminal may be given it: with its colours, which end with it, and nothing else that steers."""
    line = _CONTROL.sub(lambda match: match["colour"] or "", line)
    return line + "\x1b[0m" if "\x1b" in line else line


class Harmless:
    """The same for text that comes in pieces, in which neither lines nor sequences need be whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, piece: bytes, *, last: bool = False) -> str:
        """What of it may be shown by now; a sequence that has only begun is held back until more comes."""
        text, self._held = self._held + self._decoder.decode(piece, last), ""
        begun = _BEGUN.search(text)
        if begun and not last and len(text) - begun.start() < _LONGEST:
            text, self._held = text[: begun.start()], text[begun.start() :]
        return "\n".join(map(harmless, text.split("\n")))


def copy(client: Client, url: str, to: BinaryIO | None = None) -> None:
    """Write a text stream to ``to`` (standard output when None) as it comes, until its end."""
    out = to or sys.stdout.buffer
    shown = Harmless() if out.isatty() else None
    with client.stream(url) as answer:
        while chunk := answer.read1(65536):
            out.write(shown.feed(chunk).encode() if shown else chunk)
            out.flush()
    if shown:
        out.write(shown.feed(b"", last=True).encode())
        out.flush()
