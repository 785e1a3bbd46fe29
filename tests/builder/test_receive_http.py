"""The HTTP door: credentials, requests that are not as they should be, and hostile packs."""

from __future__ import annotations

import gzip
import itertools
import secrets
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.repositories import Repositories
from tests.builder.git_doors import LIMIT, Door, Doors, doors  # noqa: F401
from tests.builder.git_packs import (
    BLOB,
    COMMIT,
    REF_DELTA,
    TAG,
    TREE,
    ZERO,
    Answer,
    commit,
    header,
    pack,
    pkt,
    push,
    request,
    sha,
    tree,
)
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says

# ruff: noqa: F811

_names = itertools.count(1)
REFS = "/info/refs?service=git-receive-pack"


class RawApp:
    """An app of alice's that is talked to by hand."""

    def __init__(self, doors: Doors) -> None:
        self.doors = doors
        self.name = f"alice-raw-{next(_names)}"
        self.port = int((doors.home / "http.port").read_text())

    def post(self, body: bytes, what: str = "git-receive-pack", **headers: str) -> Answer:
        return request(self.port, f"/{self.name}.git/{what}", body, **headers)

    def get(self, what: str, **more: str | None) -> Answer:
        return request(self.port, f"/{self.name}.git{what}", **more)  # type: ignore[arg-type]

    def untouched(self) -> bool:
        """Whether nothing of what was sent is left."""
        repositories: Repositories = self.doors.repositories
        left = list(repositories.incoming.glob(f"{self.name}.*"))
        packs = list((repositories.path(self.name) / "objects").rglob("*.pack"))
        return not repositories.refs(self.name) and not left and not packs


@pytest.fixture
def app(doors: Doors) -> Iterator[RawApp]:
    yield RawApp(doors)


def honest() -> tuple[bytes, bytes]:
    """A commit with one file: (its id, its pack)."""
    blob = b"hello\n"
    root = tree((b"100644", b"file", sha(b"blob", blob)))
    made = commit(sha(b"tree", root))
    return sha(b"commit", made), pack((COMMIT, made), (TREE, root), (BLOB, blob))


def test_credentials_are_asked_for_first(app: RawApp) -> None:
    for answer in (app.get(REFS, token=None), app.post(b"0000", token=None), app.get(REFS, token="wrong")):  # type: ignore[arg-type]
        assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Basic ")


def test_a_token_is_taken_as_password_user_or_bearer(app: RawApp) -> None:
    from base64 import b64encode

    for credentials in (b"anybody:alice-token", b"alice-token:", b"alice-token:x-oauth-basic", b":alice-token"):
        header = "Basic " + b64encode(credentials).decode()
        assert app.get(REFS, Authorization=header).status == 200, credentials
    assert app.get(REFS, Authorization="Bearer alice-token").status == 200
    for broken in ("Basic", "Basic !!!", "Basic /w==", "Digest x", "Bearer"):
        assert app.get(REFS, Authorization=broken).status == 401


def test_git_itself_is_asked_by_a_401_and_then_let_in(doors: Doors, tmp_path: Path) -> None:
    app = Door(doors, "http").app()
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho username=heroku\necho password=alice-token\n")
    helper.chmod(0o755)
    url = app.git("remote", "get-url", "davit").text.strip().replace("alice:alice-token@", "")
    assert app.git("-c", f"credential.helper={helper}", "push", url, "main")
    refused = app.git("push", url.replace("//", "//x:wrong@"), "main", check=False)
    assert not refused and "Authentication failed" in refused.text


def test_unknown_and_foreign_apps_answer_alike(app: RawApp) -> None:
    answers = [request(app.port, f"/{name}.git{REFS}") for name in ("nosuch", "bob-app", "alice", "%2e%2e", "a%00b")]
    assert {(answer.status, answer.body) for answer in answers} == {(404, b"Couldn't find that app.\n")}
    assert request(app.port, f"/bobs-shared-x.git{REFS}").status == 403


def test_only_gits_own_requests_are_served(app: RawApp) -> None:
    assert app.get("/info/refs").status == 403
    assert app.get("/info/refs?service=git-upload-archive").status == 403
    assert app.get("/git-receive-pack").status == 405
    assert app.get("/HEAD").status == app.get("/objects/info/packs").status == app.get("//info/refs").status == 404
    other = app.post(b"0000", Content_Type="text/plain")
    assert (other.status, other.reason) == (415, "Unsupported Media Type")
    assert app.post(b"0000", Content_Encoding="br").status == 415


def test_the_probe_before_a_large_push_is_answered(app: RawApp) -> None:
    answer = app.post(b"0000")
    assert answer.status == 200 and answer.body == b""


def test_chunked_and_gzipped_bodies(app: RawApp) -> None:
    new, data = honest()
    assert b"ok refs/heads/main" in app.post(push(new, data), chunked="yes").body
    zipped = gzip.compress(push(new, data, ref=b"refs/heads/other"))
    assert b"ok refs/heads/other" in app.post(zipped, Content_Encoding="gzip").body
    again = gzip.compress(push(new, b"", ref=b"refs/heads/third"))
    assert app.post(again[:-10], Content_Encoding="gzip", chunked="yes").status in (200, 400)


