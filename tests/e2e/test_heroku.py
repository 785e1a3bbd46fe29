"""The real heroku command against Davit: what it prints, and what is true afterwards."""

from __future__ import annotations

import base64
import difflib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from tests.e2e import heroku_page, heroku_unserved
from tests.e2e.heroku import LEDGER, Heroku
from tests.e2e.line import Line
from tests.e2e.together import Together
from tests.e2e.world import TINY, App, eventually, tiny
from tests.ports import free_port

pytestmark = pytest.mark.timeout(1200)
scene = Together(at_once=3)

WITH_WORKER = {**tiny("first"), "Procfile": "web: python3 -u app.py\nworker: echo working; exec sleep 1000\n"}

PASSWORD = "correct horse battery"

RAILS_NAMES = (
    "DATABASE_URL REDIS_URL SECRET_KEY_BASE RAILS_MASTER_KEY RAILS_SERVE_STATIC_FILES RAILS_LOG_TO_STDOUT WEB_CONCURRENCY "
    "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION S3_BUCKET SMTP_USERNAME SMTP_PASSWORD SENTRY_DSN STRIPE_SECRET_KEY"
).split()
"""What many apps set at once: a release whose name is long."""


def ask(app: App, path: str = "") -> Any:
    """What the API says of the app."""
    with app.davit.client() as client:
        return client.get(f"/apps/{app.name}{path}").raise_for_status().json()


def checksum(app: App) -> str:
    """Of the slug that the newest release has."""
    found: str = ask(app, f"/slugs/{ask(app, '/releases')[-1]['slug']['id']}")["checksum"]
    return found


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
        eventually(lambda: ask(app, "/releases/4")["current"], "v4 has v2's process types", 60)
        assert "release-phase command" in heroku.refused("releases:retry")
        assert "done, v5" in heroku("releases:rollback", "v3").err
        eventually(lambda: ask(app, "/releases/5")["current"], "its release phase is over", 60)
        heroku("config:set", *(f"{name}={number}" for number, name in enumerate(RAILS_NAMES)))
        eventually(lambda: ask(app, "/releases/6")["current"], "the config vars are in force", 60)
        assert "Retrying v6" in heroku("releases:retry").err
        eventually(lambda: ask(app, "/releases/7")["current"], "what was tried again is released", 60)


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
        for command, head in (("teams", "Team Role"), ("orgs", "Teams Role")):
            assert " ".join(heroku(command).out.replace("─", "").split()) == head, "a table without a row"


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
        assert f"Waiting for {host}... done" in heroku("domains:wait", host).err
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
        heroku("access:add", friend)
        theirs("apps:leave")
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
def a_day(app: App) -> None:
    """What a newcomer does, each command in a process of its own."""
    davit = app.davit
    with Heroku(davit) as heroku:
        mine = App(davit, f"{app.name}-day", heroku.home / "co")
        mine.checkout.mkdir()
        heroku.cwd = mine.checkout
        heroku.git("init", "-q")
        mine.write(tiny("first"))
        heroku.git("add", "-A")
        heroku.git("commit", "-q", "-m", "a change")
        created = heroku.start("create", mine.name)
        assert f"Creating ⬢ {mine.name}... done" in created.stderr or f"Creating {mine.name}... done" in created.stderr
        assert heroku.git("remote", "get-url", "heroku").stdout.strip() == f"https://127.0.0.1:{davit.api}/{mine.name}.git"
        pushed = heroku.git("push", "heroku", "main")
        assert f"remote:        http://{mine.name}.localhost:{davit.http}/ deployed" in pushed.stderr
        LEDGER.note(("git:credentials",), None)  # git asked it for the password
        mine.assert_serves("first")
        assert re.search(r"web\.1: up", heroku.start("ps").stdout)
        assert "done, v3" in heroku.start("config:set", "GREETING=hi").stderr
        eventually(lambda: "hi" in mine.get().text, "the new config var is served")
        eventually(lambda: "State changed from starting to up" in mine.log(), "the log has it all")
        logged = heroku.start("logs", "-n", "500").stdout
        assert "app[web.1]: listening" in logged and "heroku[web.1]: State changed from starting to up" in logged
        assert "app[api]" not in heroku.start("logs", "-s", "app", "-p", "web", "-n", "5").stdout
        shown = heroku.start("run:detached", "echo far away")
        assert re.search(r"Running echo far away on .*done, run\.\d+", shown.stderr), shown
        eventually(lambda: "app[run." in heroku("logs", "--app", mine.name).out, "what it printed is in the log")
        heroku.start("git:clone", "-a", mine.name, "again", cwd=heroku.home)
        assert (heroku.home / "again" / "app.py").read_text() == tiny("first")["app.py"]
        heroku("git:remote", "--app", app.name, "--remote", "other")
        assert app.name in heroku.git("remote", "get-url", "other").stdout
        heroku.start("apps:destroy", "-a", mine.name, "--confirm", mine.name)
        assert mine.get().status_code == 404


