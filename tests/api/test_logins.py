"""Logging in: with a second factor, and by the browser."""

from __future__ import annotations

import base64
import hashlib
import json
import time

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from api import streams
from state import db, throttle, web_sessions
from state.models import Account
from tests.api.conftest import Api

PASSWORD = "correct horse battery"
WHO = ("owner@example.com", PASSWORD)


@pytest.fixture(autouse=True)
def _nobody_guessed() -> None:
    throttle.passwords.forget()
    throttle.codes.forget()


def _enrol(api: Api) -> tuple[str, list[str]]:
    assert api.patch("/account", {"password": PASSWORD}).status_code == 200
    begun = api.post("/account/two-factor", {"password": PASSWORD})
    assert begun.status_code == 201
    assert begun.json["uri"].startswith("otpauth://totp/")
    confirmed = api.post("/account/two-factor/actions/confirm", {"code": _code(begun.json["secret"])})
    assert confirmed.status_code == 200
    return begun.json["secret"], confirmed.json["recovery_codes"]


def _code(secret: str, later: float = 0) -> str:
    return TOTP(base64.b32decode(secret), 6, SHA1(), 30).generate(int(time.time() + later)).decode()


def test_a_login_with_a_second_factor_takes_a_code(either_api: Api) -> None:
    api = either_api
    secret, recovery = _enrol(api)
    assert api.get("/account").json["two_factor_authentication"] is True
    asked = api.post("/oauth/authorizations", as_=None, auth=WHO)
    assert (asked.status_code, asked.json["id"]) == (403, "two_factor")
    for code in (_code(secret, 30), recovery[0]):
        made = api.post("/oauth/authorizations", as_=None, auth=WHO, headers={"Heroku-Two-Factor-Code": code})
        assert made.status_code == 201
        again = api.post("/oauth/authorizations", as_=None, auth=WHO, headers={"Heroku-Two-Factor-Code": code})
        assert (again.status_code, again.json["id"]) == (403, "two_factor")
    assert api.get("/account").json["last_login"]


def test_a_second_factor_is_turned_off_with_a_code_or_by_an_admin(api: Api) -> None:
    _, recovery = _enrol(api)
    assert api.delete("/account/two-factor").json["id"] == "two_factor"
    assert api.patch("/account", {"two_factor_authentication": False}).status_code == 403
    assert api.post("/account/recovery-codes").json["id"] == "two_factor"
    fresh = api.post("/account/recovery-codes", headers={"Heroku-Two-Factor-Code": recovery[0]}).json["recovery_codes"]
    assert api.delete("/account/two-factor", headers={"Heroku-Two-Factor-Code": recovery[1]}).status_code == 403
    assert api.delete("/account/two-factor", headers={"Heroku-Two-Factor-Code": fresh[0]}).status_code == 200
    assert api.post("/oauth/authorizations", as_=None, auth=WHO).status_code == 201
    begun = api.post("/account/two-factor", {"password": PASSWORD}).json
    api.post("/account/two-factor/actions/confirm", {"code": _code(begun["secret"])})
    assert api.patch("/users/owner@example.com", {"two_factor_authentication": False}, as_="admin").status_code == 200
    assert api.get("/account").json["two_factor_authentication"] is False


def test_a_second_factor_is_not_turned_on_without_its_secret(api: Api) -> None:
    refused = api.patch("/account", {"two_factor_authentication": True, "name": "Ann"})
    assert refused.status_code == 422 and "POST /account/two-factor" in refused.json["message"]
    assert api.get("/account").json["name"] is None
    _enrol(api)
    assert api.patch("/account", {"two_factor_authentication": True}).json["two_factor_authentication"] is True


def test_a_found_token_is_not_enough_to_lock_its_owner_out(api: Api) -> None:
    api.patch("/account", {"password": PASSWORD})
    for sent in ({}, {"password": "wrong"}):
        assert "password" in api.post("/account/two-factor", sent).json["message"]
    for sent in ({"password": "another long one"}, {"password": "wrong", "new_password": "another long one"}):
        assert api.patch("/account", sent).status_code == 422
    assert api.patch("/account", {"password": PASSWORD, "new_password": "another long one"}).status_code == 200
    assert api.post("/oauth/authorizations", as_=None, auth=WHO).status_code == 401


