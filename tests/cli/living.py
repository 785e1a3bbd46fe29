"""A Davit that answers: real gunicorn, real Redis, a database, and a runtime that runs one-off dynos as plain processes.

The runtime is a fake because these tests are about the command and the API between it and a person; what it is asked
goes over the real socket, and the descriptors that it hands over are real terminals and pipes.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foundation import wire
from foundation.errors import Conflict
from state import accounts, apps, db, vault
from state.models import App, Dyno, new_id
from tests.api.conftest import Neighbour, give_code
from tests.conftest import wait_until
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent


class Processes:
    """What ``python -m runtime`` answers about one-off dynos, with child processes of this test as dynos."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.terminals: dict[str, int] = {}
        self.used: dict[str, Any] = {}
        self.recorded: list[str] = []

    def handlers(self) -> dict[str, Any]:
        return {
            "oneoff.start": self.start, "oneoff.inside": self.start_inside, "oneoff.wait": self.wait, "oneoff.signal": self.signal,
            "oneoff.connect": self.connect, "oneoff.resize": self.resize, "oneoff.stop": self.stop, "changed": lambda call: None,
            "ping": lambda call: None, "stats": lambda call: {"dynos": self.used},
        }  # fmt: skip

    def start(self, call: wire.Call) -> dict[str, Any]:
        params, id = call.params, new_id()
        name = f"{params['type']}.{len(self.running) + 1000}"
        env = {"PATH": os.environ["PATH"], "DYNO": name, **params["env"]}
        options: dict[str, Any] = {"env": env, "start_new_session": True}
        if params.get("terminal"):
            master, slave = os.openpty()
            _resize(master, *params["terminal"])
            process = subprocess.Popen(
                ["sh", "-c", params["command"]], stdin=slave, stdout=slave, stderr=slave,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options,
            )  # fmt: skip
            os.close(slave)
            call.reply_fds.append(master)
            self.terminals[id] = os.dup(master)
        elif call.fds:
            process = subprocess.Popen(
                ["sh", "-c", params["command"]], stdin=call.fds[0], stdout=call.fds[1], stderr=call.fds[2], **options
            )
            for fd in call.fds:
                os.close(fd)
        else:
            process = subprocess.Popen(
                ["sh", "-c", params["command"]], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options
            )
        self.running[id] = process
        call.at_hangup(lambda: self._hang_up(process))
        with db.transaction() as session:
            session.add(
                Dyno(id=id, app_id=params["app_id"], name=name, type=params["type"], size=params["size"] or "basic",
                     command=params["command"], one_off=True, state="up")
            )  # fmt: skip
        return {"dyno_id": id, "name": name, "size": params["size"] or "basic", "release_id": None, "release_version": 1}

    def start_inside(self, call: wire.Call) -> dict[str, Any]:
        """A further process; which dyno it is in only shows in its environment. ``recorded`` has those that go on record."""
        if call.params["by"]:
            self.recorded.append(call.params["inside"])
        call.params["env"] = {**call.params["env"], "INSIDE": call.params["inside"]}
        return self.start(call)

    def connect(self, call: wire.Call) -> dict[str, Any]:
        """A dyno's ports are this host's here."""
        try:
            line = socket.create_connection(("127.0.0.1", call.params["port"]), 10)
        except ConnectionRefusedError:
            raise Conflict(f"Nothing listens on port {call.params['port']} in that dyno.") from None
        call.reply_fds.append(line.detach())
        return {}

    def _hang_up(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGHUP)

    async def wait(self, call: wire.Call) -> dict[str, Any]:
        process = self.running[call.params["dyno_id"]]
        while (code := process.poll()) is None:  # a thread for each would be fewer than there are commands
            await asyncio.sleep(0.02)
        if (terminal := self.terminals.pop(call.params["dyno_id"], None)) is not None:
            os.close(terminal)
        return {"status": code if code >= 0 else 128 - code, "oom": False}

    def signal(self, call: wire.Call) -> None:
        os.killpg(self.running[call.params["dyno_id"]].pid, call.params["number"])

    def stop(self, call: wire.Call) -> None:
        os.killpg(self.running[call.params["dyno_id"]].pid, signal.SIGTERM)

    def resize(self, call: wire.Call) -> None:
        _resize(self.terminals[call.params["dyno_id"]], call.params["rows"], call.params["columns"])

    def close(self) -> None:
        """End all that still runs."""
        for process in self.running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for terminal in self.terminals.values():
            os.close(terminal)


