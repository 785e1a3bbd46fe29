"""The log files of Davit's own processes: kept small, shown on a terminal, quoted when something went wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

LARGEST = 10 << 20
"""Bytes after which a log file is put aside."""
KEPT = 3
"""How many put-aside files are kept of each."""
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


def rotate(path: Path, largest: int = LARGEST) -> None:
    """Put a log file aside when it has grown: ``web.log`` → ``web.log.1`` → … → gone.

    The writer keeps its descriptor, so the content is copied and the file emptied; because it was opened for appending
    (O_APPEND), the next line is at the front. A line written between the two steps is lost. Where the copy has no room the
    file stays as it is.
    """
    copy = path.with_name(f"{path.name}.new")
    try:
        if path.stat().st_size < largest:
            return
        shutil.copyfile(path, copy)
        copy.chmod(0o600)
        for number in range(KEPT, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(f"{path.name}.{number - 1}").rename(path.with_name(f"{path.name}.{number}"))
        copy.rename(path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
    except OSError:
        with contextlib.suppress(OSError):
            copy.unlink(missing_ok=True)


def last_lines(path: Path, count: int = 15, since: int = 0) -> list[str]:
    """The last lines of a log file, at most ``count`` of them; none when there is no file.

    Args:
        since: the byte that the first of them begins at or after.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - 16_384))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


class Echo:
    """Shows what processes write to their log files, each line behind its process's name.

    Args:
        paths: the log files; what they hold already is not shown.
    """

    pause = 0.2
    """Seconds between two looks."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._offsets = {path: path.stat().st_size if path.exists() else 0 for path in paths}
        self._width = max((len(path.stem) for path in paths), default=0)
        self._colours = dict(zip(paths, _COLOURS * (1 + len(paths) // len(_COLOURS)), strict=False))
        self._coloured = sys.stdout.isatty()

    def show(self) -> None:
        """Print the whole lines that came since the last call."""
        for path, offset in self._offsets.items():
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            start = offset if size >= offset else 0  # it was put aside
            with path.open("rb") as file:
                file.seek(start)
                text = file.read(1 << 20)
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[path] = start + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                print(self._prefix(path) + line)
        sys.stdout.flush()

    def _prefix(self, path: Path) -> str:
        name = f"{path.stem:<{self._width}} | "
        return f"\x1b[{self._colours[path]}m{name}\x1b[0m" if self._coloured else name
