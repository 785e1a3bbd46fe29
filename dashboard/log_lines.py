"""Lines of an app's log as HTML: one element each, with what filters look at as attributes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timezone

from markupsafe import Markup, escape

from dashboard import ansi
from logs.stream import Line


def render(lines: Iterable[tuple[str, Line]]) -> Markup:
    """The lines with their ids."""
    return Markup("").join(_line(id, line) for id, line in lines)


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
