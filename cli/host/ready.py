"""Whether Davit's processes answer: each is asked in the way that its clients use."""

from __future__ import annotations

import http.client
import socket
import sys
import time
from collections.abc import Callable, Collection

from cli.host import logfiles, processes, record
from foundation import wire
from foundation.errors import DavitError
from foundation.settings import Address, Settings

PATIENCE = 60.0
"""Seconds in which a started Davit has to answer."""


class NotReady(DavitError):
    """A process of Davit's did not come up."""

    id, status = "not_ready", 503


def answers(name: str, settings: Settings) -> bool:
    """Whether the process of that name in Procfile does its work now; one without a question of its own counts as ready."""
    asked: dict[str, Callable[[Settings], bool]] = {
        "redis": _redis,
        "web": lambda settings: _http(settings.api.reachable),
        "ssh": lambda settings: _ssh(settings.ssh.reachable),
        "worker": _worker,
    }
    try:
        if name in asked:
            return asked[name](settings)
        if name in ("runtime", "router", "logs"):
            wire.call(settings.run / f"{name}.sock", "ping", timeout=5)
        return True
    except (OSError, DavitError, http.client.HTTPException):
        return False


def _http(address: Address) -> bool:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    finally:
        connection.close()


def _ssh(address: Address) -> bool:
    with socket.create_connection((address.host, address.port), timeout=5) as connection:
        return connection.recv(4) == b"SSH-"


def _redis(settings: Settings) -> bool:
    import redis

    try:
        with redis.Redis.from_url(settings.effective_redis_url, socket_timeout=5) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _worker(settings: Settings) -> bool:
    """It waits at its queue, where Redis sees a client in a blocking command, or builds already, in children of its own.

    Where another supervisor than Davit's has it (systemd, Docker), what it says of itself counts.
    """
    import redis

    from state import notify

    if record.running_supervisor(settings.run) is None:
        try:
            return notify.worker_is_known()
        except redis.RedisError:
            return False
    entry = next((entry for entry in record.read(settings.run).living() if entry.name == "worker"), None)
    if entry is None or entry.process is None:
        return False
    try:
        with redis.Redis.from_url(settings.effective_redis_url, socket_timeout=5) as client:
            waits = any(other["cmd"] in ("blpop", "brpop", "blmove") for other in client.client_list())
    except redis.RedisError:
        return False
    return waits or bool(processes.descendants([entry.process.pid]))


def wait(names: Collection[str], settings: Settings, patience: float = PATIENCE) -> None:
    """Return when all these processes answer.

    Raises:
        NotReady: one did not in time; the message names it and quotes its log.
    """
    deadline = time.monotonic() + patience
    for name in names:
        while not answers(name, settings):
            if time.monotonic() > deadline:
                raise NotReady(_explain(name, settings, patience))
            time.sleep(0.05)


def _explain(name: str, settings: Settings, patience: float) -> str:
    entry = next((entry for entry in record.read(settings.run).entries if entry.name == name), None)
    restarts = f" and was started again {entry.restarts} times" if entry and entry.restarts else ""
    log = settings.home / "log" / f"{name}.log"
    lines = "\n".join(f"    {line}" for line in logfiles.last_lines(log))
    said = f"The last lines of {log}:\n{lines}" if lines else f"Its log, {log}, is empty."
    return f"Davit's {name} process did not answer within {patience:.0f} seconds{restarts}; `davit status` shows all. {said}"


def main(names: list[str]) -> int:
    """``python -m cli.host.ready NAME…``: exit status 0 when all these processes answer; a container's health check."""
    from foundation.settings import settings

    return 0 if all(answers(name, settings()) for name in names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
