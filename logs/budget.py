"""A token bucket: how much may still pass now. Pure; the clock comes in."""

from __future__ import annotations


class Budget:
    """At most ``burst`` at once and ``rate`` per second in the long run.

    Args:
        rate: units per second.
        burst: units that an idle bucket holds.
        now: the present moment, seconds on any steady clock.
    """

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst = rate, burst
        self._left, self._at = burst, now

    def left(self, now: float, share: float = 1.0) -> int:
        """Whole units that may pass at the moment ``now``; the time since the last look refills ``share`` of the rate."""
        self._left = min(self.burst, self._left + (now - self._at) * self.rate * share)
        self._at = now
        return max(0, int(self._left))

    def take(self, units: float) -> None:
        """Units have passed; more than were left is a debt that later refills pay first."""
        self._left -= units
