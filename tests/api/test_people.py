"""Features and the two-factor guard, transfers, collaborators' permissions, invitations."""

from __future__ import annotations

import base64
import time

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from state import db, releases, throttle
from state.models import App
from tests.api.conftest import Api, give_code


@pytest.fixture(autouse=True)
def _nobody_guessed() -> None:
    throttle.passwords.forget()
    throttle.codes.forget()


def _recovery_codes(api: Api, who: str = "owner") -> list[str]:
    """Turn two-factor authentication on; each of these opens once."""
    secret = api.post("/account/two-factor", as_=who).json["secret"]
    code = TOTP(base64.b32decode(secret), 6, SHA1(), 30).generate(int(time.time())).decode()
    codes: list[str] = api.post("/account/two-factor/actions/confirm", {"code": code}, as_=who).json["recovery_codes"]
    return codes


def _with(code: str) -> dict[str, str]:
    return {"Heroku-Two-Factor-Code": code}


def test_features_are_listed_and_switched(either_api: Api) -> None:
    api = either_api
    names = [row["name"] for row in api.get("/apps/timely/features", as_="viewer").json]
    assert names == ["preboot", "runtime-dyno-metadata", "runtime-heroku-exec", "two-factor-guard"]
    path = "/apps/timely/features/runtime-dyno-metadata"
    assert api.get(path).json["enabled"] is False
    assert api.patch(path, {"enabled": True}, as_="viewer").status_code == 403
    assert api.patch(path, {"enabled": True}).json["enabled"] is True
    assert api.get(f"/apps/timely/features/{api.get(path).json['id']}").json["enabled"] is True
    assert "Field enabled" in api.patch(path, {}).json["message"]
    assert api.get("/apps/timely/features/none").status_code == 404
    assert [row["name"] for row in api.get("/account/features").json] == ["two-factor-guard"]
    assert api.get("/account/features/none").status_code == 404


def test_what_davit_always_does_cannot_be_switched_off(api: Api) -> None:
    refused = api.patch("/apps/timely/features/preboot", {"enabled": False})
    assert (refused.status_code, "preboot" in refused.json["message"]) == (422, True)
    assert api.patch("/apps/timely/features/preboot", {"enabled": True}).status_code == 200


def test_with_dyno_metadata_the_next_release_says_what_it_is(either_api: Api) -> None:
    api = either_api
    assert give_code(api.app_id).dyno_metadata == {}
    api.patch("/apps/timely/features/runtime-dyno-metadata", {"enabled": True})
    release = give_code(api.app_id)
    found = release.dyno_metadata
    assert (found["HEROKU_APP_NAME"], found["HEROKU_RELEASE_VERSION"]) == ("timely", f"v{release.version}")
    assert found["HEROKU_SLUG_COMMIT"] == "12" * 20
    with db.snapshot() as session:
        app = session.get(App, api.app_id)
        assert app
        assert "HEROKU_APP_NAME" not in releases.config_of(release), "they are no config vars"


def test_the_guard_of_an_app_asks_everybody_for_a_code(either_api: Api) -> None:
    api = either_api
    guard = "/apps/timely/features/two-factor-guard"
    assert "two-factor authentication on first" in api.patch(guard, {"enabled": True}).json["message"]
    codes = _recovery_codes(api)
    assert api.patch(guard, {"enabled": True}, as_="operator").status_code == 403
    assert api.patch(guard, {"enabled": True}).status_code == 200
    for call in (
        lambda **more: api.delete("/apps/timely", **more),
        lambda **more: api.patch("/apps/timely", {"name": "other-name"}, **more),
        lambda **more: api.post("/apps/timely/collaborators", {"user": "stranger@example.com"}, **more),
        lambda **more: api.patch("/apps/timely/collaborators/viewer@example.com", {"permissions": ["view"]}, **more),
        lambda **more: api.delete("/apps/timely/collaborators/viewer@example.com", **more),
        lambda **more: api.post("/account/app-transfers", {"app": "timely", "recipient": "stranger@example.com"}, **more),
        lambda **more: api.patch(guard, {"enabled": False}, **more),
    ):
        refused = call()
        assert (refused.status_code, refused.json["id"], refused.json["app"]) == (403, "two_factor", {"name": "timely"})
        if "admin" not in str(call):
            assert call(as_="admin").status_code == 403, "an admin without a second factor cannot pass either"
    assert api.patch("/apps/timely", {"maintenance": True}).status_code == 200, "what is not guarded goes on"
    assert api.put("/apps/timely/pre-authorizations").json["id"] == "two_factor"
    assert api.put("/apps/timely/pre-authorizations", headers=_with(codes[0])).status_code == 200
    assert api.patch("/apps/timely", {"name": "other-name"}).status_code == 200
    assert api.delete("/apps/other-name").status_code == 200


