"""How many pushes, and how many clones and fetches, a door serves at once: each holds a thread.

A push does until its release is live, its turn to wait for included; a clone until its client has read it.
"""

from __future__ import annotations

from foundation.errors import DavitError
from foundation.places import Places

OVERTAKEN = 4
"""Pushes that are refused in git's own words at once; the thread that does it is none of those for pushes."""


class TooManyPushes(DavitError):
    """As many pushes are under way as may be, in all or of one account."""

    id, status = "too_many_pushes", 503


class TooManyFetches(DavitError):
    """As many clones and fetches are under way as may be, in all or of one account."""

    id, status = "too_many_fetches", 503


def places(most: int) -> Places:
    """Places for pushes, of which one account may have two thirds, so that nobody keeps all others out.

    Args:
        most: at one door (DAVIT_PUSHES).
    """
    return Places(lambda: most, lambda: _share(most), _full, _enough)


def for_fetches(most: int) -> Places:
    """As many for clones and fetches, shared alike."""
    under_way = "clones and fetches under way already, as many as"
    return Places(
        lambda: most, lambda: _share(most),
        lambda most: TooManyFetches(f"There are {most} {under_way} this Davit serves at once; try again in a while."),
        lambda each: TooManyFetches(f"You have {each} {under_way} one account may have at once; try again when one has ended."),
    )  # fmt: skip


def for_overtaken() -> Places:
    """Places for those that find all others taken."""
    return Places(lambda: OVERTAKEN, lambda: OVERTAKEN, _full, _full)


def _share(most: int) -> int:
    return max(1, most * 2 // 3)


def _full(most: int) -> TooManyPushes:
    return TooManyPushes(f"{most} pushes are under way already, as many as this Davit takes at once; push again in a while.")


def _enough(each: int) -> TooManyPushes:
    return TooManyPushes(
        f"You have {each} pushes under way already, as many as one account may have at once; push again when one has ended. "
        "Those that you need no more end with: davit builds:cancel"
    )
