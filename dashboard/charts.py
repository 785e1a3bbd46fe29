"""Charts as SVG, drawn here: they need no script, follow the theme through classes, and say in words what they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 180
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 17, 22
_TICKS = (60, 300, 600, 900, 1800, 3600, 7200, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400)


def nice(most: float) -> float:
    """A round number not below ``most``: 1, 2 or 5 times a power of ten."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= most * 0.999)


def nice_size(most: float) -> float:
    """A round number of bytes not below ``most``: a power of two."""
    return 2.0 ** math.ceil(math.log2(max(most * 0.999, 1.0)))


def spark(values: Sequence[float | None], words: str) -> Markup:
    """A line without axes; ``words`` say what it shows."""
    most = max((value for value in values if value is not None), default=0.0)
    path = _path(list(values), 0, 96, 2, 22, nice(most))
    return Markup(  # noqa: S704 - numbers of ours, words escaped
        f'<svg class="spark chart" viewBox="0 0 96 24" role="img" aria-label="{escape(words)}"><title>{escape(words)}</title>'
        f'<path class="s0" d="{path}"/></svg>'
    )


def _path(values: Sequence[float | None], left: float, right: float, top: float, bottom: float, most: float) -> str:
    """A line through the values; it has gaps where there are none."""
    step = (right - left) / max(1, len(values) - 1)
    pieces, drawing = [], False
    for number, value in enumerate(values):
        if value is None:
            drawing = False
            continue
        y = bottom - (bottom - top) * min(value, most) / most
        pieces.append(f"{'L' if drawing else 'M'}{left + number * step:.1f} {y:.1f}")
        if not drawing:
            pieces.append("h0.1")  # a single value is a dot, not nothing
        drawing = True
    return "".join(pieces)


def chart(
    label: str,
    series: Sequence[tuple[str, Sequence[float | None]]],
    start: datetime,
    step: float,
    write: Callable[[float], str],
    *,
    marks: Sequence[tuple[datetime, str]] = (),
    limit: float | None = None,
    top: Callable[[float], float] = nice,
) -> Markup:
    """Lines over time.

    Args:
        label: what it shows, for those who hear it.
        series: (name, values), oldest first.
        start: the moment of the first value; ``step`` seconds from one to the next.
        write: a value as people read it.
        marks: (moment, words): drawn as upright lines, for deploys; ``v3: Deploy`` has ``v3`` above its line.
        limit: a value drawn as a level line, for a quota.
        top: where the axis ends when this is the most that is shown.
    """
    known = [value for _, values in series for value in values if value is not None]
    most = top(max([*known, *([limit] if limit else [])], default=0))
    count = max((len(values) for _, values in series), default=0)
    end = start + timedelta(seconds=step * max(1, count - 1))
    newest = "; ".join(f"{name} {write(newest_value)}" for name, values in series if (newest_value := last(values)) is not None)
    words = f"{label}. Now: {newest or 'nothing'}."
    body = [_levels(most, write), _times(start, end), _marks(start, end, marks)]
    if limit:
        y = _y(limit, most)
        title = f"<title>quota {escape(write(limit))}</title>"
        words += f" The quota is {write(limit)}."
        body.append(f'<line class="quota" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}">{title}</line>')
    for number, (_, values) in enumerate(series):
        body.append(f'<path class="s{number % 6}" d="{_path(values, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM, most)}"/>')
    return Markup(  # noqa: S704 - numbers of ours, words escaped
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(body)}</svg>'
    )


def last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(value, most) / most


def _levels(most: float, write: Callable[[float], str]) -> str:
    lines = []
    for part in (0.0, 0.5, 1.0):
        y = _y(most * part, most)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{escape(write(most * part))}</text>')
    return "".join(lines)


def _x(moment: datetime, start: datetime, end: datetime) -> float:
    return LEFT + (WIDTH - RIGHT - LEFT) * ((moment - start) / (end - start))


def _times(start: datetime, end: datetime) -> str:
    span = (end - start).total_seconds()
    every = next((tick for tick in _TICKS if span / tick <= 6), _TICKS[-1])
    at = datetime.fromtimestamp((start.timestamp() // every + 1) * every, start.tzinfo)
    words = [f'<text x="0" y="{HEIGHT - 6}">UTC</text>']
    while at <= end:
        text = f"{at:%d %b}" if every >= 86400 else f"{at:%H:%M}"
        x = min(_x(at, start, end), WIDTH - 20)  # half of the text is right of it
        words.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{text}</text>')
        at += timedelta(seconds=every)
    return "".join(words)


def _marks(start: datetime, end: datetime, marks: Sequence[tuple[datetime, str]]) -> str:
    """Each an upright line; what its words begin with stands above it, where there is room."""
    drawn, free = [], 0.0
    for at, words in sorted(marks):
        if not start <= at <= end:
            continue
        x, title = _x(at, start, end), f"<title>{escape(words)}</title>"
        drawn.append(f'<line class="deploy" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">{title}</line>')
        short = words.partition(":")[0]
        if x >= free and len(short) <= 6:
            drawn.append(f'<text x="{min(x, WIDTH - RIGHT - 10):.1f}" y="{TOP - 4}" text-anchor="middle">{escape(short)}</text>')
            free = x + 34
    return "".join(drawn)
