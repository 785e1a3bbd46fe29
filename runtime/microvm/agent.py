"""The host's end of the guest agent: one connection, the dyno's command and further commands in it as channels."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
import struct
import termios
import time
import tty
from collections.abc import Callable, Sequence
from pathlib import Path

from foundation.errors import DavitError
from runtime import qmp
from runtime.driver import Exit, Listener, Stats
from runtime.microvm import protocol
from runtime.microvm.allowance import Allowance
from runtime.microvm.protocol import Frame, Order, State

_PIECE = 4096  # PIPE_BUF: what a pipe that is said to be writable takes without blocking
_MOST_WAITING = 8 << 20
"""Bytes for a guest that it does not read: what a host has to say in earnest is far less."""
_FILLER = bytes(protocol.CHUNK + 64)
TALK = (1 << 20, 256 << 10)
"""Bytes that a guest may say beside its commands' output, at once and each second. One that is what Davit put there says a
hundredth of it."""
PACE = (20_000.0, 10_000.0)
"""Frames that are taken from a guest at once and each second, whatever they are; the rest waits in the guest. Each look for more
counts as one, and so does each HEAVY bytes."""
HEAVY = 16384
_MOST_SOUGHT = 64 << 20
"""Bytes in which a guest's answer to SYNC is looked for: what an earlier connection has left is far less."""


class GuestFailed(DavitError):
    """The guest does not answer, or refuses; the sentence says what it said."""

    id, status = "vm_guest_failed", 500


