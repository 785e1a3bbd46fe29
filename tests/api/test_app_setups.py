"""App setups: from a tarball with an app.json to an app, step by step as the worker takes them."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import update

from builder import appjson, manifest, setup
from foundation.errors import DavitError
from foundation.settings import settings
from state import builds, config, db, releases, setups
from state.models import Account, App, AppSetup, Build, Formation
from tests.api.conftest import Api, Neighbour, _forget, _make, use_home

Files = dict[str, bytes]


def tarball(files: Files) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class Shelf:
    """A real HTTP server with archives; ``/again`` redirects to ``/it``; what begins with ``dribbled`` goes on a byte at a time, until it is enough."""

    def __init__(self) -> None:
        shelf = self
        self.content = b""
        self.status = 200
        self.moved = "/it"
        self.dribbled, self.enough, self.read_to_the_end = b"", threading.Event(), False

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if shelf.dribbled:
                    self.wfile.write(shelf.dribbled)
                    for _ in range(3000):
                        if shelf.enough.wait(0.01):
                            return
                        self.wfile.write(b"0")
                    shelf.read_to_the_end = True
                    return
                self.send_response(302 if self.path == "/again" else shelf.status)
                self.send_header("Location", shelf.moved)
                self.send_header("Content-Length", str(len(shelf.content)))
                self.end_headers()
                self.wfile.write(shelf.content)

            def log_message(self, *words: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, manifest: object, **files: bytes) -> None:
        self.content = tarball({"app-main/app.json": json.dumps(manifest).encode(), "app-main/Procfile": b"web: x\n", **files})


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def api(davit_home: Path, migrated_sqlite: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API of a Davit that may fetch from the shelf."""
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    use_home(davit_home, monkeypatch, DAVIT_OUTBOUND_ALLOW=shelf.address)
    yield _make(davit_home)
    _forget()


def _ask(api: Api, shelf: Shelf, **more: object) -> Any:
    return api.post("/app-setups", {"source_blob": {"url": f"{shelf.url}/it", "version": "v1"}, "app": {"name": "made-app"}, **more})


def _see(api: Api, id: str) -> Any:
    return api.get(f"/app-setups/{id}").json


def _end_build(api: Api, id: str, *, fails: bool = False) -> None:
    """What the builder does with the setup's build, without building."""
    with db.transaction() as session:
        row = session.get(AppSetup, id)
        assert row and row.build_id
        if fails:
            builds.fail(session, row.build_id, "build failed", "No buildpack matches this app.")
        else:
            builds.succeed(session, row.build_id)
    setup.go_on(row.build_id)


MANIFEST = {
    "env": {"PLAIN": "as it is", "SECRET_KEY": {"generator": "secret"}, "MAYBE": {"required": False}, "GIVEN": {"description": "x"}},
    "formation": {"web": {"quantity": 2, "size": "standard-1x"}, "worker": {"quantity": 1, "size": "hobby"}},
    "buildpacks": [{"url": "heroku/python"}],
    "scripts": {"postdeploy": "python manage.py migrate"},
    "success_url": "/welcome", "name": "Ignored", "keywords": ["also"],
}  # fmt: skip


