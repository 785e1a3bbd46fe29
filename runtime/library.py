"""Where the images are that dynos and builds start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from foundation.errors import NotFound
from foundation.settings import Settings
from runtime import stacks
from slugs.store import Store

STEADY_SECONDS = 3600
"""How long a new stack leaves the older ones alone."""


class Library:
    """Stacks and slugs of this host (runtime.plans.Stacks, runtime.sandboxes.BuildImages)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.home / "slugs")

    def version(self) -> str:
        """The newest stack's version."""
        return stacks.current(self.settings.stacks).version

    def run_image(self, version: str) -> Path:
        """The run image of this version, or of the newest when that one is gone."""
        newest = stacks.current(self.settings.stacks)
        if version and version != newest.version:
            kept = newest.run.parent.parent / version / newest.run.name
            if kept.exists():
                return kept
        return newest.run

    def collect_stacks(self, in_use: Callable[[], set[str]]) -> list[str]:
        """Remove the stack's versions that nothing uses any more; returns them.

        None where Davits share the stacks (DAVIT_STACKS), for nobody knows what the others use, nor within an hour of a new
        one, which a release may have been about to do without, nor while one is built.

        Args:
            in_use: the versions in use, when it is called.
        """
        root = self.settings.stacks
        if root != self.settings.home / "stacks":
            return []
        return stacks.collect(root, in_use, STEADY_SECONDS)

    def collect_kernels(self, in_use: Callable[[], set[str]]) -> list[str]:
        """Remove the versions of microVMs' kernel that nothing uses any more, as :meth:`collect_stacks` does; returns them."""
        root = self.settings.stacks
        if root != self.settings.home / "stacks" or not (root / "microvm-kernel").is_dir():
            return []
        from runtime.microvm import kernel  # a host without microVMs does not load their code

        return kernel.collect(root, in_use, STEADY_SECONDS)

    def build_image(self) -> Path:
        """The newest build stack."""
        return stacks.current(self.settings.stacks).build

    def slug_image(self, digest: str) -> Path:
        """A slug's image.

        Raises:
            NotFound: it is not on this host.
        """
        path = self.store.path(digest)
        if not path.exists():
            raise NotFound(f"The slug {digest[:19]}… is not on this host; push the code again.")
        return path