class Streams:
    """The descriptors on the host that a command's standard streams come from and go to.

    Args:
        source: where its input comes from; None for nowhere.
        targets: where output and errors go.
        terminal: whether ``source`` and ``targets`` are one terminal.
    """

    def __init__(self, source: int | None, targets: tuple[int, int], terminal: bool = False) -> None:
        self.source = source
        self.targets = targets
        self.terminal = terminal

    @classmethod
    def copies(cls, stdio: Sequence[int]) -> Streams:
        """Of descriptors that remain the caller's."""
        source, out, err = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in stdio)
        return cls(source, (out, err))

    @classmethod
    def pty(cls, rows: int, columns: int) -> tuple[Streams, int]:
        """A terminal of which the caller gets the master; the line discipline is the guest's."""
        master, slave = os.openpty()
        tty.setraw(slave)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))
        return cls(slave, (slave, slave), terminal=True), master

    @classmethod
    def nothing(cls) -> Streams:
        """All of it goes nowhere."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        return cls(None, (null, null))

    def close(self) -> None:
        """Close them."""
        for fd in {self.source, *self.targets} - {None, -1}:
            with contextlib.suppress(OSError):
                os.close(fd)  # type: ignore[arg-type]
        self.source, self.targets = None, (-1, -1)


class Channel:
    """A command in the guest.

    Attributes:
        ended: how it ended, when it has.
    """

    def __init__(self, agent: Agent, number: int, streams: Streams | None) -> None:
        self._agent, self.number, self._streams = agent, number, streams
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Exit] = loop.create_future()
        self._window = protocol.WINDOW
        self._queues: dict[int, bytearray] = {}
        self._reading = False
        self._over: Exit | None = None

    def carry(self, agent: Agent) -> None:
        """Go on over another connection."""
        self._agent = agent

    def begin(self) -> None:
        """It runs: its input may be read."""
        self._read_on()

    def take(self, frame: Frame) -> None:
        """What the guest says of it."""
        if frame.type == protocol.STARTED and not self.started.done():
            self.started.set_result(None)
        elif frame.type == protocol.FAILED and not self.started.done():
            self.started.set_exception(GuestFailed(frame.payload[:300].decode(errors="replace")))
        elif frame.type in (protocol.OUTPUT, protocol.ERRORS):
            self._write(0 if frame.type == protocol.OUTPUT else 1, frame.payload)
        elif frame.type == protocol.ACCEPTED:
            self._window = min(protocol.WINDOW, self._window + protocol.count(frame.payload))
            self._read_on()
        elif frame.type == protocol.EXITED and self._over is None:
            status, oom = protocol.exited(frame.payload)
            self._over = Exit(status, oom)
            asyncio.get_running_loop().call_later(2, self.end)
            self._end_when_written()

    def expects(self, frame: Frame) -> bool:
        """Whether the host has asked for this: output has its window, and input is accepted where there was some."""
        if frame.type == protocol.ACCEPTED:
            return self._window < protocol.WINDOW and protocol.count(frame.payload) > 0
        return frame.type in (protocol.OUTPUT, protocol.ERRORS) and len(frame.payload) > 0

    def end(self, exit: Exit | None = None) -> None:
        """It has ended (by ``exit``, or as the guest told); what is still to be written is written."""
        if not self.started.done():
            self.started.set_exception(GuestFailed("it ended before it began"))
            self.started.exception()
        self._over = exit or self._over or Exit(None)  # also so that its streams are closed once all is written
        if not self.ended.done():
            self.ended.set_result(self._over)
        self._stop_reading()
        if not self._queues and self._streams is not None:
            self._streams.close()

    def abandon(self) -> None:
        """Close its descriptors, whatever is still to be written."""
        self._stop_reading()
        for fd in list(self._queues):
            asyncio.get_running_loop().remove_writer(fd)
        self._queues.clear()
        if self._streams is not None:
            self._streams.close()

    # -- guest to host

    def _write(self, which: int, data: bytes) -> None:
        fd = self._streams.targets[which] if self._streams is not None else -1
        if fd < 0:
            self._agent.taken(self.number, len(data))
            return
        if len(data) + sum(map(len, self._queues.values())) > protocol.WINDOW:
            self._agent.break_off("it sends more than its window holds")
            return
        self._queues.setdefault(fd, bytearray()).extend(data)
        try:
            asyncio.get_running_loop().add_writer(fd, self._writable, fd)
        except PermissionError:  # a file: it always takes all
            while fd in self._queues:
                self._writable(fd)

    def _writable(self, fd: int) -> None:
        waiting = self._queues[fd]
        try:
            written = os.write(fd, waiting[:_PIECE])
        except BlockingIOError:
            written = 0
        except OSError:
            written = len(waiting)  # nobody reads any more
        del waiting[:written]
        self._agent.taken(self.number, written)
        if not waiting:
            asyncio.get_running_loop().remove_writer(fd)
            del self._queues[fd]
            self._end_when_written()

    def _end_when_written(self) -> None:
        if self._over is not None and not self._queues:
            self.end()

    # -- host to guest

    def _read_on(self) -> None:
        source = self._streams.source if self._streams is not None else None
        if source is None or self._reading or self._window <= 0 or self.ended.done():
            return
        self._reading = True
        try:
            asyncio.get_running_loop().add_reader(source, self._readable)
        except PermissionError:
            while self._reading:
                self._readable()

    def _readable(self) -> None:
        assert self._streams is not None and self._streams.source is not None
        try:
            data = os.read(self._streams.source, min(16384, self._window))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._agent.send(protocol.frame(protocol.INPUT, self.number, data))
        self._window -= len(data)
        if not data or self._window <= 0:
            self._stop_reading()
        if not data and not self._streams.terminal:
            with contextlib.suppress(OSError):
                os.close(self._streams.source)
            self._streams.source = None

    def _stop_reading(self) -> None:
        if self._reading and self._streams is not None and self._streams.source is not None:
            asyncio.get_running_loop().remove_reader(self._streams.source)
        self._reading = False


class Agent:
    """The guest agent, as the host sees it.

    Attributes:
        listeners, stats: as it last told.
        heard: when it last said something (monotonic seconds).
        breach: what it did that no guest agent does, for which this end hung up; empty while it behaves.
        state: how it stood when the connection was made.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._channels: dict[int, Channel] = {}
        self._done: dict[int, asyncio.Future[None]] = {}
        self._count = 0
        self._out = bytearray()
        self._taken: dict[int, int] = {}
        self.heard = time.monotonic()
        self.breach = ""
        self._writing = False
        self._closed = False
        self._sought = 0
        self._reader = protocol.Reader()
        self._talk, self._pace = Allowance(*TALK, self.heard), Allowance(*PACE, self.heard)
        self._resting: asyncio.TimerHandle | None = None
        self.listeners: list[Listener] = []
        self.stats: Stats | None = None
        self.state = State(0, "waiting", None, False)
        self.lost: Callable[[], None] = lambda: None

    @classmethod
    async def connect(cls, path: Path, timeout: float) -> Agent:
        """Connect to the port at ``path`` and wait until the guest has booted and answers.

        Raises:
            GuestFailed: it does not within ``timeout`` seconds, or speaks another version of the protocol.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        agent = cls(connection)
        try:
            await asyncio.wait_for(agent._synchronize(path), timeout)
        except (OSError, asyncio.TimeoutError):
            connection.close()
            raise GuestFailed(f"its guest does not answer within {timeout:g} seconds") from None
        except BaseException:
            connection.close()
            raise
        agent._listen()
        return agent

    async def _synchronize(self, path: Path) -> None:
        await qmp.call(self._socket, path)
        loop = asyncio.get_running_loop()
        nonce = secrets.token_bytes(16)
        hunter = protocol.Hunter(nonce)
        pause, filler = 0.5, b""
        while True:
            await loop.sock_sendall(self._socket, filler + protocol.frame(protocol.SYNC, 0, nonce))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hunt(hunter), pause)
                break
            # the earlier host end may have died in the middle of a frame: its rest is filled up, once it cannot be slowness
            filler = _FILLER if pause > 4 else b""
            pause = min(pause * 2, 10)
        if self.state.version != protocol.VERSION:
            raise GuestFailed(f"its guest speaks version {self.state.version} of the protocol, this Davit {protocol.VERSION}")

    async def _hunt(self, hunter: protocol.Hunter) -> None:
        while True:
            data = await asyncio.get_running_loop().sock_recv(self._socket, protocol.CHUNK)
            if not data:
                raise GuestFailed("it ended while it booted")
            self._sought += len(data)
            if self._sought > _MOST_SOUGHT:
                raise GuestFailed(f"its guest says {_MOST_SOUGHT >> 20} MB of other things instead of answering")
            found = hunter.feed(data)
            if found:
                self.state, rest = found
                for frame in self._reader.feed(rest):
                    self._take(frame)
                return
            await asyncio.sleep(0)  # what is there already is had without a wait, and others want their turn

    def close(self) -> None:
        """Hang up; the guest goes on."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        if self._resting is not None:
            self._resting.cancel()
        self._socket.close()
        failure = GuestFailed("the connection to its guest has ended" + (f": {self.breach}" if self.breach else ""))
        for waiting in (*self._done.values(), *(channel.started for channel in self._channels.values())):
            if not waiting.done():
                waiting.set_exception(failure)
                waiting.exception()  # nobody may be waiting for it

    def break_off(self, breach: str) -> None:
        """Hang up on a guest that does not keep to the protocol."""
        if not self._closed:
            self.breach = breach
            self.close()
            self.lost()

    # -- commands

    def main(self, streams: Streams | None) -> Channel:
        """The channel of the dyno's command."""
        channel = self._channels[0] = Channel(self, 0, streams)
        return channel

    def adopt(self, channel: Channel) -> None:
        """Carry on, over this connection, with a channel of an earlier one."""
        channel.carry(self)
        self._channels[channel.number] = channel

    async def start(self, order: Order, streams: Streams | None, timeout: float) -> Channel:
        """Start the dyno's command.

        Raises:
            GuestFailed: it could not be started.
        """
        return await self._begin(protocol.START, self.main(streams), order, timeout)

    async def further(self, order: Order, streams: Streams, timeout: float) -> Channel:
        """Start a further command.

        Raises:
            GuestFailed: it could not be started.
        """
        channel = Channel(self, self._number(), streams)
        self._channels[channel.number] = channel
        return await self._begin(protocol.EXEC, channel, order, timeout)

    async def _begin(self, how: int, channel: Channel, order: Order, timeout: float) -> Channel:
        self.send(protocol.order(how, channel.number, order))
        try:
            await asyncio.wait_for(asyncio.shield(channel.started), timeout)
        except asyncio.TimeoutError:
            channel.abandon()
            self.send(protocol.frame(protocol.CLOSE, channel.number))  # should it begin after all
            self._channels.pop(channel.number, None)
            raise GuestFailed(f"its guest did not start the command within {timeout:g} seconds") from None
        except GuestFailed:
            channel.abandon()
            self._channels.pop(channel.number, None)
            raise
        channel.begin()
        return channel

    def forget(self, number: int) -> None:
        """A further command is of no interest any more."""
        self._channels.pop(number, None)

    def _number(self) -> int:
        while True:
            self._count = self._count % 60000 + 1
            if self._count not in self._channels and self._count not in self._done:
                return self._count

    async def ask(self, say: Callable[[int], bytes], timeout: float = 15) -> None:
        """Say something that the guest answers with DONE.

        Raises:
            GuestFailed: it does not.
        """
        number = self._number()
        self._done[number] = asyncio.get_running_loop().create_future()
        try:
            self.send(say(number))
            await asyncio.wait_for(self._done[number], timeout)
        except asyncio.TimeoutError:
            raise GuestFailed(f"its guest does not answer within {timeout:g} seconds") from None
        finally:
            self._done.pop(number, None)

    # -- the wire

    def send(self, data: bytes) -> None:
        """Send frames; never blocks."""
        if self._closed:
            return
        self._out += data
        self._flush()
        if len(self._out) > _MOST_WAITING:
            self.break_off("it does not read what it is told")

    def taken(self, number: int, count: int) -> None:
        """The host took ``count`` bytes of a channel's output: told soon, for many frames at once."""
        if count and not self._taken:
            asyncio.get_running_loop().call_soon(self._tell_taken)
        if count:
            self._taken[number] = self._taken.get(number, 0) + count

    def _tell_taken(self) -> None:
        taken, self._taken = self._taken, {}
        for number, count in taken.items():
            self.send(protocol.taken(number, count))

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._out:
                del self._out[: self._socket.send(self._out[:65536])]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._out.clear()
        if self._writing:
            self._writing = False
            loop.remove_writer(self._socket)

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(protocol.CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self.lost()
            return
        self.heard = now = time.monotonic()
        skipped, said, frames = self._reader.skipped, 0, 1 + len(data) / HEAVY
        for frame in self._reader.feed(data):
            if self._closed:
                return
            frames += 1
            channel = self._channels.get(frame.channel)
            said += 0 if channel is not None and channel.expects(frame) else protocol.FRAME + len(frame.payload)
            self._take(frame)
        if self._talk.take(said + self._reader.skipped - skipped, now):
            self.break_off("it says far more than a guest agent has to say")
        elif rest := self._pace.take(frames, now):
            self._rest(rest)

    def _rest(self, seconds: float) -> None:
        """Take nothing more from this guest for a while: it has no more of this process than others."""
        loop = asyncio.get_running_loop()
        if not self._closed:
            loop.remove_reader(self._socket)
            self._resting = loop.call_later(seconds, self._listen)

    def _take(self, frame: Frame) -> None:
        if frame.type == protocol.LISTENERS:
            self.listeners = protocol.listeners(frame.payload)
        elif frame.type == protocol.FIGURES:
            told = protocol.figures(frame.payload)
            self.stats = told[0] if told else self.stats
        elif frame.type == protocol.DONE:
            waiting = self._done.get(frame.channel)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif frame.channel in self._channels:
            self._channels[frame.channel].take(frame)
