"""``app[api]`` lines: what people do with an app, in the app's own log."""

from __future__ import annotations

from foundation.clock import now
from foundation.settings import settings
from logs import stream
from state import notify


def install() -> None:
    """From now on what this process announces (state.notify.announce) goes to the apps' logs."""
    client = stream.connect(settings().effective_redis_url)

    def announce(app_id: str, text: str) -> None:
        stream.emit(client, app_id, [stream.Line(now(), "app", "api", text)])

    notify.announcer = announce
