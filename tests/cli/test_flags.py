"""Scripts that were written for the heroku command find its flags at the davit command."""

from __future__ import annotations

import click

from cli.main import COMMANDS, cli
from tests.e2e.heroku import manifest

_TEAMS = {"team", "space", "personal", "locked", "common", "private"}
_NOT = {
    "apps:create": {"addons"}, "apps:transfer": {"bulk"}, "auth:login": {"browser", "expires-in"},
    "authorizations:update": {"client-id", "client-secret"},
    "certs:info": {"endpoint", "show-domains"}, "certs:remove": {"endpoint"}, "certs:update": {"endpoint"},
    "domains": {"columns", "csv", "extended", "filter", "no-wrap", "sort"}, "keys:add": {"yes"},
    "logs": {"force-colors"}, "ps": {"no-wrap"}, "ps:exec": {"ssh", "status"},
    "run": {"no-launcher"}, "run:detached": {"no-launcher"}, "run:inside": {"no-launcher"},
}  # fmt: skip
"""Flags that the davit command has not: of add-ons and teams, deprecated ones, those about the shape of tables, and a few more."""


def test_a_command_takes_the_flags_that_herokus_takes() -> None:
    assert {id: missing for id in COMMANDS.keys() & manifest().keys() if (missing := _missing(id))} == _NOT


def test_a_command_has_the_second_names_that_herokus_has() -> None:
    lacking = {
        second for id in COMMANDS.keys() & manifest().keys() for second in manifest()[id]["aliases"]
        if COMMANDS.get(second) != COMMANDS[id]
    }  # fmt: skip
    assert lacking == {"ps:resize"}, "which is a command of its own here"


def _missing(id: str) -> set[str]:
    command = cli.get_command(click.Context(cli), id)
    assert command
    taken = {word for parameter in command.params for word in [*parameter.opts, *parameter.secondary_opts]}
    missing = set()
    for name, flag in manifest()[id]["flags"].items():
        words = {f"--{name}", f"-{flag['char']}" if flag.get("char") else f"--{name}"}
        if not flag.get("hidden") and name not in _TEAMS | {"prompt"} and not words <= taken:
            missing.add(name)
    return missing
