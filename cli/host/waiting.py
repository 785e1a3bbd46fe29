"""Whom somebody waits for, said while it lasts: nobody should sit before a command that says nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cli.host import record
from cli.host.processes import Identity
from runtime.dynodir import DynoDirectory

EVERY = 1.0
"""Seconds after which the first word is said, and between two looks."""
NAMED = 5
"""So many are named; of more only the number is said."""
_BUSY = {"web": "web (answers its last requests)", "ssh": "ssh (pushes and terminals are open)"}


@contextlib.contextmanager
def told(say: Callable[[str], None], whom: Callable[[], Sequence[str]], at_most: float, every: float = EVERY) -> Iterator[None]:
    """While the block runs, say who is waited for, a line whenever that has changed.

    Args:
        say: shows a line.
        whom: their names now; called by a thread. Nobody is no line.
        at_most: seconds after which they are ended by force.
        every: seconds between two looks; what takes less time is not spoken of.
    """
    ended = threading.Event()

    def watch() -> None:
        before: list[str] = []
        while not ended.wait(every):
            names = list(whom())
            if names and names != before:
                say(f"Waiting for {listed(names)} ({at_most:g} seconds at most).")
            before = names

    watcher = threading.Thread(target=watch, name="waiting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def listed(names: Sequence[str]) -> str:
    """``web.1 of shop, worker.1 of shop and 3 more``"""
    named, more = list(names[:NAMED]), len(names) - NAMED
    words = [*named, f"{more} more"] if more > 0 else named
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def processes(run: Path) -> list[str]:
    """Davit's processes that the record in ``run`` knows and that have not ended yet."""
    return [_BUSY.get(entry.name, entry.name) for entry in record.read(run).living()]


def left(run: Path) -> int:
    """How many dynos have something in ``run``, those that have ended among them: so many are to be taken away."""
    return sum(1 for _ in (run / "dynos").glob("*"))


def dynos(run: Path, apps: Mapping[str, str]) -> list[str]:
    """The dynos whose directories are in ``run`` and that have not ended yet.

    Args:
        apps: names by id.
    """
    found = []
    for directory in (run / "dynos").glob("*"):
        written = DynoDirectory(directory).read()
        process = Identity.of(written.pid) if written and written.pid is not None else None
        if written and process and written.started in (None, process.started) and written.boot == process.boot:
            known = apps.get(written.app_id)  # one that is just being destroyed is not
            found.append(f"{written.name} of {known}" if known else written.name)
    return sorted(found)
