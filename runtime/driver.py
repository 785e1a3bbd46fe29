"""The interface between the formation manager and what isolates a dyno (container, microVM, unikernel).

A driver knows nothing of apps, releases or the database: it is given a :class:`DynoSpec` and keeps one dyno alive exactly
as long as its command runs. All methods are called from the runtime process's asyncio loop; blocking work goes to
threads inside the driver.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from foundation.errors import DavitError

BUILD = "build-"
"""What the ids of build sandboxes begin with; all others are dynos'."""


Hold = Callable[[], AbstractAsyncContextManager[str | None]]
"""Keeps requests from a dyno for as long as it is entered; gives why they cannot be kept from it, nothing when they are."""


class Unsupported(DavitError):
    """An isolation cannot do what is asked of it, or cannot be had on this host; the sentence says which and what can."""

    id, status = "unsupported_isolation", 422


@dataclass(frozen=True)
class Limits:
    """What a dyno may use.

    Attributes:
        memory: bytes that it is promised (the size's RAM); above it R14 is reported.
        memory_max: bytes at which the kernel ends it.
        cpu_shares: relative weight, 1024 for one standard share.
        cpu_quota: CPUs at the most (2.0 = two cores); None for no cap.
        pids: processes and threads at the most.
        disk: bytes of its writable layer.
    """

    memory: int
    memory_max: int
    cpu_shares: int = 1024
    cpu_quota: float | None = None
    pids: int = 256
    disk: int = 1 << 30


@dataclass(frozen=True)
class Bind:
    """A host file or directory shown inside, idmapped so that its owner appears as the dyno's user (uid 1000)."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class DynoSpec:
    """All that a driver needs to start a dyno.

    Attributes:
        id: unique for ever; names its directory ``run/dynos/ID``, its cgroup and its container.
        name: ``web.1``: the dyno's host name.
        app: the app's name, for people who read process lists; the cgroup is ``…/APP_ID/ID``.
        app_id: the app's identifier.
        stack: the stack image to run on (a file that :mod:`slugs.image` can mount).
        slug: the slug image, whose ``app/`` becomes /app; None for a dyno with an empty /app.
        command: argv inside. Contains no secrets; those are in ``env``.
        env: the whole environment. Secrets: never logged, never on a command line.
        limits: see :class:`Limits`.
        port: what a web dyno must listen on; None for others.
        terminal: (rows, columns) when it gets a terminal instead of the two FIFOs.
        stdio: three descriptors to use as standard input, output and error instead of FIFOs (one-off dynos, builds).
        binds: further directories.
        network: whether it gets a network at all.
        readonly: no writable layer: the whole root is read-only (/tmp excepted).
        isolation: the driver that is to start it, a name of :mod:`state.isolations`.
        line: the Procfile's line as it was written, which ``command`` hands to bash: for drivers that have no bash.
        allowed: whether it may reach the private addresses that DAVIT_DYNOS_ALLOW names: an app's dyno does, a build does not.
    """

    id: str
    name: str
    app: str
    app_id: str
    stack: Path
    slug: Path | None
    command: Sequence[str]
    env: Mapping[str, str]
    limits: Limits
    port: int | None = None
    terminal: tuple[int, int] | None = None
    stdio: tuple[int, int, int] | None = None
    binds: Sequence[Bind] = field(default_factory=tuple)
    network: bool = True
    readonly: bool = False
    isolation: str = "container"
    line: str | None = None
    allowed: bool = False


@dataclass(frozen=True)
class Exit:
    """How a dyno ended: ``status`` as a shell gives it (128 + signal for a signal), None when nobody could know
    (it ended while the runtime process was down, or an earlier one had started it, and the kernel does not keep it); ``why``: a
    sentence for the app's log where the status does not say it, as when a virtual machine's kernel gave up; ``watched``: it ended
    before the eyes of this runtime process, though with no status."""

    status: int | None
    oom: bool = False
    why: str = ""
    watched: bool = False

    @property
    def by_itself(self) -> bool:
        """Whether it ended by itself, not with an earlier runtime process, as in a power cut."""
        return self.status is not None or self.watched


@dataclass(frozen=True)
class Stats:
    """What a dyno uses now: bytes of memory (page cache left out), bytes of its writable layer, CPU seconds so far,
    processes, how often the kernel ended something in it for want of memory, and for how many seconds its own kernel has been up,
    where that tells."""

    memory: int
    disk: int
    cpu: float
    pids: int
    ooms: int
    uptime: float | None = None


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket inside the dyno: ``address`` as text, ``port``."""

    address: str
    port: int


