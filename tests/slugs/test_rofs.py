"""ROFS: what is written is what a reader of its own finds, for any tree; and that reader believes nothing."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slugs import rofs

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: name not in (b".", b"..") and not set(name) & {0, 47})
TREES = st.recursive(
    st.one_of(
        st.binary(max_size=2000),
        st.binary(min_size=1, max_size=300).filter(lambda target: b"\0" not in target).map(rofs.Link),
    ),
    lambda node: st.dictionaries(NAMES, node, max_size=5),
    max_leaves=25,
)


def as_folder(tree: dict[bytes, Any]) -> rofs.Folder:
    folder = rofs.Folder()
    for name, node in tree.items():
        made = as_folder(node) if isinstance(node, dict) else node if isinstance(node, rofs.Link) else rofs.data(node)
        folder._nodes[name] = made
    return folder


def written(root: rofs.Folder | rofs.Disk) -> bytes:
    file = io.BytesIO()
    told = rofs.write(root, file)
    assert told.size == len(file.getvalue()) and told.size % rofs.BLOCK == 0
    return file.getvalue()


def as_tree(image: rofs.Image, path: bytes = b"") -> Any:
    """What the reader finds, as nested dictionaries."""
    kind = image.kind(path or b"/")
    if kind == rofs.FILE:
        return image.read(path)
    if kind == rofs.LINK:
        return rofs.Link(image.target(path))
    inside = [found for found in image.paths() if found != b"/" and found.rpartition(b"/")[0] == path]
    return {found.rpartition(b"/")[2]: as_tree(image, found) for found in inside}


@given(st.dictionaries(NAMES, TREES, max_size=6))
@example({})
@example({b"empty": b"", b"block": bytes(512), b"more": bytes(513), b"d": {}})
@example({b"n" * 255: {b"\xff\xfe": rofs.Link(b"../" * 50)}})
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_is_written_is_what_is_read(tree: dict[bytes, Any]) -> None:
    data = written(as_folder(tree))
    image = rofs.Image(io.BytesIO(data))
    assert as_tree(image) == tree
    assert not image.padding().strip(b"\0")
    assert data == written(as_folder(dict(reversed(tree.items()))))  # the order in which it was found changes nothing


@given(st.lists(NAMES, min_size=1, max_size=40), st.binary(max_size=600))
@settings(max_examples=15, deadline=None)
def test_directories_may_be_deep(way: list[bytes], content: bytes) -> None:
    tree: Any = content
    for name in reversed(way):
        tree = {name: tree}
    assert as_tree(rofs.Image(io.BytesIO(written(as_folder(tree))))) == tree


def test_the_documented_structure_byte_by_byte() -> None:
    """A tiny image, taken apart here by hand as the format's documentation describes it."""
    folder = rofs.Folder()
    folder.add("etc/hosts", rofs.text("127.0.0.1 localhost\n"))
    folder.add("link", rofs.Link(b"etc/hosts"))
    image = written(folder)
    assert struct.unpack_from("<8Q", image) == (0xDEADBEAD, 1, 512, 2, 1, 3, 1, 4)
    assert image[512:532] == b"127.0.0.1 localhost\n" and image[532:1024] == bytes(492)
    entries = struct.pack("<QH3s", 2, 3, b"etc") + struct.pack("<QH4s", 3, 4, b"link") + struct.pack("<QH5s", 4, 5, b"hosts")
    links = struct.pack("<H9s", 9, b"etc/hosts")
    inodes = struct.pack("<16Q", 0x4000, 1, 0, 2, 0x4000, 2, 2, 1, 0xA000, 3, 0, 1, 0x8000, 4, 1, 20)
    assert image[1024:] == (entries + links + inodes).ljust(512, b"\0")


