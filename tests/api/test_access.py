"""Who may call what: every route, as everybody."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from api import links, routing, shapes
from api.web import create_app, operations
from foundation.settings import settings
from state import db, pipelines, scopes, vault
from state.apps import NOT_FOUND, PERMISSIONS
from state.models import App, Build, Webhook
from tests.api import lived_in
from tests.api.conftest import Api, give_code

_PLACES = {
    "app": "timely", "release": "v1", "dyno": "web.1", "type": "web", "user": "~", "domain": "timely.localhost",
    "region": "local", "stack": "davit-13", "size": "eco", "namespace": "heroku", "buildpack": "python",
    "pipeline": "the-line",
}  # fmt: skip
_HOLDS = {
    "viewer": {"view"}, "deployer": {"view", "deploy"}, "operator": {"view", "operate"}, "manager": {"view", "manage"},
    "owner": set(PERMISSIONS), "admin": set(PERMISSIONS), "stranger": set(),
}  # fmt: skip


def _path(operation: routing.Operation, places: dict[str, str] | None = None) -> str:
    known = {**_PLACES, **(places or {})}
    if "/collaborators/" in operation.path:
        known["user"] = lived_in.FRIEND
    return re.sub(r"<(?:path:)?([^>]+)>", lambda match: known.get(match[1], "none"), operation.path)


_ENDS = ["/oauth/sessions", "/pipelines/<pipeline>", "/apps/<app>"]
_LAST = sorted(operations(), key=lambda o: _ENDS.index(o.path) + 1 if o.method == "DELETE" and o.path in _ENDS else 0)
_REMOVING_LAST = sorted(_LAST, key=lambda o: o.method == "DELETE")
_ALL = frozenset(_HOLDS)
_LORDS = {"owner", "admin"}
_WHOSE = {
    "authorization": {"owner"}, "client": {"owner"}, "key": {"owner"}, "session": {"owner"}, "token": {"owner"},
    "transfer": _LORDS, "setup": _LORDS, "promotion": _ALL - {"stranger"}, "coupling": _ALL - {"stranger"},
}  # fmt: skip
"""Whose the owner's things are that a path names without an app or a pipeline: nobody else hears that they are there."""
_COUPLED = {"app": "timely", "pipeline": "the-line", "stage": "staging"}
_PROMOTED = {"pipeline": {"id": "the-line"}, "source": {"app": "timely"}, "targets": [{"app": lived_in.SECOND}]}
_TAKES = {
    "POST /account/app-transfers": (_LORDS, {"app": "timely", "recipient": lived_in.FRIEND}),
    "PATCH /account/app-transfers/<transfer>": (set(), {"state": "accepted"}),  # it was not offered to any of them
    "POST /pipeline-couplings": (_LORDS, _COUPLED),
    "PATCH /pipeline-couplings/<coupling>": ({*_LORDS, "operator"}, {"stage": "staging"}),
    "DELETE /pipeline-couplings/<coupling>": ({*_LORDS, "operator"}, None),
    "POST /pipeline-promotions": (_LORDS, _PROMOTED),
    "POST /pipeline-transfers": (_LORDS, {"pipeline": {"id": "the-line"}, "new_owner": {"id": "owner@example.com"}}),
    "PATCH /oauth/authorizations/<authorization>": ({"owner"}, {"description": "x"}),
    "PUT /api/v2/<dyno>": ({*_LORDS, "operator"}, {"client_key": lived_in.KEY}),
    "GET /api/v2": (_ALL - {"stranger"}, None),
}  # fmt: skip
"""Calls that take more than the sight of what their path names, or name it elsewhere: who may, and what they send."""


def _pipeline(api: Api) -> None:
    """The owner's pipeline, with ``timely`` in it."""
    assert api.post("/pipelines", {"name": "the-line"}).status_code == 201
    coupled = api.post("/pipeline-couplings", {"pipeline": "the-line", "app": "timely", "stage": "staging"})
    assert coupled.status_code == 201


def _refused(operation: routing.Operation, role: str) -> bool:
    if operation.on_app:
        return operation.needs not in _HOLDS[role]
    lords = {"pipeline-manage": ("owner", "admin"), "admin": ("admin",)}
    return role not in lords.get(operation.needs, (role,))


