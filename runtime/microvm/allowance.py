"""How much somebody who is not trusted may use of what is everybody's (a token bucket; pure)."""

from __future__ import annotations


class Allowance:
    """So much at once, and so much more with every second.

    Args:
        most: at once.
        each_second: what comes back.
        now: seconds, by the clock that :meth:`take` is given, too.
    """

    def __init__(self, most: float, each_second: float, now: float) -> None:
        self._most, self._each_second = most, each_second
        self._left, self._at = most, now

    def take(self, amount: float, now: float) -> float:
        """Use ``amount``.

        Returns:
            seconds after which nothing is owed any more; 0 while that is so.
        """
        self._left = min(self._most, self._left + (now - self._at) * self._each_second) - amount
        self._at = now
        return max(0.0, -self._left / self._each_second)
