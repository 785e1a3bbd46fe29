"""Looking at files as a dyno will see them, from outside and without running anything: the stack at /, the slug's app at /app.

Both may be hostile: a symlink is followed inside only, by hand, and what is opened is opened without following one.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from slugs.elf import Elf, read_elf

_MOST_LINKS = 40
_SHEBANG = 256


@dataclass(frozen=True)
class View:
    """A dyno's file system.

    Args:
        stack: the stack's root, mounted or unpacked.
        app: the directory that is /app; None for an empty one.
    """

    stack: Path
    app: Path | None = None

    def host(self, path: str) -> Path:
        """Where the resolved path ``path`` lies on this host."""
        if self.app is not None and (path == "/app" or path.startswith("/app/")):
            return self.app / path.removeprefix("/app").lstrip("/")
        return self.stack / path.lstrip("/")

    def resolve(self, path: str) -> str | None:
        """The path without symlinks; None when it leads nowhere."""
        done: list[str] = []
        todo = path.split("/")[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = "/" + "/".join([*done, part])
            try:
                status = os.lstat(self.host(here))
                if not stat.S_ISLNK(status.st_mode):
                    done.append(part)
                    continue
                target = os.readlink(self.host(here))  # noqa: PTH115
            except (OSError, ValueError):
                return None
            links += 1
            if links > _MOST_LINKS:
                return None
            if target.startswith("/"):
                done = []
            todo += target.split("/")[::-1]
        return "/" + "/".join(done)

    def file(self, path: str) -> str | None:
        """The resolved path when it is a regular file."""
        found = self.resolve(path)
        if found is None:
            return None
        try:
            return found if stat.S_ISREG(os.lstat(self.host(found)).st_mode) else None
        except OSError:
            return None

    def directory(self, path: str) -> list[str]:
        """The names in a directory; none when it is none."""
        found = self.resolve(path)
        try:
            return sorted(os.listdir(self.host(found))) if found is not None else []
        except OSError:
            return []

    def read(self, path: str, most: int) -> bytes:
        """The first ``most`` bytes of a file; nothing when there is none."""
        found = self.file(path)
        if found is None:
            return b""
        try:
            file = os.open(self.host(found), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return b""
        with os.fdopen(file, "rb") as reader:
            return reader.read(most)

    def program(self, name: str, path: str, directory: str = "/app") -> str | None:
        """What a shell in ``directory`` would run for ``name``: the path, symlinks and all, not resolved.

        Args:
            path: the PATH to look in.
        """
        candidates = [name if name.startswith("/") else f"{directory}/{name}"] if "/" in name else [
            f"{place}/{name}" for place in path.split(":") if place.startswith("/")
        ]  # fmt: skip
        for candidate in candidates:
            found = self.file(candidate)
            if found is not None and ("/" in name or os.lstat(self.host(found)).st_mode & 0o111):
                return os.path.normpath(candidate)
        return None

    def interpreter(self, path: str) -> list[str]:
        """The words of a script's first line, ``#!``; none when it has no such line."""
        line = self.read(path, _SHEBANG).split(b"\n")[0]
        return line[2:].decode(errors="replace").split() if line.startswith(b"#!") else []

    def elf(self, path: str) -> Elf | None:
        """What a program is; None when it is no ELF."""
        return read_elf(self.read(path, 1 << 16))
