"""How far a reader has got in an app's lines, and how many it missed.

Redis counts the lines that a stream has ever had. A reader who keeps that count beside the id of the last line that it read
knows, when it reads on, how many have come since; those that it does not find were taken from the window meanwhile. Of
these the ones that were put aside (:mod:`logs.window`) are found all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from logs.sender import Redis
from logs.stream import Line, between, order
from logs.window import aside, key

UNKNOWN = -1


class Place(NamedTuple):
    """A line of an app.

    Attributes:
        id: the line's id; ``0-0`` is before the first.
        number: how many lines the app had with this one; -1 where Redis does not tell (before 7.0).
    """

    id: str
    number: int


def newest(redis: Redis, app_id: str) -> Place:
    """The place of the newest line: where a reader begins who wants those from now on.

    Raises:
        Exception: Redis cannot be reached.
    """
    try:
        told = redis.execute_command("XINFO", "STREAM", key(app_id))
    except Exception as error:
        if "no such key" in str(error):
            return Place("0-0", 0)
        raise
    facts = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))
    last: Any = facts[b"last-entry"]
    return Place(last[0].decode() if last else "0-0", int(facts.get(b"entries-added", UNKNOWN)))


def read_on(
    redis: Redis, app_id: str, place: Place, until: Place, found: Sequence[tuple[str, Line]] = ()
) -> tuple[int, list[tuple[Place, Line]]]:
    """All lines after ``place`` up to ``until``.

    Args:
        until: a place that was looked up after what is ``found`` was read.
        found: the first lines after ``place``.

    Returns:
        How many lines are nowhere any more, all of them before those that follow; and the lines, oldest first.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    lines = list(found) + between(redis, [key(app_id)], found[-1][0] if found else place.id, until.id)
    known = UNKNOWN not in (place.number, until.number) and place.number <= until.number  # else the stream was made anew
    missed = max(0, until.number - place.number - len(lines)) if known else 0
    if missed:
        saved = between(redis, aside(app_id), place.id, until.id)
        first = order(lines[0][0]) if lines else None
        lines = [entry for entry in saved if first is None or order(entry[0]) < first] + lines
        missed = max(0, until.number - place.number - len(lines))
    before = until.number - len(lines)
    return missed, [
        (Place(id, UNKNOWN if until.number == UNKNOWN else before + n), line) for n, (id, line) in enumerate(lines, 1)
    ]
