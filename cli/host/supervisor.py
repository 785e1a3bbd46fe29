"""``davit up``'s core: keeps Davit's processes running; one for each DAVIT_HOME.

It loads the modules of all its processes once and forks each from itself, so that they share that memory: together they
take about half of what they would take apart, and one that dies is back without loading anything.

When it is killed, its processes go on; the next supervisor finds them in the record (:mod:`cli.host.record`), adopts
those that were started with the same command and environment, and replaces the others. Dynos and HAProxy are not its
children and never notice.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cli.host import logfiles, procfile, record
from cli.host.processes import Identity, descendants, session_members, stop
from cli.host.start import Become, Plan, Starter, become, preload, user_for
from foundation.clock import now

HEALTHY = 60.0
"""Seconds after which a process counts as healthy again: its next end is its first."""
SLOWEST = 30.0
"""Seconds between two starts at the most."""
PATIENCE = 15.0
"""Seconds that a process has to end in order."""
TIDY = 30.0
"""Seconds between two looks at the log files' sizes."""
LEAVES_CHILDREN = frozenset({"router", "runtime"})
"""Their children (HAProxy, dynos) serve on without them, by design; every other process ends with all that it started."""
LAST = "redis"
"""Stopped after the others, which speak to it until they end."""


def delay(failures: int) -> float:
    """Seconds to wait before the next start, after so many ends in a row: at once, then doubling up to the slowest."""
    return 0.0 if failures <= 1 else min(SLOWEST, 2.0 ** (failures - 2))


