"""What happened to an app, and how lists are cut by Range."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import pytest

from api import ranges
from api.routing import Operation
from api.web import operations
from state import builds, commands, crashes, db
from state.models import App, Dyno
from tests.api.conftest import Api, give_code


def _crash(api: Api, dyno: str, status: int | None, why: str = "") -> None:
    with db.transaction() as session:
        app = session.get(App, api.app_id)
        assert app is not None
        row = Dyno(app_id=app.id, name=dyno, type="web", size="basic", command="x", release_version=7, one_off=False, state="crashed")
        crashes.record(session, row, status, why)


def test_crashes_are_listed_newest_first_with_how_they_ended(either_api: Api) -> None:
    api = either_api
    assert api.get("/apps/timely/crashes").json == []
    _crash(api, "web.1", 137)
    _crash(api, "worker.1", None, "Davit lost sight of it.")
    _crash(api, "web.1", 1)
    rows = api.get("/apps/timely/crashes", as_="viewer").json
    assert [(row["dyno"]["name"], row["release"]["version"], row["exit_status"], row["reason"]) for row in rows] == [
        ("web.1", 7, 1, None), ("worker.1", 7, None, "Davit lost sight of it."), ("web.1", 7, 137, None),
    ]  # fmt: skip
    assert rows[2]["description"] == "web.1 of v7 crashed with status 137 (SIGKILL)"
    first = api.get("/apps/timely/crashes", headers={"Range": "created_at ..; max=2, order=desc"})
    rest = api.get("/apps/timely/crashes", headers={"Range": first.headers["Next-Range"]})
    assert (first.status_code, rest.status_code, first.json + rest.json) == (206, 200, rows)


def test_the_activity_tells_what_people_did_and_what_became_of_it(either_api: Api) -> None:
    api = either_api
    give_code(api.app_id)
    api.patch("/apps/timely", {"maintenance": True}, as_="operator")
    _crash(api, "web.1", 1)
    crash, change, *_ = api.get("/apps/timely/activity", as_="viewer").json
    assert (crash["kind"], crash["dyno"], crash["actor"], crash["times"]) == ("crash", {"name": "web.1"}, "davit", 1)
    assert change["actor"] == "operator@example.com" and "aintenance" in change["description"]
    told = {row["description"]: row for row in api.get("/apps/timely/activity").json}
    assert told["v2: Deploy 1234567"]["release"] == {"version": 2} and told["v2: Deploy 1234567"]["status"] == "succeeded"
    assert len(api.get("/apps/timely/activity", headers={"Range": "created_at ..; max=1"}).json) == 1


def test_files_that_somebody_reads_of_a_dyno_are_one_line_and_push_nothing_out(either_api: Api) -> None:
    api = either_api
    api.patch("/apps/timely", {"maintenance": True}, as_="operator")
    before = [row["description"] for row in api.get("/apps/timely/activity").json]
    owner = api.get("/account").json["id"]
    dyno = Dyno(app_id=api.app_id, name="web.1")
    with db.transaction() as session:
        for _ in range(300):
            commands.entered(session, owner, dyno, "", files=True)
    first, *rest = api.get("/apps/timely/activity").json
    assert first["description"] == "Read files of web.1" and first["times"] == 200 and first["dyno"] == {"name": "web.1"}
    assert [row["description"] for row in rest] == before


# Every list is cut by Range

_OURS = ("/buildpacks", "/api/v2")
"""Other services' lists, which know no Range."""
_PLACES = {"app": "timely", "user": "~", "pipeline": "the-line", "promotion": "none"}


def _lists() -> list[Operation]:
    every = [one for one in operations() if one.method == "GET" and one.gives.many and not one.path.startswith(_OURS)]
    every = [one for one in every if one.path != "/apps/<app>/dyno-usage"]  # the runtime's word, which is not here
    return [one for one in every if "addon" not in one.path and one.path not in ("/teams", "/spaces") and "<promotion>" not in one.path]


def _build(api: Api) -> None:
    """Each begun in the same instant."""
    with db.transaction() as session:
        app = session.get_one(App, api.app_id)
        builds.create(session, app, app.owner, commit="ab" * 20).created_at = datetime(2026, 11, 24, tzinfo=timezone.utc)


