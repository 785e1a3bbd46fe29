"""A guest for tests that says it is an imitation: a kernel of some hundred bytes, booted by the real QEMU as OSv is.

It says its name and its command line on the serial port and then does nothing. So it runs no app, and proves nothing of OSv; it
proves what stands around OSv: that the machine is started, told its line, read, ended, found again and cleared away. What a
test wants it to say stands on the command line (in an environment variable that begins with ``$``), and of three
characters there it knows the meaning.
"""

from __future__ import annotations

import struct
from pathlib import Path

POWER_OFF, REPEAT, STAND_STILL = "\x01", "\x02", "\x03"
BANNER = "OSv v0.0-imitation\r\n"
_BASE = 0x100000


def write(path: Path) -> Path:
    """Write the kernel as an ELF file with a PVH entry."""
    code = _code(_BASE + 0x1000)
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", _BASE + 0x1000)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, _BASE + 0x1000, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, 0x1000, _BASE + 0x1000, _BASE + 0x1000, len(code), len(code), 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, 0x200, 0, 0, len(note), len(note), 4)
    path.write_bytes((header + load + notes).ljust(0x200, b"\0") + note.ljust(0xE00, b"\0") + code)
    return path


def _code(at: int) -> bytes:
    """x86, 32 bit, as PVH enters it: ebx points to the start information, whose command line's address is at 24."""
    parts: list[tuple[str, bytes | str]] = [
        ("", b"\x8b\x73\x18"),  # mov esi, [ebx+24]
        ("", b"\xbf" + b"BANR"),  # mov edi, banner
        ("banner", b"\x8a\x07\x47\x84\xc0"),  # mov al, [edi]; inc edi; test al, al
        ("", "jz line"),
        ("", "call put"),
        ("", "jmp banner"),
        ("line", b"\x89\xf7"),  # mov edi, esi
        ("next", b"\x8a\x07\x47\x84\xc0"),
        ("", "jz still"),
        ("", b"\x3c\x5c"),  # cmp al, '\\': the line's escapes are left out
        ("", "jz next"),
        ("", b"\x3c\x01"),
        ("", "jz off"),
        ("", b"\x3c\x02"),
        ("", "jz line"),
        ("", b"\x3c\x03"),
        ("", "jz still"),
        ("", "call put"),
        ("", "jmp next"),
        ("still", b"\xfa\xf4"),  # cli; hlt
        ("", "jmp still"),
        ("off", b"\x0f\x01\x1d" + b"ZERO" + b"\xcc"),  # lidt [nothing]; int3: a triple fault, which ends the machine
        ("put", b"\x50\x66\xba\xfd\x03"),  # push eax; mov dx, 0x3fd
        ("wait", b"\xec\xa8\x20"),  # in al, dx; test al, 0x20
        ("", "jz wait"),
        ("", b"\x58\x66\xba\xf8\x03\xee\xc3"),  # pop eax; mov dx, 0x3f8; out dx, al; ret
    ]
    sizes = [len(part) if isinstance(part, bytes) else {"jz": 6, "jm": 5, "ca": 5}[part[:2]] for _, part in parts]
    places = {name: sum(sizes[:index]) for index, (name, _) in enumerate(parts) if name}
    text = b""
    for _, part in parts:
        if isinstance(part, bytes):
            text += part
            continue
        word, target = part.split()
        opcode = {"jz": b"\x0f\x84", "jmp": b"\xe9", "call": b"\xe8"}[word]
        text += opcode + struct.pack("<i", places[target] - len(text) - len(opcode) - 4)
    banner, zero = at + len(text) + 8, at + len(text)
    return (
        text.replace(b"BANR", struct.pack("<I", banner)).replace(b"ZERO", struct.pack("<I", zero))
        + bytes(8)
        + BANNER.encode()
        + b"\0"
    )
