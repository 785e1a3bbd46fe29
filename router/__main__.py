"""``python -m router``: the process that keeps HAProxy. ``python -m router stop`` ends HAProxy as well."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Collection, Mapping, Sequence

from foundation import journal
from foundation.settings import Settings, settings
from foundation.wire import Call, Server
from logs.stream import Line, connect, emit
from router import service
from router.accesslog import Access
from router.endpoints import Endpoints
from router.routes import AppRows, read_rows
from router.watch import Watch
from state import sleep
from state.db import ask, snapshot, transaction


def read_database(app_ids: Collection[str] | None) -> Sequence[AppRows]:
    """The rows of these apps (None: of all), from the database."""
    if app_ids is None and not ask("SELECT id FROM apps LIMIT 1"):
        return []
    with snapshot() as session:
        return read_rows(session, app_ids)


def wake(app_id: str) -> None:
    """A request waits for an app that sleeps."""
    with transaction(momentary=True) as session:
        sleep.wake(session, app_id)


class Deliverer:
    """Puts access lines into the apps' logs."""

    def __init__(self, own: Settings) -> None:
        self._redis = connect(own.effective_redis_url)

    async def __call__(self, batch: Mapping[str, Sequence[Access]]) -> None:
        await asyncio.to_thread(self._deliver, batch)

    def _deliver(self, batch: Mapping[str, Sequence[Access]]) -> None:
        for app_id, lines in batch.items():
            emit(self._redis, app_id, [Line(one.at, "heroku", "router", one.text) for one in lines])


async def serve(own: Settings) -> None:
    """Run until SIGTERM or SIGINT; HAProxy runs on."""
    router = service.Router(own, read_database, Deliverer(own), wake=wake, endpoints=Endpoints())
    await router.start()

    async def sync(call: Call) -> None:
        await router.sync(str(call.params["app_id"]))

    async def sync_all(call: Call) -> None:
        await router.sync_all()

    async def connections(call: Call) -> dict[str, object]:
        addresses = {(str(address), int(port)) for address, port in call.params["addresses"]}
        return {"count": await router.busy(str(call.params["app_id"]), addresses)}

    async def quiet(call: Call) -> dict[str, object]:
        return dict(await router.quiet([str(app_id) for app_id in call.params["app_ids"]]))

    async def ping(call: Call) -> dict[str, object]:
        return router.status()

    calls = {"sync": sync, "sync_all": sync_all, "connections": connections, "quiet": quiet, "ping": ping}
    server = Server(own.run / "router.sock", calls)
    await server.start()
    watch = asyncio.ensure_future(Watch(router).run())
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    watch.cancel()
    server.close()
    await router.close()


def main() -> None:
    """The command."""
    journal.start("router")
    own = settings()
    if sys.argv[1:] == ["stop"]:
        service.stop(own)
    else:
        asyncio.run(serve(own))


if __name__ == "__main__":
    main()
