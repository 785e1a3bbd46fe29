"""What holds for every answer, and input that is hostile."""

from __future__ import annotations

import json
import re
import string
import urllib.parse
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from api import body
from api.routing import Operation, Resource
from api.web import RESOURCES
from foundation.errors import DavitError
from state import db
from tests.api.conftest import Api, give_code


@pytest.mark.parametrize(
    "sent", [b"{", b"[]", b"null", b'"x"', b"5", b"\xff", b'{"name": NaN}', b'{"name": "\\ud800"}', b"[" * 100_000, b"1" * 5000]
)
def test_a_body_that_is_no_json_object_is_refused(api: Api, sent: bytes) -> None:
    answer = api.call("POST", "/apps", data=sent)
    assert (answer.status_code, answer.json["id"]) == (400, "bad_request")


def test_a_body_that_is_too_large_is_refused(api: Api) -> None:
    answer = api.call("POST", "/apps", data=b" " * (body.LIMIT + 1))
    assert (answer.status_code, answer.json["id"]) == (413, "request_entity_too_large")


def test_unknown_endpoints_answer_in_the_error_form(api: Api) -> None:
    assert (api.get("/nothing").status_code, api.get("/nothing").json["id"]) == (404, "not_found")
    assert api.get("/apps/timely/oci-images").json["id"] == "not_implemented"
    assert api.post("/review-apps", {}).status_code == 501
    assert api.delete("/").status_code == 405
    assert api.get("/apps/a%00b").status_code == 404


def test_a_crash_is_told_without_its_details(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.config.read", lambda app: 1 / 0)
    answer = api.get("/apps/timely/config-vars")
    assert (answer.status_code, answer.json["id"]) == (500, "internal_error")
    assert "ZeroDivision" not in answer.text


def test_request_ids_are_echoed_and_extended(api: Api) -> None:
    assert api.get("/account", headers={"Request-Id": "mine-1"}).headers["Request-Id"].startswith("mine-1,")
    assert re.fullmatch(r"[0-9a-f-]{36}", api.get("/account", headers={"Request-Id": "ev il<"}).headers["Request-Id"])


def test_an_unchanged_answer_is_not_sent_again(api: Api) -> None:
    first = api.get("/apps/timely")
    again = api.get("/apps/timely", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    api.patch("/apps/timely", {"maintenance": True})
    assert api.get("/apps/timely", headers={"If-None-Match": first.headers["ETag"]}).status_code == 200


def test_what_may_hold_secrets_is_not_kept_by_caches(api: Api) -> None:
    assert api.post("/oauth/authorizations").headers["Cache-Control"] == "no-store"
    assert "private" in api.get("/apps/timely/config-vars").headers["Cache-Control"]


@pytest.mark.parametrize(
    "path", ["/apps", "/users/~/apps", "/apps/timely/releases", "/apps/timely/builds", "/apps/timely/collaborators"]
)
def test_a_list_takes_as_many_queries_for_many_as_for_one(api: Api, path: str) -> None:
    def queries() -> int:
        seen: list[str] = []
        listener = lambda conn, cursor, statement, *rest: seen.append(statement)  # noqa: E731
        event.listen(db.engine(), "before_cursor_execute", listener)
        try:
            assert api.get(path).status_code == 200
        finally:
            event.remove(db.engine(), "before_cursor_execute", listener)
        return len(seen)

    few = queries()
    for n in range(5):
        api.post("/apps", {"name": f"app-{n:03}"})
        api.patch("/apps/timely/config-vars", {"N": str(n)})
        api.post("/davit/accounts", {"email": f"{n}@example.com"}, as_="admin")
        api.post("/apps/timely/collaborators", {"user": f"{n}@example.com"})
    assert queries() == few


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = (
    "name region stack maintenance build_stack updates type quantity size dyno_size hostname release slug description command "
    "attach env time_to_live force_no_tty user permissions public_key scope expires_in lines tail source dyno source_blob "
    "buildpacks password email A"
).split()
_WORTH = _JSON | st.sampled_from(["timely", "web", "v1", "+1", "true", "~", "\x00", "a" * 300, 2**70, -1])
_BODIES = st.dictionaries(st.sampled_from(_FIELDS), _WORTH, max_size=4)
_SEGMENTS = st.text(max_size=12) | st.sampled_from(["timely", "web", "web.1", "v1", "1", "~", "none", "%00", "9" * 30])
_LINE = "".join(c for c in string.printable if c not in "\n\r\x0b\x0c")
_RANGES = st.text(_LINE, max_size=40) | st.builds(
    "{} {}..{}; max={}, order={}".format,
    st.sampled_from(["version", "name", "id", "created_at", "hostname"]),
    st.sampled_from(["", "]a", "1", "]9" + "9" * 40, "2026"]),
    st.sampled_from(["", "z", "-5", "2026-11-24T00:00:00Z"]),
    st.sampled_from(["1", "0", "x", "5000"]),
    st.sampled_from(["asc", "desc", ""]),
)


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.name)
def test_no_input_makes_it_crash(api: Api, resource: Resource) -> None:
    for operation in resource.operations:
        _try(api, operation)


def _try(api: Api, operation: Operation) -> None:
    @settings(
        max_examples=4, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(data=st.data())
    def no_input_makes_it_crash(data: st.DataObject) -> None:
        _ask(api, operation, data)

    no_input_makes_it_crash()


def _ask(api: Api, operation: Operation, data: st.DataObject) -> None:
    if api.get("/apps/timely").status_code == 404:  # an example before has destroyed or renamed it
        assert api.post("/apps", {"name": "timely"}).status_code == 201
        give_code(api.get("/apps/timely").json["id"])
    filled = operation.path.replace("<app>", "timely")
    path = re.sub(r"<[^>]+>", lambda match: urllib.parse.quote(data.draw(_SEGMENTS), safe=""), filled)
    options: dict[str, Any] = {"headers": {"Range": data.draw(_RANGES)}} if data.draw(st.booleans()) else {}
    who = data.draw(st.sampled_from(["owner", "admin", "viewer"]))
    answer = api.call(operation.method, path, data.draw(_BODIES), as_=who, **options)
    if answer.status_code >= 500:
        assert answer.json["id"] in ("unavailable", "not_implemented", "too_many_streams"), (operation, path, answer.text)
    answer.close()


@given(st.binary(max_size=200))
def test_no_bytes_make_the_body_parser_crash(raw: bytes) -> None:
    try:
        body.parse(raw)
    except DavitError as error:
        assert error.status == 400


@given(_JSON)
def test_no_json_makes_the_field_readers_crash(value: Any) -> None:
    fields = body.Body({"x": json.loads(json.dumps(value))})
    readers: list[Any] = [fields.text, fields.need, fields.flag, fields.items, fields.objects, fields.texts, fields.reference]
    for read in readers:
        try:
            read("x")
        except DavitError as error:
            assert error.status == 422
            assert "x" in error.message
