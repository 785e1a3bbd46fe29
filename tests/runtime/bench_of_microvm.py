"""The microVM driver set up for tests. Booting a guest without KVM takes seconds, so checks that change nothing share one."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import DavitError
from runtime import cgroups
from runtime.host import Host
from runtime.microvm import kernel
from runtime.microvm.driver import MicroVmDriver
from runtime.microvm.dyno import MicroVm
from tests.runtime.bench_of_driver import ENV, Bench


def stacks() -> Path:
    """Where the kernel is."""
    return Path(os.environ.get("DAVIT_STACKS", "/var/cache/davit/stacks"))


def require() -> None:
    """Skip, and say why, where there is nothing to run microVMs with."""
    if os.geteuid() != 0:
        pytest.skip("microVMs need root")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("QEMU is not installed (set vm of scripts/packages; `make setup` installs it)")
    try:
        kernel.ensure(stacks())
    except DavitError as error:
        pytest.skip(error.message)


class MicroVmBench(Bench):
    """One open microVM driver, and a guest that checks share."""

    patience = 4.0
    others: set[str]
    """Children of this process that were there before; orphans among them may go at any time."""
    vm: MicroVmDriver
    shared: MicroVm | None = None
    sharing = True
    """Whether checks that change nothing share a guest."""

    def open(self, warm: int = 0) -> None:
        """Claim an instance, open host and driver."""
        self.others = set(_children())
        self.host = Host(self.settings, self._claim(), warm=warm, environ={})
        self.vm = self.driver = MicroVmDriver(self.host)  # type: ignore[assignment]
        self.run(self.host.open())
        self.run(self.vm.open())

    def share(self) -> MicroVm:
        """The guest that checks share."""
        if self.shared is None or self.shared.ended:
            self.shared = self.run(self.vm.start(self.spec("exec sleep 100000")))
        return self.shared

    def result(self, code: str, **changes: Any) -> Any:
        """What Python ``code`` prints as JSON: in the shared guest unless it has to be another."""
        if changes or not self.sharing:
            return super().result(code, **changes)
        dyno = self.share()
        exit, said = self.command(dyno, ["/usr/bin/python3", "-c", code], ENV)  # type: ignore[arg-type]
        assert said, f"the code printed nothing, and ended with {exit}"
        return json.loads(said)

    def remove_all(self) -> None:
        """Remove every dyno but the shared one, and read as `logs` does what they left."""
        for dyno in list(self.vm.running.values()):
            if dyno is not self.shared:
                self.run(dyno.remove())
        kept = self.shared.spec_id if self.shared else None
        for directory in self.host.dynos.iterdir():
            if directory.name != kept:
                assert (directory / "ended").exists()
                for name in ("stdout", "stderr"):
                    (directory / name).unlink(missing_ok=True)
        self.host.clear_read_out()

    def close(self, stop_dynos: bool = True) -> None:
        """Close the driver; with ``stop_dynos`` nothing may be left."""
        self.run(self.vm.close(stop_dynos))
        for directory in self.host.dynos.iterdir() if stop_dynos else ():
            for name in ("stdout", "stderr"):
                (directory / name).unlink(missing_ok=True)
        self.run(self.host.close(remove=stop_dynos))

    def footprint(self) -> dict[str, Any]:
        """What the driver holds while only the shared guest runs."""
        self.until(lambda: not self.host.pool._leaving and len(self.host.tasks) <= 1, "quiet")
        groups = [
            str(path)
            for top in cgroups.layout().directories(self.host.instance.cgroup)
            for path in top.rglob("*")
            if path.is_dir()
        ]
        return {
            "cables": sorted(self.host.network.cables()),
            "slots": sorted(self.host.pool._used),
            "cgroups": [group for group in groups if not group.endswith("app-id")],
            "descriptors": _descriptors(),
            "dynos": [path.name for path in self.host.dynos.iterdir()],
            "machines": [path.name for path in self.vm.directory.iterdir()],
            "children": sorted(set(_children()) - self.others),
            "home": sorted(path.name for path in self.host.settings.run.iterdir()),
        }


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _descriptors() -> list[str]:
    """What this process has open, without the numbers that differ from one time to the next.

    Pipes are left out: the host's maintenance runs `nft` whenever another Davit's bridge comes or goes.
    """
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(re.sub(r"\d+|[0-9a-f-]{36}", "N", str(link.readlink())))
    return sorted(one for one in found if not one.startswith("pipe:"))
