"""The second factor of the caller's login (Davit's own: on Heroku only its web pages do this), and pre-authorizations."""

from __future__ import annotations

from typing import Any

from api import serialize
from api.routing import Call, Reply, Resource
from state import guard, passwords, two_factor

resource = Resource("two-factor")


@resource.on("POST", "/account/two-factor", needs="account", ours=True)
def begin(call: Call) -> Reply:
    """Begin two-factor authentication: a secret for an authenticator app; nothing changes until it is confirmed."""
    _password_again(call)
    enrolment = two_factor.begin(call.session, call.account)
    return Reply({"secret": enrolment.secret, "uri": enrolment.uri}, 201)


def _password_again(call: Call) -> None:
    """Who found a token must not lock its owner out: where the account has a password, turning this on takes it."""
    if call.account.password_hash is not None:
        passwords.confirm(call.session, call.account, call.body.text("password"))


@resource.on("POST", "/account/two-factor/actions/confirm", needs="account", ours=True)
def confirm(call: Call) -> Any:
    """Turn it on with a code of the app; the answer has the recovery codes, which are shown only now."""
    return {"recovery_codes": two_factor.confirm(call.session, call.account, call.body.need("code", most=20))}


@resource.on("DELETE", "/account/two-factor", needs="account", ours=True)
def disable(call: Call) -> Any:
    """Turn it off; takes a code in the header Heroku-Two-Factor-Code."""
    two_factor.disable(call.session, call.account, call.account, call.code)
    return {}


@resource.on("POST", "/account/recovery-codes", needs="account", ours=True)
def recovery_codes(call: Call) -> Any:
    """Make new recovery codes, shown only now; takes a code in the header Heroku-Two-Factor-Code."""
    return {"recovery_codes": two_factor.recovery_codes(call.session, call.account, call.code)}


@resource.on("PUT", "/apps/<app>/pre-authorizations", needs="view")
def pre_authorize(call: Call) -> Any:
    """Give a two-factor code now, so that what the app's two-factor guard is for takes none for ten minutes."""
    row = guard.authorize(call.session, call.account, call.token, call.app, call.code)
    return {"id": row.id, "expires_at": serialize.moment(row.expires_at)}
