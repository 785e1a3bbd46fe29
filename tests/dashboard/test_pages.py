"""Who may see and do what, forms that are refused, and what every answer carries."""

from __future__ import annotations

import base64
import html
import io
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy import event, select, update
from werkzeug.datastructures import FileStorage
from werkzeug.test import EnvironBuilder, encode_multipart, run_wsgi_app

from api import limits, streams
from api.resources import catalogue
from dashboard import lookups, routing, shown
from dashboard.views import PARTS, deploy, logs, overview
from foundation import wire
from foundation.authority import Authority
from foundation.clock import now
from foundation.settings import settings
from logs import stream
from logs.stream import Line
from state import (
    accounts,
    apps,
    builds,
    config,
    crashes,
    db,
    domains,
    endpoints,
    features,
    formation,
    notify,
    passwords,
    pipelines,
    releases,
    set_up,
    signatures,
    two_factor,
    vault,
    web_sessions,
    webhooks,
)
from state.models import (
    Account,
    App,
    AuditEvent,
    Build,
    Dyno,
    Formation,
    LogDrain,
    PipelineCoupling,
    Release,
    WebhookDelivery,
    WebSession,
)
from tests.api.conftest import Neighbour, give_code, use_home
from tests.conftest import wait_until
from tests.dashboard import scenery
from tests.dashboard.conftest import Desk
from tests.e2e.errors_page import assert_says
from tests.logs.conftest import Logs

APP_PAGES = ("", "/deploy", "/resources", "/metrics", "/logs", "/settings", "/activity", "/builds", "/releases", "/releases/v1")


def test_every_form_does_what_an_endpoint_of_the_api_does() -> None:
    alone = {
        "/sign-in", "/sign-out", "/theme", "/login/<secret>", "/set-up/<secret>", "/account/sessions/<id>/end", "/account/sessions/end",
        "/pipelines/<pipeline>/apps", "/pipelines/<pipeline>/move",
        "/pipelines/<pipeline>/transfer",
    }  # fmt: skip
    without = {route.path for part in PARTS for route in part.routes if route.method == "POST" and route.does is None}
    assert without <= alone
    for part in PARTS:
        for route in part.routes:
            assert route.needed, route.path


@pytest.mark.parametrize("path", ["/", "/new", "/account", "/apps/timely", "/admin", "/live"])
def test_a_stranger_is_asked_to_sign_in_and_comes_back(desk: Desk, path: str) -> None:
    answer = desk.somebody().get(path)
    assert answer.status_code == 303 and "/sign-in" in answer.headers["Location"]


@pytest.mark.parametrize("path", APP_PAGES)
def test_pages_of_an_app_are_for_those_who_may_see_it(desk: Desk, path: str) -> None:
    assert desk.person("viewer").get(f"/apps/timely{path}").status_code == 200
    assert desk.person("stranger").get(f"/apps/timely{path}").status_code == 404
    assert "timely" not in desk.person("stranger").get("/").text


def test_every_page_is_shown_on_postgresql_too(desk_on_postgresql: Desk) -> None:
    give_code(desk_on_postgresql.app_id)
    scenery.figures(desk_on_postgresql.app_id)
    owner, admin = desk_on_postgresql.person("owner"), desk_on_postgresql.person("admin")
    pipeline = owner.post("/pipelines/new", {"name": "project"}, page="/pipelines/new").headers["Location"]
    assert owner.post(f"{pipeline}/apps", {"app": "timely", "stage": "staging"}, page=pipeline).status_code == 303
    pages = [f"/apps/timely{path}" for path in (*APP_PAGES, "/releases/v2", "/run", "/state", "/figures")]
    for person, path in ((owner, "/"), (owner, "/?q=time"), (owner, pipeline), (owner, "/account"), *((owner, page) for page in pages)):
        assert person.get(path).status_code == 200, path
    for path in ("/", "/admin", "/admin/people", "/admin/audit", "/apps/timely"):
        assert admin.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("path", "data", "least"),
    [
        ("/resources", {"quantity.web": "2"}, "operator"),
        ("/restart", {}, "operator"),
        ("/settings/config", {"new-name": "A", "new-value": "1"}, "operator"),
        ("/settings/reveal", {}, "deployer"),
        ("/settings/domains", {"hostname": "www.example.com"}, "operator"),
        ("/settings/buildpacks", {"new": "heroku/python"}, "deployer"),
        ("/settings/people", {"email": "stranger@example.com"}, "manager"),
        ("/settings/maintenance", {"on": "yes"}, "operator"),
        ("/settings/name", {"name": "timelier"}, "manager"),
        ("/settings/destroy", {"confirm": "timely"}, "manager"),
    ],
)
def test_a_form_takes_the_permission_that_the_api_takes(desk: Desk, path: str, data: dict[str, str], least: str) -> None:
    give_code(desk.app_id)
    assert desk.person("stranger").post(f"/apps/timely{path}", data).status_code == 404
    assert desk.person("viewer").post(f"/apps/timely{path}", data).status_code == 403
    assert desk.person(least).post(f"/apps/timely{path}", data).status_code in (200, 303)


def test_admin_pages_are_for_admins(desk: Desk) -> None:
    for path in ("/admin", "/admin/people", "/admin/audit", "/admin/audit/export"):
        assert desk.person("owner").get(path).status_code == 403
        assert desk.person("admin").get(path).status_code == 200


FORMS = sorted({(one.path, one.again.route.path) for part in PARTS for one in part.routes if one.again})  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["viewer", "deployer"])
def test_a_refusal_shows_nobody_a_page_that_they_may_not_see(desk: Desk, name: str) -> None:
    person, refused = desk.person(name), 0

    def filled(path: str) -> str:
        return re.sub("<[a-z]+>", "x", path.replace("<app>", "timely").replace("<user>", "owner@example.com"))

    for form, page in FORMS:
        if person.get(filled(page)).status_code == 200:
            continue
        answer = person.post(filled(form))
        refused += 1
        assert answer.status_code in (303, 403, 404, 422), form
        assert answer.status_code == 303 or f"<title>{answer.status_code} · Davit</title>" in answer.text, form
        assert "admin@example.com" not in answer.text
    assert refused > 5


def test_a_form_from_elsewhere_changes_nothing(desk: Desk) -> None:
    owner = desk.person("owner")
    answer = owner.client.post("/new", data={"name": "forged"})
    assert answer.status_code == 403 and "That is not for you" not in answer.text and "open too long" in answer.text
    other = re.search(r'name="csrf" value="([^"]+)"', desk.person("viewer").get("/new").text)
    assert other
    assert owner.client.post("/new", data={"name": "forged", "csrf": other[1]}).status_code == 403
    assert owner.post("/new", {"name": "forged"}, headers={"Origin": "http://evil.example.com"}).status_code == 403
    ours = re.search(r'name="csrf" value="([^"]+)"', owner.get("/new").text)
    assert ours
    for origin in ({}, {"Origin": "http://localhost"}):
        headers = {"Host": "[::::]", "Cookie": f"davit_session={owner.secret}", **origin}  # Werkzeug's client could not read that
        asked = EnvironBuilder("/new", method="POST", data={"name": "nowhere", "csrf": ours[1]}, headers=headers)
        _, status, _ = run_wsgi_app(desk.flask, asked.get_environ())
        assert status.startswith("403"), "a host that cannot be read is nobody's"
    assert owner.post("/new", {"name": "honest"}, headers={"Origin": "http://localhost"}).status_code == 303
    with db.snapshot() as session:
        assert session.scalars(select(App.name).order_by(App.name)).all() == ["honest", "timely"]


def test_two_tokens_of_a_page_differ_so_that_compression_tells_nothing(desk: Desk) -> None:
    tokens = re.findall(r'name="csrf" value="([^"]+)"', desk.person("owner").get("/new").text)
    assert len(set(tokens)) == len(tokens) > 1


@pytest.mark.parametrize("path", ["/sign-in", "/", "/apps/timely", "/apps/nothing", "/nowhere"])
def test_every_answer_is_strict_about_what_a_page_may_do(desk: Desk, path: str) -> None:
    answer = desk.person("owner").get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["X-Frame-Options"] == "DENY" and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert not re.search(r"<script(?! src)|<style|\son[a-z]+=|\sstyle=", answer.text)


def test_cookies_are_closed_and_secure_over_tls(desk: Desk) -> None:
    with db.transaction() as session:
        owner = session.get(App, desk.app_id).owner  # type: ignore[union-attr]
        passwords.assign(session, owner, owner, "correct horse battery")
    for scheme, prefix in (("http", ""), ("https", "__Host-")):
        somebody, base = desk.somebody(), f"{scheme}://localhost"
        page = somebody.get("/sign-in", base_url=base)
        token = re.search(r'name="csrf" value="([^"]+)"', page.text)
        assert token
        data = {"csrf": token[1], "email": owner.email, "password": "correct horse battery"}
        answer = somebody.client.post("/sign-in", data=data, base_url=base)
        [cookie] = [text for text in answer.headers.getlist("Set-Cookie") if "davit_session=" in text]
        assert cookie.startswith(f"{prefix}davit_session=") and "HttpOnly" in cookie and "SameSite=Lax" in cookie
        assert "Domain" not in cookie, "no other host gets it, an app's below this one neither"
        assert ("Secure" in cookie) == (scheme == "https")
        assert somebody.get("/", base_url=base).status_code == 200


