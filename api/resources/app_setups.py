"""App setups: an app from a tarball with an app.json, in one call."""

from __future__ import annotations

from typing import Any

from api import links, serialize, shapes, streams
from api.body import Body
from api.fields import Fields, Items, Object, Reference, Text, Texts
from api.resources.buildpacks import chosen
from api.resources.builds import SOURCE_BLOB
from api.resources.catalogue import check_region, check_stack
from api.routing import Call, Reply, Resource
from builder import manifest, setup, sources
from foundation import outbound
from foundation.errors import InvalidParams
from state import domains, setups
from state.db import after_commit, transaction
from state.models import AppSetup

resource = Resource("app-setups", reads="read")

_APP = Fields(
    name=Text(), region=Reference(), stack=Reference(), space=Reference(), team=Reference(), organization=Reference()
)  # fmt: skip
_OVERRIDES = Fields(env=Texts(), buildpacks=Items(of=Object(fields=Fields(url=Text(needed=True, most=1000))), most=50))
_SETUP = Fields(
    source_blob=Object(fields=SOURCE_BLOB, needed=True), app=Object(fields=_APP), overrides=Object(fields=_OVERRIDES)
)  # fmt: skip


def _render(call: Call, row: AppSetup) -> Any:
    build = setups.build_of(call.session, row)
    return serialize.app_setup(row, build, links.build_output(build.id, call.account.id) if build else None)


@resource.on(
    "POST", "/app-setups", needs="account", writes=False, scope="write-protected",
    takes=_SETUP, gives=shapes.APP_SETUP,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Make an app from source_blob.url, a tarball with an app.json; overrides.env and overrides.buildpacks go before that."""
    app, overrides = call.body.inner("app") or _APP.read({}), call.body.inner("overrides") or _OVERRIDES.read({})
    wanted, place = _source(call.body.inside("source_blob"))
    check_region(app.reference("region"))
    for name in ("space", "team", "organization"):
        if app.reference(name):
            raise InvalidParams(f"Field app.{name}: this Davit has none.")
    stack, env, buildpacks = check_stack(app.reference("stack")), overrides.texts("env"), _buildpacks(call, overrides)
    if place is not None:
        with streams.looking_up(call.session, call.account.id):
            outbound.check(domains.marked(place))
    with transaction() as session:
        account = call.within(session).account
        row = setups.create(session, account, wanted, name=app.text("name"), stack=stack, env=env, buildpacks=buildpacks)
        after_commit(session, lambda: setup.enqueue(row.id))
    return Reply(serialize.app_setup(row, None, None), 202)


def _source(blob: Body) -> tuple[setups.Source, outbound.Place | None]:
    """What was uploaded here (POST /sources), or what lies at a URL, and where that leads."""
    url, checksum = blob.need("url"), blob.text("checksum")
    if checksum is not None and sources.checksum(checksum) is None:
        raise InvalidParams("Field source_blob.checksum must be SHA256: and 64 hexadecimal digits.")
    place, uploaded = None, links.source_of(url)
    if uploaded:
        sources.path(uploaded)
        url = f"{sources.PREFIX}{uploaded}"
    else:
        place = outbound.parse(url, manifest.SCHEMES, field="source_blob.url")
    return setups.Source(url, checksum, blob.text("version")), place


def _buildpacks(call: Call, overrides: Body) -> list[str] | None:
    wanted = overrides.items("buildpacks")
    return None if wanted is None else chosen(call, [one.need("url") for one in wanted])


@resource.on("GET", "/app-setups/<setup>", needs="account", gives=shapes.APP_SETUP)
def show(call: Call, setup: str) -> Any:
    """How far a setup is: pending, succeeded, or failed with the reason."""
    return _render(call, setups.find(call.session, call.account, setup))
