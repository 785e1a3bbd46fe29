"""Accounts, tokens, passwords, SSH keys."""

from __future__ import annotations

import pytest

from state import accounts, db, throttle
from tests.api.conftest import Api
from tests.e2e.errors_page import assert_says

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG" + "A" * 42 + " me@laptop"


@pytest.fixture(autouse=True)
def _fresh_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "passwords", throttle.WrongGuesses("password", most=3))
    monkeypatch.setattr(throttle, "codes", throttle.WrongGuesses("two-factor code", most=3))


def test_a_person_logs_in_with_a_password(either_api: Api) -> None:
    api = either_api
    assert api.patch("/account", {"password": "correct horse battery"}).status_code == 200
    made = api.post(
        "/oauth/authorizations", {"description": "laptop", "expires_in": 3600, "scope": ["global"]},
        as_=None, auth=("owner@example.com", "correct horse battery"),
    )  # fmt: skip
    assert made.status_code == 201
    token = made.json["access_token"]
    assert token["expires_in"] in (3599, 3600)
    assert api.get("/account", as_=token["token"]).json["email"] == "owner@example.com"


def test_a_password_opens_nothing_but_the_making_of_a_token(api: Api) -> None:
    api.patch("/account", {"password": "correct horse battery"})
    assert api.get("/account", as_=None, auth=("owner@example.com", "correct horse battery")).status_code == 401


def test_wrong_passwords_are_refused_and_then_no_longer_checked(api: Api) -> None:
    api.patch("/account", {"password": "correct horse battery"})
    for email in ("owner@example.com", "stranger@example.com", "nobody@example.com"):
        answers = [api.post("/oauth/authorizations", as_=None, auth=(email, "wrong")).status_code for _ in range(4)]
        assert answers == [401, 401, 401, 429]
    assert api.post("/oauth/authorizations", as_=None, auth=("owner@example.com", "correct horse battery")).status_code == 429


def test_short_passwords_are_refused(api: Api) -> None:
    assert "12" in api.patch("/account", {"password": "short"}).json["message"]
    assert api.patch("/account", {"password": 5}).status_code == 422


def test_tokens_are_listed_without_their_text(api: Api) -> None:
    rows = api.get("/oauth/authorizations").json
    assert len(rows) == 1
    shown = rows[0]["access_token"]["token"]
    assert "**********" in shown
    assert shown != api.people.owner
    assert api.people.owner.endswith(shown[-4:])


@pytest.mark.parametrize("scope", [["everything"], [], [5], "read", {"read": True}])
def test_a_scope_that_does_not_exist_is_refused_by_its_name(api: Api, scope: object) -> None:
    answer = api.post("/oauth/authorizations", {"scope": scope})
    assert answer.status_code == 422
    assert "Field scope" in answer.json["message"]


def test_a_token_is_renamed_and_renewed(either_api: Api) -> None:
    api = either_api
    made = api.post("/oauth/authorizations", {"description": "ci", "expires_in": 3600}).json
    old, path = made["access_token"]["token"], f"/oauth/authorizations/{made['id']}"
    assert api.patch(path, {"description": "ci of the shop"}).json["description"] == "ci of the shop"
    assert api.patch(path, {}).status_code == 422
    assert api.patch(path, {"description": "mine"}, as_="stranger").status_code == 404
    assert api.post(f"{path}/actions/regenerate-tokens", as_="stranger").status_code == 404
    new = api.post(f"{path}/actions/regenerate-tokens").json["access_token"]
    assert new["expires_in"] in (3599, 3600)
    assert api.get("/account", as_=old).status_code == 401
    assert api.get("/account", as_=new["token"]).status_code == 200


