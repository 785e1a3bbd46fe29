"""gunicorn's configuration: ``gunicorn --config python:api.server app:app``."""

from __future__ import annotations

import os
from typing import Any

from foundation import journal, mappings
from foundation.settings import settings

user, group = os.geteuid(), os.getegid()
"""Whose gunicorn's files are. Its own defaults are those of the process that imported it first, which may have been root's."""

threads = settings().web_threads + 2 * settings().pushes
"""Pushes hold theirs for as long as they build, clones until they are read; the others are left to all other requests."""

worker_connections = threads + 4096
"""Kept and silent connections beside those that have a thread; gunicorn's own 1,000 were for all of them."""

sendfile = False
"""Half of the connections are in TLS, where the kernel cannot send a file by itself."""


def when_ready(server: Any) -> None:
    """In the process that looks after the worker: what it loaded, it loaded for that one."""
    mappings.give_back()


def post_worker_init(worker: Any) -> None:
    """In the worker: log as every process of Davit's does; let streams see when the worker is told to stop; deliver webhooks."""
    from api import deliveries, door, streams

    journal.start("web")
    worker.log.error_log.addFilter(door.Unquoted())
    door.tls()
    streams.working = lambda: bool(worker.alive)
    deliveries.Deliverer(streams.working).start()
    if address := settings().exec:
        from api import tunnel

        tunnel.serve(address)