@scene
def from_another_machine(app: App) -> None:
    """The Davit is elsewhere, reached by TLS; the forwarder to it ends, as at a reboot, and the checkout knows nothing of that."""
    line = Line(app.davit.api)
    with Heroku(app.davit, afar=f"https://127.0.0.1:{line.port}") as heroku:
        mine = App(app.davit, f"{app.name}-afar", heroku.home / "co")
        mine.checkout.mkdir()
        heroku.cwd = mine.checkout
        heroku.git("init", "-q")
        try:
            _commit(heroku, mine, "first")
            heroku.start("create", mine.name)
            assert heroku.git("remote", "get-url", "heroku").stdout.strip() == f"{heroku.environment['HEROKU_HOST']}/{mine.name}.git"
            heroku.git("push", "heroku", "main")
            mine.assert_serves("first")
            done = heroku.start("run", "-x", "--", "sh -c 'cat Procfile; exit 7'", check=False)
            assert (done.returncode, done.stdout) == (7, TINY["Procfile"]), done
            tail = heroku.begin("logs", "--tail")
            try:
                assert tail.stdout and any("app[web.1]: listening" in shown for shown in tail.stdout)
                mine.cli("config:set", "GREETING=hi")
                assert any("Set GREETING config var" in shown for shown in tail.stdout), "what happens is shown"
            finally:
                _stop(tail)
            before = heroku.davit_here("heroku:env").stdout
            _end_forwarder(heroku)
            assert heroku.davit_here("heroku:env").stdout == before
            _commit(heroku, mine, "second")
            heroku.git("push", "heroku", "main")
            mine.assert_serves("second")
            assert re.search(r"web\.1: up", heroku.start("ps").stdout), "the app is found by the checkout's remote"
        finally:
            mine.cli("apps:destroy", "--confirm", mine.name, check=False)
            _end_forwarder(heroku)
            line.close()


def _commit(heroku: Heroku, app: App, version: str) -> None:
    app.write(tiny(version))
    heroku.git("add", "-A")
    heroku.git("commit", "-q", "-m", version)


def _end_forwarder(heroku: Heroku) -> None:
    for note in (heroku.home / ".config" / "davit" / "forwarder").glob("*.json"):
        told = json.loads(note.read_text())
        if _listens(told["port"]):
            os.kill(told["pid"], signal.SIGTERM)
            eventually(lambda port=told["port"]: not _listens(port), "the forwarder has ended")


@scene
def one_off_dynos(app: App) -> None:
    app.deploy({**tiny("first"), "data.txt": "from the slug\n"})
    with Heroku(app.davit, app=app) as heroku:
        done = heroku.start("run", "-x", "--", "sh -c 'cat data.txt; exit 7'", check=False)
        assert (done.returncode, done.stdout) == (7, "from the slug\n"), done
        assert heroku.start("run", "-x", "--no-tty", "true").stdout == ""
        assert "typed in\n" in heroku.start("run", "--no-tty", "cat", input="typed in\n").stdout
        inside = heroku.start("run:inside", "web.1", "-x", "--", "sh -c 'echo inside $DYNO; exit 5'", check=False)
        assert inside.returncode == 5 and "inside web.1" in inside.stdout, inside
        LEDGER.note(("run:inside",), None)
        told = re.search(r"from web\.1 at (\d+)", heroku.start("ps:exec", "--", "echo from $DYNO at $PORT", timeout=600).stdout)
        assert told
        assert "web.1" in heroku.start("ps:exec", "--status").stdout
        _into_the_dyno(heroku, int(told[1]))
        shell = heroku.terminal("run", "bash", rows=33, columns=77)
        shell.expect("$ ", 90)
        shell.type("stty size; echo $DYNO $GREETING; echo 'the' 'end'\n")
        seen = shell.expect("the end\r")
        assert "33 77" in seen and re.search(r"run\.\d+", seen)
        assert any(dyno["name"].startswith("run.") for dyno in app.dynos())
        shell.type("exit\n")
        assert shell.wait(60) == 0
        shell.close()
        eventually(lambda: not [dyno for dyno in app.dynos() if dyno["type"] == "run"], "the dyno is gone")
        gone = heroku.terminal("run", "bash")
        gone.expect("$ ", 90)
        gone.close()
        eventually(lambda: not [dyno for dyno in app.dynos() if dyno["type"] == "run"], "the dyno of the closed window is gone", 60)
        assert "no dyno size" in heroku.start("run", "-s", "gigantic", "true", check=False).stderr