def _fill(api: Api) -> None:
    give_code(api.app_id)
    api.post("/apps", {"name": "another"})
    for name in ("the-line", "the-other"):
        api.post("/pipelines", {"name": name})
        api.post("/oauth/clients", {"name": "An editor", "redirect_uri": "https://example.com/back"})
        api.post("/oauth/authorizations", {"description": name})
    for app in ("timely", "another"):
        api.post("/pipeline-couplings", {"pipeline": "the-line", "app": app, "stage": "staging"})
        api.post("/account/app-transfers", {"app": app, "recipient": "stranger@example.com"})
    for email in ("a,b@example.com", "a;c@example.com", "a;d%3B@x..y.", "é~ü@example.com"):
        api.post("/davit/accounts", {"email": email}, as_="admin")
        assert api.post("/apps/timely/collaborators", {"user": email}).status_code == 201
    for n in range(2):
        api.post("/apps/timely/log-drains", {"url": f"syslog://203.0.113.9:{n + 1}"})
        api.post("/apps/timely/webhooks", {"url": f"https://203.0.113.9/{n}", "include": ["api:release"], "level": "notify"})
        api.patch("/apps/timely/config-vars", {"N": str(n)})
        _crash(api, "web.1", n)
        _build(api)
        api.post("/apps/timely/domains", {"hostname": f"www{n}.example.com"})
    api.put("/apps/timely/buildpack-installations", {"updates": [{"buildpack": "heroku/python"}, {"buildpack": "heroku/nodejs"}]})


def test_every_list_comes_piece_by_piece_as_it_comes_whole(either_api: Api) -> None:
    """No matter how many items have the same name or were made in the same instant."""
    api = either_api
    _fill(api)
    cut = 0
    for operation in _lists():
        path = re.sub(r"<([^>]+)>", lambda match: _PLACES.get(match[1], "none"), operation.path)
        told = api.get(path, as_="admin")
        assert "Accept-Ranges" in told.headers, path
        attribute = told.headers["Accept-Ranges"].split(",")[0]
        for order in ("asc", "desc"):
            whole = api.get(path, as_="admin", headers={"Range": f"{attribute} ..; order={order}"})
            pieces: list[object] = []
            header: str | None = f"{attribute} ..; max=1, order={order}"
            while header and len(pieces) <= len(whole.json):
                answer = api.get(path, as_="admin", headers={"Range": header})
                assert answer.status_code in (200, 206) and len(answer.json) <= 1, (path, header, answer.text)
                pieces += answer.json
                header = answer.headers.get("Next-Range")
            assert len(pieces) == len(whole.json), (path, order)
            assert path == "/davit/hosts" or pieces == whole.json, (path, order)
            cut += len(pieces) > 1
    assert cut > 30


@pytest.mark.parametrize(("bound", "status"), [("2026-01-01", 200), ("]2026-01-01T00:00:00Z", 200), ("~", 416), ("]yesterday", 416)])
def test_a_moment_without_an_id_is_a_bound_of_a_list_by_age(api: Api, bound: str, status: int) -> None:
    api.post("/apps/timely/webhooks", {"url": "https://203.0.113.9/", "include": ["api:release"], "level": "notify"})
    answer = api.get("/apps/timely/webhooks", headers={"Range": f"created_at {bound}..; max=5"})
    assert answer.status_code == status, answer.text
    assert status == 416 or len(answer.json) == 1


def test_a_bound_takes_all_that_are_alike_or_those_behind_one_of_them() -> None:
    order = ranges.Order({"name": lambda row: row}, {"name": ranges.Tied(str)})
    rows = [("a", "1" * 36), ("a", "2" * 36), ("b", "3" * 36)]

    def cut(header: str) -> list[str]:
        return [id[0] for _, id in ranges.cut(rows, order, ranges.parse(header, order)).items]

    assert (cut("name a.."), cut("name ]a.."), cut("name ..a")) == (["1", "2", "3"], ["3"], ["1", "2"])
    assert cut(f"name ]a~{'1' * 36}..") == ["2", "3"]
    assert (cut("name a..; order=desc"), cut("name ]b..; order=desc")) == (["2", "1"], ["2", "1"])
    assert (cut("name ..b; order=desc"), cut(f"name ]a~{'2' * 36}..; order=desc")) == (["3"], ["1"])


def test_what_the_next_range_says_is_taken_where_an_end_was_given() -> None:
    rows = [("a", "1" * 36), ("a", "2" * 36), ("b", "3" * 36), ("c", "4" * 36)]
    order = ranges.Order({"name": lambda row: row}, {"name": ranges.Tied(str)})
    for header, expected in (("name ..b; max=1", "123"), ("name ..b; max=1, order=desc", "43"), ("name ..a; max=1", "12")):
        seen: list[str] = []
        while header:
            window = ranges.parse(header, order)
            page = ranges.cut(rows, order, window)
            seen += [id[0] for _, id in page.items]
            header = ranges.headers(page, order, window).get("Next-Range", "")
        assert "".join(seen) == expected
