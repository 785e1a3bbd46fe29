"""The OSv driver set up for tests, with a guest that says it is an imitation (:mod:`tests.runtime.imitation_guest`)."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, TypeVar

from runtime import cgroups, children
from runtime.driver import DynoSpec, Limits
from runtime.host import Host
from runtime.osv.driver import OsvDriver
from runtime.osv.dyno import Unikernel
from tests.conftest import PATIENCE
from tests.runtime.bench_of_driver import ENV, MIB, Bench, _name, descriptors
from tests.runtime.imitation_guest import POWER_OFF, REPEAT, STAND_STILL

_T = TypeVar("_T")
LIMITS = Limits(memory=128 * MIB, memory_max=256 * MIB, cpu_quota=1.0, pids=64)
STARTED = "\nSetting in environment: .dyno={id}\n"


class OsvBench(Bench):
    """A bench with the OSv driver."""

    osv: OsvDriver
    limits = LIMITS

    def run(self, work: Awaitable[_T], timeout: float = 60) -> _T:
        """Run a coroutine to its end; ``timeout`` seconds are an idle machine's."""
        return super().run(work, PATIENCE * timeout)

    def open(self, warm: int = 0) -> None:
        """Claim an instance, open host and driver."""
        children.reap_orphans(set(), children.reap_orphans(set(), set()))  # of runtimes that other tests killed
        self.warm = warm
        self.host = Host(self.settings, self._claim(), warm=warm, environ={})
        self.osv = self.driver = OsvDriver(self.host, kvm=False)  # type: ignore[assignment]
        self.run(self.host.open())
        self.run(self.osv.open())

    def says(self, text: str, **changes: Any) -> DynoSpec:
        """A dyno whose guest starts its app and then says ``text``."""
        base = DynoSpec(
            "", "web.1", "app", "app-id", self.stack, self.slug, [], ENV, LIMITS, isolation="osv", line="/usr/bin/true"
        )
        spec = replace(base, id=os.urandom(8).hex(), **changes)
        return replace(spec, env={**spec.env, "SAY": "$" + STARTED.format(id=spec.id) + text})

    def begin(self, text: str, **changes: Any) -> Unikernel:
        """Start one."""
        return self.run(self.osv.start(self.says(text, **changes)))

    # -- the contract's words

    def saying(self, text: str, status: int, **changes: Any) -> Unikernel:  # type: ignore[override]
        return self.begin(f"{text}program exited with status {status}\n{POWER_OFF}", **changes)

    def waiting(self, text: str, **changes: Any) -> Unikernel:  # type: ignore[override]
        dyno = self.begin(text + STAND_STILL, **changes)
        self.until_it_has_said(dyno, text)  # type: ignore[arg-type]
        return dyno

    def deaf(self, text: str) -> Unikernel:  # type: ignore[override]
        return self.waiting(text)  # an imitation hears nothing

    def crashing(self, text: str) -> Unikernel:  # type: ignore[override]
        return self.begin(f"{text}Aborted\n\n[backtrace]\n0x0000000040378ff1 <abort+19>\n{POWER_OFF}")

    def flooding(self, text: str) -> Unikernel:  # type: ignore[override]
        return self.begin(text * 20 + REPEAT)

    # -- what is left

    def footprint(self) -> dict[str, Any]:
        """What the driver holds while no dyno runs."""
        self.until(lambda: not self.host.pool._leaving and len(self.host.tasks) <= 1, "quiet", 30)
        return {
            "cables": sorted(self.host.network.cables()),
            "descriptors": descriptors(),
            "dynos": [path.name for path in self.host.dynos.iterdir()],
            "work": [path.name for path in self.osv.directory.iterdir()],
            "children": sorted(filter(None, map(_name, children._children()))),
            "slugs": sorted(path.name for path in (self.osv.images.directory / "slugs").iterdir()),
            "drafts": [path.name for path in self.osv.images.directory.rglob(".*")],
            "cgroups": [group for group in self._groups() if not group.endswith("app-id")],
            "slots": sorted(self.host.pool._used),
        }

    def _groups(self) -> list[str]:
        tops = cgroups.layout().directories(self.host.instance.cgroup)
        return [str(path) for top in tops for path in top.rglob("*") if path.is_dir()]

    def remove_all(self) -> None:
        """Remove every dyno, and read as `logs` does what they left."""
        for dyno in list(self.osv.running.values()):
            self.run(dyno.remove())
        for directory in self.host.dynos.iterdir():
            for name in ("stdout", "stderr"):
                (directory / name).unlink(missing_ok=True)
        self.host.clear_read_out()
