"""Build sandboxes: a dyno on the build stack whose writable layer is then sealed into a slug and a cache.

The caller's connection owns the sandbox: when it ends, for whatever reason, the sandbox is killed and removed.
Everything in the tree is hostile: paths are opened component by component without following links.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from foundation import disk
from foundation.errors import NO_ROOM, Conflict, DavitError, DiskFull, InvalidParams, NotFound
from foundation.settings import Settings
from foundation.wire import Call
from runtime import mounts
from runtime.driver import BUILD, DynoSpec, Exit, Limits, RunningDyno
from runtime.drivers import Starter
from slugs import image, kernel
from slugs.store import Store
from slugs.upload import seal_tarball
from state.sizes import MIB

log = logging.getLogger("runtime")

PIDS = 4096
"""Processes and threads of a build: compilers and npm like many."""
ROOM_ENOUGH = 1024 * MIB
"""With so much left after a build, the disk was not full during it."""
CACHE_LIMIT = 2048 * MIB
"""A larger build cache is not kept."""


class BuildImages(Protocol):
    """Where the build stack's image is."""

    def build_image(self) -> Path:
        """The newest build stack."""


@dataclass
class Sandbox:
    """One build's sandbox."""

    build_id: str
    app_id: str
    stack_version: str
    dyno: Any
    exit: Exit | None = None
    timed_out: bool = False
    keeps_cache: bool = True
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)


