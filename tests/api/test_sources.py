"""Sources: uploads, and builds of them as they are asked for."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api import streams
from builder import sources
from foundation.errors import BadRequest
from foundation.settings import settings
from state import db
from state.models import Build
from tests.api.conftest import Api
from tests.e2e.errors_page import assert_says


def tarball() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("app/Procfile")
        info.size = 9
        tar.addfile(info, io.BytesIO(b"web: true"))
    return gzip.compress(buffer.getvalue(), mtime=0)  # the same bytes at any second


def _put(api: Api, data: bytes) -> str:
    blob = api.post("/sources", {}).json["source_blob"]
    assert api.put(urlsplit(blob["put_url"]).path, data=data, as_=None).status_code == 200
    return str(blob["get_url"])


def _ask(api: Api, **blob: object) -> object:
    return api.post("/apps/timely/builds", {"source_blob": blob})


def test_a_source_is_put_read_again_and_built(api: Api) -> None:
    data = tarball()
    url = _put(api, data)
    with api.get(urlsplit(url).path, as_=None) as kept:
        assert kept.data == data
    checksum = f"SHA256:{hashlib.sha256(data).hexdigest()}"
    made = _ask(api, url=url, checksum=checksum, version="v1.2")
    assert made.status_code == 201 and made.json["status"] == "pending" and made.json["output_stream_url"]
    assert made.json["source_blob"]["version"] == "v1.2" and "/streams/sources/" in made.json["source_blob"]["url"]
    with db.snapshot() as session:
        build = session.get(Build, made.json["id"])
        assert build and build.source_url and build.source_url.startswith(sources.PREFIX)
    assert b"".join(sources.tar(build.source_url.removeprefix(sources.PREFIX))) == gzip.decompress(data)


def test_a_source_may_lie_anywhere_else(api: Api) -> None:
    made = _ask(api, url="https://example.com/app.tgz")
    assert made.json["source_blob"]["url"] == "https://example.com/app.tgz"


@pytest.mark.row("source-refused")
@pytest.mark.parametrize(
    "blob", [{}, {"url": "ftp://x/"}, {"url": "file:///etc/passwd"}, {"url": "source:../../owner-token"}, {"url": 3}, {"url": "https://x/", "checksum": "md5:1"}]
)
def test_a_source_that_cannot_be_is_refused(api: Api, blob: dict[str, object]) -> None:
    answer = _ask(api, **blob)
    assert answer.status_code == 422 and "source_blob" in answer.json["message"]
    assert_says("source-refused", answer.json["message"])


def test_a_source_that_nobody_uploaded_is_none(api: Api) -> None:
    blob = api.post("/apps/timely/sources", {}, as_="deployer").json["source_blob"]
    assert _ask(api, url=blob["get_url"]).status_code == 404
    assert api.get(urlsplit(blob["get_url"]).path, as_=None).status_code == 404
    assert api.post("/apps/timely/sources", {}, as_="viewer").status_code == 403


def test_uploads_are_bounded_and_leave_nothing_half(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    path = urlsplit(api.post("/sources", {}).json["source_blob"]["put_url"]).path
    limit = 1 << 20

    class Small:
        push_limit, source_quota, home = 1, 4096, api.home

    monkeypatch.setattr(sources, "settings", lambda: Small)
    answer = api.put(path, data=b"x" * (limit + 1), as_=None)
    assert (answer.status_code, answer.json["id"]) == (413, "push_too_large")
    assert api.put(path, data=b"", as_=None).status_code == 422
    assert list(sources.directory().iterdir()) == []
    assert api.put(path, data=tarball(), as_=None).status_code == 200
    assert api.put(path, data=b"", as_=None).status_code == 422
    (kept,) = sources.directory().iterdir()
    assert kept.read_bytes() == tarball(), "an upload that failed took nothing away"


@pytest.mark.row("source-quota")
def test_what_an_account_uploads_in_a_day_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_SOURCE_QUOTA", "3")
    settings.cache_clear()
    quota = 3 << 20
    for who in ("owner", "deployer"):  # each has their own
        paths = [urlsplit(api.post("/sources", {}, as_=who).json["source_blob"]["put_url"]).path for _ in range(4)]
        assert api.put(paths[0], data=bytes(quota - (1 << 20) + 1), as_=None).status_code == 200
        answer = api.put(paths[1], data=b"small", as_=None)
        assert (answer.status_code, answer.json["id"]) == (413, "source_quota")
        assert_says("source-quota", answer.json["message"])
        assert api.put(paths[0], data=b"small", as_=None).status_code == 413, "it counts until another has its place"
    monkeypatch.setenv("DAVIT_SOURCE_QUOTA", "6")
    settings.cache_clear()
    for path, status in zip(paths, (200, 200, 200, 200), strict=True):  # a small one counts as 1 MiB
        assert api.put(path, data=b"small", as_=None).status_code == status
    monkeypatch.setenv("DAVIT_SOURCE_QUOTA", "4")
    settings.cache_clear()
    assert api.put(urlsplit(api.post("/sources", {}, as_="deployer").json["source_blob"]["put_url"]).path, data=b"x", as_=None).status_code == 413


def test_what_has_been_built_makes_room_the_oldest_first(either_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bot that deploys all day is not stopped by what nobody needs any more."""
    api = either_api
    monkeypatch.setenv("DAVIT_SOURCE_QUOTA", "4")
    settings.cache_clear()
    blobs = [api.post("/sources", {}).json["source_blob"] for _ in range(8)]
    puts = [urlsplit(blob["put_url"]).path for blob in blobs]
    for n in range(4):
        assert api.put(puts[n], data=tarball(), as_=None).status_code == 200
        build = api.post("/apps/timely/builds", {"source_blob": {"url": blobs[n]["get_url"]}}).json["id"] if n < 3 else None
        with db.transaction() as session:
            if build:
                session.get_one(Build, build).status = ("succeeded", "pending", "failed")[n]

    def is_kept(blob: dict[str, str]) -> bool:
        with api.get(urlsplit(blob["get_url"]).path, as_=None) as answer:  # one that is not closed keeps its place
            return bool(answer.status_code == 200)

    kept = lambda: [is_kept(blob) for blob in blobs[:6]]  # noqa: E731
    assert kept() == [True] * 4 + [False] * 2
    assert api.put(puts[4], data=tarball(), as_=None).status_code == 200
    assert kept() == [False, True, True, True, True, False]
    assert api.put(puts[5], data=tarball(), as_=None).status_code == 200
    assert kept() == [False, True, False, True, True, True], "what waits for its build, or for being asked for, stays"
    assert api.put(puts[6], data=tarball(), as_=None).status_code == 413


