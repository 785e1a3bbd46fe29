"""How things are written for people: times, sizes, short commits, names of states."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from markupsafe import Markup, escape

from dashboard import ansi
from foundation.clock import now

_UNITS = ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


_KEPT = "\N{NO-BREAK SPACE}"


def ago(at: datetime | None) -> Markup:
    """``3 minutes ago`` as a <time> element that knows the exact moment; a script keeps it current."""
    if at is None:
        return Markup("never")
    exact = at.astimezone(timezone.utc)
    words = _ago((now() - at).total_seconds())
    html = f'<time datetime="{exact.isoformat()}" title="{exact:%Y-%m-%d %H:%M:%S} UTC">{words}</time>'
    return Markup(html)  # noqa: S704 - a moment, written by ourselves


def _ago(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def moment(at: datetime | None) -> str:
    """``2026-11-23 16:00:00 UTC``"""
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC" if at else ""


def seconds(value: float | None) -> str:
    """A duration: ``0.8 s``, ``42 s``, ``3 min 5 s``."""
    if value is None:
        return ""
    value = max(0.0, value)
    if value < 10:
        return f"{value:.1f}{_KEPT}s"
    if value < 60:
        return f"{value:.0f}{_KEPT}s"
    return f"{int(value // 60)}{_KEPT}min {int(value % 60)}{_KEPT}s"


def size(count: float | None) -> str:
    """Bytes: ``512 KiB``, ``1.4 GiB``."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def mib(count: float) -> str:
    """MiB as :func:`size` has it."""
    return size(count * (1 << 20))


def number(value: float) -> str:
    """``18``, ``1.7``, ``0.025``: two digits where it is small."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def commit(text: str | None) -> str:
    """The first eight characters of a commit."""
    return (text or "")[:8]


def common_name(text: str) -> str:
    """Who ``/C=US/O=Let's Encrypt/CN=R11`` is: ``R11``; all of it where there is no common name (RFC 2253, CN)."""
    names = [part.removeprefix("CN=") for part in text.split("/") if part.startswith("CN=")]
    return names[-1] if names and names[-1] else text


def plural(count: int, one: str, many: str = "") -> str:
    """``1 dyno``, ``2 dynos``"""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def coloured(text: str | bytes) -> Markup:
    """Output with its ANSI colours, safe to put into a page."""
    return ansi.render(text)


def lines_of(text: str) -> Markup:
    """Text whose line breaks are kept."""
    return Markup("<br>").join(escape(line) for line in text.splitlines())


FILTERS: dict[str, Callable[..., Any]] = {
    "ago": ago, "moment": moment, "seconds": seconds, "size": size, "mib": mib, "commit": commit, "plural": plural,
    "coloured": coloured, "lines_of": lines_of, "common_name": common_name,
}  # fmt: skip
