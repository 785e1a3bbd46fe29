"""The caller's account, and (Davit's own) an admin's work on accounts."""

from __future__ import annotations

from typing import Any

from api import limits, ranges, serialize, shapes
from api.fields import Fields, Flag, Text
from api.routing import Call, Reply, Resource
from foundation.errors import InvalidParams, NotFound
from state import accounts, passwords, people, two_factor
from state.models import Account

resource = Resource("account")

_CHANGES = Fields(name=Text(most=100, line=True), password=Text(), new_password=Text(), two_factor_authentication=Flag())
ORDER = ranges.Order({"email": lambda row: row.email, "id": lambda row: row.id}, {})


@resource.on("GET", "/account", needs="account", scope="identity", gives=shapes.ACCOUNT)
def show(call: Call) -> Any:
    """The caller's account."""
    return serialize.account(call.account)


@resource.on("PATCH", "/account", needs="account", takes=_CHANGES, gives=shapes.ACCOUNT)
def update(call: Call) -> Any:
    """Change the caller's name, or (Davit's own fields) the password: password is the present one, new_password the new."""
    return serialize.account(_update(call, call.account))


@resource.on("GET", "/users/<user>", needs="account", scope="identity", gives=shapes.ACCOUNT)
def show_user(call: Call, user: str) -> Any:
    """An account: the caller's (~, address or id), or any for an admin."""
    return serialize.account(_user(call, user))


@resource.on("PATCH", "/users/<user>", needs="account", takes=_CHANGES, gives=shapes.ACCOUNT)
def update_user(call: Call, user: str) -> Any:
    """Change an account's name or password: one's own, or any for an admin."""
    return serialize.account(_update(call, _user(call, user)))


def _user(call: Call, identity: str) -> Account:
    if identity in ("~", call.account.email, call.account.id):
        return call.account
    found = people.find(call.session, identity) if call.account.is_admin else None
    if found is None:
        raise NotFound("Couldn't find that user.")
    return found


def _update(call: Call, account: Account) -> Account:
    if "name" in call.body.values:
        people.rename(call.session, call.account, account, call.body.text("name"))
    if {"password", "new_password"} & call.body.values.keys():
        _update_password(call, account)
    wanted = call.body.flag("two_factor_authentication")
    if wanted and not account.two_factor:
        raise InvalidParams("Field two_factor_authentication only turns it off; POST /account/two-factor begins to turn it on.")
    if wanted is False:
        two_factor.disable(call.session, call.account, account, call.code)
    return account


def _update_password(call: Call, account: Account) -> None:
    """``password`` alone is the first one, or an admin's choice for another; with ``new_password`` it is the present one."""
    given, new = call.body.text("password"), call.body.text("new_password")
    if account.id != call.account.id:
        passwords.assign(call.session, call.account, account, new or given)
    elif new is None and account.password_hash is None:
        passwords.change(call.session, account, None, given)
    elif new is None:
        raise InvalidParams("Field new_password is required; password is the present one.")
    else:
        passwords.change(call.session, account, given, new)


@resource.on("GET", "/account/rate-limits", needs="account", scope="identity", gives=shapes.RATE_LIMIT)
def rate_limits(call: Call) -> Any:
    """How many calls the caller has left; one comes back about every second."""
    return {"remaining": limits.buckets.left(call.account.id)}


@resource.on("GET", "/users/<user>/addons", needs="account", scope="read", gives=shapes.NONE_YET)
def addons(call: Call, user: str) -> Any:
    """There are no add-ons."""
    _user(call, user)
    return []


@resource.on("GET", "/davit/accounts", needs="admin", ours=True, gives=shapes.many(shapes.ACCOUNT))
def index(call: Call) -> Reply:
    """Every account of this Davit."""
    return call.short_listing(people.everybody(call.session), ORDER, serialize.account)


@resource.on(
    "POST", "/davit/accounts", needs="admin", ours=True,
    takes=Fields(email=Text(needed=True, most=254), name=Text(most=100, line=True), admin=Flag(), password=Text()),
    gives=shapes.ACCOUNT_MADE,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Make an account; the answer holds its first token, which is shown only now."""
    email = call.body.need("email")
    account = accounts.create(
        call.session, call.account, email, name=call.body.text("name"), admin=call.body.flag("admin") or False
    )
    if (password := call.body.text("password")) is not None:
        passwords.assign(call.session, call.account, account, password)
    text, token = accounts.issue_token(call.session, account, "made with the account")
    return Reply({**serialize.account(account), "access_token": {"id": token.id, "token": text, "expires_in": None}}, 201)


def _found(call: Call, user: str) -> Account:
    account = people.find(call.session, user)
    if account is None:
        raise NotFound("Couldn't find that user.")
    return account


@resource.on("DELETE", "/davit/accounts/<user>/two-factor", needs="admin", ours=True, gives=shapes.ACCOUNT)
def disable_two_factor(call: Call, user: str) -> Any:
    """Turn somebody's two-factor authentication off, who has lost the device; one's own takes a code, as everybody's does."""
    account = _found(call, user)
    two_factor.disable(call.session, call.account, account, call.code)
    return serialize.account(account)


@resource.on("DELETE", "/davit/accounts/<user>", needs="admin", ours=True, gives=shapes.ACCOUNT)
def destroy(call: Call, user: str) -> Any:
    """Remove an account that owns no app."""
    account = _found(call, user)
    if account.id == call.account.id:
        raise InvalidParams("You cannot remove the account that you are using.")
    people.remove(call.session, call.account, account)
    return serialize.account(account)
