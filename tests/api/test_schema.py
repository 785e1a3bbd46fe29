"""What is answered has the shape of the public schema, and /schema says what is served.

Each call of each test of the API is held against both; see :mod:`tests.api.published`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

import jsonschema
import pytest

from api import schema, shapes
from api.routing import Operation
from api.web import operations
from tests.api.conftest import Api, give_code
from tests.api.published import PLATFORM, assert_shaped, link_of, links


def _dyno(api: Api) -> None:
    from state.db import transaction
    from state.models import Dyno
    from state.releases import current

    with transaction() as session:
        release = current(session, api.app_id)
        assert release
        session.add(
            Dyno(app_id=api.app_id, release_id=release.id, release_version=release.version, name="web.1", type="web",
                 size="basic", command="python app.py", state="up")
        )  # fmt: skip


@pytest.fixture
def lived_in(api: Api) -> Api:
    """An app with one of everything."""
    from state import builds
    from state.db import transaction
    from state.models import App

    give_code(api.app_id)
    _dyno(api)
    with transaction() as session:
        app = session.get(App, api.app_id)
        assert app
        builds.create(session, app, app.owner, commit="ab" * 20, buildpacks=["heroku/python"])
    api.patch("/apps/timely/config-vars", {"A": "1"})
    api.post("/apps/timely/domains", {"hostname": "www.example.com"})
    api.put("/apps/timely/buildpack-installations", {"updates": [{"buildpack": "heroku/python"}]})
    api.post("/account/keys", {"public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG" + "A" * 42 + " me@laptop"})
    return api


LISTS = {
    "/apps": "app", "/users/~/apps": "app", "/apps/timely/builds": "build", "/apps/timely/domains": "domain",
    "/apps/timely/buildpack-installations": "buildpack-installation", "/apps/timely/collaborators": "collaborator",
    "/apps/timely/dynos": "dyno", "/apps/timely/formation": "formation", "/apps/timely/releases": "release",
    "/account/keys": "key", "/oauth/authorizations": "oauth-authorization", "/regions": "region", "/stacks": "stack",
    "/dyno-sizes": "dyno-size", "/apps/timely/available-dyno-sizes": "dyno-size", "/apps/timely/available-stacks": "stack",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(LISTS))
def test_lists_have_the_public_shape_and_so_has_each_of_their_items(lived_in: Api, path: str) -> None:
    rows = lived_in.get(path).json
    assert rows
    for row in rows:
        assert_shaped(row, LISTS[path])
    identity = rows[0].get("id")
    served = any(o.method == "GET" and o.path.startswith(path.replace("timely", "<app>") + "/<") for o in operations())
    if served and identity and not path.startswith("/users"):
        one = lived_in.get(f"{path}/{identity}")
        assert one.status_code == 200
        assert_shaped(one.json, LISTS[path])


@pytest.mark.parametrize(
    ("path", "name"),
    [("/account", "account"), ("/users/~", "account"), ("/apps/timely", "app"), ("/apps/timely/config-vars", "config-var"),
     ("/apps/timely/releases/2/config-vars", "config-var"), ("/account/rate-limits", "rate-limit"),
     ("/apps/timely/dynos/web.1", "dyno"), ("/apps/timely/formation/web", "formation"), ("/apps/timely/releases/v2", "release")],
)  # fmt: skip
def test_single_things_have_the_public_shape(lived_in: Api, path: str, name: str) -> None:
    answer = lived_in.get(path)
    assert answer.status_code == 200
    assert_shaped(answer.json, name)


def test_what_is_created_has_the_public_shape(lived_in: Api) -> None:
    api = lived_in
    assert_shaped(api.post("/apps").json, "app")
    assert_shaped(api.post("/apps/timely/log-sessions", {"tail": True}).json, "log-session")
    assert_shaped(api.post("/oauth/authorizations").json, "oauth-authorization")
    assert_shaped(api.post("/apps/timely/releases", {"release": "v2"}).json, "release")
    slug = api.get("/apps/timely/releases/v2").json["slug"]["id"]
    assert_shaped(api.get(f"/apps/timely/slugs/{slug}").json, "slug")


def test_the_schema_lists_what_is_served_and_nothing_else(api: Api) -> None:
    shown = api.get("/schema", as_=None).json
    every = [link for one in shown["definitions"].values() for link in one["links"]]
    listed = {(link["method"], link["href"]) for link in every}
    served = {
        (method, schema.href(rule.rule)) for rule in api.flask.url_map.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert listed == served == set(links())
    assert len(every) == len(listed), "an endpoint is served twice"
    assert all(link["description"] and link["title"] and link["rel"] for link in every)
    jsonschema.Draft4Validator.check_schema(shown)


@pytest.mark.parametrize("operation", operations(), ids=lambda one: f"{one.method} {one.path}")
def test_every_link_says_what_it_takes_and_what_it_gives(operation: Operation) -> None:
    link = link_of(operation)
    jsonschema.Draft4Validator.check_schema(link["targetSchema"])
    assert link["targetSchema"] and link["mediaType"]
    if operation.method not in ("GET", "DELETE") and not operation.raw:
        jsonschema.Draft4Validator.check_schema(link["schema"])
        assert link["schema"]["type"] == ["object"]
        assert set(link["schema"].get("properties", {})) == set(operation.takes.known)


def test_places_in_a_path_lead_somewhere(api: Api) -> None:
    shown = api.get("/schema", as_=None).json
    for link in links().values():
        for place in re.findall(r"\{\((.+?)\)\}", link["href"]):
            assert unquote(place).startswith("#/"), place
            value = shown
            for word in unquote(place).removeprefix("#/").split("/"):
                value = value[word]
            assert value["type"] == ["string"]
        assert "<" not in link["href"]
    for name in shown["properties"]:
        assert shown["definitions"][name]["links"], name


def test_the_schema_names_its_resources_as_the_public_one_does(api: Api) -> None:
    shown = api.get("/schema", as_=None).json["definitions"]
    named = {name for name, one in shown.items() if one["links"]}
    assert set(PLATFORM) <= named, set(PLATFORM) - named
    assert {"Create", "Delete", "Info", "List", "Update"} <= {link["title"] for link in shown["app"]["links"]}


@pytest.mark.parametrize("shape", list(shapes.resources()), ids=lambda shape: shape.name)
def test_a_resource_has_every_property_that_the_public_schema_gives_it(shape: shapes.Shape) -> None:
    public = PLATFORM.get(shape.name, {}).get("properties", {})
    assert set(public) <= set(shape.schema.get("properties", {}))
    for name, inner in public.items():
        ours = shape.schema["properties"][name]
        if inner.get("properties") and ours.get("properties"):
            assert set(inner["properties"]) <= set(ours["properties"]), name


def test_an_answer_with_a_property_more_or_less_or_of_another_type_is_noticed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from api import serialize

    right = serialize.region()
    for wrong in ({**right, "more": 1}, {**right, "name": 5}, {name: value for name, value in right.items() if name != "locale"}):
        monkeypatch.setattr(serialize, "region", lambda wrong=wrong: wrong)
        with pytest.raises(AssertionError, match="/regions"):
            api.get("/regions")


def test_what_the_schema_says_of_a_request_is_what_is_checked(api: Api) -> None:
    said = link_of(next(one for one in operations() if (one.method, one.path) == ("POST", "/apps/<app>/domains")))["schema"]
    assert said["required"] == ["hostname"] and said["properties"]["hostname"]["maxLength"] == 300
    assert api.post("/apps/timely/domains", {"hostname": "x" * 301}).json["message"] == "Field hostname must have at most 300 characters."
    assert api.post("/apps/timely/domains", {}).json["message"] == "Field hostname is required."
