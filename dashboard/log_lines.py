"""Lines of an app's log as HTML: one element each, with what filters look at as attributes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from markupsafe import Markup, escape

from dashboard import ansi
from logs.stream import Line


def render(lines: Iterable[tuple[str, Line]], after: str = "") -> Markup:
    """The lines with their ids; where a day begins (UTC), a line that says which.

    Args:
        after: the id of the line before them, if any: it begins with when that came, in milliseconds since 1970.
    """
    day = f"{datetime.fromtimestamp(int(after.partition('-')[0]) / 1000, timezone.utc):%Y-%m-%d}" if after else ""
    told = []
    for id, line in lines:
        if (its := f"{line.at.astimezone(timezone.utc):%Y-%m-%d}") > day:
            told.append(Markup('<div class="day" data-day>{}, UTC</div>').format(its))
            day = its
        told.append(_line(id, line))
    return Markup("").join(told)


MISSED = Markup('<div class="l h" data-left data-s="" data-p="">… Lines may be missing here: more came than are kept.</div>')
"""Stands where a reader comes back to a log that went on without them for longer than lines are kept."""


def _line(id: str, line: Line) -> Markup:
    at = line.at.astimezone(timezone.utc)
    kind = "l h" if line.source == "heroku" else "l"
    return Markup(  # noqa: S704 - every value is escaped
        f'<div class="{kind}" data-s="{escape(line.source)}" data-p="{escape(line.process)}" data-id="{escape(id)}">'
        f'<i title="{at:%Y-%m-%d %H:%M:%S.%f} UTC">{at:%H:%M:%S}</i> <b>{escape(line.source)}[{escape(line.process)}]</b> '
        f"{ansi.render(line.text)}</div>"
    )
