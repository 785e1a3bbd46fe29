"""What a release command prints: kept in a file for ``releases:output``, and put into the app's log, both within bounds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from logs.budget import Budget
from logs.lines import Splitter

log = logging.getLogger("runtime")

KEPT = 10 << 20
"""Bytes that are kept in the file."""
LINES_PER_SECOND, LINES_AT_ONCE = 2_000, 10_000
"""What goes into the app's log, as for any dyno; the rest is counted."""


class ReleaseOutput:
    """Takes the bytes as they come. Its methods wait for disk and Redis: they are for threads, not for an event loop.

    Args:
        path: the file, which is added to.
        emit: puts lines of the command into the app's log.
        lost: puts a sentence on lines that were left out there.
    """

    def __init__(
        self, path: Path, emit: Callable[[Sequence[str]], object], lost: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._emit, self._lost, self._clock = emit, lost, clock
        self._room, self._dropped = KEPT, 0
        self._splitter, self._budget = Splitter(), Budget(LINES_PER_SECOND, LINES_AT_ONCE, clock())
        self._lock = threading.Lock()

    def take(self, chunk: bytes) -> None:
        """The next bytes; a full disk or a log that is away does not stop the command."""
        with self._lock:
            self._keep(chunk)
            lines, dropped = self._splitter.feed(chunk, self._budget.left(self._clock()))
            self._budget.take(len(lines))
            self._dropped += dropped
            self._emit([line.decode(errors="replace") for line in lines])

    def _keep(self, chunk: bytes) -> None:
        if not self._room or self._file.closed:
            return
        try:
            self._room -= self._file.write(chunk[: self._room])
        except OSError as error:
            log.warning("the output of a release command could not be kept: %s", error)
            self._room = 0

    def close(self) -> None:
        """No more will come: the unfinished last line, and how much was left out of the log."""
        with self._lock:
            self._file.close()
            last, _ = self._splitter.feed(b"\n", 1) if self._splitter.partial else ([], 0)
            self._emit([line.decode(errors="replace") for line in last])
            if self._dropped:
                text = f"Error L10 (output buffer overflow): {self._dropped} messages dropped"
                self._lost(f"{text} (the release command prints more than {LINES_PER_SECOND} lines per second)")
