"""What is read of ELF files, and the one thing that is changed in them."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slugs.elf import bound_at_once, read_elf

SOURCE = "int puts(const char *); int seven(void) { puts(\"\"); return 7; }"


def library(directory: Path, *options: str) -> Path:
    path = directory / "lib.so"
    words = ["gcc", "-shared", "-fPIC", "-x", "c", *options, "-o", str(path), "-"]
    subprocess.run(words, input=SOURCE, text=True, check=True)
    return path


def dynamic(path: Path) -> str:
    return subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("hash_style", ["gnu", "sysv"])
def test_a_library_that_is_bound_lazily_is_bound_at_once_and_is_the_same_otherwise(tmp_path: Path, hash_style: str) -> None:
    path = library(tmp_path, "-Wl,-z,lazy", f"-Wl,--hash-style={hash_style}")
    before, content = dynamic(path), path.read_bytes()
    assert "BIND_NOW" not in before
    changed = bound_at_once(content)
    path.write_bytes(changed)
    assert "BIND_NOW" in dynamic(path) and len(changed) == len(content)
    assert sum(a != b for a, b in zip(content, changed, strict=True)) == 1
    assert ctypes.CDLL(str(path)).seven() == 7
    assert bound_at_once(changed) is changed


def test_what_is_bound_at_once_already_stays(tmp_path: Path) -> None:
    content = library(tmp_path, "-Wl,-z,now").read_bytes()
    assert bound_at_once(content) is content


def test_where_there_is_no_room_to_say_so_it_stays(tmp_path: Path) -> None:
    """The last entry must go on ending the section."""
    content = bytearray(library(tmp_path, "-Wl,-z,lazy").read_bytes())
    (segments,) = struct.unpack_from("<Q", content, 32)
    while struct.unpack_from("<I", content, segments)[0] != 2:
        segments += 56
    offset, length = struct.unpack_from("<Q", content, segments + 8)[0], struct.unpack_from("<Q", content, segments + 32)[0]
    used = next(index for index in range(length // 16) if struct.unpack_from("<Q", content, offset + 16 * index)[0] == 0)
    struct.pack_into("<Q", content, segments + 32, 16 * (used + 1))
    assert bound_at_once(bytes(content)) == bytes(content)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_taken(noise: bytes, header: bool) -> None:
    content = (b"\x7fELF\x02\x01" if header else b"") + noise
    assert len(bound_at_once(content)) == len(content)
    read_elf(content)
