"""``heroku ps:exec``: an SSH server that opens a shell in a dyno that runs, at the address of ``DAVIT_EXEC``.

The command asks ``PUT /api/v2/DYNO`` (:mod:`api.resources.exec_manager`) with a fresh public key, and is told a host, a user name
and the server's key. Then it comes here, to port 80 of that host: the command knows no other port. The user name is a ticket:
signed, good for a minute and for that key only, so nothing has to be remembered. Who comes with it gets a command in the dyno as
by ``run:inside``, with the permission asked for once more. The ``davit`` command needs none of this.

The loop only moves bytes; each session is an :class:`api.attach.Peer` in a thread, at the other end of a socket pair.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncssh

from api import attach
from api.attach import EndOfInput, Input, Order
from api.websocket import WAIT
from builder.ssh import ensure_host_key
from foundation.errors import DavitError, NotFound
from foundation.settings import Address, settings
from state import apps, formation, signatures
from state.db import snapshot
from state.models import Account

log = logging.getLogger("web")

TICKET_SECONDS = 60
SESSIONS = 16
"""At the same time; more wait for their turn, within the login's time."""
CONNECTIONS = 64
CHUNK = 65536
SHELL = "bash"
_KIND = "exec"


def host_key() -> Path:
    """The server's private key: the one of git's door, which people may know already."""
    return settings().home / "keys" / "ssh_host_ed25519"


def public_host_key() -> str:
    """``TYPE BASE64`` of the server's key."""
    ensure_host_key(host_key())
    kind, data, *_ = asyncssh.read_private_key(str(host_key())).export_public_key("openssh").decode().split()
    return f"{kind} {data}"


def ticket(app_id: str, dyno_id: str, account_id: str, client_key: str) -> str | None:
    """The user name to come with; None when ``client_key`` is no public key."""
    try:
        key = asyncssh.import_public_key(client_key)
    except (asyncssh.KeyImportError, ValueError):
        return None
    what = {"app": app_id, "dyno": dyno_id, "account": account_id, "key": key.get_fingerprint()}
    return signatures.sign(_KIND, what, TICKET_SECONDS)


class Piped:
    """A client's side of a bridge (:class:`api.attach.Peer`): plain bytes in both directions.

    Args:
        sock: one end of a pair; its other end is the SSH session's.
    """

    ready = True

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.setblocking(False)
        self.pending = bytearray()
        self.status: int | None = None
        self.gone, self.input_over = threading.Event(), threading.Event()
        self._ended = self._told = False

    @property
    def open(self) -> bool:
        """Whether the client is there; that its input has ended does not mean that it has gone."""
        return not self.gone.is_set()

    @property
    def lingers(self) -> bool:
        """Whether the client is still to end its input: the heroku command, without a terminal of its own, crashes when the
        channel is closed before it has sent the 0x04 that ends it.
        """
        return self.open and not self._ended

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    def tick(self) -> Iterator[Order]:
        """The end of the input, which is told beside the socket: one that is shut down would be ready to be read for ever."""
        if self.input_over.is_set() and not self._told:
            try:
                self.socket.recv(1, socket.MSG_PEEK)
            except WAIT:
                self._told = self._ended = True
                yield EndOfInput()
            except OSError:
                self.gone.set()

    def receive(self) -> Iterator[Order]:
        """What was typed."""
        try:
            data = self.socket.recv(CHUNK)
        except WAIT:
            return
        except OSError:
            data = b""
        if data:
            self._ended = data.endswith(b"\x04")
            yield Input(data)
        else:
            self.gone.set()

    def output(self, stream: int, data: bytes) -> None:
        """Queue what the command wrote; both streams are one here."""
        self.pending += data

    def goodbye(self, status: int | None) -> None:
        """The status goes by the channel, after the output."""
        self.status = status

    def flush(self) -> None:
        """Write what the socket takes."""
        try:
            while self.pending:
                del self.pending[: self.socket.send(self.pending[:CHUNK])]
        except WAIT:
            pass
        except OSError:
            self.gone.set()
            self.pending.clear()


class _Connection(asyncssh.SSHServer):
    """Who is at the other end of a connection."""

    def __init__(self, door: Tunnel) -> None:
        self._door = door
        self.what: dict[str, Any] = {}

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._door.connections += 1
        if self._door.connections > CONNECTIONS:
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.connections -= 1

    def begin_auth(self, username: str) -> bool:
        try:
            self.what = signatures.read(_KIND, username)
        except NotFound:
            self.what = {}
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return False

    def kbdint_auth_supported(self) -> bool:
        return False

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return bool(self.what) and key.get_fingerprint() == self.what["key"]

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        return _Session(self._door, self.what)


