"""The buildpack registry as clients ask it (``HEROKU_BUILDPACK_REGISTRY_URL``): the bundled buildpacks, and where others are.

A name that no bundled buildpack has leads to the public registry's archive, which the next build fetches.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any

from flask import request

from api import links, serialize, shapes
from api.routing import Call, Resource
from builder.buildpacks import BUNDLED
from foundation.errors import NotFound

resource = Resource("registry")

NAMESPACE = "heroku"
"""Bundled buildpacks answer to the names that people's scripts have."""
_ENTRY = shapes.plain(
    shapes.thing(
        blob_url=shapes.URL, category=shapes.maybe(shapes.TEXT), description=shapes.TEXT, id=shapes.ID, logo=shapes.NULL,
        name=shapes.TEXT, namespace=shapes.TEXT, source=shapes.thing(type=shapes.TEXT, owner=shapes.TEXT, repo=shapes.TEXT),
        support=shapes.thing(method=shapes.TEXT, address=shapes.URL), two_factor_authentication=shapes.FLAG,
    )
)  # fmt: skip
_REVISION = shapes.plain(
    shapes.thing(
        id=shapes.ID, release=shapes.WHOLE, created_at=shapes.AT, updated_at=shapes.AT, status=shapes.TEXT, license=shapes.TEXT
    )
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9][\w-]{0,99}")
_MISSING = "There is no such buildpack here; GET /buildpacks lists those that come with Davit."


def _entry(namespace: str, name: str) -> dict[str, Any]:
    bundled = namespace == NAMESPACE and name in BUNDLED
    looks = f"Comes with Davit; looks for {BUNDLED[name]}" if bundled else "From the public registry, fetched by the next build"
    return {
        "blob_url": f"https://buildpack-registry.s3.amazonaws.com/buildpacks/{namespace}/{name}.tgz",
        "category": "languages" if bundled else None,
        "description": looks,
        "id": serialize.steady_id("buildpack", f"{namespace}/{name}"),
        "logo": None,
        "name": name,
        "namespace": namespace,
        "source": {"type": "davit" if bundled else "registry", "owner": namespace, "repo": name},
        "support": {"method": "website", "address": f"{links.base_url()}/schema"},
        "two_factor_authentication": False,
    }


def _bundled(namespace: str, name: str) -> dict[str, Any]:
    if namespace != NAMESPACE or name not in BUNDLED:
        raise NotFound(_MISSING)
    return _entry(namespace, name)


@resource.on("GET", "/buildpacks", needs="nothing", ours=True, gives=shapes.many(_ENTRY))
def index(call: Call) -> Any:
    """The bundled buildpacks; ``in[namespace][]``, ``in[name][]`` and ``like[description]`` choose among them."""
    namespaces, names = request.args.getlist("in[namespace][]"), request.args.getlist("in[name][]")
    like = request.args.get("like[description]", "").lower()
    return [
        row
        for row in (_entry(NAMESPACE, name) for name in BUNDLED)
        if (not namespaces or row["namespace"] in namespaces)
        and (not names or row["name"] in names)
        and like in row["description"].lower()
    ]


@resource.on("GET", "/buildpacks/<namespace>/<buildpack>", needs="nothing", ours=True, gives=_ENTRY)
def show(call: Call, namespace: str, buildpack: str) -> Any:
    """One buildpack, and the URL that buildpack-installations take for it."""
    if not (_WORD.fullmatch(namespace) and _WORD.fullmatch(buildpack)):
        raise NotFound(_MISSING)
    return _entry(namespace, buildpack)


@resource.on("GET", "/buildpacks/<namespace>/<buildpack>/revisions", needs="nothing", ours=True, gives=shapes.many(_REVISION))
def revisions(call: Call, namespace: str, buildpack: str) -> Any:
    """The versions of a bundled buildpack: one, Davit's own."""
    row = _bundled(namespace, buildpack)
    at = serialize.BEGINNING
    return [{"id": row["id"], "release": 1, "created_at": at, "updated_at": at, "status": "published", "license": "MIT"}]


@resource.on(
    "GET", "/buildpacks/<namespace>/<buildpack>/readme", needs="nothing", ours=True,
    gives=shapes.plain(shapes.thing(content=shapes.TEXT, encoding=shapes.TEXT)),
)  # fmt: skip
def readme(call: Call, namespace: str, buildpack: str) -> Any:
    """What a bundled buildpack does."""
    text = f"{_bundled(namespace, buildpack)['description']}.\n"
    return {"content": b64encode(text.encode()).decode(), "encoding": "base64"}
