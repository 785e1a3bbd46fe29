"""Server-sent events (HTML standard, 9.2) for any number of open pages, by one thread that exists while there are any.

A request for events gives its connection away (:func:`taken`) and its thread back to the server; from then on it costs a
file descriptor and a few kilobytes. The one thread looks for news for all pages together: whether the database changed at
all (SQLite says so without a query), then one set of queries for all apps that are watched, and every few seconds one for all
lists; one read for each build and log that is followed. Every event carries the whole cursor of its connection as its id, so a
browser that comes back, also to another Davit process, goes on where it was.
"""

from __future__ import annotations

import json
import logging
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from api import streams
from api.door import Encrypted, Line, Plain
from builder import output
from dashboard import ansi, log_lines, watching
from foundation.errors import BadRequest, DavitError
from foundation.settings import settings
from logs import stream as log_stream
from state import apps, web_sessions
from state.db import engine
from state.models import App

log = logging.getLogger("web")

MOST = 500
"""Streams in this process at the most."""
EACH = 40
"""Streams of one account at the most."""
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
BUFFER = 1 << 20
"""Bytes that a client may be behind before it is cut off (it comes back with its cursor)."""
PIECE = 64 << 10
"""Bytes of build output in one event."""
AGAIN_SECONDS = 1.0
"""From a failure to the next attempt."""
STATE_SECONDS, TEXT_SECONDS, BEAT_SECONDS, CHECK_SECONDS = 0.5, 0.1, 15.0, 20.0
"""From one look at the database to the next; at outputs and logs; from one sign of life to the next; at permissions."""
LISTS_SECONDS = 2.0
"""From one look at lists to the next. A page loads its list anew every five seconds at the most; what a look costs grows with
the accounts that have one open."""
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-store\r\nConnection: close\r\n"
    b"X-Content-Type-Options: nosniff\r\nX-Accel-Buffering: no\r\n\r\nretry: 1000\n\n"
)


class TooManyPages(DavitError):
    """All streams that there may be are open."""

    id, status = "too_many_streams", 503


@dataclass
class Watched:
    """What a page wants to hear of.

    Attributes:
        secret: the session's cookie, which is looked at again from time to time.
        app: an app whose page it is.
        every: the list of apps that the account sees.
        build: a build whose output it shows.
        log: an app whose log it shows.
        seen: cursors by topic.
    """

    account_id: str
    secret: str
    app: str = ""
    every: bool = False
    build: str = ""
    log: str = ""
    seen: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Page:
    """An open page's connection."""

    line: Line
    watched: Watched
    pending: bytearray = field(default_factory=lambda: bytearray(HEAD))
    build_over: bool = False

    def tell(self, event: str, data: Any) -> None:
        """Queue an event, with the cursor as it is now."""
        text = f"id: {watching.cursor(self.watched.seen)}\nevent: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
        self.pending += text.encode("utf-8", "replace")


def taken(environ: dict[str, Any]) -> Line:
    """The request's connection, out of the server's hands.

    Raises:
        BadRequest: this server does not give its connections away.
    """
    line = environ.get("gunicorn.socket")
    if not isinstance(line, (Plain, Encrypted)):
        raise BadRequest("This server cannot stream; it must be gunicorn with Davit's worker.")
    line.taken = True
    return line


