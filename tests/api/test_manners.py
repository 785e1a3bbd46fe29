"""What holds for every answer, and input that is hostile."""

from __future__ import annotations

import importlib
import json
import os
import re
import string
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.cache import LRUCache
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from sqlalchemy import event

from api import attach, body, fields
from api.resources import explanations
from api.routing import Operation, Resource
from api.web import RESOURCES, operations
from foundation import wire
from foundation.errors import DavitError
from foundation.settings import settings as davits_settings
from state import builds, crashes, db, web_sessions
from state.models import App, Dyno, PromotionTarget, Webhook
from state.releases import current
from tests.api import lived_in, published
from tests.api.conftest import Api, give_code
from tests.e2e.errors_page import assert_says


@pytest.mark.parametrize(
    "sent", [b"{", b"[]", b"null", b'"x"', b"5", b"\xff", b'{"name": NaN}', b'{"name": "\\ud800"}', b"[" * 100_000, b"1" * 5000]
)
def test_a_body_that_is_no_json_object_is_refused(api: Api, sent: bytes) -> None:
    answer = api.call("POST", "/apps", data=sent)
    assert (answer.status_code, answer.json["id"]) == (400, "bad_request")


def test_a_body_that_is_too_large_is_refused(api: Api) -> None:
    def said(size: int, chunked: bool) -> tuple[int, str]:
        data = b'{"name": "X"}'.ljust(size)
        in_chunks = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True} if chunked else {}
        answer = api.call("POST", "/apps", data=data, environ_overrides=in_chunks)
        return answer.status_code, answer.json["id"]

    for chunked in (False, True):
        assert said(body.LIMIT, chunked) == (422, "invalid_params"), chunked
        assert said(body.LIMIT + 1, chunked) == (413, "request_entity_too_large"), chunked


def test_unknown_endpoints_answer_in_the_error_form(api: Api) -> None:
    assert (api.get("/nothing").status_code, api.get("/nothing").json["id"]) == (404, "not_found")
    assert api.get("/apps/timely/oci-images").json["id"] == "not_implemented"
    for method, path, reason in (
        ("POST", "/review-apps", "there are no review apps yet"), ("POST", "/actions/addons/resolve", "there are no add-ons yet"),
        ("GET", "/client/v11/apps/timely/transfers", "there are no add-ons yet"), ("GET", "/spaces/s/dynos", "no private spaces"),
        ("GET", "/teams/t", "there are no teams"), ("GET", "/pipelines/p/test-runs", "does not run tests"),
        ("POST", "/telemetry-drains", "no telemetry"), ("GET", "/apps/timely/oci-images", "no container images"),
    ):  # fmt: skip
        answer = api.call(method, path, {} if method == "POST" else None)
        assert answer.status_code == 501 and reason in answer.json["message"], (path, answer.text)
    assert api.delete("/").status_code == 405
    for method, path in (("PUT", "/apps"), ("DELETE", "/apps"), ("OPTIONS", "/apps"), ("POST", "/regions")):
        assert (api.call(method, path).status_code, api.call(method, path).json["id"]) == (405, "method_not_allowed"), (method, path)
    assert api.get("/apps/timely/config-vars/X").status_code == 404 == api.get("/pipelines/x/none").status_code
    assert api.get("/apps/a%00b").status_code == 404


def test_an_address_with_a_slash_too_many_leads_on_without_a_page(api: Api) -> None:
    answer = api.get("/apps//timely")
    assert (answer.status_code, answer.headers["Location"], answer.data) == (308, "http://localhost/apps/timely", b"")
    assert "Content-Type" not in answer.headers


