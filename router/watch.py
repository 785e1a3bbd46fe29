"""Notices changes in the database that nobody told the router about."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from foundation.errors import DavitError
from router.service import Router
from state.db import ask

log = logging.getLogger("router")

INTERVAL = 2.0
"""Seconds between looks."""

Fingerprint = frozenset[tuple[Any, ...]]


def fingerprint() -> Fingerprint:
    """A value that is another one when a row that routes depend on was added, changed or deleted."""
    return frozenset(ask(_FINGERPRINT))


_FINGERPRINT = " UNION ALL ".join(
    f"SELECT '{table}', count(*), max(updated_at) FROM {table}"  # noqa: S608 - these names are all that it is made of
    for table in ("apps", "domains", "dynos", "formations", "releases", "sni_endpoints")
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
        present = await asyncio.to_thread(fingerprint)
        if present != self._seen:
            await self.router.sync_all()
            self._seen = present
