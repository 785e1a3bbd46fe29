"""Git over SSH: ``python -m builder.ssh``.

An asyncssh server that knows public keys and two commands. The loop only moves bytes: each session's work is done in a
thread, at the other end of a socket pair, so that a slow database or a long build never holds up another session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
from dulwich.errors import GitProtocolError
from dulwich.protocol import pkt_line

from builder import git, pushes
from builder.platform import Davit, Platform, Pusher, Target
from builder.receive import PusherGone, ReceivePack
from builder.repositories import Bounds, Repositories
from builder.sshserver import CHUNK, OPTIONS, Crowd, KeyServer, ensure_host_key
from foundation import journal
from foundation.errors import BadRequest, DavitError
from foundation.pace import WINDOW_SECONDS, Pace, TooSlow
from foundation.settings import Address, Settings, settings
from logs import announce
from state import identity

log = logging.getLogger("ssh")

_SHOWN = 3
"""Fingerprints that somebody is shown whose keys are all unknown."""
CONNECTIONS = 256
"""Connections at the same time."""
REFUSING = 4
"""Threads for sessions that are told why they are not served."""
LINGER = 8
"""How many times the push limit is read on after a refusal, so that the client gets to read it."""
HELD = 1 << 20
"""Bytes of a session that are held in memory before the client has to wait."""
HOUSEKEEPING = 3600
"""Seconds between two rounds of housekeeping."""

_REPOSITORY = re.compile(r"/?(?:~/)?(?P<name>[^/]+?)(?:\.git)?/?")
_VERSION = re.compile(r"version=[0-2]")
GREETING = "This is Davit's door for git: it knows git push, git fetch and git clone, and no shell."


def parse_command(command: str | None) -> tuple[str, str]:
    """What a client wants to run: (``git-receive-pack`` or ``git-upload-pack``, the app's name).

    Raises:
        BadRequest: anything else, with a sentence.
    """
    try:
        words = shlex.split(command or "")
    except ValueError:
        words = []
    if words[:1] == ["git"] and len(words) == 3:
        words = [f"git-{words[1]}", words[2]]
    if len(words) != 2 or words[0] not in ("git-receive-pack", "git-upload-pack"):
        raise BadRequest(GREETING)
    found = _REPOSITORY.fullmatch(words[1])
    if not found:
        raise BadRequest("Name the app like this: ssh://HOST:PORT/APP.git")
    return words[0], found["name"]


class SshDoor:
    """The server.

    Args:
        repositories, platform: where things are kept, and the rest of Davit.
        limit: bytes that the pack of one push may have.
        host_key: the private host key's file; made when it is missing.
        most: pushes at the same time, and clones and fetches as many; more are refused.
    """

    def __init__(self, repositories: Repositories, platform: Platform, limit: int, host_key: Path, most: int = 48) -> None:
        self.pushes, self.fetches = pushes.places(most), pushes.for_fetches(most)
        self.repositories = repositories
        self.platform = platform
        self.limit = limit
        self.host_key = host_key
        self.crowd = Crowd(CONNECTIONS)
        self._threads = ThreadPoolExecutor(2 * most + REFUSING, thread_name_prefix="git")
        self._asking = ThreadPoolExecutor(4, thread_name_prefix="key")
        self._acceptor: asyncssh.SSHAcceptor | None = None

    async def start(self, address: Address) -> int:
        """Listen; returns the port."""
        ensure_host_key(self.host_key)
        self._acceptor = await asyncssh.create_server(
            lambda: _Connection(self), address.host, address.port,
            server_host_keys=[str(self.host_key)], allow_pty=False, **OPTIONS,
        )  # fmt: skip
        return self._acceptor.get_port()

    async def close(self) -> None:
        """Stop listening and hang up; builds under way go on without their audience."""
        if self._acceptor:
            self._acceptor.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._asking.shutdown(wait=False)

    async def by_key(self, public_key: str) -> Pusher | None:
        return await asyncio.get_running_loop().run_in_executor(self._asking, self.platform.by_key, public_key)

    # A session's work

    def begin(self, session: _Session, worker: socket.socket) -> asyncio.Future[tuple[int, bytes]]:
        """Have the session's command served at the other end of ``worker``'s pair; the result ends the session."""
        assert session.pusher is not None
        return asyncio.get_running_loop().run_in_executor(
            self._threads, self._serve, session.pusher, session.command, session.protocol_version, worker, session.received
        )

    def _serve(
        self, pusher: Pusher, command: str | None, version: str, client: socket.socket, received: Callable[[], int]
    ) -> tuple[int, bytes]:
        """The session's work, in a thread: (exit status, what goes to standard error)."""
        stdin = stdout = client.fileno()
        try:
            try:
                service, name = parse_command(command)
                target = self.platform.app(pusher, name)
                give_back = (self.pushes if service == "git-receive-pack" else self.fetches).take(pusher.account_id)
            except DavitError as error:
                if (command or "").startswith("git"):
                    _write_all(stdout, pkt_line(b"ERR " + error.message.encode()))  # git prints it as "remote error: …"
                    return 1, b""
                return 1, f"{error.message}\n".encode()
            try:
                if service == "git-receive-pack":
                    return self._receive(pusher, target, PipeIncoming(stdin, self.limit * LINGER, received), stdout)
                return self._upload(target, version, stdin, stdout)
            finally:
                give_back()
        except ConnectionError:
            return 1, b""  # the client is gone
        except Exception:
            log.exception("a git session failed")
            return 1, b"Davit failed; its log has the details.\n"
        finally:
            client.close()

    def _receive(self, pusher: Pusher, target: Target, incoming: PipeIncoming, stdout: int) -> tuple[int, bytes]:
        def write(data: bytes) -> None:
            _write_all(stdout, data)

        try:
            ReceivePack(self.repositories, self.platform, pusher, target, incoming, write, limit=self.limit).handle()
        except PusherGone:
            log.info("the pusher is gone; the build goes on", extra={"app": target.name})
        except TooSlow as error:
            return 1, f"{error.message}\n".encode()
        except GitProtocolError:
            return 1, b"Git's request cannot be read.\n"
        return 0, b""

    def _upload(self, target: Target, version: str, stdin: int, stdout: int) -> tuple[int, bytes]:
        repository = self.repositories.ensure(target.app_id)
        env = git.environment(repository)
        if _VERSION.fullmatch(version):
            env["GIT_PROTOCOL"] = version
        # without the time limit, a client that says or reads nothing would have its place for ever
        words = ("upload-pack", "--strict", f"--timeout={round(WINDOW_SECONDS)}", str(repository))
        with git.running(env, *words, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL) as process:
            return process.wait(), b""


class _Connection(KeyServer):
    """Who is at the other end of a connection."""

    def __init__(self, door: SshDoor) -> None:
        super().__init__(door.crowd)
        self._door = door
        self._full: set[_Session] = set()
        self.pusher: Pusher | None = None
        self._strange: dict[str, None] = {}
        self._told = False

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        # Called for a key that is offered and again for the one that has signed, which therefore comes last.
        try:
            self.pusher = await self._door.by_key(key.export_public_key("openssh").decode())
        except DavitError as error:  # asyncssh would end the connection without a word
            log.warning("a key could not be looked up: %s", error.message)
            self.pusher = None
            self._tell(error.message)
        if self.pusher is None:
            self._strange[key.get_fingerprint()] = None
        return self.pusher is not None

    def kbdint_auth_supported(self) -> bool:
        return True  # nobody gets in by it: clients come to it when all their keys are refused, and only then can be told so

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> bool:
        shown = ", ".join(list(self._strange)[:_SHOWN])
        which = f"Davit knows none of your SSH keys ({shown})" if shown else "Your SSH client offered no key"
        self._tell(f"{which}. Add one by: davit keys:add ~/.ssh/id_ed25519.pub (davit keys lists those that are known)")
        return False

    def _tell(self, sentence: str) -> None:
        """What a person reads before they are let in or refused; once."""
        if not self._told:
            self._told = True
            self._conn.send_auth_banner(f"{sentence}\n")

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        return _Session(self._door, self)

    def full(self, session: _Session, is_full: bool) -> None:
        """Read on from the network only while no session has too much that is not yet worked on.

        asyncssh's own pausing does not bound what it holds: each piece that it delivers opens the whole window again, also
        while older pieces wait. So the connection below it is paused, for which there is no public way.
        """
        (self._full.add if is_full else self._full.discard)(session)
        transport = self._conn._transport
        if isinstance(transport, asyncio.ReadTransport) and not transport.is_closing():
            if self._full:
                transport.pause_reading()
            else:
                transport.resume_reading()


class _Session(asyncssh.SSHServerSession[bytes]):
    """One command of a client: what it sends goes to a worker's socket, what the worker answers goes back."""

    def __init__(self, door: SshDoor, connection: _Connection) -> None:
        self._door = door
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._held = self._received = 0
        self._ended = self._over = False
        self._something = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None
        self.pusher = connection.pusher
        self.command: str | None = None
        self.protocol_version = ""

    def received(self) -> int:
        """Bytes that the client has sent so far."""
        return self._received

    # What the client does

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def shell_requested(self) -> bool:
        return True  # it is greeted, and told that there is none

    def exec_requested(self, command: str) -> bool:
        self.command = command
        return True

    def session_started(self) -> None:
        self.protocol_version = dict(self._channel.get_environment()).get("GIT_PROTOCOL", "")
        self._task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._over:
            return  # nobody will read it
        self._pieces.append(data)
        self._held += len(data)
        self._received += len(data)
        if self._held > HELD:
            self._connection.full(self, True)
        self._something.set()

    def eof_received(self) -> bool:
        self._ended = True
        self._something.set()
        return True  # the answer is still to come

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.full(self, False)
        if self._task:
            self._task.cancel()

    # What is done about it

    async def _run(self) -> None:
        """Have the command served, and hang up with its status."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        reading = asyncio.get_running_loop().create_task(self._from_client(ours))
        try:
            work = self._door.begin(self, theirs)
            await self._to_client(ours)
            status, last_words = await work
            if last_words:
                self._channel.write_stderr(last_words)
            self._channel.exit(status)
        except OSError as error:
            log.info("a session broke off", extra={"why": type(error).__name__})
            self._channel.abort()
        finally:
            self._over = True
            self._connection.full(self, False)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            ours.close()  # whoever still works at the other end reads an end, and cannot write

    async def _from_client(self, worker: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._pieces:
                data = self._pieces.popleft()
                await loop.sock_sendall(worker, data)
                self._held -= len(data)
                if self._held <= HELD // 2:
                    self._connection.full(self, False)
            if self._ended:
                worker.shutdown(socket.SHUT_WR)
                return
            self._something.clear()
            await self._something.wait()

    async def _to_client(self, worker: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(worker, CHUNK):
            await self._writable.wait()
            self._channel.write(data)


class PipeIncoming:
    """The client's bytes in a pipe or socket; git reads the pack from the same descriptor.

    Args:
        linger: bytes that are read on after a refusal.
        received: how many the client has sent so far, whether somebody has read them or not.
        pace: what is demanded of the client.
    """

    declared: int | None = None

    def __init__(self, fd: int, linger: int, received: Callable[[], int], pace: Pace | None = None) -> None:
        self._fd = fd
        self._linger = linger
        self._received = received
        self._seen = 0
        self._pace = pace or Pace()

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self._read(size - len(data))):
            data += more
        return data

    def pack(self) -> Callable[[int], bytes] | int:
        return self._fd

    def waited(self, seconds: float) -> None:
        before, self._seen = self._seen, self._received()
        self._pace.heard(self._seen - before, seconds)

    def drain(self) -> None:
        with contextlib.suppress(TooSlow):
            while self._linger > 0 and (data := self._read(65536)):
                self._linger -= len(data)

    def _read(self, size: int) -> bytes:
        """Raises TooSlow."""
        ready = select.poll()
        ready.register(self._fd, select.POLLIN)
        there = False
        while not there:
            begun = time.monotonic()
            there = bool(ready.poll(1000))
            self.waited(time.monotonic() - begun)
        return os.read(self._fd, size)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _make_host_key_apart(path: Path) -> None:
    """:func:`ensure_host_key` in a process of its own: this one is spared what making a key takes, for as long as it runs."""
    if path.exists():
        return
    pid = os.fork()
    if pid == 0:
        try:
            ensure_host_key(path)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


async def serve(door: SshDoor, address: Address) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    port = await door.start(address)
    log.info("listening", extra={"address": Address(address.host, port)})
    await stop.wait()
    await door.close()


def _keep_house(repositories: Repositories, platform: Platform) -> None:
    """Bring order in at the start, and then every hour: another process may have been killed in the meantime."""
    while True:
        try:
            identity.confirm()
            repositories.housekeeping(platform.standing)
        except Exception:
            log.exception("housekeeping failed; it will be tried again")
        time.sleep(HOUSEKEEPING)


def main(configuration: Settings | None = None) -> None:
    """The process: bring order in, and serve."""
    journal.start("ssh")
    announce.install()
    chosen = configuration or settings()
    _make_host_key_apart(chosen.home / "keys" / "ssh_host_ed25519")
    platform = Davit()
    repositories = Repositories(chosen.home / "repos", Bounds.of(chosen))
    threading.Thread(target=_keep_house, args=(repositories, platform), daemon=True).start()
    host_key = chosen.home / "keys" / "ssh_host_ed25519"
    door = SshDoor(repositories, platform, chosen.push_limit << 20, host_key, chosen.pushes)
    asyncio.run(serve(door, chosen.ssh))
    os._exit(0)  # threads that relay a build would keep the process alive; their builds do not need them


if __name__ == "__main__":
    main()
