"""Accounts, tokens, passwords, SSH keys."""

from __future__ import annotations

import pytest

from state import throttle
from tests.api.conftest import Api

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


def test_narrow_tokens_are_refused_rather_than_made_wide(api: Api) -> None:
    assert api.post("/oauth/authorizations", {"scope": ["read"]}).status_code == 422


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