def test_a_gzip_bomb_is_not_swallowed(app: RawApp) -> None:
    new, _ = honest()
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = squeeze.compress(push(new, b"PACK\0\0\0\2\0\0\0\1" + header(BLOB, 300 << 20)))
    for _ in range(300):
        body += squeeze.compress(bytes(1 << 20))
    answer = app.post(body + squeeze.flush(), Content_Encoding="gzip")
    assert b"unpacker error" in answer.body or answer.status in (400, 413)
    assert app.untouched()


def test_a_body_that_is_not_gzip(app: RawApp) -> None:
    assert app.post(b"nonsense", Content_Encoding="gzip").status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"zzzz", b"0001", b"0003", b"0005x", pkt(b"nonsense") + b"0000", pkt(b"shallow x") + b"0000",
        pkt(ZERO + b" " + ZERO + b" refs/heads/x\0a\0b") + b"0000", pkt(b"x" * 90 + b"\0 no-such-capability") + b"0000",
        pkt(b"A" * 40 + b" " + b"B" * 40 + b" refs/heads/x\0 report-status") + b"0000", b"fff0short",
    ],
)  # fmt: skip
def test_malformed_requests_are_refused_without_a_trace(app: RawApp, body: bytes) -> None:
    assert app.post(body).status in (200, 400)
    assert app.untouched()


def _hostile_packs() -> dict[str, tuple[bytes, bytes]]:
    blob = b"x"
    file = (b"100644", b"file", sha(b"blob", blob))
    link = b"../../etc/passwd"
    good = commit(sha(b"tree", tree(file)))
    good_id, good_pack = sha(b"commit", good), pack((COMMIT, good), (TREE, tree(file)), (BLOB, blob))

    def with_tree(*entries: tuple[bytes, bytes, bytes], extra: bytes = blob) -> tuple[bytes, bytes]:
        root = tree(*entries)
        made = commit(sha(b"tree", root))
        return sha(b"commit", made), pack((COMMIT, made), (TREE, root), (BLOB, extra))

    modules = b'[submodule "../x"]\n\tpath = a\n\turl = -u./payload\n'
    tag = b"object " + good_id + b"\ntype commit\ntag x\n"
    return {
        "nothing": (good_id, b""),
        "no pack": (good_id, b"not a pack at all"),
        "cut short": (good_id, good_pack[:-30]),
        "wrong checksum": (good_id, good_pack[:-1] + bytes([good_pack[-1] ^ 1])),
        "more objects than said": (good_id, good_pack[:11] + b"\x02" + good_pack[12:]),
        "a missing blob": (good_id, pack((COMMIT, good), (TREE, tree(file)))),
        "a missing tree": (good_id, pack((COMMIT, good))),
        "a missing parent": (sha(b"commit", commit(sha(b"tree", tree(file)), b"1" * 40)),
                             pack((COMMIT, commit(sha(b"tree", tree(file)), b"1" * 40)), (TREE, tree(file)), (BLOB, blob))),
        "another commit than named": (b"2" * 40, good_pack),
        "a delta without its base": (good_id, pack((REF_DELTA, b"\x01\x01\x01x"), base=b"3" * 40)),
        "a .git entry": with_tree((b"100644", b".git", sha(b"blob", blob))),
        "a .. entry": with_tree((b"100644", b"..", sha(b"blob", blob))),
        "a slash in a name": with_tree((b"100644", b"a/b", sha(b"blob", blob))),
        "a name twice": with_tree(file, file),
        "hostile .gitmodules": with_tree((b"100644", b".gitmodules", sha(b"blob", modules)), extra=modules),
        ".gitmodules that is a link": with_tree((b"120000", b".gitmodules", sha(b"blob", link)), extra=link),
        "a broken tag": (sha(b"tag", tag[:20]), pack((TAG, tag[:20]))),
        "a size that lies": (good_id, b"PACK\0\0\0\2\0\0\0\1" + header(BLOB, 1 << 40) + zlib.compress(b"x")),
    }  # fmt: skip


@pytest.mark.row("push-unsound")
@pytest.mark.parametrize("name", list(_hostile_packs()))
def test_hostile_packs_are_refused_and_leave_nothing(app: RawApp, name: str) -> None:
    new, data = _hostile_packs()[name]
    answer = app.post(push(new, data))
    assert answer.status == 200
    assert b"ng refs/heads/main" in answer.body and b"ok refs" not in answer.body, answer.body
    if name in ("wrong checksum", "a .git entry", "hostile .gitmodules"):
        assert_says("push-unsound", answer.body.decode(errors="replace"))
    assert app.untouched()
    new, data = honest()
    assert b"ok refs/heads/main" in app.post(push(new, data)).body


@pytest.mark.row("push-compares")
def test_a_delta_that_takes_too_much_memory_is_refused_with_the_remedy(app: RawApp) -> None:
    zeros = bytes(160 << 20)
    delta = b"\x80\x80\x80\x50\x01\x01x"  # of 160 MiB, to one byte
    new, _ = honest()
    answer = app.post(push(new, pack((BLOB, zeros), (REF_DELTA, delta), base=sha(b"blob", zeros))))
    assert_says("push-compares", answer.body.decode(errors="replace"))
    assert b"more than 128 MiB of memory" in answer.body and b"unpacker error" in answer.body, answer.body
    assert app.untouched()


