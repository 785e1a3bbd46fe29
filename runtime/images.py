"""Each image is mounted once, however many dynos run on it: they share its pages in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

Mounter = Callable[[Path, Path], None]


def _mount(image: Path, target: Path) -> None:
    from slugs import image as images

    images.mount(image, target)


class Images:
    """Mounted images, kept while in use and a few beyond that.

    Args:
        directory: where the mount points are made.
        mount: mounts an image at a directory; :func:`slugs.image.mount` by default.
        unmount: the reverse.
        idle: how many unused ones stay mounted for the next start.
    """

    def __init__(self, directory: Path, mount: Mounter | None, unmount: Callable[[Path], None], idle: int = 4) -> None:
        self.directory, self._mount, self._unmount, self._keep = directory, mount or _mount, unmount, idle
        self._points: dict[Path, Path] = {}
        self._users: dict[Path, int] = {}
        self._files: dict[Path, tuple[int, int]] = {}
        self._idle: OrderedDict[Path, None] = OrderedDict()
        self._lock = threading.Lock()
        self._count = 0

    def use(self, image: Path) -> Path:
        """The directory at which ``image`` is mounted; call :meth:`done` once for each call of this."""
        with self._lock:
            if image in self._idle and self._files[image] != _file(image):
                self._drop(image)  # another file has its name: a newer build cache
            if image not in self._points:
                self._count += 1
                point = self.directory / str(self._count)
                point.mkdir()
                try:
                    self._mount(image, point)
                except BaseException:
                    point.rmdir()
                    raise
                self._points[image] = point
                self._files[image] = _file(image)
            self._users[image] = self._users.get(image, 0) + 1
            self._idle.pop(image, None)
            return self._points[image]

    def done(self, image: Path) -> None:
        """One user less."""
        with self._lock:
            self._users[image] -= 1
            if self._users[image] == 0:
                self._idle[image] = None
            while len(self._idle) > self._keep:
                self._drop(self._idle.popitem(last=False)[0])

    def close(self) -> None:
        """Unmount everything."""
        with self._lock:
            for image in list(self._points):
                self._drop(image)

    def _drop(self, image: Path) -> None:
        point = self._points.pop(image)
        self._users.pop(image, None)
        self._files.pop(image, None)
        self._idle.pop(image, None)
        self._unmount(point)
        point.rmdir()


def _file(image: Path) -> tuple[int, int]:
    """Which file has this name; the number of one that is mounted is given to no other."""
    found = image.stat()
    return found.st_dev, found.st_ino