def test_a_pre_authorization_is_of_one_token_and_one_app(api: Api) -> None:
    codes = _recovery_codes(api)
    api.post("/apps", {"name": "second-app"})
    assert api.patch("/account/features/two-factor-guard", {"enabled": True}).status_code == 200
    other = api.post("/oauth/authorizations").json["access_token"]["token"]
    assert api.put("/apps/timely/pre-authorizations", headers=_with(codes[0])).status_code == 200
    assert api.delete("/apps/timely", as_=other).status_code == 403
    assert api.delete("/apps/second-app").status_code == 403
    assert api.delete("/apps/second-app", headers=_with(codes[1])).status_code == 200
    assert api.patch("/account/features/two-factor-guard", {"enabled": False}).status_code == 403
    assert api.patch("/account/features/two-factor-guard", {"enabled": False}, headers=_with(codes[2])).status_code == 200
    assert api.delete("/apps/timely", as_=other).status_code == 200


def test_without_a_second_factor_there_is_nothing_to_authorize(api: Api) -> None:
    assert api.put("/apps/timely/pre-authorizations").status_code == 422


def test_an_app_changes_hands_when_the_recipient_accepts(either_api: Api) -> None:
    api = either_api
    offer = {"app": "timely", "recipient": "viewer@example.com"}
    assert api.post("/account/app-transfers", offer, as_="manager").status_code == 403
    assert api.post("/account/app-transfers", offer, as_="stranger").status_code == 404
    made = api.post("/account/app-transfers", offer)
    assert (made.status_code, made.json["state"]) == (201, "pending")
    assert api.post("/account/app-transfers", offer).status_code == 422
    path = f"/account/app-transfers/{made.json['id']}"
    assert api.get(path, as_="stranger").status_code == 404
    assert [row["id"] for row in api.get("/account/app-transfers", as_="viewer").json] == [made.json["id"]]
    assert api.patch(path, {"state": "accepted"}).status_code == 403
    assert api.patch(path, {"state": "maybe"}, as_="viewer").status_code == 422
    assert api.patch(path, {"state": "accepted"}, as_="viewer").json["state"] == "accepted"
    assert api.patch(path, {"state": "declined"}, as_="viewer").status_code == 422
    assert api.delete(path).status_code == 422
    app = api.get("/apps/timely", as_="viewer").json
    assert app["owner"]["email"] == "viewer@example.com"
    roles = {row["user"]["email"]: row["role"] for row in api.get("/apps/timely/collaborators", as_="viewer").json}
    assert (roles["viewer@example.com"], roles["owner@example.com"]) == ("owner", "collaborator")


def test_an_offer_is_declined_or_taken_back(api: Api) -> None:
    offer = {"app": api.app_id, "recipient": "stranger@example.com"}
    path = f"/account/app-transfers/{api.post('/account/app-transfers', offer).json['id']}"
    assert api.delete(path).status_code == 200
    assert api.delete(path).status_code == 404
    made = api.post("/account/app-transfers", offer).json
    assert api.patch("/account/app-transfers/timely", {"state": "declined"}, as_="stranger").json["id"] == made["id"]
    assert api.get("/apps/timely").json["owner"]["email"] == "owner@example.com"


