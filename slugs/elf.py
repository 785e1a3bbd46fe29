"""What an ELF file says about itself in its first pages (System V ABI, gABI chapter 4 and 5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

X86_64 = 62
AARCH64 = 183
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<QQ")
_PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 2, 3, 4
_DT_NULL, _DT_BIND_NOW, _DT_FLAGS, _DT_FLAGS_1 = 0, 24, 30, 0x6FFFFFFB
_DF_BIND_NOW, _DF_1_NOW = 8, 1
_EXEC, _DYN = 2, 3
_GO_NOTE = b"Go\0\0"
_PVH_NOTE = b"Xen\0"
_PVH_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY


@dataclass(frozen=True)
class Elf:
    """A 64-bit little-endian ELF file.

    Attributes:
        machine: X86_64, AARCH64 or another number.
        fixed: it is linked to run at one address (ET_EXEC).
        executable: a program or a shared object (ET_EXEC, ET_DYN).
        interpreter: the loader that it asks for; empty for a static one.
        go: Go's linker made it.
        pvh: it has the entry by which a hypervisor starts a kernel directly.
    """

    machine: int
    fixed: bool
    executable: bool
    interpreter: str
    go: bool
    pvh: bool


def read_elf(start: bytes) -> Elf | None:
    """Read the file's first bytes (segments and notes beyond them count as not there); None when it is no 64-bit ELF."""
    if len(start) < _HEADER.size or start[:6] != b"\x7fELF\x02\x01":
        return None
    _, kind, machine, _, _, segments, _, _, _, size, count, *_ = _HEADER.unpack_from(start)
    interpreter, notes = "", b""
    for index in range(min(count, 64)):
        place = segments + index * size
        if size < _SEGMENT.size or place + _SEGMENT.size > len(start):
            break
        what, _, offset, _, _, length, _, _ = _SEGMENT.unpack_from(start, place)
        content = start[offset : offset + length] if offset < len(start) else b""
        if what == _PT_INTERP:
            interpreter = content.rstrip(b"\0").decode(errors="replace")
        elif what == _PT_NOTE:
            notes += content
    go = _GO_NOTE in notes or b"Go build ID: " in start
    return Elf(machine, kind == _EXEC, kind in (_EXEC, _DYN), interpreter, go, _has_pvh(notes))


def bound_at_once(content: bytes) -> bytes:
    """A shared object whose symbols are all looked up when it is loaded (``-z now``), not each when it is called first.

    Args:
        content: any file.

    Returns:
        what to use instead of it; ``content`` itself when it is that already, has no room to say so, or is no shared object.
    """
    if len(content) < _HEADER.size or content[:6] != b"\x7fELF\x02\x01":
        return content
    _, kind, _, _, _, segments, _, _, _, size, count, *_ = _HEADER.unpack_from(content)
    if kind != _DYN or size < _SEGMENT.size:
        return content
    for index in range(count):
        place = segments + index * size
        if place + _SEGMENT.size > len(content):
            break
        what, _, offset, _, _, length, _, _ = _SEGMENT.unpack_from(content, place)
        if what == _PT_DYNAMIC and offset + length <= len(content):
            return _bound(content, offset, length // _DYNAMIC.size)
    return content


def _bound(content: bytes, offset: int, count: int) -> bytes:
    """The dynamic section (``count`` entries at ``offset``) says it in its first free entry, if another one still ends it."""
    for index in range(count - 1):
        place = offset + index * _DYNAMIC.size
        tag, value = _DYNAMIC.unpack_from(content, place)
        if tag == _DT_BIND_NOW or (tag == _DT_FLAGS and value & _DF_BIND_NOW) or (tag == _DT_FLAGS_1 and value & _DF_1_NOW):
            return content
        if tag == _DT_NULL:
            after = _DYNAMIC.unpack_from(content, place + _DYNAMIC.size)[0]
            changed = content[:place] + _DYNAMIC.pack(_DT_BIND_NOW, 0) + content[place + _DYNAMIC.size :]
            return changed if after == _DT_NULL else content
    return content


def _has_pvh(notes: bytes) -> bool:
    return (
        struct.pack("<III", 4, 4, _PVH_ENTRY) + _PVH_NOTE in notes or struct.pack("<III", 4, 8, _PVH_ENTRY) + _PVH_NOTE in notes
    )
