"""How many pushes a door takes at once: each holds a thread until its release is live, its turn to wait for included."""

from __future__ import annotations

from foundation.errors import DavitError
from foundation.places import Places


class TooManyPushes(DavitError):
    """As many pushes are under way as may be, in all or of one account."""

    id, status = "too_many_pushes", 503


def places(most: int) -> Places:
    """Places for pushes, of which one account may have two thirds, so that nobody keeps all others out.

    Args:
        most: at one door (DAVIT_PUSHES).
    """
    return Places(lambda: most, lambda: max(1, most * 2 // 3), _full, _enough)


def _full(most: int) -> TooManyPushes:
    return TooManyPushes(f"{most} pushes are under way already, as many as this Davit takes at once; push again in a while.")


def _enough(each: int) -> TooManyPushes:
    return TooManyPushes(
        f"You have {each} pushes under way already, as many as one account may have at once; push again when one has ended. "
        "Those that you need no more end with: davit builds:cancel"
    )
