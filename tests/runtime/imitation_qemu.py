"""A QEMU for tests that says it is an imitation: a process that sleeps, a monitor that answers as it is told to, and a guest agent
that answers, or does not. It shows in which order Davit does things, and what it does when something fails in the middle, which a
real QEMU does not do on demand."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.children import Process, start_time
from runtime.driver import Limits
from runtime.dynodir import DynoDirectory, Record, boot_id
from runtime.microvm import machine, protocol
from runtime.microvm.agent import Agent
from runtime.microvm.driver import Launch, MicroVmDriver
from runtime.microvm.dyno import MicroVm
from runtime.microvm.machine import MIB
from runtime.microvm.protocol import Reader
from runtime.qmp import Monitor

LIMITS = Limits(memory=128 * MIB, memory_max=128 * MIB)


class Imitation:
    """One of them.

    Args:
        directory: where its sockets are.
        generation: which QEMU of its dyno.

    Attributes:
        status: what it says that its machine does.
        asked: what its monitor was told, in order.
        answers: command → what to do and to return instead of the usual; an exception is a refusal.
        agent_answers: whether its guest agent does.
        ballooned: bytes that its guest has of what it booted with.
        orders: what its guest agent was told to apply, in order: the texts and numbers by their keys.
    """

    def __init__(self, directory: Path, generation: int, status: str = "running") -> None:
        self.directory, self.generation, self.status = directory, generation, status
        self.process = subprocess.Popen(["sleep", "600"])
        self.asked: list[str] = []
        self.told: list[bytes] = []
        self.orders: list[dict[str, bytes]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.agent_answers = True
        self.ballooned = 224 * MIB
        self._monitor: asyncio.StreamWriter | None = None
        self.agent: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Listen."""
        await asyncio.start_unix_server(self._serve_monitor, self.directory / f"monitor.{self.generation}")
        await asyncio.start_unix_server(self._serve_agent, self.directory / f"agent.{self.generation}")

    def say(self, event: str, when: float | None = None, **data: Any) -> None:
        """An event."""
        seconds, rest = divmod(when or time.time(), 1)
        at = {"seconds": int(seconds), "microseconds": int(rest * 1e6)}
        self._write({"event": event, "data": data, "timestamp": at})

    def _write(self, message: dict[str, Any]) -> None:
        assert self._monitor is not None
        self._monitor.write(json.dumps(message).encode() + b"\n")

    async def _serve_monitor(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._monitor = writer
        self._write({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}}})
        while line := await reader.readline():
            message = json.loads(line)
            self.asked.append(message["execute"])
            try:
                answer = {"return": self._do(message["execute"], message.get("arguments", {}))}
            except Exception as error:
                answer = {"error": {"desc": str(error)}}
            self._write({**answer, "id": message["id"]})

    def _do(self, command: str, arguments: dict[str, Any]) -> Any:
        if command in self.answers:
            return self.answers[command](arguments)
        if command in ("stop", "cont"):
            self.status = "paused" if command == "stop" else "running"
            self.say("STOP" if command == "stop" else "RESUME")
        if command == "balloon":
            self.ballooned = arguments["value"]
        if command == "query-balloon":
            return {"actual": self.ballooned}
        if command == "migrate":
            self.status = "postmigrate"
        return {"query-status": {"status": self.status}, "query-migrate": {"status": "completed"}, "ringbuf-read": ""}.get(command, {})

    async def _serve_agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.agent = writer
        frames, order = Reader(), b""
        while data := await reader.read(65536):
            for frame in frames.feed(data):
                self.told.append(bytes([frame.type]))
                if frame.type == protocol.SPEC:
                    order += frame.payload
                if frame.type == protocol.APPLY:
                    self.orders.append(dict(_fields(order)))
                    order = b""
                if not self.agent_answers:
                    continue
                if frame.type == protocol.SYNC:
                    state = struct.pack("<IBiB", protocol.VERSION, 1, 0, 0) + bytes(2)
                    writer.write(protocol.frame(protocol.SYNCED, 0, frame.payload + state))
                elif frame.type in (protocol.LOOK, protocol.LIMITS, protocol.APPLY):
                    writer.write(protocol.frame(protocol.DONE, frame.channel))

    @property
    def gone(self) -> bool:
        """Whether Davit has ended and reaped it."""
        return start_time(self.process.pid) is None

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def _fields(order: bytes) -> Iterator[tuple[str, bytes]]:
    while order:
        key, length = struct.unpack_from("<cI", order)
        yield key.decode(), order[5 : 5 + length]
        order = order[5 + length :]