def fingerprint(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Says whether a running process was started as it would be now; a checksum (hashlib would bring OpenSSL's memory in)."""
    return f"{zlib.crc32(json.dumps([list(argv), sorted(environment.items())]).encode()):08x}"


class Child:
    """A process of Procfile as the supervisor sees it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.entry = record.Entry(plan.name, fingerprint=fingerprint(plan.argv, plan.environment))
        self.pidfd: int | None = None
        self.failures = 0
        self.due = 0.0
        self.began = 0.0

    def watch(self, process: Identity, since: float) -> None:
        """It runs as ``process``.

        Args:
            since: seconds since the epoch, for people. How long it lived is counted by a clock that nobody sets.
        """
        self.pidfd = os.pidfd_open(process.pid)
        self.began = time.monotonic()
        self.entry.process, self.entry.state, self.entry.since = process, "running", since

    def ended(self) -> str:
        """It has ended: plan the next start; returns how it ended, for the log."""
        assert self.pidfd is not None and self.entry.process is not None
        os.close(self.pidfd)
        self.pidfd = None
        lived = time.monotonic() - self.began
        self.failures = 1 if lived >= HEALTHY else self.failures + 1
        self.due = time.monotonic() + delay(self.failures)
        how = _reap(self.entry.process.pid)
        self.entry.process, self.entry.state, self.entry.since = None, "waiting", time.time()
        return f"{how} after {lived:.0f} s; starting it again {_when(delay(self.failures))}"

    def not_started(self) -> float:
        """It could not be started: plan the next try; returns the seconds until then."""
        self.failures += 1
        pause = max(1.0, delay(self.failures))
        self.due = time.monotonic() + pause
        self.entry.state = "waiting"
        return pause


def _when(seconds: float) -> str:
    return f"in {seconds:.0f} s" if seconds else "at once"


def _reap(pid: int) -> str:
    try:
        _, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return "ended"  # adopted: its exit status went to another parent
    code = os.waitstatus_to_exitcode(status)
    return f"ended with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


class Supervisor:
    """Runs the plans until it is told to stop.

    Args:
        run: DAVIT_HOME/run.
        plans: what to run, in this order.
        echo: where the processes' output is shown as it comes (a terminal); None: only in the log files.
    """

    def __init__(self, run: Path, plans: Sequence[Plan], starter: Starter, echo: logfiles.Echo | None = None) -> None:
        self.run_directory = run
        self.starter = starter
        self.echo = echo
        self.children = [Child(plan) for plan in plans]
        self.identity = Identity.of(os.getpid())
        self.stopping = False
        self._unwritten = False

    def run(self) -> None:
        """Supervise: take over what lives, start the rest, watch, and stop everything in order when told to.

        A full disk, or a machine without memory, processes or descriptors, ends what needs this most: then it is tried again.
        """
        with self._told_by_signals() as bell:
            self._take_over()
            while not self.stopping:
                try:
                    self._start_due()
                    self._wait(bell)
                    self._look_after_logs()
                except OSError as error:
                    self._say(f"{error}; going on in a second")
                    time.sleep(1)
            self._stop_all()

    @contextlib.contextmanager
    def _told_by_signals(self) -> Iterator[socket.socket]:
        """SIGTERM and SIGINT end the loop; yields a socket that becomes readable when one has come."""
        bell, ringer = socket.socketpair()
        bell.setblocking(False)
        ringer.setblocking(False)
        signal.set_wakeup_fd(ringer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal went away; `davit down` is how to stop
        try:
            yield bell
        finally:
            signal.set_wakeup_fd(-1)
            bell.close()
            ringer.close()

    def _told_to_stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def _take_over(self) -> None:
        before = {entry.name: entry for entry in record.read(self.run_directory).living()}
        for child in self.children:
            entry = before.get(child.plan.name)
            if entry and entry.process and entry.fingerprint == child.entry.fingerprint:
                with contextlib.suppress(ProcessLookupError):
                    child.watch(entry.process, entry.since)
                    child.entry.restarts = entry.restarts
                    del before[child.plan.name]
                    self._say(f"{child.plan.name} runs on as process {entry.process.pid}")
        end(list(before.values()))
        self._note()

    def _start_due(self) -> None:
        for child in self.children:
            if child.entry.state != "running" and child.due <= time.monotonic():
                self._start(child)

    def _start(self, child: Child) -> None:
        again = child.entry.state == "waiting"
        try:
            pid, gate = self.starter.start(child.plan)
        except Become:
            for other in self.children:
                if other.pidfd is not None:
                    os.close(other.pidfd)  # the new process has no business with them
            raise
        except OSError as error:
            return self._say(f"{child.plan.name} cannot be started: {error}; again {_when(child.not_started())}")
        try:
            process = Identity.of(pid)
            assert process is not None, "a process at the gate cannot have ended"
            child.watch(process, time.time())
        except OSError as error:
            os.close(gate)  # at which it ends
            os.waitpid(pid, 0)
            return self._say(f"{child.plan.name} cannot be watched: {error}; again {_when(child.not_started())}")
        child.entry.restarts += again
        self._note()
        self.starter.release(gate)

    def _wait(self, bell: socket.socket) -> None:
        """Sleep until a process ends, a signal comes, a start is due, or it is time to look at the log files."""
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        watched = {child.pidfd: child for child in self.children if child.pidfd is not None}
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        pauses = [child.due - time.monotonic() for child in self.children if child.entry.state == "waiting"]
        longest = self.echo.pause if self.echo else TIDY
        for descriptor, _ in poll.poll(max(0.0, min([longest, *pauses])) * 1000):
            if descriptor == bell.fileno():
                bell.recv(4096)
            elif not self.stopping:
                self._ended(watched[descriptor])

    def _ended(self, child: Child) -> None:
        """A process has ended by itself: clear what it left running, so that its successor finds ports and locks free."""
        assert child.entry.process is not None
        leader = child.entry.process.pid
        self._say(f"{child.plan.name} {child.ended()}")
        if child.plan.name not in LEAVES_CHILDREN:
            stop(session_members(leader), 2.0)
        self._note()

    def _look_after_logs(self) -> None:
        if self._unwritten:
            self._note()
        if self.echo:
            self.echo.show()
        for child in self.children:
            logfiles.rotate(child.plan.log)

    def _stop_all(self) -> None:
        self._say("stopping")
        living = [child.entry for child in self.children if child.pidfd is not None]
        end([entry for entry in living if entry.name != LAST])
        end([entry for entry in living if entry.name == LAST])
        for entry in living:
            entry.state, entry.process, entry.since = "stopped", None, time.time()
        self._note()
        if self.echo:
            self.echo.show()

    def _note(self) -> None:
        """Write the record; without room for it now, later: a process that serves unrecorded is better than none."""
        try:
            record.write(self.run_directory, record.Record(self.identity, [child.entry for child in self.children]))
            self._unwritten = False
        except OSError as error:
            if not self._unwritten:
                self._say(f"the record of the processes cannot be written: {error}")
            self._unwritten = True

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a log without room
            print(f"{now():%Y-%m-%dT%H:%M:%S} davit: {text}", file=sys.stderr, flush=True)


def end(entries: Sequence[record.Entry]) -> None:
    """Stop recorded processes, and what they started unless it is made to outlive them; returns when they are gone."""
    pids = [entry.process.pid for entry in entries if entry.process and entry.process.lives()]
    whole = [entry.process.pid for entry in entries if entry.process and entry.name not in LEAVES_CHILDREN]
    below = descendants(set(whole) & set(pids))
    stop(pids, PATIENCE)
    stop(below, 1.0)


def plans(home: Path, checkout: Path, environment: Mapping[str, str]) -> list[Plan]:
    """What to run: Procfile's lines, each with DAVIT_PROCESS saying which it is."""
    found = []
    for name, argv in procfile.wanted(checkout, environment).items():
        own = {**environment, "DAVIT_PROCESS": name}
        found.append(Plan(name, argv, own, checkout, home / "log" / f"{name}.log", user_for(name, home)))
    return found


def main() -> None:
    """``python -m cli.host.supervisor [--foreground] [--exec]``; a process forked from it becomes its own program here."""
    try:
        supervise()
    except Become as forked:
        become(forked.plan, forked.gate)


def supervise() -> None:
    """The supervisor: the environment is complete, the home prepared (:mod:`cli.host.updown`).

    With ``--exec`` every process loads its modules itself: more memory, slower starts, nothing shared.
    """
    home, checkout = Path(os.environ["DAVIT_HOME"]), Path(__file__).resolve().parents[2]
    run = home / "run"
    with record.sole(run) as alone:
        if not alone:
            sys.exit(f"Davit is already running in {home}.")
        planned = plans(home, checkout, os.environ)
        if "--exec" not in sys.argv:
            preload(planned)
        echo = logfiles.Echo([plan.log for plan in planned]) if "--foreground" in sys.argv else None
        Supervisor(run, planned, Starter(), echo).run()


if __name__ == "__main__":
    main()