def _into_the_dyno(heroku: Heroku, port: int) -> None:
    """A file out of the dyno, and ways to its port. The command makes an RSA key in JavaScript each time, so these run side by side;
    its SOCKS proxy, which ps:forward has as well, knows no port but 1080.
    """
    here = free_port()
    ways = [heroku.begin("ps:copy", "data.txt", "--output", "copied.txt"), heroku.begin("ps:forward", f"{here}:{port}")]
    try:
        assert ways[0].wait(600) == 0
        assert (heroku.cwd / "copied.txt").read_text() == "from the slug\n"
        eventually(lambda: _asked("--noproxy", "*", f"http://127.0.0.1:{here}/").startswith("first"), "the port is forwarded", 120)
        _stop(ways[1])
        eventually(lambda: not _listens(1080), "the port of the SOCKS proxy is free")
        ways.append(heroku.begin("ps:socks"))
        through = ("--noproxy", "", "--socks5", "127.0.0.1:1080")
        eventually(lambda: _asked(*through, f"http://127.0.0.1:{port}/").startswith("first"), "the dyno is reached", 120)
        assert _asked(*through, f"http://127.0.0.1:{heroku.davit.api}/") == "", "the host's port of another number is not there"
        assert _asked(*through, f"http://127.0.0.2:{port}/") == "", "only the dyno itself is reached"
        for command in ("copy", "forward", "socks"):
            LEDGER.note((f"ps:{command}",), None)
    finally:
        for way in ways:
            _stop(way)


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()  # at SIGTERM it says goodbye and stays: its listening sockets keep it
    process.wait(60)
    if process.stdout:
        process.stdout.close()


def _asked(*words: str) -> str:
    """What curl gets; nothing when it gets nothing."""
    return subprocess.run(["curl", "-s", "--max-time", "20", *words], capture_output=True, text=True).stdout


def _listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


@scene
def tails(app: App) -> None:
    app.deploy({**tiny("first"), "Procfile": "web: python3 -u app.py\nworker: while read line <tick; do echo $line; done\n"})
    line = Line(app.davit.api)
    with Heroku(app.davit, app=app, HEROKU_HOST=f"http://127.0.0.1:{line.port}") as heroku:
        tail = heroku.begin("logs", "--tail")
        shown: list[str] = []
        assert tail.stdout is not None
        reader = threading.Thread(target=lambda: shown.extend(iter(tail.stdout.readline, "")), daemon=True)
        reader.start()
        try:
            eventually(lambda: "app[web.1]: listening" in "".join(shown), "the backlog is shown", 60)
            app.cli("config:set", "BEFORE=1")
            eventually(lambda: "Set BEFORE" in "".join(shown), "what happens is shown", 60)
            before = line.connections
            line.end_answers()
            app.cli("config:set", "MEANWHILE=1")
            eventually(lambda: line.connections > before, "it connects again", 60)
            app.cli("config:set", "AFTER=1")
            eventually(lambda: "Set AFTER" in "".join(shown), "it goes on", 60)
            text = "".join(shown)
            assert [text.count(f"Set {word} config var") for word in ("BEFORE", "MEANWHILE", "AFTER")] == [1, 1, 1], text
        finally:
            tail.kill()
            tail.wait()
            reader.join()
            tail.stdout.close()
            line.close()


