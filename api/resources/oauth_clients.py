"""OAuth clients, and the tokens that they get for what people allowed them."""

from __future__ import annotations

from typing import Any, NoReturn

from api import ranges, serialize
from api.body import Body
from api.routing import Call, Reply, Resource
from foundation.clock import now
from foundation.errors import InvalidParams
from state import authorizations, oauth
from state.models import OAuthClient

resource = Resource("oauth-clients")

ORDER = ranges.Order({"name": lambda row: row.name, "id": lambda row: row.id}, {})


def _render(row: OAuthClient) -> Any:
    return serialize.oauth_client(row, oauth.secret_of(row))


@resource.on("GET", "/oauth/clients", needs="account")
def index(call: Call) -> Reply:
    """The caller's OAuth clients."""
    return call.short_listing(oauth.clients(call.session, call.account), ORDER, _render)


@resource.on("POST", "/oauth/clients", needs="account")
def create(call: Call) -> Reply:
    """Make an OAuth client."""
    row = oauth.create_client(
        call.session, call.account, call.body.need("name", most=100), call.body.need("redirect_uri", most=1000)
    )
    return Reply(_render(row), 201)


@resource.on("GET", "/oauth/clients/<client>", needs="account")
def show(call: Call, client: str) -> Any:
    """One of the caller's OAuth clients."""
    return _render(oauth.find_client(call.session, call.account, client))


@resource.on("PATCH", "/oauth/clients/<client>", needs="account")
def update(call: Call, client: str) -> Any:
    """Change a client's name or redirect_uri."""
    row = oauth.find_client(call.session, call.account, client)
    name = call.body.need("name", most=100) if "name" in call.body.values else None
    oauth.update_client(call.session, call.account, row, name, call.body.text("redirect_uri", most=1000))
    return _render(row)


@resource.on("DELETE", "/oauth/clients/<client>", needs="account")
def destroy(call: Call, client: str) -> Any:
    """Remove a client, and with it all that people allowed it."""
    row = oauth.find_client(call.session, call.account, client)
    shown = _render(row)
    oauth.destroy_client(call.session, call.account, row)
    return shown


@resource.on("POST", "/oauth/clients/<client>/actions/rotate-credentials", needs="account")
def rotate(call: Call, client: str) -> Any:
    """Give a client a new secret."""
    row = oauth.find_client(call.session, call.account, client)
    oauth.rotate(call.session, call.account, row)
    return _render(row)


@resource.on("POST", "/oauth/tokens", needs="nothing", writes=True)
def create_token(call: Call) -> Reply:
    """For a client's server: change a grant's code, or a refresh token, for an access token."""
    grant, refresh, secret = _inner(call, "grant"), _inner(call, "refresh_token"), _inner(call, "client").need("secret", most=200)
    if code := grant.text("code", most=200):
        if grant.text("type") not in (None, "authorization_code"):
            raise InvalidParams("Field grant.type must be authorization_code.")
        access, renewed, row = oauth.exchange(call.session, code, secret)
    elif token := refresh.text("token", most=200):
        access, renewed, row = oauth.refresh(call.session, token, secret)
    else:
        _lacking()
    return Reply(serialize.oauth_token(row, now(), access, renewed), 201)


def _lacking() -> NoReturn:
    raise InvalidParams("Field grant.code or field refresh_token.token is required.")


def _inner(call: Call, name: str) -> Body:
    value = call.body.values.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidParams(f"Field {name} must be an object.")
    return Body(value or {}, f"{name}.")


@resource.on("DELETE", "/oauth/tokens/<token>", needs="account")
def destroy_token(call: Call, token: str) -> Any:
    """Take a token away."""
    row = authorizations.remove(call.session, call.account, token)
    return serialize.oauth_token(row, now(), serialize.redacted(), serialize.redacted())
