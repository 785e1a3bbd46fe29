"""Every command against an API that answers: what it prints, how it ends, and how shells complete it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy import delete, select

from cli.client import Client
from state import accounts, vault
from state.db import snapshot, transaction, upgrade
from state.models import Account, Token, Webhook
from tests.api.conftest import use_home
from tests.cli.living import ROOT, Davit, serving
from tests.e2e.terminal import Terminal


@pytest.fixture(scope="module")
def davit(tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> Iterator[Davit]:
    import shutil
    import tempfile

    home = Path(tempfile.mkdtemp(prefix="dvk", dir="/tmp"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            use_home(home, patch, REDIS_URL=redis_server)
            upgrade()
            with serving(home, tmp_path_factory.mktemp("work"), redis_server) as living:
                living("apps:create", "timely")
                living.has_code("timely", {"web": "python app.py", "release": "true"})
                yield living
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_apps_are_listed_and_completed(davit: Davit) -> None:
    assert "=== owner@localhost Apps\n\ntimely\n" in davit("apps").stdout
    assert [row["name"] for row in json.loads(davit("apps", "--json").stdout)] == ["timely"]
    shown = davit(_DAVIT_COMPLETE="bash_complete", COMP_WORDS="davit ps:re", COMP_CWORD="1").stdout
    assert "plain,ps:restart" in shown.splitlines() and "plain,ps:resize" in shown.splitlines()
    shown = davit(_DAVIT_COMPLETE="bash_complete", COMP_WORDS="davit ps -a ti", COMP_CWORD="3").stdout
    assert shown == "plain,timely\n"


def test_a_list_of_more_than_a_page_is_shown_to_its_end(davit: Davit) -> None:
    with transaction() as session:
        owner = session.scalars(select(Account).where(Account.email == "owner@localhost")).one()
        for number in range(401):
            accounts.issue_token(session, owner, f"of many {number}")
    try:
        rows = json.loads(davit("authorizations", "--json").stdout)
        assert len({row["id"] for row in rows if row["description"].startswith("of many ")}) == 401 < len(rows)
    finally:
        with transaction() as session:
            session.execute(delete(Token).where(Token.description.startswith("of many ")))


def test_what_an_apps_two_factor_guard_is_for_asks_for_a_code_once(davit: Davit) -> None:
    password = "correct horse battery"
    as_them = {"DAVIT_URL": davit.url, "DAVIT_TOKEN": davit("accounts:create", "guarding@example.com").stdout.strip()}
    client = Client(davit.url, as_them["DAVIT_TOKEN"])
    client.patch("/account", {"password": password})
    secret = client.post("/account/two-factor", {"password": password})["secret"]
    code = TOTP(base64.b32decode(secret), 6, SHA1(), 30).generate(int(time.time())).decode()
    codes = client.post("/account/two-factor/actions/confirm", {"code": code})["recovery_codes"]
    davit("apps:create", "guarded-app", **as_them)
    client.patch("/apps/guarded-app/features/two-factor-guard", {"enabled": True})
    refused = davit("apps:rename", "-a", "guarded-app", "renamed-app", check=False, **as_them)
    assert refused.returncode == 2 and "two-factor code" in refused.stderr, "nobody is there to be asked"

    window = Terminal([ROOT / "bin" / "davit", "apps:rename", "-a", "guarded-app", "renamed-app"], davit.env | as_them, davit.work)
    window.expect("Two-factor code: ", 60)
    window.type(f"{codes[0]}\r")
    window.expect("renamed-app", 60)
    assert window.wait(60) == 0, window.seen
    window.close()
    davit("apps:destroy", "-a", "renamed-app", "--confirm", "renamed-app", **as_them)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_printed_for_each_shell(davit: Davit, shell: str) -> None:
    script = davit("completions", shell).stdout
    assert "_DAVIT_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_drains_features_and_webhooks(davit: Davit) -> None:
    assert "no drains" in davit("drains", "-a", "timely").stdout
    davit("drains:add", "-a", "timely", "https://93.184.215.14/logs")
    assert "https://93.184.215.14/logs" in davit("drains", "-a", "timely").stdout
    davit("drains:remove", "-a", "timely", "https://93.184.215.14/logs")
    assert json.loads(davit("drains", "-a", "timely", "--json").stdout) == []
    refused = davit("drains:add", "-a", "timely", "https://127.0.0.1/logs", check=False)
    assert refused.returncode == 2 and "127.0.0.1" in refused.stderr

    name = next(row["name"] for row in json.loads(davit("features", "-a", "timely", "--json").stdout) if not row["enabled"])
    davit("features:enable", "-a", "timely", name)
    assert f"[+] {name}" in davit("features", "-a", "timely").stdout
    davit("features:disable", "-a", "timely", name)
    assert "Enabled: " in davit("features:info", "-a", "timely", name).stdout
    davit("labs")

    told = davit("webhooks:add", "-a", "timely", "-i", "api:release", "-u", "https://93.184.215.14/hook").stdout
    with snapshot() as session:
        (hook,) = session.scalars(select(Webhook))
        assert told == f"=== Webhooks Signing Secret\n\n{vault.reveal(hook.credentials)['secret']}\n"
    (row,) = json.loads(davit("webhooks", "-a", "timely", "--json").stdout)
    davit("webhooks:update", "-a", "timely", row["id"], "-i", "api:release,api:build")
    assert "api:build" in davit("webhooks:info", "-a", "timely", row["id"]).stdout
    davit("config:set", "-a", "timely", "TOLD=1", "--no-wait")
    (event, *_) = json.loads(davit("webhooks:events", "-a", "timely", "--json").stdout)
    assert '"action": "' in davit("webhooks:events:info", "-a", "timely", event["id"]).stdout
    (sent, *_) = json.loads(davit("webhooks:deliveries", "-a", "timely", "--json").stdout)
    assert json.loads(davit("webhooks:deliveries", "-a", "timely", "--json", "--status", "none").stdout) == []
    assert event["include"] in davit("webhooks:deliveries:info", "-a", "timely", sent["id"]).stdout
    davit("webhooks:remove", "-a", "timely", row["id"])
    assert "no webhooks" in davit("webhooks", "-a", "timely").stdout


def test_certificates_and_domains(davit: Davit) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=www.example.com", "-days", "30",
         "-addext", "subjectAltName=DNS:www.example.com", "-keyout", "key.pem", "-out", "crt.pem"],
        cwd=davit.work, check=True, capture_output=True,
    )  # fmt: skip
    davit("domains:add", "-a", "timely", "www.example.com")
    name = davit("certs:add", "-a", "timely", "crt.pem", "key.pem", "--domain", "www.example.com").stdout.strip()
    assert "www.example.com" in davit("certs", "-a", "timely").stdout
    assert re.search(r"Common Name\(s\): +www\.example\.com", davit("certs:info", "-a", "timely").stdout)
    assert name in davit("domains:info", "-a", "timely", "www.example.com").stdout
    davit("domains:wait", "-a", "timely")
    davit("domains:update", "-a", "timely", "www.example.com", "--cert", "none")
    davit("certs:remove", "-a", "timely", "--name", name)
    davit("domains:clear", "-a", "timely")
    assert len(json.loads(davit("domains", "-a", "timely", "--json").stdout)) == 1


def test_pipelines_and_transfers(davit: Davit) -> None:
    davit("apps:create", "timely-production")
    davit("pipelines:create", "-a", "timely", "line", "-s", "staging")
    davit("pipelines:add", "-a", "timely-production", "line", "-s", "production")
    assert "line" in davit("pipelines").stdout
    shown = davit("pipelines:info", "line").stdout
    assert shown.index("staging") < shown.index("production")
    davit("pipelines:rename", "line", "lane")
    davit("pipelines:update", "-a", "timely-production", "-s", "staging")
    refused = davit("pipelines:promote", "-a", "timely", check=False)
    assert refused.returncode == 1 and "after staging" in refused.stderr
    davit("pipelines:remove", "-a", "timely-production")
    davit("pipelines:destroy", "lane")
    davit("accounts:create", "heir@example.com")
    davit("apps:transfer", "-a", "timely-production", "heir@example.com")
    assert "heir@example.com" in davit("transfers").stdout
    davit("transfers:cancel", "timely-production")


def test_buildpacks_are_searched_and_explained(davit: Davit) -> None:
    found = davit("buildpacks:search", "python").stdout
    assert re.search(r"heroku/python +languages +Comes with Davit; looks for", found) and found.endswith("\n1 buildpack found\n")
    named = json.loads(davit("buildpacks:search", "--name", "nodejs,python", "--json").stdout)
    assert {row["name"] for row in named} == {"nodejs", "python"}
    assert davit("buildpacks:search", "no-such-thing").stdout == "No buildpacks found\n"
    assert "looks for requirements.txt" in davit("buildpacks:info", "heroku/python").stdout
    assert re.search(r"1 +2\d\d\d-.* published", davit("buildpacks:versions", "heroku/python").stdout)
    for word in ("python", "a/../b", "heroku/python?x"):
        assert "one looks like heroku/python" in davit("buildpacks:info", word, check=False).stderr
    assert "no such buildpack" in davit("buildpacks:versions", "heroku/none", check=False).stderr


def test_flags_of_herokus_do_what_they_do_there(davit: Davit) -> None:
    davit("apps:create", "flagged")
    davit.has_code("flagged", {"web": "python app.py"})
    davit("config:set", "-a", "flagged", "A=two words", "--no-wait")
    assert davit("releases:info", "-s", "-a", "flagged").stdout == "A='two words'\n"
    assert json.loads(davit("config", "-j", "-a", "flagged").stdout) == {"A": "two words"}
    assert "Restarting all web dynos on" in davit("ps:restart", "--process-type", "web", "-a", "flagged").stderr
    assert "find that process (web.7)" in davit("ps:stop", "--dyno-name", "web.7", "-a", "flagged", check=False).stderr
    assert "Name the dyno to stop" in davit("ps:stop", "-a", "flagged", check=False).stderr
    assert davit("logs", "-p", "web", "-a", "flagged").stdout == ""
    davit("labs:enable", "runtime-dyno-metadata", "-a", "flagged")
    assert "[+] runtime-dyno-metadata" in davit("features", "-a", "flagged").stdout
    assert json.loads(davit("labs", "-a", "flagged", "-j").stdout)["app"] == []
    davit("labs:disable", "runtime-dyno-metadata", "-a", "flagged", "--confirm", "flagged")
    assert "Enabled:     false" in davit("labs:info", "runtime-dyno-metadata", "-a", "flagged").stdout
    assert "find that feature" in davit("labs:info", "runtime-dyno-metadata", check=False).stderr
    assert json.loads(davit("buildpacks:add", "heroku/python", "-a", "flagged", "--json").stdout)[0]["ordinal"] == 0
    davit("domains:add", "--wait", "-a", "flagged", "www.flagged.example.com")
    refused = davit("domains:add", "--cert", "none-such", "-a", "flagged", "ww2.flagged.example.com", check=False)
    assert "find that SNI endpoint" in refused.stderr
    told = ("-i", "api:release", "-u", "https://93.184.215.14/hook", "-t", "Bearer of-a-hook")
    davit("webhooks:add", "-a", "flagged", *told)
    assert "of-a-hook" not in davit("webhooks", "-a", "flagged", "--json").stdout
    davit("config:set", "-a", "flagged", "B=1", "--no-wait")
    assert json.loads(davit("webhooks:deliveries", "-s", "succeeded", "-a", "flagged", "--json").stdout) == []
    shell = davit("clients:create", "-s", "an editor", "https://example.com/callback").stdout
    id = re.match(r"HEROKU_OAUTH_ID=([0-9a-f-]{36})\nHEROKU_OAUTH_SECRET=\S{20,}\n", shell)
    assert id, shell
    davit("clients:destroy", id[1])
    assert re.fullmatch(r"\S{30,}\n", davit("authorizations:create", "-S", "-d", "short").stdout)
    davit("pipelines:create", "-a", "flagged", "given", "-s", "staging")
    davit("accounts:create", "taker@example.com")
    assert "RECIPIENT" in davit("pipelines:transfer", "taker@example.com", check=False).stderr
    davit("pipelines:transfer", "taker@example.com", "--pipeline", "given", "--confirm", "given")


def test_two_apps_are_compared(davit: Davit) -> None:
    for name in ("left-one", "right-one"):
        davit("apps:create", name)
    assert davit("apps:diff", "left-one", "right-one").stdout == "left-one and right-one do not differ.\n"
    davit("config:set", "-a", "left-one", f"A={'x' * 80}", "SAME=1", "--no-wait")
    davit("config:set", "-a", "right-one", "SAME=1", "--no-wait")
    davit("buildpacks:set", "-a", "right-one", "heroku/python")
    davit.has_code("right-one")
    told = davit("apps:diff", "left-one", "right-one").stdout
    assert re.search(r"config \(A\) +x{56}\.\.\.\n", told) and re.search(r"buildpack \(0\) +heroku/python\n", told)
    assert re.search(r"slug \(checksum\) +SHA256:", told) and "SAME" not in told and "feature" not in told
    rows = json.loads(davit("apps:diff", "left-one", "right-one", "--json").stdout)
    assert {"property": "config (A)", "app1": "x" * 80, "app2": None} in rows
    assert "find that app" in davit("apps:diff", "left-one", "a/../b", check=False).stderr


def test_tokens_and_the_rest(davit: Davit) -> None:
    token = davit("authorizations:create", "-d", "for CI", "-s", "read", "--short").stdout.strip()
    assert davit("apps", DAVIT_TOKEN=token, DAVIT_URL=davit.url).returncode == 0
    rows = json.loads(davit("authorizations", "--json").stdout)
    (made,) = [row for row in rows if row["description"] == "for CI"]
    rotated = davit("authorizations:rotate", made["id"]).stdout
    assert token not in rotated and "Token:" in rotated
    assert "read" in davit("authorizations:info", made["id"]).stdout
    davit("authorizations:revoke", made["id"])
    assert "No sessions" in davit("sessions").stdout
    assert "not enabled" in davit("2fa").stdout
    assert "This Davit" in davit("regions").stdout and "davit-13 (default)" in davit("stacks").stdout
    editor = davit.work / "editor"
    editor.write_text("#!/bin/sh\necho \"A='two words'\" >\"$1\"\n")
    editor.chmod(0o755)
    davit("config:edit", "-a", "timely", "--no-wait", EDITOR=str(editor))
    assert json.loads(davit("config", "-a", "timely", "--json").stdout) == {"A": "two words"}


def test_what_happened_to_an_app_and_whose_it_is(davit: Davit) -> None:
    davit("maintenance:on", "-a", "timely")
    davit("maintenance:off", "-a", "timely")
    assert re.search(r"owner@localhost +.*aintenance", davit("activity", "-a", "timely").stdout)
    assert "has crashed" in davit("ps:crashes", "-a", "timely").stdout
    refused = davit("apps:leave", "-a", "timely", check=False)
    assert refused.returncode == 2 and refused.stderr
    davit("accounts:create", "guest@example.com")
    davit("accounts:2fa:disable", "guest@example.com")
    davit("keys:clear")
    davit("accounts:remove", "guest@example.com")


def test_clients_and_tokens_are_changed(davit: Davit) -> None:
    assert "No OAuth clients." in davit("clients").stdout
    made = json.loads(davit("clients:create", "An editor", "https://example.com/back", "--json").stdout)
    davit("clients:update", made["id"], "--name", "Another")
    assert "=== Another" in davit("clients:info", made["id"]).stdout and made["id"] in davit("clients").stdout
    assert json.loads(davit("clients:rotate", made["id"], "--json").stdout)["secret"] != made["secret"]
    davit("clients:destroy", made["id"])
    token = json.loads(davit("authorizations:create", "-d", "one", "--json").stdout)
    assert re.search(r"Description: +two", davit("authorizations:update", token["id"], "-d", "two").stdout)
    davit("authorizations:revoke", token["id"])
