"""The ``davit`` command's entrance. Commands load when they are called, so that a short one starts at once."""

from __future__ import annotations

import importlib
import sys

import click

from foundation.errors import DavitError

COMMANDS: dict[str, str] = {
    # the host
    "up": "cli.host.commands:up",
    "down": "cli.host.commands:down",
    "status": "cli.host.commands:status",
    "doctor": "cli.host.commands:doctor",
    "stack:build": "cli.host.commands:stack_build",
    # apps, through the API
}
"""Name → ``module:function`` of its click command. Modules listed here are imported only when the command is called."""


class LazyCommands(click.Group):
    """A group whose commands are listed in :data:`COMMANDS` and imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, function = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"There is no command “{name}”.{_nearest(name)} `davit --help` lists all.", ctx)
        return super().resolve_command(ctx, args)


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f" Did you mean “{close[0]}”?" if close else ""


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option("0.1.0", prog_name="davit")
def cli() -> None:
    """Davit: git push, and the app is live, on a machine that you own."""


def main() -> None:
    """Run the command line; a failure is one sentence on standard error and exit status 1."""
    try:
        cli(prog_name="davit")
    except DavitError as error:
        click.echo(f"Error: {error.message}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(141)  # as a shell reports SIGPIPE: the reader had enough


if __name__ == "__main__":
    main()
