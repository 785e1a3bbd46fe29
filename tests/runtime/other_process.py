"""A runtime of its own for tests that kill it: starts dynos, says so on standard output, and waits to be killed.

python -m tests.runtime.other_process STACK SLUG COMMAND…      (DAVIT_HOME in the environment)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from foundation.settings import settings
from runtime.container import ContainerDriver
from runtime.driver import DynoSpec
from runtime.host import Host
from runtime.instance import Instance
from tests.runtime.bench_of_driver import ENV, LIMITS


async def main(stack: str, slug: str, *commands: str) -> None:
    """Start one dyno for each command."""
    host = Host(settings(), Instance.claim(settings()), warm=1, environ={})
    driver = ContainerDriver(host)
    await host.open()
    await driver.open()
    started = []
    for number, command in enumerate(commands, 1):
        argv = ["/bin/bash", "-c", command]
        spec = DynoSpec(f"dyno-{number}", f"web.{number}", "app", "app-id", Path(stack), Path(slug), argv, ENV, LIMITS)
        dyno = await driver.start(spec)
        started.append([dyno.spec_id, dyno.slot, dyno.address, dyno.pid])
    print(json.dumps(started), flush=True)
    if not os.environ.get("TEST_UNTIDY"):
        await asyncio.sleep(0.3)
        print("tidy", flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
