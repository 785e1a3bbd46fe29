"""Builds with their output as it comes, releases, what changed between two, rolling back."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from flask import Response, request

from builder import output, queue, sources
from dashboard import ansi, frame
from dashboard.routing import Pages, Visit
from dashboard.views.apps import addresses
from foundation import line, outbound
from foundation.errors import InvalidParams, NotFound
from foundation.settings import settings
from state import apps, builds, compare, listings, releases
from state.db import after_commit, transaction
from state.models import Build, Release
from state.pages import Window

pages = Pages("deploy")

SHOWN = 256 << 10
"""Bytes of output that a page shows at first; the whole is a download away."""
PAGE = 20
OFFERED = 200
"""Releases among which one is chosen to compare with; where there are more, its number is typed."""


@pages.on("GET", "/apps/<app>/deploy", does="GET /apps/<app>/builds")
def show(visit: Visit) -> Response:
    """How to deploy, builds, releases."""
    made = listings.builds(visit.session, visit.app, Window("created_at", maximum=PAGE, descending=True))
    versions = listings.releases(visit.session, visit.app, Window("version", maximum=PAGE, descending=True))
    return frame.page(
        visit, "Deploy", "deploy.html", builds=made.items, more_builds=made.more, releases=versions.items,
        more_releases=versions.more, rebuildable=listings.deployed_commit(visit.session, visit.app),
        eligible=listings.eligible_for_rollback(visit.session, visit.app, versions.items), **addresses(visit.app.name),
    )  # fmt: skip


@pages.on("GET", "/apps/<app>/builds", does="GET /apps/<app>/builds")
def all_builds(visit: Visit) -> Response:
    """Every build."""
    made = listings.builds(visit.session, visit.app, Window("created_at", maximum=200, descending=True))
    return frame.page(visit, "Deploy", "builds.html", builds=made.items, more=made.more)


@pages.on("GET", "/apps/<app>/builds/<build>", does="GET /apps/<app>/builds/<build>")
def build(visit: Visit, build: str) -> Response:
    """One build: why it failed, what it printed; while it runs, as it prints."""
    row = builds.find(visit.session, visit.app, build)
    found = _Output(output.directory(row.id) / "output")
    release = visit.session.get(Release, row.release_id) if row.release_id else None
    return frame.page(
        visit, "Deploy", "build.html", build=row, release=release, output=found,
        repeatable=_repeatable(row, listings.deployed_commit(visit.session, visit.app)), ahead=builds.ahead(visit.session, row)
        if row.status == "pending" and row.phase == "waiting" else None,
    )  # fmt: skip


class _Output:
    """The end of a build's output as HTML, and the cursor after it."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                whole = file.seek(0, 2)
                file.seek(max(0, whole - SHOWN))
                data = file.read(SHOWN)
        except FileNotFoundError:
            whole, data = 0, b""
        self.left_out = max(0, whole - len(data))
        if self.left_out:
            data = data[data.find(b"\n") + 1 :]
        kept = data[: data.rfind(b"\n") + 1]  # a line that is not whole yet comes with the stream
        self.html, pen = ansi.pieces(kept)
        self.cursor = f"{whole - len(data) + len(kept)}:{pen}"


@pages.on("GET", "/apps/<app>/builds/<build>/output", does="GET /apps/<app>/builds/<build>")
def download(visit: Visit, build: str) -> Response:
    """All that a build printed, as a text file."""
    row = builds.find(visit.session, visit.app, build)
    path = output.directory(row.id) / "output"
    data = path.read_bytes() if path.exists() else b""
    answer = Response(data, content_type="text/plain; charset=utf-8")
    answer.headers["Content-Disposition"] = f'attachment; filename="{visit.app.name}-build-{row.id[:8]}.txt"'
    return answer


@pages.on("POST", "/apps/<app>/builds", does="POST /apps/<app>/builds", again=show)
def rebuild(visit: Visit) -> Response:
    """Build again: what the build named in the form built, or the newest deployed commit."""
    last = listings.deployed_commit(visit.session, visit.app)
    if id := visit.text("build", 36):
        chosen = builds.find(visit.session, visit.app, id)
        if not _repeatable(chosen, last):
            raise InvalidParams("What that build built is not kept here any more; push or upload it again.")
    elif last is None:
        raise InvalidParams(f"{visit.app.name} has no deployed commit to build again; push some code first.")
    else:
        chosen = last
    made = builds.create(
        visit.session, visit.app, visit.account, commit=chosen.commit, source_version=_named(chosen),
        source_url=chosen.source_url, source_checksum=chosen.source_checksum,
    )  # fmt: skip
    _enqueue(visit, made)
    return visit.done(f"/apps/{visit.app.name}/builds/{made.id}")


def _named(row: Build) -> str | None:
    """What a build is called when it is built again; one of an address may be from when its secrets were part of the name."""
    url, name = row.source_url or "", row.source_version
    return _version(url) if url.startswith("http") and re.search("[?@]", name or "") else name


def _repeatable(row: Build, last: Build | None) -> bool:
    """Whether what a build built is still there: an address, an upload of today, or the newest deployed commit. The commit of a
    refused push is in no repository.

    Args:
        last: the newest build of a commit that was released.
    """
    if row.source_url and row.source_url.startswith(sources.PREFIX):
        return sources.is_kept(row.source_url.removeprefix(sources.PREFIX))
    return bool(row.source_url) or (last is not None and row.commit == last.commit)


