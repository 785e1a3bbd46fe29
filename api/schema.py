"""``GET /schema``: what is served, as a JSON hyper-schema (draft 04), which is how the Platform API describes itself.

Written from the declarations of the routes, so it lists what is served and nothing else. Each resource has its links; a place in
a path is ``{(%23%2Fdefinitions%2Fapp%2Fdefinitions%2Fidentity)}``, the reference of what it takes, percent-encoded (JSON
Hyper-Schema draft 04, section 5.2.1 and its preprocessing rules). Beyond the draft a link says who may follow it (``needs``), the
scope that it takes of a token, and whether it is Davit's own (``davit``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from api import shapes
from api.routing import Operation

Json = dict[str, Any]

_DRAFT = "http://json-schema.org/draft-04/hyper-schema"
_PLACE = re.compile(r"<(?:path:)?([^>]+)>")
_OWN_ROOMS = frozenset(("streams", "davit", "auth", "rendezvous", "api", "buildpacks"))
"""First words of paths that are a resource by themselves."""
_RELATIONS = {"GET": "self", "POST": "create", "PATCH": "update", "PUT": "update", "DELETE": "destroy"}
_TITLES = {"self": "Info", "instances": "List", "create": "Create", "update": "Update", "destroy": "Delete"}


def document(operations: Sequence[Operation], version: str) -> Json:
    """The hyper-schema of these endpoints."""
    definitions: dict[str, Json] = {}
    for shape in shapes.resources():
        _definition(definitions, shape.name).update(shape.schema)
    for operation in operations:
        _definition(definitions, resource_of(operation.path))["links"].append(link(operation))
        for place in _PLACE.findall(operation.path):
            _definition(definitions, place)["definitions"]["identity"] = {
                "description": f"what names this {place} in a path",
                "type": ["string"],
            }
    return {
        "$schema": _DRAFT,
        "title": "Davit's part of the Heroku Platform API v3",
        "description": "What this Davit serves.",
        "version": version,
        "type": ["object"],
        "definitions": dict(sorted(definitions.items())),
        "properties": {name: {"$ref": f"#/definitions/{name}"} for name, one in sorted(definitions.items()) if one["links"]},
        "links": [{"href": "/", "rel": "self"}],
    }


def _definition(definitions: dict[str, Json], name: str) -> Json:
    return definitions.setdefault(name, {"$schema": _DRAFT, "title": name, "type": ["object"], "definitions": {}, "links": []})


def link(operation: Operation) -> Json:
    """One endpoint."""
    relation = _relation(operation)
    made: Json = {
        "title": _TITLES.get(relation, relation.replace("-", " ").capitalize()),
        "description": operation.summary,
        "href": href(operation.path),
        "method": operation.method,
        "rel": relation,
        "needs": operation.needs,
        "scope": operation.scope,
        "davit": operation.ours,
        "mediaType": operation.gives.media_type,
        "targetSchema": operation.gives.target(),
    }
    if operation.method not in ("GET", "DELETE"):
        made["encType"] = _encoding(operation)
        if not operation.raw:
            made["schema"] = operation.takes.schema()
    return made


def href(path: str) -> str:
    """A path as a hyper-schema has it."""
    return _PLACE.sub(lambda match: f"{{({quote(f'#/definitions/{match[1]}/definitions/identity', safe='')})}}", path)


def resource_of(path: str) -> str:
    """The resource that a path is about, by the public schema's names: ``/apps/<app>/config-vars`` is about config-var."""
    words = [word for word in path.partition("/actions/")[0].split("/") if word and not word.startswith("<") and word != "~"]
    if not words:
        return "about"
    if words[0] in _OWN_ROOMS:
        return _singular(words[0])
    if words[0] == "oauth":
        return f"oauth-{_singular(words[1])}"
    if words[-1] == "features":
        return "account-feature" if words[0] == "account" else "app-feature"
    if words[-1] == "apps" and words[0] == "filters":
        return "filter-apps"
    if words[-1].startswith("webhook"):
        return f"app-{_singular(words[-1])}"
    other = {"formations": "formation", "users": "account", "promotion-targets": "pipeline-promotion-target"}
    return other.get(words[-1], _singular(words[-1]))


def _singular(word: str) -> str:
    if word == "rendezvous":
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word.removesuffix("s")


def _relation(operation: Operation) -> str:
    if "/actions/" in operation.path:
        return operation.path.rpartition("/")[2]
    collection = operation.method == "GET" and not operation.path.endswith(">") and operation.path.endswith("s")
    return "instances" if collection else _RELATIONS[operation.method]


def _encoding(operation: Operation) -> str:
    if operation.form:
        return "application/x-www-form-urlencoded"
    return "application/octet-stream" if operation.raw else "application/json"
