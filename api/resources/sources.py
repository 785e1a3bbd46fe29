"""Sources: tarballs that are uploaded to be built; and slugs as tarballs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import IO, Any

from flask import Response, request, send_file

from api import links, shapes, streams
from api.routing import Call, Reply, Resource
from builder import sources
from foundation import pace, wire
from foundation.errors import DavitError, InvalidParams, NotFound
from foundation.settings import settings
from slugs.store import Store
from state import slugs
from state.db import snapshot, transaction
from state.models import Slug

resource = Resource("sources", reads="read", writes="write-protected")


SEAL_SECONDS = 1200
"""How long unpacking and sealing an uploaded slug may take, others' before it included."""


def _blob(call: Call, app_id: str | None) -> Reply:
    what = sources.new(call.account.id), call.account.id, app_id
    return Reply({"source_blob": {"get_url": links.source(*what), "put_url": links.source_upload(*what)}}, 201)


@resource.on("POST", "/sources", needs="account", writes=False, gives=shapes.SOURCE)
def create(call: Call) -> Reply:
    """Make URLs at which a tarball is put, to be built."""
    return _blob(call, None)


@resource.on("POST", "/apps/<app>/sources", needs="deploy", writes=False, gives=shapes.SOURCE)
def create_for_app(call: Call) -> Reply:
    """The same, for an app that the caller may deploy; the URLs are good for as long as they may."""
    return _blob(call, call.app.id)


@resource.on("PUT", "/streams/sources/<secret>", needs="nothing", writes=False, ours=True, raw=True, gives=shapes.EMPTY)
def upload(call: Call, secret: str) -> Reply:
    """Put a tarball there."""
    source, account_id = links.read_source("source upload", secret)
    with streams.uploads.taken(account_id):
        _receive(source)
    return Reply({}, 200)


def _receive(id: str) -> None:
    limit = settings().push_limit << 20
    request.max_content_length = limit + (1 << 20)  # the limit itself is told in a sentence of its own
    if (request.content_length or 0) > limit:
        raise sources.SourceTooLarge(f"The source is larger than the {limit >> 20} MiB that this Davit takes at once.")
    if request.content_length is None and not request.environ.get("wsgi.input_terminated"):
        raise InvalidParams("The upload says neither how long it is nor that it comes in chunks.")
    with pace.demanded(request.environ.get("gunicorn.socket")):
        sources.receive(id, request.stream.read, request.content_length)


@resource.on("GET", "/streams/sources/<secret>", needs="nothing", ours=True, gives=shapes.TARBALL)
def download(call: Call, secret: str) -> Response:
    """What was put there."""
    id, account_id = links.read_source("source", secret)
    source, give_back = sources.path(id), streams.slots.take(account_id)
    try:
        response = send_file(source, mimetype="application/gzip")
    except BaseException:
        give_back()
        raise
    response.direct_passthrough = False  # else nobody is told when it is closed
    response.call_on_close(give_back)
    return response


@resource.on("PUT", "/streams/slugs/<secret>", needs="nothing", writes=False, ours=True, raw=True, gives=shapes.EMPTY)
def upload_slug(call: Call, secret: str) -> Reply:
    """Put a slug's tarball there, once: gzipped or plain, with ./app in it; answers when it is sealed."""
    what = links.read("slug upload", secret)
    with snapshot() as session:
        row = session.get(Slug, what["slug"])
        slugs.must_be_empty(row if row and links.may(what["uploader"], row.app_id, "deploy") else None)
    with streams.uploads.taken(what["uploader"]):
        sealed = _sealed(what["uploader"], what["checksum"])
    with transaction() as session:
        slugs.fill(session, what["slug"], sealed["digest"], sealed["size"])
    return Reply({}, 200)


def _sealed(account_id: str, checksum: str | None) -> dict[str, Any]:
    """Receive a slug's tarball and have the runtime process seal it."""
    _receive(upload := sources.new(account_id))
    try:
        sources.verify(upload, checksum)
        with sources.path(upload).open("rb", buffering=0) as file:
            sealed: dict[str, Any] = wire.call(
                settings().run / "runtime.sock", "slug.seal", fds=[file.fileno()], timeout=SEAL_SECONDS
            ).result
            return sealed
    finally:
        (sources.directory() / upload).unlink(missing_ok=True)


@resource.on("GET", "/streams/slugs/<secret>", needs="nothing", ours=True, gives=shapes.TARBALL)
def download_slug(call: Call, secret: str) -> Response:
    """A slug as a gzipped tarball of ./app."""
    what = links.read("slug", secret)
    with snapshot() as session:
        row = session.get(Slug, what["slug"])
    if row is None or row.digest is None or not links.may(what["reader"], row.app_id, "deploy"):
        raise NotFound("That slug is no longer kept.")
    Store(settings().home / "slugs").path(row.digest)  # what is not there is told before the answer has begun
    return streams.respond(_tarball(row.digest), "application/gzip", what["reader"])


def _tarball(digest: str) -> Iterator[bytes | None]:
    """The tarball through a pipe: what the reader does not take is not made."""
    store = Store(settings().home / "slugs")
    reader, writer = os.pipe()

    def write(stream: IO[bytes]) -> None:
        with stream:
            try:
                store.export_tarball(digest, stream)  # type: ignore[arg-type]
            except (OSError, DavitError):
                pass  # the reader has gone, or gets an incomplete gzip

    threading.Thread(target=write, args=[os.fdopen(writer, "wb")], daemon=True).start()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while piece := pipe.read(65536):
            yield piece

