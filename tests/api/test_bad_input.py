"""Bad input: every row of docs/errors.md about what a client sends, and that nothing has changed afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from api import body, limits
from builder import manifest, setup
from foundation.settings import settings
from state import accounts, db, throttle
from state.models import Account
from tests.api import published
from tests.api.conftest import Api, give_code
from tests.e2e.errors_page import assert_says

HOSTILE = [
    "'; DROP TABLE apps; --", '" OR "1"="1', "$(reboot)", "`id`", "a;b|c&d", "../../etc/passwd", "..%2f..%2fetc", "%00", "\u202egnp.exe",
    "a\nb", "\ud83d\ude80", "x" * 5000, "{{7*7}}", "<script>", "\x1b[31m", "~", ".", "..", "-1",
]  # fmt: skip


@pytest.fixture
def api(api: Api) -> Iterator[Api]:
    throttle.passwords.forget()
    throttle.codes.forget()
    before = api.get("/apps/timely").json
    yield api
    assert api.get("/apps/timely", as_="admin").json == before, "nothing has changed"


def _refused(answer: Any, row: str, status: int = 422) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json) <= {"id", "message", "url", "app", "resource"}
    assert_says(row, answer.json["message"])


@pytest.mark.row("body-malformed", "body-too-large")
def test_a_body_that_cannot_be_read(api: Api) -> None:
    for sent in (b"{", b"[]", b'"x"', b"\xff\xfe", b'{"name": "\\udc00"}', b"[" * 50_000, b"name=x"):
        _refused(api.call("POST", "/apps", data=sent), "body-malformed", 400)
    _refused(api.call("POST", "/apps", data=b" " * (body.LIMIT + 1)), "body-too-large", 413)


@pytest.mark.row("field-wrong", "field-missing")
def test_a_field_of_the_wrong_kind_or_none(api: Api) -> None:
    for method, path, sent in (
        ("POST", "/apps", {"name": 5}), ("PATCH", "/apps/timely", {"maintenance": "perhaps"}),
        ("PUT", "/apps/timely/buildpack-installations", {"updates": {}}), ("POST", "/oauth/authorizations", {"expires_in": "soon"}),
        ("PATCH", "/account", {"name": "x" * 101}), ("POST", "/apps/timely/webhooks", {"url": ["x"]}),
    ):  # fmt: skip
        _refused(api.call(method, path, sent), "field-wrong")
    for path in ("/apps/timely/domains", "/account/keys", "/pipelines", "/oauth/clients"):
        _refused(api.post(path, {}), "field-missing")


@pytest.mark.row("buildpack-unknown")
@pytest.mark.parametrize("url", published.UNREADABLE)
def test_a_url_that_cannot_be_read(api: Api, url: str) -> None:
    for path in ("/apps/timely/builds", "/app-setups"):
        answer = api.post(path, {"source_blob": {"url": url}})
        assert (answer.status_code, "source_blob.url" in answer.json["message"]) == (422, True), answer.text
    for method, path, sent in (
        ("PUT", "/apps/timely/buildpack-installations", {"updates": [{"buildpack": url}]}),
        ("POST", "/apps/timely/builds", {"source_blob": {"url": "https://example.com/x.tgz"}, "buildpacks": [{"url": url}]}),
        ("POST", "/app-setups", {"source_blob": {"url": "https://example.com/x.tgz"}, "overrides": {"buildpacks": [{"url": url}]}}),
    ):  # fmt: skip
        _refused(api.call(method, path, sent), "buildpack-unknown")
    for answer in (
        api.put("/apps/timely/buildpack-installations", {"updates": [{"buildpack": "file://["}]}, as_="admin"),
        api.post("/apps/timely/webhooks", {"url": url, "include": ["api:app"], "level": "notify"}),
        api.post("/apps/timely/log-drains", {"url": url}), api.post("/oauth/clients", {"name": "x", "redirect_uri": url}),
    ):  # fmt: skip
        assert answer.status_code == 422, answer.text


@pytest.mark.row("field-unknown")
def test_a_field_that_nobody_knows_is_told(api: Api) -> None:
    made = api.post("/apps", {"name": "fresh-app", "stcak": "heroku-24", "silent": True, "nothing": None})
    assert made.status_code == 201
    assert_says("field-unknown", made.headers["Warning-Message"])
    assert "stcak" in made.headers["Warning-Message"]
    for wish in ({"internal_routing": True}, {"locked": True}, {"feature_flags": "x"}):
        assert next(iter(wish)) in api.post("/apps", wish).headers["Warning-Message"], "nobody takes the app for one that is internal"
    assert "Warning-Message" not in api.post("/apps", {"internal_routing": False, "locked": False}).headers
    within = api.post("/pipelines", {"name": "the-line", "owner": {"tpye": "user", "type": "user"}})
    assert "Field owner.tpye is" in within.headers["Warning-Message"]
    blob, packs = {"url": "https://example.com/x.tgz", "version": "v1"}, [{"url": "heroku/python"}, {"ulr": "x", "url": "heroku/nodejs"}]
    assert "buildpacks[1].ulr" in api.post("/apps/timely/builds", {"source_blob": blob, "buildpacks": packs}).headers["Warning-Message"]
    described = api.post("/apps/timely/builds", {"source_blob": {**blob, "version_description": "x"}})
    assert "version_description" in described.headers["Warning-Message"] and not described.json["source_blob"]["version_description"]
    odd = api.post("/apps", {"name": "other-app", "a\r\nSet-Cookie: x": "1"})
    assert odd.status_code == 201 and "Cookie" not in odd.headers["Warning-Message"]
    assert "Warning-Message" not in api.patch("/apps/timely/config-vars", {}).headers


@pytest.mark.row("control-characters", "identity-unknown")
@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_that_is_an_attack_is_only_a_name(api: Api, text: str) -> None:
    from urllib.parse import quote

    place = quote(text.encode(errors="replace").decode(), safe="")
    for path in (f"/apps/{place}", f"/apps/timely/releases/{place}", f"/apps/timely/domains/{place}", f"/pipelines/{place}", f"/account/keys/{place}"):
        answer = api.get(path)
        if answer.status_code in (200, 308):  # ~ and . mean something in a path; what they lead to is one's own
            continue
        assert answer.status_code in (404, 501), (path, answer.text)  # with a slash in it, it is a path of its own
    _refused(api.get("/apps/no-such-app"), "identity-unknown", 404)
    _refused(api.get("/apps/a%00b"), "control-characters", 404)
    for path, sent in (
        ("/apps", {"name": text}), ("/apps/timely/domains", {"hostname": text}), ("/pipelines", {"name": text}),
        ("/davit/accounts", {"email": text}),
    ):  # fmt: skip
        answer = api.post(path, sent, as_="admin")
        assert answer.status_code in (400, 422), (path, answer.text)
    _refused(api.patch("/account", {"name": "a\x00b"}), "control-characters")
    _refused(api.post("/apps", {"name": text[:100] + "\n"}), "control-characters")


@pytest.mark.row("control-characters")
@pytest.mark.parametrize("text", ["x\nRelease v9 created by user boss@example.com", "a\rb", "\x1b[31m", "\u202egnp", "a\u2028b", "a\x85b"])
def test_what_stands_in_other_peoples_lists_and_logs_is_one_line_that_steers_nothing(api: Api, text: str) -> None:
    blob = {"url": "https://example.com/x.tgz", "version": text}
    for method, path, sent in (
        ("POST", "/apps/timely/releases", {"slug": "x", "description": text}),
        ("POST", "/apps/timely/slugs", {"process_types": {"web": "x"}, "commit": text}),
        ("POST", "/apps/timely/slugs", {"process_types": {"web": "x"}, "buildpack_provided_description": text}),
        ("POST", "/apps/timely/builds", {"source_blob": blob}), ("POST", "/app-setups", {"source_blob": blob}),
        ("PATCH", "/account", {"name": text}), ("POST", "/davit/accounts", {"email": "new@example.com", "name": text}),
        ("POST", "/oauth/clients", {"name": text, "redirect_uri": "https://example.com/"}), ("POST", "/auth", {"description": text}),
        ("PATCH", "/oauth/clients/x", {"name": text}), ("PATCH", "/oauth/authorizations/x", {"description": text}),
        ("POST", "/oauth/authorizations", {"description": text}),
    ):  # fmt: skip
        _refused(api.call(method, path, sent, as_="admin"), "control-characters")
    for name in ("Zo\xeb \U0001f469\u200d\U0001f680", "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627"):
        assert api.patch("/account", {"name": name}).json["name"] == name


@pytest.mark.row("range-unreadable")
@pytest.mark.parametrize("header", ["name ..; max=x", "name ..; max=0", "version x..", "name a b c..", "version ..; max=-1"])
def test_a_range_that_cannot_be(api: Api, header: str) -> None:
    _refused(api.get("/apps/timely/releases", headers={"Range": header.replace("name", "version")}), "range-unreadable", 416)


@pytest.mark.row("token-dead", "token-scope")
def test_a_token_that_is_dead_or_for_less(api: Api) -> None:
    from datetime import timedelta

    with db.transaction() as session:
        account = session.query(Account).filter_by(email="owner@example.com").one()
        expired, _ = accounts.issue_token(session, account, "old", lifetime=timedelta(seconds=-1))
    taken = api.post("/oauth/authorizations").json
    api.delete(f"/oauth/authorizations/{taken['id']}")
    for dead in (expired, taken["access_token"]["token"], "davit-" + "A" * 43, "HRKU-01234567-89ab-cdef-0123-456789abcdef", "x" * 5000):
        _refused(api.get("/account", as_=dead), "token-dead", 401)
    _refused(api.get("/account", as_=None), "token-dead", 401)
    narrow = api.post("/oauth/authorizations", {"scope": ["read"]}).json["access_token"]["token"]
    _refused(api.get("/apps/timely/config-vars", as_=narrow), "token-scope", 403)
    _refused(api.patch("/apps/timely", {"maintenance": True}, as_=narrow), "token-scope", 403)


@pytest.mark.row("two-factor-missing", "guessing", "guarded")
def test_a_code_that_is_missing_wrong_or_guessed(api: Api) -> None:
    import base64
    import time

    from cryptography.hazmat.primitives.hashes import SHA1
    from cryptography.hazmat.primitives.twofactor.totp import TOTP

    password = "correct horse battery"
    api.patch("/account", {"password": password})
    secret = api.post("/account/two-factor", {"password": password}).json["secret"]
    code = TOTP(base64.b32decode(secret), 6, SHA1(), 30).generate(int(time.time())).decode()
    assert api.post("/account/two-factor/actions/confirm", {"code": code}).status_code == 200
    who = ("owner@example.com", password)
    _refused(api.post("/oauth/authorizations", as_=None, auth=who), "two-factor-missing", 403)
    _refused(api.post("/oauth/authorizations", as_=None, auth=who, headers={"Heroku-Two-Factor-Code": code}), "two-factor-missing", 403)
    assert api.patch("/apps/timely/features/two-factor-guard", {"enabled": True}).status_code == 200
    _refused(api.delete("/apps/timely", as_="admin"), "guarded", 403)
    for _ in range(throttle.codes.most):
        api.post("/oauth/authorizations", as_=None, auth=who, headers={"Heroku-Two-Factor-Code": "1"})
    _refused(api.post("/oauth/authorizations", as_=None, auth=who, headers={"Heroku-Two-Factor-Code": "1"}), "guessing", 429)
    for _ in range(throttle.passwords.most):
        api.post("/oauth/authorizations", as_=None, auth=("nobody@example.com", "wrong"))
    _refused(api.post("/oauth/authorizations", as_=None, auth=("nobody@example.com", "wrong")), "guessing", 429)


@pytest.mark.row("calls-exhausted")
def test_calls_that_are_used_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "buckets", limits.Buckets(lambda: 0.0))
    monkeypatch.setenv("DAVIT_RATE_LIMIT", "1")
    settings.cache_clear()
    assert api.get("/account").status_code == 200
    _refused(api.get("/account"), "calls-exhausted", 429)


@pytest.mark.row("permission-lacking")
def test_a_permission_that_is_lacking(api: Api) -> None:
    _refused(api.patch("/apps/timely", {"name": "stolen"}, as_="operator"), "permission-lacking", 403)
    _refused(api.patch("/apps/timely/config-vars", {"A": "1"}, as_="viewer"), "permission-lacking", 403)


@pytest.mark.row("webhook-refused", "webhook-invalid")
def test_a_webhook_that_must_not_be(api: Api) -> None:
    sent: dict[str, Any] = {"include": ["api:app"], "level": "sync"}
    for url in ("http://127.0.0.1:5000/", "https://localhost/", "http://192.168.1.1/", "http://[::1]/"):
        _refused(api.post("/apps/timely/webhooks", {**sent, "url": url}), "webhook-refused")
    for change in ({"url": "gopher://x"}, {"include": ["x"]}, {"level": "x"}):
        _refused(api.post("/apps/timely/webhooks", {**sent, "url": "https://example.com/", **change}), "webhook-invalid")


@pytest.mark.row("setup-manifest", "setup-source")
def test_a_setup_that_cannot_be(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def failure(content: bytes | None, problem: str = "") -> str:
        def fetch(url: str) -> bytes | None:
            if problem:
                raise manifest.BadSource(problem)
            return content

        monkeypatch.setattr(manifest, "app_json", fetch)
        id = api.post("/app-setups", {"source_blob": {"url": "https://203.0.113.9/x.tgz"}}).json["id"]
        setup.step(id)
        row = api.get(f"/app-setups/{id}").json
        assert (row["status"], row["build"]) == ("failed", None)
        return " ".join([row["failure_message"], *row["manifest_errors"]])

    for content in (b'{"env": {"A": {}}}', b'{"addons": ["x"]}', b'{"env": []}'):
        assert_says("setup-manifest", failure(content))
    assert_says("setup-source", failure(None, "The source cannot be fetched: https://203.0.113.9 answered with status 404."))


@pytest.mark.row("promotion-impossible", "not-served")
def test_a_promotion_of_nothing_and_what_davit_does_not_have(api: Api) -> None:
    api.post("/pipelines", {"name": "the-line"})
    api.post("/pipeline-couplings", {"pipeline": "the-line", "app": "timely", "stage": "staging"})
    api.post("/apps", {"name": "outside"})
    sent = {"pipeline": {"id": "the-line"}, "source": {"app": "timely"}, "targets": [{"app": "outside"}]}
    _refused(api.post("/pipeline-promotions", sent), "promotion-impossible")
    give_code_to = api.get("/apps/outside").json["id"]
    give_code(give_code_to)
    for method, path in (
        ("POST", "/apps/timely/addons"), ("POST", "/addon-attachments"), ("POST", "/actions/addons/resolve"), ("GET", "/addon-services"),
        ("POST", "/teams"), ("POST", "/spaces"), ("POST", "/test-runs"), ("GET", "/apps/timely/oci-images/x"),
    ):  # fmt: skip
        _refused(api.call(method, path, {} if method == "POST" else None), "not-served", 501)


def test_answers_are_compressed_for_who_takes_that(api: Api) -> None:
    plain = api.get("/dyno-sizes")
    squeezed = api.get("/dyno-sizes", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert squeezed.headers["Content-Encoding"] == "gzip" and len(squeezed.data) < len(plain.data) / 2
    assert "Accept-Encoding" in squeezed.headers["Vary"]
    import gzip

    assert gzip.decompress(squeezed.data) == plain.data
    assert "Content-Encoding" not in api.get("/account/rate-limits", headers={"Accept-Encoding": "gzip"}).headers


@pytest.mark.row("exec-nowhere")
def test_an_exec_where_there_is_no_ssh(api: Api) -> None:
    answer = api.put("/api/v2/web.1", {"client_key": "ssh-rsa AAAA"}, as_=None, auth=("timely", api.people.owner))
    _refused(answer, "exec-nowhere", 501)
    assert api.get("/api/v2", as_=None, auth=("timely", api.people.owner)).json == []