@scene
def logins(app: App) -> None:
    email = f"{app.name}-login@example.com"
    with app.davit.client() as client:
        made = client.post("/davit/accounts", json={"email": email}).raise_for_status().json()
    with app.davit.client(made["access_token"]["token"]) as client:
        client.patch("/account", json={"password": PASSWORD}).raise_for_status()
    with Heroku(app.davit, token="") as heroku:
        _log_in(heroku, email)
        LEDGER.note(("auth:login",), None)
        assert f"machine 127.0.0.1:{app.davit.api}" in (heroku.home / ".netrc").read_text()
        assert heroku.start("whoami").stdout == f"{email}\n"
        used = re.search(r"password (davit-\S+)", (heroku.home / ".netrc").read_text())
        assert used
        heroku.start("logout")
        assert heroku.start("whoami", check=False).returncode != 0
        with app.davit.client(used[1]) as client, app.davit.client(made["access_token"]["token"]) as other:
            assert [client.get("/account").status_code, other.get("/account").status_code] == [401, 200], "its token, and no other"
        with Heroku(app.davit, app=app) as owners:
            owners.start("logout")
            assert owners.start("whoami").stdout == "owner@localhost\n", "what heroku:env printed is not taken away"
        assert app.name in app.davit.cli("apps").stdout
        app.commit()
        app.git("ls-remote", "davit")

        window = heroku.terminal("login")
        window.expect("Press any key", 60)
        window.type("x")
        window.expect("Opening browser to ", 60)
        url = re.search(r"http\S+/auth/browser/\S+", window.expect("\n", 60))
        assert url
        form = {"email": email, "password": PASSWORD, "answer": "allow"}
        assert "Done" in httpx.post(url[0], data=form, timeout=60, trust_env=False).text
        window.expect(f"Logged in as {email}", 60)
        assert window.wait(60) == 0
        window.close()
        assert heroku.start("whoami").stdout == f"{email}\n"


@scene
def two_factor(app: App) -> None:
    """Somebody with a second factor logs in, and does what an app with the two-factor guard asks codes for."""
    email, name = f"{app.name}-2fa@example.com", f"{app.name}-2fa"
    with app.davit.client() as client:
        made = client.post("/davit/accounts", json={"email": email}).raise_for_status().json()
    with app.davit.client(made["access_token"]["token"]) as client:
        client.patch("/account", json={"password": PASSWORD}).raise_for_status()
        secret = client.post("/account/two-factor", json={"password": PASSWORD}).raise_for_status().json()["secret"]
        confirmed = client.post("/account/two-factor/actions/confirm", json={"code": _code(secret)}).raise_for_status()
        recovery = confirmed.json()["recovery_codes"]
    with Heroku(app.davit, token="") as heroku:
        _log_in(heroku, email, "a wrong code", "That two-factor code is not right")
        assert heroku.start("whoami", check=False).returncode != 0
        _log_in(heroku, email, recovery[0])
        assert heroku("auth:2fa").out == "Two-factor authentication is enabled\n"

        heroku("apps:create", name)
        heroku("features:enable", "two-factor-guard", "--app", name)
        rename = ("apps:rename", "--app", name, f"{name}b")
        assert "requires an interactive terminal" in heroku.refused(*rename)
        _asked_twice(heroku, rename, lambda: _code(secret, 30), "PUT", f"/apps/{name}/pre-authorizations")
        assert heroku.answered("PATCH", f"/apps/{name}") == [403, 403, 200]
        heroku("apps:destroy", "--app", f"{name}b", "--confirm", f"{name}b")  # for ten minutes no other code is asked for
        with app.davit.client() as client:
            assert client.get(f"/apps/{name}b").status_code == 404

        heroku("labs:enable", "two-factor-guard")
        _asked_twice(heroku, ("labs:disable", "two-factor-guard"), lambda: recovery[1], "PATCH", "/account/features/two-factor-guard")
        with app.davit.client(made["access_token"]["token"]) as client:
            assert not client.get("/account/features/two-factor-guard").raise_for_status().json()["enabled"]
        _log_in(heroku, email, recovery[0], "That two-factor code is not right")  # it was used


def _code(secret: str, later: float = 0) -> str:
    """What an authenticator app shows; a code is taken for half a minute at least, and once."""
    return TOTP(base64.b32decode(secret), 6, SHA1(), 30).generate(int(time.time() + later)).decode()


def _log_in(heroku: Heroku, email: str, code: str = "", refusal: str = "") -> None:
    """As ``heroku login -i`` asks in a terminal: by password, and by a code where one is asked for."""
    window = heroku.terminal("login", "-i")
    for question, answer in (("Email", email), ("Password", PASSWORD), ("Two-factor code", code)):
        if answer:
            window.expect(question, 60)
            window.type(f"{answer}\r")
    window.expect(refusal or f"Logged in as {email}", 60)
    assert (window.wait(60) != 0) == bool(refusal)
    window.close()


