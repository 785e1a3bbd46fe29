"""Scripts that were written for the heroku command find its flags at the davit command."""

from __future__ import annotations

from typing import Any

import click
import pytest

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


@pytest.mark.parametrize(
    ("line", "app", "words"),
    [
        ("run rake db:migrate -a staging", "staging", "rake db:migrate"),
        ("run rake --app=staging db:migrate --trace --no-tty", "staging", "rake db:migrate --trace"),
        ("run ls -la / -xa staging", "staging", "ls -la /"),
        ("run -a staging -- ls -a / -- -s", "staging", "ls -a / -- -s"),
        ("run ls -a=staging -- -a", "staging", "ls -a"),
        ("run psql -h elsewhere --help", None, "psql -h elsewhere --help"),
        ("run:detached -s eco sleep 5 -astaging", "staging", "sleep 5"),
        ("run:inside web.1 ls -a staging -- -a", "staging", "ls -a"),
        ("ps:exec ls --dyno web.2 -a staging -l", "staging", "ls -l"),
        ("ps:exec --", None, ""),
    ],
)
def test_flags_are_taken_behind_the_command_that_is_run_as_well(line: str, app: str | None, words: str) -> None:
    assert (given := _given(line))["app"] == app and given["words"] == tuple(words.split())


@pytest.mark.parametrize(
    "line",
    ["run -a staging ls -a /", "run ls -a", "run pip install -a staging -r requirements.txt", "run -s -a staging true", "run -a -- ls"],
)
def test_a_flag_that_may_be_the_commands_own_is_refused(line: str) -> None:
    with pytest.raises(click.UsageError, match="what is the command's own stands behind --"):
        _given(line)


def _given(line: str) -> dict[str, Any]:
    id, *words = line.split()
    command = cli.get_command(click.Context(cli), id)
    assert command
    return command.make_context(id, words).params