def test_an_apps_name_is_that_of_the_offer_that_waits(api: Api) -> None:
    mine = {"app": api.app_id, "recipient": "admin@example.com"}
    api.post("/account/app-transfers", mine)
    assert api.patch("/account/app-transfers/timely", {"state": "accepted"}, as_="admin").status_code == 200
    api.post("/account/app-transfers", {**mine, "recipient": "stranger@example.com"}, as_="admin")
    assert api.patch("/account/app-transfers/timely", {"state": "accepted"}, as_="stranger").status_code == 200
    waiting = api.post("/account/app-transfers", {**mine, "recipient": "viewer@example.com"}, as_="stranger").json
    assert api.delete("/account/app-transfers/timely", as_="admin").json["id"] == waiting["id"]


@pytest.mark.parametrize("sent", [{}, {"app": "timely"}, {"recipient": "x"}, {"app": "timely", "recipient": "owner@example.com"}])
def test_an_offer_that_cannot_be_is_refused(api: Api, sent: dict[str, str]) -> None:
    answer = api.post("/account/app-transfers", sent)
    assert (answer.status_code, "Field" in answer.json["message"]) == (422, True)
    assert api.post("/account/app-transfers", {"app": "timely", "recipient": "nobody@example.com"}).status_code == 404


def test_a_collaborators_permissions_change(api: Api) -> None:
    path = "/apps/timely/collaborators/viewer@example.com"
    assert api.patch("/apps/timely", {"maintenance": True}, as_="viewer").status_code == 403
    changed = api.patch(path, {"permissions": ["operate"]})
    assert [row["name"] for row in changed.json["permissions"]] == ["view", "operate"]
    assert api.patch("/apps/timely", {"maintenance": True}, as_="viewer").status_code == 200
    assert api.patch(path, {}).status_code == 422
    assert api.patch(path, {"permissions": ["everything"]}).status_code == 422
    assert api.patch("/apps/timely/collaborators/nobody", {"permissions": []}).status_code == 404


def test_somebody_chooses_a_password_by_an_invitation_once(either_api: Api) -> None:
    api = either_api
    assert api.post("/davit/accounts/stranger@example.com/invitations").status_code == 403
    assert api.post("/davit/accounts/nobody/invitations", as_="admin").status_code == 404
    made = api.post("/davit/accounts/stranger@example.com/invitations", as_="admin").json
    path = f"/password-resets/{made['reset_password_token']}/actions/finalize"
    chosen = {"password": "correct horse battery", "password_confirmation": "correct horse battery"}
    assert api.post(path, {**chosen, "password_confirmation": "x"}, as_=None).status_code == 422
    assert api.post(path, {"password": "short", "password_confirmation": "short"}, as_=None).status_code == 422
    assert api.post(path, chosen, as_=None).json["user"]["email"] == "stranger@example.com"
    assert api.post(path, chosen, as_=None).status_code == 404
    assert api.post("/oauth/authorizations", as_=None, auth=("stranger@example.com", "correct horse battery")).status_code == 201
    assert "no mail" in api.post("/password-resets", {"email": "owner@example.com"}, as_=None).json["message"]


def test_an_admin_turns_the_two_factor_authentication_of_another_off_and_their_own_with_a_code(either_api: Api) -> None:
    api = either_api
    _recovery_codes(api)
    own = _recovery_codes(api, "admin")
    path = "/davit/accounts/{}@example.com/two-factor"
    assert api.delete(path.format("owner")).status_code == 403
    assert api.delete(path.format("admin"), as_="admin").json["id"] == "two_factor"
    assert api.delete(path.format("nobody"), as_="admin").status_code == 404
    assert api.delete(path.format("owner"), as_="admin").json["two_factor_authentication"] is False
    assert api.get("/account").json["two_factor_authentication"] is False
    assert api.delete(path.format("admin"), as_="admin", headers=_with(own[0])).json["two_factor_authentication"] is False
    told = api.get("/davit/audit?action=2fa:disable", as_="admin").json
    assert [row["details"]["email"] for row in told] == ["admin@example.com", "owner@example.com"]
