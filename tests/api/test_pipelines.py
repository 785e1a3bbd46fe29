"""Pipelines, couplings, promotions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slugs import collect
from state import apps, db, releases
from state.models import App, Slug
from tests.api.conftest import Api, give_code


@pytest.fixture
def line(either_api: Api) -> Api:
    """The pipeline ``the-line``: timely in staging, shop-eu and shop-us in production; all the owner's."""
    api = either_api
    give_code(api.app_id)
    assert api.post("/pipelines", {"name": "the-line", "owner": {"id": api.get("/account").json["id"], "type": "user"}}).status_code == 201
    for app, stage in (("timely", "staging"), ("shop-eu", "production"), ("shop-us", "production")):
        if app != "timely":
            api.post("/apps", {"name": app})
        assert api.post("/pipeline-couplings", {"pipeline": "the-line", "app": app, "stage": stage}).status_code == 201
    return api


def _promotion(api: Api, *targets: str, source: str = "timely", as_: str = "owner") -> object:
    sent = {"pipeline": {"id": "the-line"}, "source": {"app": {"id": source}}, "targets": [{"app": {"id": one}} for one in targets]}
    return api.post("/pipeline-promotions", sent, as_=as_)


def test_pipelines_are_made_found_renamed_and_removed(line: Api) -> None:
    api = line
    found = api.get("/pipelines?eq[name]=the-line").json
    assert [row["name"] for row in found] == ["the-line"]
    assert api.get("/pipelines?eq[name]=none").json == []
    path = f"/pipelines/{found[0]['id']}"
    assert api.patch(path, {"name": "new-line"}).json["name"] == "new-line"
    assert api.post("/pipelines", {"name": "new-line"}).status_code == 422
    assert api.get("/pipelines/new-line").json["id"] == found[0]["id"]
    assert api.get(f"{path}/pipeline-stack").json["stack"]["name"] == "davit-13"
    assert api.delete(path).status_code == 200
    assert api.get(path).status_code == 404
    assert api.get("/apps/timely").status_code == 200
    assert api.get("/apps/timely/pipeline-couplings").status_code == 404


@pytest.mark.parametrize("name", ["", "A", "ab", "x" * 31, "a b", "../x", 5, "ünder"])
def test_a_pipeline_name_that_cannot_be_is_refused(api: Api, name: object) -> None:
    answer = api.post("/pipelines", {"name": name})
    assert (answer.status_code, "ield name" in answer.json["message"]) == (422, True)


def test_who_works_on_one_app_sees_the_pipeline_and_does_not_change_it(line: Api) -> None:
    api = line
    assert [row["name"] for row in api.get("/pipelines", as_="viewer").json] == ["the-line"]
    for path in ("/pipelines/the-line/pipeline-couplings", "/pipeline-couplings", "/users/~/pipeline-couplings"):
        assert [row["app"]["id"] for row in api.get(path, as_="viewer").json] == [api.app_id], "the others are not theirs to see"
        assert len(api.get(path).json) == 3
    for row in api.get("/pipelines/the-line/pipeline-couplings").json:
        seen = api.get(f"/pipeline-couplings/{row['id']}", as_="viewer").status_code
        assert seen == (200 if row["app"]["id"] == api.app_id else 404)
    assert api.patch("/pipelines/the-line", {"name": "other-line"}, as_="viewer").status_code == 403
    assert api.get("/pipelines", as_="stranger").json == []
    assert api.get("/pipelines/the-line", as_="stranger").status_code == 404
    coupling = api.get("/apps/timely/pipeline-couplings").json
    assert coupling["pipeline"]["name"] == "the-line"
    path = f"/pipeline-couplings/{coupling['id']}"
    assert api.get(path, as_="viewer").json == coupling
    for role, status in (("stranger", 404), ("viewer", 403), ("operator", 200)):
        assert api.patch(path, {"stage": "review"}, as_=role).status_code == status
    assert api.patch(path, {"stage": "elsewhere"}).status_code == 422
    assert api.delete(path, as_="viewer").status_code == 403
    assert api.delete(path).status_code == 200
    assert api.delete(path).status_code == 404
    assert len(api.get("/pipeline-couplings").json) == len(api.get("/users/~/pipeline-couplings").json) == 2


def test_nobody_slips_an_app_into_anothers_pipeline(line: Api) -> None:
    api = line
    for who in ("viewer", "deployer"):
        assert api.post("/apps", {"name": f"app-of-{who}"}, as_=who).status_code == 201
    add: Callable[[str], int] = lambda who: api.post(  # noqa: E731
        "/pipeline-couplings", {"pipeline": "the-line", "app": f"app-of-{who}", "stage": "production"}, as_=who
    ).status_code
    assert (add("viewer"), add("deployer")) == (403, 201)
    assert add("deployer") == 422, "it is in one already"
    assert api.post("/pipeline-couplings", {"pipeline": "the-line", "app": "app-of-viewer", "stage": "review"}, as_="stranger").status_code == 404
    assert _promotion(api, "shop-eu", "app-of-deployer").status_code == 404, "the pipeline's owner may not deploy that one"
    for sent in ({}, {"pipeline": "the-line"}, {"pipeline": "the-line", "app": "timely"}):
        assert "Field" in api.post("/pipeline-couplings", sent).json["message"]