def _asked_twice(heroku: Heroku, words: tuple[str, ...], code: Callable[[], str], method: str, path: str) -> None:
    """A command in a terminal that asks for a code, is given a wrong one, and asks again.

    Args:
        method, path: the request that takes the code.
    """
    window = heroku.terminal(*words)
    window.expect("Two-factor code", 60)
    known = len(heroku.answered(method, path))
    window.type("a wrong code\r")
    eventually(lambda: len(heroku.answered(method, path)) > known, "the wrong code was refused", 60)
    window.type(f"{code()}\r")  # the terminal keeps it until the next question
    assert window.wait(60) == 0, window.seen
    window.close()
    LEDGER.note(words, None)
    assert heroku.answered(method, path)[known:] == [403, 200]


@scene
def features_and_transfers(app: App) -> None:
    friend = f"{app.name}-heir@example.com"
    with app.davit.client() as client:
        made = client.post("/davit/accounts", json={"email": friend}).raise_for_status().json()
    with Heroku(app.davit, app=app) as heroku, Heroku(app.davit, app=app, token=made["access_token"]["token"]) as theirs:
        listed = heroku("features", "--json").json
        assert listed
        name = next(row["name"] for row in listed if row["state"] == "general" and not row["enabled"])
        assert name in heroku("features").out and name in heroku("features:info", name).out
        heroku("features:enable", name)
        assert ask(app, f"/features/{name}")["enabled"]
        heroku("features:disable", name)
        assert not ask(app, f"/features/{name}")["enabled"]
        flag = heroku("labs", "--app", app.name, "--json").json
        flags = [row for rows in flag.values() for row in rows] if isinstance(flag, dict) else flag
        name = flags[0]["name"]
        assert name in heroku("labs:info", name).out
        heroku("labs:enable", name)
        assert "cannot be switched off" in heroku.refused("labs:disable", name, "--confirm", app.name)
        metadata = "runtime-dyno-metadata"
        heroku("labs:enable", metadata)
        heroku("labs:disable", metadata, "--confirm", app.name)
        assert not ask(app, f"/features/{metadata}")["enabled"]
        assert f"Initiating transfer of {app.name} to {friend}" in heroku("apps:transfer", friend).err
        with app.davit.client(made["access_token"]["token"]) as client:
            (offer,) = client.get("/account/app-transfers").json()
            client.patch(f"/account/app-transfers/{offer['id']}", json={"state": "accepted"}).raise_for_status()
        assert ask(app)["owner"]["email"] == friend
        assert re.search(rf"Owner: +{re.escape(friend)}", theirs("apps:info").out)


def _sign_in(browser: httpx.Client, token: str) -> None:
    """As a person does, by the dashboard's page."""
    del browser.headers["Authorization"]
    browser.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    page = browser.get("/dashboard/sign-in").text
    csrf = re.search(r'name="csrf"[^>]*value="([^"]+)"', page)
    assert csrf, page
    done = browser.post("/dashboard/sign-in", data={"csrf": csrf[1], "token": token, "to": "/dashboard/"})
    assert done.status_code in (302, 303), done.text


@scene
def authorizations(app: App) -> None:
    with Heroku(app.davit) as heroku:
        assert heroku("auth:whoami").out == "owner@localhost\n"
        assert heroku("auth:token").out.strip() == app.davit.token
        made = heroku("authorizations:create", "--description", "for CI", "--scope", "read", "--json").json
        assert re.search(rf"for CI +{made['id']} +read", heroku("authorizations").out)
        assert "for CI" in heroku("authorizations:info", made["id"]).out
        heroku("authorizations:update", made["id"], "--description", "for CD")
        with app.davit.client() as client:
            assert client.get(f"/oauth/authorizations/{made['id']}").json()["description"] == "for CD"
        rotated = heroku("authorizations:rotate", made["id"]).out
        with app.davit.client(made["access_token"]["token"]) as client:
            assert client.get("/account").status_code == 401
        token = re.search(r"Token: +(\S+)", rotated)
        assert token
        with app.davit.client(token[1]) as client:
            assert client.get("/apps").status_code == 200
        heroku("authorizations:revoke", made["id"])
        with app.davit.client(token[1]) as client:
            assert client.get("/account").status_code == 401
        assert "not_found" in heroku.refused("sessions:destroy", made["id"])
        with app.davit.client("") as browser:
            _sign_in(browser, app.davit.token)
            with app.davit.client() as client:
                (session,) = client.get("/oauth/sessions").raise_for_status().json()
            assert session["description"] in heroku("sessions").out
            assert browser.get("/dashboard/account").status_code == 200
            heroku("sessions:destroy", session["id"])
            assert browser.get("/dashboard/account").status_code != 200
        assert "not_found" in heroku.refused("authorizations:info", made["id"])
    with Heroku(app.davit, token="not-a-token") as stranger:
        assert "token" in stranger.refused("apps")


