"""Notices changes in the database that nobody told the router about."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from foundation.errors import DavitError
from router.service import Router
from state.db import snapshot
from state.models import App, Domain, Dyno, Formation, Release, SniEndpoint

log = logging.getLogger("router")

INTERVAL = 2.0
"""Seconds between looks."""

Fingerprint = tuple[Any, ...]


def fingerprint(session: Session) -> Fingerprint:
    """A value that is another one when a row that routes depend on was added, changed or deleted."""
    return tuple(
        tuple(session.execute(select(func.count(), func.max(table.updated_at)).select_from(table)).one())
        for table in (App, Domain, Dyno, Formation, Release, SniEndpoint)
    )


class Watch:
    """Compares the database's fingerprint now and then; brings all routes up to date when it moved.

    Args:
        router: the router to bring up to date.
        interval: seconds between looks.
    """

    def __init__(self, router: Router, interval: float = INTERVAL) -> None:
        self.router = router
        self.interval = interval
        self._seen: Fingerprint | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            started = time.monotonic()
            try:
                await self._look()
            except DavitError as error:
                log.warning(error.message)
            except Exception:
                log.exception("the database could not be read")
            # with very many apps a look costs more: spend a twentieth of the time on it at the most
            await asyncio.sleep(max(self.interval, 20 * (time.monotonic() - started)))

    async def _look(self) -> None:
        present = await asyncio.to_thread(_read_fingerprint)
        if present != self._seen:
            await self.router.sync_all()
            self._seen = present


def _read_fingerprint() -> Fingerprint:
    with snapshot() as session:
        return fingerprint(session)
