"""Releases and rollback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api import links, ranges, serialize, shapes
from api.fields import Fields, Reference, Text, Texts
from api.resources.catalogue import check_stack
from api.routing import Call, Reply, Resource
from builder import sources
from foundation.errors import InvalidParams, NotFound
from state import listings, releases, slugs
from state.models import Release, Slug

resource = Resource("releases")

_NEW_SLUG = Fields(
    process_types=Texts(), stack=Reference(), checksum=Text(most=100), commit=Text(most=64, line=True),
    commit_description=Text(most=1000), buildpack_provided_description=Text(most=200, line=True),
)  # fmt: skip
DESCRIPTION = 200
"""Characters that are kept of what a client calls a release. More come: `heroku releases:retry` sends the whole name of the
release before, which for config vars has all of theirs, and a retry of a retry would get longer each time.
"""
ORDER = ranges.Order({"version": lambda row: row.version, "id": lambda row: row.id}, {"version": int})


def _render(call: Call, rows: Sequence[Release]) -> list[Any]:
    eligible = listings.eligible_for_rollback(call.session, call.app, rows)
    reader = call.account.id
    return [
        serialize.release(
            call.app,
            row,
            eligible=row.id in eligible,
            output_stream_url=links.release_output(row.id, reader) if releases.RELEASE_TYPE in row.process_types else None,
        )
        for row in rows
    ]


@resource.on("GET", "/apps/<app>/releases", needs="view", gives=shapes.many(shapes.RELEASE))
def index(call: Call) -> Reply:
    """The app's releases, by version."""
    window = call.window(ORDER)
    page = listings.releases(call.session, call.app, window)
    rendered = dict(zip((row.id for row in page.items), _render(call, page.items), strict=True))
    return call.listing(page, ORDER, window, lambda row: rendered[row.id])


@resource.on("GET", "/apps/<app>/releases/<release>", needs="view", gives=shapes.RELEASE)
def show(call: Call, release: str) -> Any:
    """One release, by v7, 7 or id."""
    return _render(call, [releases.find(call.session, call.app, release)])[0]


@resource.on(
    "POST", "/apps/<app>/releases", needs="deploy",
    takes=Fields(release=Reference(number=True, most=100), slug=Reference(), description=Text(most=100_000, line=True)),
    gives=shapes.RELEASE,
)  # fmt: skip
def create(call: Call) -> Reply:
    """Roll back to a release (release), or release a slug of the app's again (slug)."""
    if identity := call.body.reference("release"):
        target = releases.find(call.session, call.app, identity)
        made = releases.rollback(call.session, call.account, call.app, target)
    else:
        made = _release_slug(call, call.body.reference("slug"))
    return Reply(_render(call, [made])[0], 201)


def _release_slug(call: Call, identity: str | None) -> Release:
    if identity is None:
        raise InvalidParams("Field release (what to roll back to) or field slug (what to release) is required.")
    slug = _slug(call, identity)
    if slug.size is None:
        raise InvalidParams("Nothing was uploaded to that slug; put its tarball at the blob.url that POST …/slugs gave.")
    if slug.digest is None:
        raise InvalidParams("That slug is no longer kept; push its code again.")
    description = call.body.text("description") or f"Deploy {(slug.commit or slug.id)[:8]}"
    description = description[:DESCRIPTION]
    return releases.create(call.session, call.app, call.account, kind="deploy", description=description, slug=slug)


def _slug(call: Call, identity: str) -> Slug:
    slug = call.session.get(Slug, identity)
    if slug is None or slug.app_id != call.app.id:
        raise NotFound("Couldn't find that slug.", resource="slug")
    return slug


@resource.on("POST", "/apps/<app>/slugs", needs="deploy", takes=_NEW_SLUG, gives=shapes.SLUG)
def create_slug(call: Call) -> Reply:
    """Make a slug of a tarball of ./app: process_types; put the tarball at blob.url, then release it within two hours."""
    checksum = call.body.text("checksum")
    if checksum is not None and sources.checksum(checksum) is None:
        raise InvalidParams("Field checksum must be SHA256: and 64 hexadecimal digits.")
    row = slugs.create(
        call.session, call.account, call.app, call.body.texts("process_types"), stack=check_stack(call.body.reference("stack")),
        commit=call.body.text("commit"), commit_description=call.body.text("commit_description"),
        buildpack_provided_description=call.body.text("buildpack_provided_description"),
    )  # fmt: skip
    return Reply(serialize.slug(row, blob_url=links.slug_upload(row.id, call.account.id, checksum), put=True), 201)


@resource.on("GET", "/apps/<app>/slugs/<slug>", needs="view", gives=shapes.SLUG)
def show_slug(call: Call, slug: str) -> Any:
    """A slug: what a release runs."""
    row = _slug(call, slug)
    return serialize.slug(row, blob_url=links.slug(row.id, call.account.id) if row.digest and call.may("deploy") else "")
