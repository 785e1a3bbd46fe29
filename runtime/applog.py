"""The platform's own words in an app's log: ``heroku[web.1]: State changed from starting to up``."""

from __future__ import annotations

from foundation.clock import now
from logs.stream import Line, emit
from state.notify import redis_client


def say(app_id: str, process: str, *texts: str) -> None:
    """Append lines of source ``heroku`` to the app's log; never raises, never waits long."""
    emit(redis_client(), app_id, [Line(now(), "heroku", process, text) for text in texts])


def output(app_id: str, process: str, *texts: str) -> None:
    """Append lines of source ``app``: what a dyno printed whose output the runtime reads itself."""
    emit(redis_client(), app_id, [Line(now(), "app", process, text) for text in texts])
