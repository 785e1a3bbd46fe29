"""The build job: from a commit to a serving release."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from msgspec import structs
from sqlalchemy import select

from builder import appjson, buildpacks, procfile, queue, report, repositories, setup, slot, sources
from builder.output import Outcome, Output, directory
from builder.sandbox import Ended, Feeder, Sandbox, Sealed, open_sandbox, parts
from foundation.errors import Conflict, DavitError, DiskFull, NotFound, Unavailable
from foundation.settings import settings
from slugs import osvcommand
from slugs.store import WARN_FROM, size_warning
from state import builds, config, isolations, releases
from state.db import snapshot, transaction
from state.models import Account, App, Build, Formation, Release, Slug

log = logging.getLogger("builder")
_T = TypeVar("_T")

STACK_TITLES = {"davit-13": "Davit-13"}
LOOK_SECONDS = 1.0
"""How often a running build is asked whether it is to be given up."""
DRAIN_SECONDS = 2.0
ZERO = "0" * 40
Order = tuple[dict[str, object], Iterator[Iterator[bytes]]]
"""What the program in the sandbox is told, and the streams that it is told of."""
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


class BuildFailed(DavitError):
    """The build changed nothing.

    Attributes:
        kind: what the pusher's ref line says.
    """

    id, status = "build_failed", 422

    def __init__(self, message: str, kind: str = "build failed") -> None:
        super().__init__(message)
        self.kind = kind


def build(build_id: str) -> None:
    """Work one build from where it stands to its end; what RQ calls. Does nothing when somebody else works on it."""
    with queue.held(build_id) as free:
        if not free:
            return
        with snapshot() as session:
            row = session.get(Build, build_id)
            app = session.get(App, row.app_id) if row else None
        if row is None or app is None or row.status != "pending":
            return
        try:
            BuildJob(row, app).run()
        finally:
            queue.enqueue_next(row.app_id)
            setup.go_on(row.id)


@dataclass
class Result:
    """What the sandbox's report came to, checked."""

    types: dict[str, str]
    defaults: dict[str, str]
    config: dict[str, str]
    healthchecks: dict[str, object]
    description: str
    warnings: list[str]


