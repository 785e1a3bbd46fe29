"""When a crashed dyno is started again (pure): at once, then after ever longer pauses; a new release starts over."""

from __future__ import annotations

PAUSES = (0.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds before the first, second, … restart; the last repeats. (Heroku's own steps reach hours; nobody likes that.)"""
HEALTHY_SECONDS = 600
"""A dyno that was up for this long has not "crashed again" when it ends."""


def pause(crashes: int) -> float:
    """Seconds to wait before the restart after the ``crashes``-th crash in a row (counted from 1)."""
    return PAUSES[min(crashes, len(PAUSES)) - 1] if crashes > 0 else 0.0


def count(crashes_before: int, lived: float) -> int:
    """How many crashes in a row this one makes, when the dyno had been up for ``lived`` seconds."""
    return 1 if lived >= HEALTHY_SECONDS else crashes_before + 1