@pytest.mark.row("dashboard-at-an-app")
def test_at_a_name_of_an_app_nobody_signs_in(desk: Desk) -> None:
    with db.transaction() as session:
        app = session.get(App, desk.app_id)
        assert app
        passwords.assign(session, app.owner, app.owner, "correct horse battery")
        domains.add(session, app.owner, app, "www.example.com")
    somebody = desk.somebody()
    token = re.search(r'name="csrf" value="([^"]+)"', somebody.get("/sign-in").text)
    assert token
    data = {"csrf": token[1], "email": "owner@example.com", "password": "correct horse battery"}
    for base in ("http://timely.localhost:5000", "https://evil.localhost", "https://WWW.example.com:5000"):
        host = base.rpartition("/")[2]
        for answer in (
            somebody.get("/sign-in", headers={"Host": host}), desk.person("owner").get("/", headers={"Host": host}),
            somebody.client.post("/sign-in", data=data, headers={"Host": host}),
        ):  # fmt: skip
            assert answer.status_code == 404 and "Set-Cookie" not in answer.headers, base
            assert_says("dashboard-at-an-app", html.unescape(answer.text))
    assert somebody.client.post("/sign-in", data=data).status_code == 303
    with db.snapshot() as session:
        opened = session.scalars(select(WebSession.host).where(WebSession.host != "")).all()
        assert opened == ["localhost"]