@dataclass
class Steps:
    """Where a build's time went: seconds per step, in order."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def done(self, step: str) -> None:
        """Everything since the last call was ``step``."""
        now = time.monotonic()
        self.seconds[step] = self.seconds.get(step, 0) + now - self._last
        self._last = now


class BuildJob:
    """One build.

    Args:
        row: the build.
        app: its app.
        open: how a sandbox is opened.
        warn_from: bytes from which the pusher is told that the slug is large.
    """

    def __init__(
        self,
        row: Build,
        app: App,
        *,
        open: Callable[[str, str, str], AbstractContextManager[Sandbox]] = open_sandbox,
        warn_from: int = WARN_FROM,
    ) -> None:
        self.id = row.id
        self.row = row
        self.app = app
        self._open, self._warn_from = open, warn_from
        self._output = Output(row.id)
        self._steps = Steps()

    def run(self) -> None:
        """The way of a build.

        From the moment in which its release is made that goes its own way: a database that is away or full then is waited for,
        because a build that failed by it would have thrown away the commit that serves.
        """
        try:
            release_id = self.row.release_id if self.row.phase == "releasing" else self._make_release()
            slot.free()
            release = self._bring_up(release_id)
        except Exception as error:
            self._fail(error)
        else:
            self._succeed(release)
        finally:
            self._output.close()

    # --- from the commit to a release ---

    def _make_release(self) -> str:
        self._begin()
        release_id = None
        try:
            with ThreadPoolExecutor(1) as beside, self._open_beside(beside) as (sandbox, order):
                self._steps.done("sandbox")
                result = self._work(sandbox, *order.result())
                self._show_types(result)
                sealed = self._seal(sandbox)
                release_id = self._release(result, sealed)
                self._keep_cache(sandbox)
        except Exception:
            if release_id is None:
                raise
            log.exception("the sandbox did not end as it should", extra={"build": self.id})
        return release_id

    def _begin(self) -> None:
        with transaction() as session:
            row = builds.begin(session, self.id)
        if row.attempts > 1:
            self._output.warning("Davit's worker process ended during this build; it is taken up again from the start.")
        if row.cancel_requested:
            raise BuildFailed(queue.CANCELLED, "cancelled")
        if row.ref and row.commit:  # another push may have been released while this one waited for its turn
            try:
                repositories.check_turn(self.app.id, row.ref, row.old_sha or ZERO, row.commit)
            except repositories.FetchFirst as moved:
                raise BuildFailed(moved.message, "fetch first") from None
        self._output.heading(f"Building on the {STACK_TITLES.get(row.stack, row.stack)} stack")

    @contextlib.contextmanager
    def _open_beside(self, beside: Executor) -> Iterator[tuple[Sandbox, Future[Order]]]:
        """The sandbox, and the order for it, which is made while the sandbox is opened."""
        order = beside.submit(self._order)
        with self._open(self.id, self.app.id, self.app.name) as sandbox:
            yield sandbox, order

    def _work(self, sandbox: Sandbox, order: dict[str, object], streams: Iterator[Iterator[bytes]]) -> Result:
        feeder = Feeder(sandbox, json.dumps(order, separators=(",", ":")).encode(), streams)
        feeder.start()
        try:
            done = Pump(self, sandbox, self._output, self._steps).run()
        except BuildFailed:
            if feeder.failure is not None:
                raise BuildFailed(feeder.failure.message) from None
            raise
        return self._checked(done)

    def _order(self) -> Order:
        """What the program in the sandbox is told, and the streams that it is told of."""
        chosen, vars = self._chosen_buildpacks()
        # BUILDPACK_URL may be set by who may not read this host's files: it names no file of it, whoever builds
        local = buildpacks.local(chosen, admin=self.row.account.is_admin and bool(self.row.buildpacks))
        commit = self.row.commit
        uploaded = (self.row.source_url or "").startswith(sources.PREFIX)
        streams = ["bundled", *local.values(), *(["source"] if commit or uploaded else [])]
        order: dict[str, object] = {
            "stack": self.row.stack,
            "stack_alias": buildpacks.STACK_ALIASES.get(self.row.stack, self.row.stack),
            "source_version": self.row.source_version or commit or "",
            "request_id": self.id,
            "buildpacks": chosen,
            "bundled": buildpacks.BUNDLED,
            "file_buildpacks": local,
            "config": vars,
            "environment": proxies(os.environ),
            "submodules": repositories.submodules(self.app.id, commit) if commit else [],
            "source_url": None if uploaded else self.row.source_url,
            "source_uploaded": uploaded,
            "source_checksum": self.row.source_checksum,
            "disk": settings().build_disk,
            "streams": streams,
        }
        return order, self._streams(list(local))

    def _streams(self, local: list[str]) -> Iterator[Iterator[bytes]]:
        yield iter([buildpacks.bundled_archive()])
        for text in local:
            with buildpacks.local_archive(text) as archive:
                yield archive
        if (self.row.source_url or "").startswith(sources.PREFIX):
            id = (self.row.source_url or "").removeprefix(sources.PREFIX)
            sources.verify(id, self.row.source_checksum)
            yield sources.tar(id)
        elif self.row.commit:
            with repositories.archive(self.app.id, self.row.commit) as git:
                assert git.stdout is not None
                yield parts(git.stdout)
            if git.returncode != 0:
                raise BuildFailed(f"The files of commit {self.row.commit[:12]} could not be read from the app's repository.")

    def _chosen_buildpacks(self) -> tuple[list[str], dict[str, str]]:
        """The buildpacks that were chosen (none: .buildpacks or detection decide, inside) and the config vars."""
        vars = config.read(self.app)
        chosen = [str(text) for text in self.row.buildpacks]
        if not chosen and (url := vars.get("BUILDPACK_URL", "").strip()):
            chosen = [url]
        return chosen, vars

    def _checked(self, done: report.Done) -> Result:
        """Read what the build reported; everything in it is a stranger's."""
        last = done.buildpacks[-1] if done.buildpacks else "?"
        release = report.parse_release(report.content(done.release) or b"", last)
        file, app_json = report.content(done.procfile), report.content(done.app_json)
        declared = procfile.parse(file) if file is not None else procfile.Procfile()
        checks = appjson.healthchecks(app_json) if app_json is not None else {}
        # the release's types go through the same rules as the Procfile's
        defaults = {name: command for name, command in release.types.items() if name not in declared.types}
        lines = "".join(f"{name}: {' '.join(command.splitlines())}\n" for name, command in defaults.items())
        defaults = procfile.parse(lines.encode()).types
        return Result(
            types=declared.types,
            defaults=defaults,
            config=release.config,
            healthchecks={type: [structs.asdict(check) for check in found] for type, found in checks.items()},
            description=", ".join(dict.fromkeys(name for name in done.names))[:200],
            warnings=[*declared.warnings, *appjson.not_asked(checks)],
        )

    def _show_types(self, result: Result) -> None:
        self._output.heading("Discovering process types")
        for warning in result.warnings:
            self._output.warning(warning)
        self._output.indented(f"Procfile declares types -> {', '.join(result.types) or '(none)'}")
        if result.defaults:
            self._output.indented(f"Default types for buildpack -> {', '.join(result.defaults)}")
        if "web" not in result.types and "web" not in result.defaults:
            self._output.warning("There is no web process type, so nothing will answer requests.")
            self._output.indented("Declare one in a file named Procfile, for example:  web: gunicorn app:app")
        for name, line in self._unikernels({**result.defaults, **result.types}).items():
            if note := osvcommand.outlook(line, {**result.config, **config.read(self.app)}):
                self._output.warning(f"{name} runs on OSv. {note}")

    def _unikernels(self, types: Mapping[str, str]) -> dict[str, str]:
        """Those of the process types that the formation wants as unikernels."""
        with snapshot() as session:
            rows = session.scalars(
                select(Formation).where(Formation.app_id == self.app.id, Formation.isolation == isolations.OSV)
            )
            return {row.type: types[row.type] for row in rows if row.type in types}

    def _seal(self, sandbox: Sandbox) -> Sealed:
        self._output.heading("Compressing...")
        self._steps.done("report")
        sealed = sandbox.seal()
        self._steps.done("seal")
        self._output.indented(f"Done: {size(sealed.size)}")
        if warning := size_warning(sealed.size, self._warn_from):
            self._output.warning(warning)
        return sealed

    def _release(self, result: Result, sealed: Sealed) -> str:
        try:
            return self._make_release_of(result, sealed)
        except Unavailable:  # the connection may have been lost after the commit: the row knows
            row = _patiently(lambda: _build_row(self.id))
            if row is None or row.phase != "releasing" or row.release_id is None:
                raise
            return row.release_id

    def _make_release_of(self, result: Result, sealed: Sealed) -> str:
        with transaction() as session:
            app, account = session.get(App, self.app.id), session.get(Account, self.row.account_id)
            if app is None or account is None or app.destroying:
                raise BuildFailed("The app was destroyed during its build.")
            slug = Slug(
                app_id=app.id,
                digest=sealed.digest,
                size=sealed.size,
                stack=self.row.stack,
                stack_version=sealed.stack_version,
                commit=self.row.commit,
                process_types={**result.defaults, **result.types},
                default_config=result.config,
                healthchecks=result.healthchecks,
                buildpack_provided_description=result.description or None,
            )
            session.add(slug)
            session.flush()
            what = (self.row.commit or self.row.source_version or "source")[: 8 if self.row.commit else 100]
            release = releases.create(session, app, account, kind="deploy", description=f"Deploy {what}", slug=slug)
            builds.releasing(session, self.id, slug, release)
        self._steps.done("release")
        return release.id

    def _keep_cache(self, sandbox: Sandbox) -> None:
        """Keep the cache while the dynos start; a cache that is lost costs time, never a build."""
        try:
            sandbox.commit_cache()
        except DavitError as error:
            log.warning("the build cache was not kept", extra={"build": self.id, "reason": error.message})
            self._output.warning("The build cache could not be kept; the next build of this app takes longer.")
        self._steps.done("cache")

    # --- from a release to a serving app ---

    def _bring_up(self, release_id: str | None) -> Release:
        if release_id is None:
            raise BuildFailed("The release that this build made is gone; push again.")
        release = _patiently(lambda: _release(release_id))
        has_command = release is not None and releases.RELEASE_TYPE in release.process_types
        self._output.heading("Running release command..." if has_command else "Launching...")
        relay = Relay(settings().home / "releases" / release_id / "output", self._output) if has_command else None
        while True:
            try:
                release = _patiently(lambda: releases.wait(release_id, timeout=0.2 if relay else None))
            except TimeoutError:
                if relay:
                    relay.more()
                continue
            break
        if relay:
            relay.more()
        self._steps.done("launch")
        if release.status != "succeeded":
            raise BuildFailed(release.failure or "The release failed.", release.failure_kind or "app did not start")
        if has_command:
            self._output.heading("Launching...")
        return release

    def _succeed(self, release: Release) -> None:
        """The release serves: the ref follows, and whoever pushed is told."""
        if self.row.ref and self.row.commit:
            try:
                old = repositories.check_turn(self.app.id, self.row.ref, self.row.old_sha or ZERO, self.row.commit)
                repositories.move_ref(self.app.id, self.row.ref, old, self.row.commit, self.id)
            except DavitError as error:
                log.warning("the ref stayed where it was", extra={"build": self.id, "reason": error.message})
                self._output.warning(f"The release serves, but {self.row.ref} could not be moved: {error.message}")
        url = settings().app_url(self.app.name)
        size = repositories.size(self.app.id) if self.row.commit else None  # looks at every file: not while others wait
        _patiently(lambda: _note_success(self.id, size))
        self._unpin()
        self._output.indented(f"Released v{release.version}")
        self._output.indented(f"{url} deployed to Davit")
        self._steps.done("finish")
        self._note_steps()
        self._output.finish(Outcome("succeeded", None, None, release.version, url))

    def _fail(self, error: Exception) -> None:
        if isinstance(error, NotFound | Conflict) and self._gone():
            return
        if isinstance(error, BuildFailed):
            kind, message = error.kind, error.message
        elif isinstance(error, DavitError):
            kind, message = "build failed", error.message
        else:
            log.exception("a build failed inside Davit", extra={"build": self.id})
            kind, message = (
                "build failed",
                f"The build failed inside Davit, not in your app ({type(error).__name__}); the worker's log has the details.",
            )
        log.info("build failed", extra={"build": self.id, "app": self.app.name, "reason": message})
        self._output.warning(message)
        if kind == "build failed":
            self._output.say(" !")
            self._output.warning(
                "Push rejected: the build failed, and nothing was changed."
                if self.row.ref
                else "The build failed, and nothing was changed."
            )
        _patiently(lambda: _note_failure(self.id, kind, message), full=False)
        self._unpin()  # not before: while the row does not say that it failed, the build may be taken up again
        self._note_steps()
        self._output.finish(Outcome("failed", kind, message))

    def _gone(self) -> bool:
        row = _build_row(self.id)
        return row is None or row.status != "pending"

    def _unpin(self) -> None:
        if self.row.commit:
            with contextlib.suppress(DavitError):
                repositories.unpin(self.id)

    def _note_steps(self) -> None:
        with contextlib.suppress(OSError):
            (directory(self.id) / "steps.json").write_text(
                json.dumps({name: round(value, 4) for name, value in self._steps.seconds.items()})
            )

    def cancelled(self) -> bool:
        """Whether somebody asked to give this build up, or its app is gone."""
        try:
            row = _build_row(self.id)
        except Unavailable:
            return False  # it is asked again
        return row is None or row.cancel_requested or row.status != "pending"


