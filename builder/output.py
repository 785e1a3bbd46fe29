"""What a build prints: a file that grows, and those who follow it.

``builds/BUILD_ID/output`` takes bytes as they come (partial lines at once); a publication on ``build:BUILD_ID`` wakes the
followers. When the build has ended, ``output.done`` beside it holds the outcome as JSON; it appears after the last byte.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import redis

from foundation.errors import Unavailable
from foundation.settings import settings
from state import notify
from state.db import snapshot
from state.models import Build

log = logging.getLogger("builder")

LIMIT = 10 << 20
"""Bytes of a buildpack's own output that are kept; what comes after is read and dropped."""
QUIET_SECONDS = 1.0
AWAY_SECONDS = 600.0
"""How long a build is followed further while the database, which says whether it goes on, is away."""
CHUNK = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """How a build ended.

    Attributes:
        status: ``succeeded`` or ``failed``.
        kind: what the pusher's ref line says when it failed (``build failed``); None otherwise.
        message: the sentence for the person; None when there is nothing to say.
        version: the release, for example 12, once there is one.
        url: where the app answers.
    """

    status: str
    kind: str | None = None
    message: str | None = None
    version: int | None = None
    url: str | None = None


def directory(build_id: str) -> Path:
    """Where the build's files are."""
    return settings().home / "builds" / build_id


def outcome(build_id: str) -> Outcome | None:
    """The outcome of a build that has ended, None while it has not.

    Also None where a power cut left the file empty: nothing waits for the disk here, because the build's row says it, too.
    """
    try:
        return Outcome(**json.loads((directory(build_id) / "output.done").read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


class Output:
    """The writing end; one process at a time has it."""

    def __init__(self, build_id: str) -> None:
        self.build_id = build_id
        self._directory = directory(build_id)
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self._directory / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._passed = os.fstat(self._file).st_size
        self._truncated = False
        self._at_line_start = True

    def close(self) -> None:
        os.close(self._file)

    def pass_through(self, data: bytes) -> None:
        """Bytes of the build itself, up to the limit."""
        room = LIMIT - self._passed
        if room > 0:
            self._write(data[:room])
            self._passed += len(data)
        if len(data) > room and not self._truncated:
            self._truncated = True
            self.say(f" !     The build printed more than {LIMIT >> 20} MB; … output truncated.")

    def say(self, text: str) -> None:
        """A line of Davit's own; always on a line of its own, never dropped."""
        start = b"" if self._at_line_start else b"\n"
        self._write(start + text.encode(errors="replace") + b"\n")

    def heading(self, text: str) -> None:
        """``-----> text``"""
        self.say(f"-----> {text}")

    def indented(self, text: str) -> None:
        """``       text``"""
        self.say(f"       {text}")

    def warning(self, text: str) -> None:
        """`` !     text``"""
        self.say(f" !     {text}")

    def finish(self, outcome: Outcome) -> None:
        """The build has ended; followers end when they have read everything."""
        fresh = self._directory / "output.done.new"
        fresh.write_text(json.dumps(asdict(outcome)))
        fresh.rename(self._directory / "output.done")
        notify.publish(f"build:{self.build_id}")

    def _write(self, data: bytes) -> None:
        if not data:
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:  # a full disk must not end a build whose sandbox has a disk of its own
            log.warning("build output lost", extra={"build": self.build_id, "reason": error.strerror})
        self._at_line_start = data.endswith(b"\n")
        notify.publish(f"build:{self.build_id}")


def follow(build_id: str, offset: int = 0) -> Iterator[bytes | None]:
    """What a build prints, as it happens.

    Args:
        offset: bytes that the caller has already.

    Yields:
        Bytes as they come; None after each quiet second, so that the caller can send a keep-alive and notice that its
        client is gone. Ends when the build has ended and everything was given; also when the build is gone.

    Raises:
        Unavailable: the database has been away for :data:`AWAY_SECONDS`, and the build prints nothing.
    """
    path = directory(build_id) / "output"
    with contextlib.ExitStack() as stack:
        bell, away = _Bell(build_id, stack), _Away()
        while True:
            ended = outcome(build_id) is not None  # asked before reading: the last bytes are there by then
            data = _read(path, offset)
            if data:
                offset += len(data)
                yield data
            elif ended:
                return
            elif not bell.wait(QUIET_SECONDS):
                if away.bear(lambda: _forgotten(build_id)):
                    return
                yield None


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(CHUNK) or b""
    except FileNotFoundError:
        return b""


def _forgotten(build_id: str) -> bool:
    """Whether nobody will write ``output.done`` any more: the row is gone, or it says how the build ended and nobody is at work.

    The last lines come after the row, because they tell what stands there."""
    with snapshot() as session:
        build = session.get(Build, build_id)
    over = build is None or (build.status != "pending" and not _at_work(build_id))
    return over and outcome(build_id) is None


def lock(build_id: str) -> Path:
    """What a process that works on the build holds an exclusive flock(2) on, to its end."""
    return directory(build_id) / "lock"


def _at_work(build_id: str) -> bool:
    try:
        descriptor = os.open(lock(build_id), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


class _Away:
    """Asks a database that may be away: the build goes on without it for a while, and so does who follows the build."""

    def __init__(self) -> None:
        self._since: float | None = None

    def bear(self, ask: Callable[[], bool]) -> bool:
        """What ``ask`` says; False while the database does not answer."""
        try:
            said = ask()
        except Unavailable:
            since = self._since = self._since or time.monotonic()
            if time.monotonic() - since >= AWAY_SECONDS:
                raise
            return False
        self._since = None
        return said


class _Bell:
    """Rings when the build printed; looks ten times a second while Redis is away."""

    def __init__(self, build_id: str, stack: contextlib.ExitStack) -> None:
        self._channel = f"build:{build_id}"
        self._stack = stack
        self._subscription: redis.client.PubSub | None = None
        self._subscribe()

    def _subscribe(self) -> None:
        self._subscription = notify.subscribe(self._channel)
        if self._subscription is not None:
            self._stack.callback(self._subscription.close)

    def wait(self, seconds: float) -> bool:
        """Whether it rang within ``seconds``; also true when it cannot know."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self._subscription is None:
                    time.sleep(min(0.1, left))
                    self._subscribe()
                    return True
                if self._subscription.get_message(timeout=left) is not None:
                    return True
            except redis.RedisError:
                self._subscription = None
        return False
