"""How OSv reads its command line, written from its documented rules: the oracle for what Davit writes.

Bytes in, bytes out, as the kernel works on them: ``boot(line, files)`` gives the commands that would run and the environment
that they would find.
"""

from __future__ import annotations

from collections.abc import Mapping

_ESCAPES = {
    b"\\a": b"\a", b"\\b": b"\b", b"\\f": b"\f", b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t", b"\\v": b"\v", b"\\\\": b"\\",
    b"\\'": b"'", b'\\"': b'"',
}  # fmt: skip
_BLANK = b" \t\n\v\f\r"


class Refused(Exception):
    """The guest would say so and power off."""


def loader_words(line: bytes) -> tuple[list[bytes], bytes]:
    """Loader options and the rest: words end at blanks that no backslash precedes, as long as they begin with ``-``."""
    options: list[bytes] = []
    place = 0
    while True:
        while place < len(line) and line[place : place + 1] in (b" ", b"\t", b"\n"):
            place += 1
        if line[place : place + 1] != b"-":
            return options, line[place:]
        word = b""
        while place < len(line) and line[place : place + 1] not in (b" ", b"\t", b"\n"):
            if line[place : place + 1] == b"\\":
                place += 1
                if place == len(line):
                    raise Refused("a backslash at the end")
            word += line[place : place + 1]
            place += 1
        options.append(word)


def commands(text: bytes) -> list[list[bytes]]:
    """Command words by command, the last word of each being what ended it; ASCII only."""
    if not text.strip(_BLANK + b";"):
        return []
    found: list[list[bytes]] = []
    current: list[bytes] = []
    place = 0
    while True:
        while place < len(text) and text[place : place + 1] in list(map(bytes, zip(_BLANK))):
            place += 1
        if place == len(text):
            if current:
                found.append([*current, b""])
            return found
        for end in (b";", b"&!", b"&", b"!"):
            if text.startswith(end, place):
                if not current:
                    raise Refused("an empty command")
                found.append([*current, end])
                current = []
                place += len(end)
                break
        else:
            word, place = _quoted(text, place) if text[place : place + 1] == b'"' else _plain(text, place)
            current.append(word)


def _character(text: bytes, place: int) -> tuple[bytes, int]:
    if text[place : place + 2] in _ESCAPES:
        return _ESCAPES[text[place : place + 2]], place + 2
    if text[place] > 127:
        raise Refused("a character beyond ASCII")
    return text[place : place + 1], place + 1


def _quoted(text: bytes, place: int) -> tuple[bytes, int]:
    word = b""
    place += 1
    while text[place : place + 1] != b'"':
        if place >= len(text):
            raise Refused("a quote without its end")
        character, place = _character(text, place)
        word += character
    return word, place + 1


def _plain(text: bytes, place: int) -> tuple[bytes, int]:
    word = b""
    while place < len(text) and text[place : place + 1] not in (b" ", b";", b"&", b"!"):
        character, place = _character(text, place)
        word += character
    return word, place


def expanded(word: bytes, environment: Mapping[bytes, bytes]) -> bytes:
    """From the first ``$`` to its end a word names a variable."""
    before, dollar, name = word.partition(b"$")
    return before + environment.get(name, b"") if dollar else word


def boot(line: bytes, files: Mapping[bytes, bytes]) -> tuple[list[list[bytes]], dict[bytes, bytes], dict[bytes, list[bytes]]]:
    """Commands, the environment that they find, and the loader's other options."""
    words, rest = loader_words(line)
    options: dict[bytes, list[bytes]] = {}
    environment: dict[bytes, bytes] = {}
    for word in words:
        name, equals, value = word.removeprefix(b"--").partition(b"=")
        if not word.startswith(b"--") or (equals and not value):
            raise Refused(f"the option {word!r}")
        options.setdefault(name, []).append(value)
        if name == b"env":
            key, _, content = value.partition(b"=")
            environment[key] = content
    run: list[list[bytes]] = []
    for command in commands(rest):
        command = [*(expanded(word, environment) for word in command[:-1]), command[-1]]
        if command[0] != b"runscript":
            run.append(command)
            continue
        for script_line in files[command[1]].split(b"\n"):
            for inner in commands(script_line.split(b"\0")[0]):
                run.append(_script_command(inner, environment))
    return run, environment, options


def _script_command(command: list[bytes], environment: dict[bytes, bytes]) -> list[bytes]:
    *words, end = command
    while words and words[0].startswith(b"-"):
        setting = words.pop(0)
        if not setting.startswith(b"--env="):
            raise Refused(f"the option {setting!r}")
        assignment = setting.removeprefix(b"--env=")
        if b"?=" in assignment:
            key, _, value = assignment.partition(b"?=")
            if key in environment:
                continue
        else:
            key, _, value = assignment.partition(b"=")
        if key:
            environment[key] = expanded(value, environment)
    return [*(expanded(word, environment) for word in words), end]
