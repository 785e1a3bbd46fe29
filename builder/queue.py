"""The queue: which build runs next, and what becomes of builds whose worker is gone.

The order is in the database (one build per app at a time, first come first served); RQ only carries a build's id to a
worker. No app has more than one build in RQ's queue, and accounts take turns at its front, with the steps of app setups, too.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

import redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job

from builder import output, repositories
from foundation.clock import now
from foundation.errors import DavitError
from foundation.settings import settings
from logs.room import Room
from state import builds, notify
from state.db import ask, snapshot, transaction
from state.models import Build

log = logging.getLogger("builder")

NAME = "builds"
SETUP = "setup-"
"""What the ids of jobs begin with that are steps of app setups; a build's job has the build's id."""
CANCELLED = "The build was cancelled."
MOST_RISING, MOST_RISING_OF_ONE = 16, 4
"""Builds at the most whose slug is sealed and whose release is on its way up, of all and of one account, and postdeploy commands
with them: each is a process of some 25 MiB that waits, and such a command may take an hour."""
ATTEMPTS = 2
"""A build whose worker died is taken up again once, from the same commit."""
LOST_AFTER = timedelta(seconds=10)
"""How long a build may be queued in the database without being in Redis (a worker has just taken it) before it counts as lost."""

FULL = "The build waits, because Davit's Redis is full; it starts by itself when there is room (on the host: `davit doctor`)."
AWAY = "The build waits, because Davit's Redis does not answer; it starts by itself when it does (on the host: `davit status`)."

_Result = TypeVar("_Result")


def queue() -> Queue:
    """RQ's queue of builds."""
    return Queue(NAME, connection=notify.redis_client())


def enqueue_next(app_id: str) -> None:
    """Start the app's oldest waiting build, unless another build of the app has its turn.

    Redis may be away: then the build is started when a worker next looks for what was lost.
    """
    with transaction(momentary=True) as session:
        build = builds.next_turn(session, app_id)
    if build is not None and (reason := _send(build.id)):
        _say(build.id, reason)


def put_first(bounded: bool) -> bool:
    """Before a worker takes a job: have the one at the front whose turn it is; whether there is one that may be taken.

    RQ's queue is first in, first out, and each app has one build in it; somebody with many apps would still go before all others.

    Args:
        bounded: whether somebody may have as many releases on their way up as one account may: then theirs are passed over.
    """
    waiting = queue()
    if not bounded and waiting.count < 2:
        return True
    jobs = {job.removeprefix(SETUP): job for job in waiting.get_job_ids()}
    if not jobs:
        return False
    try:
        first = builds.next_slot(list(jobs), MOST_RISING_OF_ONE)
    except DavitError:  # the database is away for a moment: then in the order in which they came, or none where it matters whose
        return not bounded
    if first is not None and first != next(iter(jobs)) and waiting.connection.lrem(waiting.key, 1, jobs[first]):
        waiting.push_job_id(jobs[first], at_front=True)
    return first is not None


def wait_for_one(seconds: float) -> None:
    """Return when there is a job in an empty queue, or after so long; it is not taken."""
    waiting = queue()
    waiting.connection.brpoplpush(waiting.key, waiting.key, timeout=seconds)


def tell_of_wait(build_id: str) -> None:
    """Say in a fresh build's output what goes first: another build of the same app, or those that have all the slots."""
    with snapshot() as session:
        build = session.get(Build, build_id)
        if build is None or build.status != "pending":
            return
        first = builds.ahead(session, build) if build.phase == "waiting" else None
        taken = builds.at_work(session, build) if first is None else 0
        rising, own = builds.rising(session, build.account_id) if first is None else (0, 0)
    slots = settings().build_slots
    if first is not None:
        what = (first.commit or first.source_version or "source")[:8]
        text = f"Waiting for another build of this app to end: {what}, by {first.account.email}"
    elif taken >= slots:
        text = f"Waiting for a free build slot: {taken} build{'s go' if taken > 1 else ' goes'} first, {slots} at a time"
    elif own >= MOST_RISING_OF_ONE:
        text = f"Waiting for other releases and postdeploy commands of {build.account.email}: {own} are on their way"
    elif rising >= MOST_RISING:
        text = f"Waiting for releases and postdeploy commands of other apps: {rising} are on their way"
    else:
        return
    with suppress(OSError):  # a full disk: the build's own business, later
        out = output.Output(build_id)
        out.heading(text)
        out.close()


