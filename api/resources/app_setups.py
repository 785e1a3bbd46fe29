"""App setups: an app from a tarball with an app.json, in one call."""

from __future__ import annotations

from typing import Any

from api import links, serialize
from api.body import Body
from api.resources.buildpacks import chosen
from api.resources.catalogue import check_region, check_stack
from api.routing import Call, Reply, Resource
from builder import manifest, setup, sources
from foundation import outbound
from foundation.errors import InvalidParams, Unauthorized
from state import accounts, setups
from state.db import after_commit, transaction
from state.models import Account, AppSetup

resource = Resource("app-setups", reads="read")


def _render(call: Call, row: AppSetup) -> Any:
    build = setups.build_of(call.session, row)
    return serialize.app_setup(row, build, links.build_output(build.id, call.account.id) if build else None)


@resource.on("POST", "/app-setups", needs="account", writes=False, scope="write-protected")
def create(call: Call) -> Reply:
    """Make an app from source_blob.url, a tarball with an app.json; overrides.env and overrides.buildpacks go before that."""
    blob, app, overrides = (_inner(call, name) for name in ("source_blob", "app", "overrides"))
    wanted, place = _source(blob)
    check_region(app.reference("region"))
    for name in ("space", "team", "organization"):
        if app.values.get(name) is not None:
            raise InvalidParams(f"Field app.{name}: this Davit has none.")
    stack, env, buildpacks = check_stack(app.reference("stack")), overrides.texts("env"), _buildpacks(call, overrides)
    if place is not None:
        outbound.check(place)  # takes as long as DNS does: not while others wait for the database
    with transaction() as session:
        account = session.get(Account, call.account.id)
        if account is None:
            raise Unauthorized(accounts.INVALID_CREDENTIALS)
        row = setups.create(session, account, wanted, name=app.text("name"), stack=stack, env=env, buildpacks=buildpacks)
        after_commit(session, lambda: setup.enqueue(row.id))
    return Reply(serialize.app_setup(row, None, None), 202)


def _source(blob: Body) -> tuple[setups.Source, outbound.Place | None]:
    """What was uploaded here (POST /sources), or what lies at a URL, and where that leads."""
    url, checksum = blob.need("url", most=2000), blob.text("checksum", most=100)
    if checksum is not None and sources.checksum(checksum) is None:
        raise InvalidParams("Field source_blob.checksum must be SHA256: and 64 hexadecimal digits.")
    place, uploaded = None, links.source_of(url)
    if uploaded:
        sources.path(uploaded)
        url = f"{sources.PREFIX}{uploaded}"
    else:
        place = outbound.parse(url, manifest.SCHEMES, field="source_blob.url")
    return setups.Source(url, checksum, blob.text("version", most=255)), place


def _inner(call: Call, name: str) -> Body:
    value = call.body.values.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidParams(f"Field {name} must be an object.")
    return Body(value or {}, f"{name}.")


def _buildpacks(call: Call, overrides: Body) -> list[str] | None:
    if overrides.values.get("buildpacks") is None:
        return None
    return chosen(call, [one.need("url", most=1000) for one in overrides.objects("buildpacks", most=50)])


@resource.on("GET", "/app-setups/<setup>", needs="account")
def show(call: Call, setup: str) -> Any:
    """How far a setup is: pending, succeeded, or failed with the reason."""
    return _render(call, setups.find(call.session, call.account, setup))
