"""``python -m runtime``: the process. ``python -m runtime stop``: end every dyno and remove all traces of them."""

from __future__ import annotations

import asyncio
import signal
import sys

from foundation import journal
from foundation.errors import DavitError
from foundation.settings import settings
from logs import announce
from runtime.drivers import Drivers
from runtime.host import Host
from runtime.instance import Instance
from runtime.life import GRACE_SECONDS
from runtime.oci import USER
from runtime.process import Runtime
from state import identity


async def _serve() -> None:
    announce.install()
    identity.confirm()  # with another home's database every dyno would be a stranger's
    instance = Instance.claim(settings())
    runtime = Runtime(settings(), Drivers(Host(settings(), instance)), lambda slot: instance.uids(slot) + USER)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await runtime.start()
    await stop.wait()
    await runtime.close(stop_dynos=False)


async def _stop() -> None:
    driver = Drivers(Host(settings(), Instance.claim(settings())))
    await driver.open()
    await driver.end(GRACE_SECONDS)
    await driver.close(stop_dynos=True)


def main(words: list[str]) -> int:
    """Run; returns the exit status."""
    log = journal.start("runtime")
    if words not in ([], ["stop"]):
        print("usage: python -m runtime [stop]", file=sys.stderr)
        return 2
    try:
        asyncio.run(_stop() if words else _serve())
    except DavitError as error:
        log.error("%s", error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
