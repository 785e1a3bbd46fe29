"""docs/heroku-cli.md: every command of the ``heroku`` command, and what becomes of it with Davit, as a test run found it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.heroku import Ledger, manifest
from tests.e2e.heroku_unserved import elsewhere

PATH = Path(__file__).parents[2] / "docs" / "heroku-cli.md"

_BEFORE = """\
# The heroku command with Davit

The `heroku` command (npm `heroku` {version}) works with Davit unmodified:

    eval "$(davit heroku:env)"
    heroku create && git push heroku main && heroku open && heroku logs --tail

It wants Node 20 or newer. The first line is for each new shell: put it into `~/.bashrc` or `~/.zshrc`.

For a Davit on another machine log in to it first (where its certificate is of its own authority,
[as for the `davit` command](hosts.md#make-one)):

    davit login https://davit.apps.example.com:5000
    eval "$(davit heroku:env)"

The `heroku` command takes no other machine as its host, so `heroku:env` starts a forwarder on yours, unless it runs. It is at
`https://localhost:PORT`, the same port each time: `heroku create` and `heroku git:remote` write it into your checkouts. It ends at a
reboot, and when a week long nobody has used it; `heroku:env` starts it again, also for shells that are open, and anew where the
certificates that you trust have changed. A Davit that cannot be reached just then holds up a new shell for some seconds. Its log is
`~/.config/davit/forwarder/log`. It keeps no token. Where the port is somebody else's one day, `heroku:env` says so; then
`heroku git:remote -a APP` in your checkouts.

Who has two-factor authentication is asked for a code by `heroku login -i`, and by commands that an app's two-factor guard is for:
these in a terminal only, and for ten minutes no other is asked for. A recovery code will do.

This page is written by the tests, which call the real command against a real Davit and look at what it prints and at what is
true afterwards. **works**: as on Heroku. **differs**: it works, with the difference named. **not yet**: the command was called and
said what stands beside it. **not called**: no test calls it, for the reason beside it. {works} commands work, {differs} differ,
{refused} do not work yet, {uncalled} were not called.

"""

DIFFERENCES = {
    "accounts:add": "keeps the token; `accounts:set` does not put it back",
    "addons": "there are no add-ons yet: the list is empty",
    "addons:wait": "there are no add-ons yet: there is nothing to wait for",
    "apps:stacks:set": "Davit has one stack; Heroku's names mean it",
    "buildpacks:info": "knows the bundled buildpacks",
    "buildpacks:search": "finds the bundled buildpacks",
    "buildpacks:versions": "a bundled buildpack has one version, Davit's",
    "domains:add": "takes exact host names; a wildcard is refused",
    "orgs": "there are no teams: the list is empty",
    "pg:info": "there are no add-ons yet: there is no database",
    "pg:wait": "there are no add-ons yet: there is nothing to wait for",
    "ps:copy": "needs the setting `DAVIT_EXEC`, as ps:exec does",
    "ps:exec": "needs the setting `DAVIT_EXEC`, because the command knows no port but 80",
    "ps:forward": "needs the setting `DAVIT_EXEC`, as ps:exec does",
    "ps:socks": "needs the setting `DAVIT_EXEC`, as ps:exec does; leads to the dyno's own ports only",
    "ps:type": "prints Heroku's prices",
    "redis:info": "there are no add-ons yet: the list is empty",
    "regions": "there is one region, `local`",
    "teams": "there are no teams: the list is empty",
}
"""Works, but not quite as on Heroku; a sentence without its full stop."""

_OWN = frozenset(("autocomplete", "mcp", "version", "repl", "console", "rake", "local"))
"""Topics of the command's own business: nothing in them talks to Davit."""

_EITHER = {
    "pg:links:create": ("/actions/addons/resolve", "/actions/addon-attachments/resolve"),
    "spaces:ps": ("/spaces/something/dynos is a question of the heroku command", "/spaces/something is part of the Platform API"),
}
"""Asks two things at once and ends with the refusal that comes first: the one that the page has, and the other."""


def render(ledger: Ledger) -> str:
    """The page, from what a run found out.

    Raises:
        KeyError: a command was not called, and nothing says why.
    """
    rows = {id: _judge(id, ledger) for id in sorted(manifest())}
    count = {word: sum(judged[0] == word for judged in rows.values()) for word in ("works", "differs", "not yet", "not called")}
    topics: dict[str, list[str]] = {}
    for id, (word, note) in rows.items():
        topics.setdefault(id.partition(":")[0], []).append(f"| `{id}` | {word} | {note} |")
    parts = [f"## {topic}\n\n| command | | |\n|---|---|---|\n" + "\n".join(lines) + "\n" for topic, lines in topics.items()]
    before = _BEFORE.format(
        version="11.10.0", works=count["works"], differs=count["differs"], refused=count["not yet"], uncalled=count["not called"]
    )
    return before + "\n".join(parts)


def _judge(id: str, ledger: Ledger) -> tuple[str, str]:
    if id in ledger.worked:
        return ("differs", DIFFERENCES[id]) if id in DIFFERENCES else ("works", "")
    if id in ledger.refused:
        said = _sentence(ledger.refused[id])
        first, other = _EITHER.get(id, ("", ""))
        return "not yet", said.replace(other, first) if other else said
    if id.partition(":")[0] in _OWN:
        return "works", "on its own; Davit is not asked"
    if reason := elsewhere(id):
        return "not called", reason
    raise KeyError(f"no test calls heroku {id}, and nothing says why")


def _sentence(refusal: str) -> str:
    """What the command said, on one line, without the names of a run."""
    said = " ".join(refusal.partition("\n\nError ID:")[0].split()).removeprefix("› ").removeprefix("Error: ").replace("|", "\\|")
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", re.sub(r"\b[a-z]+-[a-z]+-\d{5}\b", "APP", said))
