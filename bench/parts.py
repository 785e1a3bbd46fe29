"""The parts of a bench: when one fails that is said, and the others have their turn and their figures all the same; and what it
started is ended whole.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from foundation.errors import DavitError

WORDS = 300
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
Entered = TypeVar("Entered")


@contextmanager
def ended_whole(context: AbstractContextManager[Entered]) -> Iterator[Entered]:
    """``context``, whose end no interruption cuts short: a Davit that is half down would stay."""
    before = {number: signal.getsignal(number) for number in INTERRUPTIONS}
    try:
        with context as entered:
            try:
                yield entered
            finally:
                for number in INTERRUPTIONS:
                    signal.signal(number, lambda *_: print("it is ending what it started", flush=True))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Parts:
    """Which have failed, in words."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """One of them: whatever error ends it ends only it. An interruption ends the bench."""
        try:
            yield
        except Exception as error:  # httpx's, subprocess's, an assertion's: none of them is another part's
            said = error.message if isinstance(error, DavitError) else f"{type(error).__name__}: {error}"
            self.fail(f"{what}: not measured: {said.strip()[:WORDS]}")

    def fail(self, said: str) -> None:
        """Say that one has failed."""
        self.failed.append(said)
        print(said, flush=True)
