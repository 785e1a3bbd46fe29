"""The Flask application: every resource, and the two pages that say what this is."""

from __future__ import annotations

from typing import Any

from flask import Flask, Request
from werkzeug.routing import MapAdapter

from api import body, manners, routing
from api import schema as description
from api.resources import (
    account,
    app_setups,
    apps,
    authorizations,
    buildpacks,
    builds,
    catalogue,
    collaborators,
    config_vars,
    davit,
    domains,
    drains,
    dynos,
    exec_manager,
    explanations,
    features,
    figures,
    formation,
    history,
    keys,
    logins,
    logs,
    oauth_clients,
    password_resets,
    pipelines,
    registry,
    releases,
    sni_endpoints,
    sources,
    transfers,
    two_factor,
    webhooks,
)
from api.routing import Call, Operation, Resource
from api.shapes import TEXT, plain, thing
from foundation.settings import settings

VERSION = "0.1.0"

about = Resource("about")

RESOURCES = (
    about,
    account.resource,
    app_setups.resource,
    apps.resource,
    authorizations.resource,
    builds.resource,
    buildpacks.resource,
    catalogue.resource,
    collaborators.resource,
    config_vars.resource,
    davit.resource,
    domains.resource,
    drains.resource,
    dynos.resource,
    exec_manager.resource,
    explanations.resource,
    features.resource,
    figures.resource,
    formation.resource,
    history.resource,
    keys.resource,
    logins.resource,
    logs.resource,
    oauth_clients.resource,
    password_resets.resource,
    pipelines.resource,
    registry.resource,
    releases.resource,
    sni_endpoints.resource,
    sources.resource,
    transfers.resource,
    two_factor.resource,
    webhooks.resource,
)


def operations() -> list[Operation]:
    """Every endpoint that is served, by path."""
    return sorted((o for resource in RESOURCES for o in resource.operations), key=lambda o: (o.path, o.method))


@about.on("GET", "/", needs="nothing", gives=plain(thing(name=TEXT, version=TEXT, about=TEXT, schema=TEXT, apps=TEXT)))
def home(call: Call) -> Any:
    """What this is."""
    return {
        "name": "davit",
        "version": VERSION,
        "about": "This is Davit's API: the Heroku Platform API v3, on a machine of your own. GET /schema lists what it serves.",
        "schema": "/schema",
        "apps": settings().app_url("NAME"),
    }


@about.on("GET", "/schema", needs="nothing", gives=plain({"type": ["object"]}))
def schema(call: Call) -> Any:
    """What is served, as a JSON hyper-schema (draft 04)."""
    return description.document(operations(), VERSION)


class _Flask(Flask):
    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        adapter = super().create_url_adapter(request)
        if adapter:
            adapter.websocket = False  # a route that wants an upgrade checks that itself, after who calls has been checked
        return adapter


def create_app() -> Flask:
    """The API as a WSGI application.

    Raises:
        TypeError: a route does not say who may call it.
    """
    flask = _Flask("davit", static_folder=None)
    flask.config["MAX_CONTENT_LENGTH"] = body.LIMIT
    flask.json.sort_keys = False  # type: ignore[attr-defined]
    flask.url_map.strict_slashes = False
    manners.install(flask)
    for resource in RESOURCES:
        flask.register_blueprint(resource)
    routing.check(flask)
    return flask
