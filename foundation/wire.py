"""The wire between Davit's own processes on one host: one JSON object per packet over a unix SEQPACKET socket.

A packet carries whole messages and, beside them, open file descriptors (SCM_RIGHTS, unix(7)), which is how a terminal or
a pipe goes from the process that talks to a client to the one that owns the dyno. Only root and the owner of the
socket's directory may talk (SO_PEERCRED).

Request ``{"call": name, "params": {…}}``; answer ``{"result": {…}}`` or ``{"error": {"id", "message", "status"}}``.
One connection carries one call at a time; it may be kept, and what a handler ties to it (``Call.at_hangup``) ends with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from foundation.errors import DavitError, Unavailable

log = logging.getLogger("wire")

PACKET = 200_000
"""Bytes in a packet at the most; the kernel's default socket buffer (212,992) has to hold it whole."""
MAX_FDS = 8


@dataclass
class Reply:
    """An answer: ``result`` and the descriptors that came with it (the receiver owns and closes them)."""

    result: dict[str, Any]
    fds: list[int] = field(default_factory=list)


def encoded(value: Any) -> bytes:
    """A JSON value as a packet has it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")  # as json.loads reads it


def _pack(message: Mapping[str, Any]) -> bytes:
    data = encoded(message)
    if len(data) > PACKET:
        raise DavitError(f"A message of {len(data)} bytes is too large for the wire ({PACKET} at the most).")
    return data


def _unpack(data: bytes, fds: list[int], path: Path) -> Reply:
    if not data:
        raise Unavailable(f"The process behind {path.name} hung up before it answered.")
    message = json.loads(data)
    if "error" in message:
        for fd in fds:
            os.close(fd)
        error = message["error"]
        raise DavitError(error["message"], id=error["id"], status=error["status"])
    return Reply(message["result"], fds)


class Connection:
    """A client's connection; blocking. Use as a context manager; ``call`` as often as wanted, one at a time.

    Args:
        path: the server's socket.
        timeout: seconds to wait for the connection and for each answer (None: for ever).

    Raises:
        Unavailable: nobody listens there.
    """

    def __init__(self, path: Path, timeout: float | None = 30) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
        except OSError:
            self._socket.close()
            raise Unavailable(f"Davit's {path.stem} process is not running; `davit status` shows what is.") from None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the server ends what it tied to this connection."""
        self._socket.close()

    def fileno(self) -> int:
        """For selectors: readable when the server has hung up, between calls."""
        return self._socket.fileno()

    def settimeout(self, timeout: float | None) -> None:
        """Seconds to wait for each answer from now on (None: for ever)."""
        self._socket.settimeout(timeout)

    def call(self, name: str, params: Mapping[str, Any] | None = None, fds: Sequence[int] = ()) -> Reply:
        """Call ``name`` and wait for the answer.

        Args:
            params: JSON values.
            fds: descriptors to send along; the caller keeps its own copies open.

        Raises:
            DavitError: what the other side raised, with its id and status.
            Unavailable: it hung up or did not answer in time.
        """
        try:
            socket.send_fds(self._socket, [_pack({"call": name, "params": params or {}})], list(fds))
            data, received, _, _ = socket.recv_fds(self._socket, PACKET + 4096, MAX_FDS)
        except TimeoutError:
            raise Unavailable(f"Davit's {self.path.stem} process did not answer “{name}” in time.") from None
        except OSError:
            raise Unavailable(f"Davit's {self.path.stem} process went away during “{name}”.") from None
        return _unpack(data, list(received), self.path)


def call(
    path: Path, name: str, params: Mapping[str, Any] | None = None, *, fds: Sequence[int] = (), timeout: float | None = 30
) -> Reply:
    """One call on a connection of its own; see :class:`Connection`."""
    with Connection(path, timeout) as connection:
        return connection.call(name, params, fds)


