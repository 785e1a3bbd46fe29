"""Builds."""

from __future__ import annotations

from typing import Any

from api import links, ranges, serialize, shapes
from api.body import Body
from api.fields import Fields, Items, Object, Text
from api.resources.buildpacks import chosen
from api.routing import Call, Reply, Resource
from builder import queue, sources
from builder.inside import without_secrets
from foundation import outbound
from foundation.errors import InvalidParams
from state import builds, listings
from state.db import after_commit, transaction
from state.models import Build

resource = Resource("builds", reads="read")

SOURCE_BLOB = Fields(url=Text(needed=True, most=2000), checksum=Text(most=100), version=Text(most=255, line=True))
_BUILDPACK = Object(fields=Fields(url=Text(most=1000), name=Text(most=1000)))
ORDER = ranges.BY_AGE


def _render(call: Call, build: Build) -> Any:
    url = links.build_output(build.id, call.account.id)
    source = _shown(call, build.source_url or "")
    return serialize.build(build, output_stream_url=url, source_url=source, in_full=call.may("deploy"))


def _shown(call: Call, url: str) -> str:
    """Where the source is: in full for those who may have the code; to others neither a key to it nor a password in it."""
    if not url:
        return ""
    deploys = call.may("deploy")
    if url.startswith(sources.PREFIX):
        return links.source(url.removeprefix(sources.PREFIX), call.account.id, call.app.id) if deploys else ""
    return url if deploys else without_secrets(url).partition("#")[0]


@resource.on("GET", "/apps/<app>/builds", needs="view", gives=shapes.many(shapes.BUILD))
def index(call: Call) -> Reply:
    """The app's builds, oldest first."""
    window = call.window(ORDER)
    return call.listing(listings.builds(call.session, call.app, window), ORDER, window, lambda build: _render(call, build))


@resource.on("GET", "/apps/<app>/builds/<build>", needs="view", gives=shapes.BUILD)
def show(call: Call, build: str) -> Any:
    """One build."""
    return _render(call, builds.find(call.session, call.app, build))


@resource.on(
    "POST", "/apps/<app>/builds", needs="deploy",
    takes=Fields(source_blob=Object(fields=SOURCE_BLOB), buildpacks=Items(of=_BUILDPACK, most=50)), gives=shapes.BUILD,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Build a tarball (source_blob), or without one the newest deployed commit again."""
    blob = call.body.inner("source_blob")
    build = _again(call) if blob is None else _from_source(call, blob)
    after_commit(call.session, lambda: queue.tell_of_wait(build.id))
    after_commit(call.session, lambda: queue.enqueue_next(build.app_id))
    return Reply(_render(call, build), 201)


def _again(call: Call) -> Build:
    last = listings.deployed_commit(call.session, call.app)
    if last is None:
        raise InvalidParams(f"{call.app.name} has no deployed commit to build again; push some code first.")
    return builds.create(
        call.session, call.app, call.account, commit=last.commit, source_version=last.source_version, buildpacks=_buildpacks(call)
    )


def _from_source(call: Call, blob: Body) -> Build:
    """A build of what was uploaded here, or of what lies at a URL, which the build's sandbox fetches."""
    url, checksum = blob.need("url"), blob.text("checksum")
    if checksum is not None and sources.checksum(checksum) is None:
        raise InvalidParams("Field source_blob.checksum must be SHA256: and 64 hexadecimal digits.")
    uploaded = links.source_of(url)
    if uploaded:
        sources.path(uploaded)
        url = f"{sources.PREFIX}{uploaded}"
    else:
        outbound.parse(url, ("https", "http"), field="source_blob.url")
    return builds.create(
        call.session, call.app, call.account, source_url=url, source_checksum=checksum,
        source_version=blob.text("version"), buildpacks=_buildpacks(call),
    )  # fmt: skip


def _buildpacks(call: Call) -> list[str] | None:
    given = call.body.items("buildpacks")
    if given is None:
        return None
    wanted = [one.text("url") or one.text("name") for one in given]
    if not all(wanted):
        raise InvalidParams("Field buildpacks: each takes a url or a name.")
    return chosen(call, wanted)


@resource.on("DELETE", "/apps/<app>/build-cache", needs="deploy", writes=False, gives=shapes.EMPTY)
def purge_cache(call: Call) -> Any:
    """Throw the build cache away: the next build fetches everything anew."""
    builds.purge_cache(call.app.id)
    with transaction() as session:
        now = call.within(session)
        builds.note_purge(session, now.account, now.app)
    return {}


@resource.on("DELETE", "/apps/<app>/builds/<build>", needs="deploy", gives=shapes.BUILD)
def cancel(call: Call, build: str) -> Any:
    """Cancel a build that is waiting or under way."""
    row = builds.find(call.session, call.app, build)
    builds.request_cancel(call.session, call.account, call.app, row)
    after_commit(call.session, lambda: queue.withdraw(row.id))
    return _render(call, row)
