"""The Procfile: what runs, line by line.

Follows the parser that Heroku documents for its classic stacks, ``^\\s*([a-zA-Z0-9_-]+):?\\s+(.*)\\s*`` applied to each line
(the colon is optional, a trailing ``# comment`` belongs to the command and is the shell's business), and is stricter only
where that parser would drop a line in silence: then there is a warning, or an error when a process type was clearly meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from foundation.errors import DavitError

LINE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]*)(?::\s*|\s+)(\S.*)$")
BARE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*:$")
MISNAMED = re.compile(r"([^\s:#'\"=$]{1,80}):\s+\S")
NAME_LENGTH = 63
TYPES = 100
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


class ProcfileError(DavitError):
    """The Procfile cannot be used; the sentence names the line."""

    id, status = "invalid_procfile", 422


@dataclass
class Procfile:
    """Process types in the order of their lines, and what is worth telling the person about the file."""

    types: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def parse(content: bytes) -> Procfile:
    """Read a Procfile.

    Args:
        content: the file's bytes: UTF-8 with or without a byte order mark, or UTF-16 with one; any line ends.

    Raises:
        ProcfileError: it is no text, or a line names a process type that cannot be.
    """
    result = Procfile()
    text = _decoded(content, result)
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        _read_line(number, line, result)
    if len(result.types) > TYPES:
        raise ProcfileError(f"The Procfile declares {len(result.types)} process types; {TYPES} is the most there can be.")
    return result


def _decoded(content: bytes, result: Procfile) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text = content.decode("utf-16")
        except UnicodeDecodeError:
            raise ProcfileError("The Procfile is no text: it begins as UTF-16 and does not go on so. Save it as UTF-8.") from None
        result.warnings.append(
            "The Procfile is encoded as UTF-16 (PowerShell's > writes that). It was read; better save it as UTF-8."
        )
        return text
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ProcfileError(
            f"The Procfile is not UTF-8 text: line {line} holds the byte 0x{content[error.start]:02x}. Save it as UTF-8."
        ) from None


def _read_line(number: int, line: str, result: Procfile) -> None:
    if CONTROL.search(line):
        raise ProcfileError(f"Line {number} of the Procfile holds a control character; remove it.")
    match = LINE.match(line)
    if match is None:
        if BARE.match(line):
            result.warnings.append(f"Line {number} of the Procfile declares “{line[:-1]}” without a command; it is left out.")
            return
        if misnamed := MISNAMED.match(line):
            raise ProcfileError(
                f"Line {number} of the Procfile names the process type “{misnamed[1]}”; "
                "a name is made of letters, digits, - and _."
            )
        result.warnings.append(f"Line {number} of the Procfile is not of the form `name: command`; it is left out: {line[:80]}")
        return
    name, command = match[1], match[2].rstrip()
    if len(name) > NAME_LENGTH:
        raise ProcfileError(
            f"Line {number} of the Procfile names a process type of {len(name)} characters; {NAME_LENGTH} is the most."
        )
    if not line[len(name) :].startswith(":"):
        result.warnings.append(
            f"Line {number} of the Procfile has no colon after “{name}”; it was read as `{name}: {command[:60]}`."
        )
    if name in result.types:
        result.warnings.append(f"The Procfile declares “{name}” more than once; line {number} is the one that counts.")
        del result.types[name]
    result.types[name] = command