def _patiently(action: Callable[[], _T], *, full: bool = True) -> _T:
    """Do what must not be left undone because the database is away or full: again and again, until it answers.

    Args:
        full: whether to wait for room, too.

    Raises:
        DiskFull: there is no room, and it is not to be waited for.
    """
    pause = 0.2
    while True:
        try:
            return action()
        except (Unavailable, DiskFull) as error:
            if isinstance(error, DiskFull) and not full:
                raise
            log.warning("a build waits for the database: %s", error.message)
            time.sleep(pause)
            pause = min(pause * 1.5, 5)


def _build_row(build_id: str) -> Build | None:
    with snapshot() as session:
        return session.get(Build, build_id)


def _release(release_id: str) -> Release | None:
    with snapshot() as session:
        return session.get(Release, release_id)


def _note_success(build_id: str, repo_size: int | None) -> None:
    with transaction() as session:
        builds.succeed(session, build_id, repo_size=repo_size)


def _note_failure(build_id: str, kind: str, message: str) -> None:
    with transaction() as session:
        builds.fail(session, build_id, kind, message)


class Pump:
    """Reads what comes out of a sandbox until its program has ended, within the build's time.

    Args:
        job: who knows whether the build is cancelled.
    """

    def __init__(self, job: BuildJob, sandbox: Sandbox, output: Output, steps: Steps) -> None:
        self._job = job
        self._sandbox = sandbox
        self._output = output
        self._steps = steps
        self._reader = report.Reader()
        self._end: report.Failed | report.Done | None = None
        self._step: report.Step | None = None
        self._step_began = time.monotonic()
        self._ended: Ended | None = None
        self._lost: DavitError | None = None

    def run(self) -> report.Done:
        """Returns the report's end.

        Raises:
            BuildFailed: there is none, or it says so; or the build was cancelled or took too long.
        """
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        waiter = threading.Thread(target=self._wait, args=(wake,), name="waiter", daemon=True)
        try:
            waiter.start()
            self._read(woken)
        finally:
            os.close(woken)
        return self._judge()

    def _wait(self, wake: int) -> None:
        """In a thread: the connection to the runtime process has one call at a time, and this one takes long."""
        try:
            self._ended = self._sandbox.wait()
        except DavitError as error:
            self._lost = error
        finally:
            with contextlib.suppress(OSError):
                os.close(wake)

    def _read(self, woken: int) -> None:
        deadline, drain_until = time.monotonic() + settings().build_timeout, float("inf")
        looked = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._sandbox.report, selectors.EVENT_READ, self._take_report)
            selector.register(self._sandbox.output, selectors.EVENT_READ, self._take_output)
            selector.register(woken, selectors.EVENT_READ, None)
            while len(selector.get_map()) and time.monotonic() < drain_until:
                for key, _ in selector.select(min(LOOK_SECONDS, max(0.0, min(deadline, drain_until) - time.monotonic()))):
                    if key.data is None or not key.data():
                        selector.unregister(key.fd)
                        if key.data is None:  # its program has ended; what it wrote is in the pipes or lost
                            drain_until = time.monotonic() + DRAIN_SECONDS
                now = time.monotonic()
                if now > deadline and drain_until == float("inf"):
                    raise self._too_long()
                if now - looked > LOOK_SECONDS:
                    looked = now
                    if self._job.cancelled():
                        raise BuildFailed(queue.CANCELLED, "cancelled")

    def _too_long(self) -> BuildFailed:
        limit = minutes(settings().build_timeout)
        return BuildFailed(f"The build took longer than {limit}, the most it may take, and was ended while {self._where()}.")

    def _where(self) -> str:
        if self._step is None:
            return "it was starting"
        text = str(self._step)
        since = minutes(int(time.monotonic() - self._step_began))
        return f"{text} had been running for {since}" if text.startswith("bin/") else f"it had been {text} for {since}"

    def _take_output(self) -> bool:
        data = os.read(self._sandbox.output, 1 << 16)
        if data:
            self._output.pass_through(data)
        return bool(data)

    def _take_report(self) -> bool:
        data = os.read(self._sandbox.report, 1 << 16)
        for event in self._reader.feed(data):
            if isinstance(event, report.Step):
                self._steps.done(self._step.step if self._step else "start")
                self._step, self._step_began = event, time.monotonic()
            elif isinstance(event, report.Failed | report.Done):
                self._steps.done(self._step.step if self._step else "start")
                self._end = event
        return bool(data)

    def _judge(self) -> report.Done:
        if self._lost is not None:
            raise BuildFailed(f"The build was interrupted: {self._lost.message}") from None
        ended = self._ended or Ended(None)
        if ended.oom:
            raise BuildFailed(f"The build ran out of memory: it may use {settings().build_memory} MB (DAVIT_BUILD_MEMORY).")
        if isinstance(self._end, report.Failed):
            raise BuildFailed(self._end.message)
        if ended.timed_out:  # the runtime process has the same limit, and may look at its clock first
            raise self._too_long()
        if self._end is None or ended.status != 0:
            how = f"status {ended.status}" if ended.status is not None else "no status"
            raise BuildFailed(
                f"The build was ended from inside ({how}): a program in it ended all the others while {self._where()}."
            )
        return self._end


class Relay:
    """Copies a file that grows into the build's output."""

    def __init__(self, path: Path, output: Output) -> None:
        self._path = path
        self._output = output
        self._offset = 0

    def more(self) -> None:
        """Copy what is new."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                while data := file.read(1 << 16):
                    self._offset += len(data)
                    self._output.pass_through(data)
        except FileNotFoundError:
            pass


def proxies(environ: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """The host's web proxies, in both spellings that programs look for."""
    found = {}
    for name in PROXIES:
        if value := environ.get(name) or environ.get(name.upper()):
            found[name] = found[name.upper()] = value
    return found


def size(bytes: int) -> str:
    """As Heroku prints sizes: ``32.1M``."""
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if bytes >= factor:
            return f"{bytes / factor:.1f}{unit}".replace(".0", "") if bytes % factor == 0 else f"{bytes / factor:.1f}{unit}"
    return f"{bytes}B"


def minutes(seconds: int) -> str:
    """``25 minutes``, ``1 minute 5 seconds``, ``30 seconds``"""
    whole, rest = divmod(seconds, 60)
    words = [f"{n} {unit}{'s' * (n != 1)}" for n, unit in ((whole, "minute"), (rest, "second")) if n]
    return " ".join(words) or "0 seconds"