class RunningDyno(Protocol):
    """A dyno that was started and not yet forgotten."""

    spec_id: str
    slot: int
    address: str | None
    pid: int
    terminal_fd: int | None

    async def wait(self) -> Exit:
        """Return when it has ended; may be awaited by several, and again afterwards."""

    async def signal(self, number: int, everyone: bool = False) -> None:
        """Send a signal to its command (through its init) or to every process in it; no error when it has ended.

        SIGTERM to everyone lets everyone end: when its command has ended, the dyno stays until the last of the processes
        that came of it has, and ends with the command's status then. Whoever sent it ends the rest after the grace period.
        """

    async def resize_terminal(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""

    async def exec(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        terminal: tuple[int, int] | None = None,
        stdio: tuple[int, int, int] | None = None,
    ) -> RunningDyno:
        """Run a further command inside it, as its user and within its limits."""

    async def connect(self, port: int) -> socket.socket:
        """A TCP connection to one of its own ports, as from within itself.

        Returns:
            a socket that does not block, the caller's to close.

        Raises:
            Conflict: nothing listens there.
            DavitError: it has ended, or has no network.
        """
        raise Unsupported("Nothing is forwarded into that.")

    async def update(self, limits: Limits) -> None:
        """Change its limits while it runs, up or down (the size of its file system stays); returns when they are in force.

        Raises:
            Unsupported: it cannot be done without a restart; nothing has changed then.
        """

    async def migrate(self, hold: Hold) -> float:
        """Move it, running, to another process that carries it on with all that it has in memory, at the same address.

        ``pid`` is another afterwards. When it fails it runs on where it was, or (once it ran at the other end) has ended.

        Args:
            hold: entered before it stands still, left when it runs again; where it keeps nothing from it, it is not moved.

        Returns:
            seconds for which it stood still.

        Raises:
            Unsupported: its isolation has no such thing.
            DavitError: it could not be moved; the sentence says whether it runs on.
        """
        raise Unsupported("Only microVMs can be moved while they run; `davit ps:isolation TYPE=microvm` makes it one.")

    async def suspend(self, to: Path) -> None:
        """Write all that it is into the new directory ``to`` and end it: :meth:`wait` returns, :meth:`remove` is still due.

        What is written holds the dyno's memory, secrets too: files are 0600. When it fails it runs on, and ``to`` is gone.

        Raises:
            Unsupported: its isolation has no such thing.
            DavitError: it could not be written.
        """
        raise Unsupported("Only microVMs can be put aside as they are.")

    def listeners(self) -> list[Listener]:
        """Its listening TCP sockets, read without touching it."""

    def stats(self) -> Stats:
        """What it uses now."""

    async def remove(self) -> None:
        """End it if it still runs, then take away all that was made for it; idempotent."""


class Driver(Protocol):
    """One kind of isolation, on a host (:class:`runtime.host.Host`) that is open already.

    Attributes:
        isolation: its name; its dynos' records (:mod:`runtime.dynodir`) carry it.
    """

    isolation: ClassVar[str]

    async def open(self) -> None:
        """Look whether this host can do it, and prepare what its first dyno needs; idempotent.

        Called before the first dyno of this isolation, not when the runtime starts: a host pays for what it uses.

        Raises:
            DavitError: it cannot be had here (program missing or too old, …); the sentence says what to do. It is asked
                again with the next dyno.
        """

    async def start(self, spec: DynoSpec) -> RunningDyno:
        """Start a dyno; returns as soon as its command runs.

        Raises:
            DavitError: it could not be started; nothing is left behind.
        """

    async def resume(self, spec: DynoSpec, snapshot: Path) -> RunningDyno:
        """Start a dyno from what :meth:`RunningDyno.suspend` wrote; ``snapshot`` is gone afterwards, however it went.

        ``spec`` has the same slug, stack, command, environment and limits as the dyno that was put aside.

        Raises:
            Unsupported: this isolation has no such thing.
            DavitError: the snapshot is broken or from another version; nothing runs. The caller starts the dyno anew.
        """
        raise Unsupported("Only microVMs can be woken as they were.")

    async def adopt(self) -> Sequence[RunningDyno]:
        """The dynos that an earlier runtime process started and that are still there (running or just ended): those that
        :meth:`runtime.host.Host.claim` gives for this isolation."""

    async def close(self, stop_dynos: bool) -> None:
        """Let go of everything, dynos run on; with ``stop_dynos`` also end all dynos, those nobody adopted included."""