def test_nobody_gets_anything_without_credentials(api: Api) -> None:
    for operation in operations():
        answer = api.call(operation.method, _path(operation), as_=None)
        if operation.needs == "nothing":
            assert answer.status_code in (200, 201, 401, 404, 422, 426), operation
        else:
            assert (answer.status_code, answer.json["id"]) == (401, "unauthorized"), operation
            assert answer.headers["WWW-Authenticate"]


def _lords(operation: routing.Operation) -> tuple[frozenset[str], frozenset[str]]:
    """Who may see what a call is about, and who may make it, where its route demands no more than an account."""
    seen = next((frozenset(who) for name, who in _WHOSE.items() if f"<{name}>" in operation.path or f":{name}>" in operation.path), _ALL)
    return seen, frozenset(_TAKES.get(f"{operation.method} {operation.path}", (seen, None))[0])


@pytest.mark.parametrize("role", sorted(_HOLDS))
def test_everybody_gets_what_they_may_and_nothing_else(api: Api, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_EXEC", "127.0.0.1:22")
    settings.cache_clear()
    places = lived_in.fill(api)
    for operation in _REMOVING_LAST:
        _, sent = _TAKES.get(f"{operation.method} {operation.path}", (None, None))
        who = {"as_": None, "auth": ("timely", getattr(api.people, role))} if "/api/v2" in operation.path else {"as_": role}
        answer = api.call(operation.method, _path(operation, places), sent, **who)
        said = (answer.status_code, (answer.json or {}).get("message") if isinstance(answer.json, dict) else None)
        seen, lords = _lords(operation)
        if role not in seen or (role == "stranger" and role not in lords):
            assert said[0] == 404, (operation, said)
        elif operation.needs == "account" and lords != _ALL:
            assert (said[0] in (403, 404)) != (role in lords), (operation, said)
            if operation.method == "DELETE" and "<coupling>" in operation.path:
                api.post("/pipeline-couplings", _COUPLED)  # who sees the pipeline by this app goes on to see it
        elif operation.on_app and role == "stranger":
            assert said == (404, NOT_FOUND), operation
        elif operation.on_pipeline and role == "stranger":
            assert said == (404, pipelines.NOT_FOUND), operation
        elif _refused(operation, role):
            assert said[0] == 403, operation
        elif operation.method == "DELETE" and "collaborators" in operation.path:
            assert said[0] == (200 if "manage" in _HOLDS[role] else 403), operation
        else:
            assert said[0] not in (401, 403) and said[1] != NOT_FOUND, (operation, said)


@pytest.mark.parametrize("scope", scopes.SCOPES)
def test_a_token_opens_what_its_scope_says_and_nothing_else(api: Api, scope: str) -> None:
    give_code(api.app_id)
    _pipeline(api)
    made = api.post("/oauth/authorizations", {"scope": [scope]})
    assert made.json["scope"] == [scope]
    token = made.json["access_token"]["token"]
    for operation in _LAST:
        if operation.needs in ("nothing", "admin"):
            continue
        answer = api.call(operation.method, _path(operation), as_=token)
        told = (answer.json or {}).get("message", "") if isinstance(answer.json, dict) else ""
        refused = answer.status_code == 403 and f"its scope is {scope}" in told
        assert refused != scopes.opens([scope], operation.scope), (operation, answer.status_code, told)


def test_what_shows_or_reaches_config_vars_takes_a_protected_scope() -> None:
    """The declarations themselves: a route that is forgotten takes the narrowest."""
    loose = {(o.method, o.path) for o in operations() if o.needs != "nothing" and o.scope in ("identity", "read", "write")}
    secret = ("config-vars", "/releases", "/slugs", "/attach", "authorizations", "/keys", "two-factor", "recovery-codes")
    assert not [path for _, path in loose if any(word in path for word in secret)]
    running = {("POST", "/apps/<app>/dynos"), ("POST", "/apps/<app>/builds"), ("PUT", "/apps/<app>/buildpack-installations")}
    assert not loose & running


def test_a_narrow_token_is_told_of_no_config_var_whatever_it_asks(api: Api) -> None:
    """By what is answered, not by what the paths are called."""
    give_code(api.app_id)
    _pipeline(api)
    api.post("/apps/timely/webhooks", {"url": "https://203.0.113.9/", "include": ["api:release"], "level": "notify"})
    api.patch("/apps/timely/config-vars", {"STRIPE_KEY": "the-value"})
    answers = {}
    for scope in ("write", "global"):
        token = api.post("/oauth/authorizations", {"scope": [scope]}).json["access_token"]["token"]
        asked = [one for one in operations() if one.method == "GET" and one.needs != "nothing"]
        answers[scope] = "".join(api.get(_path(one), as_=token).text for one in asked)
    assert "STRIPE_KEY" in answers["global"] and "STRIPE_KEY" not in answers["write"] and "the-value" not in answers["write"]


def test_a_password_in_a_buildpacks_url_is_shown_to_those_who_may_deploy(api: Api) -> None:
    url = "https://me:the-password@example.com/pack.git?key=the-key#main"
    give_code(api.app_id)
    set_to = api.put("/apps/timely/buildpack-installations", {"updates": [{"buildpack": url}]}, as_="deployer")
    assert set_to.json[0]["buildpack"]["url"] == url, set_to.text
    with db.transaction() as session:
        session.add(Build(app_id=api.app_id, account_id=session.get_one(App, api.app_id).owner_id, stack="davit-13", buildpacks=[url]))
    for path in ("/apps/timely/buildpack-installations", "/apps/timely/builds"):
        shown = api.get(path, as_="viewer").text
        assert "https://example.com/pack.git#main" in shown and "the-password" not in shown and "the-key" not in shown, path
        assert url in api.get(path, as_="deployer").text


def test_a_buildpack_that_cannot_be_read_is_shown_to_everybody_without_what_may_be_a_key(api: Api) -> None:
    give_code(api.app_id)
    with db.transaction() as session:
        app = session.get_one(App, api.app_id)
        app.buildpacks = ["git://me:the-password@[x?key=the-key"]
        session.add(Build(app_id=app.id, account_id=app.owner_id, stack="davit-13", buildpacks=app.buildpacks))
    for path in ("/apps/timely/buildpack-installations", "/apps/timely/builds"):
        shown = api.get(path, as_="viewer")
        assert shown.status_code == 200 and '"git://[x"' in shown.text and "the-password" not in shown.text and "the-key" not in shown.text


def test_scopes_are_not_widened_by_a_narrow_token(api: Api) -> None:
    narrow = api.post("/oauth/authorizations", {"scope": ["write-protected"]}).json["access_token"]["token"]
    assert api.post("/oauth/authorizations", {"scope": ["global"]}, as_=narrow).status_code == 403
    assert api.post("/account/keys", {"public_key": "x"}, as_=narrow).status_code == 403
    assert api.patch("/apps/timely/config-vars", {"A": "1"}, as_=narrow).status_code == 200


def test_a_refused_call_changes_nothing(api: Api) -> None:
    before = api.get("/apps/timely").json
    for role in ("stranger", "viewer", None):
        assert api.patch("/apps/timely", {"name": "stolen"}, as_=role).status_code in (401, 403, 404)
        assert api.patch("/apps/timely", {"maintenance": True}, as_=role).status_code in (401, 403, 404)
        assert api.delete("/apps/timely", as_=role).status_code in (401, 403, 404)
    assert api.get("/apps/timely").json == before


def test_a_route_that_does_not_say_who_may_call_it_keeps_the_process_from_starting() -> None:
    flask = create_app()
    flask.add_url_rule("/open-door", "open-door", lambda: "welcome")
    with pytest.raises(TypeError, match="/open-door"):
        routing.check(flask)


def test_two_routes_for_the_same_keep_the_process_from_starting() -> None:
    flask = create_app()
    again = routing.Resource("again")
    again.on("GET", "/apps/<app>/domains", needs="view", gives=shapes.EMPTY)(lambda call, **places: [])
    flask.register_blueprint(again)
    with pytest.raises(TypeError, match="served twice"):
        routing.check(flask)


def test_a_permission_on_an_app_needs_the_app_in_the_path() -> None:
    resource = routing.Resource("wrong")
    with pytest.raises(TypeError):
        resource.on("GET", "/nothing", needs="view", gives=shapes.EMPTY)(lambda call: None)
    with pytest.raises(TypeError):
        resource.on("GET", "/apps/<app>/x", needs="account", gives=shapes.EMPTY)(lambda call: None)
    assert isinstance(Flask("empty", static_folder=None), Flask)


def test_a_removed_token_opens_nothing_any_more(api: Api) -> None:
    made = api.post("/oauth/authorizations", {"description": "short"}).json
    text = made["access_token"]["token"]
    assert api.get("/account", as_=text).status_code == 200
    assert api.delete(f"/oauth/authorizations/{made['id']}").status_code == 200
    assert api.get("/account", as_=text).status_code == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer undefined", "Basic", "Basic !!!", "Basic /w==", "Digest x", "Bearer \udcff"]
)
def test_credentials_that_are_none_are_refused(api: Api, header: str) -> None:
    try:
        answer = api.get("/account", as_=None, headers={"Authorization": header})
    except UnicodeEncodeError:
        pytest.skip("the test client cannot send this")
    assert (answer.status_code, answer.json["id"]) == (401, "unauthorized")


