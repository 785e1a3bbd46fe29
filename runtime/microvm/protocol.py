"""What host and guest agent say to each other over a virtio port (pure). ``runtime/guest/guest.h`` is the other end.

Frames, little endian: magic u32, type u8, a spare byte, channel u16, length u32, and as many bytes, 65,536 at the most. Channel 0
is the dyno's command, the others are further commands in it. Neither end believes the other: what comes from a guest was
written by the app's code for all we know.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from runtime.driver import Listener, Stats

VERSION = 1
MAGIC = b"DVTf"
CHUNK = 65536
WINDOW = 262144
"""Bytes that may be under way in one direction of a channel before the other end says that it took some."""

MOST_LISTENERS = 256
"""As many as guest/look.c tells."""
FRAME = 64
"""Bytes for which a frame counts beside those that it carries, where one counts what a guest says."""

_HEAD = struct.Struct("<4sBBHI")
_STATES = ("waiting", "running", "over")

# what the host says
SYNC, SPEC, START, EXEC, SIGNAL, INPUT, RESIZE, TAKEN, LIMITS, APPLY, LOOK, CLOSE = range(1, 13)
# what the guest says
SYNCED, STARTED, FAILED, OUTPUT, ERRORS, EXITED, LISTENERS, FIGURES, ACCEPTED, DONE = range(1, 11)


@dataclass(frozen=True)
class Frame:
    """One frame."""

    type: int
    channel: int
    payload: bytes


@dataclass(frozen=True)
class State:
    """How it stands in the guest: ``state`` is waiting (for a command), running or over, then with ``status`` and ``oom``."""

    version: int
    state: str
    status: int | None
    oom: bool


@dataclass(frozen=True)
class Order:
    """A command for the guest.

    Attributes:
        argv, env: as in :class:`runtime.driver.DynoSpec`.
        hostname, hosts, resolv, certificates: texts of the files that say so.
        address: ``198.18.0.5/20``; None for no network.
        gateway: its gateway.
        mac: its network card's.
        memory, pids: limits; 0 for none.
        shm: size of /dev/shm, ``128m``.
        readonly, terminal, streams: see :class:`runtime.driver.DynoSpec`; ``streams``: standard streams in frames.
        clock: nanoseconds since 1970.
    """

    argv: Sequence[str] = ()
    env: Mapping[str, str] | None = None
    hostname: str | None = None
    hosts: str | None = None
    resolv: str | None = None
    certificates: str | None = None
    address: str | None = None
    gateway: str | None = None
    mac: str | None = None
    memory: int = 0
    pids: int = 0
    shm: str | None = None
    readonly: bool = False
    terminal: tuple[int, int] | None = None
    streams: bool = False
    clock: int = 0

    def encode(self) -> bytes:
        """As the guest's spec.c reads it."""
        texts = {"H": self.hostname, "o": self.hosts, "r": self.resolv, "C": self.certificates}
        texts |= {"a": self.address, "g": self.gateway, "s": self.shm}
        parts = [_field("c", word.encode()) for word in self.argv]
        parts += [_field("e", f"{name}={value}".encode()) for name, value in (self.env or {}).items()]
        parts += [_field(key, text.encode()) for key, text in texts.items() if text is not None]
        numbers = {"m": self.memory, "p": self.pids, "t": self.clock}
        parts += [_field(key, struct.pack("<Q", number)) for key, number in numbers.items() if number]
        if self.mac:
            parts.append(_field("M", bytes.fromhex(self.mac.replace(":", ""))))
        if self.terminal:
            parts.append(_field("T", struct.pack("<HH", self.terminal[0] & 0xFFFF, self.terminal[1] & 0xFFFF)))
        parts += [_field(key, b"") for key, wanted in (("R", self.readonly), ("S", self.streams)) if wanted]
        return b"".join(parts)


def _field(key: str, value: bytes) -> bytes:
    return struct.pack("<cI", key.encode(), len(value)) + value