def test_an_admin_is_told_of_an_app_that_has_a_name_of_davits_own(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.person("owner").post("/apps/timely/settings/domains", {"hostname": "davit.example.com"})
    admin, told = desk.person("admin"), "davit domains:remove -a timely davit.example.com"
    assert told not in admin.get("/admin").text
    monkeypatch.setenv("DAVIT_NAMES", "davit.example.com")
    settings.cache_clear()
    assert told in admin.get("/admin").text
    assert admin.get("/sign-in", headers={"Host": "davit.example.com"}).status_code == 404, "the app would get the cookie"
    monkeypatch.setenv("DAVIT_NAMES", "timely.localhost")
    settings.cache_clear()
    own = admin.get("/admin").text
    assert "davit apps:rename -a timely NEW-NAME" in own and "domains:remove" not in own, "an app's own name stays with it"


def test_account_lists_at_which_names_browsers_are_signed_in(desk: Desk) -> None:
    with db.transaction() as session:
        owner = session.get_one(App, desk.app_id).owner
        web_sessions.start(session, owner, "Firefox", "a.example.com")
    assert "at a.example.com" in desk.person("owner").get("/account").text


def test_a_second_step_that_comes_too_late_begins_anew(desk: Desk) -> None:
    late = signatures.sign("second-step", {"account": "x"}, -1)
    answer = desk.somebody().post("/sign-in", {"step": late, "code": "123456"}, page="/sign-in")
    assert answer.status_code == 422 and "That took too long; sign in again." in answer.text and 'name="password"' in answer.text


def test_an_overview_loads_itself_once_for_each_change(desk: Desk) -> None:
    viewer = desk.person("viewer")
    assert viewer.get("/apps/timely").text.count('hx-get="/apps/timely"') == 2, "how to push, and what there is"
    give_code(desk.app_id)
    loads = re.findall(r'hx-get="([^"]*)" hx-trigger="live:', viewer.get("/apps/timely").text)
    assert loads == ["/apps/timely"], "what the app is doing comes along"


def test_who_signs_in_holds_nothing_that_others_need(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    real, held = passwords._hashed, []

    def hashed(question: tuple[str, str], turns: threading.BoundedSemaphore) -> str | None:
        held.append(db.engine().pool.checkedout())  # type: ignore[attr-defined]
        return real(question, turns)

    monkeypatch.setattr(passwords, "_hashed", hashed)
    data = {"email": "nobody@example.com", "password": "wrong wrong wrong"}
    somebody = desk.somebody()
    assert somebody.post("/sign-in", data, page="/sign-in").status_code == 403
    assert held == [0], "connections while a password is looked at"
    taken = [limits.guesses.take("127.0.0.1") for _ in range(limits.GUESSES_EACH)]
    answer = somebody.post("/sign-in", data, page="/sign-in")
    assert answer.status_code == 429 and "from your address are being looked at already" in answer.text
    for give_back in taken:
        give_back()
    monkeypatch.setenv("DAVIT_RATE_LIMIT", "2")
    settings.cache_clear()
    monkeypatch.setattr(limits, "sign_ins", limits.Buckets(lambda: 0.0, whose="Your address", what="tried to sign in too often"))
    answers = [somebody.post("/sign-in", {**data, "email": f"{name}@example.com"}, page="/sign-in") for name in "abc"]
    assert [answer.status_code for answer in answers] == [403, 403, 429]
    assert "Your address has tried to sign in too often" in answers[-1].text and len(held) == 3


def test_a_wrong_password_and_an_unknown_address_look_the_same(desk: Desk) -> None:
    answers = []
    for email in ("owner@example.com", "nobody@example.com"):
        somebody = desk.somebody()
        answer = somebody.post("/sign-in", {"email": email, "password": "wrong wrong wrong"}, page="/sign-in")
        answers.append((answer.status_code, re.findall(r'role="alert"[^>]*>(.*?)</div>', answer.text, re.S)))
    assert answers[0] == answers[1] and answers[0][0] == 403


def test_signing_in_goes_back_to_a_page_of_ours_only(desk: Desk) -> None:
    from dashboard.views.signing_in import destination

    assert destination("/apps/timely/logs?dyno=web.1") == "/apps/timely/logs?dyno=web.1"
    for elsewhere in ("https://evil.example.com/", "//evil.example.com", "/\\evil.example.com", "/\tx", "javascript:alert(1)", ""):
        assert destination(elsewhere) == "/"


def test_a_session_that_was_ended_opens_nothing(desk: Desk) -> None:
    owner, second = desk.person("owner"), desk.somebody()
    with db.transaction() as session:
        account = session.get(App, desk.app_id).owner  # type: ignore[union-attr]
        text, row = web_sessions.start(session, account, "the other browser")
    second.client.set_cookie("davit_session", text)
    assert second.get("/").status_code == 200
    assert "the other browser" in owner.get("/account").text
    assert owner.post(f"/account/sessions/{row.id}/end").status_code == 303
    assert second.get("/").status_code == 303
    assert desk.person("viewer").post(f"/account/sessions/{row.id}/end").status_code == 404


def test_values_of_config_vars_are_shown_on_demand_only_and_that_is_on_record(desk: Desk) -> None:
    with db.transaction() as session:
        app = session.get(App, desk.app_id)
        assert app
        config.change(session, app.owner, app, {"TOKEN": "very-secret-value"})
    owner = desk.person("owner")
    for path in APP_PAGES:
        assert "very-secret-value" not in owner.get(f"/apps/timely{path}").text
    assert "TOKEN" not in desk.person("viewer").get("/apps/timely/settings").text
    assert "very-secret-value" in owner.post("/apps/timely/settings/reveal").text
    with db.snapshot() as session:
        [event] = session.scalars(select(AuditEvent).where(AuditEvent.action == "config:reveal"))
        assert event.actor == "owner@example.com" and event.details == {"names": ["TOKEN"]}


def test_many_config_vars_change_at_once_and_make_one_release(desk: Desk) -> None:
    owner = desk.person("owner")
    owner.post("/apps/timely/settings/config", {"new-name": ["A", "B"], "new-value": ["1", "2"], "dotenv": "C=3\nD='four'"})
    owner.post("/apps/timely/settings/config", {"value.A": "", "value.B": "two", "remove.C": "on"})
    with db.snapshot() as session:
        app = session.get(App, desk.app_id)
        assert app and config.read(app) == {"A": "1", "B": "two", "D": "four"}
    text = owner.get("/apps/timely/releases").text
    assert ">v3</a>" in text and ">v4</a>" not in text


def fields_of(page: str, form: str) -> dict[str, Any]:
    """What a browser would send of the form whose action ends so, were nothing changed in it."""
    [part] = re.findall(rf'<form[^>]*action="[^"]*{form}"[^>]*>(.*?)</form>', page, re.S)
    found: dict[str, Any] = {}
    for tag in re.findall(r"<input[^>]*>", part):
        name, value = re.search(r'name="([^"]*)"', tag), re.search(r'value="([^"]*)"', tag)
        if name and 'type="checkbox"' not in tag:
            found.setdefault(name[1], []).append(html.unescape(value[1]) if value else "")
    for name, text in re.findall(r'<textarea[^>]*name="([^"]*)"[^>]*>\n(.*?)</textarea>', part, re.S):
        found[name] = [html.unescape(text)]
    for name, choices in re.findall(r'<select[^>]*name="([^"]*)"[^>]*>(.*?)</select>', part, re.S):
        [chosen] = re.findall(r'<option(?: value="([^"]*)")?[^>]* selected>([^<]*)', choices)
        found[name] = [chosen[0] or chosen[1]]
    return found


def test_the_scaler_changes_what_was_changed_in_it_and_undoes_nobodys_work(desk: Desk) -> None:
    give_code(desk.app_id, {"web": "x", "worker": "y"})
    owner, operator = desk.person("owner"), desk.person("operator")
    first, second = (fields_of(person.get("/apps/timely/resources").text, "/resources") for person in (owner, operator))
    assert owner.post("/apps/timely/resources", {**first, "quantity.web": "3", "size.worker": "standard-2x"}).status_code == 303
    assert operator.post("/apps/timely/resources", {**second, "quantity.worker": "2"}).status_code == 303
    answer = operator.post("/apps/timely/resources", {**second, "quantity.web": "2", "isolation.web": "microvm"})
    assert answer.status_code == 409 and "somebody else changed web&#39;s number of dynos" in answer.text
    third = fields_of(answer.text, "/resources")
    assert (third["quantity.web"], third["isolation.web"]) == (["3"], ["microvm"]), "the present value; what was typed and is free"
    with db.snapshot() as session:
        rows = formation.all_of(session, session.get(App, desk.app_id))  # type: ignore[arg-type]
        assert [(row.type, row.quantity, row.size, row.isolation) for row in rows] == [
            ("web", 3, "basic", "container"), ("worker", 2, "standard-2x", "container"),
        ]  # fmt: skip
        scaled = session.scalars(select(AuditEvent.details).where(AuditEvent.action == "ps:scale")).all()
        assert "web" not in scaled[-1]["formation"], "what was not changed is not on record as changed"
    assert operator.post("/apps/timely/resources", {**third, "quantity.web": "2"}).status_code == 303


def test_config_vars_that_somebody_else_changed_meanwhile_are_not_overwritten(desk: Desk) -> None:
    owner = desk.person("owner")
    page = "/apps/timely/settings/config"
    owner.post(page, {"new-name": ["A", "B"], "new-value": ["first-a", "first-b"]})
    hidden = fields_of(owner.get("/apps/timely/settings").text, "/config")
    revealed = fields_of(owner.post("/apps/timely/settings/reveal").text, "/config")
    owner.post(page, {**hidden, "value.A": "second-a"})
    assert owner.post(page, {**revealed, "value.B": "second-b"}).status_code == 303, "A was shown, not changed"
    values = {"A": "second-a", "B": "second-b"}
    for stale in ({"value.A": "third-a"}, {"remove.A": "on"}, {"dotenv": "A=third-a"}):
        answer = owner.post(page, {**hidden, **stale})
        assert answer.status_code == 409 and "somebody else changed A after you had looked" in answer.text
        assert "second-a" not in answer.text, "it was not revealed"
    answer = owner.post(page, {**revealed, "value.A": "third-a", "value.B": "third-b"})
    assert answer.status_code == 409 and "A and B" in answer.text and "second-a</textarea>" in answer.text
    assert owner.post(page, {"seen": "yes", "new-name": "B", "new-value": "x"}).status_code == 409, "added by somebody else"
    with db.snapshot() as session:
        assert config.read(session.get(App, desk.app_id)) == values  # type: ignore[arg-type]
        reveals = session.scalars(select(AuditEvent).where(AuditEvent.action == "config:reveal")).all()
        assert len(reveals) == 2, "what is shown after a refusal is on record, too"
    anew = fields_of(answer.text, "/config")
    assert owner.post(page, {**anew, "value.A": "third-a"}).status_code == 303
    answer = owner.post(page, {**hidden, "dotenv": "oops\nexport A='fourth\na'\nC=1"})
    assert answer.status_code == 422
    again = fields_of(answer.text, "/config")
    assert again["dotenv"][0].strip() == "oops\n# export A='fourth\n# a'\nC=1", "sent again it would overwrite what nobody looked at"


def test_a_refused_form_with_revealed_values_keeps_what_was_typed(desk: Desk) -> None:
    owner = desk.person("owner")
    owner.post("/apps/timely/settings/config", {"new-name": "A", "new-value": "first"})
    revealed = fields_of(owner.post("/apps/timely/settings/reveal").text, "/config")
    answer = owner.post("/apps/timely/settings/config", {**revealed, "value.A": "second", "dotenv": "oops"})
    assert answer.status_code == 422 and "second</textarea>" in answer.text


def test_a_refused_form_of_config_vars_can_be_sent_again_as_it_was(desk: Desk) -> None:
    owner, page = desk.person("owner"), "/apps/timely/settings/config"
    owner.post(page, {"new-name": ["A", "B", "C"], "new-value": ["first-a", "first-b", "first-c"]})
    hidden = fields_of(owner.get("/apps/timely/settings").text, "/config")
    typed = {"value.A": "second-a", "remove.B": "on", "new-name": ["NEW", "PORT"], "new-value": ["new-secret", "1"]}
    refused = owner.post(page, {**hidden, **typed})
    assert refused.status_code == 422 and 'name="remove.B" aria-label="Remove B" checked' in refused.text
    again = fields_of(refused.text, "/config")
    assert (again["value.A"], again["new-name"], again["new-value"]) == (["second-a"], ["NEW", "PORT", ""], ["new-secret", "1", ""])
    owner.post(page, {"new-name": ["A", "NEW"], "new-value": ["third-a", "of-another"]})
    stale = owner.post(page, {**again, "remove.B": "on", "new-name": ["NEW", "D"], "new-value": ["new-secret", "fourth"]})
    assert stale.status_code == 409
    last = fields_of(stale.text, "/config")
    assert (last["value.A"], last["new-name"], last["new-value"]) == ([""], ["D", "", ""], ["fourth", "", ""]), "what is free"
    assert owner.post(page, {**last, "remove.B": "on"}).status_code == 303
    with db.snapshot() as session:
        values = {"A": "third-a", "C": "first-c", "D": "fourth", "NEW": "of-another"}
        assert config.read(session.get(App, desk.app_id)) == values  # type: ignore[arg-type]


def test_line_ends_that_a_browser_changes_are_not_changed_by_saving_something_else(desk: Desk) -> None:
    with db.transaction() as session:
        app = session.get(App, desk.app_id)
        assert app
        config.change(session, app.owner, app, {"PEM": "a\r\nb\r\n", "OLD": "a\rb", "OTHER": "first"})
    owner, page = desk.person("owner"), "/apps/timely/settings/config"
    shown = fields_of(owner.post("/apps/timely/settings/reveal").text, "/config")
    sent = {"value.PEM": "a\r\nb\r\n", "value.OLD": "a\r\nb", "value.OTHER": "second"}
    assert owner.post(page, {**shown, **sent}).status_code == 303
    with db.snapshot() as session:
        values = {"OLD": "a\rb", "OTHER": "second", "PEM": "a\r\nb\r\n"}
        assert config.read(session.get(App, desk.app_id)) == values  # type: ignore[arg-type]


def test_an_order_of_buildpacks_that_somebody_else_changed_is_not_put_back(desk: Desk) -> None:
    owner = desk.person("owner")
    page = "/apps/timely/settings/buildpacks"
    stale = fields_of(owner.get("/apps/timely/settings").text, "/buildpacks")
    assert owner.post(page, {**stale, "new": "heroku/python"}).status_code == 303
    answer = owner.post(page, {**stale, "new": "heroku/static"})
    assert answer.status_code == 409 and "somebody else changed the buildpacks" in answer.text
    fresh = fields_of(answer.text, "/buildpacks")
    assert owner.post(page, {**fresh, "new": "heroku/static"}).status_code == 303
    with db.snapshot() as session:
        assert session.get(App, desk.app_id).buildpacks == ["heroku/python", "heroku/static"]  # type: ignore[union-attr]


def test_a_password_in_a_buildpacks_url_is_in_no_page(desk: Desk) -> None:
    secret = "https://u:secret-word@203.0.113.9/b.git?token=other-word#main"
    owner, page = desk.person("owner"), "/apps/timely/settings/buildpacks"
    for name in (secret, "heroku/python"):
        form = fields_of(owner.get("/apps/timely/settings").text, "/buildpacks")
        assert owner.post(page, {**form, "new": name, "act": ""}).status_code == 303
    for name in ("viewer", "deployer", "owner"):
        text = desk.person(name).get("/apps/timely/settings").text
        assert "https://203.0.113.9/b.git#main" in text and "secret-word" not in text and "other-word" not in text
    form = fields_of(owner.get("/apps/timely/settings").text, "/buildpacks")
    assert owner.post(page, {**form, "act": "down:0"}).status_code == 303
    with db.snapshot() as session:
        assert session.get(App, desk.app_id).buildpacks == ["heroku/python", secret]  # type: ignore[union-attr]
    assert owner.post(page, {**form, "buildpack": "https://example.com/x.git"}).status_code == 409


@pytest.mark.root
def test_an_upload_is_written_to_davits_disk_only_and_a_full_one_is_said_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    deployer, path, place = desk.person("deployer"), "/apps/timely/deploy/tarball", desk.home / "sources"
    token = re.search(r'name="csrf" value="([^"]+)"', deployer.get("/new").text)
    assert token
    tarball = FileStorage(io.BytesIO(b"\x1f\x8b" + b"x" * (2 << 20)), "project.tar.gz")
    boundary, body = encode_multipart({"csrf": token[1], "tarball": tarball})
    sent: dict[str, Any] = {"data": body, "content_type": f"multipart/form-data; boundary={boundary}"}
    monkeypatch.setattr(tempfile, "tempdir", str(desk.home / "not-there"))
    assert deployer.client.post(path, **sent).status_code == 303
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "davit-test", place], check=True)
    try:
        answer = deployer.client.post(path, **sent)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
    assert answer.status_code == 507 and "The disk is full, so your upload was not taken" in answer.text


