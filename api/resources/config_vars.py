"""Config vars."""

from __future__ import annotations

from typing import Any

from api import serialize
from api.routing import Call, Resource
from foundation.errors import InvalidParams
from state import config, releases

resource = Resource("config-vars")


@resource.on("GET", "/apps/<app>/config-vars", needs="deploy")
def show(call: Call) -> Any:
    """The app's config vars, by name."""
    return serialize.config(config.read(call.app))


@resource.on("PATCH", "/apps/<app>/config-vars", needs="operate")
def update(call: Call) -> Any:
    """Set (a string) and unset (null) config vars; makes a release."""
    for name, value in call.body.values.items():
        if value is not None and not isinstance(value, str):
            raise InvalidParams(f"The value of config var {name} must be a string, or null to unset it.")
    config.change(call.session, call.account, call.app, call.body.values)
    values = config.read(call.app)
    if not call.may("deploy"):  # who may set and not read hears of what they have just set
        values = {name: value for name, value in values.items() if name in call.body.values}
    return serialize.config(values)


@resource.on("GET", "/apps/<app>/releases/<release>/config-vars", needs="deploy")
def show_of_release(call: Call, release: str) -> Any:
    """The config vars that a release has."""
    return serialize.config(releases.config_of(releases.find(call.session, call.app, release)))
