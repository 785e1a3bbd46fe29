"""SNI endpoints: an app's own certificates. And what is said about automatic ones."""

from __future__ import annotations

from typing import Any

from api import ranges, serialize, shapes
from api.fields import Fields, Text
from api.routing import Call, Reply, Resource
from foundation.errors import DavitError
from state import endpoints
from state.models import SniEndpoint

resource = Resource("sni-endpoints")

_CERTIFICATE = Fields(certificate_chain=Text(needed=True, most=100_000), private_key=Text(needed=True, most=20_000))
ORDER = ranges.Order({"name": lambda row: row.name, "id": lambda row: row.id}, {})


class NoAutomaticCertificates(DavitError):
    """Certificates are not fetched automatically by this version."""

    id, status = "not_implemented", 501


def _render(call: Call, row: SniEndpoint) -> Any:
    return serialize.sni_endpoint(call.app, row, endpoints.domains_of(call.session, row))


def _certificate(call: Call) -> tuple[str, str]:
    return call.body.need("certificate_chain"), call.body.need("private_key")


@resource.on("GET", "/apps/<app>/sni-endpoints", needs="view", gives=shapes.many(shapes.SNI_ENDPOINT))
def index(call: Call) -> Reply:
    """The app's certificates."""
    served = endpoints.domains_by_endpoint(call.session, call.app)
    rows = endpoints.all_of(call.session, call.app)
    return call.short_listing(rows, ORDER, lambda row: serialize.sni_endpoint(call.app, row, served.get(row.id, [])))


@resource.on("GET", "/apps/<app>/sni-endpoints/<endpoint>", needs="view", gives=shapes.SNI_ENDPOINT)
def show(call: Call, endpoint: str) -> Any:
    """One certificate, by name or id."""
    return _render(call, endpoints.find(call.session, call.app, endpoint))


@resource.on("POST", "/apps/<app>/sni-endpoints", needs="operate", takes=_CERTIFICATE, gives=shapes.SNI_ENDPOINT)
def create(call: Call) -> Reply:
    """Upload a certificate chain and its private key."""
    return Reply(_render(call, endpoints.add(call.session, call.account, call.app, *_certificate(call))), 201)


@resource.on("PATCH", "/apps/<app>/sni-endpoints/<endpoint>", needs="operate", takes=_CERTIFICATE, gives=shapes.SNI_ENDPOINT)
def update(call: Call, endpoint: str) -> Any:
    """Put another certificate in its place."""
    row = endpoints.find(call.session, call.app, endpoint)
    return _render(call, endpoints.update(call.session, call.account, call.app, row, *_certificate(call)))


@resource.on("DELETE", "/apps/<app>/sni-endpoints/<endpoint>", needs="operate", gives=shapes.SNI_ENDPOINT)
def destroy(call: Call, endpoint: str) -> Any:
    """Forget a certificate that serves no domain."""
    row = endpoints.find(call.session, call.app, endpoint)
    shown = _render(call, row)
    endpoints.remove(call.session, call.account, call.app, row)
    return shown


_LATER = (
    "This version of Davit does not get certificates by itself; upload one with `heroku certs:add CRT KEY`, "
    "or give Davit a wildcard certificate for its own domain."
)


@resource.on("POST", "/apps/<app>/acm", needs="operate", writes=False, gives=shapes.NEVER)
def acm_enable(call: Call) -> Any:
    """Says that certificates are not fetched automatically."""
    raise NoAutomaticCertificates(_LATER)


@resource.on("PATCH", "/apps/<app>/acm", needs="operate", writes=False, gives=shapes.NEVER)
def acm_refresh(call: Call) -> Any:
    """Says that certificates are not fetched automatically."""
    raise NoAutomaticCertificates(_LATER)


@resource.on("DELETE", "/apps/<app>/acm", needs="operate", writes=False, gives=shapes.NEVER)
def acm_disable(call: Call) -> Any:
    """Says that certificates are not fetched automatically."""
    raise NoAutomaticCertificates(_LATER)
