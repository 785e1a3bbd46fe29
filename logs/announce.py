"""``app[api]`` lines: what people do with an app, in the app's own log."""

from __future__ import annotations

from collections.abc import Callable

from foundation.clock import now
from foundation.settings import settings
from logs import stream
from state import notify


def install() -> Callable[[], object]:
    """From now on what this process announces (state.notify.announce) goes to the apps' logs.

    Returns:
        What a process calls that ends without Python's own end (``os._exit``): it sends what is still on its way.
    """
    client = stream.connect(settings().effective_redis_url)

    def announce(app_id: str, text: str) -> None:
        stream.emit(client, app_id, [stream.Line(now(), "app", "api", text)])

    notify.announcer = announce
    return lambda: stream.flush(client)
