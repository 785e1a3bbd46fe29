"""Slugs of one's own: made, filled by a tarball, released."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from api import streams
from builder import sources
from foundation import wire
from foundation.settings import settings
from slugs import collect
from slugs.store import Store
from slugs.upload import seal_tarball
from state import db
from state.models import Slug
from tests.api.conftest import Api, Handler, Neighbour, give_code
from tests.e2e.errors_page import assert_says
from tests.slugs.test_upload import DIRECTORY, FILE, HOSTILE, packed

TYPES = {"process_types": {"web": "./serve", "worker": "./work"}}


@pytest.fixture
def sealing(api: Api, neighbour: Callable[[Path, dict[str, Handler]], Neighbour]) -> Api:
    """The API beside a runtime process that seals as the real one does, and does nothing else."""
    neighbour(api.home / "run" / "runtime.sock", {"slug.seal": partial(_seal, api), "changed": lambda call: None})
    return api


async def _seal(api: Api, call: wire.Call) -> dict[str, Any]:
    stored = await asyncio.to_thread(seal_tarball, call.fds[0], Store(api.home / "slugs"), 8 << 20)
    os.close(call.fds[0])
    return {"digest": stored.digest, "size": stored.size}


def _put(api: Api, slug: Any, data: bytes) -> Any:
    return api.put(urlsplit(slug["blob"]["url"]).path, data=data, as_=None)


@pytest.mark.row("slug-twice", "slug-empty")
def test_a_slug_is_made_filled_once_and_released(sealing: Api) -> None:
    api, data = sealing, packed(DIRECTORY, FILE)
    checksum = f"SHA256:{hashlib.sha256(data).hexdigest()}"
    made = api.post("/apps/timely/slugs", {**TYPES, "commit": "ab" * 20, "checksum": checksum}, as_="deployer")
    slug = made.json
    assert made.status_code == 201 and slug["blob"]["method"] == "put" and slug["size"] is None and slug["deleted_at"] is None
    early = api.post("/apps/timely/releases", {"slug": slug["id"]})
    assert early.status_code == 422
    assert_says("slug-empty", early.json["message"])
    assert _put(api, slug, packed(DIRECTORY)).json["id"] == "source_unusable", "another tarball than was announced"
    assert _put(api, slug, data).status_code == 200
    again = _put(api, slug, data)
    assert again.status_code == 409
    assert_says("slug-twice", again.json["message"])
    assert list(sources.directory().iterdir()) == []
    shown = api.get(f"/apps/timely/slugs/{slug['id']}").json
    assert shown["size"] and shown["blob"]["method"] == "get" and shown["process_types"] == TYPES["process_types"]
    release = api.post("/apps/timely/releases", {"slug": slug["id"]})
    assert release.status_code == 201 and release.json["slug"]["id"] == slug["id"] and release.json["description"] == "Deploy abababab"


def test_a_slug_counts_among_uploads_until_it_is_sealed(
    api: Api, neighbour: Callable[[Path, dict[str, Handler]], Neighbour]
) -> None:
    """Sealing waits for its turn for up to twenty minutes, in a thread of the web process."""
    refused: list[str] = []

    async def seal(call: wire.Call) -> dict[str, Any]:
        try:
            streams.uploads.demand("one more")
        except streams.TooManyStreams as error:
            refused.append(error.message)
        return await _seal(api, call)

    neighbour(api.home / "run" / "runtime.sock", {"slug.seal": seal, "changed": lambda call: None})
    slug = api.post("/apps/timely/slugs", TYPES).json
    others = [streams.uploads.take(f"other {number % 3}") for number in range(settings().web_threads // 4 - 1)]
    try:
        assert _put(api, slug, packed(DIRECTORY, FILE)).status_code == 200
        assert refused == ["Too many uploads are under way at the moment; try again later."]
        streams.uploads.demand("one more")
    finally:
        for give_back in others:
            give_back()


@pytest.mark.row("slug-tarball")
@pytest.mark.parametrize("what", ["a path that leads out", "a device", "something beside app", "no tarball"])
def test_a_hostile_tarball_is_told_and_fills_nothing(sealing: Api, what: str) -> None:
    slug = sealing.post("/apps/timely/slugs", TYPES).json
    answer = _put(sealing, slug, HOSTILE[what][0])
    assert answer.status_code == 422
    assert_says("slug-tarball", answer.json["message"])
    with db.snapshot() as session:
        row = session.get(Slug, slug["id"])
        assert row and row.digest is None and row.size is None


@pytest.mark.row("slug-types")
@pytest.mark.parametrize("types", [{}, {"web site": "x"}, {"web": ""}, {"web": "a\nb"}, {"web": 3.5}, {"w" * 64: "x"}, [], None])
def test_process_types_that_cannot_be(api: Api, types: object) -> None:
    answer = api.post("/apps/timely/slugs", {"process_types": types})
    assert answer.status_code == 422
    assert_says("slug-types", answer.json["message"])


def test_if_match_on_what_is_a_stream_is_refused_and_leaves_none_open(api: Api) -> None:
    slug = give_code(api.app_id).slug_id
    source = api.post("/sources").json["source_blob"]
    assert api.put(urlsplit(source["put_url"]).path, data=packed(DIRECTORY, FILE), as_=None).status_code == 200
    for url in (api.get(f"/apps/timely/slugs/{slug}").json["blob"]["url"], source["get_url"], source["put_url"]):
        answer = api.put(urlsplit(url).path, data=b"x", as_=None, headers={"If-Match": '"x"'})
        assert (answer.status_code, answer.json["id"]) == (412, "precondition_failed"), url
    assert not {api.get("/account").json["id"]} & (streams.slots._taken | streams.uploads._taken).keys()


def test_a_slug_is_for_who_may_deploy_for_as_long_as_they_may(sealing: Api) -> None:
    api = sealing
    assert api.post("/apps/timely/slugs", TYPES, as_="viewer").status_code == 403
    slug = api.post("/apps/timely/slugs", TYPES, as_="deployer").json
    api.delete("/apps/timely/collaborators/deployer@example.com")
    assert _put(api, slug, packed(DIRECTORY, FILE)).status_code == 404
    assert api.post("/apps/timely/slugs", {**TYPES, "checksum": "md5:1"}).status_code == 422


def _old(api: Api) -> Any:
    """A slug that was put there, and that nobody has released while it was young."""
    slug = api.post("/apps/timely/slugs", TYPES).json
    assert _put(api, slug, packed(DIRECTORY, FILE)).status_code == 200
    for stored in Store(api.home / "slugs").stored():
        os.utime(Store(api.home / "slugs").path(stored.digest), (0, 0))
    return slug


@pytest.mark.row("slug-collected")
def test_a_slug_that_was_collected_is_told_and_not_released(sealing: Api) -> None:
    api, store = sealing, Store(sealing.home / "slugs")
    slug = _old(api)
    url = urlsplit(api.get(f"/apps/timely/slugs/{slug['id']}").json["blob"]["url"]).path

    def killed(young: set[str]) -> set[str]:
        collect.keep(young)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        store.collect(killed)
    assert store.stored(), "its row says first that it is gone"
    assert len(store.collect(collect.keep)) == 1 and not store.stored()
    shown = api.get(f"/apps/timely/slugs/{slug['id']}").json
    assert (shown["blob"]["url"], shown["checksum"]) == ("", None) and shown["deleted_at"] and shown["size"]
    refused = api.post("/apps/timely/releases", {"slug": slug["id"]})
    assert refused.status_code == 422
    assert_says("slug-collected", refused.json["message"])
    assert api.get(url, as_=None).status_code == 404


def test_a_slug_whose_file_is_lost_is_a_sentence(sealing: Api) -> None:
    slug = _old(sealing)
    url = urlsplit(sealing.get(f"/apps/timely/slugs/{slug['id']}").json["blob"]["url"]).path
    Store(sealing.home / "slugs").collect(lambda young: set())
    assert sealing.get(url, as_=None).status_code == 404


def test_a_slug_that_is_released_while_it_is_collected_is_refused_or_stays(sealing: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api, slug, answers = sealing, _old(sealing), list[Any]()
    real = collect.in_use

    def looked(session: Any) -> set[str]:
        found = real(session)
        releasing.start()  # just after it was seen that nothing needs the slug
        return found

    releasing = threading.Thread(target=lambda: answers.append(api.post("/apps/timely/releases", {"slug": slug["id"]})))
    monkeypatch.setattr(collect, "in_use", looked)
    assert len(Store(api.home / "slugs").collect(collect.keep)) == 1
    releasing.join()
    assert answers[0].status_code == 422