def test_an_upload_of_unknown_length_ends_where_the_room_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_SOURCE_QUOTA", "40")
    settings.cache_clear()
    id, given = sources.new(api.get("/account").json["id"]), 0

    def endless(most: int) -> bytes:
        nonlocal given
        given += most
        return bytes(most)

    with pytest.raises(sources.SourceQuota):
        sources.receive(id, endless)
    assert given <= (40 << 20) + sources.LOOK and list(sources.directory().iterdir()) == []


def test_uploads_that_take_long_leave_threads_for_others(api: Api) -> None:
    path = urlsplit(api.post("/sources", {}).json["source_blob"]["put_url"]).path
    account = api.get("/account").json["id"]
    under_way = [streams.uploads.take(account) for _ in range(streams.UPLOADS_EACH)]
    try:
        answer = api.put(path, data=tarball(), as_=None)
        assert (answer.status_code, answer.json["id"]) == (503, "too_many_streams") and "You have 8 uploads" in answer.json["message"]
        under_way.pop()()
        assert api.put(path, data=tarball(), as_=None).status_code == 200
    finally:
        for give_back in under_way:
            give_back()


def test_downloads_that_take_long_leave_threads_for_others(api: Api) -> None:
    path = urlsplit(_put(api, tarball())).path
    account = api.get("/account").json["id"]
    followed = [streams.slots.take(account) for _ in range(streams.EACH)]
    try:
        answer = api.get(path, as_=None)
        assert (answer.status_code, answer.json["id"]) == (503, "too_many_streams")
        followed.pop()()
        for headers, data in (({}, tarball()), ({"Range": "bytes=2-5"}, tarball()[2:6]), ({}, tarball())):
            with api.get(path, as_=None, headers=headers) as answer:
                assert answer.data == data and int(answer.headers["Content-Length"]) == len(data)
                assert api.get(path, as_=None).status_code == 503, "nobody has read it to its end yet"
    finally:
        for give_back in followed:
            give_back()