@pytest.mark.row("token-owners")
def test_the_token_that_davit_works_with_on_this_machine_is_renewed_and_not_taken_away(either_api: Api) -> None:
    api, file = either_api, accounts.owner_token_file()
    assert api.get("/oauth/authorizations/~", as_="admin").json["resource"] == "authorization", "there is none here yet"
    with db.transaction() as session:
        accounts.ensure_owner(session)
    old = file.read_text().strip()
    key = api.get("/oauth/authorizations/~", as_=old).json
    shown = key["access_token"]["token"]
    assert old.startswith(shown.partition("*")[0]) and old.endswith(shown[-4:]), "heroku logout knows it by that, and leaves it"
    for path in (f"/oauth/authorizations/{key['id']}", "/oauth/authorizations/~", f"/oauth/tokens/{key['id']}"):
        refused = api.delete(path, as_=old)
        assert refused.status_code == 409
        assert_says("token-owners", refused.json["message"])
    assert api.get("/account", as_=old).status_code == 200
    assert api.get("/oauth/authorizations/~", as_="stranger").status_code == 404
    assert not api.get("/oauth/authorizations/~", as_="admin").json["access_token"]["token"].endswith(old[-4:]), "another of his tokens"
    new = api.post(f"/oauth/authorizations/{key['id']}/actions/regenerate-tokens", as_=old).json["access_token"]["token"]
    assert file.read_text().strip() == new and file.stat().st_mode & 0o777 == 0o600
    assert [api.get("/account", as_=token).status_code for token in (old, new)] == [401, 200]


def test_a_client_acts_for_who_allows_it_as_far_as_they_allow(either_api: Api) -> None:
    api = either_api
    client = api.post("/oauth/clients", {"name": "Board", "redirect_uri": "https://board.example.com/back"}, as_="stranger").json
    granted = api.post("/oauth/authorizations", {"client": client["id"], "scope": ["read"]}).json
    assert granted["client"]["name"] == "Board"
    code = granted["grant"]["code"]
    asked = {"grant": {"type": "authorization_code", "code": code}, "client": {"secret": client["secret"]}}
    assert api.post("/oauth/tokens", {**asked, "client": {"secret": "wrong"}}, as_=None).status_code == 401
    got = api.post("/oauth/tokens", asked, as_=None)
    assert got.status_code == 201
    assert api.post("/oauth/tokens", asked, as_=None).status_code == 401, "a grant is exchanged once"
    access, refresh = got.json["access_token"]["token"], got.json["refresh_token"]["token"]
    assert api.get("/apps/timely", as_=access).status_code == 200
    assert api.get("/apps/timely/config-vars", as_=access).status_code == 403
    renewed = api.post("/oauth/tokens", {"refresh_token": {"token": refresh}, "client": {"secret": client["secret"]}}, as_=None).json
    assert api.get("/apps/timely", as_=access).status_code == 401
    assert api.get("/apps/timely", as_=renewed["access_token"]["token"]).status_code == 200
    rotated = api.post(f"/oauth/clients/{client['id']}/actions/rotate-credentials", as_="stranger").json
    again = {"refresh_token": {"token": renewed["refresh_token"]["token"]}, "client": {"secret": client["secret"]}}
    assert api.post("/oauth/tokens", again, as_=None).status_code == 401
    assert rotated["secret"] != client["secret"]
    assert api.delete(f"/oauth/clients/{client['id']}", as_="owner").status_code == 404
    assert api.delete(f"/oauth/clients/{client['id']}", as_="stranger").status_code == 200
    assert api.get("/apps/timely", as_=renewed["access_token"]["token"]).status_code == 401
    assert api.get("/oauth/clients", as_="stranger").json == []


@pytest.mark.parametrize("uri", ["http://example.com", "javascript:alert(1)", "https://", "https://[", "https://a b", "x"])
def test_a_client_cannot_send_people_anywhere(api: Api, uri: str) -> None:
    answer = api.post("/oauth/clients", {"name": "Board", "redirect_uri": uri})
    assert "Field redirect_uri" in answer.json["message"]


@pytest.mark.parametrize("sent", [{}, {"grant": 5}, {"client": {"secret": "x"}}, {"client": {"secret": "x"}, "grant": {"code": 5}}])
def test_a_client_that_asks_wrongly_is_told(api: Api, sent: object) -> None:
    assert api.post("/oauth/tokens", sent, as_=None).status_code == 422