@pytest.mark.root
def test_a_full_disk_gets_a_sentence_and_leaves_nothing() -> None:
    home = Path(tempfile.mkdtemp(prefix="dvk", dir="/tmp"))
    (home / "repos").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", home / "repos"], check=True)
    doors = Doors(home)
    try:
        doors.start("http")
        app = Door(doors, "http").app()
        assert app.push()
        (app.work / "large").write_bytes(secrets.token_bytes(5 << 20))
        app.commit()
        pushed = app.push()
        assert not pushed and "The disk is full, so your push was not taken" in pushed.text, pushed.text
        assert app.incoming() == []
        app.git("reset", "-q", "--hard", "HEAD~1")
        app.commit("say still here")
        assert app.push()
    finally:
        doors.stop()
        subprocess.run(["umount", home / "repos"], check=True)
        shutil.rmtree(home)


def test_a_commit_that_only_a_waiting_build_has_cannot_be_pushed_from_elsewhere(doors: Doors) -> None:
    door = Door(doors, "http")
    app = door.app()
    new = app.commit(f"say one\nwait {app.name}.go\nfail build failed")
    first = app.pushing()
    wait_until(lambda: any(".receiving-" not in name for name in app.incoming()), "the build's start")
    raw = RawApp(doors)
    raw.name = app.name
    answer = raw.post(push(new.encode(), pack(), ref=b"refs/heads/steal"))
    assert b"missing necessary objects" in answer.body
    app.let(f"{app.name}.go")
    first.communicate()
    assert app.refs == {}


def test_a_ref_twice_in_one_push_is_refused(app: RawApp) -> None:
    new, data = honest()
    twice = pkt(ZERO + b" " + new + b" refs/heads/main\0 report-status") + pkt(ZERO + b" " + new + b" refs/heads/main")
    answer = app.post(twice + b"0000" + data)
    assert answer.body.count(b"ng refs/heads/main multiple updates") == 2
    assert app.untouched()


@pytest.mark.parametrize(
    "ref",
    [b"HEAD", b"refs/heads/../../x", b"refs/heads/a..b", b"refs/heads/.a", b"refs/heads/a.lock", b"refs/heads/\x7f", b"heads/x"],
)
def test_impossible_ref_names_are_refused(app: RawApp, ref: bytes) -> None:
    new, data = honest()
    assert b"ng " + ref + b" funny refname" in app.post(push(new, data, ref=ref)).body
    assert app.untouched()


def test_more_refs_than_allowed(app: RawApp) -> None:
    new, data = honest()
    lines = [ZERO + b" " + new + b" refs/tags/%d" % number for number in range(20_001)]
    lines[0] += b"\0 report-status side-band-64k"
    answer = app.post(b"".join(map(pkt, lines)) + b"0000" + data)
    assert b"\x03Your push names more than 20000 refs" in answer.body
    assert app.untouched()


def test_a_client_without_sideband_gets_its_report(app: RawApp) -> None:
    new, data = honest()
    answer = app.post(push(new, data, capabilities=b"report-status"))
    assert answer.body == pkt(b"unpack ok\n") + pkt(b"ok refs/heads/main\n") + b"0000"


def test_a_declared_length_beyond_the_limit_is_refused_before_it_is_taken(app: RawApp) -> None:
    new, _ = honest()
    answer = app.post(push(new, b"PACK" + bytes(LIMIT + (3 << 20))))
    assert b"larger than the 8 MiB" in answer.body and b"ng refs/heads/main unpacker error" in answer.body
    assert app.untouched()


def test_kill_while_a_pack_comes_in_leaves_only_what_housekeeping_removes() -> None:
    """kill -9 while the pack comes in; a new process then brings order in."""
    home = Path(tempfile.mkdtemp(prefix="dvk", dir="/tmp"))
    doors = Doors(home)
    try:
        doors.start("ssh")
        door = Door(doors, "ssh")
        app = door.app()
        pusher = subprocess.Popen(
            [*door.ssh(), "-p", (home / "ssh.port").read_text(), "git@127.0.0.1", f"git-receive-pack '{app.name}.git'"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        new, data = honest()
        assert pusher.stdin
        pusher.stdin.write(push(new, data[:20]))
        pusher.stdin.flush()
        wait_until(lambda: app.incoming(), "the quarantine")
        app.repositories.housekeeping(lambda build: None)
        assert app.incoming(), "a quarantine in use was taken away"
        doors.processes["ssh"].kill()
        pusher.communicate()
        wait_until(lambda: doors.processes["ssh"].poll() is not None, "the end")

        def tidied() -> bool:
            app.repositories.housekeeping(lambda build: None)
            return not app.incoming()

        wait_until(tidied, "the leftovers' end")
        doors.start("ssh")
        assert app.push(app.door.url(app.name), "main")
    finally:
        doors.stop()
        shutil.rmtree(home, ignore_errors=True)