class Sandboxes:
    """Answers the ``sandbox.*`` calls.

    Args:
        driver: starts containers.
        images: where the build stack is.
        settings: limits, and where slugs and caches are.
        user: the host's uid of the dyno's user in a slot.
    """

    def __init__(self, driver: Starter, images: BuildImages, settings: Settings, user: Callable[[int], int]) -> None:
        self.user = user
        self.driver, self.images, self.settings = driver, images, settings
        self.store = Store(settings.home / "slugs", settings.slug_limit * MIB)
        self.sandboxes: dict[str, Sandbox] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._uploads = asyncio.Semaphore(1)
        self._caches = threading.Lock()

    def sweep(self) -> None:
        """Before any sandbox is opened: remove what a runtime process that was killed left of its own, which ended with it."""
        home, run = self.settings.home, self.settings.run
        for path in (*home.glob("caches/*.img.*"), *home.glob("slugs/incoming/*")):
            path.unlink(missing_ok=True)
        for place in (*run.glob("cache-*/cache"), *run.glob("cache-*"), *run.glob("sandbox-*")):
            mounts.unmount(place)  # gone with that process's mount namespace, if it had one; nothing behind it is removed
            with suppress(OSError):
                place.rmdir()

    async def open(self, call: Call) -> None:
        """``sandbox.open {build_id, app_id, app, env, command}`` and three descriptors (source in, report out, output out)."""
        params = call.params
        build_id = str(params["build_id"])
        try:
            if len(call.fds) != 3:
                raise InvalidParams("A sandbox takes three descriptors.")
            if build_id in self.sandboxes:
                raise Conflict("That build has a sandbox already.")
            spec = self._spec(build_id, str(params["app_id"]), str(params["app"]), params, call.fds)
            dyno = await self._start(spec)
        finally:
            for fd in call.fds:
                os.close(fd)
        sandbox = self.sandboxes[build_id] = Sandbox(build_id, str(params["app_id"]), spec.stack.parent.name, dyno)
        call.at_hangup(lambda: self._keep(self._close(sandbox)))
        self._hang_up(sandbox)

    async def _start(self, spec: DynoSpec) -> RunningDyno:
        """Start the dyno; a cache that cannot be mounted (a power cut, a bad disk) costs time, never a build."""
        try:
            dyno: RunningDyno = await self.driver.start(spec)
        except image.NotMounted as refused:
            if spec.slug is None or refused.image != spec.slug:
                raise
            log.warning("a build cache is thrown away: %s", refused.message, extra={"app_id": spec.app_id})
            with self._caches:
                spec.slug.unlink(missing_ok=True)
            dyno = await self.driver.start(replace(spec, slug=None))
        return dyno

    def _spec(self, build_id: str, app_id: str, app: str, params: dict[str, Any], fds: list[int]) -> DynoSpec:
        cache = self.cache_path(app_id)
        memory = self.settings.build_memory * MIB
        return DynoSpec(
            id=f"{BUILD}{build_id}",
            name="build",
            app=app,
            app_id=app_id,
            stack=self.images.build_image(),
            slug=cache if cache.exists() else None,
            command=[str(word) for word in params["command"]],
            env={str(k): str(v) for k, v in params["env"].items()},
            limits=Limits(
                memory=memory, memory_max=memory, cpu_shares=512, cpu_quota=None, pids=PIDS, disk=self.settings.build_disk * MIB
            ),
            stdio=(fds[0], fds[1], fds[2]),
        )

    def cache_path(self, app_id: str) -> Path:
        """Where the app's build cache is."""
        return self.settings.home / "caches" / f"{app_id}.img"

    async def wait(self, call: Call) -> dict[str, Any]:
        """``sandbox.wait {build_id, timeout?}`` → ``{status, oom, timed_out}``; kills it after the build time limit."""
        sandbox = self._find(call)
        seconds = min(float(call.params.get("timeout") or self.settings.build_timeout), self.settings.build_timeout)
        if sandbox.exit is None:
            try:
                sandbox.exit = await asyncio.wait_for(sandbox.dyno.wait(), seconds)
            except (asyncio.TimeoutError, TimeoutError):
                sandbox.timed_out = True
                await sandbox.dyno.signal(signal.SIGKILL, everyone=True)
                sandbox.exit = await sandbox.dyno.wait()
        assert sandbox.exit is not None
        return {"status": sandbox.exit.status, "oom": sandbox.exit.oom, "timed_out": sandbox.timed_out}

    async def kill(self, call: Call) -> None:
        """``sandbox.kill {build_id}``: end every process in it."""
        await self._find(call).dyno.signal(signal.SIGKILL, everyone=True)

    async def seal(self, call: Call) -> dict[str, Any]:
        """``sandbox.seal {build_id, path}`` → ``{digest, size, stack_version}``: the tree at ``path`` as a slug."""
        sandbox = self._ended(call)
        return await asyncio.to_thread(self._seal, sandbox, str(call.params["path"]))

    def _seal(self, sandbox: Sandbox, path: str) -> dict[str, Any]:
        target = self.settings.home / "slugs" / "incoming" / f"{sandbox.build_id}.img"
        tree = open_beneath(sandbox.dyno.root, path)
        try:
            self._check_written(sandbox)
            target.parent.mkdir(parents=True, exist_ok=True)
            image.seal(Path(f"/proc/self/fd/{tree}"), target, user=self.user(sandbox.dyno.slot), limit=self.store.largest)
            stored = self.store.put(target)
        except OSError as error:
            raise (DiskFull("the slug could not be stored") if error.errno in NO_ROOM else error) from error
        finally:
            os.close(tree)
            target.unlink(missing_ok=True)
        return {"digest": stored.digest, "size": stored.size, "stack_version": sandbox.stack_version}

    async def seal_upload(self, call: Call) -> dict[str, Any]:
        """``slug.seal`` with a descriptor of a tarball → ``{digest, size}``: somebody's own slug; one after the other."""
        (tarball,) = call.fds[:1] or (None,)
        if tarball is None:
            raise InvalidParams("There came no tarball along.")
        try:
            async with self._uploads:
                stored = await asyncio.to_thread(seal_tarball, tarball, self.store, self.settings.build_disk * MIB)
        finally:
            for descriptor in call.fds:
                os.close(descriptor)
        return {"digest": stored.digest, "size": stored.size}

    def _check_written(self, sandbox: Sandbox) -> None:
        """Where room is scarce: did all that the build wrote arrive? Its file system is sparse, so a full disk loses writes
        that the build was told had succeeded (syncfs(2) reports them once)."""
        if shutil.disk_usage(self.settings.run).free > ROOM_ENOUGH or sandbox.dyno.upper is None:
            return
        layer = os.open(sandbox.dyno.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kernel.syncfs(layer)
        except OSError as error:
            raise DiskFull("what the build wrote was lost") from error
        finally:
            os.close(layer)

    async def commit_cache(self, call: Call) -> dict[str, Any]:
        """``sandbox.commit_cache {build_id}`` → ``{changed}``: what the build left in /cache is the app's cache from now on."""
        sandbox = self._ended(call)
        return {"changed": await asyncio.to_thread(self._commit_cache, sandbox)}

    async def purge_cache(self, call: Call) -> None:
        """``cache.purge {app_id}``: the app's next build begins without a cache; one that is under way leaves none."""
        await asyncio.to_thread(self.forget_cache, str(call.params["app_id"]))

    def forget_cache(self, app_id: str) -> None:
        """Remove the app's cache; a build that is under way leaves none."""
        with self._caches:
            for sandbox in list(self.sandboxes.values()):
                if sandbox.app_id == app_id:
                    sandbox.keeps_cache = False
            self.cache_path(app_id).unlink(missing_ok=True)

    def _commit_cache(self, sandbox: Sandbox) -> bool:
        if not sandbox.keeps_cache:
            return False
        try:
            written = open_beneath(sandbox.dyno.upper, "/cache")
        except DavitError:
            return False  # the build changed nothing there
        try:
            if not os.listdir(written):
                return False
        finally:
            os.close(written)
        target = self.cache_path(sandbox.app_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f"{target.name}.{sandbox.build_id}")
        staging = self.settings.run / f"cache-{sandbox.build_id}"
        tree = open_beneath(sandbox.dyno.root, "/cache")
        try:
            (staging / "cache").mkdir(parents=True)
            kernel.mount(f"/proc/self/fd/{tree}", staging / "cache", None, kernel.MS_BIND)
            image.seal(staging, fresh, user=self.user(sandbox.dyno.slot), limit=CACHE_LIMIT)
            disk.sync(fresh)  # while the app boots; a cache of half its bytes could be mounted
            with self._caches:
                if sandbox.keeps_cache:  # nobody wanted it away while it was written
                    fresh.rename(target)
                return sandbox.keeps_cache
        except image.SlugTooLarge:
            log.warning("a build cache is too large to be kept", extra={"app_id": sandbox.app_id})
            return False
        finally:
            os.close(tree)
            image.unmount(staging / "cache")
            shutil.rmtree(staging, ignore_errors=True)
            fresh.unlink(missing_ok=True)

    def _find(self, call: Call) -> Sandbox:
        sandbox = self.sandboxes.get(str(call.params["build_id"]))
        if sandbox is None:
            raise NotFound("That build has no sandbox.")
        return sandbox

    def _ended(self, call: Call) -> Sandbox:
        sandbox = self._find(call)
        if sandbox.exit is None:
            raise Conflict("The sandbox is still at work.")
        return sandbox

    def _root(self, sandbox: Sandbox) -> Path:
        return self.settings.run / f"sandbox-{sandbox.build_id}"

    def _hang_up(self, sandbox: Sandbox) -> None:
        """What is sealed later is mounted a second time, for the process that seals it; the root of a dyno hangs nowhere."""
        place = self._root(sandbox)
        place.mkdir(mode=0o700, exist_ok=True)
        mounts.attach(sandbox.dyno.root, place)

    async def _close(self, sandbox: Sandbox) -> None:
        place = self._root(sandbox)
        mounts.unmount(place)
        with suppress(OSError):
            place.rmdir()
        try:
            await sandbox.dyno.remove()
        except Exception:
            log.exception("a sandbox could not be removed cleanly", extra={"build": sandbox.build_id})
        finally:
            self.sandboxes.pop(sandbox.build_id, None)

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def open_beneath(root: Path, path: str) -> int:
    """Open the directory ``path`` below ``root`` without following any link on the way.

    Returns:
        A descriptor (O_PATH is not enough to read it: it is opened for reading).

    Raises:
        DavitError: a component is missing, no directory, or a link.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in Path(path).parts:
            if part == "/":
                continue
            if part == "..":
                raise DavitError(f"{path} is not a path below the sandbox's root.")
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
    except OSError as error:
        os.close(descriptor)
        raise DavitError(f"The build left no directory at {path}.", id="build_failed", status=422) from error
    return descriptor
