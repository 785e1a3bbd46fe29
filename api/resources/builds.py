"""Builds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from api import links, ranges, serialize
from api.resources.buildpacks import chosen
from api.routing import Call, Reply, Resource
from builder import queue
from foundation.errors import DavitError, InvalidParams
from state import builds, listings
from state.db import after_commit
from state.models import Build

resource = Resource("builds", reads="read")

ORDER = ranges.Order({"created_at": lambda row: row.created_at, "id": lambda row: row.id}, {"created_at": datetime})


class SourceNotServed(DavitError):
    """Builds from a tarball are not served by this version."""

    id, status = "not_implemented", 501


def _render(build: Build) -> Any:
    return serialize.build(build, output_stream_url=links.build_output(build.id))


@resource.on("GET", "/apps/<app>/builds", needs="view")
def index(call: Call) -> Reply:
    """The app's builds, oldest first."""
    window = call.window(ORDER)
    return call.listing(listings.builds(call.session, call.app, window), ORDER, window, _render)


@resource.on("GET", "/apps/<app>/builds/<build>", needs="view")
def show(call: Call, build: str) -> Any:
    """One build."""
    return _render(builds.find(call.session, call.app, build))


@resource.on("POST", "/apps/<app>/builds", needs="deploy")
def create(call: Call) -> Reply:
    """Build the newest deployed commit again; a source_blob is not served yet."""
    if call.body.values.get("source_blob") is not None:
        raise SourceNotServed(
            "Builds from a tarball (source_blob) are not served by this version of Davit; push with git, "
            "or leave source_blob out to build the newest deployed commit again."
        )
    last = listings.deployed_commit(call.session, call.app)
    if last is None:
        raise InvalidParams(f"{call.app.name} has no deployed commit to build again; push some code first.")
    build = builds.create(
        call.session, call.app, call.account, commit=last.commit, source_version=last.source_version, buildpacks=_buildpacks(call)
    )
    after_commit(call.session, lambda: queue.tell_of_wait(build.id))
    after_commit(call.session, lambda: queue.enqueue_next(build.app_id))
    return Reply(_render(build), 201)


def _buildpacks(call: Call) -> list[str] | None:
    if call.body.values.get("buildpacks") is None:
        return None
    wanted = [body.text("url", most=1000) or body.need("name", most=1000) for body in call.body.objects("buildpacks", most=50)]
    return chosen(call, wanted)


@resource.on("DELETE", "/apps/<app>/builds/<build>", needs="deploy")
def cancel(call: Call, build: str) -> Any:
    """Cancel a build that is waiting or under way."""
    row = builds.find(call.session, call.app, build)
    builds.request_cancel(call.session, call.account, call.app, row)
    return _render(row)
