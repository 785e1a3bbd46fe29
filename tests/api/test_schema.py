"""What is answered has the shape of the public schema: every property there, each of its type.

``platform-schema.json`` holds the definitions of the resources that are served, resolved, from the MIT-licensed schema of
the Platform API (its two patterns for Heroku's own host names left out, and the list of Amazon's regions).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest

from api import schema
from api.web import operations
from tests.api.conftest import Api, give_code

SCHEMA = json.loads((Path(__file__).parent / "platform-schema.json").read_text())


def assert_shaped(value: Any, name: str) -> None:
    definition = SCHEMA[name]
    jsonschema.Draft4Validator(definition, format_checker=jsonschema.FormatChecker(["uuid"])).validate(value)
    if definition.get("properties"):
        assert set(value) >= set(definition["properties"]), set(definition["properties"]) - set(value)
        for key, inner in definition["properties"].items():
            if isinstance(value[key], dict) and inner.get("properties"):
                assert set(value[key]) >= set(inner["properties"]), (key, set(inner["properties"]) - set(value[key]))


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


def _links(schema: Any) -> list[Any]:
    return [link for one in schema["definitions"].values() for link in one["links"]]


def test_the_schema_lists_what_is_served_and_nothing_else(api: Api) -> None:
    links = _links(api.get("/schema", as_=None).json)
    listed = {(link["method"], link["href"]) for link in links}
    served = {
        (method, schema.href(rule.rule)) for rule in api.flask.url_map.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert listed == served
    assert len(links) == len(listed), "an endpoint is served twice"
    assert all(link["description"] and link["title"] and link["rel"] for link in links)


def test_the_schema_is_a_hyper_schema_whose_places_lead_somewhere(api: Api) -> None:
    shown = api.get("/schema", as_=None).json
    jsonschema.Draft4Validator.check_schema(shown)
    for link in _links(shown):
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
    named = {name for name, one in api.get("/schema", as_=None).json["definitions"].items() if one["links"]}
    assert set(SCHEMA) <= named, set(SCHEMA) - named
    links = {link["title"] for link in api.get("/schema", as_=None).json["definitions"]["app"]["links"]}
    assert {"Create", "Delete", "Info", "List", "Update"} <= links
