"""Slots: the numbered places of dynos on this host. A few are kept warm, so that starting a dyno waits for neither its
network nor its file system."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import DavitError, Unavailable
from runtime import mounts, scratch, userns
from runtime.instance import SLOTS, Instance
from runtime.network import Network

log = logging.getLogger("runtime")

_REFILL_PAUSE = 0.3  # seconds after a start, so that making the next slot does not take the CPU from the app that starts


@dataclass
class Slot:
    """A place for one dyno.

    Attributes:
        number: decides address and uid range.
        netns, userns: descriptors of its namespaces; -1 once closed.
        scratch: where its writable layer's file system is mounted: ``upper`` and ``work`` are directories in it.
        disk: that file system's size in bytes.
    """

    number: int
    address: str
    uid_base: int
    netns: int
    userns: int
    scratch: Path
    disk: int

    def close(self) -> None:
        """Let go of what the dyno, if there is one, now holds by itself; idempotent."""
        for name in ("netns", "userns"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)
        mounts.unmount(self.scratch)
        with suppress(FileNotFoundError):
            self.scratch.rmdir()


class Pool:
    """The slots of an instance.

    Args:
        directory: on the disk that holds the writable layers.
        work: where they are mounted, in the private mount namespace.
        warm: how many slots are kept ready.
        disk: the size for which they are ready.
        left: called with a number that nobody has any more, before it is free; where it raises, nobody gets it again.
    """

    def __init__(
        self, instance: Instance, network: Network, directory: Path, work: Path, warm: int, disk: int,
        left: Callable[[int], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._left = left
        self.instance, self.network, self.directory, self.work = instance, network, directory, work
        self.warm, self.disk = warm, disk
        self._ready: deque[Slot] = deque()
        self._used: set[int] = set()
        self._cursor = 0
        self._threads = ThreadPoolExecutor(4, "slots")
        self._refilling: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._taken_at = 0.0
        self._closed = False

    async def open(self, used: set[int], newest: int = 0) -> None:
        """Fill the pool.

        Args:
            used: the numbers that are not free: of dynos that live, and of dynos that ended but were not taken away yet.
            newest: where an earlier runtime process stopped counting; a route may still lead to the addresses below.
        """
        self._used |= used
        self._cursor = newest
        self._refill()
        if self._refilling:
            await self._refilling

    async def take(self, disk: int) -> Slot:
        """A slot with a writable layer of ``disk`` bytes; the caller gives it back with :meth:`give_back`.

        Raises:
            Unavailable: all are in use.
            DavitError: it could not be made.
        """
        self._taken_at = time.monotonic()
        slot = self._ready.popleft() if self._ready else None
        try:
            if slot is None:
                slot = await self._in_thread_make(self._number(), disk)
            elif slot.disk != disk:
                await self._run(self._resize, slot, disk)
        except BaseException as error:
            if slot is not None:
                await self.give_back(slot)
            if isinstance(error, OSError):
                raise _not_made(error) from error
            raise
        finally:
            self._refill()
        return slot

    def reserve(self) -> int:
        """A slot's number alone, for a dyno that needs no namespaces; :meth:`free` returns it.

        Raises:
            Unavailable: all are in use.
        """
        return self._number()

    async def give_back(self, slot: Slot) -> None:
        """Close a slot whose dyno has ended or never started; its number returns when its cable is gone."""
        await self._run(slot.close)
        self.free(slot.number)

    @property
    def leaving(self) -> bool:
        """Whether the kernel still has to take something away that belonged to a number given back."""
        return bool(self._leaving)

    def free(self, number: int) -> None:
        """Return a number; nothing waits for the kernel to take the cable away."""
        task = asyncio.get_running_loop().create_task(self._free(number))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _free(self, number: int) -> None:
        """Each of it also where something before could not be taken away."""
        for take_away in (self._wait_for_cable, self._forget_neighbour):
            try:
                await take_away(number)
            except Exception:
                log.exception("something of a place for a dyno was not taken away; who has it next makes it anew")
        try:
            await self._left(number)
        except Exception:
            log.exception("a place for a dyno stays empty until Davit starts anew: it may still be let reach what its last was")
        else:
            self._used.discard(number)

    async def _wait_for_cable(self, number: int) -> None:
        """The kernel takes namespace and cable away together, some ten milliseconds after their last user."""
        name = self.instance.veth(number)
        for _ in range(100):
            if not _exists(name):
                break
            await asyncio.sleep(0.02)
        else:
            await self._run(self.network.disconnect, number)

    async def _forget_neighbour(self, number: int) -> None:
        await self._run(self.network.forget, number)

    async def close(self) -> None:
        """Give the warm slots up and wait until everything that was given back is gone."""
        self._closed = True
        if self._refilling:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        while self._ready:
            await self.give_back(self._ready.popleft())
        while self._leaving:
            await asyncio.gather(*self._leaving, return_exceptions=True)
        self._threads.shutdown()

    def _number(self) -> int:
        """The next free number, in turn: an address rests as long as possible before it is somebody else's."""
        for step in range(len(SLOTS)):
            number = SLOTS.start + (self._cursor + step) % len(SLOTS)
            if number not in self._used:
                self._cursor = number - SLOTS.start + 1
                self._used.add(number)
                return number
        raise Unavailable(f"This host already runs {len(SLOTS)} dynos, as many as it has places for.")

    def _refill(self) -> None:
        if not self._closed and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.get_running_loop().create_task(self._fill())

    async def _fill(self) -> None:
        while len(self._ready) < self.warm:
            pause = self._taken_at + _REFILL_PAUSE - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
                continue
            try:
                number = self._number()
            except Unavailable:
                return
            try:
                self._ready.append(await self._in_thread_make(number, self.disk))
            except (DavitError, OSError) as error:
                log.warning("no warm slot: %s", error)
                return

    async def _in_thread_make(self, number: int, disk: int) -> Slot:
        """Also when the caller is cancelled meanwhile, what the thread made is given back."""
        making = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._threads, self._make, number, disk))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            with suppress(DavitError, OSError):
                await self.give_back(await making)
            raise
        except BaseException:
            self.free(number)
            raise

    async def _run(self, work: Callable[..., None], *args: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _make(self, number: int, disk: int) -> Slot:
        base = self.instance.uids(number)
        netns = self.network.connect(number)
        slot = Slot(number, self.instance.address(number), base, netns, -1, self.work / str(number), disk)
        try:
            slot.userns = userns.create(base)
            self._make_scratch(slot)
        except BaseException:
            slot.close()
            raise
        return slot

    def _make_scratch(self, slot: Slot) -> None:
        slot.scratch.mkdir()
        scratch.create(slot.disk, self.directory, slot.scratch, {"upper": slot.uid_base, "work": slot.uid_base})

    def _resize(self, slot: Slot, disk: int) -> None:
        mounts.unmount(slot.scratch)
        slot.scratch.rmdir()
        slot.disk = disk
        self._make_scratch(slot)


def _not_made(error: OSError) -> Unavailable:
    """For want of descriptors, memory or room: whoever wanted the dyno says so, and waits longer before each next attempt."""
    return Unavailable(f"No place for a dyno could be made on this host: {error.strerror or error}.")


def _exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True
