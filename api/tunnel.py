"""``heroku ps:exec`` and its kin: an SSH server that leads into a dyno that runs, at the address of ``DAVIT_EXEC``.

The command asks ``PUT /api/v2/DYNO`` (:mod:`api.resources.exec_manager`) with a fresh public key, and is told a host, a user name
and the server's key. Then it comes here, to port 80 of that host: the command knows no other port. The user name is a ticket:
signed, good for that key and while the token that it was asked for with is in force, so nothing has to be remembered. Who comes
with it gets, with the permission asked for each time anew,

* a command in the dyno as by ``run:inside`` (``ps:exec``),
* the dyno's files, to read (``ps:copy``; :mod:`api.dyno_files`),
* connections to the dyno's own ports (``ps:forward``, ``ps:socks``), and to nothing else: whatever the dyno itself can reach, a
  command in it reaches.

The ``davit`` command needs none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import asyncssh
from sqlalchemy.orm import Session

from api import attach, dyno_ports, streams
from api.attach import EndOfInput, Input, Order, Resize
from api.dyno_files import DynoFiles
from api.streams import TooManyStreams
from builder.sshserver import OPTIONS, Crowd, KeyServer, ensure_host_key
from foundation.errors import DavitError, NotFound
from foundation.nonblocking import CHUNK, WAIT, receive_what_came, send_what_fits
from foundation.settings import Address, settings
from state import accounts, apps, formation, signatures
from state.db import snapshot
from state.models import App, Token

log = logging.getLogger("web")

T = TypeVar("T")

TICKET_SECONDS = 12 * 3600
"""How long connections may be begun: ``ps:socks`` begins one for each connection that goes through it."""
SESSIONS, EACH = 64, 8
"""Shells and commands at the same time: in all, and of one account. One more is refused with a sentence; none waits."""
ASKING, EACH_ASKING = 16, 4
"""Connections to dynos that are being made, and files that are being read: in all, and of one account; its others wait."""
CONNECTIONS = 256
ITSELF = ("127.0.0.1", "localhost", "0.0.0.0")
"""Names of the dyno, seen from itself; the heroku command's ``ps:forward`` says the last."""
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


def ticket(app_id: str, dyno_id: str, token: Token, client_key: str) -> str | None:
    """The user name to come with, for as long as ``token`` is in force; None when ``client_key`` is no public key."""
    try:
        key = asyncssh.import_public_key(client_key)
    except (asyncssh.KeyImportError, ValueError):
        return None
    what = {
        "app": app_id, "dyno": dyno_id, "account": token.account_id, "token": token.id, "mark": accounts.mark(token),
        "key": key.get_fingerprint(),
    }  # fmt: skip
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
        self.sizes: deque[Resize] = deque()
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
        """What is told beside the socket: a terminal's new size, and the end of the input (a socket that is shut down would be
        ready to be read for ever)."""
        while self.sizes:
            yield self.sizes.popleft()
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
        data = receive_what_came(self.socket)
        if data is None:
            return
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
        if not send_what_fits(self.socket, self.pending):
            self.gone.set()


class _Connection(KeyServer):
    """Who is at the other end of a connection, and what may be reached over it: one dyno."""

    def __init__(self, door: Tunnel) -> None:
        super().__init__(door)
        self._door = door
        self._what: dict[str, Any] = {}

    def begin_auth(self, username: str) -> bool:
        try:
            self._what = signatures.read(_KIND, username)
        except NotFound:
            self._what = {}
        self._conn.set_extra_info(ticket=self._what)
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return bool(self._what) and key.get_fingerprint() == self._what["key"]

    async def connection_requested(  # type: ignore[override]
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> asyncssh.SSHForwarder:  # fmt: skip
        """A port of the dyno's (``ps:forward``, ``ps:socks``); nothing that is not the dyno is reached from here."""
        loop = asyncio.get_running_loop()
        try:
            give_back = self._door.ways.take(self._what["account"])
        except DavitError as error:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, error.message) from None
        try:
            line = await self._door.ask(self._what["account"], _into, self._what, dest_host, dest_port)
            _, dyno = await loop.create_connection(lambda: _Forwarder(give_back), sock=line)
            self._door.watch(dyno, self._what)
        except Elsewhere as error:
            give_back()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, error.message) from None
        except DavitError as error:
            give_back()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, error.message) from None
        except BaseException:
            give_back()
            raise
        return asyncssh.SSHForwarder(dyno)


