"""The little of Redis that logs need: commands and pipelines over the Redis protocol (RESP2), nothing else.

redis-py is the client everywhere else in Davit. It costs a process 27 MiB when it is imported, twice of what the whole
collector takes; this module costs 0.1. Both offer ``execute_command`` and ``pipeline``, and :mod:`logs.stream` takes either.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import TracebackType
from typing import IO, Any
from urllib.parse import parse_qs, unquote, urlsplit

from foundation.settings import SettingError


class Refused(Exception):
    """Redis answered a command with an error."""


class _Connection:
    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.reader: IO[bytes] = opened.makefile("rb")

    def close(self) -> None:
        self.reader.close()
        self.socket.close()

    @property
    def alive(self) -> bool:
        """Whether an idle connection can be used again: Redis has neither hung up nor said something unasked."""
        poll = select.poll()  # select(2) takes no descriptor above 1023
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    def talk(self, commands: Sequence[Sequence[object]], timeout: float) -> list[Any]:
        self.socket.settimeout(timeout)
        self.socket.sendall(b"".join(map(_encode, commands)))
        return [_read(self.reader) for _ in commands]


class Client:
    """Commands to one Redis; may be used by several threads, each command on a connection of its own while it runs.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` likewise, or ``unix:///path[?db=n]``.
        timeout: seconds for connecting and for an answer (an XREAD's own BLOCK time comes on top).
    """

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self._url = urlsplit(url)
        self._timeout = timeout
        if self._url.scheme not in ("redis", "rediss", "unix"):
            raise SettingError("REDIS_URL must start with redis://, rediss:// or unix://.")
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()

    def execute_command(self, *command: object, **_: object) -> Any:
        """Send one command and return its answer (bytes, int, None, or lists of them).

        Raises:
            OSError: Redis cannot be reached or hung up.
            Refused: it answered with an error.
        """
        [answer] = self._talk([command])
        if isinstance(answer, Refused):
            raise answer
        return answer

    def pipeline(self, transaction: bool = False) -> Pipeline:
        """Commands to be sent together."""
        return Pipeline(self)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _talk(self, commands: Sequence[Sequence[object]]) -> list[Any]:
        wait = self._timeout + (_block(commands[0]) if commands else 0)
        with self._connection() as connection:
            return connection.talk(commands, wait)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        connection = self._take_idle() or self._open()
        try:
            yield connection
        except BaseException:
            connection.close()  # half an answer may wait on it
            raise
        with self._lock:
            self._idle.append(connection)

    def _take_idle(self) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.alive:
                return connection
            connection.close()

    def _open(self) -> _Connection:
        connection = _Connection(self._socket())
        try:
            commands: list[tuple[str, ...]] = []
            if self._url.password:
                user = (unquote(self._url.username),) if self._url.username else ()
                commands.append(("AUTH", *user, unquote(self._url.password)))
            db = parse_qs(self._url.query).get("db", [""])[0]
            if self._url.scheme != "unix":
                db = db or self._url.path.strip("/")
            if db and db != "0":
                commands.append(("SELECT", db))
            for answer in connection.talk(commands, self._timeout):
                if isinstance(answer, Refused):
                    raise answer
        except BaseException:
            connection.close()
            raise
        return connection

    def _socket(self) -> socket.socket:
        if self._url.scheme == "unix":
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            opened.settimeout(self._timeout)
            try:
                opened.connect(unquote(self._url.path))
            except OSError:
                opened.close()
                raise
            return opened
        host = self._url.hostname or "127.0.0.1"
        opened = socket.create_connection((host, self._url.port or 6379), self._timeout)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._url.scheme == "rediss":
            import ssl  # 4 MiB, and rarely used here

            return ssl.create_default_context().wrap_socket(opened, server_hostname=host)
        return opened


class Pipeline:
    """Several commands in one write."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._commands: list[Sequence[object]] = []

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._commands = []

    def execute_command(self, *command: object) -> Pipeline:
        """Add a command."""
        self._commands.append(command)
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send them and return their answers in order; errors are answers too unless ``raise_on_error``.

        Raises:
            OSError: Redis cannot be reached or hung up; some of the commands may have been done.
            Refused: with ``raise_on_error``, the first error.
        """
        commands, self._commands = self._commands, []
        answers = self._client._talk(commands)
        for answer in answers:
            if raise_on_error and isinstance(answer, Refused):
                raise answer
        return answers


def _block(command: Sequence[object]) -> float:
    words = list(command)
    return float(str(words[words.index("BLOCK") + 1])) / 1000 if words[0] == "XREAD" and "BLOCK" in words else 0.0


def _encode(command: Sequence[object]) -> bytes:
    words = [b"$%d\r\n%b\r\n" % (len(word), word) if isinstance(word, bytes) else _encode_word(word) for word in command]
    return b"*%d\r\n%b" % (len(words), b"".join(words))


@lru_cache(maxsize=1024, typed=True)
def _encode_word(word: object) -> bytes:
    """A word that is not data: a command's name, a key, a number; the same ones come again and again."""
    raw = str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def _read(reader: IO[bytes]) -> Any:
    head = reader.readline()
    if not head.endswith(b"\r\n"):
        raise ConnectionError("Redis hung up.")
    kind, rest = head[:1], head[1:-2]
    if kind == b"$":
        size = int(rest)
        if size < 0:
            return None
        body = reader.read(size + 2)
        if len(body) != size + 2:
            raise ConnectionError("Redis hung up.")
        return body[:-2]
    if kind == b"+":
        return rest
    if kind == b"-":
        return Refused(rest.decode(errors="replace"))
    if kind == b":":
        return int(rest)
    if kind == b"*":
        return None if rest == b"-1" else [_read(reader) for _ in range(int(rest))]
    raise ConnectionError("What answers there does not speak the Redis protocol.")
