"""gunicorn's configuration: ``gunicorn --config python:api.server app:app``."""

from __future__ import annotations

from typing import Any

from foundation import journal


def post_worker_init(worker: Any) -> None:
    """In the worker: log as every process of Davit's does; let streams see when the worker is told to stop."""
    from api import streams

    journal.start("web")
    streams.working = lambda: bool(worker.alive)
