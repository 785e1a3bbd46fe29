"""Trees to seal, and a way to look into an image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from slugs import image

OLD = 1_500_000_000


def make_tree(top: Path, files: dict[str, str], backwards: bool = False) -> Path:
    """A tree ``top/app/…`` of text files with fixed times; ``backwards`` makes them in the opposite order."""
    for name in sorted(files, reverse=backwards):
        path = top / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name])
    for path in [*top.rglob("*"), top]:
        os.utime(path, (OLD, OLD), follow_symlinks=False)
    return top


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", {"hello.txt": "hello", "lib/deep/module.py": "x = 1\n" * 1000, "Procfile": "web: run\n"})


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[Path], AbstractContextManager[Path]]]:
    """``with mounted(image) as directory``: the image's content."""
    target = tmp_path / "mounted"
    target.mkdir()

    @contextmanager
    def look(path: Path) -> Iterator[Path]:
        image.mount(path, target)
        try:
            yield target
        finally:
            image.unmount(target)

    yield look
    image.unmount(target)
