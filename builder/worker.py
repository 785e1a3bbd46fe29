"""``python -m builder.worker``: DAVIT_BUILD_SLOTS RQ workers, and the look-out for builds that lost theirs.

One process imports everything once and forks the workers, so they share its memory; each forks again for every build. The
workers block on Redis, so a build starts within milliseconds. When this process ends, however it ends, the kernel ends
the workers and their builds (the parent-death signal), and with a build's connection to the runtime process its sandbox;
whoever starts next takes up again what was left.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import time
from typing import Any

import redis
from rq import Queue, Worker
from rq.job import Job
from setproctitle import setproctitle

from builder import buildpacks, job, queue, sandbox
from foundation import journal
from foundation.settings import settings
from logs import announce
from state import notify

log = logging.getLogger("worker")

LOOK_SECONDS = 5.0
"""How often builds are looked for that are in the database and with nobody."""
RESTART_SECONDS = 0.5
"""Before a slot whose worker ended gets its next (Redis may be away)."""
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (prctl(2)); ``parent`` may have ended already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class BuildWorker(Worker):  # type: ignore[misc]
    """An RQ worker whose builds do not outlive it."""

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """As RQ's, with the parent-death signal set before anything else."""
        worker = os.getpid()
        child = os.fork()
        if child == 0:
            die_with_parent(worker)
            os.setpgrp()
            self.main_work_horse(job, queue)
            os._exit(0)
        self._horse_pid = child

    def perform_job(self, *words: Any, **names: Any) -> bool:
        """As RQ's; afterwards the work horse ends without ceremony, so log lines on their way are sent first."""
        flush = announce.install()
        try:
            return bool(super().perform_job(*words, **names))
        finally:
            flush()

    def procline(self, message: str) -> None:
        """RQ would rename the process at every step."""


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    journal.start("worker")
    setproctitle("davit: worker")
    _prepare()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    workers: dict[int, int] = {}
    log.info("ready", extra={"slots": settings().build_slots})
    try:
        while True:
            _fill(workers)
            _look_out()
            event = signal.sigtimedwait(SIGNALS, LOOK_SECONDS)
            if event is not None and event.si_signo != signal.SIGCHLD:
                break
            if event is not None:
                time.sleep(RESTART_SECONDS)
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _prepare() -> None:
    """Load what every build needs, before forking."""
    buildpacks.bundled_archive()
    sandbox.program()
    log.debug("loaded", extra={"job": job.__name__})
    gc.collect()
    gc.freeze()  # the collector leaves the shared pages alone


def _fill(workers: dict[int, int]) -> None:
    """Keep one worker in every slot."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        workers.pop(pid, None)
    for slot in set(range(settings().build_slots)) - set(workers.values()):
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _work(parent)
        workers[pid] = slot


def _work(parent: int) -> None:
    status = 1
    try:
        die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        setproctitle("davit: worker (build slot)")
        notify.redis_client.cache_clear()
        connection = redis.Redis.from_url(settings().effective_redis_url)
        worker = BuildWorker([queue.NAME], connection=connection, maintenance_interval=1800)
        worker.work(logging_level="WARNING", with_scheduler=False)
        status = 0
    except redis.RedisError:
        pass  # the next one tries again
    finally:
        os._exit(status)


def _look_out() -> None:
    try:
        queue.recover()
    except redis.RedisError:
        log.debug("Redis is away")
    except Exception:
        log.exception("unfinished builds could not be looked after")


if __name__ == "__main__":
    main()