class _Forwarder(asyncssh.SSHForwarder):
    """The dyno's side of a forwarded connection."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        super().__init__()
        self._give_back = give_back
        self.over = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_back()
        self.over.set()
        super().connection_lost(exc)


async def _until_forbidden(line: _Forwarder, may_go_on: Callable[[], Awaitable[bool]]) -> None:
    """End a connection when whose it is may not have it any more."""
    while not line.over.is_set():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(line.over.wait(), streams.RECHECK_SECONDS)
            return
        if not await may_go_on():
            line.close()


class Ways:
    """How many ways into dynos are open: each holds descriptors of a process that others need, too. For one thread.

    Args:
        most: in all.
        each: of one account.
    """

    def __init__(self, most: int = 512, each: int = 64) -> None:
        self._most, self._each = most, each
        self._open: Counter[str] = Counter()

    def take(self, account_id: str) -> Callable[[], None]:
        """Count one more; returns what gives it back (any number of times).

        Raises:
            TooManyStreams: there are too many already.
        """
        if self._open[account_id] >= self._each or self._open.total() >= self._most:
            raise TooManyStreams("Too many ways into dynos are open already; end one first.")
        self._open[account_id] += 1
        held = [account_id]

        def give_back() -> None:
            if held:
                self._open[held.pop()] -= 1
                self._open += Counter()  # forgets who has none

        return give_back


class Elsewhere(DavitError):
    """A forwarded connection is to lead to something that is not the dyno."""

    id, status = "forbidden", 403


def _into(what: dict[str, Any], host: str, port: int) -> socket.socket:
    """A connection to a port of the dyno's.

    Raises:
        Elsewhere: ``host`` is not the dyno.
        DavitError: the account may not, the dyno has gone, or nothing listens there.
    """
    params, address = _allowed(what)
    if host.lower() not in (*ITSELF, address):
        raise Elsewhere("Only the dyno itself is reached from here: give 127.0.0.1 as the host.")
    line = dyno_ports.connect(params["app_id"], params["inside"], port)
    line.setblocking(False)
    return line


class _Session:
    """A shell or one command, in the dyno that the ticket names.

    The client's side is a coroutine, the command's an :class:`api.attach.Peer` in a thread; a socket pair is between them.
    """

    def __init__(self, door: Tunnel, process: asyncssh.SSHServerProcess[bytes]) -> None:
        self._door, self._process = door, process
        self._what: dict[str, Any] = process.get_extra_info("ticket")

    async def run(self) -> None:
        """Until the command has ended or the client has gone."""
        try:
            give_back = self._door.sessions.take(self._what["account"])
        except DavitError as error:
            self._process.stdout.write(f"{error.message}\r\n".encode())
            self._process.exit(1)
            return
        try:
            await self._served()
        finally:
            give_back()

    async def _served(self) -> None:
        loop = asyncio.get_running_loop()
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._peer = Piped(theirs)
        beside = [loop.create_task(self._to_command()), loop.create_task(self._until_gone())]
        try:
            work = loop.run_in_executor(self._door.threads, self._attached)
            await self._to_client()
            if refusal := await work:
                self._process.stdout.write(f"{refusal}\r\n".encode())
            self._process.exit(self._peer.status if self._peer.status is not None else 1)
        except (OSError, asyncssh.Error):
            pass  # the client has gone
        finally:
            self._peer.gone.set()  # the command gets SIGHUP when its attachment is closed
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self._ours.close()

    async def _to_client(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._ours, CHUNK):
            self._process.stdout.write(data)
            await self._process.stdout.drain()

    async def _to_command(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await self._process.stdin.read(CHUNK)
            except asyncssh.TerminalSizeChanged as size:
                self._peer.sizes.append(Resize(*_within(size.height, size.width)))
                continue
            except (asyncssh.BreakReceived, asyncssh.SignalReceived):
                continue
            if not data:
                break
            await loop.sock_sendall(self._ours, data)
        self._peer.input_over.set()

    async def _until_gone(self) -> None:
        await self._process.channel.wait_closed()
        self._peer.gone.set()

    def _attached(self) -> str:
        """In a thread: run the command, with the client attached to it until it ends; why not, or nothing."""
        try:
            if self._peer.open:
                size, term = self._terminal()
                params = {**_allowed(self._what)[0], "command": self._process.command or SHELL, "env": _environment(size, term)}
                may = streams.still(lambda session: _app(session, self._what))
                attachment = attach.start(self._what["account"], params, size, may, call="oneoff.inside")
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

    def _terminal(self) -> tuple[tuple[int, int] | None, str | None]:
        """Rows and columns of the client's terminal, and its kind; None where it has none."""
        kind = self._process.term_type
        columns, rows = self._process.term_size[:2]
        return (None if kind is None else _within(rows or 24, columns or 80)), kind


