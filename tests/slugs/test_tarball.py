"""A slug leaves as the tarball that Heroku's tools expect."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from foundation.errors import DavitError
from slugs import image, tarball
from slugs.store import Store

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]


@pytest.fixture(params=image.FORMATS)
def stored(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> tuple[Store, str]:
    (tree / "app/run").write_text("#!/bin/sh\n")
    (tree / "app/run").chmod(0o755)
    (tree / "app/link").symlink_to("/etc/passwd")
    (tree / "app" / os.fsdecode(b"new\nline\xff")).write_text("strange")
    (tree / "app/secret").write_text("mine")
    (tree / "app/secret").chmod(0o400)
    image.seal(tree, tmp_path / "image", form=request.param)
    store = Store(tmp_path / "slugs")
    return store, store.put(tmp_path / "image").digest


@pytest.mark.parametrize("way", ["mounted", "unpacked"])
def test_the_tarball_holds_the_app(stored: tuple[Store, str], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "unpacked":
        monkeypatch.setattr(tarball, "_mounts", lambda image, scratch: False)
    store, digest = stored
    stream = io.BytesIO()
    store.export_tarball(digest, stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:gz") as archive:
        members = {member.name: member for member in archive}
        assert next(iter(members)) == "./app"
        assert all(name.startswith("./app") for name in members)
        assert {(member.uid, member.gid) for member in members.values()} == {(1000, 1000)}
        assert members["./app/run"].mode == 0o755
        assert members["./app/link"].linkname == "/etc/passwd"
        assert {"./app/secret", os.fsdecode(b"./app/new\nline\xff")} <= set(members)
        module = archive.extractfile("./app/lib/deep/module.py")
        assert module is not None and module.read() == b"x = 1\n" * 1000
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".export")] == []


def test_both_ways_give_the_same_bytes(stored: tuple[Store, str], monkeypatch: pytest.MonkeyPatch) -> None:
    store, digest = stored
    streams = [io.BytesIO(), io.BytesIO()]
    store.export_tarball(digest, streams[0])
    monkeypatch.setattr(tarball, "_mounts", lambda image, scratch: False)
    store.export_tarball(digest, streams[1])
    assert streams[0].getvalue() == streams[1].getvalue()


def test_somebody_without_powers_can_export(stored: tuple[Store, str], tmp_path: Path) -> None:
    store, digest = stored
    program = f"import sys; from pathlib import Path; from slugs.store import Store; Store(Path({str(store.root)!r}))"
    program += f".export_tarball({digest!r}, sys.stdout.buffer)"
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o005)
    done = subprocess.run([sys.executable, "-c", program], user=65534, group=65534, extra_groups=[], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode="r:gz") as archive:
        assert "./app/hello.txt" in archive.getnames()


class GoneAway(io.RawIOBase):
    def write(self, data: object) -> int:
        raise BrokenPipeError


def test_a_reader_that_goes_away_ends_the_export_and_leaves_nothing(stored: tuple[Store, str]) -> None:
    store, digest = stored
    before = set(Path("/proc/self/mountinfo").read_text().splitlines())
    with pytest.raises(BrokenPipeError):
        store.export_tarball(digest, GoneAway())  # type: ignore[arg-type]
    assert {path.name for path in store.root.iterdir()} == {".lock", store.path(digest).name}
    assert set(Path("/proc/self/mountinfo").read_text().splitlines()) == before


def test_a_damaged_image_ends_in_a_sentence(stored: tuple[Store, str]) -> None:
    store, digest = stored
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    with pytest.raises(DavitError):
        store.export_tarball(digest, io.BytesIO())
