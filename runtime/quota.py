"""A dyno's memory against what its size promises, in Heroku's words: R14 while it uses more, R15 when it was killed for that."""

from __future__ import annotations

import contextlib

from runtime import applog
from runtime.driver import RunningDyno
from state import isolations, sizes
from state.models import Dyno


def watch(row: Dyno, running: RunningDyno) -> None:
    """Say so when the dyno uses more than its size promises (R14)."""
    quota = sizes.find(row.size).memory * sizes.MIB
    with contextlib.suppress(OSError):  # it has just ended
        used = running.stats().memory
        if used > quota:
            share = f"{100 * used / quota:.1f}%"
            said = (f"Process running mem={used // sizes.MIB}M({share})", "Error R14 (Memory quota exceeded)")
            applog.say(row.app_id, row.name, *said)


def killed(row: Dyno) -> None:
    """Say that the dyno was killed for its memory (R15)."""
    why = f"the process was killed: it used more than {most(row.isolation)}"
    applog.say(row.app_id, row.name, f"Error R15 (Memory quota vastly exceeded) -> {why}")


def most(isolation: str) -> str:
    """What a dyno that was ended for want of memory had used up."""
    return "twice its dyno's memory" if isolation == isolations.CONTAINER else "the memory of its machine"
