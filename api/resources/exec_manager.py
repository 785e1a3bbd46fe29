"""``heroku ps:exec`` asks here for a tunnel; this says what there is instead."""

from __future__ import annotations

from typing import Any

from api import shapes
from api.routing import Call, Resource
from foundation.errors import DavitError

resource = Resource("exec")

_INSTEAD = (
    "This version of Davit has no SSH server on port 80, where `heroku ps:exec` looks for one. "
    "`heroku run:inside web.1 bash` and `davit ps:exec` open a shell in a dyno that runs."
)


class NoTunnel(DavitError):
    """The tunnel that the heroku command wants is not served."""

    id, status = "not_implemented", 501


@resource.on("PUT", "/api/v2/<dyno>", needs="account", writes=False, ours=True, gives=shapes.NEVER)
def tunnel(call: Call, dyno: str) -> Any:
    """Says what there is instead of a tunnel into a dyno."""
    raise NoTunnel(_INSTEAD)


@resource.on("GET", "/api/v2", needs="account", ours=True, gives=shapes.NONE_YET)
def status(call: Call) -> Any:
    """The dynos that have a tunnel: none."""
    return []