class Live:
    """All open pages of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arriving: list[Page] = []
        self._accounts: Counter[str] = Counter()
        self._thread: threading.Thread | None = None
        self._waker: socket.socket | None = None

    @property
    def count(self) -> int:
        """How many pages are open."""
        return self._accounts.total()

    def room_for(self, account_id: str) -> None:
        """Whether one more may be opened.

        Raises:
            TooManyPages: it may not.
        """
        if self.count >= MOST or self._accounts[account_id] >= EACH:
            raise TooManyPages("Too many pages are open already; this one is not kept current.")

    def add(self, page: Page) -> None:
        """Serve a page from now on.

        Raises:
            RuntimeError: the system gives no further thread; the page is let go.
        """
        page.line.setblocking(False)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                try:
                    self._begin()
                except Exception:
                    page.line.close()
                    raise
            self._accounts[page.watched.account_id] += 1
            self._arriving.append(page)
            if self._waker is not None:
                with suppress(OSError):  # a full pipe wakes the thread, too
                    self._waker.send(b".")

    def _begin(self) -> None:
        asleep, waker = socket.socketpair()
        asleep.setblocking(False)
        waker.setblocking(False)
        thread = threading.Thread(target=self._run, args=(asleep,), name="live pages", daemon=True)
        thread.start()
        self._thread, self._waker = thread, waker

    def _arrived(self) -> list[Page]:
        with self._lock:
            found, self._arriving = self._arriving, []
            return found

    def left(self, page: Page) -> None:
        """A page was closed."""
        with self._lock:
            self._accounts[page.watched.account_id] -= 1
            self._accounts += Counter()

    def over(self) -> bool:
        """Whether the thread may end: nobody is left, nobody is arriving."""
        with self._lock:
            if self._thread is not threading.current_thread():
                return True
            if self._arriving or self._accounts.total():
                return False
            self._forget_thread()
            return True

    def stop(self) -> None:
        """The process ends: the thread is forgotten, whoever is there."""
        with self._lock:
            if self._thread is threading.current_thread():
                self._forget_thread()

    def _forget_thread(self) -> None:
        if self._waker is not None:
            self._waker.close()
        self._thread, self._waker = None, None

    def _run(self, asleep: socket.socket) -> None:
        """Serve as long as anybody is there. Whatever fails, the thread goes on: pages whose connection it had to let go come
        back by themselves, with their cursors."""
        while not (self._round(asleep) or self.over()):
            time.sleep(AGAIN_SECONDS)
        asleep.close()

    def _round(self, asleep: socket.socket) -> bool:
        """Serve until nobody is left (True), or something fails (False)."""
        round: _Round | None = None
        try:
            round = _Round(self, asleep)
            round.run(self._arrived)
            return True
        except Exception:
            log.exception("live pages: begun anew")
            return False
        finally:
            if round:
                round.close()


class _Round:
    """The thread's own things: connections, what it looked at when."""

    def __init__(self, live: Live, asleep: socket.socket) -> None:
        self.live, self.asleep = live, asleep
        self.pages: set[Page] = set()
        self.selector = selectors.DefaultSelector()
        self.selector.register(asleep, selectors.EVENT_READ)
        self.connection: Connection | None = None
        self.change: watching.Change | None = None
        self.due = dict.fromkeys(("state", "lists", "text", "beat", "check"), 0.0)
        self.lists = watching.Lists()
        self.stale, self.stale_lists = True, True  # something was written, or somebody came, since the last look
        self.redis: Any = None

    def run(self, arrived: Callable[[], list[Page]]) -> None:
        """Serve until nobody is left."""
        while streams.working():
            for page in arrived():
                self._welcome(page)
            self._look()
            self._write()
            if not self.pages and self.live.over():
                return
            self._wait()
        self.live.stop()

    def close(self) -> None:
        """Let go of everything."""
        for page in list(self.pages):
            self._drop(page)
        self._disconnect()
        self.selector.close()

    def _database(self) -> tuple[Connection, watching.Change]:
        """The connection on which it is asked whether anything changed, opened when it is wanted."""
        if self.connection is None or self.change is None:
            self.connection = engine().connect()
            self.change = watching.Change(self.connection)
        return self.connection, self.change

    def _disconnect(self) -> None:
        connection, self.connection, self.change = self.connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _welcome(self, page: Page) -> None:
        self.pages.add(page)
        self.stale = True
        self.due["state"] = 0.0
        with self._sparing(page):
            self.selector.register(page.line, selectors.EVENT_READ, page)

    def _drop(self, page: Page) -> None:
        if page in self.pages:
            self.pages.discard(page)
            self.live.left(page)
            with suppress(KeyError, ValueError):  # it never came to be registered, or its descriptor is gone
                self.selector.unregister(page.line)
            with suppress(OSError):
                page.line.close()

    @contextmanager
    def _sparing(self, page: Page) -> Iterator[None]:
        """What goes wrong with one page ends that page's connection, not the others'."""
        try:
            yield
        except Exception:
            log.exception("live pages: a page was let go")
            self._drop(page)

    def _wait(self) -> None:
        following = any(page.watched.log or (page.watched.build and not page.build_over) for page in self.pages)
        for key, events in self.selector.select(TEXT_SECONDS if following else STATE_SECONDS):
            if key.fileobj is self.asleep:
                self._drain()
            elif events & selectors.EVENT_READ and self._hung_up(key.data):
                self._drop(key.data)

    def _drain(self) -> None:
        try:
            self.asleep.recv(4096)
        except OSError:
            pass

    def _hung_up(self, page: Page) -> bool:
        try:
            return not page.line.recv(4096)  # what a client of events says is of no interest
        except _LATER:
            return False
        except OSError:
            return True

    def _is_due(self, what: str, seconds: float) -> bool:
        moment = time.monotonic()
        if moment < self.due[what]:
            return False
        self.due[what] = moment + seconds
        return True

    def _look(self) -> None:
        try:
            if self._is_due("state", STATE_SECONDS):
                self._look_at_state()
            if self._is_due("check", CHECK_SECONDS):
                self._look_at_permissions()
        except (SQLAlchemyError, DavitError) as error:
            log.warning("live pages: the database does not answer: %s", type(error).__name__)
            self._disconnect()
            self.stale = True
            self.due["state"] = self.due["check"] = time.monotonic() + AGAIN_SECONDS
        if self._is_due("text", TEXT_SECONDS):
            self._look_at_builds()
            self._look_at_logs()
        if self._is_due("beat", BEAT_SECONDS):
            for page in self.pages:
                page.pending += b": here\n\n"

    def _look_at_state(self) -> None:
        connection, change = self._database()
        with connection.begin():
            self.stale = change.happened() or self.stale
            self.stale_lists = self.stale or self.stale_lists
            lists = self.stale_lists and self._is_due("lists", LISTS_SECONDS)
            if not (self.stale or lists):
                return
            with Session(connection) as session:
                found = watching.apps(session, {page.watched.app for page in self.pages} - {""}) if self.stale else {}
                readers = {page.watched.account_id for page in self.pages if page.watched.every}
                every = self.lists.look(session, readers) if lists else {}
        self.stale, self.stale_lists = False, self.stale_lists and not lists
        for page in self.pages:
            self._compare(page, "app", found.get(page.watched.app, ""))
            self._compare(page, "apps", every.get(page.watched.account_id, "") if page.watched.every else "")

    def _compare(self, page: Page, topic: str, now: str) -> None:
        if now and page.watched.seen.get(topic) != now:
            page.watched.seen[topic] = now
            page.tell(topic, now)

    def _look_at_permissions(self) -> None:
        connection, _ = self._database()
        with connection.begin(), Session(connection) as session:
            gone = [page for page in self.pages if not may_watch(session, page.watched)]
        for page in gone:
            self._drop(page)

    def _look_at_builds(self) -> None:
        read: dict[tuple[str, str], tuple[str, str, bool]] = {}
        for page in list(self.pages):
            if page.watched.build and not page.build_over and len(page.pending) <= BUFFER // 2:
                with self._sparing(page):
                    self._tell_of_build(page, read)

    def _tell_of_build(self, page: Page, read: dict[tuple[str, str], tuple[str, str, bool]]) -> None:
        id, place = page.watched.build, page.watched.seen.get("build", "")
        if (id, place) not in read:
            read[id, place] = build_news(id, place)
        html, place, over = read[id, place]
        if html:
            page.watched.seen["build"] = place
            page.tell("build", html)
        elif over:
            page.build_over = True
            page.tell("build-over", "")

    def _look_at_logs(self) -> None:
        read: dict[tuple[str, str], tuple[str, str]] = {}
        for page in list(self.pages):
            if page.watched.log and len(page.pending) <= BUFFER // 2:
                with self._sparing(page):
                    try:
                        self._tell_of_log(page, read)
                    except DavitError:
                        self.due["text"] = time.monotonic() + 2  # Redis is away: not ten times a second
                        return

    def _tell_of_log(self, page: Page, read: dict[tuple[str, str], tuple[str, str]]) -> None:
        id, place = page.watched.log, page.watched.seen.get("log", "0-0")
        if (id, place) not in read:
            read[id, place] = self._log_news(id, place)
        html, place = read[id, place]
        if html:
            page.watched.seen["log"] = place
            page.tell("log", html)

    def _log_news(self, app_id: str, after: str) -> tuple[str, str]:
        if self.redis is None:
            self.redis = log_stream.connect(settings().effective_redis_url)
        found = log_stream.tail(self.redis, app_id, after, timeout=0)[:500]
        if not found:
            return "", after
        behind = after != "0-0" and found[0][0] == log_stream.oldest(self.redis, app_id)
        return str((log_lines.MISSED if behind else "") + log_lines.render(found, "" if after == "0-0" else after)), found[-1][0]

    def _write(self) -> None:
        for page in list(self.pages):
            with self._sparing(page):
                try:
                    while page.pending:
                        del page.pending[: page.line.send(page.pending[:PIECE])]
                except _LATER:
                    if len(page.pending) > BUFFER:
                        self._drop(page)
                except OSError:
                    self._drop(page)


