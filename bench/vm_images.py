"""How long the images of a slug take for each MB of its files: the slug's own, which containers and microVMs mount as it is, and
those that unikernels boot from. :mod:`bench.vms` prints it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.seal import TREES
from bench.vm_figures import Found
from runtime.host import Host
from runtime.stacks import Stack
from slugs import image

MIB = 1 << 20
MEMORY = 1 << 30
"""Bytes of a guest that holds the slug in any case."""


def seal(host: Host, stack: Stack, place: Path, found: Found) -> Path:
    """Seal a slug of a middling app: the files of a small Flask app's size that :mod:`bench.seal` takes from the stack.

    Returns:
        the sealed slug.
    """
    tree, slug = place / "tree", place / "slug"
    built = host.images.use(stack.build)
    try:
        shutil.copytree(built / TREES["Flask app"], tree / "app", symlinks=True)
    finally:
        host.images.done(built)
    found.slug_mib = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir()) / MIB
    began = time.perf_counter()
    image.seal(tree, slug)
    found.seal = (time.perf_counter() - began) / found.slug_mib
    return slug


def unikernels(driver: Any, stack: Path, slug: Path, line: str, environment: Mapping[str, str], found: Found) -> None:
    """The root of Python, once for each stack, and the slug's image for each MB. Nothing of either may be there yet."""
    into = found.alone["osv"]
    began = time.perf_counter()
    driver.images.sources(stack, None, line, environment, MEMORY)
    into.root = time.perf_counter() - began
    began = time.perf_counter()
    driver.images.sources(stack, slug, line, environment, MEMORY)
    into.image = (time.perf_counter() - began) / found.slug_mib
