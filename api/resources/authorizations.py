"""API tokens, which the Platform API calls OAuth authorizations."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from api import ranges, serialize, shapes
from api.fields import Fields, Items, Reference, Text, Whole
from api.routing import Call, Reply, Resource
from foundation.clock import now
from foundation.errors import InvalidParams, NotFound
from state import accounts, authorizations, oauth, scopes, web_sessions
from state.models import Token

resource = Resource("authorizations")

ORDER = ranges.BY_AGE
SESSION_ORDER = ranges.Order({"id": lambda row: row.id}, {})
TEN_YEARS = 10 * 365 * 24 * 3600
_NEW = Fields(
    scope=Items(of=Text(), most=20), description=Text(most=255, line=True), client=Reference(),
    expires_in=Whole(least=1, most=TEN_YEARS),
)  # fmt: skip


def _render(call: Call, row: Token) -> Any:
    """A token as lists show it: redacted."""
    own = call.token is not None and row.id == call.token.id and call.identity is not None
    text = call.identity.text if own and call.identity else ""
    return serialize.authorization(row, now(), serialize.redacted(text))


@resource.on("GET", "/oauth/authorizations", needs="account", gives=shapes.many(shapes.OAUTH_AUTHORIZATION))
def index(call: Call) -> Reply:
    """The caller's tokens, redacted."""
    return call.short_listing(authorizations.all_of(call.session, call.account), ORDER, lambda row: _render(call, row))


@resource.on("POST", "/oauth/authorizations", needs="login", takes=_NEW, gives=shapes.OAUTH_AUTHORIZATION)
def create(call: Call) -> Reply:
    """Make a token, shown only now; by e-mail address and password, or by another token. With client: a grant for that client."""
    scope = ["global"] if (asked := call.body.items("scope")) is None else scopes.check(asked)
    description = call.body.text("description") or ""
    if (client := call.body.reference("client")) is not None:
        code, row = oauth.grant(call.session, call.account, client, scope, description)
        return Reply(serialize.authorization(row, now(), None, grant_code=code), 201)
    lifetime = call.body.whole("expires_in")
    text, row = accounts.issue_token(
        call.session, call.account, description, scope=scope, lifetime=timedelta(seconds=lifetime) if lifetime else None
    )
    call.session.refresh(row)
    return Reply(serialize.authorization(row, now(), text), 201)


@resource.on("GET", "/oauth/authorizations/<authorization>", needs="account", gives=shapes.OAUTH_AUTHORIZATION)
def show(call: Call, authorization: str) -> Any:
    """One token, redacted."""
    return _render(call, authorizations.find(call.session, call.account, authorization))


@resource.on("DELETE", "/oauth/authorizations/<authorization>", needs="account", gives=shapes.OAUTH_AUTHORIZATION)
def destroy(call: Call, authorization: str) -> Any:
    """Take a token away."""
    return _render(call, authorizations.remove(call.session, call.account, authorization))


@resource.on(
    "PATCH", "/oauth/authorizations/<authorization>", needs="account",
    takes=Fields(description=Text(most=255, line=True)), gives=shapes.OAUTH_AUTHORIZATION,
)  # fmt: skip
def update(call: Call, authorization: str) -> Any:
    """Change what a token is called."""
    text = call.body.text("description")
    if text is None:
        raise InvalidParams("Field description is required; an authorization's client cannot be changed.")
    return _render(call, authorizations.describe(call.session, call.account, authorization, text))


@resource.on(
    "POST", "/oauth/authorizations/<authorization>/actions/regenerate-tokens", needs="account",
    gives=shapes.OAUTH_AUTHORIZATION,
)  # fmt: skip
def regenerate(call: Call, authorization: str) -> Any:
    """Change a token for a new one, shown only now."""
    text, row = authorizations.regenerate(call.session, call.account, authorization)
    return serialize.authorization(row, now(), text)


@resource.on("DELETE", "/oauth/sessions/~", needs="account", writes=False, gives=shapes.NEVER)
def destroy_session(call: Call) -> Any:
    """End the caller's session: tokens here belong to none."""
    raise NotFound("Couldn't find that session.", resource="session")


@resource.on("GET", "/oauth/sessions", needs="account", gives=shapes.many(shapes.OAUTH_SESSION))
def sessions(call: Call) -> Reply:
    """The caller's sessions: browsers that are logged in."""
    rows = web_sessions.all_of(call.session, call.account)
    return call.short_listing(rows, SESSION_ORDER, lambda row: serialize.web_session(row, now()))


@resource.on("DELETE", "/oauth/sessions", needs="account", gives=shapes.many(shapes.OAUTH_SESSION), ours=True)
def destroy_sessions(call: Call) -> Any:
    """Log all of the caller's browsers out."""
    ended = [serialize.web_session(row, now()) for row in web_sessions.all_of(call.session, call.account)]
    web_sessions.end_all(call.session, call.account)
    return ended


@resource.on("GET", "/oauth/sessions/<session>", needs="account", gives=shapes.OAUTH_SESSION, ours=True)
def session(call: Call, session: str) -> Any:
    """One browser that is logged in."""
    for row in web_sessions.all_of(call.session, call.account):
        if row.id == session:
            return serialize.web_session(row, now())
    raise NotFound("Couldn't find that session.", resource="session")


@resource.on("DELETE", "/oauth/sessions/<session>", needs="account", gives=shapes.OAUTH_SESSION)
def destroy_session_of(call: Call, session: str) -> Any:
    """Log a browser out."""
    return serialize.web_session(web_sessions.end(call.session, call.account, session), now())
