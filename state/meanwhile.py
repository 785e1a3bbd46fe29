"""Two people have the same page open: who saves later does not undo what the other saved meanwhile.

Whoever changes something says what it was when they saw it. What they changed and somebody else changed since is refused,
and nothing is saved; what they did not touch is left alone, whoever changed it.
"""

from __future__ import annotations

from collections.abc import Sequence

from foundation.errors import Conflict


class ChangedMeanwhile(Conflict):
    """What was to be changed is no longer what it was when the person saw it.

    Args:
        names: what, for the sentence: ``web's size``, ``DATABASE_URL``.
    """

    id = "changed_meanwhile"

    def __init__(self, names: Sequence[str]) -> None:
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        them = "them" if len(names) > 1 else "it"
        super().__init__(
            f"Nothing was saved: somebody else changed {listed} after you had looked at {them}. Look at what is there now, and "
            "save again what you still want to change."
        )
