"""The build sandbox, from the worker's side: one connection to the runtime process, whose end is the sandbox's end."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol

from builder import inside
from foundation.errors import DavitError, Unavailable
from foundation.settings import settings
from foundation.wire import Connection

BOOTSTRAP = "import sys;i=sys.stdin.buffer;exec(compile(i.read(int(i.readline())),'davit-build','exec'))"
COMMAND = ("/usr/bin/python3", "-I", "-S", "-c", BOOTSTRAP)
"""What runs in the sandbox: it reads the build program, too, from its standard input. Nothing about the build is on the
command line, which everybody on the host may read."""
RESULT = "/tmp/davit-slug"  # noqa: S108 - the sandbox's own
SEAL_SECONDS = 900
LOOK_MILLISECONDS = 100
"""How often a writer whose reader is slow looks whether it is to give up."""
RUNTIME_SECONDS = 30.0
"""How long a build waits for a runtime process that is not there."""


@dataclass(frozen=True)
class Ended:
    """How the sandbox's program ended: its exit status as a shell gives it; None when nobody knows."""

    status: int | None
    oom: bool = False
    timed_out: bool = False


@dataclass(frozen=True)
class Sealed:
    """The slug that the build became: its name in the store, its size, and the stack it was built on."""

    digest: str
    size: int
    stack_version: str = ""


class Inlet:
    """The writing end of a sandbox's standard input, which one thread fills and another one may close.

    A descriptor that is closed under a writer is somebody else's a moment later, and gets what was meant for the build:
    so every single write is made under the lock, and none of them blocks.

    Args:
        descriptor: of a pipe; closed by :meth:`close`.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Write all of it, waiting for the reader.

        Raises:
            OSError: the reader is gone, or :meth:`close` was called.
        """
        rest = memoryview(data)
        while rest:
            with self._lock:
                if self._descriptor < 0:
                    raise BrokenPipeError("the sandbox's standard input is closed")
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                    continue
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
            poll.poll(LOOK_MILLISECONDS)  # it may look at a successor of the descriptor, but writes to none

    def close(self) -> None:
        """Nothing more comes; idempotent."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Sandbox(Protocol):
    """What the job needs of a sandbox. ``report`` and ``output`` are descriptors of this process."""

    stdin: Inlet
    report: int
    output: int

    def wait(self) -> Ended:
        """Block until its program has ended."""

    def seal(self) -> Sealed:
        """Make a slug of what the build left."""

    def commit_cache(self) -> bool:
        """Keep the cache directory for the app's next build; whether it had changed."""


class RuntimeSandbox:
    """The real one; see docs/architecture.md for the calls."""

    def __init__(self, connection: Connection, build_id: str, stdin: int, report: int, output: int) -> None:
        self._connection = connection
        self._build_id = build_id
        self.stdin, self.report, self.output = Inlet(stdin), report, output

    def wait(self) -> Ended:
        self._connection.settimeout(None)
        result = self._connection.call("sandbox.wait", {"build_id": self._build_id}).result
        return Ended(result.get("status"), bool(result.get("oom")), bool(result.get("timed_out")))

    def seal(self) -> Sealed:
        self._connection.settimeout(SEAL_SECONDS)
        result = self._connection.call("sandbox.seal", {"build_id": self._build_id, "path": RESULT}).result
        return Sealed(result["digest"], result["size"], result.get("stack_version", ""))

    def commit_cache(self) -> bool:
        self._connection.settimeout(SEAL_SECONDS)
        return bool(self._connection.call("sandbox.commit_cache", {"build_id": self._build_id}).result.get("changed"))

    def hang_up(self) -> None:
        """End the sandbox, also while another thread waits for it: that thread's call would keep a closed socket alive."""
        with contextlib.suppress(OSError):
            self._connection._socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def open_sandbox(build_id: str, app_id: str, app: str) -> Iterator[Sandbox]:
    """A sandbox for one build; removed with all that it wrote when the block (or this process) ends.

    Raises:
        DavitError: the runtime process is away or could not start it.
    """
    theirs: list[int] = []
    ours: list[int] = []
    try:
        for ours_reads in (False, True, True):
            read, write = os.pipe2(os.O_CLOEXEC)
            ours.append(read if ours_reads else write)
            theirs.append(write if ours_reads else read)
        with _connected() as connection:
            params = {"build_id": build_id, "app_id": app_id, "app": app, "env": environment(), "command": list(COMMAND)}
            connection.call("sandbox.open", params, fds=theirs)
            while theirs:
                os.close(theirs.pop())
            sandbox = RuntimeSandbox(connection, build_id, ours.pop(0), ours[0], ours[1])
            try:
                yield sandbox
            finally:
                sandbox.stdin.close()
                sandbox.hang_up()
    finally:
        for descriptor in (*theirs, *ours):
            os.close(descriptor)


def _connected() -> Connection:
    """A connection to the runtime process, which may be starting: a build that is taken up again at a start must not fail for it.

    Raises:
        Unavailable: it has not come up in time.
    """
    deadline = time.monotonic() + RUNTIME_SECONDS
    while True:
        try:
            return Connection(settings().run / "runtime.sock", timeout=120)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def environment() -> dict[str, str]:
    """What the build program itself is started with; it makes the buildpacks' environment by itself."""
    return {"PATH": inside.PATH, "HOME": "/app", "LANG": "C.UTF-8"}


@lru_cache(maxsize=1)
def program() -> bytes:
    """The build program with its length before it, as :data:`BOOTSTRAP` reads it."""
    source = Path(inside.__file__).read_bytes()
    return b"%d\n" % len(source) + source


class Feeder(threading.Thread):
    """Writes program, order and streams into a sandbox's standard input, beside whoever reads what comes out.

    Args:
        order: the build's order; ``streams`` in it names the streams in their order.
        streams: opened one after the other, each when its turn has come.
    """

    def __init__(self, sandbox: Sandbox, order: bytes, streams: Iterable[Iterator[bytes]]) -> None:
        super().__init__(name="feeder", daemon=True)
        self._sandbox = sandbox
        self._order = order
        self._streams = streams
        self.failure: DavitError | None = None

    def run(self) -> None:
        try:
            self._sandbox.stdin.write(program() + self._order + b"\n")
            for stream in self._streams:
                for part in stream:
                    self._sandbox.stdin.write(b"%x\n" % len(part) + part)
                self._sandbox.stdin.write(b"0\n")
        except OSError:
            pass  # the build ended early; how it ended says why
        except DavitError as error:
            self.failure = error
        finally:
            self._sandbox.stdin.close()


def parts(file: IO[bytes]) -> Iterator[bytes]:
    """A file's bytes in parts that suit :class:`Feeder`."""
    while part := file.read(inside.CHUNK):
        yield part
