"""OAuth clients, and the tokens that they get for what people allowed them."""

from __future__ import annotations

from typing import Any, NoReturn

from api import ranges, serialize, shapes
from api.fields import Fields, Object, Text
from api.routing import Call, Reply, Resource
from foundation.clock import now
from foundation.errors import InvalidParams
from state import authorizations, oauth
from state.models import OAuthClient

resource = Resource("oauth-clients")

_SECRET = Text(most=200)
_EXCHANGE = Fields(
    grant=Object(fields=Fields(code=_SECRET, type=Text())), refresh_token=Object(fields=Fields(token=_SECRET)),
    client=Object(fields=Fields(secret=Text(needed=True, most=200)), needed=True),
)  # fmt: skip
ORDER = ranges.BY_NAME


def _render(row: OAuthClient) -> Any:
    return serialize.oauth_client(row, oauth.secret_of(row))


@resource.on("GET", "/oauth/clients", needs="account", gives=shapes.many(shapes.OAUTH_CLIENT))
def index(call: Call) -> Reply:
    """The caller's OAuth clients."""
    return call.short_listing(oauth.clients(call.session, call.account), ORDER, _render)


@resource.on(
    "POST", "/oauth/clients", needs="account",
    takes=Fields(name=Text(needed=True, most=100, line=True), redirect_uri=Text(needed=True, most=1000)),
    gives=shapes.OAUTH_CLIENT,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Make an OAuth client."""
    row = oauth.create_client(
        call.session, call.account, call.body.need("name"), call.body.need("redirect_uri")
    )
    return Reply(_render(row), 201)


@resource.on("GET", "/oauth/clients/<client>", needs="account", gives=shapes.OAUTH_CLIENT)
def show(call: Call, client: str) -> Any:
    """One of the caller's OAuth clients."""
    return _render(oauth.find_client(call.session, call.account, client))


@resource.on(
    "PATCH", "/oauth/clients/<client>", needs="account",
    takes=Fields(name=Text(most=100, line=True), redirect_uri=Text(most=1000)), gives=shapes.OAUTH_CLIENT,
)  # fmt: skip
def update(call: Call, client: str) -> Any:
    """Change a client's name or redirect_uri."""
    row = oauth.find_client(call.session, call.account, client)
    oauth.update_client(call.session, call.account, row, call.body.text("name"), call.body.text("redirect_uri"))
    return _render(row)


@resource.on("DELETE", "/oauth/clients/<client>", needs="account", gives=shapes.OAUTH_CLIENT)
def destroy(call: Call, client: str) -> Any:
    """Remove a client, and with it all that people allowed it."""
    row = oauth.find_client(call.session, call.account, client)
    shown = _render(row)
    oauth.destroy_client(call.session, call.account, row)
    return shown


@resource.on("POST", "/oauth/clients/<client>/actions/rotate-credentials", needs="account", gives=shapes.OAUTH_CLIENT)
def rotate(call: Call, client: str) -> Any:
    """Give a client a new secret."""
    row = oauth.find_client(call.session, call.account, client)
    oauth.rotate(call.session, call.account, row)
    return _render(row)


@resource.on("POST", "/oauth/tokens", needs="nothing", writes=True, takes=_EXCHANGE, gives=shapes.OAUTH_TOKEN)
def create_token(call: Call) -> Reply:
    """For a client's server: change a grant's code, or a refresh token, for an access token."""
    grant, refreshing = call.body.inner("grant"), call.body.inner("refresh_token")
    secret = call.body.inside("client").need("secret")
    if grant and (code := grant.text("code")):
        if grant.text("type") not in (None, "authorization_code"):
            raise InvalidParams("Field grant.type must be authorization_code.")
        access, renewed, row = oauth.exchange(call.session, code, secret)
    elif refreshing and (token := refreshing.text("token")):
        access, renewed, row = oauth.refresh(call.session, token, secret)
    else:
        _lacking()
    return Reply(serialize.oauth_token(row, now(), access, renewed), 201)


def _lacking() -> NoReturn:
    raise InvalidParams("Field grant.code or field refresh_token.token is required.")


@resource.on("DELETE", "/oauth/tokens/<token>", needs="account", gives=shapes.OAUTH_TOKEN)
def destroy_token(call: Call, token: str) -> Any:
    """Take a token away."""
    row = authorizations.remove(call.session, call.account, token)
    return serialize.oauth_token(row, now(), serialize.redacted(), serialize.redacted())
