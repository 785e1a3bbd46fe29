"""Domains."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize, shapes
from api.fields import Fields, Reference, Text
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams
from state import domains, endpoints, own_names
from state.models import Domain

resource = Resource("domains", reads="read", writes="write")

ORDER = ranges.Order({"hostname": lambda row: row.hostname, "id": lambda row: row.id}, {})


def _render(call: Call, row: Domain) -> Any:
    return serialize.domain(call.app, row, own_names.of_app(call.app.name))


@resource.on("GET", "/apps/<app>/domains", needs="view", gives=shapes.many(shapes.DOMAIN))
def index(call: Call) -> Reply:
    """The app's domains."""
    return call.short_listing(domains.all_of(call.session, call.app), ORDER, lambda row: _render(call, row))


@resource.on("GET", "/apps/<app>/domains/<domain>", needs="view", gives=shapes.DOMAIN)
def show(call: Call, domain: str) -> Any:
    """One domain, by host name or id."""
    return _render(call, domains.find(call.session, call.app, domain))


@resource.on(
    "POST", "/apps/<app>/domains", needs="operate",
    takes=Fields(hostname=Text(needed=True, most=300), sni_endpoint=Reference()), gives=shapes.DOMAIN,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Route a host name to the app."""
    row = domains.add(call.session, call.account, call.app, call.body.need("hostname"))
    if endpoint := call.body.reference("sni_endpoint"):
        endpoints.bind(call.session, call.account, call.app, row, endpoint)
    return Reply(_render(call, row), 201)


@resource.on(
    "PATCH", "/apps/<app>/domains/<domain>", needs="operate",
    takes=Fields(sni_endpoint=Reference()), gives=shapes.DOMAIN,
)  # fmt: skip
def update(call: Call, domain: str) -> Any:
    """Serve a domain with one of the app's certificates, or (sni_endpoint: null) with Davit's own."""
    row = domains.find(call.session, call.app, domain)
    if "sni_endpoint" not in call.body.values:
        raise InvalidParams("Field sni_endpoint is required: the name of one of the app's certificates, or null.")
    return _render(call, endpoints.bind(call.session, call.account, call.app, row, call.body.reference("sni_endpoint")))


@resource.on("DELETE", "/apps/<app>/domains/<domain>", needs="operate", gives=shapes.DOMAIN)
def destroy(call: Call, domain: str) -> Any:
    """Stop routing a host name to the app."""
    return _render(call, domains.remove(call.session, call.account, call.app, domain))