def test_a_command_line_logs_in_by_the_browser(api: Api) -> None:
    _, recovery = _enrol(api)
    asked = api.post("/auth", {"description": "heroku <b>here</b>"}, as_=None).json
    page = api.get(asked["browser_url"], as_=None)
    assert page.content_type.startswith("text/html")
    assert "heroku &lt;b&gt;here" in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy
    style = page.text.partition("<style>")[2].partition("</style>")[0]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    form = {"email": WHO[0], "password": "wrong", "answer": "allow"}
    assert api.call("POST", asked["browser_url"], data=form, as_=None).status_code == 401
    form["password"] = PASSWORD
    assert "two-factor" in api.call("POST", asked["browser_url"], data=form, as_=None).text
    form["code"] = recovery[0]
    assert api.call("POST", asked["browser_url"], data=form, as_=None).status_code == 200
    waiting = {"Authorization": f"Bearer {asked['token']}"}
    heard = api.get(asked["cli_url"], as_=None, headers=waiting)
    token = json.loads(heard.text)["access_token"]
    assert api.get("/account", as_=token).json["email"] == WHO[0]
    assert "error" in json.loads(api.get(asked["cli_url"], as_=None, headers=waiting).text)


def test_a_command_line_waits_for_the_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.resources import logins

    monkeypatch.setattr(logins, "LOOK_SECONDS", 0.01)
    api.patch("/account", {"password": PASSWORD})
    asked = api.post("/auth", {}, as_=None).json
    heard = api.get("/auth/cli", as_=None, headers={"Authorization": f"Bearer {asked['token']}"}, buffered=False)
    pieces = iter(heard.response)
    assert next(pieces) == b" "
    form = {"email": WHO[0], "password": PASSWORD, "answer": "deny"}
    assert api.call("POST", asked["browser_url"], data=form, as_=None).status_code == 200
    assert json.loads(b"".join(pieces)) == {"error": "The login was refused."}
    heard.close()


def test_strangers_who_wait_for_logins_leave_threads_for_everybody_else(api: Api) -> None:
    asked = api.post("/auth", {}, as_=None).json
    headers = {"Authorization": f"Bearer {asked['token']}"}
    open_ = [api.get("/auth/cli", as_=None, headers=headers, buffered=False) for _ in range(streams.logins.each)]
    refused = api.get("/auth/cli", as_=None, headers=headers)
    assert (refused.status_code, refused.json["id"]) == (503, "too_many_streams")
    elsewhere = {"REMOTE_ADDR": "203.0.113.9"}
    open_.append(api.get("/auth/cli", as_=None, headers=headers, buffered=False, environ_overrides=elsewhere))
    assert open_[-1].status_code == 200, "who asks from another address is not held up"
    for one in open_:
        one.close()


@pytest.mark.parametrize("secret", ["x", "e30.x", "a" * 2000])
def test_an_address_to_log_in_at_that_is_forged_shows_nothing(api: Api, secret: str) -> None:
    assert api.get(f"/auth/browser/{secret}", as_=None).status_code == 404
    assert api.call("POST", f"/auth/browser/{secret}", data={"email": "x", "password": "y"}, as_=None).status_code == 404
    assert api.get("/auth/cli", as_=None, headers={"Authorization": f"Bearer {secret}"}).status_code == 404
    assert api.get("/auth/cli", as_=None).status_code == 401


def test_browsers_that_are_logged_in_are_listed_and_logged_out(api: Api) -> None:
    with db.transaction() as session:
        account = session.query(Account).filter_by(email=WHO[0]).one()
        text, row = web_sessions.start(session, account, "Firefox on Linux", "davit.example.com")
    shown = api.get("/oauth/sessions").json
    assert [(one["description"], one["host"], one["id"]) for one in shown] == [("Firefox on Linux", "davit.example.com", row.id)]
    assert api.get("/oauth/sessions", as_="stranger").json == []
    assert api.get(f"/oauth/sessions/{row.id}").json["id"] == row.id
    assert api.get(f"/oauth/sessions/{row.id}", as_="stranger").status_code == 404
    assert api.delete("/oauth/sessions", as_="stranger").json == [] and len(api.get("/oauth/sessions").json) == 1
    assert api.delete(f"/oauth/sessions/{row.id}", as_="stranger").status_code == 404
    assert api.delete(f"/oauth/sessions/{row.id}").status_code == 200
    assert api.get("/oauth/sessions").json == []
    assert text not in str(shown)