def test_a_promotion_releases_the_same_slug_with_the_targets_own_config(line: Api) -> None:
    api = line
    api.patch("/apps/shop-eu/config-vars", {"WHERE": "eu"})
    made = _promotion(api, "shop-eu", "shop-us")
    assert (made.status_code, made.json["status"]) == (201, "pending")
    targets = api.get(f"/pipeline-promotions/{made.json['id']}/promotion-targets").json
    assert [row["status"] for row in targets] == ["pending", "pending"]
    with db.transaction() as session:
        for row, fails in zip(targets, (False, True), strict=True):
            release = session.get(releases.Release, row["release"]["id"])
            assert release and release.slug and release.description.startswith("Promote timely v2 12121212")
            (releases.fail(session, release, "app did not start", "It did not listen.") if fails else releases.succeed(session, release))
    targets = api.get(f"/pipeline-promotions/{made.json['id']}/promotion-targets").json
    assert [(row["status"], row["error_message"]) for row in targets] == [("succeeded", None), ("failed", "It did not listen.")]
    assert api.get(f"/pipeline-promotions/{made.json['id']}").json["status"] == "completed"
    assert api.get(f"/pipeline-promotions/{made.json['id']}", as_="stranger").status_code == 404
    assert api.get(f"/pipeline-promotions/{made.json['id']}/promotion-targets", as_="viewer").json == [], "not theirs to see"
    api.post("/apps/shop-eu/collaborators", {"user": "stranger@example.com"})
    assert api.get(f"/pipeline-promotions/{made.json['id']}", as_="stranger").status_code == 404, "it tells of an app that is not theirs to see"
    api.post(f"/apps/{targets[1]['app']['id']}/collaborators", {"user": "viewer@example.com", "permissions": ["view"]})
    assert api.get(f"/pipeline-promotions/{made.json['id']}/promotion-targets", as_="viewer").json == targets[1:]
    shown = api.get("/apps/shop-eu/releases/3").json
    assert api.get(f"/apps/shop-eu/slugs/{shown['slug']['id']}").json["checksum"] == "SHA256:" + "ab" * 32
    assert api.get("/apps/shop-eu/releases/3/config-vars").json == {"WHERE": "eu"}


def test_a_promoted_slug_outlives_its_source_and_is_one_row_for_each_app(line: Api) -> None:
    api = line
    for _ in range(2):
        assert _promotion(api, "shop-eu").status_code == 201
    with db.transaction() as session:
        release = releases.newest(session, session.query(App).filter_by(name="shop-eu").one().id)
        assert release
        releases.succeed(session, release)
        apps.forget(session, api.app_id)
    with db.snapshot() as session:
        eu = session.query(App).filter_by(name="shop-eu").one()
        base = releases.current(session, eu.id)
        assert base and base.slug and base.slug.digest == "sha256:" + "ab" * 32
        assert session.query(Slug).filter_by(app_id=eu.id).count() == 1
        assert collect.in_use(session) == {"sha256:" + "ab" * 32}


@pytest.mark.parametrize(
    ("source", "targets", "words"),
    [("timely", [], "targets"), ("timely", ["timely"], "each app once"), ("timely", ["shop-eu", "shop-eu"], "each app once"),
     ("shop-eu", ["shop-us"], "no code"), ("timely", ["outside"], "not in the pipeline")],
)  # fmt: skip
def test_a_promotion_that_cannot_be_is_refused_with_the_reason(line: Api, source: str, targets: list[str], words: str) -> None:
    line.post("/apps", {"name": "outside"})
    refused = _promotion(line, *targets, source=source)
    assert (refused.status_code, words in refused.json["message"]) == (422, True)
    assert len(line.get("/apps/shop-us/releases").json) == 1


def test_promoting_takes_the_permission_to_deploy_each_app(line: Api) -> None:
    assert _promotion(line, "shop-eu", as_="viewer").status_code == 403
    assert _promotion(line, "shop-eu", as_="deployer").status_code == 404
    line.post("/apps/shop-eu/collaborators", {"user": "deployer@example.com"})
    assert _promotion(line, "shop-eu", as_="deployer").status_code == 201


@pytest.mark.parametrize("sent", [{}, {"pipeline": 5}, {"pipeline": "the-line"}, {"pipeline": "the-line", "source": {"app": "timely"}, "targets": [{}]}])
def test_a_promotion_without_its_fields_is_told_which(line: Api, sent: object) -> None:
    answer = line.post("/pipeline-promotions", sent)
    assert (answer.status_code, "Field" in answer.json["message"]) == (422, True)


def test_a_pipeline_changes_hands(line: Api) -> None:
    api = line
    to = {"id": api.get("/account", as_="stranger").json["id"], "type": "user"}
    assert api.post("/pipeline-transfers", {"pipeline": {"id": "the-line"}, "new_owner": to}, as_="viewer").status_code == 403
    assert api.post("/pipeline-transfers", {"pipeline": {"id": "the-line"}, "new_owner": {"id": "x", "type": "team"}}).status_code == 422
    done = api.post("/pipeline-transfers", {"pipeline": {"id": "the-line"}, "new_owner": to})
    assert done.json["new_owner"] == to
    assert api.get("/pipelines/the-line", as_="stranger").json["owner"] == to
    assert api.delete("/pipelines/the-line").status_code == 403


def test_apps_are_filtered_by_id_to_those_the_caller_sees(line: Api) -> None:
    ids = [line.get(f"/apps/{name}").json["id"] for name in ("timely", "shop-eu")]
    assert {row["name"] for row in line.post("/filters/apps", {"in": {"id": [*ids, "none"]}}).json} == {"timely", "shop-eu"}
    assert [row["name"] for row in line.post("/filters/apps", {"in": {"id": ids}}, as_="viewer").json] == ["timely"]
    for sent in ({}, {"in": 5}, {"in": {"id": "x"}}):
        assert line.post("/filters/apps", sent).status_code == 422


def test_a_destroyed_app_leaves_its_pipeline(line: Api) -> None:
    assert line.delete("/apps/shop-eu").status_code == 200
    assert len(line.get("/pipelines/the-line/pipeline-couplings").json) == 2