def _within(rows: int, columns: int) -> tuple[int, int]:
    return max(1, min(rows, 10_000)), max(1, min(columns, 10_000))


def _allowed(what: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The app and the dyno that a ticket is for, if its account may still run commands there.

    Returns:
        ``oneoff.inside``'s parameters, and the dyno's address.

    Raises:
        DavitError: it may not, its token is not in force any more, or the dyno has gone.
    """
    with snapshot() as session:
        app = _app(session, what)
        row = next((row for row in formation.dynos(session, app) if row.id == what["dyno"]), None)
        if row is None:
            raise NotFound("That dyno has gone; `heroku ps` shows those that run.")
        return {"app_id": app.id, "inside": row.id, "type": "run", "size": None}, row.address


def _app(session: Session, what: dict[str, Any]) -> App:
    """The app that a ticket is for, as :func:`_allowed`."""
    return apps.find(session, accounts.bearer(session, what["token"], what.get("mark", "")), what["app"], "operate")


def _environment(size: tuple[int, int] | None, term: str | None) -> dict[str, str]:
    if size is None:
        return {}
    return {"TERM": term or "xterm", "LINES": str(size[0]), "COLUMNS": str(size[1])}


class Tunnel(Crowd):
    """The server."""

    def __init__(self) -> None:
        super().__init__(CONNECTIONS)
        self.ways = Ways()
        self.threads = ThreadPoolExecutor(SESSIONS, thread_name_prefix="exec")
        self.sessions = Ways(SESSIONS, EACH)
        self._asking = ThreadPoolExecutor(ASKING, thread_name_prefix="into")
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._watching: set[asyncio.Task[None]] = set()

    async def ask(self, account_id: str, what: Callable[..., T], *arguments: Any) -> T:
        """``what(*arguments)`` in a thread; an account that asks for much waits for its own, and nobody for it."""
        turns = self._turns.setdefault(account_id, asyncio.Semaphore(EACH_ASKING))
        async with turns:
            return await asyncio.get_running_loop().run_in_executor(self._asking, what, *arguments)

    def watch(self, line: _Forwarder, what: dict[str, Any]) -> None:
        """Have a connection ended when the ticket that it was opened with opens nothing any more."""
        may = streams.still(lambda session: _app(session, what))
        task = asyncio.get_running_loop().create_task(_until_forbidden(line, lambda: self.ask(what["account"], may)))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def start(self, address: Address) -> int:
        """Listen; returns the port."""
        ensure_host_key(host_key())
        acceptor = await asyncssh.create_server(
            lambda: _Connection(self), address.host, address.port, server_host_keys=[str(host_key())],
            process_factory=lambda process: _Session(self, process).run(), sftp_factory=self._files, **OPTIONS,
        )  # fmt: skip
        return acceptor.get_port()

    def _files(self, chan: asyncssh.SSHServerChannel[bytes]) -> DynoFiles:
        what: dict[str, Any] = chan.get_extra_info("ticket")
        on_record = False

        def run(command: str, reads: bool) -> attach.Attachment:
            nonlocal on_record
            params = {**_allowed(what)[0], "command": command, "env": {}, "files": True}
            if on_record or not reads:  # a session's first file stands for all: a client may look at thousands
                params["by"] = None
            may = streams.still(lambda session: _app(session, what))
            attachment = attach.start(what["account"], params, None, may, call="oneoff.inside")
            on_record = on_record or reads
            return attachment

        return DynoFiles(chan, lambda command, reads: self.ask(what["account"], run, command, reads))


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
