"""completions: what makes a shell complete commands, options and apps."""

from __future__ import annotations

import click

from cli.output import command

SHELLS = ("bash", "zsh", "fish")


@command("completions")
@click.argument("shell", type=click.Choice(SHELLS))
def completions(shell: str) -> None:
    """Print what makes SHELL complete davit's commands, options and apps.

    \b
    bash:  eval "$(davit completions bash)"     in ~/.bashrc
    zsh:   eval "$(davit completions zsh)"      in ~/.zshrc, after compinit
    fish:  davit completions fish > ~/.config/fish/completions/davit.fish
    """
    from click.shell_completion import get_completion_class

    from cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "davit", "_DAVIT_COMPLETE").source())
    if shell == "bash":  # where a colon would end the word otherwise
        click.echo('COMP_WORDBREAKS="${COMP_WORDBREAKS//:/}"')