def _send(build_id: str) -> str | None:
    """Have a worker take the build; why none will for the moment, when Redis does not take it: :func:`recover` sends it then."""
    try:
        with_room(
            lambda: queue().enqueue(
                "builder.job.build",
                build_id,
                job_id=build_id,
                job_timeout=-1,
                result_ttl=0,
                failure_ttl=60,
                description=f"build {build_id}",
            )
        )
    except redis.OutOfMemoryError:
        log.warning("Redis is full; the build starts when there is room", extra={"build": build_id})
        return FULL
    except redis.RedisError as error:
        log.warning("Redis is away; the build starts when it is back", extra={"build": build_id, "reason": str(error)})
        return AWAY
    return None


def _say(build_id: str, reason: str) -> None:
    """Tell whoever waits for the build."""
    with suppress(OSError):  # a full disk: the build's own business, later
        out = output.Output(build_id)
        out.warning(reason)
        out.close()


def with_room(act: Callable[[], _Result]) -> _Result:
    """What ``act`` returns, for which a full Redis has to take less of the apps' lines.

    Raises:
        redis.OutOfMemoryError: it is full of something else.
        redis.RedisError: it is away.
    """
    try:
        return act()
    except redis.OutOfMemoryError:
        if not _room(notify.redis_client()).make():
            raise
        return act()


@lru_cache(maxsize=1)
def _room(client: redis.Redis) -> Room:
    return Room(client)


@contextmanager
def held(build_id: str) -> Iterator[bool]:
    """Hold the build's lock; the value is whether it was free.

    The kernel lets go of it when this process ends, however it ends: whoever gets it knows that nobody works on the build.
    """
    output.directory(build_id).mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(output.lock(build_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def recover() -> None:
    """Look after every unfinished build: send on what was lost, take up again (or fail) what its worker left."""
    if not ask("SELECT id FROM builds WHERE status = 'pending' LIMIT 1"):
        return
    with snapshot() as session:
        unfinished = builds.unfinished(session)
    for build in unfinished:
        try:
            _recover(build)
        except Exception:
            log.exception("a build could not be looked after", extra={"build": build.id})


def _recover(build: Build) -> None:
    if build.phase == "waiting":
        enqueue_next(build.app_id)
        return
    if build.updated_at > now() - LOST_AFTER and build.phase == "queued":
        return
    if _in_redis(build.id):
        return
    with held(build.id) as free:
        if not free:
            return
        if build.phase == "building" and build.attempts >= ATTEMPTS:
            give_up(build.id, "The build was interrupted twice because Davit's worker process ended; push again.")
            return
        log.warning("a build was interrupted and is taken up again", extra={"build": build.id, "phase": build.phase})
    _send(build.id)


def _in_redis(build_id: str) -> bool:
    """Whether RQ will still run the job: a job that a dead worker had taken is forgotten here."""
    try:
        job = Job.fetch(build_id, connection=notify.redis_client())
    except NoSuchJobError:
        return False
    if queue().get_job_position(build_id) is not None:
        return True
    with held(build_id) as free:
        if free:
            job.delete()
        return not free


def give_up(build_id: str, message: str, kind: str = "build failed") -> None:
    """End a build as failed and start the app's next; its commit is let go of."""
    with transaction() as session:
        builds.fail(session, build_id, kind, message)
        build = session.get(Build, build_id)
    _tell_of_end(build_id, build, message, kind)


def withdraw(build_id: str) -> None:
    """End a build that was cancelled before its turn came. One that is at work sees for itself that it is not wanted."""
    with held(build_id) as free:  # who follows it waits for the last words as long as somebody works on it
        if free:
            _withdraw(build_id)


def _withdraw(build_id: str) -> None:
    with transaction() as session:
        build = session.get(Build, build_id)
        if build is None or build.status != "pending" or build.phase not in ("waiting", "queued"):
            return
        builds.fail(session, build_id, "cancelled", CANCELLED)
    with suppress(NoSuchJobError, redis.RedisError):
        Job.fetch(build_id, connection=notify.redis_client()).delete()
    _tell_of_end(build_id, build, CANCELLED, "cancelled")


def _tell_of_end(build_id: str, build: Build | None, message: str, kind: str) -> None:
    with suppress(OSError):  # a full disk: the row says how it ended
        out = output.Output(build_id)
        out.warning(message)
        out.finish(output.Outcome("failed", kind, message))
        out.close()
    if build is None:
        return
    if build.commit:
        with suppress(DavitError):
            repositories.unpin(build_id)
    enqueue_next(build.app_id)
