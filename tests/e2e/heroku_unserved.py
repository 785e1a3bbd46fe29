"""What the ``heroku`` command knows and Davit has nothing of: how each such command is called, and what is not called and why."""

from __future__ import annotations

from collections.abc import Iterator

from tests.e2e.heroku import manifest

_OF_HEROKU = "talks to a service of Heroku's own, at an address that cannot be set"
_DOCKER = "wants Docker, and a registry of Heroku's"
ELSEWHERE = {
    "accounts:current": "knows the login of Heroku's own hosts only",
    "accounts:set": "changes the login of Heroku's own hosts only",
    "apps:errors": _OF_HEROKU,
    "apps:favorites": _OF_HEROKU,
    "ci:debug": _OF_HEROKU,
    "ci:open": "opens a page of Heroku's",
    "ci:run": _OF_HEROKU,
    "container": _DOCKER,
    "dashboard": _OF_HEROKU,
    "data:pg:create": "asks two things at once, and tells which of them is refused first",
    "data:pg:migrate": "asks at the terminal what to do, before it asks anybody else",
    "data:pg:docs": "opens a page of Heroku's",
    "notifications": _OF_HEROKU,
    "pipelines:connect": _OF_HEROKU,
    "pipelines:diff": "its last step talks to a service of Heroku's own",
    "pipelines:open": "opens a page of Heroku's",
    "pipelines:setup": _OF_HEROKU,
    "ps:autoscale": _OF_HEROKU,
    "reviewapps:disable": _OF_HEROKU,
    "reviewapps:enable": _OF_HEROKU,
    "status": _OF_HEROKU,
}
"""What no test calls, because it is not Davit that is asked: a command or its beginning, and why."""
_TOPICS = (
    "access:update", "addons", "apps:join", "apps:lock", "apps:unlock", "auth:2fa:disable", "certs:auto", "ci", "data", "members",
    "orgs:open", "pg", "redis", "reviewapps", "spaces", "telemetry", "usage",
)  # fmt: skip
_MORE = {
    "addons:upgrade": ("heroku-postgresql:mini",), "ci:config:set": ("A=1",), "ci:config:unset": ("A",),
    "data:pg:quotas:update": ("--warning", "1GB"), "pg:upgrade:wait": ("something",), "telemetry": ("--app", "APP"),
    "telemetry:add": ("--app", "APP"), "telemetry:update": ("--endpoint", "https://example.com/otlp"), "usage:addons": ("--app", "APP"),
}  # fmt: skip
"""Words that a command wants though its manifest does not say so."""
ANSWERED = frozenset(("addons", "addons:wait", "certs:auto", "ci:migrate-manifest", "pg:info", "pg:wait", "redis:info"))
"""Those of them that do not fail: they show that there is nothing."""
_VALUES = {
    "app": "APP", "cidrs": "10.0.0.0/16", "confirm": "APP", "day_of_week": "sunday", "backup_id": "b001", "email": "somebody@example.com",
    "endpoint": "https://example.com/otlp", "ip": "192.0.2.1", "permissions": "view", "pipeline": "LINE", "role": "admin",
    "service:plan": "heroku-postgresql:mini", "source": "192.0.2.0/24", "time_of_day": "2:30PM", "type": "storage",
    "url": "https://example.com/logs", "at": "02:00 UTC",
}  # fmt: skip


def elsewhere(id: str) -> str | None:
    """Why no test calls a command; None when one has to."""
    words = id.split(":")
    return next((ELSEWHERE[begin] for end in range(len(words), 0, -1) if (begin := ":".join(words[:end])) in ELSEWHERE), None)


def calls(app: str, pipeline: str) -> Iterator[tuple[str, ...]]:
    """Every command of which Davit has nothing, with words that the command itself is content with; but for redis:timeout, whose
    number does not come through the command's batch mode.

    Args:
        app: what it is about.
        pipeline: the app is in it.
    """
    here = {"APP": app, "LINE": pipeline}
    for id, command in sorted(manifest().items()):
        if elsewhere(id) or id == "redis:timeout" or not any(f"{id}:".startswith(f"{topic}:") for topic in _TOPICS):
            continue
        words = [_VALUES.get(name, "something") for name, argument in command["args"].items() if argument.get("required")]
        for name, flag in command["flags"].items():
            if name != "app" and (flag.get("required") or name == "confirm" or (name == "space" and "app" not in command["flags"])):
                words += [f"--{name}", _VALUES.get(name, "something")]
        yield id, *(here.get(word, word) for word in (*words, *_MORE.get(id, ())))