def test_a_crash_is_told_without_its_details(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.config.read", lambda app: 1 / 0)
    answer = api.get("/apps/timely/config-vars")
    assert (answer.status_code, answer.json["id"]) == (500, "internal_error")
    assert "ZeroDivision" not in answer.text


def test_every_error_leads_to_what_it_means(api: Api) -> None:
    for answer in (api.get("/apps/none"), api.get("/account", as_=None), api.delete("/"), api.call("POST", "/apps", data=b" " * (body.LIMIT + 1))):
        page = api.get(answer.json["url"].removeprefix("http://localhost"), as_=None)
        assert page.status_code == 200 and page.text.startswith(answer.json["id"] + "\n"), answer.text
    assert "What to do: check the name." in api.get("/errors/not_found", as_=None).text
    assert api.get("/errors/none", as_=None).status_code == 404
    assert len(explanations.explained()) > 60


def test_request_ids_are_echoed_and_extended(api: Api) -> None:
    assert api.get("/account", headers={"Request-Id": "mine-1"}).headers["Request-Id"].startswith("mine-1,")
    assert re.fullmatch(r"[0-9a-f-]{36}", api.get("/account", headers={"Request-Id": "ev il<"}).headers["Request-Id"])


def test_an_unchanged_answer_is_not_sent_again(api: Api) -> None:
    first = api.get("/apps/timely")
    again = api.get("/apps/timely", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    api.patch("/apps/timely", {"maintenance": True})
    assert api.get("/apps/timely", headers={"If-None-Match": first.headers["ETag"]}).status_code == 200


def test_what_is_gone_is_not_removed_again(api: Api) -> None:
    made = {
        "/apps/timely/webhooks": {"url": "https://203.0.113.9/", "include": ["api:app"], "level": "notify"},
        "/apps/timely/log-drains": {"url": "https://203.0.113.9/"}, "/apps/timely/domains": {"hostname": "www.example.com"},
        "/oauth/authorizations": {}, "/oauth/clients": {"name": "x", "redirect_uri": "https://example.com/"}, "/apps": {"name": "gone-app"},
    }  # fmt: skip
    paths = [f"{path}/{api.post(path, sent).json['id']}" for path, sent in made.items()]
    before = [api.get(path).json for path in made]
    for path in (*paths, "/apps/timely/collaborators/viewer@example.com"):
        assert api.delete(path).status_code == 200, path
        left = [api.get(one).json for one in made]
        answer = api.delete(path)
        assert (answer.status_code, answer.json["id"]) == (404, "not_found"), path
        assert [api.get(one).json for one in made] == left
    assert [len(rows) - 1 for rows in before] == [len(api.get(path).json) for path in made]


@pytest.mark.row("changed-meanwhile")
@pytest.mark.parametrize(
    ("path", "sent"),
    [("/apps/timely/config-vars", {"A": "1"}), ("/apps/timely/formation", {"updates": [{"type": "web", "quantity": 2}]}),
     ("/apps/timely", {"maintenance": True})],
)  # fmt: skip
def test_a_change_of_what_has_changed_meanwhile_is_refused(api: Api, path: str, sent: dict[str, Any]) -> None:
    give_code(api.app_id)
    tag = api.get(path).headers["ETag"]
    assert api.patch(path, sent, headers={"If-Match": tag}).status_code == 200
    answer = api.patch(path, sent, headers={"If-Match": tag})
    assert (answer.status_code, answer.json["id"]) == (412, "precondition_failed")
    assert_says("changed-meanwhile", answer.json["message"])
    assert api.patch(path, sent, headers={"If-Match": '"none"'}).status_code == 412
    for tag in (api.get(path).headers["ETag"], "*"):
        assert api.patch(path, sent, headers={"If-Match": tag}).status_code == 200


def test_what_changes_while_an_address_is_looked_up_is_not_overwritten(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = api.post("/apps/timely/webhooks", {"url": "https://203.0.113.9/", "include": ["api:app"], "level": "notify"}).json
    path = f"/apps/timely/webhooks/{hook['id']}"
    tag = api.get(path).headers["ETag"]

    def meanwhile(place: object) -> None:
        with db.transaction() as session:
            session.get_one(Webhook, hook["id"]).level = "sync"

    monkeypatch.setattr("foundation.outbound.check", meanwhile)
    answer = api.patch(path, {"include": ["api:build"]}, headers={"If-Match": tag})
    assert (answer.status_code, api.get(path).json["include"]) == (412, ["api:app"])


def test_if_match_shows_nobody_what_they_may_not_read(api: Api) -> None:
    tag = api.get("/apps/timely/config-vars").headers["ETag"]
    assert api.patch("/apps/timely/config-vars", {"A": "1"}, as_="operator", headers={"If-Match": tag}).status_code == 403
    assert api.get("/apps/timely/config-vars").headers["ETag"] == tag


def test_what_may_hold_secrets_is_not_kept_by_caches(api: Api) -> None:
    assert api.post("/oauth/authorizations").headers["Cache-Control"] == "no-store"
    assert "private" in api.get("/apps/timely/config-vars").headers["Cache-Control"]


def test_every_list_takes_as_many_queries_for_many_as_for_one(api: Api) -> None:
    places = {"app": "timely", "pipeline": "the-line", "user": "~", **lived_in.fill(api)}
    _one_more(api, places, 1)
    lists = [one for one in operations() if one.method == "GET" and one.gives.many and one.needs != "nothing"]
    lists = [one for one in lists if one.path != "/apps/<app>/dyno-usage"]  # the process runtime is asked, and there is none here
    paths = [re.sub(r"<([^>]+)>", lambda match: places[match[1]], one.path) for one in lists]
    few = {(path, who): _queries(api, path, who) for path in paths for who in ("owner", "operator", "admin")}
    for number in range(2, 5):  # an app has at most five drains
        _one_more(api, places, number)
    grown = {asked: (before, now) for asked, before in few.items() if (now := _queries(api, *asked)) != before}
    assert not grown
    for path in ("/apps/timely/builds", "/apps/timely/webhooks", "/apps/timely/sni-endpoints", "/apps/timely/domains", "/oauth/clients"):
        assert len(api.get(path).json) > 4, "there are many"


def _queries(api: Api, path: str, who: str) -> int:
    """How many an answer takes."""
    seen: list[str] = []
    listener = lambda conn, cursor, statement, *rest: seen.append(statement)  # noqa: E731
    event.listen(db.engine(), "before_cursor_execute", listener)
    try:
        assert api.get(path, as_=who).status_code in (200, 206, 401, 403, 404)
    finally:
        event.remove(db.engine(), "before_cursor_execute", listener)
    return len(seen)


def _one_more(api: Api, places: dict[str, str], number: int) -> None:
    """One more of what lists show, of ``timely``'s and the owner's."""
    name, email, host = f"app-{number:03}", f"{number}@example.com", f"{number}.example.com"
    made: dict[str, dict[str, Any]] = {
        "/davit/accounts": {"email": email}, "/apps/timely/collaborators": {"user": email}, "/apps": {"name": name},
        "/apps/timely/domains": {"hostname": host}, "/apps/timely/log-drains": {"url": f"https://203.0.113.9/{number}"},
        "/apps/timely/webhooks": {"url": f"https://203.0.113.9/{number}", "include": ["api:app"], "level": "notify"},
        "/apps/timely/sni-endpoints": lived_in.certificate(api.home, host), "/oauth/authorizations": {},
        "/oauth/clients": {"name": name, "redirect_uri": "https://example.com/"}, "/pipelines": {"name": f"line-{number}"},
        "/pipeline-couplings": {"pipeline": "the-line", "app": name, "stage": "staging"},
        "/account/app-transfers": {"app": name, "recipient": lived_in.FRIEND},
        "/account/keys": {"public_key": lived_in.KEY.replace("AAAA me", f"AAA{number} me")},
    }  # fmt: skip
    for path, sent in made.items():
        answer = api.post(path, sent, as_="admin" if path.startswith("/davit") else "owner")
        assert answer.status_code in (200, 201), (path, answer.text)
    (endpoint,) = [row["name"] for row in api.get("/apps/timely/sni-endpoints").json if row["ssl_cert"]["cert_domains"] == [host]]
    assert api.patch(f"/apps/timely/domains/{host}", {"sni_endpoint": endpoint}).status_code == 200
    assert api.patch("/apps/timely", {"maintenance": bool(number % 2)}).status_code == 200
    assert api.patch("/apps/timely/config-vars", {"N": str(number)}).status_code == 200
    with db.transaction() as session:
        app, release = session.get_one(App, api.app_id), current(session, api.app_id)
        assert release
        builds.create(session, app, app.owner, commit="ab" * 20, buildpacks=["heroku/python", "https://me:secret@example.com/x.git"])
        dyno = Dyno(
            app_id=app.id, release_id=release.id, release_version=release.version, name=f"web.{number}", type="web", size="basic",
            command="x", state="up",
        )  # fmt: skip
        session.add(dyno)
        session.add(PromotionTarget(promotion_id=places["promotion"], app_id=app.id, release_id=release.id))
        web_sessions.start(session, app.owner, "Firefox on Linux")
        crashes.record(session, dyno, 1)


def test_a_rendezvous_with_a_secret_that_is_no_ascii_is_refused_as_any_other() -> None:
    waiting = attach.Waiting()
    waiting.add(attach.Attachment({"dyno_id": "x"}, "y", wire.Connection.__new__(wire.Connection), None, {}, False, lambda: None))
    try:
        assert [waiting.take_by_secret(secret) for secret in ("é", "davit-run-\ufffd", "\udce9")] == [None] * 3
    finally:
        waiting.take("x", "y")


_SEGMENTS = st.text(max_size=12) | st.sampled_from(["timely", "web", "web.1", "v1", "1", "~", "none", "%00", "9" * 30])
_LINE = "".join(c for c in string.printable if c not in "\n\r\x0b\x0c")
_ANY_ID = "00000000-0000-0000-0000-000000000000"
_EXTREMES = ["", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01", "2026-11-24T00:00:00%2B01:00"]
_RANGES = st.text(_LINE, max_size=40) | st.builds(
    "{} {}..{}; max={}, order={}".format,
    st.sampled_from(["version", "name", "id", "created_at", "hostname"]),
    st.sampled_from(["", "]a", "1", "]9" + "9" * 40, "2026", *(f"]{value}~{_ANY_ID}" for value in _EXTREMES), *_EXTREMES]),
    st.sampled_from(["", "z", "-5", "2026-11-24T00:00:00Z", *(f"{value}~{_ANY_ID}" for value in _EXTREMES), *_EXTREMES]),
    st.sampled_from(["1", "0", "x", "5000"]),
    st.sampled_from(["asc", "desc", ""]),
)


_SAID = {
    "If-Match": ['"x"', "*", 'W/"x"', "x", ""], "If-None-Match": ['"x"', "*", "x"],
    "Davit-Base": ["http://a:x", "http://[", "http://a:0", "https://davit.example.com"],
    "Host": ["a:x", "example.com:99999", "davit.example.com", "\xff"],
    "Accept": ["text/event-stream", "text/html", "*/*;q=x", "application/vnd.heroku+json; version=3"],
    "Accept-Encoding": ["gzip", "gzip;q=x", "br"], "Content-Type": ["text/plain", "multipart/form-data"],
    "Last-Event-ID": ["0-0", "x", "9" * 30 + "-1", "1-1-1"], "X-Forwarded-For": ["x", ",", "1" * 500],
    "Heroku-Two-Factor-Code": ["000000", "\xb2", "x" * 500], "Request-Id": ["a", "a,b", "\x7f"],
    "Authorization": ["Basic", "Basic YTpi", "Bearer \xff", "Digest x"],
}  # fmt: skip
"""What a call may say of itself; the last in the place of its token."""
_HEADERS = st.lists(st.sampled_from([(name, value) for name, values in _SAID.items() for value in values]), max_size=2).map(dict)
_QUERIES = ("since", "until", "actor", "action", "app", "eq[name]", "eq[x]", "tail", "seconds", "in[name][]", "\x00")
_VALUES = ("\x00", "a\x00b", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "\ufffd", "%", "²", "9" * 30, "'", "x" * 3000)


def test_no_range_and_no_query_makes_a_list_crash(either_api: Api) -> None:
    """On each database: what one takes, another may not."""
    lists = [one for resource in RESOURCES for one in resource.operations if one.method == "GET" and one.gives.many]
    for operation in lists:
        path = re.sub(r"<[^>]+>", lambda match: {"app": "timely", "user": "~"}.get(match[0][1:-1], "none"), operation.path)
        attributes = either_api.get(path, as_="admin").headers.get("Accept-Ranges", "id").split(", ")
        asked: list[tuple[dict[str, str], dict[str, str]]] = [(dict.fromkeys(_QUERIES, value), {}) for value in _VALUES[:5]]
        for value in _EXTREMES:
            bounds = (f"{value}..{value}", f"]{value}~{_ANY_ID}..{value}~{_ANY_ID}")
            asked += [({}, {"Range": f"{attributes[0]} {bound}; max=2"}) for bound in bounds]
        for query, headers in asked:
            answer = either_api.call("GET", path, as_="admin", query_string=query, headers=headers)
            assert answer.status_code < 500 or answer.json["id"] in ("not_implemented", "unavailable"), (path, query, headers, answer.text)


FEW = 4
MANY = int(os.environ.get("DAVIT_TEST_REQUESTS", "100"))


@pytest.fixture
def _as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis draws constants of the code, too: of the modules that are loaded just then, which differs from run to run."""
    monkeypatch.setattr(providers, "_get_local_constants", Constants)
    monkeypatch.setattr(providers, "CONSTANTS_CACHE", LRUCache(1024))


@pytest.mark.usefixtures("_as_ever")
@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.name)
def test_no_input_makes_it_crash(api: Api, resource: Resource) -> None:
    """The same few requests each time; ``make test-requests`` tries many others."""
    for operation in resource.operations:
        assert _try(api, operation, max_examples=FEW, derandomize=True) == FEW


@pytest.mark.usefixtures("_as_ever")
def test_the_few_requests_are_the_same_whatever_has_been_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def requests() -> list[Request]:
        seen: list[Request] = []

        @settings(database=None, deadline=None, phases=[Phase.generate], max_examples=40, derandomize=True)
        @given(data=st.data())
        def draw(data: st.DataObject) -> None:
            seen.append(_draw(patch, data))

        draw()
        return seen

    patch = next(one for one in operations() if (one.method, one.path) == ("PATCH", "/apps/<app>"))
    before = requests()
    (tmp_path / "full_of_constants.py").write_text(f"WORDS = {[f'constant {n}' for n in range(1000)]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("full_of_constants")
    try:
        assert requests() == before
    finally:
        del sys.modules["full_of_constants"]


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * MANY)
@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.name)
def test_no_input_of_many_makes_it_crash(either_api: Api, resource: Resource, monkeypatch: pytest.MonkeyPatch) -> None:
    """DAVIT_TEST_REQUESTS drawn requests to each endpoint, others each time, on each database; a failure tells how it is drawn again."""
    monkeypatch.setenv("DAVIT_RATE_LIMIT", "1000000000")  # else the most of them were refused before anything is looked at
    davits_settings.cache_clear()
    for operation in resource.operations:
        _try(either_api, operation, max_examples=MANY, print_blob=True)


def _try(api: Api, operation: Operation, **choices: Any) -> int:
    """Ask, and say how often."""
    phases = [Phase.generate] if choices.get("derandomize") else [Phase.generate, Phase.shrink]
    asked = 0

    @settings(database=None, deadline=None, phases=phases, suppress_health_check=list(HealthCheck), **choices)
    @given(data=st.data())
    def no_input_makes_it_crash(data: st.DataObject) -> None:
        nonlocal asked
        _ask(api, operation, _draw(operation, data))
        asked += 1

    no_input_makes_it_crash()
    return asked


@dataclass(frozen=True)
class Request:
    """A drawn request: who asks, for which path, what is sent, and what Flask's client is told besides."""

    who: str
    path: str
    sent: Any
    options: dict[str, Any]


def _draw(operation: Operation, data: st.DataObject) -> Request:
    filled = operation.path.replace("<app>", "timely")
    path = re.sub(r"<[^>]+>", lambda match: urllib.parse.quote(data.draw(_SEGMENTS), safe=""), filled)
    ranged = {"Range": data.draw(_RANGES)} if data.draw(st.booleans()) else {}
    options: dict[str, Any] = {"headers": ranged | data.draw(_HEADERS)}
    options |= {"query_string": data.draw(st.dictionaries(st.sampled_from(_QUERIES), st.sampled_from(_VALUES), max_size=2))}
    who = data.draw(st.sampled_from(["owner", "admin", "viewer"]))
    return Request(who, path, data.draw(published.bodies(published.link_of(operation))), options)


def _ask(api: Api, operation: Operation, request: Request) -> None:
    if api.get("/apps/timely").status_code == 404:  # an example before has destroyed or renamed it
        assert api.post("/apps", {"name": "timely"}).status_code == 201
        give_code(api.get("/apps/timely").json["id"])
    answer = api.call(operation.method, request.path, request.sent, as_=request.who, **request.options)
    if answer.status_code >= 500:
        assert answer.json["id"] in ("unavailable", "not_implemented", "too_many_streams"), (operation, request, answer.text)
    answer.close()


@given(st.binary(max_size=200))
def test_no_bytes_make_the_body_parser_crash(raw: bytes) -> None:
    try:
        body.parse(raw)
    except DavitError as error:
        assert error.status == 400


_KINDS: list[fields.Field] = [
    fields.Text(), fields.Text(needed=True, most=3), fields.Flag(), fields.Whole(least=1, most=9), fields.Count(), fields.Texts(),
    fields.Reference(), fields.Reference(number=True), fields.Items(of=fields.Reference(), most=2), fields.Setting(),
    fields.Object(fields=fields.Fields(id=fields.Text(needed=True)), short=True), fields.Items(of=fields.Object(fields=fields.NONE)),
]  # fmt: skip


@given(published.JUNK)
def test_no_json_makes_a_field_crash_and_what_is_taken_is_what_was_published(value: Any) -> None:
    sent = json.loads(json.dumps(value))
    for kind in _KINDS:
        declared = fields.Fields(x=kind)
        said = jsonschema.Draft4Validator(declared.schema())
        try:
            declared.read({"x": sent})
        except DavitError as error:
            assert error.status == 422
            assert "x" in error.message
        else:
            assert isinstance(kind, fields.Count) or said.is_valid({"x": sent} if sent is not None else {}), (kind, sent)
