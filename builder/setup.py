"""Setting an app up from its app.json: what RQ calls, and how it goes on when a build has ended or a worker has died.

No step waits for the next: reading app.json ends with a build in the queue, and that build's end leads to the postdeploy
command, so that setups never hold the slots that their own builds need.
"""

from __future__ import annotations

import logging
import os
import selectors
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import redis
from rq.exceptions import NoSuchJobError
from rq.job import Job

from builder import appjson, buildpacks, manifest, queue, slot
from foundation import lockfile, wire
from foundation.clock import now
from foundation.errors import DavitError
from foundation.settings import settings
from state import notify, setups
from state.db import ask, snapshot, transaction
from state.models import AppSetup

log = logging.getLogger("builder")

POSTDEPLOY_SECONDS = 3600
"""How long a postdeploy command may run."""
LOST_AFTER = timedelta(seconds=10)
_OUTPUT = 1 << 20


def enqueue(setup_id: str) -> None:
    """Have a worker take the setup's next step; when Redis is away or full, a worker finds it later."""
    try:
        queue.with_room(
            lambda: queue.queue().enqueue(
                "builder.setup.step", setup_id, job_id=_job(setup_id), job_timeout=-1, result_ttl=0, failure_ttl=60,
                description=f"setup {setup_id}",
            )
        )  # fmt: skip
    except redis.RedisError as error:
        log.warning("Redis does not take the setup; it starts when it does", extra={"setup": setup_id, "reason": str(error)})


def _job(setup_id: str) -> str:
    return f"{queue.SETUP}{setup_id}"


def step(setup_id: str) -> None:
    """Take one step of the setup, whichever comes next."""
    with _held(setup_id) as free:
        if not free:
            return
        with snapshot() as session:
            row = session.get(AppSetup, setup_id)
        if row is None or row.status != "pending":
            return
        try:
            _take(row)
        except DavitError as error:
            _fail(setup_id, error.message)
        except Exception:
            log.exception("a setup failed inside Davit", extra={"setup": setup_id})
            _fail(setup_id, "The setup failed inside Davit; its log has the details.")


def _take(row: AppSetup) -> None:
    if row.phase == "source":
        _begin(row)
    elif row.phase == "building" and row.build_id:
        go_on(row.build_id)
    elif row.phase == "postdeploy":
        _postdeploy(row)
    elif row.phase == "running":  # whoever ran it is gone, or this step would not have been free to take
        raise DavitError(setups.INTERRUPTED)


def _fail(setup_id: str, message: str, errors: list[str] | None = None) -> None:
    with transaction() as session:
        row = session.get(AppSetup, setup_id)
        if row is not None and row.status == "pending":
            setups.fail(session, row, message, errors or [])


def _begin(row: AppSetup) -> None:
    content = manifest.app_json(row.source_url)
    if content is None:
        _fail(row.id, "The source has no app.json.", ["There is no app.json at the root of the source."])
        return
    try:
        plan = appjson.plan(appjson.parse_manifest(content), setups.overrides_of(row))
    except appjson.AppJsonError as error:
        _fail(row.id, "app.json cannot be used; nothing was built.", [error.message])
        return
    with transaction() as session:
        fresh = session.get(AppSetup, row.id)
        if fresh is None or fresh.phase != "source":
            return
        build = setups.begin_build(session, fresh, plan)
        for name in plan.buildpacks if fresh.buildpacks is None else ():
            buildpacks.check(name, admin=False)
    queue.enqueue_next(build.app_id)


def go_on(build_id: str) -> None:
    """A build has ended: if a setup waits for it, go on with that, the postdeploy command included."""
    with transaction() as session:
        row = setups.after_build(session, build_id)
    if row is not None:
        enqueue(row.id)


def _postdeploy(row: AppSetup) -> None:
    with transaction() as session:
        fresh = setups.begin_postdeploy(session, row.id)
    if fresh is None or fresh.postdeploy is None:
        return
    slot.free()  # nothing is built any more: with the releases on their way up it counts now
    status, output = run(fresh.app_id, fresh.postdeploy)
    with transaction() as session:
        setups.end_postdeploy(session, row.id, status, output)


def run(app_id: str, command: str) -> tuple[int | None, str]:
    """Run a command in a one-off dyno of the app's; returns its exit status and the last of what it printed.

    Raises:
        DavitError: it could not be started.
    """
    params = {"app_id": app_id, "command": command, "type": "postdeploy", "env": {}, "time_to_live": POSTDEPLOY_SECONDS}
    reader, writer = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    line = wire.Connection(settings().run / "runtime.sock", timeout=90)
    try:
        try:
            reply = line.call("oneoff.start", params, [nothing, writer, writer])
        finally:
            os.close(writer)
            os.close(nothing)
        output, known = _read(reader, line, POSTDEPLOY_SECONDS + 60)
        return _status(str(reply.result["dyno_id"])) if known else None, output
    finally:
        os.close(reader)
        line.close()


def _status(dyno_id: str) -> int | None:
    try:
        status = wire.call(settings().run / "runtime.sock", "oneoff.wait", {"dyno_id": dyno_id}, timeout=90).result["status"]
    except DavitError:
        return None
    return int(status) if status is not None else None


def _read(reader: int, line: wire.Connection, seconds: float) -> tuple[str, bool]:
    """What comes until its end, only the last of it, and whether the runtime that runs the command was there all the time."""
    kept, deadline, known = b"", time.monotonic() + seconds, True
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        selector.register(line, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            ready = {key.fd for key, _ in selector.select(5)}
            if line.fileno() in ready:  # its next process has the command asked to end, and ends it after the grace period
                known = False
                selector.unregister(line)
            if reader in ready:
                data = os.read(reader, 65536)
                if not data:
                    break
                kept = (kept + data)[-_OUTPUT:]
    return kept.decode(errors="replace"), known


def recover() -> None:
    """Look after every unfinished setup: send on what was lost, and what a worker left behind."""
    if not ask("SELECT id FROM app_setups WHERE status = 'pending' LIMIT 1"):
        return
    with snapshot() as session:
        rows = setups.unfinished(session)
    for row in rows:
        if row.updated_at < now() - LOST_AFTER and not _in_redis(row.id):
            if row.phase == "building" and row.build_id:
                go_on(row.build_id)
            else:
                enqueue(row.id)


def _in_redis(setup_id: str) -> bool:
    try:
        job = Job.fetch(_job(setup_id), connection=notify.redis_client())
    except NoSuchJobError:
        return False
    if queue.queue().get_job_position(job.id) is not None:
        return True
    with _held(setup_id) as free:
        if free:
            job.delete()
        return not free


@contextmanager
def _held(setup_id: str) -> Iterator[bool]:
    """Hold the setup's lock, which the kernel lets go of when this process ends; the value is whether it was free."""
    directory = settings().run / "setups"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / setup_id
    descriptor = lockfile.take(path)
    if descriptor is None:
        yield False
        return
    try:
        yield True
        with suppress(FileNotFoundError):
            path.unlink()
    finally:
        os.close(descriptor)
