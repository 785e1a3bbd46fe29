"""Reading Procfile: Davit's own processes, one ``name: command`` a line."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Mapping
from pathlib import Path

from foundation.errors import DavitError

_LINE = re.compile(r"^([A-Za-z0-9_-]+):\s*(\S.*)$")


class ProcfileError(DavitError):
    """Davit's own Procfile cannot be read."""

    id, status = "invalid_procfile", 500


def parse(text: str) -> dict[str, str]:
    """Name → command line, in the order of the file; comments (#) and empty lines are left out.

    Raises:
        ProcfileError: a line is neither.
    """
    commands: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.match(stripped)
        if match is None or match[1] in commands:
            raise ProcfileError(f"Line {number} of Davit's Procfile must be `name: command`, each name once: “{stripped}”.")
        commands[match[1]] = match[2]
    return commands


def arguments(command: str, environment: Mapping[str, str]) -> list[str]:
    """Split a command as a shell would and put ``$NAME`` in, without a shell: a value stays one argument.

    Raises:
        ProcfileError: the environment lacks a variable that the command names.
    """
    try:
        return [string.Template(word).substitute(environment) for word in shlex.split(command)]
    except (KeyError, ValueError) as error:
        raise ProcfileError(f"The command `{command}` in Davit's Procfile cannot be expanded: {error}.") from None


def wanted(checkout: Path, environment: Mapping[str, str]) -> dict[str, list[str]]:
    """Name → argv of what is to run: everything in the checkout's Procfile, `redis` only when REDIS_URL is unset."""
    commands = parse((checkout / "Procfile").read_text())
    if environment.get("REDIS_URL"):
        commands.pop("redis", None)
    return {name: arguments(command, environment) for name, command in commands.items()}