def frame(type: int, channel: int = 0, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return _HEAD.pack(MAGIC, type, 0, channel, len(payload)) + payload


def order(type: int, channel: int, what: Order) -> bytes:
    """The frames that hand ``what`` over and say what is to be done with it (START, EXEC or APPLY)."""
    encoded = what.encode()
    parts = [frame(SPEC, channel, encoded[at : at + CHUNK]) for at in range(0, len(encoded), CHUNK)]
    return b"".join([*parts, frame(type, channel)])


def signal(channel: int, number: int, everyone: bool) -> bytes:
    """A signal for a command."""
    return frame(SIGNAL, channel, bytes([number & 0xFF, everyone]))


def resize(channel: int, rows: int, columns: int) -> bytes:
    """A terminal's new size."""
    return frame(RESIZE, channel, struct.pack("<HH", rows & 0xFFFF, columns & 0xFFFF))


def taken(channel: int, count: int) -> bytes:
    """The host took ``count`` bytes of a channel's output."""
    return frame(TAKEN, channel, struct.pack("<I", count))


def limits(channel: int, memory: int, pids: int, processors: int) -> bytes:
    """New limits; 0 leaves one as it is."""
    return frame(LIMITS, channel, struct.pack("<QQQ", memory, pids, processors))


class Reader:
    """Makes frames of the bytes that come from the guest; what is not a frame is skipped.

    Attributes:
        skipped: how many bytes that was; one that looks like a frame's beginning counts for FRAME more.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.skipped = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Whatever the bytes are, each is looked at once or twice, and none is copied twice."""
        stream, at, framed = self._rest + data, 0, 0
        try:
            while True:
                begin = stream.find(MAGIC, at)
                if begin < 0:
                    at = max(at, len(stream) - len(MAGIC) + 1)
                    return
                at = begin
                if len(stream) - at < _HEAD.size:
                    return
                _, type, _, channel, length = _HEAD.unpack_from(stream, at)
                if length > CHUNK:
                    at += 1
                    self.skipped += FRAME
                    continue
                end = at + _HEAD.size + length
                if len(stream) < end:
                    return
                frame, framed, at = Frame(type, channel, stream[at + _HEAD.size : end]), framed + end - at, end
                yield frame
        finally:
            self._rest = stream[at:]
            self.skipped += at - framed


class Hunter:
    """Finds the answer to a SYNC in whatever an earlier host end left in the port: half frames, old frames.

    Args:
        nonce: 16 bytes that the SYNC carried.
    """

    def __init__(self, nonce: bytes) -> None:
        self._mark = _HEAD.pack(MAGIC, SYNCED, 0, 0, 28) + nonce
        self._rest = b""

    def feed(self, data: bytes) -> tuple[State, bytes] | None:
        """The state that the guest told, and the bytes that came after it; None while it has not come."""
        self._rest += data
        at = self._rest.find(self._mark)
        end = at + len(self._mark) + 12
        if at < 0:
            self._rest = self._rest[-len(self._mark) :]
            return None
        if len(self._rest) < end:
            return None
        version, state, status, oom = struct.unpack_from("<IBiB", self._rest, at + len(self._mark))
        name = _STATES[state] if state < len(_STATES) else "over"
        return State(version, name, _possible(status) if name == "over" else None, bool(oom)), self._rest[end:]


def exited(payload: bytes) -> tuple[int, bool]:
    """Status and whether memory had run out; a status that none can have is 1."""
    if len(payload) != 5:
        return 1, False
    status, oom = struct.unpack("<iB", payload)
    return _possible(status), bool(oom)


def _possible(status: int) -> int:
    return status if 0 <= status <= 255 else 1


def listeners(payload: bytes) -> list[Listener]:
    """Listening sockets."""
    found = []
    for at in range(0, min(len(payload), 19 * MOST_LISTENERS) - 18, 19):
        family, address, port = struct.unpack_from("<B16sH", payload, at)
        text = ipaddress.IPv4Address(address[:4]) if family == 4 else ipaddress.IPv6Address(address)
        found.append(Listener(str(text), port))
    return found


def figures(payload: bytes) -> tuple[Stats, int] | None:
    """What the dyno uses, and the guest's memory in KiB; None when it is no such thing."""
    if len(payload) != 48:
        return None
    memory, disk, cpu, pids, ooms, total = struct.unpack("<6Q", payload)
    return Stats(memory, disk, cpu / 1e6, pids, ooms), total


def count(payload: bytes) -> int:
    """The number in an ACCEPTED frame."""
    return int.from_bytes(payload, "little") if len(payload) == 4 else 0
