"""An app's recent lines, 1,500 of them or 2 MiB: a Redis stream per app, and beside it what :mod:`logs.window` puts aside.

    emit(redis, app.id, [Line(now(), "heroku", "web.1", "State changed from starting to up")])
    for id, line in recent(redis, app.id, 100, dyno="web"): print(format_line(line))

``redis`` is redis-py's ``Redis``, or :func:`connect`'s client, which costs an idle process 27 MiB less.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from foundation.errors import Unavailable
from logs import lines as safe
from logs.resp import Client
from logs.room import LATE, Room
from logs.sender import Redis, Sender
from logs.window import BACKSTOP, RESERVE, SHARES, WINDOW, aside, fair, key, share, trim

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_SLICE = 2.0  # seconds of one blocking read: below any client's socket timeout
_FIELD = b"line"
_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")


class Line(NamedTuple):
    """A line of an app's log.

    Attributes:
        at: when, aware.
        source: ``app`` (what dynos print, what users do) or ``heroku`` (the platform).
        process: ``web.1``, ``run.4821``, ``router``, ``api``, ``logplex``.
        text: without line breaks; :func:`emit` cuts and cleans whatever it is given.
    """

    at: datetime
    source: str
    process: str
    text: str


class AsyncRedis(Protocol):
    """What is used of an asyncio client (``redis.asyncio.Redis``)."""

    async def execute_command(self, *command: Any) -> Any:
        """Send a command and return its answer."""


def connect(url: str, timeout: float = 5.0) -> Client:
    """A light Redis client for the functions here; opens no connection yet. Arguments as :class:`logs.resp.Client`."""
    return Client(url, timeout)


def format_line(line: Line) -> str:
    """Heroku's display format: ``2026-11-23T16:00:00.123456+00:00 app[web.1]: text``."""
    at = line.at.astimezone(timezone.utc).isoformat(timespec="microseconds")
    return f"{at} {line.source}[{line.process}]: {line.text}"


def matches(line: Line, source: str | None = None, dyno: str | None = None) -> bool:
    """Whether a line passes the filters: ``web`` is every web dyno, ``web.1`` that one alone."""
    if source and line.source != source:
        return False
    return not dyno or line.process == dyno or ("." not in dyno and line.process.startswith(dyno + "."))


# Writing


def pack(at: int, source: str, process: str, text: bytes) -> bytes:
    """A line as it is kept: microseconds since the epoch, source, process and text, a space between them."""
    return b"%d %b %b %b" % (at, source.encode(), process.encode(), text)


def append(app_id: str, packed: bytes) -> tuple[object, ...]:
    """The Redis command that adds a packed line."""
    return ("XADD", key(app_id), "MAXLEN", "~", BACKSTOP, "*", _FIELD, packed)


