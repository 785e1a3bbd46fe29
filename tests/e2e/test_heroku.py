"""The real heroku command against Davit: what it prints, and what is true afterwards."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tests.e2e.heroku import LEDGER, Heroku
from tests.e2e.together import Together
from tests.e2e.world import App, eventually, tiny

scene = Together(at_once=3)

WITH_WORKER = {**tiny("first"), "Procfile": "web: python3 -u app.py\nworker: echo working; exec sleep 1000\n"}


def ask(app: App, path: str = "") -> Any:
    """What the API says of the app."""
    with app.davit.client() as client:
        return client.get(f"/apps/{app.name}{path}").raise_for_status().json()


@scene
def dynos_and_releases(app: App) -> None:
    app.deploy(WITH_WORKER)
    with Heroku(app.davit, app=app) as heroku:
        assert re.search(r"=== web \(Basic\): python3 -u app\.py \(1\)\n\nweb\.1: up 2\d\d\d/", heroku("ps").out)
        assert heroku("ps:scale").out == "web=1:Basic worker=0:Basic\n"
        done = heroku("ps:scale", "web=2", "worker+1:Standard-1X")
        assert "done, now running web at 2:Basic, worker at 1:Standard-1X" in done.err
        assert {(row["type"], row["quantity"], row["size"]) for row in ask(app, "/formation")} == {
            ("web", 2, "Basic"), ("worker", 1, "Standard-1X"),
        }  # fmt: skip
        heroku("ps:wait")
        assert {dyno["name"] for dyno in app.dynos() if dyno["state"] == "up"} >= {"web.1"}
        assert re.search(r"web +Basic +2 ", heroku("ps:type").out)
        assert re.search(r"worker +Basic +1 ", heroku("ps:type", "worker=basic").out)
        eventually(lambda: len(app.dynos()) == 3 and all(d["state"] == "up" for d in app.dynos()), "all run")
        for words, told, restarted in (
            (("--dyno-name", "worker.1"), "Restarting dyno worker.1", {"worker.1"}),
            (("--process-type", "web"), "Restarting all web dynos", {"web.1", "web.2"}),
            ((), "Restarting all dynos", {"web.1", "web.2", "worker.1"}),
        ):
            before = {dyno["name"]: dyno["id"] for dyno in app.dynos()}
            assert told in heroku("ps:restart", *words).err

            def fresh(before: dict[str, str] = before, restarted: set[str] = restarted) -> bool:
                now = {dyno["name"]: dyno["id"] for dyno in app.dynos() if dyno["state"] == "up"}
                return now.keys() == before.keys() and {name for name in now if now[name] != before[name]} == restarted

            eventually(fresh, f"{restarted} are other dynos", 60)
        stopped = {dyno["name"]: dyno["id"] for dyno in app.dynos()}["worker.1"]
        assert "Stopping dyno worker.1" in heroku("ps:stop", "--dyno-name", "worker.1").err
        eventually(lambda: stopped not in {dyno["id"] for dyno in app.dynos()}, "the worker was stopped")
        assert "find that process type (clock)" in heroku.refused("ps:scale", "clock=1")
        assert "find that process (web.77)" in heroku.refused("ps:stop", "--dyno-name", "web.77")

        app.deploy({**tiny("second"), "Procfile": "web: python3 -u app.py\nrelease: echo migrating\n"})
        listed = heroku("releases")
        assert re.search(r"v3 +Deploy [0-9a-f]{8} +owner@localhost", listed.out) and "Current: v3" in listed.out
        assert heroku("releases", "--json").json[0]["version"] == 3
        assert "migrating" in heroku("releases:output", "v3").out
        assert "Deploy" in heroku("releases:info", "v3").out
        assert "done, v4" in heroku("releases:rollback", "v2").err
        assert ask(app, "/releases/4")["description"] == "Rollback to v2"
        eventually(lambda: app.get().text.startswith("first"), "v2 is served")
        assert "release-phase command" in heroku.refused("releases:retry")
        assert "done, v5" in heroku("releases:rollback", "v3").err
        eventually(lambda: ask(app, "/releases/5")["current"], "its release phase is over", 60)
        assert "Retrying v5" in heroku("releases:retry").err
        eventually(lambda: ask(app, "/releases/6")["current"], "what was tried again is released", 60)


@scene
def apps(app: App) -> None:
    davit, name = app.davit, f"{app.name}-b"
    with Heroku(davit) as heroku:
        done = heroku("apps:create", name)
        assert f"http://{name}.localhost:{davit.http}/ | https://127.0.0.1:{davit.api}/{name}.git" in done.out
        assert f"{name} (local)" in heroku("apps").out
        assert name in {row["name"] for row in heroku("apps", "--json").json}
        info = heroku("apps:info", "--app", name).out
        assert f"=== {name}\n" in info and re.search(r"Owner: +owner@localhost", info) and re.search(r"Stack: +davit-13", info)
        assert heroku("apps:info", "--app", name, "--json").json["app"]["name"] == name
        assert "stack=davit-13" in heroku("apps:info", "--app", name, "--shell").out.splitlines()
        assert heroku("maintenance", "--app", name).out == "off\n"
        heroku("maintenance:on", "--app", name)
        assert heroku("maintenance", "--app", name).out == "on\n"
        heroku("maintenance:off", "--app", name)
        assert "* davit-13" in heroku("apps:stacks", "--app", name).out
        assert "Setting stack to heroku-24... done" in heroku("apps:stacks:set", "heroku-24", "--app", name).err
        assert f"Opening http://{name}.localhost:{davit.http}/" in heroku("apps:open", "--app", name).out
        assert f"Renaming {name} to {name}c... done" in heroku("apps:rename", "--app", name, f"{name}c").err
        assert "find that app" in heroku.refused("apps:info", "--app", name)
        assert "Name" in heroku.refused("apps:create", "Not_A_Name")
        assert "already taken" in heroku.refused("apps:create", app.name)
        assert "did not match" in heroku.refused("apps:destroy", "--app", f"{name}c", "--confirm", "other")
        heroku("apps:destroy", "--app", f"{name}c", "--confirm", f"{name}c")
        with davit.client() as client:
            assert client.get(f"/apps/{name}c").status_code == 404
        assert "This Davit" in heroku("regions").out
        assert "No add-ons for app" in heroku("addons", "--app", app.name).out
        for empty in ("teams", "clients", "orgs"):
            heroku(empty)
        assert "not have access to any spaces" in heroku.refused("spaces")


@scene
def config_vars(app: App) -> None:
    with Heroku(app.davit, app=app) as heroku:
        assert "done, v2" in heroku("config:set", "A=1", "B=two words").err
        assert heroku("config").out == f"=== {app.name} Config Vars\n\nA: 1\nB: two words\n"
        assert heroku("config:get", "B").out == "two words\n"
        assert heroku("config", "--json").json == {"A": "1", "B": "two words"}
        assert "done, v3" in heroku("config:unset", "A").err
        assert heroku("config", "--shell").out == "B='two words'\n"
        assert "Set A, B config vars" in heroku("releases:info", "v2").out
        assert "A: 1" in heroku("releases:info", "v2").out
        editor = app.checkout / "editor"
        editor.write_text("#!/bin/sh\necho 'C=\"from the editor\"' >\"$1\"\n")
        editor.chmod(0o755)
        heroku.environment["EDITOR"] = str(editor)
        window = heroku.terminal("config:edit")
        window.expect("with these values?")
        window.type("y\r")
        assert window.wait(60) == 0
        window.close()
        LEDGER.note(("config:edit",), None)
        assert ask(app, "/config-vars") == {"C": "from the editor"}
        other = app.davit.create()
        told = heroku("apps:diff", app.name, other.name).out
        assert "config (C)" in told and "from the editor" in told
        other.cli("apps:destroy", "--confirm", other.name)


@scene
def domains_and_buildpacks(app: App) -> None:
    with Heroku(app.davit, app=app) as heroku:
        host = f"www.{app.name}.example.org"
        done = heroku("domains:add", host)
        assert f"DNS Target {app.name}.localhost" in done.out
        listed = heroku("domains").out
        assert f"=== {app.name} Heroku Domain\n\n{app.name}.localhost\n" in listed
        assert re.search(rf"{re.escape(host)} +CNAME +{app.name}\.localhost", listed)
        assert re.search(rf"hostname: +{re.escape(host)}", heroku("domains:info", host).out)
        heroku("domains:wait", host)
        assert {row["hostname"] for row in ask(app, "/domains")} == {host, f"{app.name}.localhost"}
        heroku("domains:remove", host)
        heroku("domains:add", host)
        heroku("domains:clear")
        assert [row["hostname"] for row in ask(app, "/domains")] == [f"{app.name}.localhost"]
        assert "find that domain" in heroku.refused("domains:remove", host)

        assert "will use heroku/python." in heroku("buildpacks:set", "heroku/python").out
        assert "heroku/nodejs" in heroku("buildpacks:add", "heroku/nodejs").out
        assert heroku("buildpacks").out == f"=== {app.name} Classic Buildpacks (from the Heroku Buildpack Registry)\n\n1. heroku/python\n2. heroku/nodejs\n"
        assert [row["buildpack"]["url"] for row in ask(app, "/buildpack-installations")] == [
            "urn:buildpack:heroku/python", "urn:buildpack:heroku/nodejs",
        ]  # fmt: skip
        assert "will use heroku/nodejs." in heroku("buildpacks:remove", "heroku/python").out
        assert "already set" in heroku.refused("buildpacks:add", "heroku/nodejs")
        heroku("buildpacks:clear")
        assert ask(app, "/buildpack-installations") == []
        assert re.search(r"heroku/python +languages", heroku("buildpacks:search", "python").out)
        assert "looks for requirements.txt" in heroku("buildpacks:info", "heroku/python").out
        assert re.search(r"1 +2\d\d\d.* published", heroku("buildpacks:versions", "heroku/python").out)


@scene
def people(app: App) -> None:
    friend = f"{app.name}@example.com"
    with app.davit.client() as client:
        made = client.post("/davit/accounts", json={"email": friend}).raise_for_status().json()
    with Heroku(app.davit, app=app) as heroku, Heroku(app.davit, app=app, token=made["access_token"]["token"]) as theirs:
        assert "find that app" in theirs.refused("apps:info")
        assert f"Adding {friend} access" in heroku("access:add", friend).err
        assert re.search(rf"{re.escape(friend)} +collaborator +deploy, operate, view", heroku("access").out)
        assert f"=== {app.name}\n" in theirs("apps:info").out
        assert "Collaborated Apps" in theirs("apps").out and app.name in theirs("apps").out
        refused = theirs.refused("apps:destroy", "--confirm", app.name)
        assert "manage" in refused and "forbidden" in refused
        heroku("access:remove", friend)
        assert "find that app" in theirs.refused("apps:info")
        assert "no account for nobody@example.com" in heroku.refused("access:add", "nobody@example.com")
        key = app.checkout / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"me@{app.name}", "-f", key], check=True)
        theirs("keys:add", f"{key}.pub")
        assert f"=== {friend} keys" in theirs("keys").out and f"me@{app.name}" in theirs("keys").out
        theirs("keys:remove", f"me@{app.name}")
        theirs("keys:add", f"{key}.pub")
        theirs("keys:clear")
        with app.davit.client(made["access_token"]["token"]) as client:
            assert client.get("/account/keys").json() == []


@scene
def what_is_the_commands_own(app: App) -> None:
    app.write({"Procfile": "web: echo $GREETING from $PORT\n", ".env": "GREETING=hello\n"})
    with Heroku(app.davit, app=app) as heroku:
        assert heroku("local:version").out.strip()
        done = heroku.start("local:run", "--", "sh", "-c", "echo $GREETING")
        assert "hello" in done.stdout
        assert "hello from 5006" in heroku.start("local", check=False).stdout
        LEDGER.note(("local",), None)


@pytest.fixture(scope="module")
def played(davit: Any) -> Iterator[dict[str, Future[None]]]:
    threads, futures = scene.begin(davit)
    with threads:
        yield futures


@pytest.mark.parametrize("name", scene.parameters())
def test_the_heroku_command(played: dict[str, Future[None]], name: str) -> None:
    played[name].result()