@scene
def drains_webhooks_and_certificates(app: App) -> None:
    with Heroku(app.davit, app=app) as heroku:
        heroku("drains:add", "https://93.184.215.14/logs")
        assert "https://93.184.215.14/logs" in heroku("drains").out
        heroku("drains:remove", "https://93.184.215.14/logs")
        assert ask(app, "/log-drains") == []
        assert "127.0.0.1" in heroku.refused("drains:add", "https://127.0.0.1/logs")

        heroku("webhooks:add", "--include", "api:release", "--level", "notify", "--url", "https://93.184.215.14/hook")
        (row,) = ask(app, "/webhooks")
        assert row["id"] in heroku("webhooks").out
        heroku("webhooks:update", row["id"], "--include", "api:build", "--level", "notify", "--url", "https://93.184.215.14/other")
        assert "https://93.184.215.14/other" in heroku("webhooks:info", row["id"]).out
        assert heroku("webhooks:events").out == f"{app.name} has no events\n"
        assert heroku("webhooks:deliveries").out == f"{app.name} has no deliveries\n"
        with app.davit.client() as client:
            client.patch(f"/apps/{app.name}/config-vars", json={"A": "1"}).raise_for_status()
            client.post(f"/apps/{app.name}/webhooks", json={"include": ["api:app"], "level": "notify", "url": "https://93.184.215.14/a"})
            client.patch(f"/apps/{app.name}", json={"maintenance": True}).raise_for_status()
        eventually(lambda: ask(app, "/webhook-deliveries"), "a delivery")
        (delivery, *_) = ask(app, "/webhook-deliveries")
        assert delivery["event"]["id"] in heroku("webhooks:deliveries:info", delivery["id"]).out
        assert heroku("webhooks:deliveries", "--status", "unheard-of").out == f"{app.name} has no deliveries\n"
        assert app.name in heroku("webhooks:events:info", delivery["event"]["id"]).out
        for one in ask(app, "/webhooks"):
            if one["id"] != row["id"]:
                heroku("webhooks:remove", one["id"])
        heroku("webhooks:remove", row["id"])
        assert ask(app, "/webhooks") == []

        for name in ("", "other-"):
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN=www.{app.name}.org", "-days", "30", "-addext",
                 f"subjectAltName=DNS:www.{app.name}.org", "-keyout", f"{name}key.pem", "-out", f"{name}crt.pem"],
                cwd=app.checkout, check=True, capture_output=True,
            )  # fmt: skip
        heroku("certs:generate", f"shop.{app.name}.org", "--now", "--selfsigned")
        assert "CERTIFICATE" in (app.checkout / f"shop.{app.name}.org.crt").read_text()
        heroku("certs:add", "crt.pem", "key.pem")
        (endpoint,) = ask(app, "/sni-endpoints")
        assert f"www.{app.name}.org" in heroku("certs").out
        assert f"www.{app.name}.org" in heroku("certs:info", "--name", endpoint["name"]).out
        heroku("domains:add", f"www.{app.name}.org", "--cert", endpoint["name"])
        heroku("domains:update", f"www.{app.name}.org", "--cert", endpoint["name"])
        bound = {row["hostname"]: (row["sni_endpoint"] or {}).get("name") for row in ask(app, "/domains")}
        assert bound[f"www.{app.name}.org"] == endpoint["name"]
        heroku("certs:update", "other-crt.pem", "other-key.pem", "--name", endpoint["name"], "--confirm", app.name)
        (updated,) = ask(app, "/sni-endpoints")
        assert (updated["name"], updated["certificate_chain"].strip()) == (endpoint["name"], (app.checkout / "other-crt.pem").read_text().strip())
        heroku("domains:clear")
        heroku("certs:remove", "--name", endpoint["name"], "--confirm", app.name)
        assert ask(app, "/sni-endpoints") == []
        assert "disabled" in heroku("certs:auto").out


