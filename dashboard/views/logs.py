"""An app's log: the last lines, and every new one as it comes."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from flask import Response, request

from dashboard import ansi, frame, log_lines
from dashboard.routing import Pages, Visit
from foundation.errors import DavitError
from foundation.settings import settings
from logs import stream
from logs.stream import Line
from logs.window import WINDOW
from state import formation

pages = Pages("logs")

_DYNO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}")


@lru_cache(maxsize=1)
def _redis() -> Any:
    return stream.connect(settings().effective_redis_url)


def _filters() -> tuple[str, str]:
    """Source and dyno (or process type) that the address names; what cannot be one counts as none."""
    source, dyno = request.args.get("source", ""), request.args.get("dyno", "")
    return source if source in ("app", "heroku") else "", dyno if _DYNO.fullmatch(dyno) else ""


def _words() -> str:
    """What is searched for."""
    return request.args.get("q", "")[:200]


@pages.on("GET", "/apps/<app>/logs", does="POST /apps/<app>/log-sessions")
def show(visit: Visit) -> Response:
    """The log; a script goes on with it where this page ends."""
    source, dyno = _filters()
    words = _words()
    trouble, lines, newest = "", [], "0-0"
    try:
        newest = stream.newest(_redis(), visit.app.id)  # before the lines: what comes in between is the stream's to bring
        lines = stream.recent(_redis(), visit.app.id, WINDOW, source, dyno)
        lines = [(id, line) for id, line in lines if stream.order(id) <= stream.order(newest) and _has(line, words)]
    except DavitError as error:
        trouble = error.message
    return frame.page(
        visit, "Logs", "logs.html", lines=log_lines.render(lines), count=len(lines), newest=newest, trouble=trouble,
        source=source, dyno=dyno, q=words, names=_names(visit),
    )  # fmt: skip


def _has(line: Line, words: str) -> bool:
    """Whether a line as it is shown has these words in it."""
    return words.lower() in ansi.render(f"{line.source}[{line.process}] {line.text}").striptags().lower() if words else True


def _names(visit: Visit) -> list[str]:
    """What can be filtered by: process types and dynos."""
    rows = formation.dynos(visit.session, visit.app)
    types = sorted({row.type for row in rows} | {row.type for row in formation.all_of(visit.session, visit.app)})
    return [*types, *(row.name for row in rows), "router", "api"]


@pages.on("GET", "/apps/<app>/logs/download", does="POST /apps/<app>/log-sessions")
def download(visit: Visit) -> Response:
    """The lines that are kept and that the page's filters let through, as a text file."""
    source, dyno = _filters()
    words = _words()
    lines: list[tuple[str, Line]] = stream.recent(_redis(), visit.app.id, WINDOW, source, dyno)
    text = "".join(f"{stream.format_line(line)}\n" for _, line in lines if _has(line, words))
    answer = Response(text, content_type="text/plain; charset=utf-8")
    answer.headers["Content-Disposition"] = f'attachment; filename="{visit.app.name}.log"'
    return answer
