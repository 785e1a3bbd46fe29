"""A client of QEMU's machine protocol (QEMU documentation, "QEMU Machine Protocol Specification"): one JSON object a line."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from foundation.errors import DavitError

PATIENCE = 5.0
"""Seconds for the first greeting."""
_LONGEST = 4 << 20


class MonitorFailed(DavitError):
    """QEMU refused what it was told, or does not answer any more."""

    id, status = "vm_monitor_failed", 500


class _NotGreeted(MonitorFailed):
    """The connection is there, and nothing comes by it."""


class Monitor:
    """One connection to a QEMU; several commands may be under way, answers come by their ids."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._heard = asyncio.Event()
        self._gone = False
        self._greeted: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(), name="qmp")
        self.version: tuple[int, ...] = ()

    @classmethod
    async def connect(cls, path: Path, timeout: float = 10) -> Monitor:
        """Connect to the socket at ``path`` and negotiate. Who is not greeted calls again, and waits longer each time.

        Raises:
            MonitorFailed: nobody answers there within ``timeout`` seconds.
        """
        end, patience = time.monotonic() + timeout, PATIENCE
        while (left := end - time.monotonic()) > patience:
            with suppress(_NotGreeted):
                return await cls._connect(path, patience)
            patience *= 2
        return await cls._connect(path, left)

    @classmethod
    async def _connect(cls, path: Path, timeout: float) -> Monitor:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await asyncio.wait_for(call(connection, path), timeout)
            monitor = cls(connection)
        except asyncio.TimeoutError:
            connection.close()
            raise _NotGreeted("The virtual machine's monitor does not answer: time out.") from None
        except OSError as error:
            connection.close()
            raise MonitorFailed(f"The virtual machine's monitor does not answer: {error}.") from None
        try:
            greeting = await asyncio.wait_for(asyncio.shield(monitor._greeted), timeout)
            monitor.version = tuple(int(figure(greeting, "version", "qemu", part)) for part in ("major", "minor", "micro"))
            await monitor.execute("qmp_capabilities")
        except asyncio.TimeoutError:
            monitor.close()
            raise _NotGreeted("The virtual machine's monitor does not answer.") from None
        except MonitorFailed:
            monitor.close()
            raise MonitorFailed("The virtual machine's monitor does not answer.") from None
        except BaseException:  # who wanted it has given up
            monitor.close()
            raise
        return monitor

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, fds: Sequence[int] = (), timeout: float = 30
    ) -> Any:
        """Run a command and give what it returns.

        Args:
            fds: descriptors that go with it (``getfd``, ``add-fd``).
            timeout: seconds.

        Raises:
            MonitorFailed: QEMU refuses (with its words), is gone, or takes longer.
        """
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"execute": command, "id": number}
        if arguments:
            message["arguments"] = dict(arguments)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._send(json.dumps(message).encode() + b"\n", fds)
            return await asyncio.wait_for(answer, timeout)
        except asyncio.TimeoutError:
            raise MonitorFailed(f"The virtual machine did not do “{command}” within {timeout:g} seconds.") from None
        except OSError as error:
            raise MonitorFailed(f"The virtual machine's monitor is gone: {error.strerror}.") from None
        finally:
            self._waiting.pop(number, None)

    async def table(self, command: str) -> dict[str, Any]:
        """What a command returns that answers with names and values.

        Raises:
            MonitorFailed: as :meth:`execute`, or it is anything else: an app may have broken out into this QEMU.
        """
        answer = await self.execute(command)
        if not isinstance(answer, dict):
            raise MonitorFailed(f"The virtual machine gives no answer to “{command}”.")
        return answer

    async def status(self, timeout: float = 30) -> str:
        """What the machine does: ``running``, ``paused``, ``internal-error``, ….

        Raises:
            MonitorFailed: as :meth:`execute`, or that is not what it answers.
        """
        answer = await self.execute("query-status", timeout=timeout)
        if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
            raise MonitorFailed("The virtual machine does not say what it does.")
        return str(answer["status"])

    async def event(self, *names: str, timeout: float | None = 30, **data: Any) -> tuple[str, dict[str, Any]]:
        """The next event (also of those that came before and nobody asked for) with one of these names and this data.

        Its data have, besides QEMU's own, ``at``: seconds since 1970.

        Args:
            timeout: seconds; None for as long as it takes.

        Raises:
            MonitorFailed: it did not come in time, or QEMU has gone.
        """

        def find() -> tuple[str, dict[str, Any]] | None:
            for index, (name, values) in enumerate(self._events):
                if name in names and all(values.get(key) == value for key, value in data.items()):
                    return self._events.pop(index)
            return None

        async def wait() -> tuple[str, dict[str, Any]]:
            while (found := find()) is None:
                if self._gone:
                    raise MonitorFailed("The virtual machine has gone.")
                self._heard.clear()
                await self._heard.wait()
            return found

        try:
            return await asyncio.wait_for(wait(), timeout)
        except asyncio.TimeoutError:
            raise MonitorFailed(f"The virtual machine did not tell {' or '.join(names)} within {timeout:g} seconds.") from None

    def forget_events(self) -> None:
        """What has come until now is old news: who asks for an event from here on means one that is still to come."""
        self._events.clear()

    def close(self) -> None:
        """Hang up; the virtual machine goes on."""
        self._reading.cancel()
        self._give_up()
        if self._socket.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        # now, and not when the loop comes round to what was cancelled: the number may be another's by then, who is never told
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()

    async def _send(self, text: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        if fds:  # a fresh command is far shorter than the socket's buffer
            socket.send_fds(self._socket, [text], list(fds))
        else:
            await loop.sock_sendall(self._socket, text)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        rest = b""
        try:
            while chunk := await loop.sock_recv(self._socket, 65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(rest) > _LONGEST:
                    break
                await asyncio.sleep(0)  # what is there already is had without a wait, and others want their turn
        except (OSError, ValueError):
            pass
        finally:
            self._give_up()

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            message = json.loads(line)
        except RecursionError:
            message = None
        if not isinstance(message, dict):
            raise ValueError("no message")
        if "QMP" in message and not self._greeted.done():
            self._greeted.set_result(message["QMP"])
        elif "event" in message:
            at = figure(message, "timestamp", "seconds") + figure(message, "timestamp", "microseconds") / 1e6
            told = message.get("data")
            data = {**(told if isinstance(told, dict) else {}), "at": at}
            self._events = [*self._events[-63:], (str(message["event"]), data)]
            self._heard.set()
        else:
            answer = self._waiting.get(int(figure(message, "id")))
            if answer is None or answer.done():
                return
            if "error" in message:
                words = message["error"].get("desc") if isinstance(message["error"], dict) else None
                answer.set_exception(MonitorFailed(f"QEMU says: {words or 'no'}"))
            else:
                answer.set_result(message.get("return"))

    def _give_up(self) -> None:
        self._gone = True
        self._heard.set()
        failure = MonitorFailed("The virtual machine has gone.")
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(failure)
        if not self._greeted.done():
            self._greeted.set_exception(failure)
            self._greeted.exception()  # nobody may be waiting for it


def figure(told: Any, *path: str) -> float:
    """A number in what a QEMU says, which may be anything: 0 where there is none."""
    for name in path:
        told = told.get(name) if isinstance(told, dict) else None
    return float(told) if isinstance(told, int | float) and abs(told) < 1 << 63 else 0.0


async def call(connection: socket.socket, path: Path) -> None:
    """Connect a socket that does not block to the one at ``path``.

    QEMU lets two callers wait, and takes nobody in before its machine is made. Whoever comes beyond them is told to try again
    (unix(7): EAGAIN), which the loop's own sock_connect takes for being connected soon.
    """
    while True:
        try:
            return connection.connect(str(path))
        except BlockingIOError:
            await asyncio.sleep(0.05)


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path`` to hand to QEMU as a descriptor: QEMU needs no right to the directory then.

    It does not block: for a moment after its start two of QEMU's threads look at it, and both take in the first caller (mended in
    QEMU in November 2025). The later one would wait for another caller for ever, and with it the machine or the monitor.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    listener.bind(str(path))
    os.chmod(path, 0o600)
    listener.listen()
    return listener
