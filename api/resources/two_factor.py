"""The second factor of the caller's login (Davit's own: on Heroku only its web pages do this), and pre-authorizations."""

from __future__ import annotations

from typing import Any

from api import serialize, shapes
from api.fields import Fields, Text
from api.routing import Call, Reply, Resource
from state import guard, passwords, two_factor

resource = Resource("two-factor")

_CODES = shapes.plain(shapes.thing(recovery_codes=shapes.things(shapes.TEXT)))


@resource.on("GET", "/account/two-factor", needs="account", gives=shapes.plain(shapes.thing(enabled=shapes.FLAG)), ours=True)
def show(call: Call) -> Any:
    """Whether a login of the caller's takes a second factor."""
    return {"enabled": call.account.two_factor}


@resource.on(
    "POST", "/account/two-factor", needs="account", ours=True,
    takes=Fields(password=Text()), gives=shapes.plain(shapes.thing(secret=shapes.TEXT, uri=shapes.TEXT)),
)  # fmt: skip
def begin(call: Call) -> Reply:
    """Begin two-factor authentication: a secret for an authenticator app; nothing changes until it is confirmed."""
    _password_again(call)
    enrolment = two_factor.begin(call.session, call.account)
    return Reply({"secret": enrolment.secret, "uri": enrolment.uri}, 201)


def _password_again(call: Call) -> None:
    """Who found a token must not lock its owner out: where the account has a password, turning this on takes it."""
    if call.account.password_hash is not None:
        passwords.confirm(call.session, call.account, call.body.text("password"))


@resource.on(
    "POST", "/account/two-factor/actions/confirm", needs="account", ours=True,
    takes=Fields(code=Text(needed=True, most=20)), gives=_CODES,
)  # fmt: skip
def confirm(call: Call) -> Any:
    """Turn it on with a code of the app; the answer has the recovery codes, which are shown only now."""
    return {"recovery_codes": two_factor.confirm(call.session, call.account, call.body.need("code"))}


@resource.on("DELETE", "/account/two-factor", needs="account", ours=True, gives=shapes.EMPTY)
def disable(call: Call) -> Any:
    """Turn it off; takes a code in the header Heroku-Two-Factor-Code."""
    two_factor.disable(call.session, call.account, call.account, call.code)
    return {}


@resource.on("POST", "/account/recovery-codes", needs="account", ours=True, gives=_CODES)
def recovery_codes(call: Call) -> Any:
    """Make new recovery codes, shown only now; takes a code in the header Heroku-Two-Factor-Code."""
    return {"recovery_codes": two_factor.recovery_codes(call.session, call.account, call.code)}


@resource.on(
    "PUT", "/apps/<app>/pre-authorizations", needs="view",
    gives=shapes.plain(shapes.thing(id=shapes.ID, expires_at=shapes.AT)),
)  # fmt: skip
def pre_authorize(call: Call) -> Any:
    """Give a two-factor code now, so that what the app's two-factor guard is for takes none for ten minutes."""
    row = guard.authorize(call.session, call.account, call.token, call.app, call.code)
    return {"id": row.id, "expires_at": serialize.moment(row.expires_at)}
