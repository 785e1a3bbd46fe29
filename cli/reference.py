"""docs/cli.md, written from the commands themselves: ``python -m cli.reference`` (``-`` only prints it)."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cli.main import COMMANDS, SECOND_NAMES, cli

PATH = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

_BEFORE = """\
# The davit command

Commands on apps are named and shaped as the `heroku` command's. They find the app by `-a APP`, by the variable `DAVIT_APP`,
or by the checkout's git remote `davit` (which `apps:create` and `git:remote` make).

On Davit's own machine the owner of `DAVIT_HOME` needs no login. Elsewhere: `davit login URL`. To choose another Davit for one
command, set `DAVIT_URL`, and `DAVIT_TOKEN` where no login is stored.

The exit status is 0 when all went well, 1 when the command could not do its work, 2 when the API refused or the command line
was wrong; `davit run` passes the exit status of its command on.

`run`, `run:detached`, `run:inside` and `ps:exec` take their flags behind the command, too, as heroku's do. What stands behind
`--` is the command's own: `davit run rake db:migrate -a my-app`, but `davit run -a my-app -- ls -a`.

"""


def render() -> str:
    """The page."""
    context = click.Context(cli, info_name="davit", **cli.context_settings)
    parts = []
    for name in sorted(COMMANDS):
        command = cli.get_command(context, name)
        if command is None or command.hidden or _alias(name):
            continue
        help = command.get_help(click.Context(command, info_name=name, parent=context, max_content_width=100, terminal_width=100))
        aliases = [other for other, place in COMMANDS.items() if place == COMMANDS[name] and other != name]
        also = f"Also: {', '.join(f'`{other}`' for other in aliases)}.\n\n" if aliases else ""
        parts.append(f"## {name}\n\n{also}```\n{help}\n```\n")
    return _BEFORE + "\n".join(parts)


def _alias(name: str) -> bool:
    """Whether the command has a longer name of its own, or this is only its second."""
    own = {other for other, place in COMMANDS.items() if place == COMMANDS[name]} - SECOND_NAMES.keys()
    return name in SECOND_NAMES or any(len(other) > len(name) and ":" in other for other in own)


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        print(render(), end="")
    else:
        PATH.write_text(render())
