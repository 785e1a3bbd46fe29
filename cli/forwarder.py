"""A small server on this machine's loopback address that carries the ``heroku`` command's traffic to a Davit elsewhere.

One port takes HTTP, HTTPS and rendezvous, as Davit's own does (:mod:`api.door`). Requests go on over TLS to the Davit, one a
connection, with a header that says where this forwarder stands, so that the URLs in answers lead back through it. It adds no
credentials: who connects needs a token of their own.

    python -m cli.forwarder URL    serves until SIGTERM, or until nobody has come for a week
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cli import hosts, output
from foundation import disk
from foundation.authority import Authority
from foundation.errors import DavitError

IDLE_SECONDS = 7 * 24 * 3600
LOWEST_PORT, PORTS = 18_000, 10_000
"""Where a forwarder's port is looked for."""
START_SECONDS = 30
RENDEZVOUS = b"davit-run-"
SECRET_BYTES = len(RENDEZVOUS) + 48
HEAD_BYTES = 65536
CHUNK = 65536


@dataclass(frozen=True)
class Running:
    """A forwarder that answers.

    Attributes:
        edition: the program that it runs, and the certificates that it believes: see :func:`_edition`.
    """

    port: int
    pid: int
    edition: str


def _directory() -> Path:
    return hosts.file().parent / "forwarder"


def _notes(url: str) -> Path:
    return _directory() / (re.sub(r"[^A-Za-z0-9.]+", "-", url) + ".json")


def known(url: str) -> bool:
    """Whether there was ever a forwarder to ``url``."""
    return _noted(_notes(url)) is not None


def ensure(url: str, *, renew: bool = True) -> tuple[str, str]:
    """The forwarder for the Davit at ``url``, started when none runs: its base URL, and the authority to trust (PEM).

    It is at the same port as ever: checkouts' remotes have it. Where somebody else has that port by now, the user is told.

    Args:
        renew: whether one that runs is followed by another where this one's program, or the certificates that are believed here,
            are others than its own. Where the Davit does not answer here, another might do worse.

    Raises:
        DavitError: it could not be started.
    """
    authority = Authority(_directory() / "ca.pem").pem.decode()
    with _alone(url):
        before = _noted(_notes(url))
        there = _running(url, authority)
        if there is not None and renew and there.edition != _edition():
            _end(there)
            there = None
        if there is None:
            there = _start(url, authority)
    if before not in (None, there.port):
        output.warn(
            f"Port {before}, where {url} was reached until now, is somebody else's; now it is port {there.port}. "
            "In checkouts made before: `heroku git:remote -a APP`."
        )
    return f"https://localhost:{there.port}", authority  # https: whoever else gets the port one day gets no token with it


@contextlib.contextmanager
def _alone(url: str) -> Iterator[None]:
    with _notes(url).with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(url: str, authority: str) -> Running:
    with (_directory() / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "cli.forwarder", url], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, cwd=Path(__file__).resolve().parent.parent, env={**os.environ, **_trusted()},
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while (there := _running(url, authority)) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            raise DavitError(f"The forwarder to {url} did not start; {_directory() / 'log'} says why.")
        time.sleep(0.05)
    return there


def _end(there: Running) -> None:
    """Have a forwarder leave its port to the next one. What is under way through it ends."""
    deadline = time.monotonic() + START_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):  # another user's stays: its port is told as taken
        os.kill(there.pid, signal.SIGTERM)
        while _listens(there.port) and time.monotonic() < deadline:
            time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


