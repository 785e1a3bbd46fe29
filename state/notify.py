"""Hurrying others after a commit. Nothing depends on these arriving: every process also looks for itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import redis
from sqlalchemy.orm import Session

from foundation import wire
from foundation.settings import settings
from state.db import after_commit

log = logging.getLogger("state")

WORKER_SECONDS = 30
_WORKER = "davit:worker"
PATIENCE = 1.0
"""Seconds that Redis has for a wake-up."""
SLOW, RESPITE = 0.2, 5.0
"""A wake-up that failed only after so many seconds is the last for so many: a Redis that hangs must not hold up who has news."""

_Result = TypeVar("_Result")

announcer: Callable[[str, str], None] | None = None
"""Set by each process to write ``app[api]`` lines: called with the app's id and the text."""


@lru_cache(maxsize=1)
def redis_client() -> redis.Redis:
    """The process's Redis client (connects when used; reconnects by itself)."""
    return redis.Redis.from_url(settings().effective_redis_url, socket_timeout=5, socket_connect_timeout=2)


def worker_is_here() -> None:
    """The worker process says that it lives; what it said last counts for WORKER_SECONDS."""
    try:
        redis_client().set(_WORKER, 1, ex=WORKER_SECONDS)
    except redis.OutOfMemoryError:  # a full Redis refuses what might take memory; this takes none
        if not redis_client().expire(_WORKER, WORKER_SECONDS):
            raise


def worker_is_known() -> bool:
    """Whether a worker process has said of late that it lives."""
    return bool(redis_client().exists(_WORKER))


def runtime(session: Session, app_id: str) -> None:
    """The app's wanted state changed: tell the runtime process."""
    after_commit(session, lambda: wire.nudge(settings().run / "runtime.sock", "changed", {"app_id": app_id}))


def router(session: Session, app_id: str) -> None:
    """The app's domains or maintenance changed: tell the router process."""
    after_commit(session, lambda: wire.nudge(settings().run / "router.sock", "sync", {"app_id": app_id}))


def wake(session: Session, channel: str) -> None:
    """Wake those who wait on a Redis channel (``build:ID``, ``release:ID``)."""
    after_commit(session, lambda: publish(channel))


def publish(channel: str) -> None:
    """Publish a wake-up now; silent when Redis is away (those who wait also look for themselves)."""
    _hurry(redis_client()).attempt(lambda client: client.publish(channel, b""))


def subscribe(channel: str) -> Any:
    """A subscription (redis-py's ``PubSub``) that gets the channel's wake-ups from now on; None when Redis is away."""

    def begin(client: redis.Redis) -> Any:
        subscription = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        try:
            subscription.subscribe(channel)
            subscription.get_message(timeout=PATIENCE)  # the confirmation: from now on nothing is missed
        except BaseException:
            subscription.close()
            raise
        return subscription

    return _hurry(redis_client()).attempt(begin)


class _Hurry:
    """Wake-ups over Redis, by a client that waits for it no longer than they are worth."""

    def __init__(self) -> None:
        url = settings().effective_redis_url
        self._client = redis.Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)
        self._respite_until = 0.0

    def attempt(self, act: Callable[[redis.Redis], _Result]) -> _Result | None:
        """What ``act`` returns; None when Redis does not answer, at once when it has just let somebody wait in vain."""
        began = time.monotonic()
        if began < self._respite_until:
            return None
        try:
            return act(self._client)
        except redis.RedisError as error:
            log.debug("no wake-up: Redis is away (%s)", error)
            if time.monotonic() - began > SLOW:
                self._respite_until = time.monotonic() + RESPITE
            return None


@lru_cache(maxsize=1)
def _hurry(client: redis.Redis) -> _Hurry:
    return _Hurry()


def announce(session: Session, app_id: str, text: str) -> None:
    """Write ``text`` to the app's log as ``app[api]``, once the change is in force."""
    after_commit(session, lambda: announcer(app_id, text) if announcer else None)
