"""What an OSv kernel is told when it boots: how words must be written so that they arrive as they are (pure).

Three parsers read what we write, and each has its own rules (measured, and read in OSv's core/commands.cc):

* *loader options*, the words of the kernel's command line that begin with ``-``: no quotes; a backslash takes the meaning from
  the next character; what ends them is blank, tab or newline. Any byte may be in them.
* *command words*, what follows them: ASCII only. In double quotes, ``\\"`` and ``\\\\`` stand for themselves and ``\\n`` for a
  newline. From the first ``$`` to its end a word is the name of an environment variable, and nothing can prevent that.
* *a runscript*: one such command a line, in a file of any length; its first words may be ``--env=NAME=VALUE``, where ``$`` is
  expanded likewise and the first ``?=`` in the word, wherever it stands, is taken for another kind of assignment.

So what a word cannot hold travels as an environment variable set by a loader option, and the word ends with its name. The
kernel's line is short, the runscript is not: only what needs it goes on the line. The kernel takes any name for a variable's:
those of Davit's own begin with a point, as no config var's does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foundation.errors import DavitError

LONGEST_LINE = 3600
"""Bytes of the kernel's command line at the most: with 3635 it boots, with 3673 it does not, and says nothing."""
LONGEST_ON_DISK = 1023
"""Bytes of the command line that a boot disk holds."""

OWN = "."
"""What the names of Davit's own variables begin with: no config var can have such a name."""
SITE, SIGNALS = f"{OWN}site", f"{OWN}signals"
"""For Davit's modules in Python and Node.js: where the app's packages are, and the port for signals."""

_NAME = re.compile(r"\.?[A-Za-z_][A-Za-z0-9_.-]*")
_UNQUOTABLE = re.compile(r"[^\x01-\x7f]|\$")
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}


class LineTooLong(DavitError):
    """More must stand on the kernel's command line than fits there."""

    id, status = "osv_line_too_long", 422


class VariableRefused(DavitError):
    """An environment variable that no unikernel can be given."""

    id, status = "osv_variable_refused", 422


@dataclass(frozen=True)
class Boot:
    """How a unikernel is started.

    Attributes:
        line: the kernel's command line. Holds secrets.
        script: the runscript's content. Holds secrets.
    """

    line: bytes
    script: bytes


@dataclass(frozen=True)
class Command:
    """A command that begins before the program.

    Attributes:
        argv: its path and arguments.
        beside: it runs beside the program and ends with it; otherwise it is over before anything else begins.
    """

    argv: Sequence[str]
    beside: bool = True


def option(name: str, value: str | None = None) -> str:
    """A loader option, ``--name`` or ``--name=value``.

    Raises:
        ValueError: the value is empty or holds a NUL, which no escape helps.
    """
    if value is None:
        return f"--{name}"
    if not value or "\0" in value:
        raise ValueError(f"--{name} cannot have the value {value!r}")
    return f"--{name}=" + re.sub(r"([\\ \t\n])", r"\\\1", value)


def word(value: str) -> str:
    """A command word in quotes.

    Raises:
        ValueError: no quoting keeps it as it is (``$``, characters beyond ASCII, NUL): see :func:`compose`.
    """
    if found := _UNQUOTABLE.search(value):
        raise ValueError(f"no quoting keeps {found[0]!r}")
    return '"' + "".join(_ESCAPED.get(character, character) for character in value) + '"'


def compose(
    options: Sequence[str],
    environment: Mapping[str, str],
    argv: Sequence[str],
    *,
    script: str,
    before: Sequence[Command] = (),
    last: tuple[str, str] | None = None,
    limit: int = LONGEST_LINE,
) -> Boot:
    """The line and the runscript that start ``argv`` with ``environment``.

    Args:
        options: loader options, as :func:`option` writes them.
        environment: what the program finds. Secrets.
        argv: the program's path and arguments.
        script: the path at which the guest finds the runscript.
        before: commands that begin before it, in this order.
        last: a variable that is set after all others: what the console shows of it is the end of the kernel's own words.
        limit: bytes of the line at the most.

    Raises:
        LineTooLong: too much of it holds what only the line can hold.
        VariableRefused: a name is no variable's name, or a value holds NUL.
        ValueError: there is no program.
    """
    if not argv or not argv[0]:
        raise ValueError("there is no program to start")
    carriers: dict[str, str] = {}
    line = list(options)
    words: list[str] = []
    for name, value in environment.items():
        if "\0" in value:
            raise VariableRefused(f"The value of {name[:80]!r} has a NUL in it, which no environment can hold: correct it.")
        if not _NAME.fullmatch(name):
            raise VariableRefused(
                f"{name[:80]!r} cannot be an environment variable of a unikernel: correct its name, or run this process type as"
                " microvm."
            )
        if (carried := _carried(f"--env={name}=", value, carriers)) is None:
            line.append(option("env", f"{name}={value}"))
        else:
            words.append(carried)
    if last is not None:
        words.append(word(f"--env={last[0]}={last[1]}"))
    for argument in argv:
        carried = _carried("", argument, carriers)
        assert carried is not None
        words.append(carried)
    line += [option("env", f"{name}={value}") for name, value in carriers.items()]
    commands = [" ".join(map(word, command.argv)) + (" &!" if command.beside else ";") for command in before]
    text = " ".join([*line, *commands, f"runscript {word(script)}"]).encode()
    if len(text) > limit:
        raise LineTooLong(
            f"The environment and the command hold {len(text)} bytes of values with $ or with characters beyond ASCII (and what"
            f" OSv is told besides); a unikernel takes {limit}. Shorten them, or run this process type as microvm."
        )
    return Boot(text, " ".join(words).encode("ascii") + b"\n")


def _carried(prefix: str, value: str, carriers: dict[str, str]) -> str | None:
    """A quoted word for ``prefix + value``; from its first unquotable character on it is in a carrier. None when it must be
    an option of its own, because the word would be read as another kind of assignment."""
    found = _UNQUOTABLE.search(value)
    plain, rest = (value, "") if found is None else (value[: found.start()], value[found.start() :])
    if prefix and "?=" in plain:
        return None
    if not rest:
        return word(prefix + plain)
    known = next((name for name, carried in carriers.items() if carried == rest), None)
    name = known or f"{OWN}{len(carriers)}"
    carriers[name] = rest
    # the word's own `$` is meant: the guest puts the variable's value in its place and does not look at that again
    return word(prefix + plain)[:-1] + f'${name}"'