def test_a_directory_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tool").write_bytes(b"\x7fELF" * 1000)
    os.link(tmp_path / "bin/tool", tmp_path / "bin/again")
    (tmp_path / "current").symlink_to("bin/tool")
    (tmp_path / "hanging").symlink_to("/nowhere")
    (tmp_path / "left.pyc").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    data = written(rofs.Disk(tmp_path, skip=lambda path: path.endswith(".pyc")))
    image = rofs.Image(io.BytesIO(data))
    assert set(image.paths()) == {b"/", b"/bin", b"/bin/tool", b"/bin/again", b"/current", b"/hanging"}
    assert image.read(b"/bin/again") == image.read(b"/bin/tool") == b"\x7fELF" * 1000
    assert image.target(b"/hanging") == b"/nowhere"
    assert data.count(b"\x7fELF" * 1000) == 1, "names of one file share its data"


def test_many_entries_and_a_part_of_a_disk(tmp_path: Path) -> None:
    folder = rofs.Folder()
    for number in range(5_000):
        folder.add(f"d{number % 50}/{number}", rofs.data(str(number).encode()))
    with (tmp_path / "disk").open("w+b") as disk:
        disk.write(b"M" * 4096)
        told = rofs.write(folder, disk, start=4096)
        assert (told.files, told.entries) == (5_000, 5_050)
        image = rofs.Image(disk, 4096)
        assert image.read(b"/d49/4999") == b"4999" and len(image.paths()) == 5_051
        disk.seek(0)
        assert disk.read(4096) == b"M" * 4096


def test_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    """A file of 512 MiB (sparse) is written by a process that may have 256 MiB."""
    code = f"""
import resource, io
from pathlib import Path
from slugs import rofs
class Sink(io.RawIOBase):
    size = 0
    def seek(self, where, whence=0): return where
    def write(self, piece): self.size += len(piece); return len(piece)
folder = rofs.Folder()
folder.add('big', rofs.on_disk(Path({str(tmp_path / "big")!r})))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rofs.write(folder, Sink())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(512 << 20)

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=bounded)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 * 1024  # KiB


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    too_much = rofs.Folder()
    too_much.add("a", rofs.data(bytes(10_000)))
    with pytest.raises(rofs.RofsFailed, match="more than the 0 MB"):
        rofs.write(too_much, io.BytesIO(), limit=5000)
    folder = rofs.Folder()
    folder.add("lying", rofs.File(10, lambda: io.BytesIO(b"short")))
    with pytest.raises(rofs.RofsFailed, match="lying changed while it was read"):
        rofs.write(folder, io.BytesIO())
    with pytest.raises(rofs.RofsFailed, match="is no directory"):
        folder.add("lying/x", rofs.text(""))
    with pytest.raises(rofs.RofsFailed, match="already"):
        folder.add("lying", rofs.text(""))


def test_an_image_that_was_cut_or_changed_is_refused_or_differs() -> None:
    """Of every byte that carries meaning the reader notices a change, or shows another tree; it never fails otherwise."""
    folder = rofs.Folder()
    folder.add("a/b", rofs.data(b"content" * 100))
    folder.add("link", rofs.Link(b"a/b"))
    data = written(folder)
    before = as_tree(rofs.Image(io.BytesIO(data)))
    for cut in range(0, len(data), 97):
        with pytest.raises(rofs.RofsFailed):
            rofs.Image(io.BytesIO(data[:cut]))
    meaning = [*range(64), *range(512, 512 + 700), *range(1536, len(data))]
    for place in meaning:
        changed = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        try:
            assert as_tree(rofs.Image(io.BytesIO(changed))) != before, place
        except rofs.RofsFailed:
            continue


@given(st.binary(max_size=3000))
@settings(max_examples=80, deadline=None)
def test_rubbish_is_refused_with_a_sentence(rubbish: bytes) -> None:
    head = struct.pack("<8Q", 0xDEADBEAD, 1, 512, 1, max(1, len(rubbish) // 512), 2, 1, 3).ljust(512, b"\0")
    with pytest.raises(rofs.RofsFailed):
        rofs.Image(io.BytesIO(head + rubbish))