def _resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Davit:
    """The command line, in a directory and home of its own.

    Attributes:
        work: where commands run.
        log: what its web process has logged.
        env: their environment.
    """

    def __init__(self, home: Path, port: int, work: Path, redis_url: str) -> None:
        self.home, self.work = home, work
        self.log = work / "gunicorn.log"
        self.url = f"http://127.0.0.1:{port}"
        self.processes = Processes()
        self.server: subprocess.Popen[bytes]
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(work), "DAVIT_HOME": str(home), "DAVIT_API": f"127.0.0.1:{port}",
            "REDIS_URL": redis_url, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "LANG": "C.UTF-8",
        }  # fmt: skip

    def start(self) -> None:
        """Start the web process; returns when it answers."""
        threads = [] if "DAVIT_WEB_THREADS" in self.env else ["--threads", "16"]
        self.server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--worker-class", "api.door.Worker", *threads, "--bind", self.env["DAVIT_API"],
             "--no-control-socket", "--graceful-timeout", "5", "--config", "python:api.server", "app:app"],
            cwd=ROOT, env=self.env, stdout=subprocess.DEVNULL, stderr=self.log.open("ab"), start_new_session=True,
        )  # fmt: skip
        wait_until(self._answers, "gunicorn answering")
        assert self.server.poll() is None, self.log.read_text()

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(self.url, timeout=5).status == 200)
        except OSError:
            return self.server.poll() is not None

    def kill(self) -> None:
        """End the web process as a power cut would: master and worker."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def __call__(self, *words: str, input: str = "", check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``davit WORDS``; fails the test when it exits with another status than 0, unless ``check`` is false."""
        done = subprocess.run(
            [ROOT / "bin" / "davit", *words], input=input, capture_output=True, text=True, cwd=self.work,
            env={**self.env, **env}, timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done

    def git(self, *words: str) -> str:
        """Run git."""
        return subprocess.run(["git", *words], cwd=self.work, env=self.env, capture_output=True, text=True, check=True).stdout

    def has_code(self, name: str, types: dict[str, str] | None = None) -> None:
        """As if code had been pushed to the app NAME."""
        from sqlalchemy import select

        with db.snapshot() as session:
            app_id = session.scalar(select(App.id).where(App.name == name))
        assert app_id
        give_code(app_id, types)


@contextmanager
def serving(home: Path, work: Path, redis_url: str, **extra: str) -> Iterator[Davit]:
    """A Davit in ``home`` that answers, with ``extra`` variables; this process's settings must already be those of ``home``."""
    vault.ensure_keys()
    (home / "run").mkdir(exist_ok=True)
    with db.transaction() as session:
        accounts.ensure_owner(session)
    davit = Davit(home, free_port(), work, redis_url)
    davit.env |= extra
    runtime = Neighbour(home / "run" / "runtime.sock", davit.processes.handlers())
    try:
        davit.start()
        yield davit
    finally:
        davit.server.terminate()
        davit.server.wait(15)
        davit.processes.close()
        runtime.close()


def owner_app(name: str) -> str:
    """Make an app of the owner's straight in the database; returns its id."""
    with db.transaction() as session:
        from sqlalchemy import select

        from state.models import Account

        account = session.scalar(select(Account).where(Account.is_admin))
        assert account
        return apps.create(session, account, name).id


@contextmanager
def echoing() -> Iterator[int]:
    """A server that answers in capitals, once it has heard all."""

    def answer() -> None:
        with suppress(OSError):
            while True:
                with listener.accept()[0] as line, line.makefile("rwb") as both:
                    both.write(both.read().upper())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