def test_keys_are_added_listed_and_removed(either_api: Api) -> None:
    api = either_api
    added = api.post("/account/keys", {"public_key": KEY})
    assert (added.status_code, added.json["comment"]) == (201, "me@laptop")
    assert [row["public_key"] for row in api.get("/account/keys").json] == [KEY]
    assert api.get(f"/account/keys/{added.json['fingerprint']}").status_code == 200
    assert api.post("/account/keys", {"public_key": KEY}, as_="stranger").status_code == 409
    assert api.delete(f"/account/keys/{added.json['id']}", as_="stranger").status_code == 404
    assert api.delete(f"/account/keys/{added.json['id']}").status_code == 200
    assert api.get("/account/keys").json == []


@pytest.mark.parametrize("key", ["", "x", "ssh-ed25519 AAAA", "ssh-ed25519 !!", KEY + "\n" + KEY, 5])
def test_what_is_no_key_is_refused(api: Api, key: object) -> None:
    assert api.post("/account/keys", {"public_key": key}).status_code == 422


def test_an_admin_makes_accounts_and_removes_them(either_api: Api) -> None:
    api = either_api
    made = api.post("/davit/accounts", {"email": "New@Example.com", "name": "New"}, as_="admin")
    assert (made.status_code, made.json["email"]) == (201, "new@example.com")
    token = made.json["access_token"]["token"]
    assert api.get("/account", as_=token).json["name"] == "New"
    assert api.post("/davit/accounts", {"email": "new@example.com"}, as_="admin").status_code == 409
    assert api.post("/davit/accounts", {"email": "no address"}, as_="admin").status_code == 422
    assert "new@example.com" in [row["email"] for row in api.get("/davit/accounts", as_="admin").json]
    assert api.patch("/users/new@example.com", {"name": "Newer"}, as_="admin").json["name"] == "Newer"
    assert api.patch("/users/new@example.com", {"name": "Mine"}, as_="stranger").status_code == 404
    assert api.delete("/davit/accounts/new@example.com", as_="admin").status_code == 200
    assert api.get("/account", as_=token).status_code == 401
    assert api.delete("/davit/accounts/owner@example.com", as_="admin").status_code == 422
    assert api.delete("/davit/accounts/admin@example.com", as_="admin").status_code == 422


@pytest.mark.parametrize(("name", "words"), [("a\x00b", "NUL"), ("x" * 101, "100"), (5, "string")])
def test_a_field_that_no_database_could_hold_is_refused_by_its_name(either_api: Api, name: object, words: str) -> None:
    answer = either_api.patch("/account", {"name": name})
    assert answer.status_code == 422
    assert "Field name" in answer.json["message"] and words in answer.json["message"]


def _looks_like(token: str, shown: str) -> bool:
    """Whether the heroku command takes what a list shows for its own token (@heroku-cli/command, isCurrentOAuthToken)."""
    beginning, stars, end = shown.partition("*" * 10)
    return token.startswith(beginning) and token.endswith(end) if stars else token == shown


def test_logging_out_by_the_heroku_command_takes_back_its_token_and_no_other(api: Api) -> None:
    """What `heroku logout` asks, and what it makes of the answers: a 404 that is of no session or authorization ends it."""
    mine, other = (api.post("/oauth/authorizations", {"description": name}).json for name in ("mine", "CI"))
    token = mine["access_token"]["token"]
    for method, path, resource in (("DELETE", "/oauth/sessions/~", "session"), ("GET", "/oauth/authorizations/~", "authorization")):
        answer = api.call(method, path, as_=token)
        assert (answer.status_code, answer.json["id"], answer.json["resource"]) == (404, "not_found", resource)
    rows = api.get("/oauth/authorizations", as_=token).json
    assert {mine["id"], other["id"]} < {row["id"] for row in rows}
    assert [row["id"] for row in rows if _looks_like(token, row["access_token"]["token"])] == [mine["id"]]
    assert api.delete(f"/oauth/authorizations/{mine['id']}", as_=token).status_code == 200
    assert [api.get("/account", as_=one).status_code for one in (token, other["access_token"]["token"])] == [401, 200]
    assert api.get("/apps/none").json["resource"] == "app"
