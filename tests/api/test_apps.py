"""Apps over the API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from state import db, releases
from state.models import AuditEvent, Release
from tests.api.conftest import Api, Neighbour, give_code


def test_an_app_is_created_shown_renamed_and_destroyed(either_api: Api) -> None:
    api = either_api
    created = api.post("/apps", {"name": "example", "region": "us", "stack": "heroku-24"})
    assert created.status_code == 201
    assert created.json["name"] == "example"
    assert created.json["owner"]["email"] == "owner@example.com"
    assert created.json["stack"]["name"] == "davit-13"
    assert created.json["git_url"].endswith("/example.git")
    assert created.json["web_url"].startswith("http://example.localhost")
    assert api.get("/apps/example?extended=true").json == api.get(f"/apps/{created.json['id']}").json
    assert api.patch("/apps/example", {"name": "other"}).json["name"] == "other"
    assert api.get("/apps/example").status_code == 404
    assert api.delete("/apps/other").status_code == 200
    assert api.get("/apps/other").json == {
        "id": "not_found", "message": "Couldn't find that app.", "resource": "app", "url": "http://localhost/errors/not_found",
    }  # fmt: skip


def test_an_app_without_a_name_gets_one(api: Api) -> None:
    assert api.post("/apps").json["name"]
    assert api.post("/apps", {}).json["name"]


@pytest.mark.parametrize("name", ["A", "ab", "-ab", "x" * 31, "with space", "api", "a\x00b", "über", ""])
def test_an_invalid_name_is_refused_with_a_sentence(api: Api, name: str) -> None:
    answer = api.post("/apps", {"name": name})
    assert answer.status_code == 422
    assert answer.json["id"] == "invalid_params"
    assert answer.json["message"].endswith((".", "character."))


def test_a_taken_name_is_refused(api: Api) -> None:
    answer = api.post("/apps", {"name": "timely"}, as_="stranger")
    assert (answer.status_code, answer.json["message"]) == (422, "Name timely is already taken.")


def test_unknown_regions_and_stacks_are_refused(api: Api) -> None:
    assert "region" in api.post("/apps", {"region": "mars"}).json["message"]
    assert "stack" in api.post("/apps", {"stack": "windows"}).json["message"]
    assert api.post("/apps", {"stack": {"name": "davit-13"}}).status_code == 201


def test_maintenance_goes_on_and_off(api: Api) -> None:
    assert api.patch("/apps/timely", {"maintenance": True}, as_="operator").json["maintenance"] is True
    assert api.patch("/apps/timely", {"maintenance": "false"}).json["maintenance"] is False
    assert api.patch("/apps/timely", {"maintenance": "maybe"}).status_code == 422


def test_an_app_says_whether_it_sleeps(api: Api) -> None:
    for shown in (api.get("/apps/timely"), api.patch("/apps/timely", {"sleep": "on"})):
        assert shown.json["sleeps"] == "it never sleeps, for it has no web dynos"
    assert [app["sleeps"] for app in api.get("/apps").json] == [None], "nobody looks that up for a list"
    assert api.patch("/apps/timely", {"sleep": "off"}).json["sleeps"] == "it stays awake"


def test_renaming_takes_the_permission_to_manage(api: Api) -> None:
    assert api.patch("/apps/timely", {"name": "other"}, as_="operator").status_code == 403
    assert api.patch("/apps/timely", {"name": "other"}, as_="manager").status_code == 200


def test_lists_show_what_the_caller_may_see(either_api: Api) -> None:
    api = either_api
    assert [app["name"] for app in api.get("/apps").json] == ["timely"]
    assert [app["name"] for app in api.get("/users/~/apps", as_="viewer").json] == ["timely"]
    assert api.get("/apps", as_="stranger").json == []
    assert [app["name"] for app in api.get("/apps", as_="admin").json] == ["timely"]
    assert api.get("/users/~/apps", as_="admin").json == []


def test_lists_come_in_pages(either_api: Api) -> None:
    api = either_api
    names = sorted(["timely", *(api.post("/apps", {"name": f"app-{n:03}"}).json["name"] for n in range(7))])
    for order, expected in (("", names), ("order=desc", names[::-1])):
        seen, header = [], f"name ..; max=3, {order}"
        while header:
            answer = api.get("/apps", headers={"Range": header})
            seen += [app["name"] for app in answer.json]
            header = answer.headers.get("Next-Range")
            assert answer.status_code == (206 if header else 200)
            assert answer.headers["Content-Range"].startswith("name ")
        assert seen == expected


@pytest.mark.parametrize("header", ["", "id ..; ;", "bytes=0-10", "nonsense", "name app..; max=1000;", ";;;", "name a..z"])
def test_ranges_are_read_leniently(api: Api, header: str) -> None:
    answer = api.get("/apps", headers={"Range": header})
    assert answer.status_code == 200
    assert len(answer.json) == (0 if header == "nothing" else 1)


@pytest.mark.parametrize("header", ["version a..", "version ..; max=0", "version ..; max=x", "version ..; max=-1"])
def test_an_impossible_range_is_refused(api: Api, header: str) -> None:
    assert api.get("/apps/timely/releases", headers={"Range": header}).status_code == 416


def test_config_vars_are_set_read_and_unset(either_api: Api) -> None:
    api = either_api
    assert api.patch("/apps/timely/config-vars", {"A": "1", "B": "zwei"}).json == {"A": "1", "B": "zwei"}
    assert api.patch("/apps/timely/config-vars", {"A": None}).json == {"B": "zwei"}
    assert api.get("/apps/timely/config-vars").json == {"B": "zwei"}
    assert api.get("/apps/timely/releases/2/config-vars").json == {"A": "1", "B": "zwei"}
    assert [r["version"] for r in api.get("/apps/timely/releases").json] == [1, 2, 3]


@pytest.mark.parametrize(
    "sent", [{"A": 1}, {"A": ["x"]}, {"1A": "x"}, {"A B": "x"}, {"A": "x\x00"}, {"PORT": "1"}, {"A": "x" * 70000}]
)
def test_config_vars_that_cannot_be_are_refused(api: Api, sent: object) -> None:
    answer = api.patch("/apps/timely/config-vars", sent)
    assert (answer.status_code, answer.json["id"]) == (422, "invalid_params")
    assert api.get("/apps/timely/config-vars").json == {}


def test_formation_is_listed_and_scaled(either_api: Api) -> None:
    api = either_api
    give_code(api.app_id)
    assert [(row["type"], row["quantity"]) for row in api.get("/apps/timely/formation").json] == [("web", 1), ("worker", 0)]
    updates = [{"type": "web", "quantity": "+1"}, {"type": "worker", "quantity": "3", "size": "standard-2x"}]
    rows = api.patch("/apps/timely/formation", {"updates": updates}).json
    assert [(row["type"], row["quantity"], row["size"]) for row in rows] == [("web", 2, "Basic"), ("worker", 3, "Standard-2X")]
    one = api.patch("/apps/timely/formation/worker", {"quantity": 0, "dyno_size": {"name": "Eco"}}).json
    assert (one["quantity"], one["dyno_size"]["name"], one["command"]) == (0, "Eco", "python work.py")


@pytest.mark.parametrize(
    "updates",
    [None, "web=2", [1], [{"quantity": 2}], [{"type": "web", "quantity": "abc"}], [{"type": "web", "quantity": 10_000}],
     [{"type": "web", "quantity": -1}], [{"type": "web", "quantity": True}], [{"type": "web", "quantity": 1.5}],
     [{"type": "web", "size": "giant"}], [{"type": "web", "dyno_size": {}}]],
)  # fmt: skip
def test_a_scale_that_cannot_be_is_refused_whole(api: Api, updates: object) -> None:
    give_code(api.app_id)
    answer = api.patch("/apps/timely/formation", {"updates": updates})
    assert answer.status_code == 422, answer.json
    assert [row["quantity"] for row in api.get("/apps/timely/formation").json] == [1, 0]


def test_an_unknown_process_type_names_those_that_there_are(api: Api) -> None:
    give_code(api.app_id)
    answer = api.patch("/apps/timely/formation", {"updates": [{"type": "clock", "quantity": 1}]})
    assert answer.status_code == 404
    assert "web, worker" in answer.json["message"]


def test_releases_are_listed_newest_first_when_asked_and_rolled_back(either_api: Api) -> None:
    api = either_api
    give_code(api.app_id)
    api.patch("/apps/timely/config-vars", {"A": "1"})
    newest = api.get("/apps/timely/releases", headers={"Range": "version ..; max=1, order=desc"})
    assert newest.status_code == 206
    assert [r["version"] for r in newest.json] == [3]
    for identity in ("v2", "2", api.get("/apps/timely/releases/v2").json["id"], 2):
        answer = api.post("/apps/timely/releases", {"release": identity})
        assert answer.status_code == 201, answer.json
        assert answer.json["description"] == "Rollback to v2"
    assert api.get("/apps/timely/config-vars").json == {"A": "1"}, "they follow when the release is live"
    with db.transaction() as session:
        for release in session.scalars(select(Release).where(Release.status == "pending").order_by(Release.version)):
            releases.succeed(session, release)
    assert api.get("/apps/timely/config-vars").json == {}
    again = api.post("/apps/timely/releases", {"slug": answer.json["slug"]["id"], "description": "once more"})
    assert (again.status_code, again.json["description"]) == (201, "once more")
    long = f"Retry of v9: Set {'A_NAME, ' * 5000}"
    again = api.post("/apps/timely/releases", {"slug": answer.json["slug"]["id"], "description": long})
    assert (again.status_code, again.json["description"]) == (201, long[:200])


def test_a_rollback_to_nothing_is_refused(api: Api) -> None:
    assert api.post("/apps/timely/releases", {"release": "v1"}).status_code == 422
    assert api.post("/apps/timely/releases", {"release": "v99"}).status_code == 404
    assert api.post("/apps/timely/releases", {"release": {"a": 1}}).status_code == 422
    assert api.post("/apps/timely/releases", {}).status_code == 422
    assert api.post("/apps/timely/releases", {"slug": "nothing"}).status_code == 404


def test_domains_are_added_listed_and_removed(either_api: Api) -> None:
    api = either_api
    added = api.post("/apps/timely/domains", {"hostname": "www.example.com", "sni_endpoint": None})
    assert (added.status_code, added.json["cname"], added.json["status"]) == (201, "timely.localhost", "succeeded")
    assert {row["hostname"]: row["kind"] for row in api.get("/apps/timely/domains").json} == {
        "timely.localhost": "heroku", "www.example.com": "custom",
    }  # fmt: skip
    assert api.get("/apps/timely/domains/www.example.com").json == added.json
    assert api.get("/apps/timely/domains/WWW.Example.com.").json == added.json
    assert api.post("/apps/timely/domains", {"hostname": "WWW.example.com"}).status_code == 422
    assert api.delete("/apps/timely/domains/www.example.com").status_code == 200
    assert api.delete("/apps/timely/domains/timely.localhost").status_code == 422
    assert api.delete("/apps/timely/domains/nothing.example.com").status_code == 404


def test_buildpacks_are_chosen_in_order(api: Api) -> None:
    registry = "https://buildpack-registry.s3.amazonaws.com/buildpacks/heroku/python.tgz"
    updates = [{"buildpack": "urn:buildpack:heroku/nodejs"}, {"buildpack": registry}, {"buildpack": "https://x.example/b.git#v1"}]
    answer = api.put("/apps/timely/buildpack-installations", {"updates": updates})
    names = [row["buildpack"]["name"] for row in answer.json]
    assert names == ["heroku/nodejs", "heroku/python", "https://x.example/b.git#v1"]
    assert answer.json[0]["buildpack"]["url"] == "urn:buildpack:heroku/nodejs"
    assert api.get("/apps/timely/buildpack-installations").json == answer.json
    assert api.put("/apps/timely/buildpack-installations", {"updates": []}).json == []


def test_a_buildpack_that_nobody_knows_is_refused_where_it_is_chosen(api: Api) -> None:
    answer = api.put("/apps/timely/buildpack-installations", {"updates": [{"buildpack": "nosuch"}]})
    assert (answer.status_code, "“nosuch” is no buildpack that Davit knows" in answer.json["message"]) == (422, True)


def test_only_an_admin_chooses_a_buildpack_of_the_host(api: Api, tmp_path: Path) -> None:
    sent = {"updates": [{"buildpack": f"file://{tmp_path}"}]}
    assert api.put("/apps/timely/buildpack-installations", sent).status_code == 422
    assert api.put("/apps/timely/buildpack-installations", sent, as_="admin").status_code == 200


def test_a_dyno_size_is_found_in_any_case(api: Api) -> None:
    sizes = api.get("/dyno-sizes").json
    assert [api.get(f"/dyno-sizes/{spelt}").json for spelt in ("eco", "Eco", sizes[0]["id"])] == [sizes[0]] * 3


def test_collaborators_come_and_go(either_api: Api) -> None:
    api = either_api
    added = api.post("/apps/timely/collaborators", {"user": "stranger@example.com", "silent": True})
    assert added.status_code == 201
    assert {p["name"] for p in added.json["permissions"]} == {"view", "deploy", "operate"}
    assert api.get("/apps/timely", as_="stranger").status_code == 200
    rows = api.get("/apps/timely/collaborators").json
    assert {row["role"] for row in rows} == {"owner", "collaborator"}
    assert api.delete("/apps/timely/collaborators/viewer@example.com", as_="stranger").status_code == 403
    for spelt in ("Viewer@Example.com", " viewer@example.com"):
        assert api.get(f"/apps/timely/collaborators/{spelt}").json["user"]["email"] == "viewer@example.com"
    assert api.delete("/apps/timely/collaborators/Stranger@Example.com", as_="stranger").status_code == 200
    assert api.get("/apps/timely", as_="stranger").status_code == 404
    assert api.post("/apps/timely/collaborators", {"user": "nobody@example.com"}).status_code == 404
    assert api.post("/apps/timely/collaborators", {"user": "stranger@example.com", "permissions": ["fly"]}).status_code == 422


def test_the_build_cache_is_thrown_away_by_who_may_deploy(api: Api, neighbour: Callable[..., Neighbour]) -> None:
    assert api.delete("/apps/timely/build-cache").status_code == 503, "nobody is there who could"
    runtime = neighbour(api.home / "run" / "runtime.sock", {"cache.purge": lambda call: {}})
    assert api.delete("/apps/timely/build-cache", as_="viewer").status_code == 403
    assert api.delete("/apps/timely/build-cache", as_="stranger").status_code == 404
    answer = api.delete("/apps/timely/build-cache", as_="deployer")
    assert (answer.status_code, answer.json) == (200, {})
    assert runtime.calls == [("cache.purge", {"app_id": api.app_id})]
    with db.snapshot() as session:
        assert session.query(AuditEvent).filter_by(action="builds:cache:purge").count() == 1


def test_a_rebuild_takes_a_deployed_commit(api: Api) -> None:
    assert api.post("/apps/timely/builds").status_code == 422
    from state import builds
    from state.db import transaction
    from state.models import App

    with transaction() as session:
        app = session.get(App, api.app_id)
        assert app
        done = builds.create(session, app, app.owner, commit="ab" * 20, ref="refs/heads/main", old_sha="0" * 40)
        builds.succeed(session, done.id)
    made = api.post("/apps/timely/builds", {"buildpacks": [{"url": "urn:buildpack:python"}]})
    assert made.status_code == 201
    assert made.json["source_blob"]["version"] == "ab" * 20
    assert [b["name"] for b in made.json["buildpacks"]] == ["python"]
    assert len(api.get("/apps/timely/builds").json) == 2
    assert api.post("/apps/timely/builds", {"buildpacks": [{"url": "FILE:///etc"}]}).status_code == 422
    assert api.delete(f"/apps/timely/builds/{made.json['id']}").status_code == 200
    assert api.delete(f"/apps/timely/builds/{done.id}").status_code == 422
    assert api.get("/apps/timely/builds/nothing").status_code == 404
