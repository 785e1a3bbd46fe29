"""Config vars."""

from __future__ import annotations

from typing import Any

from api import serialize, shapes
from api.fields import Fields, Setting
from api.routing import Call, Resource
from state import config, releases

resource = Resource("config-vars")


@resource.on("GET", "/apps/<app>/config-vars", needs="deploy", gives=shapes.CONFIG_VAR)
def show(call: Call) -> Any:
    """The app's config vars, by name."""
    return serialize.config(config.read(call.app))


@resource.on("PATCH", "/apps/<app>/config-vars", needs="operate", takes=Fields(Setting()), gives=shapes.CONFIG_VAR)
def update(call: Call) -> Any:
    """Set (a string) and unset (null) config vars; makes a release."""
    config.change(call.session, call.account, call.app, call.body.values)
    values = config.read(call.app)
    if not call.may("deploy"):  # who may set and not read hears of what they have just set
        values = {name: value for name, value in values.items() if name in call.body.values}
    return serialize.config(values)


@resource.on("GET", "/apps/<app>/releases/<release>/config-vars", needs="deploy", gives=shapes.CONFIG_VAR)
def show_of_release(call: Call, release: str) -> Any:
    """The config vars that a release has."""
    return serialize.config(releases.config_of(releases.find(call.session, call.app, release)))
