"""``python -m davit_wsgi [gunicorn's options] MODULE:APPLICATION``: serves a WSGI application in one process, with threads.

gunicorn itself, which is in the slug, reads its options, configuration file and application; only the serving is done here,
by waitress where the slug has it, else by the standard library's server.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import socketserver
import sys
import threading
import time
from typing import Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

GRACE = 25.0
"""Seconds that requests under way have when the dyno is told to end."""
THREADS = 16


class Handler(WSGIRequestHandler):
    """Knows that the router speaks HTTPS for us."""

    server_version = "davit"

    def get_environ(self) -> dict[str, Any]:
        """The request's environment."""
        environ: dict[str, Any] = super().get_environ()
        if self.headers.get("X-Forwarded-Proto", "").lower() == "https":
            environ["HTTPS"] = "on"  # wsgiref makes the scheme of it
        return environ

    def log_message(self, format: str, *values: Any) -> None:
        """One line a request, to standard output as gunicorn's access log."""
        sys.stdout.write(f"{self.address_string()} - {format % values}\n")


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread a request, no more than ``threads`` at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], application: Any, threads: int) -> None:
        self._room = threading.BoundedSemaphore(max(threads, 1))
        self._busy = 0
        super().__init__(address, Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Bind without asking the name server for our name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Wait for a free thread."""
        self._room.acquire()
        self._busy += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._busy -= 1
            self._room.release()

    @property
    def busy(self) -> int:
        """Requests under way."""
        return self._busy


def serve(application: Any, host: str, port: int, threads: int) -> None:
    """Serve until SIGTERM or SIGINT, then let requests end."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: stopping.append(got))
    try:
        import waitress  # type: ignore[import-untyped,unused-ignore,import-not-found]
    except ImportError:
        _serve_by_the_standard_library(application, host, port, threads, stopping)
    else:
        _serve_by_waitress(waitress.create_server, application, host, port, max(threads, 4), stopping)
    sys.stdout.flush()


def _serve_by_waitress(create_server: Any, application: Any, host: str, port: int, threads: int, stopping: list[int]) -> None:
    """waitress' own end gives requests five seconds, and does not send what it holds of their answers."""
    logging.basicConfig()
    parts: dict[int, Any] = {}
    router: dict[str, Any] = {
        "trusted_proxy": "*", "trusted_proxy_headers": {"x-forwarded-proto"}, "clear_untrusted_proxy_headers": False,
    }  # fmt: skip
    words: dict[str, Any] = {"host": host, "port": port, "threads": threads, "ident": None}
    try:
        server = create_server(application, parts, **words, **router)
    except ValueError:  # before waitress 1.2, which passes on all that the router says by itself
        server = create_server(application, parts, **words)
    print(f"Listening at http://{host}:{port} (waitress, one process, {threads} threads)", flush=True)
    while not stopping:
        server.asyncore.loop(timeout=1, map=parts, count=1)
    for listener in [part for part in parts.values() if part.accepting]:
        server.asyncore.dispatcher.close(listener)  # not its own close(), which takes from connections what wakes the loop
    until = time.monotonic() + GRACE
    while any(_under_way(part) for part in list(parts.values())) and time.monotonic() < until:
        server.asyncore.loop(timeout=0.05, map=parts, count=1)


def _under_way(connection: Any) -> bool:
    coming = getattr(connection, "request", None) is not None  # its body is not all here
    return coming or bool(getattr(connection, "requests", None) or getattr(connection, "total_outbufs_len", 0))


def _serve_by_the_standard_library(application: Any, host: str, port: int, threads: int, stopping: list[int]) -> None:
    ServerHandler.server_software = "davit"
    asleep, awake = socket.socketpair()
    awake.setblocking(False)
    signal.set_wakeup_fd(awake.fileno(), warn_on_full_buffer=False)
    server = Server((host, port), application, threads)
    print(f"Listening at http://{host}:{port} (one process, {threads} threads)", flush=True)
    while not stopping:
        waited: list[Any] = [server, asleep]
        ready = select.select(waited, [], [])[0]
        if asleep in ready and asleep.recv(64):
            break
        if server in ready:
            server.handle_request()
    server.server_close()
    for _ in range(int(GRACE * 20)):
        if not server.busy:
            break
        select.select([], [], [], 0.05)


def main() -> None:
    """Read gunicorn's options, load the application, serve it."""
    from gunicorn.app.wsgiapp import WSGIApplication  # type: ignore[import-untyped,unused-ignore,import-not-found]

    gunicorn = WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]")
    address = next((given for given in gunicorn.cfg.address if isinstance(given, tuple)), None)
    host, port = address or ("0.0.0.0", 8000)
    if "PORT" in os.environ:
        host, port = "0.0.0.0", int(os.environ["PORT"])
    os.chdir(gunicorn.cfg.chdir)
    sys.path.insert(0, gunicorn.cfg.chdir)
    threads = gunicorn.cfg.threads if gunicorn.cfg.threads > 1 else THREADS
    serve(gunicorn.wsgi(), host, port, threads)


if __name__ == "__main__":
    main()