def test_look_ups_in_dns_are_counted_and_hold_nothing_of_the_database(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, asked = desk.person("owner"), []
    owner.post("/apps/timely/settings/domains", {"hostname": "www.example.com"})
    [path] = re.findall(r'href="(/apps/timely/settings/domains/[^"]+)"', owner.get("/apps/timely/settings").text)

    def answer(name: str, *_: Any, **__: Any) -> list[Any]:
        """In the place of a name server."""
        asked.append((name, db.engine().pool.checkedout(), streams.lookups._taken.total()))  # type: ignore[attr-defined]
        return [(0, 0, 0, "", ("203.0.113.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(lookups, "_answers", OrderedDict())
    with db.snapshot() as session:
        account_id = session.get(App, desk.app_id).owner_id  # type: ignore[union-attr]
    taken = [streams.lookups.take(account_id) for _ in range(streams.LOOKUPS_EACH)]
    assert owner.get(path).status_code == 503 and not asked
    assert owner.post("/apps/timely/settings/drains", {"drain": "https://example.com/x"}).status_code == 503
    for give_back in taken:
        give_back()
    for _ in range(2):
        assert "DNS leads here" in owner.get(path).text
    assert sorted(asked) == [("localhost", 0, 1), ("timely.localhost", 0, 1), ("www.example.com", 0, 1)]
    assert streams.lookups._taken.total() == 0


@pytest.mark.parametrize(
    ("url", "version"),
    [
        ("https://example.com/a/archive.tar.gz?private_token=secret-word", "archive.tar.gz"),
        ("https://u:secret-word@example.com/a/b.git#next", "b.git#next"),
        ("https://u:secret-word@example.com/", "example.com"), ("https://u:secret-word@example.com?secret-word", "example.com"),
    ],
)  # fmt: skip
def test_what_opens_an_address_is_not_in_the_names_of_its_builds(desk: Desk, url: str, version: str) -> None:
    assert desk.person("deployer").post("/apps/timely/deploy/url", {"url": url}).status_code == 303
    with db.snapshot() as session:
        [(source, named)] = session.execute(select(Build.source_url, Build.source_version)).all()
    assert (source, named) == (url, version)
    assert "secret-word" not in desk.person("viewer").get("/apps/timely/deploy").text


def test_a_build_that_is_repeated_leaves_its_secrets_out_of_its_name(desk: Desk) -> None:
    url, old = "https://example.com/a/archive.tar.gz?private_token=secret-word", "archive.tar.gz?private_token=secret-word"
    with db.transaction() as session:
        app = session.get_one(App, desk.app_id)
        id = builds.create(session, app, app.owner, source_url=url, source_version=old).id
    assert desk.person("deployer").post("/apps/timely/builds", {"build": id}).status_code == 303
    with db.snapshot() as session:
        [(source, named)] = session.execute(select(Build.source_url, Build.source_version).where(Build.id != id)).all()
    assert (source, named) == (url, "archive.tar.gz")


def test_nothing_that_is_named_here_writes_a_second_line_into_a_log(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(notify, "announcer", lambda app_id, text: said.append(text))
    body = (
        b'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n%s\r\n--x\r\nContent-Disposition: form-data; name="tarball"; '
        b"filename*=UTF-8''a%%00%%0ARelease%%20v9%%1b%%5B31m.tgz\r\n\r\n\x1f\x8b\r\n--x--\r\n"
    )
    deployer, admin = desk.person("deployer"), desk.person("admin")
    token = re.search(r'name="csrf" value="([^"]+)"', deployer.get("/new").text)
    assert token
    sent = {"data": body % token[1].encode(), "content_type": "multipart/form-data; boundary=x"}
    assert deployer.client.post("/apps/timely/deploy/tarball", **sent).status_code == 303
    with db.transaction() as session:
        build = session.scalars(select(Build)).one()
        assert build.source_version == "aRelease v9[31m.tgz"
        app = session.get_one(App, desk.app_id)
        releases.create(session, app, app.owner, kind="deploy", description="Deploy a\nRelease v9 created")
    assert said and not any("\n" in one for one in said)
    for path, field, more in (
        ("/account/name", "name", {}), ("/account/tokens", "description", {}), ("/admin/people", "name", {"email": "new@example.com"})
    ):  # fmt: skip
        answer = admin.post(path, {**more, field: "Ann\u202e\u009b31m"})
        assert answer.status_code == 422, path
        assert_says("control-characters", html.unescape(answer.text))


def test_a_refused_form_says_why_and_keeps_what_was_typed(desk: Desk) -> None:
    answer = desk.person("owner").post("/new", {"name": "Bad Name"})
    assert answer.status_code == 422 and "must start with a letter" in answer.text and 'value="Bad Name"' in answer.text
    answer = desk.person("owner").post("/apps/timely/settings/config", {"dotenv": "A=1\noops"})
    assert answer.status_code == 422 and "Line 2" in answer.text and "oops</textarea>" in answer.text


def test_a_collaborator_may_what_is_ticked_and_nothing_else(desk: Desk) -> None:
    owner, stranger = desk.person("owner"), desk.person("stranger")
    owner.post("/apps/timely/settings/people", {"email": "stranger@example.com"})
    assert stranger.get("/apps/timely").status_code == 200
    assert stranger.post("/apps/timely/restart").status_code == 403
    owner.post("/apps/timely/settings/people", {"email": "stranger@example.com", "may.operate": "yes"})
    assert stranger.post("/apps/timely/restart").status_code == 303
    assert stranger.post("/apps/timely/settings/reveal").status_code == 403


def test_a_token_for_less_opens_no_session(desk: Desk) -> None:
    with db.transaction() as session:
        account = session.get(App, desk.app_id).owner  # type: ignore[union-attr]
        tokens = {scope: accounts.issue_token(session, account, "x", scope=[scope])[0] for scope in ("read", "global")}
    for scope, status in (("read", 403), ("global", 303)):
        answer = desk.somebody().post("/sign-in", {"token": tokens[scope]}, page="/sign-in?token")
        assert answer.status_code == status


def test_a_token_that_opens_nothing_takes_no_turn_of_a_writer(desk: Desk) -> None:
    with db.transaction() as session:
        session.execute(update(App).values(maintenance=True))
        answer = desk.somebody().post("/sign-in", {"token": "davit-of-nobody"}, page="/sign-in?token")
    assert answer.status_code == 403 and "opens nothing" in answer.text


def test_the_guard_takes_a_code_here_too(desk: Desk) -> None:
    with db.transaction() as session:
        account = session.get(App, desk.app_id).owner  # type: ignore[union-attr]
        enrolment = two_factor.begin(session, account)
        totp = TOTP(base64.b32decode(enrolment.secret), 6, SHA1(), 30, enforce_key_length=False)
        two_factor.confirm(session, account, totp.generate(int(time.time())).decode())
        features.switch(session, account, session.get(App, desk.app_id), features.GUARD, True)
    owner = desk.person("owner")
    assert owner.post("/apps/timely/settings/destroy", {"confirm": "timely"}).status_code == 403
    assert 'name="code"' in owner.get("/apps/timely/settings").text
    assert owner.post(f"/apps/timely/settings/features/{features.GUARD}", {"on": "no"}).status_code == 403
    assert owner.get("/apps/timely").status_code == 200


def test_what_a_collaborator_may_do_is_changed(desk: Desk) -> None:
    owner = desk.person("owner")
    data = {"email": "viewer@example.com", "may.deploy": "yes"}
    assert owner.post("/apps/timely/settings/people", data).status_code == 303
    assert "Changed what viewer@example.com may do to view, deploy" in owner.get("/apps/timely/activity").text
    page = owner.get("/apps/timely/settings").text
    assert "what viewer@example.com may do</span></summary>" in page
    assert "may do</span></summary>" not in desk.person("operator").get("/apps/timely/settings").text


def test_the_overview_has_the_last_hour_in_short_and_the_list_the_share_of_errors(desk: Desk) -> None:
    give_code(desk.app_id)
    viewer = desk.person("viewer")
    assert "Nothing was measured in the last hour" in viewer.get("/apps/timely").text
    scenery.figures(desk.app_id)
    page = viewer.get("/apps/timely").text
    for words in ("Requests<", "Response time<", "p95 ", "Memory of all web dynos<", " of 2.0 GiB", "% errors"):
        assert words in page, words
    assert "Memory of all web dynos" in viewer.get("/apps/timely/figures").text
    whole = viewer.get("/apps/timely/metrics").text
    for words in (">Memory of all dynos together<", ">CPU cores of all dynos together<", "all dynos&#39; quota 2.0 GiB"):
        assert words in whole, words
    assert desk.person("stranger").get("/apps/timely/figures").status_code == 404
    assert re.search(r'class="errors">\d+\.\d% errors', viewer.get("/").text)


def test_an_app_changes_hands(desk: Desk) -> None:
    desk.person("owner").post("/apps/timely/settings/transfer", {"recipient": "stranger@example.com"})
    stranger = desk.person("stranger")
    offer = re.search(r'action="(/offers/[^"]+)"', stranger.get("/").text)
    assert offer
    assert desk.person("viewer").post(offer[1], {"answer": "accept"}).status_code == 404
    assert stranger.post(offer[1], {"answer": "accept"}).status_code == 303
    assert "Owner" in stranger.get("/apps/timely/settings").text


def test_apps_of_a_pipeline_are_shown_together_and_promoted(desk: Desk) -> None:
    owner = desk.person("owner")
    where = owner.post("/pipelines/new", {"name": "project"}, page="/pipelines/new").headers["Location"]
    owner.post("/new", {"name": "timely-live"})
    for name, stage in (("timely", "staging"), ("timely-live", "production")):
        assert owner.post(f"{where}/apps", {"app": name, "stage": stage}, page=where).status_code == 303
    give_code(desk.app_id)
    page = owner.get(where).text
    assert "Promote to production" in page and "is released on <b>timely-live</b>" in page, "it says what will happen before it does"
    with db.snapshot() as session:
        live = session.scalar(select(App.id).where(App.name == "timely-live"))
    assert owner.post(f"{where}/promote", {"source": desk.app_id, "target": live}, page=where).status_code == 303
    assert "v2" in owner.get("/apps/timely-live/releases").text
    assert 'aria-label="Pipeline project"' in owner.get("/").text
    assert "project" in desk.person("viewer").get("/").text and "project" not in desk.person("stranger").get("/").text
    for page in ("/", where):
        seen = desk.person("viewer").get(page).text
        assert "/apps/timely" in seen and "timely-live" not in seen, "an app of the pipeline that is not theirs to see"
    assert desk.person("stranger").get(where).status_code == 404
    assert desk.person("viewer").post(f"{where}/destroy", page=where).status_code == 403
    assert owner.post(f"{where}/destroy", page=where).status_code == 303


def test_a_webhooks_secret_is_shown_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = desk.person("owner")
    data = {"url": "http://127.0.0.1:9/hook", "include": ["api:release"], "level": "notify"}
    assert owner.post("/apps/timely/settings/webhooks", data).status_code == 422, "an address of this host is refused"
    data["url"] = "https://203.0.113.9/hook"
    answer = owner.post("/apps/timely/settings/webhooks", data)
    assert answer.status_code == 200 and "shown only now" in answer.text
    page = owner.get("/apps/timely/settings").text
    assert "203.0.113.9" in page and "shown only now" not in page
    assert desk.person("viewer").post("/apps/timely/settings/webhooks", data).status_code == 403
    address = str(data["url"])
    assert address in owner.get("/apps/timely/settings").text
    assert address not in desk.person("viewer").get("/apps/timely/settings").text, "what follows the host may be a secret"


def test_a_tarball_or_an_address_is_built(desk: Desk) -> None:
    tarball = (io.BytesIO(b"\x1f\x8b" + b"x" * (2 << 20)), "project.tar.gz")
    for name, status in (("viewer", 403), ("deployer", 303)):
        person = desk.person(name)
        answer = person.post("/apps/timely/deploy/tarball", {"tarball": (io.BytesIO(tarball[0].getvalue()), tarball[1])})
        assert answer.status_code == status
    assert desk.person("stranger").post("/apps/timely/deploy/tarball", {}).status_code == 404
    assert desk.person("deployer").post("/apps/timely/deploy/tarball", {}).status_code == 422
    address = "https://203.0.113.9/project.git#next"
    assert desk.person("deployer").post("/apps/timely/deploy/url", {"url": address}).status_code == 303
    assert desk.person("deployer").post("/apps/timely/deploy/url", {"url": "file:///etc/passwd"}).status_code == 422
    with db.snapshot() as session:
        kept, named = session.scalars(select(Build.source_url).order_by(Build.created_at))
    assert kept and kept.startswith("source:") and named == address
    assert (desk.home / "sources" / kept.removeprefix("source:")).stat().st_size == 2 + (2 << 20)


def test_build_again_builds_what_that_build_built(desk: Desk) -> None:
    give_code(desk.app_id)
    address, deployer, ids = "https://203.0.113.9/project.git", desk.person("deployer"), {}
    built: dict[str, dict[str, str]] = {
        "deployed": {"commit": "12" * 20, "status": "succeeded"}, "refused": {"commit": "34" * 20}, "address": {"source_url": address},
        "gone": {"source_url": "source:5ff4a2b6-6f2f-4a0e-9d4e-8d2a3f0c1a2b"},
    }  # fmt: skip
    with db.transaction() as session:
        app = session.get(App, desk.app_id)
        assert app
        for name, values in built.items():
            session.add(row := Build(app_id=app.id, account_id=app.owner_id, stack=app.stack, **{"status": "failed", **values}))
            session.flush()
            ids[name] = row.id
    for name, id in ids.items():
        page = deployer.get(f"/apps/timely/builds/{id}").text
        assert ("Build again" in page) == (name in ("deployed", "address")), name
        sent = fields_of(page, "/apps/timely/builds") if "Build again" in page else {"build": id}
        answer = deployer.post("/apps/timely/builds", {field: value for field, value in sent.items() if field != "csrf"})
        if "Build again" not in page:
            assert answer.status_code == 422
            continue
        with db.snapshot() as session:
            made = session.get(Build, answer.headers["Location"].rpartition("/")[2])
            assert made and (made.commit, made.source_url) == (built[name].get("commit"), built[name].get("source_url"))


def test_a_line_that_comes_while_a_filtered_log_is_read_is_not_lost(
    desk: Desk, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis, recent = stream.connect(redis_server), stream.recent
    monkeypatch.setattr(logs, "_redis", lambda: redis)

    def say(text: str) -> None:
        stream.emit(redis, desk.app_id, [stream.Line(now(), "app", "web.1", text)])
        assert stream.flush(redis)

    def disturbed(*arguments: Any) -> Any:
        found = recent(*arguments)
        say("in between")
        return found

    say("before")
    monkeypatch.setattr(stream, "recent", disturbed)
    for filters in ("?source=app", ""):
        page = desk.person("viewer").get(f"/apps/timely/logs{filters}").text
        [cursor] = re.findall(r'data-cursor="([^"]+)"', page)
        told = [line.text for _, line in stream.tail(redis, desk.app_id, cursor, timeout=0)]
        assert told == ["in between"], "the page's stream brings it, once"


def test_what_is_downloaded_of_a_log_is_what_its_page_shows(
    desk: Desk, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = stream.connect(redis_server)
    monkeypatch.setattr(logs, "_redis", lambda: redis)
    said = [("app", "web.1", "one pear"), ("app", "worker.1", "one plum"), ("app", "worker.1", "two pears"), ("heroku", "worker.1", "up")]
    stream.emit(redis, desk.app_id, [stream.Line(now(), *words) for words in said])
    assert stream.flush(redis)
    viewer = desk.person("viewer")
    for asked, told in (("", 4), ("?dyno=worker", 3), ("?dyno=worker&q=PEAR", 1), ("?source=app&q=one", 2), ("?q=worker.1", 3)):
        [link] = re.findall(r'id="download" href="([^"]+)"', viewer.get(f"/apps/timely/logs{asked}").text)
        text = viewer.get(html.unescape(link)).text
        assert text.count("\n") == told, (asked, text)


def test_a_page_that_answered_a_form_leads_back_to_a_page(desk: Desk) -> None:
    owner = desk.person("owner")
    for path, data, status in (("reveal", {}, 200), ("domains", {"hostname": "no host"}, 422)):
        page = owner.post(f"/apps/timely/settings/{path}", data)
        assert page.status_code == status and re.search('name="to" value="/apps/timely/settings"', page.text)
        assert owner.get(f"/apps/timely/settings/{path}").headers["Location"] == "/apps/timely/settings"
    assert 'name="to" value="/apps/timely/logs?dyno=web.1"' in owner.get("/apps/timely/logs?dyno=web.1").text
    assert owner.get("/apps/timely/run/run.1/stop").headers["Location"] == "/apps/timely/run"


def test_a_message_stands_at_the_section_that_it_is_about(desk: Desk) -> None:
    owner = desk.person("owner")
    answer = owner.post("/apps/timely/settings/domains", {"hostname": "www.example.com"})
    where, _, fragment = answer.headers["Location"].partition("#")
    page = owner.get(where).text
    said = page.index("www.example.com leads to the app")
    assert fragment == "at-domains" and page.index('id="at-domains"') < said < page.index('id="at-certificates"')
    assert page.count("www.example.com leads to the app") == 1 and "leads to the app" not in owner.get(where).text
    page = owner.post("/apps/timely/settings/domains", {"hostname": "no host"}).text
    assert page.index('id="at-domains"') < page.index('id="refusal" tabindex="-1" autofocus') < page.index('id="at-certificates"')
    page = owner.post("/apps/timely/deploy/url", {"url": "nowhere"}).text
    assert page.count('id="refusal"') == 1
    assert "Log drains" not in desk.person("viewer").get("/apps/timely/settings").text


def test_a_domains_state_is_a_page_without_a_script(desk: Desk) -> None:
    owner = desk.person("owner")
    owner.post("/apps/timely/settings/domains", {"hostname": "shop.localhost.example"})
    [check] = re.findall(r'href="(/apps/timely/settings/domains/[^"]+)"', owner.get("/apps/timely/settings").text)
    page = owner.get(check).text
    assert "<title>" in page and 'href="/apps/timely/settings#domains"' in page
    assert "This Davit is at" in page and "127.0.0.1" in page
    assert "shop.localhost.example. CNAME timely.localhost." in page
    assert "<title>" not in owner.get(check, headers={"HX-Request": "true"}).text


def test_an_app_of_a_pipeline_is_shown_as_fully_as_any(desk: Desk) -> None:
    owner = desk.person("owner")
    where = owner.post("/pipelines/new", {"name": "project"}, page="/pipelines/new").headers["Location"]
    owner.post(f"{where}/apps", {"app": "timely", "stage": "staging"}, page=where)
    give_code(desk.app_id)
    scenery.figures(desk.app_id)
    page = owner.get("/").text
    assert "staging" in page and "by owner@example.com" in page and "requests a second" in page
    assert re.search(r'hx-trigger="every 60s, shown from:body', page), "figures of a quiet Davit do not freeze"


def test_health_looks_at_all_certificates_and_says_that_no_stack_is_there(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, keys = Authority(desk.home / "an-authority.pem"), desk.home / "keys"
    for place in ("tls.d", "endpoints"):
        (keys / place).mkdir(exist_ok=True)
    (keys / "tls.d" / "ours.pem").write_bytes(authority.issue(["ours.example.com"]))
    (keys / "endpoints" / "0a1b.pem").write_bytes(authority.issue(["shop.example.com"]))
    monkeypatch.setenv("DAVIT_STACKS", str(tmp_path / "none"))
    use_home(desk.home, monkeypatch)
    page = desk.person("admin").get("/admin").text
    assert "tls.d/ours.pem" in page and "1 of 1 last longer than 14 days" in page and "none is installed" in page
    monkeypatch.setattr("state.health.CERTIFICATE_DAYS", 4000)
    assert "shop.example.com" in desk.person("admin").get("/admin").text


def test_processes_are_asked_at_once_and_nothing_of_the_database_is_held_meanwhile(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    met, held = threading.Barrier(3), []

    def ping(name: str) -> None:
        met.wait(60)  # breaks, and so fails, when one waits for the other
        held.append(db.engine().pool.checkedout())  # type: ignore[attr-defined]

    monkeypatch.setattr("state.health._ping", ping)
    page = desk.person("admin").get("/admin").text
    assert page.count("answers in") >= 3 and held == [0, 0, 0]


def test_health_names_the_apps_whose_drains_are_behind(desk: Desk, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_home(desk.home, monkeypatch, REDIS_URL=redis_server)
    admin = desk.person("admin")
    assert "log drains" not in admin.get("/admin").text, "nobody is there who could tell"
    logs = Logs(desk.home, redis_server)
    try:
        logs.start()
        assert "0 in all" in admin.get("/admin").text
        with db.transaction() as session:
            session.add(LogDrain(app_id=desk.app_id, token="d.1", url=vault.seal({"url": "http://127.0.0.1:9/"})))
        wire.nudge(desk.home / "run" / "logs.sock", "drains")
        wait_until(lambda: "1 in all" in admin.get("/admin").text, "the drain's start")
        stream.emit(logs.client, desk.app_id, [Line(now() - timedelta(hours=3), "app", "web.1", "unheard")], wait=5)
        wait_until(lambda: " behind" in admin.get("/admin").text, "its being behind")
        assert re.search(r"1 in all, 1 behind: timely \(\d lines waiting, the oldest for 3 h\)<", admin.get("/admin").text)
    finally:
        logs.close()


def test_when_a_unikernels_kernel_started_is_told_where_the_runtime_knows(desk: Desk) -> None:
    with db.transaction() as session:
        app = session.get_one(App, desk.app_id)
        release = scenery.deployed(session, app, app.owner, commit="a")
        scenery.dyno(session, app, "web.1", "up", release, isolation="osv")
        scenery.dyno(session, app, "worker.1", "up", release)
    viewer, place, held = desk.person("viewer"), "/apps/timely/resources", []
    page = viewer.get(place)
    assert page.status_code == 200 and "kernel started" not in page.text, "nobody is there who could tell"

    def stats(call: wire.Call) -> dict[str, Any]:
        held.append(db.engine().pool.checkedout())  # type: ignore[attr-defined]
        if len(held) == 2:
            with db.transaction() as session:
                app = session.get_one(App, desk.app_id)
                apps.remove_collaborator(session, app.owner, app, "viewer@example.com")
        return {"dynos": {"web.1": {"uptime": 7300.0}, "worker.1": {"uptime": None}}}

    runtime = Neighbour(desk.home / "run" / "runtime.sock", {"stats": stats})
    try:
        page = viewer.get(place)
        assert re.search(r"kernel started <time[^>]*>2 hours ago<", page.text) and page.text.count("kernel started") == 1
        assert viewer.get(place).status_code == 404, "who lost the right to see it meanwhile"
    finally:
        runtime.close()
    assert held == [0, 0], "nothing of the database waits for the runtime"


def test_an_admin_sees_deliveries_that_are_late_and_whose_apps_there_are(desk: Desk) -> None:
    admin = desk.person("admin")
    assert "0 waiting, 0 given up in the last day" in admin.get("/admin").text
    with db.transaction() as session:
        app = session.get_one(App, desk.app_id)
        webhooks.create(session, app.owner, app, webhooks.check("https://203.0.113.9/", ["api:app"], "sync"))
        apps.set_maintenance(session, app.owner, app, True)
    assert "1 waiting, 0 given up" in admin.get("/admin").text
    with db.transaction() as session:
        session.execute(update(WebhookDelivery).values(next_attempt_at=now() - timedelta(hours=1)))
    assert "1 waiting, 1 of them since long, 0 given up" in admin.get("/admin").text
    assert "owner@example.com" in admin.get("/").text and "owner@example.com" not in desk.person("viewer").get("/").text


def test_an_app_without_code_in_maintenance_says_how_to_give_it_some(desk: Desk) -> None:
    owner = desk.person("owner")
    assert owner.post("/apps/timely/settings/maintenance", {"on": "yes"}).status_code == 303
    for path in ("", "/deploy"):
        assert "git remote add davit" in owner.get(f"/apps/timely{path}").text
    give_code(desk.app_id)
    assert "git remote add davit" not in owner.get("/apps/timely").text


def test_drains_and_certificates_are_for_operators(desk: Desk) -> None:
    owner = desk.person("owner")
    assert owner.post("/apps/timely/settings/drains", {"drain": "https://u:secret-word@203.0.113.9/x"}).status_code == 303
    page = owner.get("/apps/timely/settings").text
    assert "203.0.113.9" in page and "secret-word" not in page
    assert "203.0.113.9" not in desk.person("viewer").get("/apps/timely/settings").text
    answer = owner.post("/apps/timely/settings/certificates", {"chain": "nonsense", "key": "private-words"})
    assert answer.status_code == 422 and "certificate" in answer.text and "private-words" not in answer.text
    assert desk.person("deployer").post("/apps/timely/settings/certificates", {"chain": "x", "key": "y"}).status_code == 403


def test_a_certificate_is_bound_to_a_domain_and_renewed(desk: Desk) -> None:
    authority = Authority(desk.home / "an-authority.pem")

    def make(*names: str) -> list[str]:
        """Certificate chain and key."""
        text = authority.issue(names).decode()
        at = text.index("-----BEGIN PRIVATE")
        return [text[:at], text[at:]]

    owner, place = desk.person("owner"), "/apps/timely/settings"
    for host in ("www.example.com", "other.example.org"):
        owner.post(f"{place}/domains", {"hostname": host})
    chain, key = make("www.example.com")
    owner.post(f"{place}/certificates", {"chain": chain, "key": key})
    page = owner.get(place).text
    assert "Serves no domain yet" in page and "Certificate of other.example.org" not in page, "it is not for that one"
    [bind] = re.findall(r'action="([^"]+/certificate)"', page)
    [renew] = re.findall(rf'action="({place}/certificates/[^/"]+)"', page)
    assert desk.person("deployer").post(bind, {"endpoint": renew.rpartition("/")[2]}).status_code == 403
    assert owner.post(bind, {"endpoint": renew.rpartition("/")[2]}).status_code == 303
    page = owner.get(place).text
    assert "Serves www.example.com" in page and f"{renew}/remove" not in page, "what serves a domain is not removed"
    refused = owner.post(renew, dict(zip(("chain", "key"), make("shop.example.com"), strict=True), renewed=renew.rpartition("/")[2]))
    assert refused.status_code == 422 and "not for www.example.com" in refused.text and "PRIVATE" not in refused.text
    chain, key = make("www.example.com", "example.com")
    assert desk.person("viewer").post(renew, {"chain": chain, "key": key}).status_code == 403
    assert owner.post(renew, {"chain": chain, "key": key}).status_code == 303
    page = owner.get(place).text
    assert "www.example.com, example.com" in page and "Serves www.example.com" in page
    assert owner.post(bind, {"endpoint": ""}).status_code == 303
    assert owner.post(f"{renew}/remove").status_code == 303
    told = owner.get("/apps/timely/activity").text
    for words in ("Added the certificate", "Chose the certificate of www.example.com", "Renewed the certificate", "Removed the certificate"):
        assert words in told


def test_the_page_says_what_the_api_says_of_add_ons(desk: Desk) -> None:
    assert catalogue.app_addons(None) == [], "once there are some, the page has to show them"  # type: ignore[arg-type]
    page = desk.person("viewer").get("/apps/timely/resources").text
    assert "this version of Davit does not have add-ons" in page
    assert "they reach neither this host nor private networks" in page


def test_the_build_cache_is_thrown_away_by_who_may_deploy(desk: Desk) -> None:
    place, purge = "/apps/timely/deploy", "/apps/timely/build-cache/purge"
    owner, viewer = desk.person("owner"), desk.person("viewer")
    assert purge not in owner.get(place).text, "nothing was built yet, so there is none"
    with db.transaction() as session:
        scenery.deployed(session, session.get_one(App, desk.app_id), session.get_one(App, desk.app_id).owner, commit="a")
    assert purge in owner.get(place).text and purge not in viewer.get(place).text
    assert owner.post(purge).status_code == 503, "nobody is there who could"
    runtime = Neighbour(desk.home / "run" / "runtime.sock", {"cache.purge": lambda call: {}})
    try:
        assert viewer.post(purge).status_code == 403
        assert owner.post(purge).status_code == 303
    finally:
        runtime.close()
    assert runtime.calls == [("cache.purge", {"app_id": desk.app_id})]
    assert "Threw the build cache away" in owner.get("/apps/timely/activity").text


def test_a_pipeline_is_renamed_and_given_to_somebody_else_by_its_owner(desk: Desk) -> None:
    owner, deployer = desk.person("owner"), desk.person("deployer")
    where = owner.post("/pipelines/new", {"name": "project"}, page="/pipelines/new").headers["Location"]
    owner.post(f"{where}/apps", {"app": "timely", "stage": "staging"}, page=where)
    for path, data in (("name", {"name": "mine"}), ("transfer", {"recipient": "deployer@example.com"})):
        assert f"{where}/{path}" not in deployer.get(where).text
        assert deployer.post(f"{where}/{path}", data, page=where).status_code == 403
    assert owner.post(f"{where}/name", {"name": "No such name!"}, page=where).status_code == 422
    assert owner.post(f"{where}/name", {"name": "product"}, page=where).status_code == 303
    assert owner.post(f"{where}/transfer", {"recipient": "nobody@example.com"}, page=where).status_code == 404
    assert owner.post(f"{where}/transfer", {"recipient": "deployer@example.com"}, page=where).status_code == 303
    assert f"{where}/destroy" in deployer.get(where).text and "<h1>product</h1>" in deployer.get(where).text
    assert f"{where}/destroy" not in owner.get(where).text, "still seen: an app in it is theirs"


def test_features_are_switched_by_who_may(desk: Desk) -> None:
    owner, operator, place = desk.person("owner"), desk.person("operator"), "/apps/timely/settings/features"
    assert f"{place}/preboot" not in owner.get("/apps/timely/settings").text, "it cannot be switched"
    assert f"{place}/" not in desk.person("viewer").get("/apps/timely/settings").text
    assert f"{place}/{features.GUARD}" not in operator.get("/apps/timely/settings").text
    assert operator.post(f"{place}/{features.METADATA}", {"on": "yes"}).status_code == 303
    assert operator.post(f"{place}/{features.GUARD}", {"on": "yes"}).status_code == 403
    answer = owner.post(f"{place}/{features.GUARD}", {"on": "yes"})
    assert answer.status_code == 422 and "turn two-factor authentication on first" in answer.text
    with db.snapshot() as session:
        app = session.get_one(App, desk.app_id)
        assert features.enabled(session, app, features.METADATA) and not features.enabled(session, app, features.GUARD)


def test_new_recovery_codes_take_a_code_and_void_the_old_ones(desk: Desk) -> None:
    with db.transaction() as session:
        account = session.get_one(App, desk.app_id).owner
        enrolment = two_factor.begin(session, account)
        totp = TOTP(base64.b32decode(enrolment.secret), 6, SHA1(), 30, enforce_key_length=False)
        old = two_factor.confirm(session, account, totp.generate(int(time.time())).decode())
    owner, place = desk.person("owner"), "/account/two-factor/recovery-codes"
    assert owner.post(place, {"code": "wrong"}).status_code == 403
    page = owner.post(place, {"code": old[0]}).text
    assert "Recovery codes" in page and not any(code in page for code in old)
    assert owner.post(place, {"code": old[1]}).status_code == 403


def test_pipelines_are_on_pages_as_apps_are(desk: Desk) -> None:
    with db.transaction() as session:
        owner = session.scalar(select(Account).where(Account.email == "owner@example.com"))
        assert owner
        for number in range(25):
            pipelines.create(session, owner, f"project-{number:02}")
    owned = desk.person("owner")
    first, second = owned.get("/").text, owned.get("/?page=2").text
    assert [page.count('aria-label="Pipeline') for page in (first, second)] == [20, 5]
    assert "/apps/timely" in first and "/apps/timely" not in second and "page=2" in first
    assert "Previous" in second and "Next" not in second


def test_resources_say_which_private_addresses_dynos_reach(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    use_home(desk.home, monkeypatch, DAVIT_DYNOS_ALLOW="10.1.0.5:5432, 10.2.0.0/24")
    page = desk.person("viewer").get("/apps/timely/resources").text
    assert "of private networks 10.1.0.5:5432, 10.2.0.0/24 and nothing else" in page


def test_what_happened_leads_to_where_it_is_set(desk: Desk) -> None:
    owner = desk.person("owner")
    give_code(desk.app_id)
    owner.post("/apps/timely/resources", {"quantity.web": "2"})
    owner.post("/apps/timely/settings/domains", {"hostname": "www.example.com"})
    owner.post("/apps/timely/settings/maintenance", {"on": "yes"})
    page = owner.get("/apps/timely/activity").text
    for where, words in (
        ("/resources", "Scaled to"), ("/settings#domains", "Added the domain www.example.com"),
        ("/settings#maintenance", "Turned maintenance mode on"), ("/settings#people", "Added viewer@example.com"),
    ):  # fmt: skip
        assert re.search(rf'href="/apps/timely{where}">{words}', page), words
    feed = page[page.index('<ul class="list feed">') : page.index("</ul>", page.index('<ul class="list feed">'))]
    assert feed.count("<a ") == feed.count("<li"), "each leads somewhere"


def test_lists_that_end_say_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MOST", 3)
    assert "These are the newest 3" in desk.person("viewer").get("/apps/timely/activity").text
    builds_page = desk.person("viewer").get("/apps/timely/builds").text
    assert "These are the newest" not in builds_page and 'hx-trigger="live:app from:body"' in builds_page


def test_crashes_stay_among_the_activity_when_the_dyno_is_up_again(desk: Desk) -> None:
    with db.transaction() as session:
        app = session.get(App, desk.app_id)
        assert app
        release = scenery.deployed(session, app, app.owner, commit="a")
        gone = Dyno(app_id=app.id, name="web.1", release_version=release.version)
        for status, why in ((1, ""), (137, "It was killed: it used more than twice its dyno's memory.")):
            crashes.record(session, gone, status, why)
        config.change(session, app.owner, app, {"A": "1"})
        for _ in range(3):
            for name in ("web.1", "web.2"):
                crashes.record(session, Dyno(app_id=app.id, name=name, release_version=3), 7)
    page = desk.person("viewer").get("/apps/timely/activity").text
    assert page.count("web.1 of v3 crashed with status 7</a>") == page.count("web.2 of v3 crashed with status 7</a>") == 1
    assert page.count("3 times</span>") == 2, "nothing else happened in between, so each dyno has one line"
    before = page[page.index("Set A config vars") :]
    assert "web.1 of v2 crashed with status 137 (SIGKILL)</a>" in before and "more than twice its dyno&#39;s memory" in before
    assert "/apps/timely/logs?dyno=web.1" in page and page.count("2 times</span>") == 1


def test_dynos_that_are_down_are_named_as_people_count(desk: Desk) -> None:
    with db.transaction() as session:
        app = session.get_one(App, desk.app_id)
        release = scenery.deployed(session, app, app.owner, commit="a")
        for number in (10, 9):
            scenery.dyno(session, app, f"web.{number}", "crashed", release, exit_status=number)
    page = desk.person("viewer").get("/apps/timely").text
    assert "<b>2 dynos crashed:</b> web.9, web.10." in page
    assert "web.9 ended with status 9, web.10 ended with status 10; each is started again" in page


def test_only_the_newest_crashes_are_kept(desk: Desk) -> None:
    with db.transaction() as session:
        for number in range(crashes.KEPT + 5):
            crashes.record(session, Dyno(app_id=desk.app_id, name="web.1", release_version=1), number)
    with db.snapshot() as session:
        kept = [row.exit_status for row in crashes.newest(session, desk.app_id, 1000)]
        assert kept == list(range(crashes.KEPT + 4, 4, -1))


def _live(desk: Desk) -> tuple[str, bool]:
    with db.snapshot() as session:
        row = session.scalars(select(Formation).where(Formation.app_id == desk.app_id, Formation.type == "web")).one()
        return row.size, row.live


def test_isolation_and_sleep_are_chosen(desk: Desk) -> None:
    give_code(desk.app_id)
    owner = desk.person("owner")
    assert owner.post("/apps/timely/resources", {"quantity.web": "1", "isolation.web": "microvm"}).status_code == 303
    page = owner.get("/apps/timely/resources").text
    assert "<option selected>microvm" in page and "When nobody asks it anything for 30 minutes" in page
    assert "As it is now, it stays awake: only Eco dynos sleep by themselves, and its web dynos are Basic." in page
    assert owner.post("/apps/timely/resources", {"size.web": "standard-2x", "live": "yes"}).status_code == 303
    assert _live(desk) == ("standard-2x", True)
    assert owner.post("/apps/timely/resources", {"size.web": "eco"}).status_code == 303
    assert _live(desk) == ("eco", False)
    assert "it sleeps when nobody asks it anything for 30 minutes." in owner.get("/apps/timely/resources").text
    assert owner.post("/apps/timely/sleep", {"sleep": "off"}).status_code == 303
    assert owner.post("/apps/timely/sleep", {"sleep": "sometimes"}).status_code == 422
    assert desk.person("viewer").post("/apps/timely/sleep", {"sleep": "on"}).status_code == 403


def test_a_form_in_which_nothing_was_touched_changes_nothing(desk: Desk) -> None:
    release = give_code(desk.app_id)
    assert release
    owner, operator = desk.person("owner"), desk.person("operator")
    stale = fields_of(owner.get("/apps/timely/resources").text, "/sleep")
    assert operator.post("/apps/timely/sleep", {"sleep": "off", "seen": "auto"}).status_code == 303
    assert owner.post("/apps/timely/sleep", stale).status_code == 303, "it was not touched"
    answer = owner.post("/apps/timely/sleep", {**stale, "sleep": "on"})
    assert answer.status_code == 409 and "somebody else changed the choice of sleep" in answer.text
    owner.post("/account/name", {"name": ""})
    owner.post("/apps/timely/settings/name", {"name": "timely"})
    owner.post("/apps/timely/settings/people", {"email": "viewer@example.com"})
    owner.post("/apps/timely/settings/buildpacks", fields_of(owner.get("/apps/timely/settings").text, "/buildpacks"))
    with db.snapshot() as session:
        app = session.get(App, desk.app_id)
        assert app and app.sleep == "off"
        actions = set(session.scalars(select(AuditEvent.action)))
    assert not actions & {"accounts:rename", "apps:rename", "access:update", "buildpacks:set"}


def test_an_app_is_offered_by_who_may_give_it_away_and_the_page_shows_whose_offer_it_is(desk: Desk) -> None:
    settings, page = "/apps/timely/settings", "/apps/timely/settings/transfer"
    owner, admin, manager = desk.person("owner"), desk.person("admin"), desk.person("manager")
    assert "Offer the app" not in manager.get(settings).text and "Offer the app" in owner.get(settings).text
    assert manager.post(page, {"recipient": "stranger@example.com"}).status_code == 403
    for first, second in ((admin, owner), (owner, admin)):
        assert first.post(page, {"recipient": "stranger@example.com"}).status_code == 303
        assert "It is offered to <b>stranger@example.com</b>" in second.get(settings).text
        assert manager.post(f"{page}/take-back").status_code == 403
        assert second.post(f"{page}/take-back").status_code == 303
        assert "Offer the app" in first.get(settings).text
    assert owner.post(f"{page}/take-back").status_code == 404


def test_arrow_keys_change_nothing_and_a_button_moves_an_app_in_its_pipeline(desk: Desk) -> None:
    with db.transaction() as session:
        app = session.get(App, desk.app_id)
        assert app
        project = pipelines.create(session, app.owner, "project")
        pipelines.couple(session, app.owner, project, app, "staging")
        text = Authority(desk.home / "an-authority.pem").issue(("www.example.com",)).decode()
        domains.add(session, app.owner, app, "www.example.com")
        endpoints.add(session, app.owner, app, text[: text.index("-----BEGIN PRIVATE")], text[text.index("-----BEGIN PRIVATE") :])
    owner = desk.person("owner")
    for path, chosen in (("/pipelines/project", "Stage of timely"), ("/apps/timely/settings", "Certificate of www.example.com")):
        forms = re.findall(r'<form method="post".*?</form>', owner.get(path).text, re.S)
        assert not [form for form in forms if "data-submits" in form], "a closed list changes with each arrow key"
        [form] = [form for form in forms if f'aria-label="{chosen}"' in form]
        assert "<button" in re.sub("<noscript>.*?</noscript>", "", form, flags=re.S)
    form = fields_of(owner.get("/pipelines/project").text, "/move")
    assert owner.post("/pipelines/project/move", {**form, "stage": "production"}).status_code == 303
    with db.snapshot() as session:
        assert session.scalars(select(PipelineCoupling.stage)).all() == ["production"]


def test_how_much_a_form_takes_is_said_before_and_after(desk: Desk) -> None:
    owner = desk.person("owner")
    most = shown.size(settings().push_limit << 20)
    give_code(desk.app_id)
    assert f"A .tar.gz of your project, {most} at the most" in owner.get("/apps/timely/deploy").text
    refused = owner.post("/apps/timely/settings/config", {"dotenv": "x" * (2 << 20)})
    assert refused.status_code == 413 and "larger than the 1.0 MiB that this form may have" in refused.text


def test_destroying_takes_the_name(desk: Desk) -> None:
    owner = desk.person("owner")
    assert owner.post("/apps/timely/settings/destroy", {"confirm": "timel"}).status_code == 422
    assert owner.post("/apps/timely/settings/destroy", {"confirm": "timely"}).status_code == 303
    assert owner.get("/apps/timely").status_code == 404


def test_the_owners_link_works_once(desk: Desk) -> None:
    with db.snapshot() as session:
        secret = set_up.secret(session)
    somebody = desk.somebody()
    assert all("Nobody has set this up yet" in somebody.get(f"/sign-in{way}").text for way in ("", "?token"))
    page = f"/set-up/{secret}"
    data = {"email": "Ann@example.com", "password": "correct horse battery", "again": "correct horse"}
    assert somebody.post(page, data, page=page).status_code == 422
    assert somebody.post(page, {**data, "again": data["password"]}, page=page).status_code == 303
    assert somebody.get("/account").status_code == 200 and "ann@example.com" in somebody.get("/account").text
    assert desk.somebody().get(page).status_code == 404
    assert "set this up" not in desk.somebody().get("/sign-in").text
    with db.snapshot() as session:
        assert set_up.secret(session) is None


def test_names_that_an_app_or_a_person_chose_are_only_text(desk: Desk) -> None:
    with db.transaction() as session:
        app = session.get(App, desk.app_id)
        assert app
        apps.set_buildpacks(session, app.owner, app, ["https://example.com/<script>alert(1)</script>"])
    give_code(desk.app_id, {"web": "<img src=x>"}, "Deploy <b>bold</b>")
    owner = desk.person("owner")
    for path in ("", "/settings", "/resources", "/deploy", "/releases/v2"):
        text = owner.get(f"/apps/timely{path}").text
        assert "<script>alert" not in text and "<img src=x>" not in text and "<b>bold" not in text


def test_an_audit_log_can_be_filtered_and_taken_away(desk: Desk) -> None:
    admin = desk.person("admin")
    desk.person("owner").post("/new", {"name": "another"})
    text = admin.get("/admin/audit?app=another").text
    assert "apps:create" in text and "accounts:create" not in text
    assert "accounts:create" not in admin.get("/admin/audit/export?app=another").text
    assert '"app": "another"' in admin.get("/admin/audit/export?as=json&action=apps").text


def test_the_dashboard_is_loaded_by_the_first_page_only() -> None:
    code = "import app, sys; assert not [name for name in sys.modules if name in ('dashboard.web', 'dashboard.views')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_page_that_says_nothing_about_who_may_see_it_is_refused() -> None:
    with pytest.raises(TypeError):
        routing.Pages("x").on("GET", "/x")
    with pytest.raises(TypeError):
        routing.Pages("x").on("POST", "/x", needs="account", again=lambda visit: "")


@pytest.mark.parametrize("name", ["viewer", "deployer", "operator", "manager"])
def test_only_what_the_visitor_may_do_is_offered(desk: Desk, name: str) -> None:
    owner, person = desk.person("owner"), desk.person(name)
    give_code(desk.app_id)
    owner.post("/apps/timely/settings/config", {"new-name": "A", "new-value": "1"})
    owner.post("/apps/timely/settings/domains", {"hostname": "www.example.com"})
    owner.post("/apps/timely/settings/buildpacks", {"new": "heroku/python"})
    with db.snapshot() as session:
        app, account = session.get(App, desk.app_id), session.scalar(select(Account).where(Account.email == f"{name}@example.com"))
        assert app and account
        allowed = apps.permissions(session, account, app) | {"account", "nothing"}
    urls = desk.flask.url_map.bind("localhost")
    for path in (*APP_PAGES, *(["/run"] if "operate" in allowed else [])):
        forms = re.findall(r'<form[^>]*method="post"[^>]*action="([^"#]+)[^>]*>(.*?)</form>', person.get(f"/apps/timely{path}").text, re.S)
        for action in (action for action, inside in forms if "<button" in inside):
            endpoint, _ = urls.match(action, method="POST")
            route = desk.flask.view_functions[endpoint].route  # type: ignore[attr-defined]
            own = route.path.endswith("/people/<user>/remove")  # anybody may leave
            assert route.needed in allowed or own, f"{path} offers {name} {action}, which takes {route.needed}"


def test_a_pipeline_offers_its_people_what_each_may_do(desk: Desk) -> None:
    owner = desk.person("owner")
    where = owner.post("/pipelines/new", {"name": "project"}, page="/pipelines/new").headers["Location"]
    owner.post("/new", {"name": "timely-live"})
    for name, stage in (("timely", "staging"), ("timely-live", "production")):
        owner.post(f"{where}/apps", {"app": name, "stage": stage}, page=where)
    give_code(desk.app_id)

    def offered(name: str) -> set[str]:
        return set(re.findall(rf'action="{where}/(\w+)"', desk.person(name).get(where).text))

    assert offered("owner") == {"promote", "move", "apps", "name", "transfer", "destroy"}
    assert offered("viewer") == set()
    assert offered("operator") == {"move"}
    assert offered("deployer") == {"apps"}, "the app of the next stage is not theirs"
    owner.post("/apps/timely-live/settings/people", {"email": "deployer@example.com", "may.deploy": "yes"}, page=where)
    assert offered("deployer") == {"promote", "apps"}


def test_the_list_of_apps_takes_as_many_queries_for_many_apps_of_pipelines_as_for_one(desk: Desk) -> None:
    counted: list[str] = []
    event.listen(db.engine(), "before_cursor_execute", lambda c, cursor, statement, *rest: counted.append(statement))
    person, found = desk.person("viewer"), []
    for more in (1, 5):
        with db.transaction() as session:
            owner = session.scalar(select(Account).where(Account.email == "owner@example.com"))
            assert owner
            row = pipelines.create(session, owner, f"project-{more}")
            for number in range(more):
                app = apps.create(session, owner, f"app-{more}-{number}")
                apps.add_collaborator(session, owner, app, "viewer@example.com", ["view"])
                pipelines.couple(session, owner, row, app, "staging")
        counted.clear()
        assert f"app-{more}-0" in person.get("/").text
        found.append(len(counted))
    assert found[0] == found[1], counted


def test_a_release_is_compared_with_any_other_however_many_there_are(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        give_code(desk.app_id, {"web": f"serve {number}"})
    with db.snapshot() as session:
        first, *_, last = session.scalars(select(Release.version).where(Release.app_id == desk.app_id).order_by(Release.version))
    path, person = f"/apps/timely/releases/v{last}", desk.person("owner")
    assert f'<option value="v{first}"' in person.get(path).text
    monkeypatch.setattr(deploy, "OFFERED", 2)
    page = person.get(f"{path}?from={first}").text
    assert re.search(rf'<input id="from" name="from" value="v{first}"', page) and "<option" not in page
    assert "+ process type web: serve 2" in page and "serve 1" not in page
    mistyped = person.get(f"{path}?from=v999")
    assert mistyped.status_code == 422 and "There is no release “v999”" in mistyped.text and '<input id="from"' in mistyped.text