def build_news(build_id: str, place: str) -> tuple[str, str, bool]:
    """What a build has printed since.

    Args:
        place: ``BYTES:PEN``, as this function gave it before; empty for the beginning.

    Returns:
        Whole lines as HTML, the place after them, and whether nothing will follow.
    """
    position, _, pen_text = place.partition(":")
    start = int(position) if position.isascii() and position.isdigit() and len(position) < 12 else 0
    over = output.outcome(build_id) is not None  # asked before reading: the last bytes are there by then
    try:
        with (output.directory(build_id) / "output").open("rb", buffering=0) as file:
            file.seek(start)
            data = file.read(PIECE) or b""
    except FileNotFoundError:
        return "", place, over
    end = data.rfind(b"\n") + 1 or (len(data) if over or len(data) == PIECE else 0)
    html, pen = ansi.pieces(data[:end], ansi.parse(pen_text))
    return str(html), f"{start + end}:{pen}", over


def may_watch(session: Session, watched: Watched) -> bool:
    """Whether the browser's session still is one, and its account may see the app."""
    try:
        account = web_sessions.find(session, watched.secret).account
        for id in {watched.app, watched.log} - {""}:
            row = session.get(App, id)
            if row is not None and not row.destroying:
                apps.find(session, account, id)
    except DavitError:
        return False
    return True


live = Live()