@pytest.mark.parametrize("user", ["", "heroku", "timely"])
def test_a_token_is_taken_as_the_password_of_basic_auth(api: Api, user: str) -> None:
    assert api.get("/account", as_=None, auth=(user, api.people.owner)).json["email"] == "owner@example.com"


def test_an_app_named_with_nul_as_the_user_of_basic_auth_is_not_found(either_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_EXEC", "127.0.0.1:22")
    settings.cache_clear()
    for method, path, sent in (("GET", "/api/v2", None), ("PUT", "/api/v2/web.1", {"client_key": "x"})):
        answer = either_api.call(method, path, sent, as_=None, auth=("a\x00b", either_api.people.owner))
        assert (answer.status_code, answer.json["message"]) == (404, "Couldn't find that app."), answer.text
        assert either_api.call(method, path, sent, as_=None, auth=("none", either_api.people.owner)).status_code == 404


def test_who_may_set_config_vars_and_not_read_them_hears_only_of_what_they_set(api: Api) -> None:
    api.patch("/apps/timely/config-vars", {"SECRET": "of the owner"})
    assert api.get("/apps/timely/config-vars", as_="operator").status_code == 403
    assert api.patch("/apps/timely/config-vars", {}, as_="operator").json == {}
    assert api.patch("/apps/timely/config-vars", {"MINE": "1", "GONE": None}, as_="operator").json == {"MINE": "1"}
    assert api.patch("/apps/timely/config-vars", {}).json == {"MINE": "1", "SECRET": "of the owner"}


def test_a_slug_is_read_by_who_may_deploy_and_not_by_who_may_look(api: Api) -> None:
    slug = give_code(api.app_id).slug_id
    assert "/streams/slugs/" in api.get(f"/apps/timely/slugs/{slug}", as_="deployer").json["blob"]["url"]
    assert not api.get(f"/apps/timely/slugs/{slug}", as_="viewer").json["blob"]["url"]


def test_a_webhooks_address_is_for_who_may_change_it(api: Api) -> None:
    with db.transaction() as session:
        sealed = vault.seal({"secret": "x", "authorization": ""})
        url = "https://hooks.example.com:8443/T0/secret?k=1"
        session.add(Webhook(app_id=api.app_id, url=url, include=["api:app"], level="notify", credentials=sealed))
    for path in ("/apps/timely/webhooks", f"/apps/timely/webhooks/{api.get('/apps/timely/webhooks').json[0]['id']}"):
        assert "secret" in api.get(path, as_="operator").text
        assert "https://hooks.example.com:8443" in api.get(path, as_="viewer").text
        assert "secret" not in api.get(path, as_="viewer").text


def test_a_crash_is_logged_without_the_secret_in_its_address(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def crash(*_: object) -> object:
        raise RuntimeError("broken")

    monkeypatch.setattr(links, "read", crash)
    assert api.get("/streams/logs/sesame", as_=None).status_code == 500
    (record,) = [record for record in caplog.records if record.message == "request crashed"]
    assert record.__dict__["rule"] == "/streams/logs/<secret>"
    assert not any("sesame" in str(value) for key, value in record.__dict__.items() if key not in ("exc_info", "exc_text"))
