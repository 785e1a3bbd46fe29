"""``heroku ps:exec`` asks here for a way into a dyno: an SSH server (:mod:`api.tunnel`), where there is one."""

from __future__ import annotations

from typing import Any

from flask import request

from api import links, shapes
from api.fields import Fields, Text
from api.routing import Call, Resource
from foundation.errors import DavitError, InvalidParams, NotFound
from foundation.settings import settings
from state import apps, formation

resource = Resource("exec")

_INSTEAD = (
    "`heroku ps:exec` looks for SSH on port 80 of an address, and this Davit has none (DAVIT_EXEC). "
    "`heroku run:inside web.1 bash` and `davit ps:exec` open a shell in a dyno that runs."
)
_ANYWHERE = frozenset(("", "0.0.0.0", "::"))
_WAY = shapes.plain(
    shapes.thing(client_user=shapes.TEXT, dyno_ip=shapes.TEXT, proxy_public_key=shapes.TEXT, tunnel_host=shapes.TEXT)
)  # fmt: skip


class NoTunnel(DavitError):
    """The tunnel that the heroku command wants is not served."""

    id, status = "not_implemented", 501


def _app_name() -> str:
    """The app, which the command says as the user name of Basic authentication."""
    name = request.authorization.username if request.authorization else None
    if not name:
        raise InvalidParams("Name the app as the user of Basic authentication, and a token as its password.")
    if "\x00" in name:  # PostgreSQL takes none
        raise NotFound(apps.NOT_FOUND, resource="app")
    return name


@resource.on(
    "PUT", "/api/v2/<dyno>", needs="account", writes=False, ours=True, scope="write-protected",
    takes=Fields(client_key=Text(needed=True, most=10_000)), gives=_WAY,
)  # fmt: skip
def tunnel(call: Call, dyno: str) -> Any:
    """Where SSH leads into a dyno, for the holder of client_key; the app is the user of Basic authentication."""
    if settings().exec is None:
        raise NoTunnel(_INSTEAD)
    from api import tunnel  # loads an SSH library, which only this needs

    app = apps.find(call.session, call.account, _app_name(), "operate")
    row = next((row for row in formation.dynos(call.session, app) if dyno in (row.name, row.id)), None)
    if row is None:
        raise NotFound(f"Couldn't find that process ({dyno}).")
    assert call.token is not None
    user = tunnel.ticket(app.id, row.id, call.token, call.body.need("client_key"))
    if user is None:
        raise InvalidParams("Field client_key must be a public key as OpenSSH writes it.")
    address = settings().exec
    assert address is not None
    host = address.host if address.host not in _ANYWHERE else links.own_host() or "127.0.0.1"
    return {"client_user": user, "dyno_ip": "", "proxy_public_key": tunnel.public_host_key(), "tunnel_host": host}


@resource.on(
    "GET", "/api/v2", needs="account", ours=True, scope="read",
    gives=shapes.many(shapes.plain(shapes.thing(dyno_name=shapes.TEXT))),
)  # fmt: skip
def status(call: Call) -> Any:
    """The dynos of the app (the user of Basic authentication) that SSH leads into."""
    if settings().exec is None:
        return []
    app = apps.find(call.session, call.account, _app_name(), "view")
    return [{"dyno_name": row.name} for row in formation.dynos(call.session, app) if row.state == "up"]
