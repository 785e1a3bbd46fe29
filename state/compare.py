"""What changed from one release to another: the commit, names of config vars, process types, the buildpack's result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from state.models import Release
from state.releases import config_of


@dataclass(frozen=True)
class Changes:
    """Names that came, went, or have another value."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True)
class Comparison:
    """From ``old`` to ``new``.

    Attributes:
        commits: both commits where they differ.
        config: config vars, by name; values are never shown.
        types: process types, with what they run before and after.
        slug: whether other code runs.
        stack: both stack versions where they differ.
    """

    old: Release
    new: Release
    commits: tuple[str | None, str | None] | None
    config: Changes
    types: dict[str, tuple[str | None, str | None]]
    slug: bool
    stack: tuple[str, str] | None

    @property
    def nothing(self) -> bool:
        """Whether both are the same."""
        return not (self.slug or self.config or self.types or self.stack)


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> Changes:
    return Changes(
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(old.keys() - new.keys())),
        tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    )


def releases(old: Release, new: Release) -> Comparison:
    """What somebody who has ``old`` gets with ``new``."""
    before, after = (row.slug.commit if row.slug else None for row in (old, new))
    names = sorted(old.process_types.keys() | new.process_types.keys())
    types = {name: (old.process_types.get(name), new.process_types.get(name)) for name in names}
    return Comparison(
        old,
        new,
        (before, after) if before != after else None,
        _changes(config_of(old), config_of(new)),
        {name: pair for name, pair in types.items() if pair[0] != pair[1]},
        old.slug_id != new.slug_id,
        (old.stack_version, new.stack_version) if old.stack_version != new.stack_version and new.stack_version else None,
    )
