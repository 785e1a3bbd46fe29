"""Mounted images: real ones, mounted by the real kernel."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime import mounts
from runtime.images import Images
from slugs import image
from slugs.image import NotMounted
from tests.runtime import rootfs


def said(point: Path) -> str:
    return (point / "app" / "said").read_text()


def replace(at: Path, text: str) -> None:
    rootfs.app_image(at.parent, {"said": text}).rename(at)


def test_who_comes_later_sees_the_file_that_has_the_name_now(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    cache, work = tmp_path / "cache.img", tmp_path / "work"
    work.mkdir()
    images = Images(work, None, mounts.unmount)
    replace(cache, "first")
    first, with_it = images.use(cache), images.use(cache)
    assert first == with_it and said(first) == "first"
    replace(cache, "second")
    second = images.use(cache)
    assert (said(first), said(second)) == ("first", "second"), "whoever uses the first goes on with it"
    images.done(first)
    assert said(first) == "first"
    images.done(first)
    images.done(second)
    assert list(work.iterdir()) == [second], "nobody can ask for the first any more, and the second waits"
    replace(cache, "third")
    third = images.use(cache)
    assert said(third) == "third" and list(work.iterdir()) == [third]
    cache.unlink()
    with pytest.raises(NotMounted, match=r"cache\.img could not be mounted: No such file or directory"):
        images.use(cache)
    images.done(third)
    assert list(work.iterdir()) == []


def test_what_is_replaced_or_removed_while_it_is_mounted_is_not_taken_for_what_was_asked_for(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    cache, work = tmp_path / "cache.img", tmp_path / "work"
    work.mkdir()
    replace(cache, "first")
    after = iter([lambda: replace(cache, "second"), lambda: None, cache.unlink])

    def mount(path: Path, point: Path) -> None:
        image.mount(path, point)
        next(after)()

    images = Images(work, mount, mounts.unmount)
    point = images.use(cache)
    assert said(point) == "second"
    images.done(point)
    images.close()
    with pytest.raises(NotMounted):
        images.use(cache)
    assert list(work.iterdir()) == []


def test_a_few_that_nobody_uses_stay_for_the_next_start(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    work = tmp_path / "work"
    work.mkdir()
    images = Images(work, None, mounts.unmount, idle=2)
    slugs = [tmp_path / f"{number}.img" for number in range(3)]
    for slug in slugs:
        replace(slug, slug.name)
    points = [images.use(slug) for slug in slugs]
    for point in points:
        images.done(point)
    assert sorted(work.iterdir()) == points[1:]
    assert images.use(slugs[1]) == points[1] and said(points[1]) == "1.img"
    images.close()
    assert list(work.iterdir()) == []
    images.done(points[1])  # whoever still read it
    assert said(images.use(slugs[1])) == "1.img"
    images.close()