def test_two_uploads_to_one_address_do_not_mix(api: Api) -> None:
    id, second = "0" * 36, iter([b"b" * 10, b""])

    def slow(_: int) -> bytes:
        if data := next(first):
            sources.receive(id, lambda _: next(second))
        return data

    first = iter([b"a" * 10, b""])
    sources.receive(id, slow)
    assert sources.path(id).read_bytes() == b"a" * 10


def test_what_is_no_tarball_is_told(api: Api) -> None:
    for data, words in ((b"PK\x03\x04" * 200, "no tarball"), (b"\x1f\x8b" + b"broken" * 100, "damaged gzip"), (b"x", "no tarball")):
        with pytest.raises(sources.SourceUnusable, match=words):
            b"".join(sources.tar(str(_id(_put(api, data)))))
    good = str(_id(_put(api, tarball())))
    with pytest.raises(sources.SourceUnusable, match="checksum"):
        sources.verify(good, "0" * 64)


def _id(url: str) -> str | None:
    from api import links

    return links.source_of(url)


def test_a_small_upload_that_unpacks_to_much_is_unpacked_piece_by_piece(api: Api) -> None:
    source = str(_id(_put(api, gzip.compress(bytes(50 << 20)))))
    sizes = [len(part) for part in sources.tar(source)]
    assert sum(sizes) == 50 << 20 and max(sizes) <= sources.CHUNK


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4), st.integers(1, 5000))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_gzip_files_that_follow_each_other_are_one(parts: list[bytes], size: int) -> None:
    file = io.BytesIO(b"".join(map(gzip.compress, parts)))
    assert b"".join(sources._unzipped(lambda most: file.read(min(most, size)))) == b"".join(parts)



def test_who_may_only_look_gets_neither_the_code_nor_a_way_to_replace_it(api: Api) -> None:
    build = _ask(api, url=_put(api, tarball())).json
    place = urlsplit(build["source_blob"]["url"]).path
    assert api.get(place, as_=None).data == tarball()
    assert api.put(place, data=tarball(), as_=None).status_code == 404, "what is read there cannot be replaced there"
    shown = api.get(f"/apps/timely/builds/{build['id']}", as_="viewer").json
    assert not shown["source_blob"]["url"]
    elsewhere = _ask(api, url="https://user:secret@example.com/a.tgz?token=secret").json
    seen = api.get(f"/apps/timely/builds/{elsewhere['id']}", as_="viewer").json
    assert seen["source_blob"]["url"] == "https://example.com/a.tgz"
    assert api.get(f"/apps/timely/builds/{elsewhere['id']}", as_="deployer").json["source_blob"]["url"].startswith("https://user:")


def test_the_urls_of_an_apps_source_end_with_the_right_to_deploy_it(api: Api) -> None:
    blob = api.post("/apps/timely/sources", {}, as_="deployer").json["source_blob"]
    assert api.put(urlsplit(blob["put_url"]).path, data=tarball(), as_=None).status_code == 200
    made = api.post("/apps/timely/builds", {"source_blob": {"url": blob["get_url"]}}, as_="deployer").json
    shown = made["source_blob"]["url"]
    for url in (blob["get_url"], shown):
        assert api.get(urlsplit(url).path, as_=None).status_code == 200
    assert api.delete("/apps/timely/collaborators/deployer@example.com").status_code == 200
    for url in (blob["get_url"], shown):
        assert api.get(urlsplit(url).path, as_=None).status_code == 404
    assert api.put(urlsplit(blob["put_url"]).path, data=tarball(), as_=None).status_code == 404


def test_an_upload_that_was_cut_off_is_none(api: Api) -> None:
    id = "cut-off"
    pieces = iter([tarball()[:10], b""])
    with pytest.raises(BadRequest, match="half-way"):
        sources.receive(id, lambda _: next(pieces), len(tarball()))
    assert list(sources.directory().iterdir()) == []