@pages.on("POST", "/apps/<app>/build-cache/purge", does="DELETE /apps/<app>/build-cache", again=show, writes=False)
def purge_cache(visit: Visit) -> Response:
    """Throw the build cache away."""
    assert visit.signed is not None
    builds.purge_cache(visit.app.id)
    with transaction() as session:
        account = visit.signed.within(session).account
        builds.note_purge(session, account, apps.find(session, account, visit.app.id, "deploy"))
    return visit.done(f"/apps/{visit.app.name}/deploy", "The build cache is gone; the next build fetches everything anew.")


@pages.on("POST", "/apps/<app>/deploy/tarball", does="POST /apps/<app>/builds", again=show, writes=False, upload=True)
def deploy_tarball(visit: Visit) -> Response:
    """Build what was uploaded."""
    file = request.files.get("tarball")
    if file is None or not file.filename:
        raise InvalidParams("Choose a .tar.gz file with your project in it.")
    id = sources.new(visit.account.id)
    visit.session.rollback()  # nothing may be held while a file is written
    sources.receive(id, file.stream.read)
    return _build_source(visit, f"{sources.PREFIX}{id}", line.of(file.filename)[-200:] or "tarball")


@pages.on("POST", "/apps/<app>/deploy/url", does="POST /apps/<app>/builds", again=show, writes=False)
def deploy_url(visit: Visit) -> Response:
    """Build a public git repository, or a tarball, that lies at an address; the build's sandbox fetches it."""
    url = visit.text("url", 2000)
    outbound.parse(url, ("https", "http"), field="address")
    return _build_source(visit, url, _version(url))


def _version(url: str) -> str:
    """What releases of an address are called: its last part and branch. User, password and query may be secrets that open it."""
    parts = urlsplit(url)
    name = parts.path.rstrip("/").rpartition("/")[2] or parts.hostname or ""
    return f"{name}#{parts.fragment}"[:200] if parts.fragment else name[:200]


def _build_source(visit: Visit, url: str, version: str) -> Response:
    with transaction() as session:
        assert visit.signed is not None
        account = visit.signed.within(session).account
        app = apps.find(session, account, visit.app.id, "deploy")
        made = builds.create(session, app, account, source_url=url, source_version=version)
        after_commit(session, lambda: queue.tell_of_wait(made.id))
        after_commit(session, lambda: queue.enqueue_next(made.app_id))
    return visit.done(f"/apps/{visit.app.name}/builds/{made.id}")


def _enqueue(visit: Visit, build: Build) -> None:
    after_commit(visit.session, lambda: queue.tell_of_wait(build.id))
    after_commit(visit.session, lambda: queue.enqueue_next(build.app_id))


@pages.on("POST", "/apps/<app>/builds/<build>/cancel", does="DELETE /apps/<app>/builds/<build>", again=build)
def cancel(visit: Visit, build: str) -> Response:
    """Give a build up."""
    row = builds.find(visit.session, visit.app, build)
    builds.request_cancel(visit.session, visit.account, visit.app, row)
    after_commit(visit.session, lambda: queue.withdraw(row.id))
    return visit.done(f"/apps/{visit.app.name}/builds/{row.id}", "The build is being cancelled.")


@pages.on("GET", "/apps/<app>/releases", does="GET /apps/<app>/releases")
def all_releases(visit: Visit) -> Response:
    """Every release."""
    versions = listings.releases(visit.session, visit.app, Window("version", maximum=500, descending=True))
    eligible = listings.eligible_for_rollback(visit.session, visit.app, versions.items)
    return frame.page(visit, "Deploy", "releases.html", releases=versions.items, more=versions.more, eligible=eligible)


@pages.on("GET", "/apps/<app>/releases/<release>", does="GET /apps/<app>/releases/<release>")
def release(visit: Visit, release: str) -> Response:
    """One release, compared with the one before it or with any other (``?from=v3``)."""
    row = releases.find(visit.session, visit.app, release)
    other = _before(visit, row)
    if chosen := request.args.get("from"):
        try:
            other = releases.find(visit.session, visit.app, chosen)
        except NotFound:
            visit.problem = InvalidParams(f"There is no release “{chosen[:20]}” to compare this one with.")
    offered = listings.releases(visit.session, visit.app, Window("version", maximum=OFFERED, descending=True))
    current = releases.current(visit.session, visit.app.id)
    goes_back = current is not None and current.id != row.id and releases.eligible(visit.session, row)
    return frame.page(
        visit, "Deploy", "release.html", release=row, other=other, every=offered.items, more=offered.more, current=current,
        changes=compare.releases(other, row) if other else None, printed=_printed(row),
        rollback=compare.releases(current, row) if current and goes_back else None,
    )  # fmt: skip


def _before(visit: Visit, row: Release) -> Release | None:
    page = listings.releases(visit.session, visit.app, Window("version", row.version, after=True, maximum=1, descending=True))
    return page.items[0] if page.items else None


def _printed(row: Release) -> bytes:
    """What the release command printed (its end)."""
    path = settings().home / "releases" / row.id / "output"
    try:
        return path.read_bytes()[-SHOWN:]
    except FileNotFoundError:
        return b""


@pages.on("POST", "/apps/<app>/releases/<release>/rollback", does="POST /apps/<app>/releases", again=release)
def rollback(visit: Visit, release: str) -> Response:
    """Make an earlier release's code and config vars those of a new one."""
    made = releases.rollback(visit.session, visit.account, visit.app, releases.find(visit.session, visit.app, release))
    return visit.done(f"/apps/{visit.app.name}/releases/v{made.version}", f"Rolling back: v{made.version} is on its way.")