@scene
def pipelines_and_clients(app: App) -> None:
    app.deploy(tiny("first"))
    davit = app.davit
    production = davit.create()
    try:
        with Heroku(davit) as heroku:
            line = f"{app.name}-line"
            heroku("pipelines:create", line, "--app", app.name, "--stage", "staging")
            heroku("pipelines:add", line, "--app", production.name, "--stage", "development")
            heroku("pipelines:update", "--app", production.name, "--stage", "production")
            assert line in heroku("pipelines").out
            shown = heroku("pipelines:info", line).out
            assert re.search(rf"{app.name} +staging", shown) and re.search(rf"{production.name} +production", shown)
            promoted = heroku("pipelines:promote", "--app", app.name)
            assert "succeeded" in promoted.out, promoted
            assert checksum(production) == checksum(app)
            heroku("pipelines:rename", line, f"{line}2")
            assert heroku("pipelines").out.count(line) == 1 and f"{line}2" in heroku("pipelines").out
            heroku("pipelines:remove", "--app", production.name)
            with davit.client() as client:
                assert [row["app"]["id"] for row in client.get(f"/pipelines/{line}2/pipeline-couplings").json()] == [ask(app)["id"]]
            transferred = heroku("pipelines:transfer", "owner@localhost", "--pipeline", f"{line}2", "--confirm", f"{line}2")
            assert "Transferring" in transferred.err
            heroku("pipelines:destroy", f"{line}2")
            with davit.client() as client:
                assert client.get(f"/pipelines/{line}2").status_code == 404 and ask(app)["name"] == app.name, "its app stays"

            heroku("clients:create", "an editor", "https://example.com/callback")
            assert "an editor" in heroku("clients").out
            with davit.client() as client:
                (made,) = [row for row in client.get("/oauth/clients").json() if row["name"] == "an editor"]
            assert made["id"] in heroku("clients:info", made["id"]).out
            with davit.client() as client:
                place = f"/oauth/clients/{made['id']}"
                heroku("clients:update", made["id"], "--name", "another")
                assert client.get(place).json()["name"] == "another"
                heroku("clients:rotate", made["id"])
                assert client.get(place).json()["secret"] != made["secret"]
                heroku("clients:destroy", made["id"])
                assert client.get(place).status_code == 404
            assert "not enabled" in heroku("auth:2fa").out
            flag = heroku("labs", "--app", app.name, "--json").json
            assert flag
    finally:
        production.cli("apps:destroy", "--confirm", production.name, check=False)


@scene
def what_davit_does_not_have(app: App) -> None:
    line = f"{app.name}-line"
    with Heroku(app.davit, app=app) as heroku:
        heroku.git("init", "-q")
        heroku("pipelines:create", line, "--app", app.name, "--stage", "staging")
        for words in heroku_unserved.calls(app.name, line):
            if words[0] in heroku_unserved.ANSWERED:
                heroku(*words)
                continue
            sentence = heroku.refused(*words)
            assert "See more help with --help" not in sentence, f"{words} is not how it is called: {sentence}"
        assert heroku.start("redis:timeout", "--seconds", "100", check=False).stderr.strip().endswith("No Redis instances found.")
        assert "has no heroku-postgresql databases" in heroku("pg").out
        heroku("accounts:add", "here")
        assert heroku("accounts").out.strip() == "here"
        heroku("accounts:remove", "here")
        assert "any accounts" in heroku.refused("accounts")


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


def test_the_page_says_what_works(played: dict[str, Future[None]]) -> None:
    """docs/heroku-cli.md is what this run found out; DAVIT_TEST_WRITE_PAGE=1 writes it."""
    assert not [name for name, future in played.items() if future.exception()], "scenes failed; the page cannot be compared"
    assert Heroku.answers > 100, "the command's answers were not recorded"
    page = heroku_page.render(LEDGER)
    if os.environ.get("DAVIT_TEST_WRITE_PAGE"):
        heroku_page.PATH.write_text(page)
    differing = list(difflib.unified_diff(heroku_page.PATH.read_text().splitlines(), page.splitlines(), "page", "run", lineterm="", n=0))
    assert not differing, "run `DAVIT_TEST_WRITE_PAGE=1 make test TESTS=tests/e2e/test_heroku.py`:\n" + "\n".join(differing)
