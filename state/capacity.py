"""Memory: what dynos are promised and what this host has."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from state.models import App, Formation, Release
from state.sizes import MIB, SIZES


@dataclass(frozen=True)
class Capacity:
    """MiB: ``total`` of the host, ``mine`` promised to one app's dynos, ``others`` to those of all other apps."""

    total: int
    mine: int
    others: int

    @property
    def left(self) -> int:
        """What no dyno is promised; negative when more is promised than there is."""
        return self.total - self.mine - self.others


def memory_of_host() -> int:
    """MiB of RAM that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB


def of(session: Session, app_id: str | None = None) -> Capacity:
    """What formations are promised now; only process types that their app still has count."""
    query = (
        select(Formation.app_id, Formation.type, Formation.quantity, Formation.size, Release.process_types)
        .join(App, App.id == Formation.app_id)
        .join(Release, (Release.app_id == Formation.app_id) & Release.current.is_(True))
        .where(Formation.quantity > 0, App.destroying.is_(False))
    )
    mine = others = 0
    for id, type, quantity, size, types in session.execute(query):
        if type not in types or size not in SIZES:
            continue
        memory = quantity * SIZES[size].memory
        if id == app_id:
            mine += memory
        else:
            others += memory
    return Capacity(memory_of_host(), mine, others)