class _Session(asyncssh.SSHServerSession[bytes]):
    """A shell or one command, in the dyno that the ticket names."""

    def __init__(self, door: Tunnel, what: dict[str, Any]) -> None:
        self._door, self._what = door, what
        self._command = SHELL
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._peer = Piped(theirs)
        self._from_client: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Any) -> bool:
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def session_started(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._from_client.put_nowait(data)
        if self._from_client.qsize() > 64:
            self._channel.pause_reading()

    def eof_received(self) -> bool:
        self._from_client.put_nowait(None)
        return True

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer.gone.set()  # the command gets SIGHUP when its attachment is closed
        if self._task:
            self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        sending = loop.create_task(self._to_command())
        try:
            work = loop.run_in_executor(self._door.threads, self._attached, self._terminal(), self._channel.get_terminal_type())
            while data := await loop.sock_recv(self._ours, CHUNK):
                await self._writable.wait()
                self._channel.write(data)
            refusal = await work
            if refusal:
                self._channel.write(f"{refusal}\r\n".encode())
            self._channel.exit(self._peer.status if self._peer.status is not None else 1)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self._ours.close()

    def _terminal(self) -> tuple[int, int] | None:
        """Rows and columns of the client's terminal; None where it has none."""
        if self._channel.get_terminal_type() is None:
            return None
        columns, rows = self._channel.get_terminal_size()[:2]
        return max(1, min(rows or 24, 10_000)), max(1, min(columns or 80, 10_000))

    async def _to_command(self) -> None:
        loop = asyncio.get_running_loop()
        while (data := await self._from_client.get()) is not None:
            await loop.sock_sendall(self._ours, data)
            if self._from_client.qsize() < 16:
                self._channel.resume_reading()
        self._peer.input_over.set()

    def _attached(self, size: tuple[int, int] | None, term: str | None) -> str:
        """In a thread: run the command, with the client attached to it until it ends; why not, or nothing."""
        try:
            if self._peer.open:
                params = {**begin(self._what), "command": self._command, "env": _environment(size, term)}
                attachment = attach.start(self._what["account"], params, size, call="oneoff.inside")
                log.info("attached by ssh", extra={"dyno": attachment.dyno_id})
                attach.carry(self._peer, attachment)
            return ""
        except DavitError as error:
            return error.message
        except Exception:
            log.exception("a session of ps:exec failed")
            return "Davit failed; its log has the details."
        finally:
            self._peer.socket.close()


def begin(what: dict[str, Any]) -> dict[str, Any]:
    """The app and the dyno that a ticket is for, if its account may still run commands there: ``oneoff.inside``'s parameters.

    Raises:
        DavitError: it may not, or the dyno has gone.
    """
    with snapshot() as session:
        account = session.get(Account, what["account"])
        if account is None:
            raise NotFound(apps.NOT_FOUND)
        app = apps.find(session, account, what["app"], "operate")
        if what["dyno"] not in {row.id for row in formation.dynos(session, app)}:
            raise NotFound("That dyno has gone; `heroku ps` shows those that run.")
        return {"app_id": app.id, "inside": what["dyno"], "type": "run", "size": None}


def _environment(size: tuple[int, int] | None, term: str | None) -> dict[str, str]:
    if size is None:
        return {}
    return {"TERM": term or "xterm", "LINES": str(size[0]), "COLUMNS": str(size[1])}


class Tunnel:
    """The server."""

    def __init__(self) -> None:
        self.connections = 0
        self.threads = ThreadPoolExecutor(SESSIONS, thread_name_prefix="exec")

    async def start(self, address: Address) -> int:
        """Listen; returns the port."""
        ensure_host_key(host_key())
        acceptor = await asyncssh.create_server(
            lambda: _Connection(self), address.host, address.port, server_host_keys=[str(host_key())], encoding=None,
            line_editor=False, allow_scp=False, agent_forwarding=False, x11_forwarding=False, compression_algs=["none"],
            server_version="Davit", login_timeout=30, keepalive_interval=30, keepalive_count_max=4, reuse_address=True,
        )  # fmt: skip
        return acceptor.get_port()


def serve(address: Address) -> None:
    """Serve in a thread of this process until it ends; an address that cannot be had is told in the log."""

    async def run() -> None:
        try:
            await Tunnel().start(address)
        except OSError as error:
            log.error("DAVIT_EXEC: %s cannot be listened on: %s; heroku ps:exec will not work", address, error.strerror)
            return
        log.info("listening for heroku ps:exec", extra={"address": address})
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(run()), name="exec", daemon=True).start()
