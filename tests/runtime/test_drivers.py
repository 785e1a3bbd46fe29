"""The drivers of a host together: what one of them cannot do harms no dyno that runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from signal import SIGTERM
from types import SimpleNamespace
from typing import Any

import pytest

from foundation.settings import from_environment
from runtime.driver import Unsupported
from runtime.drivers import Drivers
from runtime.dynodir import Record
from runtime.host import Host
from runtime.instance import Instance


class Damaged:
    """A driver on a host that cannot start another of its dynos."""

    def __init__(self, host: Any) -> None:
        self.host = host

    async def open(self) -> None:
        raise Unsupported("QEMU is damaged.")

    async def adopt(self) -> list[Any]:
        return [SimpleNamespace(spec_id=record.id) for record, alive in self.host.claim("microvm") if alive]

    async def close(self, stop_dynos: bool) -> None: ...


def test_machines_that_run_are_taken_over_where_no_new_one_can_be_started(tmp_path: Path) -> None:
    async def story() -> None:
        host = Host(from_environment({"DAVIT_HOME": str(tmp_path)}), Instance.numbered(3), environ={})
        records = [Record(id, "app", "web.1", 1, "/none", "boot", isolation="microvm") for id in ("lives", "ended")]
        host._surveyed = [(record, record.id == "lives") for record in records]
        drivers = Drivers(host, {"microvm": Damaged})  # type: ignore[dict-item]
        assert [dyno.spec_id for dyno in await drivers.adopt()] == ["lives"]
        assert host.alive() == {"lives"}, "whoever opens the driver later sweeps it away"
        for _ in range(2):
            with pytest.raises(Unsupported, match="damaged"):
                await drivers.check("microvm")

    asyncio.run(story())


def test_one_that_cannot_be_told_to_end_keeps_no_other_from_it_and_nobody_waiting() -> None:
    async def story() -> None:
        told: list[int] = []

        class Mute:
            spec_id = "mute"

            async def signal(self, number: int, everyone: bool = False) -> None:
                await asyncio.Event().wait()

            async def wait(self) -> None:
                await asyncio.Event().wait()

        class Other(Mute):
            spec_id = "other"

            async def signal(self, number: int, everyone: bool = False) -> None:
                told.append(number)

        drivers = Drivers(SimpleNamespace(isolations=lambda: ["microvm"]), {"microvm": lambda _: both})  # type: ignore[dict-item, arg-type]
        both = SimpleNamespace(adopt=lambda: asyncio.sleep(0, [Mute(), Other()]))
        await asyncio.wait_for(drivers.end(0.1), 60)
        assert told == [SIGTERM]

    asyncio.run(story())
