"""A release command that takes its time: the app is looked after, others build, and whoever has enough of it ends it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from tests.e2e.world import App, Davit, Push, eventually, tiny

ENDLESS = "web: python3 -u app.py\nrelease: echo migrating; sleep 100000\n"


def test_who_takes_long_to_release_holds_up_nobody_and_can_be_ended(davit: Davit) -> None:
    first, second, third = davit.create(), davit.create(), davit.create()
    assert first.deploy(tiny("first")).accepted
    with ThreadPoolExecutor(2) as pool:
        pushes = [_push_endless(pool, app) for app in (first, second)]
        for app in (first, second):
            eventually(partial(_commands, app), "the release command runs", 120)
        first.cli("ps:scale", "web=2")
        eventually(lambda: [dyno["state"] for dyno in _web(first)] == ["up", "up"], "scaled meanwhile")
        assert third.deploy(tiny("third")).accepted  # on two cores there are two slots, which are free again
        third.assert_serves("third")
        first.cli("builds:cancel")
        push = pushes[0].result(120)
        assert not push.accepted and "The build was cancelled." in push.output and "(cancelled)" in push.output
        first.assert_serves("first")
        second.cli("apps:destroy", "--confirm", second.name)
        assert not pushes[1].result(120).accepted
    assert not _commands(first)
    for app in (first, third):
        app.cli("apps:destroy", "--confirm", app.name)


def _push_endless(pool: ThreadPoolExecutor, app: App) -> Future[Push]:
    app.commit({**tiny("next"), "Procfile": ENDLESS})
    return pool.submit(app.push)


def _commands(app: App) -> list[str]:
    return [dyno["name"] for dyno in app.dynos() if dyno["type"] == "release" and dyno["state"] == "up"]


def _web(app: App) -> list[dict[str, Any]]:
    return [dyno for dyno in app.dynos() if dyno["type"] == "web"]