def nudge(path: Path, name: str, params: Mapping[str, Any] | None = None) -> None:
    """Tell a process something that it would also find out by itself; no answer, no error when it is not there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1)
            sender.connect(os.fspath(path))
            sender.send(_pack({"call": name, "params": params or {}}))
    except OSError:
        pass


async def acall(path: Path, name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = 30) -> dict[str, Any]:
    """:func:`call` for asyncio code, without descriptors.

    Raises:
        DavitError, Unavailable: as :meth:`Connection.call`.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as client:
        client.setblocking(False)

        async def talk() -> bytes:
            await loop.sock_connect(client, os.fspath(path))
            await loop.sock_sendall(client, _pack({"call": name, "params": params or {}}))
            return await loop.sock_recv(client, PACKET + 4096)

        try:
            data = await asyncio.wait_for(talk(), timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise Unavailable(f"Davit's {path.stem} process did not answer “{name}” in time.") from None
        except OSError:
            raise Unavailable(f"Davit's {path.stem} process is not running; `davit status` shows what is.") from None
    return _unpack(data, [], path).result


@dataclass
class Call:
    """A request as its handler sees it.

    Attributes:
        params: what the caller sent.
        fds: descriptors that came along; the handler owns them.
        reply_fds: descriptors to send back; closed here after they went out.
        hangups: called (in reverse order) when the connection ends, however it ends.
    """

    params: dict[str, Any]
    fds: list[int]
    reply_fds: list[int]
    hangups: list[Callable[[], object]]

    def at_hangup(self, action: Callable[[], object]) -> None:
        """Run ``action`` when the caller's connection ends, whether it closed it or died."""
        self.hangups.append(action)


Handler = Callable[[Call], Awaitable[dict[str, Any] | None]]


class Server:
    """Answers calls on a unix socket, inside an asyncio loop.

    Args:
        path: where to listen; an old socket there is replaced. Mode 0600, owned by the owner of its directory.
        handlers: name → coroutine function; its result is the answer, a DavitError the error.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self.handlers = handlers
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; returns at once, the serving goes on in the loop until :meth:`close`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.unlink(missing_ok=True)
        listener.bind(os.fspath(fresh))
        os.chmod(fresh, 0o600)
        owner = self.path.parent.stat()
        if os.geteuid() == 0:
            os.chown(fresh, owner.st_uid, owner.st_gid)
        listener.listen(128)
        listener.setblocking(False)
        os.rename(fresh, self.path)
        self._listener = listener
        self._owner = owner.st_uid
        self._keep(asyncio.get_running_loop().create_task(self._accept()))

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptor or memory left at the moment; a closed listener ends by cancellation
                log.error("connections cannot be taken: %s", error)
                await asyncio.sleep(1)
                continue
            _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (0, os.geteuid(), self._owner):
                connection.close()
                continue
            self._keep(loop.create_task(self._serve(connection)))

    async def _serve(self, connection: socket.socket) -> None:
        hangups: list[Callable[[], object]] = []
        try:
            while True:
                await _readable(connection)
                try:
                    data, fds, _, _ = socket.recv_fds(connection, PACKET + 4096, MAX_FDS)
                except BlockingIOError:
                    continue
                if not data:
                    return
                call = Call({}, list(fds), [], hangups)
                answer = await self._answer_while_connected(connection, data, call)
                if answer is None:
                    return
                try:
                    socket.send_fds(connection, [answer], call.reply_fds)
                finally:
                    for fd in call.reply_fds:
                        os.close(fd)
        except OSError:
            pass  # the caller is gone; the hang-ups below are what it is owed
        finally:
            connection.close()
            for action in reversed(hangups):
                try:
                    action()
                except Exception:
                    log.exception("a hang-up action failed")

    async def _answer_while_connected(self, connection: socket.socket, data: bytes, call: Call) -> bytes | None:
        """The packed answer, or None when the caller hung up first (its handler is cancelled then)."""
        answering = asyncio.ensure_future(self._answer(data, call))
        hangup = asyncio.ensure_future(_readable(connection))
        try:
            await asyncio.wait({answering, hangup}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() or _peek(connection):
                return _pack(await answering)
            return None
        finally:
            hangup.cancel()
            answering.cancel()
            await asyncio.gather(hangup, answering, return_exceptions=True)  # the next packet needs the reader's place

    async def _answer(self, data: bytes, call: Call) -> dict[str, Any]:
        name = "?"
        try:
            message = json.loads(data)
            name, call.params = message["call"], message["params"]
            if name not in self.handlers:
                raise DavitError(f"There is no call named “{name}” here.", id="not_found", status=404)
            return {"result": await self.handlers[name](call) or {}}
        except DavitError as error:
            return {"error": {"id": error.id, "message": error.message, "status": error.status}}
        except Exception:
            log.exception("a call failed", extra={"call": name})
            return {
                "error": {
                    "id": "internal_error",
                    "message": f"“{name}” failed inside Davit; its log has the details.",
                    "status": 500,
                }
            }


def _peek(connection: socket.socket) -> bool:
    """Whether the caller is still there (it sent something) rather than gone (an end of file)."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
