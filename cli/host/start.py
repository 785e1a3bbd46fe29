"""Starting one of Davit's processes: a session of its own, output into its log file, and nothing that escapes the record."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT_NEEDED = frozenset({"runtime"})
"""The processes that keep root's powers where DAVIT_HOME belongs to another user; every other one runs as that user."""


@dataclass(frozen=True)
class Plan:
    """What to start: ``argv`` with ``environment``, in ``directory``, its output appended to ``log``, as ``user``."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    log: Path
    user: int | None = None


def user_for(name: str, home: Path) -> int | None:
    """The uid that a process changes to: the owner of DAVIT_HOME, unless that is who we are or root is needed."""
    owner = home.stat().st_uid
    return owner if os.geteuid() == 0 and owner != 0 and name not in ROOT_NEEDED else None


class Starter:
    """Starts processes by fork and exec; each waits at a gate until its pid has been written down.

    So the one who starts it may be killed at any moment: either the process is on record, or it ends at the gate.
    """

    def start(self, plan: Plan) -> tuple[int, int]:
        """Start it; returns its pid and the gate, a descriptor for :meth:`release`."""
        waiting, gate = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gate)
            become(plan, waiting)
        os.close(waiting)
        return pid, gate

    def release(self, gate: int) -> None:
        """Let it go on: its pid is on record now."""
        try:
            os.write(gate, b".")
        except BrokenPipeError:
            pass  # it ended at the gate; whoever watches it sees that
        os.close(gate)

    def close(self) -> None:
        """Nothing is held."""


def become(plan: Plan, gate: int) -> NoReturn:
    """In the forked process: wait at the gate, then become the program; never returns."""
    try:
        os.setsid()
        log = os.open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.chdir(plan.directory)
        if os.read(gate, 1) != b".":
            os._exit(1)
        os.close(gate)
        if plan.user is not None:
            _change_user(plan.user, log)
        os.execvpe(plan.argv[0], list(plan.argv), dict(plan.environment))  # noqa: S606 - no shell on purpose
    except BaseException as error:
        os.write(2, f"{plan.name} could not be started: {error}\n".encode())
    os._exit(127)


def _change_user(uid: int, log: int) -> None:
    account = pwd.getpwuid(uid)
    os.fchown(log, account.pw_uid, account.pw_gid)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(uid)


def search_path(environment: Mapping[str, str]) -> str:
    """PATH with the programs of this Python's environment (gunicorn, python) first and the system's always in it."""
    usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    given = environment.get("PATH", "").split(":")
    return ":".join(dict.fromkeys([str(Path(sys.executable).parent), *filter(None, given), *usual]))
