"""``python -m builder.worker``: takes builds from RQ's queue, DAVIT_BUILD_SLOTS at a time, and looks out for lost ones.

RQ's own worker is one process (and its memory) for every slot. Here one process imports everything once, blocks on the
queue, and forks for each build a process that is an RQ worker for that one job: a build starts within milliseconds, and
an idle slot costs nothing. When this process ends, however it ends, the kernel ends its builds (the parent-death signal),
and with a build's connection to the runtime process its sandbox; whoever starts next takes up again what was left.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

import redis
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout
from rq.job import Job
from setproctitle import setproctitle

from builder import janitor, job, queue, rehearsal, setup, slot, sources
from foundation import journal
from foundation.settings import settings
from logs import announce
from state import notify

log = logging.getLogger("worker")

LOOK_SECONDS = 5
"""How often builds are looked for that are in the database and with nobody."""
SWEEP_SECONDS = 30
"""How often the files of builds are looked for whose app is gone."""
AGAIN_SECONDS = 2
"""How long a build waits for whom no process could be begun."""
WAIT_SECONDS = 3
"""How long one blocking call on Redis lasts; below the time-out of the connection."""
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (prctl(2)); ``parent`` may have ended already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class Worker:
    """The process: ``builds`` are those under way, by pid; a descriptor while one has a slot (:mod:`builder.slot`).

    Args:
        slots: builds in their sandbox at the same time.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.builds: dict[int, int | None] = {}
        self._looked = 0.0
        self._swept = 0.0

    def run(self) -> None:
        """Until SIGTERM or SIGINT, which end the builds under way; they are taken up again at the next start."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        try:
            while True:
                self._look_out()
                self._reap()
                self._free_slots()
                if self._taken() < self.slots and self._rising() < queue.MOST_RISING:
                    self._take()
                else:
                    signal.sigtimedwait([signal.SIGCHLD], LOOK_SECONDS)
        finally:
            for pid in self.builds:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _taken(self) -> int:
        return sum(descriptor is not None for descriptor in self.builds.values())

    def _rising(self) -> int:
        return len(self.builds) - self._taken()

    def _free_slots(self) -> None:
        for pid, descriptor in self.builds.items():
            if descriptor is not None and slot.is_free(descriptor):
                os.close(descriptor)
                self.builds[pid] = None

    def _take(self) -> None:
        """Wait for a build, and start it."""
        connection = notify.redis_client()
        try:
            if not queue.put_first(bounded=self._rising() >= queue.MOST_RISING_OF_ONE):
                self._pass()
                return
            taken = Queue.dequeue_any([queue.queue()], WAIT_SECONDS if not self.builds else 1, connection=connection)
        except DequeueTimeout:
            return
        except redis.RedisError:
            time.sleep(0.2)  # Redis is away, or starting
            return
        if taken is not None:
            self._fork(*taken)

    def _pass(self) -> None:
        """Nobody has a turn: sleep until there is a job, or while those who have one may not begin."""
        if queue.queue().count:
            signal.sigtimedwait([signal.SIGCHLD], 0.25)
        else:
            queue.wait_for_one(1)

    def _fork(self, taken: Job, source: Queue) -> None:
        parent = os.getpid()
        try:
            told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            _put_back(taken, source, error)
            return
        try:
            pid = os.fork()
        except OSError as error:
            os.close(told)
            os.close(tell)
            _put_back(taken, source, error)
            return
        if pid == 0:
            slot.hold(tell)
            _work(parent, taken, source)
        os.close(tell)
        self.builds[pid] = told

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                descriptor = self.builds.pop(pid, None)
                if descriptor is not None:
                    os.close(descriptor)
                self._looked = 0.0  # it may have died: its build is looked after at once

    def _look_out(self) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS and self._looked:
            return
        self._looked = time.monotonic()
        try:
            self._say_so()
            queue.recover()
            setup.recover()
        except redis.RedisError:
            log.debug("Redis is away")
        except Exception:
            log.exception("unfinished builds could not be looked after")
        if not self._swept or time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            try:
                janitor.sweep()
                sources.sweep()
            except Exception:
                log.exception("files of forgotten builds could not be removed")

    def _say_so(self) -> None:
        """The sign of life; a Redis that refuses it may be full, and builds are looked after all the same."""
        try:
            queue.with_room(notify.worker_is_here)
        except redis.ResponseError as error:
            log.warning("Redis refuses the sign that the worker lives", extra={"reason": str(error)})


class _Build(SimpleWorker):  # type: ignore[misc]
    """RQ's worker for one build; in lists of processes it has Davit's name, not RQ's sentences."""

    def procline(self, message: str) -> None:
        """What RQ would have lists of processes say."""
        setproctitle("davit: build")


def _put_back(taken: Job, source: Queue, error: OSError) -> None:
    """The host has no process, memory or descriptor left for a build: it is the first again, in a while; others go on."""
    log.warning("no process can be begun; the build waits", extra={"build": taken.id, "reason": error.strerror})
    try:
        with source.connection.pipeline() as pipe:
            pipe.lrem(source.intermediate_queue_key, 1, taken.id)
            source.push_job_id(taken.id, pipeline=pipe, at_front=True)
            pipe.execute()
    except redis.RedisError:
        log.warning("Redis does not take the build back; it is sent again when it does", extra={"build": taken.id})
    signal.sigtimedwait([signal.SIGCHLD], AGAIN_SECONDS)  # one that ends makes room


def _work(parent: int, taken: Job, source: Queue) -> NoReturn:
    """In the forked process: be an RQ worker for one job, and end."""
    status = 1
    try:
        die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        flush = announce.install()  # a connection of its own: the parent's is the parent's
        _Build([source], connection=notify.redis_client()).execute_job(taken, source)
        flush()
        status = 0
    except Exception:
        log.exception("a build's process failed", extra={"build": taken.id})
    finally:
        os._exit(status)


def _prepare() -> None:
    """Have everything ready that every build needs, before forking."""
    rehearsal.rehearse()
    log.debug("loaded", extra={"job": job.__name__})
    gc.collect()
    gc.freeze()  # the collector leaves the shared pages alone


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    journal.start("worker")
    logging.getLogger("rq").setLevel(logging.WARNING)
    setproctitle("davit: worker")
    announce.install()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    _prepare()
    log.info("ready", extra={"slots": settings().build_slots})
    Worker(settings().build_slots).run()


if __name__ == "__main__":
    main()
