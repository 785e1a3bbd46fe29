"""Readiness where Davit's own supervisor has not started the processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.host import ready
from foundation.settings import settings
from state import notify


@pytest.fixture(autouse=True)
def _here(davit_home: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DAVIT_HOME", str(davit_home))
    monkeypatch.setenv("REDIS_URL", redis_server)
    for cached in (settings, notify.redis_client):
        cached.cache_clear()
    yield
    for cached in (settings, notify.redis_client):
        cached.cache_clear()


def test_a_worker_that_something_else_started_is_ready_when_it_says_so() -> None:
    notify.redis_client().delete("davit:worker")
    assert not ready.answers("worker", settings())
    notify.worker_is_here()
    assert ready.answers("worker", settings())
    notify.redis_client().delete("davit:worker")
