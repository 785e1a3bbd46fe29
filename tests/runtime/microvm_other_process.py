"""A runtime of its own for tests that kill it: starts microVMs, says so on standard output, and waits to be killed.

python -m tests.runtime.microvm_other_process STACK SLUG COMMAND…      (DAVIT_HOME in the environment)
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from foundation.settings import settings
from runtime.driver import DynoSpec
from runtime.host import Host
from runtime.instance import Instance
from runtime.microvm.driver import MicroVmDriver
from tests.runtime.bench_of_driver import ENV, LIMITS


async def main(stack: str, slug: str, *commands: str) -> None:
    """Start one dyno for each command, a further command in the first, and say so when the last has only just started."""
    host = Host(settings(), Instance.claim(settings()), warm=0, environ={})
    driver = MicroVmDriver(host)
    await host.open()
    await driver.open()
    specs = [
        DynoSpec(
            f"dyno-{number}", f"web.{number}", "app", "app-id", Path(stack), Path(slug), ["/bin/bash", "-c", command], ENV, LIMITS
        )
        for number, command in enumerate(commands, 1)
    ]
    dynos = [await driver.start(specs[0])]
    await dynos[0].exec(["/bin/bash", "-c", "while true; do sleep 1; done"], ENV, terminal=(24, 80))
    dynos += [await driver.start(spec) for spec in specs[1:]]
    print(json.dumps([[dyno.spec_id, dyno.pid] for dyno in dynos]), flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
