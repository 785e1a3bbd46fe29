"""Sealing a slug, starting from it and reading it: erofs and squashfs against the tar + gzip that Heroku uses.

    python bench/seal.py [--runs 5]

Needs root and a built stack, whose own files it takes: Python's packages (about the size of a small Flask app) and Debian's
Node modules (a large node_modules). Medians of interleaved runs; ratios hold where absolute times do not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from foundation.settings import settings
from runtime import stacks
from slugs import image, kernel

TREES = {"Flask app": "usr/lib/python3", "node_modules": "usr/share/nodejs"}
STEPS = ("seal", "size", "ready", "read")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    with tempfile.TemporaryDirectory(prefix="bench-seal-") as name:
        work = Path(name)
        (work / "stack").mkdir()
        image.mount(stacks.current(settings().stacks).build, work / "stack")
        for title, source in TREES.items():
            tree = work / title.replace(" ", "-")
            (tree / "app").mkdir(parents=True)
            subprocess.run(["cp", "-a", work / "stack" / source, tree / "app"], check=True)
            report(title, tree, measure(tree, work, runs))
        image.unmount(work / "stack")


def measure(tree: Path, work: Path, runs: int) -> dict[str, dict[str, float]]:
    """Medians by way and step: seconds, and bytes for the size."""
    ways: dict[str, Callable[[Path, Path], dict[str, float]]] = {
        "tar + gzip": tarball,
        "erofs": lambda tree, work: sealed("erofs", tree, work),
        "squashfs": lambda tree, work: sealed("squashfs", tree, work),
    }
    samples = [{way: once(tree, work) for way, once in ways.items()} for _ in range(runs)]
    return {way: {step: statistics.median(s[way][step] for s in samples) for step in STEPS} for way in ways}


def tarball(tree: Path, work: Path) -> dict[str, float]:
    packed, unpacked = work / "slug.tgz", work / "unpacked"
    unpacked.mkdir()
    packed.unlink(missing_ok=True)
    found = {"seal": timed("tar", "-C", tree, "-czf", packed, "./app"), "size": float(packed.stat().st_size)}
    found["ready"] = timed("tar", "-C", unpacked, "-xzf", packed)
    found["read"] = read(unpacked)
    subprocess.run(["rm", "-rf", unpacked], check=True)
    return found


def sealed(form: str, tree: Path, work: Path) -> dict[str, float]:
    packed, mounted = work / f"slug.{form}", work / "mounted"
    mounted.mkdir(exist_ok=True)
    packed.unlink(missing_ok=True)
    start = perf_counter()
    image.seal(tree, packed, form=form)
    found = {"seal": perf_counter() - start, "size": float(packed.stat().st_size)}
    start = perf_counter()
    image.mount(packed, mounted)
    found["ready"] = perf_counter() - start
    found["read"] = read(mounted)
    image.unmount(mounted)
    return found


def read(tree: Path) -> float:
    """Seconds to read every file of a fresh mount (or a fresh unpacked tree), one after the other."""
    start = perf_counter()
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.read_bytes()
    return perf_counter() - start


def timed(*command: str | Path) -> float:
    start = perf_counter()
    subprocess.run(command, check=True)
    return perf_counter() - start


def report(title: str, tree: Path, found: dict[str, dict[str, float]]) -> None:
    files = sum(len(names) for _, _, names in os.walk(tree))
    size = sum(Path(folder, n).lstat().st_size for folder, _, names in os.walk(tree) for n in names)
    print(f"{title}: {files} files, {size / 1e6:.0f} MB")
    print(f"  {'':12}{'seal':>20}{'size':>20}{'ready to start':>20}{'read it all':>20}")
    base = found["tar + gzip"]
    for way, values in found.items():
        cells = [f"{values[s] / 1e6:.1f} MB" if s == "size" else f"{values[s] * 1000:.1f} ms" for s in STEPS]
        ratios = [f"x{values[s] / base[s]:.3g}" for s in STEPS]
        print(f"  {way:12}" + "".join(f"{f'{cell} {ratio}':>20}" for cell, ratio in zip(cells, ratios, strict=True)))


if __name__ == "__main__":
    main()
