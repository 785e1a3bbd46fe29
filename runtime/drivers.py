"""The drivers of this host: one per isolation, opened when its first dyno comes, all on one :class:`runtime.host.Host`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM
from typing import Protocol

from foundation.errors import DavitError
from runtime.driver import BUILD, Driver, DynoSpec, RunningDyno, Unsupported
from runtime.host import Host
from state import isolations

log = logging.getLogger("runtime")

Maker = Callable[[Host], Driver]


def _container(host: Host) -> Driver:
    from runtime.container import ContainerDriver

    return ContainerDriver(host)


def _microvm(host: Host) -> Driver:
    from runtime.microvm.driver import MicroVmDriver

    return MicroVmDriver(host)


def _osv(host: Host) -> Driver:
    from runtime.osv.driver import OsvDriver

    return OsvDriver(host)


MAKERS: Mapping[str, Maker] = {isolations.CONTAINER: _container, isolations.MICROVM: _microvm, isolations.OSV: _osv}
"""Isolation → what makes its driver. They import their module when they are called: who runs no virtual machine loads none."""


class Starter(Protocol):
    """What those who want dynos need: somebody who starts them."""

    async def start(self, spec: DynoSpec) -> RunningDyno:
        """As :meth:`runtime.driver.Driver.start`."""

    async def resume(self, spec: DynoSpec, snapshot: Path) -> RunningDyno:
        """As :meth:`runtime.driver.Driver.resume`."""

    async def check(self, isolation: str) -> None:
        """Whether dynos of ``isolation`` can be had here at all.

        Raises:
            DavitError: they cannot; the sentence says why.
        """


class Drivers:
    """Gives every dyno to the driver of its isolation. Dynos of isolations that this host cannot have are refused with a
    sentence; the others do not notice.

    Args:
        host: what they share; opened and closed with this.
        makers: isolation → what makes its driver.
    """

    def __init__(self, host: Host, makers: Mapping[str, Maker] = MAKERS) -> None:
        self.host = host
        self._makers = makers
        self._drivers: dict[str, Driver] = {}
        self._open: set[str] = set()
        self._opening: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Open the host and the container driver, which builds and release commands need anyway.

        Raises:
            DavitError: as :meth:`runtime.host.Host.open`.
        """
        await self.host.open()
        await self.of(isolations.CONTAINER)

    async def of(self, isolation: str) -> Driver:
        """The open driver of ``isolation``.

        Raises:
            Unsupported: there is none.
            DavitError: it cannot be opened on this host; it is tried again when it is next asked for.
        """
        if isolation in self._open:
            return self._drivers[isolation]
        async with self._opening.setdefault(isolation, asyncio.Lock()):
            if isolation not in self._open:
                await self._made(isolation).open()
                self._open.add(isolation)
        return self._drivers[isolation]

    def _made(self, isolation: str) -> Driver:
        if isolation not in self._drivers:
            maker = self._makers.get(isolation)
            if maker is None:
                raise Unsupported(f"This Davit cannot isolate dynos by {isolation}; it can by {', '.join(self._makers)}.")
            self._drivers[isolation] = maker(self.host)
        return self._drivers[isolation]

    async def start(self, spec: DynoSpec) -> RunningDyno:
        """Start a dyno; see :meth:`runtime.driver.Driver.start`."""
        return await (await self.of(spec.isolation)).start(spec)

    async def resume(self, spec: DynoSpec, snapshot: Path) -> RunningDyno:
        """Wake a dyno as it was; see :meth:`runtime.driver.Driver.resume`."""
        return await (await self.of(spec.isolation)).resume(spec, snapshot)

    async def check(self, isolation: str) -> None:
        """Whether dynos of ``isolation`` can be had here; see :class:`Starter`."""
        await self.of(isolation)

    async def adopt(self) -> Sequence[RunningDyno]:
        """The dynos that earlier runtime processes started, of every isolation. Those that run need nothing but what they have:
        a driver that cannot start another (QEMU's package is damaged, a setting names no kernel) looks after them all the same.
        Only those of an isolation that this Davit does not know are ended."""
        adopted: list[RunningDyno] = []
        for isolation in sorted(self.host.isolations()):
            try:
                adopted += await self._made(isolation).adopt()
            except DavitError as error:
                log.error("dynos cannot be looked after any more and are ended: %s", error.message, extra={"kind": isolation})
                await self.host.end_unclaimed(isolation)
        return adopted

    async def end(self, grace: float) -> None:
        """Ask every dyno to end (SIGTERM), as Heroku asks; returns when all have, or after ``grace`` seconds. :meth:`close` ends
        the rest, and build sandboxes, which are not asked: a build begins anew."""

        async def end(dyno: RunningDyno) -> None:
            with contextlib.suppress(Exception):
                await dyno.signal(SIGTERM, everyone=True)
            await dyno.wait()

        dynos = [dyno for dyno in await self.adopt() if not dyno.spec_id.startswith(BUILD)]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(end(dyno) for dyno in dynos), return_exceptions=True), grace)

    async def close(self, stop_dynos: bool) -> None:
        """Let go of everything; with ``stop_dynos`` end all dynos and remove every trace from the host."""
        if stop_dynos:
            await self.adopt()
        for driver in self._drivers.values():
            await driver.close(stop_dynos)
        await self.host.close(remove=stop_dynos)
