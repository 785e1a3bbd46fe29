"""docs/heroku-cli.md: every command of the ``heroku`` command, and what becomes of it with Davit, as a test run found it."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.heroku import Ledger, manifest

PATH = Path(__file__).parents[2] / "docs" / "heroku-cli.md"

_BEFORE = """\
# The heroku command with Davit

The `heroku` command (npm `heroku` {version}) works with Davit unmodified:

    eval "$(davit heroku:env)"
    heroku create && git push heroku main && heroku open && heroku logs --tail

This page is written by the tests, which call the real command against a real Davit and look at what it prints and at what is
true afterwards. **works**: as on Heroku. **differs**: it works, with the difference named. **not yet**: Davit refuses it with
a sentence, the command only ever talks to a service of Heroku's own, or no test has called it. {works} commands work, {differs} differ, {rest} do not
work yet.

"""

DIFFERENCES = {
    "addons": "there are no add-ons yet: the list is empty",
    "apps:stacks:set": "Davit has one stack; Heroku's names mean it",
    "buildpacks:info": "knows the bundled buildpacks",
    "buildpacks:search": "finds the bundled buildpacks",
    "buildpacks:versions": "a bundled buildpack has one version, Davit's",
    "orgs": "there are no teams: the list is empty",
    "ps:copy": "needs the setting `DAVIT_EXEC`, as ps:exec does",
    "ps:exec": "needs the setting `DAVIT_EXEC`, because the command knows no port but 80",
    "ps:forward": "needs the setting `DAVIT_EXEC`, as ps:exec does",
    "ps:socks": "needs the setting `DAVIT_EXEC`, as ps:exec does; leads to the dyno's own ports only",
    "ps:type": "prints Heroku's prices",
    "regions": "there is one region, `local`",
    "teams": "there are no teams: the list is empty",
}
"""Works, but not quite as on Heroku; a sentence without its full stop."""

_HEROKUS = "only talks to a service of Heroku's own"
_LATER = {
    "access:update": "there are no teams",
    "apps:join": "there are no teams",
    "apps:lock": "there are no teams",
    "apps:unlock": "there are no teams",
    "auth:2fa:disable": "taken out of the heroku command; the dashboard's account page does it",
    "certs:auto": "certificates are not fetched by themselves; upload yours with certs:add",
    "accounts": "several logins side by side: the `davit` command keeps one per Davit",
    "addons": "add-ons come later",
    "apps:errors": _HEROKUS,
    "apps:favorites": _HEROKUS,
    "ci": "test runs come later",
    "container": "container images come later; the command wants a registry of Heroku's",
    "dashboard": _HEROKUS,
    "data": "add-ons come later",
    "members": "there are no teams",
    "notifications": _HEROKUS,
    "orgs": "there are no teams",
    "pg": "add-ons come later",
    "pipelines:connect": _HEROKUS,
    "pipelines:diff": "its last step asks a service of Heroku's own",
    "pipelines:open": _HEROKUS,
    "pipelines:setup": _HEROKUS,
    "ps:autoscale": _HEROKUS,
    "redis": "add-ons come later",
    "reviewapps": "review apps come later",
    "spaces": "there are no private spaces",
    "status": _HEROKUS,
    "telemetry": "telemetry drains are not served",
    "usage": "add-ons come later",
}
"""Why a command does not work, by the longest beginning of its id."""
_OWN = frozenset(("autocomplete", "mcp", "version", "repl", "console", "rake", "local"))
"""Topics of the command's own business: nothing in them talks to Davit."""


def render(ledger: Ledger) -> str:
    """The page, from what a run found out.

    Raises:
        KeyError: a command neither worked nor has a reason why not; its id.
    """
    rows = {id: _judge(id, ledger) for id in sorted(manifest())}
    count = {word: sum(judged[0] == word for judged in rows.values()) for word in ("works", "differs", "not yet")}
    topics: dict[str, list[str]] = {}
    for id, (word, note) in rows.items():
        topics.setdefault(id.partition(":")[0], []).append(f"| `{id}` | {word} | {note} |")
    parts = [f"## {topic}\n\n| command | | |\n|---|---|---|\n" + "\n".join(lines) + "\n" for topic, lines in topics.items()]
    before = _BEFORE.format(version="11.10.0", works=count["works"], differs=count["differs"], rest=count["not yet"])
    return before + "\n".join(parts)


def _judge(id: str, ledger: Ledger) -> tuple[str, str]:
    if id in ledger.worked:
        return ("differs", DIFFERENCES[id]) if id in DIFFERENCES else ("works", "")
    if id.partition(":")[0] in _OWN:
        return "works", "on its own; Davit is not asked"
    words = id.split(":")
    for end in range(len(words), 0, -1):
        if reason := _LATER.get(":".join(words[:end])):
            return "not yet", reason
    return "not yet", "no test has called it"
