"""Names, numbers and tokens that cannot be: the command line, the API and git say what is wrong, and nothing changes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.errors_page import assert_says
from tests.e2e.world import App, Davit, tiny


@pytest.fixture(scope="module")
def app(strict: Davit) -> Iterator[App]:
    """An app that serves “first” with one web dyno."""
    made = strict.create()
    made.deploy(tiny("first"))
    yield made
    made.cli("apps:destroy", "--confirm", made.name)


def refused(davit: Davit, row: str, status: int, id: str, method: str, path: str, body: Any = None, token: str | None = None) -> None:
    """The API answers with this status and id, and with the row's sentence."""
    with davit.client(token) as client:
        answer = client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["id"] == id
    assert_says(row, answer.json()["message"])


def command_fails(davit: Davit, row: str, *words: str) -> None:
    """The command fails with the row's sentence on standard error, and no traceback."""
    done = davit.cli(*words, check=False)
    assert done.returncode in (1, 2), done  # 2: the API refused, as with the heroku command
    assert_says(row, done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.row("app-name")
@pytest.mark.parametrize("name", ["Über", "a", "x" * 31, "-web", "web_1", "9lives", "a\nb", "../etc"])
def test_an_app_name_that_cannot_be(strict: Davit, name: str) -> None:
    refused(strict, "app-name", 422, "invalid_params", "POST", "/apps", {"name": name})


def test_a_name_is_refused_by_the_command_in_the_same_words(strict: Davit, app: App) -> None:
    command_fails(strict, "app-name", "apps:create", "Not_A_Name")


@pytest.mark.row("app-name-taken")
def test_an_app_name_that_is_taken(strict: Davit, app: App) -> None:
    refused(strict, "app-name-taken", 422, "invalid_params", "POST", "/apps", {"name": app.name})
    command_fails(strict, "app-name-taken", "apps:create", app.name)


@pytest.mark.row("config-name", "config-size")
def test_config_vars_that_cannot_be(strict: Davit, app: App) -> None:
    before = app.releases()
    for name in ("1ST", "A-B", "", "Ä", "A=B", "A\nB"):
        refused(strict, "config-name", 422, "invalid_params", "PATCH", f"/apps/{app.name}/config-vars", {name: "x", "GOOD": "y"})
    command_fails(strict, "config-name", "config:set", "-a", app.name, "1ST=x")
    refused(strict, "config-size", 422, "invalid_params", "PATCH", f"/apps/{app.name}/config-vars", {"BIG": "x" * 65537})
    assert app.releases() == before and app.cli("config", "--json").stdout.strip() == "{}"


@pytest.mark.row("scale-no-number", "scale-too-many", "scale-no-type")
def test_a_scale_that_cannot_be(strict: Davit, app: App) -> None:
    path = f"/apps/{app.name}/formation"
    for quantity in ("abc", "-5x", 1.5, True):
        refused(strict, "scale-no-number", 422, "invalid_params", "PATCH", path, {"updates": [{"type": "web", "quantity": quantity}]})
    command_fails(strict, "scale-no-number", "ps:scale", "-a", app.name, "web=abc")
    refused(strict, "scale-too-many", 422, "invalid_params", "PATCH", path, {"updates": [{"type": "web", "quantity": 10_000}]})
    command_fails(strict, "scale-too-many", "ps:scale", "-a", app.name, "web=10000")
    command_fails(strict, "scale-no-type", "ps:scale", "-a", app.name, "wbe=2")
    both = {"updates": [{"type": "web", "quantity": 2}, {"type": "wbe", "quantity": 2}]}
    refused(strict, "scale-no-type", 404, "not_found", "PATCH", path, both)
    assert [dyno["name"] for dyno in app.dynos()] == ["web.1"]


@pytest.mark.row("domain-invalid", "domain-wildcard", "domain-taken")
def test_a_domain_that_cannot_be_or_is_anothers(strict: Davit, app: App) -> None:
    for name in ("no dots", "-a.example.com", "1.2.3.4", "x" * 64 + ".com", "*"):
        refused(strict, "domain-invalid", 422, "invalid_params", "POST", f"/apps/{app.name}/domains", {"hostname": name})
    refused(strict, "domain-wildcard", 422, "invalid_params", "POST", f"/apps/{app.name}/domains", {"hostname": "*.Example.com"})
    app.cli("domains:add", "www.example.com")
    other = strict.create()
    try:
        refused(strict, "domain-taken", 422, "invalid_params", "POST", f"/apps/{other.name}/domains", {"hostname": "WWW.example.com"})
        command_fails(strict, "domain-taken", "domains:add", "-a", other.name, "www.example.com")
        assert "first" in app.get(Host="www.example.com").text
    finally:
        other.cli("apps:destroy", "--confirm", other.name)


@pytest.mark.row("app-unknown")
def test_an_app_that_does_not_exist(strict: Davit, app: App) -> None:
    refused(strict, "app-unknown", 404, "not_found", "GET", "/apps/no-such-app-here")
    command_fails(strict, "app-unknown", "ps", "-a", "no-such-app-here")
    push = app.push_to(f"http://127.0.0.1:{strict.api}/no-such-app-here.git", strict.token)
    assert push.status == 128
    assert_says("app-unknown", push.output)


@pytest.mark.row("run-flags")
def test_flags_of_the_command_that_is_to_run(strict: Davit, app: App) -> None:
    command_fails(strict, "run-flags", "run", "-a", app.name, "ls", "-a", "/")
    command_fails(strict, "run-flags", "ps:exec", "ls", "-a")
    command_fails(strict, "run-flags", "run:detached", "-a", app.name, "pip", "install", "-r", "requirements.txt")


@pytest.mark.row("no-such-app")
def test_a_host_name_that_leads_to_no_app(app: App) -> None:
    answer = app.get(Host="nobody.localhost")
    assert answer.status_code == 404
    assert_says("no-such-app", answer.text)


@pytest.mark.row("token-wrong", "token-wrong-git")
def test_a_token_that_is_none(strict: Davit, app: App) -> None:
    refused(strict, "token-wrong", 401, "unauthorized", "GET", "/apps", token="not-a-token")
    refused(strict, "token-wrong", 401, "unauthorized", "GET", "/apps", token=strict.token[:-1])
    push = app.push_to(f"http://127.0.0.1:{strict.api}/{app.name}.git", "not-a-token")
    assert push.status == 128
    assert_says("token-wrong-git", push.output)
    assert base64.b64encode(b"not-a-token").decode() not in push.output