def _noted(notes: Path) -> int | None:
    """The port of the forwarder whose notes they are: the present one's, or the last one's."""
    try:
        return int(json.loads(notes.read_text())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _running(url: str, authority: str) -> Running | None:
    """What answers at the noted port, if it is a forwarder of this user's to ``url``: TLS tells it from whoever else is there."""
    port = _noted(_notes(url))
    if port is None:
        return None
    try:
        context = ssl.create_default_context(cadata=authority)
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as line,
        ):
            line.sendall(b"GET /.forwarder HTTP/1.1\r\n\r\n")
            said = b""
            while piece := line.recv(1000):
                said += piece
        told = json.loads(said.partition(b"\r\n\r\n")[2])
        return Running(port, int(told["pid"]), str(told["edition"])) if told["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _edition() -> str:
    """Of the program, and of the certificates that OpenSSL reads at the start; it looks into SSL_CERT_DIR each time anew."""
    edition = hashlib.sha256(Path(__file__).read_bytes())
    edition.update(repr(sorted(_trusted().items())).encode())
    with contextlib.suppress(OSError):
        edition.update(Path(ssl.get_default_verify_paths().cafile or os.devnull).read_bytes())
    return edition.hexdigest()[:16]


def _trusted() -> dict[str, str]:
    """Where the environment has the certificates that are believed, for a process that works in another directory."""
    trusted = {}
    if file := os.environ.get("SSL_CERT_FILE"):
        trusted["SSL_CERT_FILE"] = str(Path(file).absolute())
    if directories := os.environ.get("SSL_CERT_DIR"):
        trusted["SSL_CERT_DIR"] = os.pathsep.join(str(Path(one).absolute()) for one in directories.split(os.pathsep) if one)
    return trusted


def _listen(url: str) -> socket.socket:
    """At the port of before; else at one that is the same for this Davit on every machine of its user's, unless it is taken, or
    another Davit's forwarder had it.

    It is below those that systems give to clients by themselves (32768 and up on Linux, 49152 on others).
    """
    first = zlib.crc32(url.encode()) % PORTS
    candidates = [LOWEST_PORT + (first + step) % PORTS for step in range(100)]
    others = {_noted(notes) for notes in _directory().glob("*.json") if notes != _notes(url)}
    for port in (_noted(_notes(url)), *(port for port in candidates if port not in others), 0):
        if port is not None:
            with contextlib.suppress(OSError):
                return socket.create_server(("127.0.0.1", port))
    raise DavitError("There is no free port on this machine.")


class Forwarder:
    """Serves.

    Args:
        url: the Davit's base URL.
        local: the server's side of TLS here.
        trust: what certificates are believed there; None for http.
    """

    def __init__(self, url: str, local: ssl.SSLContext, trust: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self.url, self.local, self.trust = url, local, trust
        self.host, self.authority = parts.hostname or "", parts.netloc
        self.port = parts.port or (443 if trust else 80)
        self.base = ""
        self.about = json.dumps({"url": url, "pid": os.getpid(), "edition": _edition()})
        self.last = time.monotonic()
        self.busy = 0

    async def serve(self, listener: socket.socket) -> None:
        """Until nobody has come for :data:`IDLE_SECONDS`."""
        self.base = f"localhost:{listener.getsockname()[1]}"
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        accepting: asyncio.Task[tuple[socket.socket, object]] | None = None
        while self.busy or time.monotonic() - self.last < IDLE_SECONDS:
            accepting = accepting or loop.create_task(loop.sock_accept(listener))  # one that is cancelled can lose a client
            if not (await asyncio.wait([accepting], timeout=60))[0]:
                continue
            done, accepting = accepting, None
            try:
                client, _ = done.result()
            except OSError as error:  # no descriptor or memory left at the moment
                print(f"connections cannot be taken: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(1)
                continue
            self.last = time.monotonic()
            task = loop.create_task(self._receive(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _receive(self, client: socket.socket) -> None:
        self.busy += 1
        try:
            client.setblocking(False)
            first = await asyncio.wait_for(_peek(client), 30)
            if not first:
                client.close()
                return
            secure = first[0] == 0x16
            reader = asyncio.StreamReader(limit=HEAD_BYTES)
            protocol = asyncio.StreamReaderProtocol(reader)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=self.local if secure else None)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                await self._carry(reader, writer, secure)
            finally:
                writer.close()
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            client.close()
        finally:
            self.busy -= 1

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secure: bool) -> None:
        start = await asyncio.wait_for(reader.readexactly(len(RENDEZVOUS)), 30)
        if secure and start == RENDEZVOUS:
            head = await self._rendezvous(start, reader)
        else:
            head = self._head(start + await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30), secure)
        if head.startswith(b"GET /.forwarder "):
            writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{self.about}".encode())
            await writer.drain()
            return
        try:
            there, back = await asyncio.wait_for(self._connect(), 30)
        except (OSError, asyncio.TimeoutError, TimeoutError) as error:
            writer.write(_unreachable(self.url, error))
            await writer.drain()
            return
        try:
            back.write(head)
            if head.startswith(b"GET /rendezvous/"):
                await asyncio.wait_for(there.readuntil(b"\r\n\r\n"), 30)  # 101; then the stream is the rendezvous's
            await _both(_pipe(reader, back), _pipe(there, writer))
        finally:
            back.close()

    async def _rendezvous(self, start: bytes, reader: asyncio.StreamReader) -> bytes:
        secret = (start + await asyncio.wait_for(reader.readexactly(SECRET_BYTES - len(start)), 30)).decode("ascii", "replace")
        lines = [f"GET /rendezvous/{secret} HTTP/1.1", f"Host: {self.authority}", "Connection: Upgrade", "Upgrade: rendezvous"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _head(self, head: bytes, secure: bool) -> bytes:
        """The head of a request as it goes on."""
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        upgrade = any(line.lower().startswith("upgrade:") for line in lines)
        replaced = ("host:", "davit-base:") if upgrade else ("host:", "davit-base:", "connection:", "keep-alive:")
        kept = [line for line in lines if not line.lower().startswith(replaced)]
        scheme = "https" if secure else "http"
        ours = [f"Host: {self.authority}", f"Davit-Base: {scheme}://{self.base}", *([] if upgrade else ["Connection: close"])]
        return ("\r\n".join([first, *ours, *kept]) + "\r\n\r\n").encode("latin-1")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            self.host, self.port, ssl=self.trust, server_hostname=self.host if self.trust else None, limit=HEAD_BYTES
        )


async def _peek(client: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(client, ready.set)
    try:
        await ready.wait()
        return client.recv(1, socket.MSG_PEEK)
    finally:
        loop.remove_reader(client)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        pass


async def _both(up: Awaitable[None], down: Awaitable[None]) -> None:
    """Until the answer has ended; a client may be done sending long before."""
    sending, answering = asyncio.ensure_future(up), asyncio.ensure_future(down)
    try:
        await answering
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def _unreachable(url: str, error: BaseException) -> bytes:
    reason = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or "it does not answer"
    body = json.dumps({"id": "unavailable", "message": f"The Davit at {url} cannot be reached: {reason}."}).encode()
    lines = ["HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


def main(url: str) -> int:
    """``python -m cli.forwarder URL``"""
    directory = _directory()
    certificate = directory / "server.pem"
    Authority(directory / "ca.pem").ensure(certificate, ["localhost", "127.0.0.1", "::1"])
    local = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    local.load_cert_chain(certificate)
    trust = ssl.create_default_context() if url.startswith("https://") else None
    listener = _listen(url)
    disk.write(_notes(url), json.dumps({"port": listener.getsockname()[1], "pid": os.getpid(), "url": url}).encode())
    try:
        asyncio.run(Forwarder(url, local, trust).serve(listener))
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
