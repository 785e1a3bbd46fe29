"""Each image is mounted once, however many dynos run on it: they share its pages in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

Mounter = Callable[[Path, Path], None]


def _mount(image: Path, target: Path) -> None:
    from slugs import image as images

    images.mount(image, target)


@dataclass(frozen=True)
class _File:
    """A file by its name and its number, which is given to no other file while it is mounted."""

    image: Path
    device: int
    number: int

    def has_its_name(self) -> bool:
        """Whether it has not been replaced or removed."""
        with suppress(OSError):
            found = self.image.stat()
            return (found.st_dev, found.st_ino) == (self.device, self.number)
        return False


class Images:
    """Mounted images, kept while in use and a few beyond that.

    A name may be given to another file while the one that had it is in use, as that of an app's build cache after each build:
    who comes later sees the other.

    Args:
        directory: where the mount points are made.
        mount: mounts an image at a directory; :func:`slugs.image.mount` by default.
        unmount: the reverse.
        idle: how many unused ones stay mounted for the next start.
    """

    def __init__(self, directory: Path, mount: Mounter | None, unmount: Callable[[Path], None], idle: int = 4) -> None:
        self.directory, self._mount, self._unmount, self._keep = directory, mount or _mount, unmount, idle
        self._points: dict[_File, Path] = {}
        self._users: dict[Path, int] = {}
        self._idle: OrderedDict[_File, None] = OrderedDict()
        self._lock = threading.Lock()
        self._count = 0

    def use(self, image: Path) -> Path:
        """The directory at which ``image`` is mounted; give it back with :meth:`done`, once for each call of this.

        Raises:
            NotMounted: there is no such file, or the kernel refuses it.
        """
        with self._lock:
            file = _file(image)
            if file not in self._points:
                file = self._add(image)
            point = self._points[file]
            self._users[point] = self._users.get(point, 0) + 1
            self._idle.pop(file, None)
            return point

    def done(self, point: Path) -> None:
        """One user less of what :meth:`use` has given, and :meth:`close` may have taken away."""
        with self._lock:
            if point not in self._users:
                return
            self._users[point] -= 1
            if self._users[point] == 0:
                (file,) = (file for file, at in self._points.items() if at == point)
                self._idle[file] = None
                self._drop_idle()

    def close(self) -> None:
        """Unmount everything, also what somebody still reads: they find nothing there any more."""
        with self._lock:
            for file in list(self._points):
                self._drop(file)

    def _add(self, image: Path) -> _File:
        self._count += 1
        point = self.directory / str(self._count)
        point.mkdir()
        try:
            while True:
                file = _file(image)
                self._mount(image, point)
                if file.has_its_name():
                    break
                self._unmount(point)  # another file may have come to have the name before it was mounted
        except BaseException:
            point.rmdir()
            raise
        self._points[file] = point
        self._drop_idle()
        return file

    def _drop_idle(self) -> None:
        """Drop unused ones: first those that nobody can ask for any more."""
        for file in [file for file in self._idle if not file.has_its_name()]:
            self._drop(file)
        while len(self._idle) > self._keep:
            self._drop(next(iter(self._idle)))

    def _drop(self, file: _File) -> None:
        point = self._points.pop(file)
        self._users.pop(point, None)
        self._idle.pop(file, None)
        self._unmount(point)
        point.rmdir()


def _file(image: Path) -> _File:
    """Which file has this name now.

    Raises:
        NotMounted: none.
    """
    try:
        found = image.stat()
    except OSError as error:
        from slugs.image import NotMounted

        raise NotMounted(image, error.strerror or str(error)) from None
    return _File(image, found.st_dev, found.st_ino)
