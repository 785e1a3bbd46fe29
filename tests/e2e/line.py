"""A line to a server on which answers that go on can be ended."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Line:
    """Passes connections to a port of the loopback on.

    Attributes:
        port: where clients connect.
        connections: how many there were.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        self._all: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                self._all += [client, server]
                self.connections += 1
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def end_answers(self) -> None:
        """End the chunked answer of every connection properly (RFC 9112, 7.1), as a server does that is told to stop.

        Only for a moment in which nothing is under way on them.
        """
        ended, self._open = self._open, []
        for number, one in enumerate(ended):
            with suppress(OSError):
                if number % 2 == 0:
                    one.sendall(b"0\r\n\r\n")
                one.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Break every connection and take no more."""
        self._listener.close()
        for one in self._all:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
