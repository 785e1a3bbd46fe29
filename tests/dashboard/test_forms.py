"""Every form of the dashboard, sent as it is meant to be, and what it leaves."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from flask import Response, request
from sqlalchemy import func, select

from dashboard.views import PARTS
from state import accounts, apps, builds, db, formation, passwords, two_factor, web_sessions
from state.models import (
    Account,
    App,
    AppTransfer,
    Build,
    Collaborator,
    Domain,
    LogDrain,
    PipelineCoupling,
    SshKey,
    Token,
    Webhook,
    WebSession,
)
from tests.api.conftest import Neighbour, give_code
from tests.dashboard import scenery
from tests.dashboard.conftest import Desk, Person

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG" + "A" * 42 + " me@laptop"
FIRST, SECOND = "correct horse battery", "correct horse staple"
ELSEWHERE = {
    "/sign-in", "/theme", "/login/<secret>", "/set-up/<secret>", "/invitation/<secret>",
    "/apps/<app>/deploy/tarball", "/apps/<app>/deploy/url", "/apps/<app>/builds", "/apps/<app>/releases/<release>/rollback",
    "/apps/<app>/resources", "/apps/<app>/settings/config", "/apps/<app>/settings/reveal", "/apps/<app>/settings/certificates",
    "/apps/<app>/settings/certificates/<id>", "/apps/<app>/settings/certificates/<id>/remove", "/account/two-factor/recovery-codes",
    "/apps/<app>/settings/domains/<domain>/certificate", "/pipelines/<pipeline>/promote", "/apps/<app>/build-cache/purge",
    "/apps/<app>/settings/buildpacks", "/apps/<app>/settings/transfer/take-back",
}  # fmt: skip
"""Forms that other tests of this room send, where more is said of them."""


class Sent:
    """Which forms were taken."""

    def __init__(self, desk: Desk) -> None:
        self.paths: set[str] = set()
        desk.flask.after_request(self._note)

    def _note(self, answer: Response) -> Response:
        if request.method == "POST" and request.url_rule and answer.status_code in (200, 303):
            self.paths.add(request.url_rule.rule)
        return answer


def _send(person: Person, path: str, data: dict[str, Any] | None = None) -> str:
    """Send a form that is taken; where it leads, or the page that answers."""
    answer = person.post(path, data)
    assert answer.status_code in (200, 303), (path, answer.status_code, re.findall(r'role="alert".*?</div>', answer.text, re.S))
    return answer.headers.get("Location") or answer.text


def _all(query: Any) -> list[Any]:
    with db.snapshot() as session:
        return list(session.scalars(query))


def _code(secret: str) -> str:
    return TOTP(base64.b32decode(secret), 6, SHA1(), 30, enforce_key_length=False).generate(int(time.time())).decode()


def test_every_form_can_be_sent_and_leaves_what_it_says(desk: Desk) -> None:
    sent = Sent(desk)
    _of_an_account(desk)
    _of_an_admin(desk)
    _of_builds_and_dynos(desk)
    _of_settings(desk)
    _of_pipelines(desk)
    _of_offers_and_ends(desk)
    every = {route.path for part in PARTS for route in part.routes if route.method == "POST"}
    assert every == sent.paths | ELSEWHERE, "a form that no test sends with success"
    assert not sent.paths & ELSEWHERE


def _of_an_account(desk: Desk) -> None:
    owner, own = desk.person("owner"), Account.email == "owner@example.com"
    _send(owner, "/account/name", {"name": "Ann"})
    assert _all(select(Account.name).where(own)) == ["Ann"]
    with db.transaction() as session:
        elsewhere = [web_sessions.start(session, session.scalars(select(Account).where(own)).one(), "Firefox")[1].id for _ in "ab"]
    _send(owner, f"/account/sessions/{elsewhere[0]}/end")
    assert elsewhere[0] not in _all(select(WebSession.id)) and elsewhere[1] in _all(select(WebSession.id))
    _send(owner, "/account/sessions/end")
    assert elsewhere[1] not in _all(select(WebSession.id)) and owner.get("/account").status_code == 200
    _send(owner, "/account/password", {"new": FIRST, "again": FIRST})
    _send(owner, "/account/password", {"password": FIRST, "new": SECOND, "again": SECOND})
    assert passwords.known("owner@example.com", SECOND)
    page = _send(owner, "/account/tokens", {"description": "my laptop", "lifetime": "month"})
    [id] = _all(select(Token.id).where(Token.description == "my laptop"))
    text = re.search(r"davit-[\w-]{20,}", page)
    assert text and accounts_of(text[0]) == "owner@example.com"
    with db.transaction() as session:
        accounts.write_owner_token(accounts.issue_token(session, session.scalars(select(Account).where(own)).one(), "this machine")[0])
    page = owner.get("/account").text
    assert "Revoke my laptop" in page and "this machine" in page and "Revoke this machine" not in page
    _send(owner, f"/account/tokens/{id}/remove")
    assert not _all(select(Token.id).where(Token.id == id))
    _send(owner, "/account/keys", {"key": KEY})
    [id] = _all(select(SshKey.id))
    _send(owner, f"/account/keys/{id}/remove")
    assert not _all(select(SshKey.id))
    page = _send(owner, "/account/two-factor", {"password": SECOND})
    secret = re.search(r'aria-label="Secret"><code>([A-Z2-7]+)', page)
    assert secret and "<svg viewBox" in page
    codes = re.search(r'aria-label="Recovery codes"><code>([^<]+)', _send(owner, "/account/two-factor/confirm", {"code": _code(secret[1])}))
    assert codes and _all(select(Account.two_factor).where(own)) == [True]
    _send(owner, "/account/two-factor/disable", {"code": codes[1].split()[0]})
    assert _all(select(Account.two_factor).where(own)) == [False]


def accounts_of(token: str) -> str:
    """Whose token it is."""
    with db.snapshot() as session:
        return accounts.find_token(session, token).account.email


def _of_an_admin(desk: Desk) -> None:
    admin = desk.person("admin")
    assert "/invitation/" in _send(admin, "/admin/people", {"email": "new@example.com", "name": "New"})
    [id] = _all(select(Account.id).where(Account.email == "new@example.com"))
    assert "/invitation/" in _send(admin, f"/admin/people/{id}/invite")
    with db.transaction() as session:
        account = session.get_one(Account, id)
        two_factor.confirm(session, account, _code(two_factor.begin(session, account).secret))
    _send(admin, f"/admin/people/{id}/two-factor")
    assert _all(select(Account.two_factor).where(Account.id == id)) == [False]
    _send(admin, f"/admin/people/{id}/remove")
    assert not _all(select(Account.id).where(Account.id == id))


def _of_builds_and_dynos(desk: Desk) -> None:
    give_code(desk.app_id)
    owner = desk.person("owner")
    with db.transaction() as session:
        app = session.get_one(App, desk.app_id)
        build = builds.create(session, app, app.owner, source_url="https://example.com/a.tgz").id
        one_off = scenery.dyno(session, app, "run.7", "up", one_off=True)
        session.flush()
        dyno = one_off.id
    _send(owner, f"/apps/timely/builds/{build}/cancel")
    assert _all(select(Build.cancel_requested).where(Build.id == build)) == [True]
    started = {"dyno_id": "d" * 36, "name": "run.8", "size": "basic", "release_id": None, "release_version": 2}
    runtime = Neighbour(
        desk.home / "run" / "runtime.sock", {"oneoff.start": lambda call: started, "oneoff.stop": lambda call: {}}
    )
    try:
        assert _send(owner, "/apps/timely/run", {"command": "rake db:seed"}).endswith("/apps/timely/logs?dyno=run.8")
        _send(owner, "/apps/timely/run/run.7/stop")
    finally:
        runtime.close()
    asked = {name: params for name, params in runtime.calls if name.startswith("oneoff.")}
    assert "rake db:seed" in str(asked["oneoff.start"]) and asked["oneoff.stop"] == {"dyno_id": dyno, "by": _all(select(App.owner_id).where(App.id == desk.app_id))[0]}
    _send(owner, "/apps/timely/sleep", {"sleep": "off", "seen": "auto"})
    _send(owner, "/apps/timely/restart")


def _of_settings(desk: Desk) -> None:
    owner, at = desk.person("owner"), "/apps/timely/settings"
    _send(owner, f"{at}/domains", {"hostname": "www.example.com"})
    _send(owner, f"{at}/domains/www.example.com/remove")
    assert _all(select(Domain.hostname)) == ["timely.localhost"]
    _send(owner, f"{at}/drains", {"drain": "https://203.0.113.9/x"})
    _send(owner, f"{at}/drains/{_all(select(LogDrain.id))[0]}/remove")
    assert not _all(select(LogDrain.id))
    _send(owner, f"{at}/webhooks", {"url": "https://203.0.113.9/", "include": "api:app", "level": "notify"})
    _send(owner, f"{at}/webhooks/{_all(select(Webhook.id))[0]}/remove")
    assert not _all(select(Webhook.id))
    _send(owner, f"{at}/people", {"email": "stranger@example.com", "may.deploy": "yes"})
    before = _all(select(func.count()).select_from(Collaborator))[0]
    _send(owner, f"{at}/people/stranger@example.com/remove")
    assert _send(desk.person("viewer"), f"{at}/people/viewer@example.com/remove").endswith("/"), "who leaves sees it no more"
    assert _all(select(func.count()).select_from(Collaborator)) == [before - 2]
    _send(owner, f"{at}/maintenance", {"on": "yes"})
    _send(owner, f"{at}/features/two-factor-guard", {"on": "no"})
    assert _all(select(App.maintenance)) == [True]


def _of_pipelines(desk: Desk) -> None:
    owner = desk.person("owner")
    at = _send(owner, "/pipelines/new", {"name": "project"})
    _send(owner, f"{at}/apps", {"app": "timely", "stage": "staging"})
    [coupling] = _all(select(PipelineCoupling.id))
    _send(owner, f"{at}/move", {"coupling": coupling, "stage": "production"})
    assert _all(select(PipelineCoupling.stage)) == ["production"]
    _send(owner, f"{at}/move", {"coupling": coupling, "stage": "out"})
    _send(owner, f"{at}/name", {"name": "other"})
    _send(owner, f"{at}/transfer", {"recipient": "stranger@example.com"})
    _send(desk.person("stranger"), f"{at}/destroy")
    assert not _all(select(PipelineCoupling.id))


def _of_offers_and_ends(desk: Desk) -> None:
    owner, stranger = desk.person("owner"), desk.person("stranger")
    for answer, state in (("decline", "declined"), ("accept", "accepted")):
        _send(owner, "/apps/timely/settings/transfer", {"recipient": "stranger@example.com"})
        [offer] = _all(select(AppTransfer.id).where(AppTransfer.state == "pending"))
        _send(stranger, f"/offers/{offer}", {"answer": answer})
        assert _all(select(AppTransfer.state).where(AppTransfer.id == offer)) == [state]
    with db.snapshot() as session:
        assert session.get_one(App, desk.app_id).owner.email == "stranger@example.com"
        assert [row.account.email for row in apps.collaborators(session, session.get_one(App, desk.app_id))].count("owner@example.com")
        assert formation.dynos(session, session.get_one(App, desk.app_id))
    _send(stranger, "/apps/timely/settings/name", {"name": "timelier"})
    _send(stranger, "/apps/timelier/settings/destroy", {"confirm": "timelier"})
    _send(stranger, "/new", {"name": "next"})
    _send(stranger, "/sign-out")
    assert stranger.get("/").status_code == 303