def test_an_app_is_set_up_as_its_app_json_says(api: Api, shelf: Shelf, neighbour: Callable[..., Neighbour]) -> None:
    shelf.put(MANIFEST)
    made = _ask(api, shelf, overrides={"env": {"GIVEN": "by the caller", "PLAIN": "otherwise"}})
    assert (made.status_code, made.json["status"], made.json["app"]["name"]) == (202, "pending", "made-app")
    id = made.json["id"]
    setup.step(id)
    row = _see(api, id)
    assert (row["status"], row["build"]["status"], row["resolved_success_url"]) == ("pending", "pending", "/welcome")
    vars = api.get("/apps/made-app/config-vars").json
    assert {name: vars[name] for name in ("PLAIN", "GIVEN")} == {"PLAIN": "otherwise", "GIVEN": "by the caller"}
    assert len(vars["SECRET_KEY"]) == 64 and "MAYBE" not in vars
    assert api.get("/apps/made-app/buildpack-installations").json[0]["buildpack"]["name"] == "heroku/python"
    with db.snapshot() as session:
        app = session.query(App).filter_by(name="made-app").one()
        formation = {one.type: (one.quantity, one.size) for one in session.query(Formation).filter_by(app_id=app.id)}
        build = session.get(Build, row["build"]["id"])
        assert build and (build.source_url, build.source_version) == (f"{shelf.url}/it", "v1")
    assert formation == {"web": (2, "standard-1x"), "worker": (1, "basic")}

    def start(call: Any) -> dict[str, str]:
        os.write(call.fds[1], b"migrated 3 tables\n")
        for fd in call.fds:
            os.close(fd)
        return {"dyno_id": "d"}

    runtime = neighbour(settings().run / "runtime.sock", {"oneoff.start": start, "oneoff.wait": lambda call: {"status": 0}})
    _end_build(api, id)
    setup.step(id)
    assert runtime.calls[0][1]["command"] == "python manage.py migrate"
    row = _see(api, id)
    assert (row["status"], row["postdeploy"]) == ("succeeded", {"exit_code": 0, "output": "migrated 3 tables\n"})
    setup.step(id)
    assert len(runtime.calls) == 2, "it is over: nothing runs again"


def test_a_postdeploy_command_that_fails_fails_the_setup(api: Api, shelf: Shelf, neighbour: Callable[..., Neighbour]) -> None:
    shelf.put({"scripts": {"postdeploy": {"command": "false"}}})
    id = _ask(api, shelf).json["id"]
    setup.step(id)

    def start(call: Any) -> dict[str, str]:
        for fd in call.fds:
            os.close(fd)
        return {"dyno_id": "d"}

    neighbour(settings().run / "runtime.sock", {"oneoff.start": start, "oneoff.wait": lambda call: {"status": 1}})
    _end_build(api, id)
    setup.step(id)
    row = _see(api, id)
    assert (row["status"], row["postdeploy"]["exit_code"]) == ("failed", 1)
    assert "status 1" in row["failure_message"]


def test_a_postdeploy_command_is_never_run_twice(api: Api, shelf: Shelf) -> None:
    shelf.put({"scripts": {"postdeploy": "x"}})
    id = _ask(api, shelf).json["id"]
    setup.step(id)
    _end_build(api, id)
    with db.transaction() as session:
        assert setups.begin_postdeploy(session, id)
    setup.step(id)
    assert "restarted" in _see(api, id)["failure_message"]


def test_a_setup_without_a_script_is_done_with_its_build_and_fails_with_it(api: Api, shelf: Shelf) -> None:
    shelf.put({})
    id = _ask(api, shelf).json["id"]
    setup.step(id)
    _end_build(api, id)
    assert _see(api, id)["status"] == "succeeded"
    other = api.post("/app-setups", {"source_blob": {"url": f"{shelf.url}/again"}}).json["id"]
    setup.step(other)
    _end_build(api, other, fails=True)
    assert (_see(api, other)["status"], "No buildpack matches" in _see(api, other)["failure_message"]) == ("failed", True)


def test_a_tarball_that_was_uploaded_is_set_up_without_being_fetched(api: Api, shelf: Shelf) -> None:
    blob = api.post("/sources").json["source_blob"]
    place = urlsplit(blob["put_url"]).path
    assert api.post("/app-setups", {"source_blob": {"url": blob["get_url"]}}).status_code == 404, "nothing was put there yet"
    shelf.put({"env": {"A": "1"}})
    assert api.call("PUT", place, data=shelf.content, as_=None).status_code == 200
    assert api.post("/app-setups", {"source_blob": {"url": blob["get_url"], "checksum": "SHA256:x"}}).status_code == 422
    id = api.post("/app-setups", {"source_blob": {"url": blob["get_url"]}, "app": {"name": "made-app"}}).json["id"]
    setup.step(id)
    assert api.get("/apps/made-app/config-vars").json == {"A": "1"}
    with db.snapshot() as session:
        build = session.get(Build, _see(api, id)["build"]["id"])
        assert build and build.source_url and build.source_url.startswith("source:")


def test_a_setup_whose_step_ends_while_another_begins_has_one_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    real, ended = fcntl.flock, list[bool]()

    def flock(descriptor: int, how: int) -> None:
        if not ended:
            ended.append(True)
            (settings().run / "setups" / "one").unlink()  # between opening the file and locking it
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with setup._held("one") as first, setup._held("one") as second:
        assert (first, second) == (True, False)
    with setup._held("one") as free:
        assert free


