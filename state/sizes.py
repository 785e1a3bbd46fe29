"""Dyno sizes: names and RAM as Heroku's (Dev Center, "Dyno Types"), CPU as shares of a core."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.errors import InvalidParams

MIB = 1 << 20


@dataclass(frozen=True)
class Size:
    """A dyno size.

    Attributes:
        name: as people type it (``standard-1x``).
        label: as the API prints it (``Standard-1X``).
        memory: MiB that are promised.
        cpu_shares: relative weight under contention (1024 is one standard share).
        dedicated: whether it is a performance size.
        pids: processes and threads at the most.
        disk: MiB of the writable layer.
    """

    name: str
    label: str
    memory: int
    cpu_shares: int
    dedicated: bool = False
    pids: int = 256
    disk: int = 1024


SIZES = {
    size.name: size
    for size in (
        Size("eco", "Eco", 512, 1024),
        Size("basic", "Basic", 512, 1024),
        Size("standard-1x", "Standard-1X", 512, 1024),
        Size("standard-2x", "Standard-2X", 1024, 2048, pids=512),
        Size("performance-m", "Performance-M", 2560, 8192, True, 16384, 4096),
        Size("performance-l", "Performance-L", 14336, 16384, True, 32768, 8192),
        Size("performance-l-ram", "Performance-L-RAM", 30720, 16384, True, 32768, 8192),
        Size("performance-xl", "Performance-XL", 63488, 32768, True, 32768, 8192),
        Size("performance-2xl", "Performance-2XL", 129024, 65536, True, 32768, 8192),
    )
}
_ALIASES = {
    "1x": "standard-1x", "2x": "standard-2x", "pm": "performance-m", "pl": "performance-l",
    "hobby": "basic", "free": "eco",  # Heroku's names of old, which still stand in people's app.json
}  # fmt: skip
DEFAULT = "basic"


def find(name: str) -> Size:
    """The size with this name, in any case, or a short form.

    Raises:
        InvalidParams: there is none; the sentence lists them.
    """
    key = name.strip().lower()
    size = SIZES.get(_ALIASES.get(key, key))
    if size is None:
        raise InvalidParams(f"There is no dyno size “{name}”; the sizes are {', '.join(s.label for s in SIZES.values())}.")
    return size