def overflow(count: int, since: float) -> bytes:
    """The packed L12 line: Redis took no lines from a process of Davit's, and its buffer was full."""
    text = f"Error L12 (local buffer overflow): {count} messages dropped since {iso(since)}"
    return pack(time.time_ns() // 1000, "heroku", "logplex", text.encode())


def iso(seconds: float) -> str:
    """Seconds since the epoch as Heroku writes a time, without fractions."""
    return datetime.fromtimestamp(int(seconds), timezone.utc).isoformat()


_senders: WeakKeyDictionary[Redis, Sender] = WeakKeyDictionary()
_lock = threading.Lock()


def sender(redis: Redis, high: float = LATE) -> Sender:
    """The buffer in front of ``redis`` in this process.

    Args:
        high: the part of Redis's bound from which it shortens windows; who asks first decides.
    """
    with _lock:
        found = _senders.get(redis)
        if found is None:
            found = _senders[redis] = Sender(redis, append, overflow, trim, Room(redis, high))
        return found


def emit(redis: Redis, app_id: str, lines: Sequence[Line], *, wait: float = 0.05) -> None:
    """Add lines to an app's log, in order. Never raises for Redis's sake, and never blocks longer than ``wait``.

    Args:
        redis: a blocking client.
        lines: their texts may hold anything: breaks make several lines, long ones are cut, the rest is cleaned.
        wait: seconds to wait for Redis to have them (usually 0.0002), so that a process that ends right after has not
            lost them; 0 returns at once. While Redis is known to be slow or away nobody waits: lines stay in a bounded buffer,
            and the log says how many were lost (L12).
    """
    packed = [
        pack((line.at - _EPOCH) // _MICROSECOND, line.source, line.process, text)
        for line in lines
        for text in safe.split_text(line.text)
    ]
    if not packed:
        return
    buffer = sender(redis)
    mark = buffer.put(app_id, packed)
    if wait > 0 and buffer.prompt:
        buffer.wait(mark, wait)


def flush(redis: Redis, timeout: float = 2.0) -> bool:
    """Wait until all that was emitted here is in Redis; False when ``timeout`` seconds were not enough."""
    return sender(redis).flush(timeout)


def forget(redis: Redis, app_id: str) -> None:
    """Remove the app's lines (it was destroyed).

    Raises:
        Unavailable: Redis cannot be reached.
    """
    _ask(redis, "DEL", key(app_id), *aside(app_id))


def _after_fork() -> None:
    global _senders, _lock
    _senders, _lock = WeakKeyDictionary(), threading.Lock()  # the thread and its lines stayed in the parent


def _at_exit() -> None:
    for buffer in list(_senders.values()):
        buffer.flush(0.5)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


# Reading


def recent(
    redis: Redis, app_id: str, lines: int = 100, source: str | None = None, dyno: str | None = None
) -> list[tuple[str, Line]]:
    """The last ``lines`` lines of the window that pass the filters, oldest first, each with its id.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    wanted = max(0, min(lines, WINDOW))
    if not wanted:
        return []
    if not (source or dyno) and wanted <= WINDOW - len(SHARES) * RESERVE:  # the newest, whatever they are
        found = _entries(_ask(redis, "XREVRANGE", key(app_id), "+", "-", "COUNT", wanted))[::-1]
        if len(found) == wanted:
            return found
    window = fair(_kept(redis, app_id), lambda entry: share(entry[1].source, entry[1].process))
    return [(id, line) for id, line in window if matches(line, source, dyno)][-wanted:]


def _kept(redis: Redis, app_id: str, after: str = "") -> list[tuple[str, Line]]:
    """All lines that are there, or those after the id ``after``, oldest first.

    The newest are read first: what is put aside in between is found twice then, and not missed.
    """
    return between(redis, [key(app_id), *aside(app_id)], after or "-", "+")


def newest(redis: Redis, app_id: str) -> str:
    """The id of the newest line, ``0-0`` when there is none: where a tail from now on starts.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    found = _entries(_ask(redis, "XREVRANGE", key(app_id), "+", "-", "COUNT", 1))
    return found[0][0] if found else "0-0"


def oldest(redis: Redis, app_id: str) -> str:
    """The id of the oldest line that was not taken away yet, ``0-0`` when there is none: a tail that starts before it may have
    missed lines.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    found = _entries(_ask(redis, "XRANGE", key(app_id), "-", "+", "COUNT", 1))
    return found[0][0] if found else "0-0"


def tail(
    redis: Redis, app_id: str, after_id: str, source: str | None = None, dyno: str | None = None, timeout: float = 15.0
) -> list[tuple[str, Line]]:
    """The lines after ``after_id`` that pass the filters: at once when there are some, else as soon as one comes.

    Args:
        after_id: the id of the last line that was seen (``0-0``: from the beginning of the window; ``$``: from now on).
        timeout: seconds to wait for one.

    Returns:
        (id, line), oldest first; empty when the time ran out. Call again with the last id.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    after = _cursor(after_id) or newest(redis, app_id)
    end = time.monotonic() + timeout
    while True:
        left = max(0.0, end - time.monotonic())
        found = _entries(_first_stream(_ask(redis, *_read_command(app_id, after, left))))
        passing = [(id, line) for id, line in found if matches(line, source, dyno)]
        if passing or left <= 0:
            return passing
        after = found[-1][0] if found else after


def follow_many(redis: Redis, after: Mapping[str, str], timeout: float) -> dict[str, list[tuple[str, Line]]]:
    """What came in several apps' logs.

    Args:
        after: app id → the id of the last line that was seen.
        timeout: seconds to wait for a line in any of them; 0 asks and does not wait.

    Returns:
        App id → lines, oldest first, for those that have some.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    keys = {key(app_id): app_id for app_id in after}
    block = ("BLOCK", max(1, int(min(timeout, _SLICE) * 1000))) if timeout > 0 else ()
    reply = _ask(redis, "XREAD", "COUNT", WINDOW, *block, "STREAMS", *keys, *(after[app_id] for app_id in keys.values()))
    pairs = reply.items() if isinstance(reply, dict) else reply or []
    found = {}
    for name, entries in pairs:
        lines = _entries(_unwrapped(entries) if isinstance(reply, dict) else entries)
        if lines:
            found[keys[name.decode() if isinstance(name, bytes) else name]] = lines
    return found


def between(redis: Redis, streams: Sequence[str], after: str, until: str) -> list[tuple[str, Line]]:
    """The lines of several streams after one id and up to another, oldest first.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    lines: dict[str, Line] = {}
    for name in streams:
        lines.update(_entries(_ask(redis, "XRANGE", name, after, until)))
    lines.pop(after, None)  # Redis 6.0 has no ranges that leave out their end
    return sorted(lines.items(), key=lambda entry: order(entry[0]))


async def atail(
    redis: AsyncRedis, app_id: str, after_id: str, source: str | None = None, dyno: str | None = None, timeout: float = 15.0
) -> list[tuple[str, Line]]:
    """:func:`tail` for asyncio code, with an asyncio client (``redis.asyncio.Redis``); ``$`` is not taken."""
    after = _cursor(after_id) or "0-0"
    end = time.monotonic() + timeout
    while True:
        left = max(0.0, end - time.monotonic())
        try:
            reply = await redis.execute_command(*_read_command(app_id, after, left))
        except Exception as error:
            raise _unavailable(error) from error
        found = _entries(_first_stream(reply))
        passing = [(id, line) for id, line in found if matches(line, source, dyno)]
        if passing or left <= 0:
            return passing
        after = found[-1][0] if found else after


def since(
    redis: Redis, app_id: str, lines: int, source: str | None = None, dyno: str | None = None, *, after_id: str | None = None
) -> tuple[str, list[tuple[str, Line]]]:
    """Where a tail begins: the id that it goes on after, and the lines that it shows first.

    Args:
        after_id: the last line that was seen (Last-Event-ID): only newer ones are shown, however many; else the last ``lines``.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    after = _cursor(after_id or "")
    if after:
        found = _kept(redis, app_id, after)
        # a client's word that no line has yet is not believed: others of the app would wait for that line with it
        seen = found[-1][0] if found else min(after, newest(redis, app_id), key=order)
        return seen, [(id, line) for id, line in found if matches(line, source, dyno)]
    seen = newest(redis, app_id)
    shown = recent(redis, app_id, lines, source, dyno)
    return max([seen, *(id for id, _ in shown)], key=order), shown


def follow(
    redis: Redis,
    app_id: str,
    lines: int = 100,
    source: str | None = None,
    dyno: str | None = None,
    *,
    after_id: str | None = None,
    quiet: float = 15.0,
) -> Iterator[tuple[str, Line] | None]:
    """The recent lines, then every new one, for ever; nothing twice and nothing missed in between.

    Args:
        after_id: start after this line instead (a client that comes back with Last-Event-ID).
        quiet: yield None when no line came for so many seconds, so that a server can send a keep-alive and notice that
            its client is gone.

    Raises:
        Unavailable: Redis cannot be reached.
    """
    after, shown = since(redis, app_id, lines, source, dyno, after_id=after_id)
    yield from shown
    while True:
        found = tail(redis, app_id, after, source, dyno, quiet)
        if not found:
            yield None
        for id, line in found:
            yield id, line
            after = id


def _read_command(app_id: str, after: str, left: float) -> tuple[object, ...]:
    block = ("BLOCK", max(1, int(min(left, _SLICE) * 1000))) if left > 0 else ()
    return ("XREAD", "COUNT", WINDOW, *block, "STREAMS", key(app_id), after)


def _cursor(id: str) -> str:
    """The id when it is one (it may come from a client), else nothing."""
    if not _ID.fullmatch(id) or max(order(id)) >= 1 << 64:  # Redis takes no larger numbers
        return ""
    return id


def order(id: str) -> tuple[int, int]:
    """A line's id as something that sorts."""
    first, _, second = id.partition("-")
    return int(first), int(second or 0)


def _ask(redis: Redis, *command: object) -> Any:
    try:
        return redis.execute_command(*command)
    except Exception as error:  # redis-py's errors are not OSErrors, and are not imported here
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"The app's log cannot be read at the moment: Redis does not answer ({type(error).__name__}).")


def _first_stream(reply: Any) -> Any:
    """The entries of an XREAD answer for one stream: a list of pairs in RESP2, a mapping in RESP3."""
    if not reply:
        return []
    if isinstance(reply, dict):
        [entries] = reply.values()
        return _unwrapped(entries)
    return reply[0][1]


def _unwrapped(entries: Any) -> Any:
    """redis-py wraps the entries of a RESP3 answer in one more list."""
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _entries(reply: Any) -> list[tuple[str, Line]]:
    found = []
    for id, values in reply or []:
        packed = next(iter(values.values())) if isinstance(values, dict) else values[1]
        raw = packed if isinstance(packed, bytes) else str(packed).encode()
        line = _unpack(raw)
        if line:
            found.append((id.decode() if isinstance(id, bytes) else id, line))
    return found


def _unpack(raw: bytes) -> Line | None:
    at, _, rest = raw.decode("utf-8", "replace").partition(" ")
    source, _, rest = rest.partition(" ")
    process, _, text = rest.partition(" ")
    if not at.isdecimal():
        return None
    return Line(_EPOCH + int(at) * _MICROSECOND, source, process, text)