def test_a_lost_setup_is_taken_up_again(api: Api, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put({})
    id = _ask(api, shelf).json["id"]
    taken: list[str] = []
    monkeypatch.setattr(setup, "enqueue", taken.append)
    monkeypatch.setattr(setup, "_in_redis", lambda id: False)
    setup.recover()
    assert taken == [], "it is fresh"
    monkeypatch.setattr(setup, "LOST_AFTER", -setup.LOST_AFTER)
    setup.recover()
    assert taken == [id]
    setup.step(id)
    with db.transaction() as session:
        row = session.get(AppSetup, id)
        assert row and row.build_id
        builds.succeed(session, row.build_id)
    setup.recover()
    assert _see(api, id)["status"] == "succeeded"


def test_an_app_json_names_no_directory_of_the_host_whoever_sets_it_up(api: Api, shelf: Shelf) -> None:
    """Its author is anybody; an admin who wants one names it in the request."""
    with db.transaction() as session:
        session.execute(update(Account).values(is_admin=True))
    shelf.put({"buildpacks": [{"url": "file:///srv/pack"}]})
    id = _ask(api, shelf).json["id"]
    setup.step(id)
    row = _see(api, id)
    assert row["status"] == "failed" and "no app.json" in row["failure_message"] + "".join(row["manifest_errors"])
    assert api.get("/apps/made-app/builds").json == []


@pytest.mark.parametrize(
    ("manifest", "words"),
    [({"env": {"NEEDED": {"description": "a key"}}}, "requires the config var NEEDED"), ({"addons": ["heroku-postgresql"]}, "add-ons (heroku-postgresql)"),
     ({"env": {"A": 5}}, "env.A"), ({"env": {"bad name": "x"}}, "bad name"), ({"formation": {"web": {"quantity": 1000}}}, "formation.web.quantity"),
     ({"formation": {"web": {"quantity": 1, "size": "huge"}}}, "huge"), ({"buildpacks": [{"url": "a b"}]}, "a b"),
     ({"buildpacks": [{"url": "git://[x"}]}, "cannot be read"), ({"buildpacks": [{"url": "nosuch"}]}, "is no buildpack"), ({"scripts": {"postdeploy": 5}}, "postdeploy"),
     ([], "JSON object")],
)  # fmt: skip
def test_an_app_json_that_cannot_be_used_is_told_and_builds_nothing(api: Api, shelf: Shelf, manifest: object, words: str) -> None:
    shelf.put(manifest)
    id = _ask(api, shelf).json["id"]
    setup.step(id)
    row = _see(api, id)
    assert (row["status"], row["build"]) == ("failed", None)
    assert words in row["failure_message"] + "".join(row["manifest_errors"])
    assert api.get("/apps/made-app/builds").json == []
    with db.snapshot() as session:
        app = session.query(App).filter_by(name="made-app").one()
        assert config.read(app) == {}
        newest = releases.newest(session, app.id)
        assert newest and newest.version == 1


def test_a_source_that_is_none_is_told(api: Api, shelf: Shelf) -> None:
    for content, status, words in ((b"", 404, "status 404"), (b"no archive", 200, "not a tar archive"), (tarball({"a": b""}), 200, "no app.json")):
        shelf.content, shelf.status = content, status
        id = api.post("/app-setups", {"source_blob": {"url": f"{shelf.url}/it"}}).json["id"]
        setup.step(id)
        assert words in _see(api, id)["failure_message"]


def test_a_source_that_leads_into_the_private_is_refused_at_every_turn(api: Api, shelf: Shelf) -> None:
    for host in ("10.0.0.1", "169.254.169.254", "localhost"):
        answer = api.post("/app-setups", {"source_blob": {"url": f"http://{host}/x.tgz"}})
        assert (answer.status_code, answer.json["id"]) == (422, "destination_refused")
    shelf.put({})
    for moved, words in (("http://10.0.0.1/x.tgz", "10.0.0.1"), ("file:///etc/passwd", "source_blob.url"), ("/again", "redirects too often"), ("http://[", "cannot be read")):
        shelf.moved = moved
        with pytest.raises(DavitError, match=words.replace(".", r"\.")):
            manifest.app_json(f"{shelf.url}/again")


@pytest.mark.parametrize("begin", [f"HTTP/1.1 200 OK\r\n{rest}".encode() for rest in ("X: ", "\r\n", "Transfer-Encoding: chunked\r\n\r\n")])
def test_a_source_that_dribbles_is_given_up(api: Api, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    """Each byte comes in time, and the end would not: a setup has a build's slot as long as that."""
    monkeypatch.setattr(manifest, "LONGEST", 0.3)
    shelf.dribbled = begin
    try:
        with pytest.raises(manifest.BadSource, match="takes longer than"):
            manifest.app_json(f"{shelf.url}/it")
        assert not shelf.read_to_the_end
    finally:
        shelf.enough.set()


def test_an_archive_of_countless_members_that_hold_nothing_is_given_up() -> None:
    with pytest.raises(manifest.BadSource, match="takes longer than"):
        manifest.find(io.BytesIO(tarball({f"{number}": b"" for number in range(9)})), time.monotonic())


@pytest.mark.parametrize(
    ("files", "found"),
    [({"app.json": b"1", "x/app.json": b"2"}, b"1"), ({"./app.json": b"1"}, b"1"), ({"top/a": b"", "top/app.json": b"2"}, b"2"),
     ({"top/sub/app.json": b"3"}, None), ({"README": b"", "top/app.json": b"2"}, None), ({}, None)],
)  # fmt: skip
def test_app_json_is_found_where_a_build_would_find_it(files: Files, found: bytes | None) -> None:
    assert manifest.find(io.BytesIO(tarball(files)), time.monotonic() + 60) == found


def test_an_archive_that_would_fill_memory_is_refused() -> None:
    bomb = tarfile.TarInfo("x")
    bomb.type, bomb.size = tarfile.XHDTYPE, 1 << 34
    large = tarfile.TarInfo("app.json")
    large.size = manifest.FILE_LIMIT + 1
    endless = tarfile.TarInfo("a")
    endless.size = 1 << 40
    link = tarfile.TarInfo("app.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for member, words in ((bomb, "cannot|can be read"), (large, "larger"), (endless, "larger"), (link, "not a file")):
        archive = gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
        with pytest.raises(manifest.BadSource, match=words):
            manifest.find(io.BytesIO(archive), time.monotonic() + 60)


@pytest.mark.parametrize(
    ("sent", "words"),
    [({}, "source_blob.url"), ({"source_blob": 5}, "source_blob"), ({"source_blob": {"url": "ftp://x/y"}}, "source_blob.url"),
     ({"source_blob": {"url": "https://example.com/x"}, "app": {"space": "x"}}, "app.space"),
     ({"source_blob": {"url": "https://example.com/x"}, "app": {"name": "No"}}, "not valid"),
     ({"source_blob": {"url": "https://example.com/x"}, "overrides": {"env": {"A": [5]}}}, "overrides.env.A"),
     ({"source_blob": {"url": "https://example.com/x"}, "overrides": {"env": {"PORT": "5"}}}, "PORT"),
     ({"source_blob": {"url": "https://example.com/x"}, "overrides": {"buildpacks": [{"url": "file:///x"}]}}, "only an admin")],
)  # fmt: skip
def test_a_setup_that_cannot_be_is_refused_by_its_field_and_makes_no_app(api: Api, sent: dict[str, object], words: str) -> None:
    answer = api.post("/app-setups", sent)
    assert (answer.status_code, words in answer.json["message"]) == (422, True), answer.text
    assert len(api.get("/users/~/apps").json) == 1


def test_only_who_sees_the_app_sees_its_setup(api: Api, shelf: Shelf) -> None:
    id = _ask(api, shelf, overrides={"env": {"A": "secret-value"}}).json["id"]
    assert api.get(f"/app-setups/{id}", as_="stranger").status_code == 404
    assert "secret-value" not in api.get(f"/app-setups/{id}").text
    with db.snapshot() as session:
        row = session.get(AppSetup, id)
        assert row and b"secret-value" not in row.overrides
    assert appjson.plan(appjson.parse_manifest(b"{}"), {"A": "1"}).env == {"A": "1"}
