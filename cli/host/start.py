"""Starting one of Davit's processes: a session of its own, output into its log file, and nothing that escapes the record."""

from __future__ import annotations

import importlib
import logging
import os
import pwd
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cli.host import memory
from foundation.settings import settings

log = logging.getLogger("supervisor")

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


class Become(BaseException):
    """Raised in a forked process to unwind the supervisor's stack in it; at the bottom :func:`become` turns it into the plan."""

    def __init__(self, plan: Plan, gate: int) -> None:
        super().__init__(plan.name)
        self.plan = plan
        self.gate = gate


class Starter:
    """Starts processes by fork; each waits at a gate until its pid has been written down.

    So the one who starts it may be killed at any moment: either the process is on record, or it ends at the gate.
    """

    def start(self, plan: Plan) -> tuple[int, int]:
        """Start it; returns its pid and the gate, a descriptor for :meth:`release`.

        Raises:
            Become: in the new process, which has to pass it to :func:`become`.
            OSError: the machine has no room for it.
        """
        waiting, gate = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(waiting)
            os.close(gate)
            raise
        if pid == 0:
            os.close(gate)
            raise Become(plan, waiting)
        os.close(waiting)
        return pid, gate

    def release(self, gate: int) -> None:
        """Let it go on: its pid is on record now."""
        try:
            os.write(gate, b".")
        except BrokenPipeError:
            pass  # it ended at the gate; whoever watches it sees that
        os.close(gate)


def preload(plans: Sequence[Plan]) -> None:
    """Load the Python modules of all plans, so that the processes forked from here share their memory and start at once."""
    for name in [module for plan in plans if (module := _module(plan)) is not None]:
        package = hasattr(importlib.import_module(name), "__path__")
        program = f"{name}.__main__" if package else name
        importlib.import_module(program)
        del sys.modules[program]  # it runs under the name __main__ later
    for name in _BY_NAME:
        importlib.import_module(name)
    if "builder.worker" in map(_module, plans):
        _prepare_tables()
    memory.settle()


_BY_NAME = ("gunicorn.app.wsgiapp", "api.door", "app", "encodings.idna")
"""What is loaded by name only, so that importing the programs does not bring it. Not api.server: it looks whose process it is."""


def _prepare_tables() -> None:
    """Have SQLAlchemy work out once what every process needs at its first query."""
    from builder import rehearsal
    from state import db

    try:
        rehearsal.rehearse()
    except Exception:  # a database that is away: those who need it wait for it, and say so
        log.warning("the database could not be asked before the start", exc_info=True)
    finally:
        db.engine().dispose()


def _module(plan: Plan) -> str | None:
    """The module of a plan that is ``python -m MODULE …``."""
    return plan.argv[2] if list(plan.argv[:2]) == ["python", "-m"] else None


def become(plan: Plan, gate: int) -> NoReturn:
    """In the forked process, at the bottom of its stack: wait at the gate, then be the program; never returns.

    A Python program whose modules were loaded before runs here and now, others are executed.
    """
    _detach(plan)
    if os.read(gate, 1) != b".":
        os._exit(1)
    os.close(gate)
    try:
        if plan.user is not None:
            _change_user(plan.user)
        module = _module(plan)
        if module is None or f"{module.partition('.')[0]}" not in sys.modules:
            os.execvpe(plan.argv[0], list(plan.argv), dict(plan.environment))  # noqa: S606 - no shell on purpose
    except BaseException as error:
        os.write(2, f"{plan.name} could not be started: {error}\n".encode())
        os._exit(127)
    _run_module(module, plan)


def _detach(plan: Plan) -> None:
    """A session of its own, output into the log file, signals as a new process has them."""
    os.setsid()
    log = os.open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if plan.user is not None:
        os.fchown(log, plan.user, -1)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(plan.directory)


def _run_module(module: str, plan: Plan) -> NoReturn:
    """Be ``python -m MODULE …`` in this interpreter: its name, environment, arguments and signals, then the module itself."""
    from setproctitle import setproctitle

    setproctitle(f"davit: {plan.name}")
    os.environ.clear()
    os.environ.update(plan.environment)
    settings.cache_clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python sets it for itself: writing answers with an error
    sys.argv = list(plan.argv[2:])
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _change_user(uid: int) -> None:
    account = pwd.getpwuid(uid)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(uid)


def search_path(environment: Mapping[str, str]) -> str:
    """PATH with the programs of this Python's environment (gunicorn, python) first and the system's always in it."""
    usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    given = environment.get("PATH", "").split(":")
    return ":".join(dict.fromkeys([str(Path(sys.executable).parent), *filter(None, given), *usual]))