class ImitationDriver(MicroVmDriver):
    """A driver on no host, whose machines are imitations.

    Attributes:
        limited: the memory limits that were put in force, in order.
        accelerated: for each of these, whether it was a machine with KVM's.
        freed: the slots that were given back.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.limited: list[int] = []
        self.accelerated: list[bool] = []
        self.freed: list[int] = []
        self.others: dict[int, Imitation] = {}
        instance = SimpleNamespace(
            directory=home, address=lambda slot: "198.18.0.2", mac=lambda slot: "02:00:00:00:00:02", cgroup="/none"
        )
        self.kept: set[asyncio.Task[Any]] = set()
        host = SimpleNamespace(
            instance=instance, dynos=home / "dynos", in_thread=asyncio.to_thread, forget=lambda pid: None, keep=self._keep,
            pool=SimpleNamespace(free=self.freed.append), resolv_conf=home / "resolv.conf", names_since=1,
        )  # fmt: skip
        super().__init__(host, kvm=False)  # type: ignore[arg-type]
        self._open, self.qemu_version = True, (7, 2, 0)
        self.directory.mkdir()
        host.dynos.mkdir()

    def _keep(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self.kept.add(task)
        return task

    async def current_qemu(self) -> tuple[int, ...]:
        return self.qemu_version

    def limit(self, group: Any, limits: Limits, memory: int, *, kvm: bool, machines: int = 1) -> list[Path]:
        self.limited.append(memory * machines)
        self.accelerated.append(kvm)
        return []

    async def start_imitation(self, id: str = "dyno") -> tuple[MicroVm, Imitation]:
        """A dyno that runs."""
        (self.directory / id).mkdir()
        qemu = Imitation(self.directory / id, 1)
        await qemu.open()
        facts = {
            "form": machine.FORM, "generation": 1, "memory": 224 * MIB, "plugged_memory": 0, "pluggable": 1024 * MIB,
            "processors": 1, "most_processors": 2, "kernel": "1", "qemu": list(self.qemu_version), "kvm": False, "app": "app",
            "limits": dict(vars(LIMITS)), "slug": False, "scratch": False,
        }  # fmt: skip
        pid = qemu.process.pid
        record = Record(id, "app-id", "web.1", 1, f"/none/{id}", boot_id(), pid, start_time(pid), isolation="microvm", facts=facts)
        directory = DynoDirectory(self.host.dynos / id)
        directory.create(record)
        dyno = MicroVm(self, record, Process(pid))
        dyno.cgroup = SimpleNamespace(memory=lambda: 0, ooms=lambda: 0, kill=lambda: None, remove=lambda: True)  # type: ignore[assignment]
        dyno.monitor = await Monitor.connect(self.socket(record, "monitor"), 60)
        dyno.agent = await Agent.connect(self.socket(record, "agent"), 60)
        dyno.bind_main()
        self.running[id] = dyno
        dyno.watch()
        return dyno, qemu

    async def twin(self, dyno: MicroVm) -> tuple[Launch, Imitation]:
        """Another machine that waits for the dyno's memory."""
        generation = dyno.record.facts["generation"] + 1
        qemu = self.others[generation] = Imitation(self.directory / dyno.spec_id, generation, "paused")
        await qemu.open()
        pid = qemu.process.pid
        facts = {**dyno.record.facts, "generation": generation}
        record = replace(dyno.record, pid=pid, started=start_time(pid), facts=facts)
        incoming = machine.Machine("app/web.1", 224 * MIB, 0, 1, 2, incoming=True)
        launch = Launch(record, DynoDirectory(self.host.dynos / dyno.spec_id), LIMITS, incoming, Path(), None, generation)
        return launch, qemu

    async def launch(self, launch: Launch) -> None:
        launch.process = Process(launch.record.pid or 0)
        launch.monitor = await Monitor.connect(self.socket(launch.record, "monitor"), 60)


@contextmanager
def ended(*imitations: Imitation) -> Iterator[None]:
    """None of them is left."""
    try:
        yield
    finally:
        for one in imitations:
            one.end()
