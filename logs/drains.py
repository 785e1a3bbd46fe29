"""Drains: every line of an app that has some is sent on, over HTTPS or syslog, by a thread per drain.

A line is read from the app's window in Redis, where every process's lines come together, and waits in its drain's buffer. A
frame that was not taken is sent again with the same id, after ever longer pauses. Lines that go missing, because the buffer
overflows meanwhile, because they left the window before they were read, or because the other side refuses them, are counted,
and the count is the first line of what is sent next (L10). How far a drain has got, and how many lines it has not been told to
have lost, is kept in Redis, so that a restart goes on where it was.

Without any drain this costs one look into the database now and then, without SQLAlchemy, and no thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.clock import now
from foundation.settings import settings
from logs import places, stream
from logs.places import Place
from logs.sender import Redis
from logs.stream import Line

if TYPE_CHECKING:
    from logs.delivery import Delivery, Lost

log = logging.getLogger("logs")

LOOK = 10.0
"""Seconds between looks for drains that nobody told of."""
KEPT, KEEP = 7 * 86400, 3600.0
"""Seconds for which what is noted of a drain stays after it is gone, and from one renewal to the next."""
BUSY_SECONDS = 5.0
"""How long a SQLite that is busy is waited for."""
END_SECONDS = 6.0
"""How long a delivery under way may take when this process is told to stop."""
WORST = 10
"""Drains of those that are behind that are told of one by one."""


@dataclass(frozen=True)
class Drain:
    """A drain as the database has it; ``ours``: its host is an app's custom domain (:class:`foundation.outbound.Place`)."""

    id: str
    app_id: str
    token: str
    url: str
    ours: bool = False


class Drains:
    """All drains of this Davit: finds them, reads their apps' lines, gives each its part.

    Args:
        redis: a client for this object alone.
        read: what drains there are; by default from the database.
    """

    def __init__(self, redis: Redis, read: Callable[[], Sequence[Drain]] | None = None) -> None:
        self._redis = redis
        self._read = read or read_database
        self.deliveries: dict[str, Delivery] = {}
        self._read_to: dict[str, Place] = {}
        self._kept_notes = -KEEP
        self._look = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def look(self) -> None:
        """Drains were added or removed."""
        self._look.set()

    def behind(self, seconds: float) -> dict[str, Any]:
        """Which drains lack lines that were said more than ``seconds`` ago, or have lost some and were not told of it yet.

        Returns:
            ``all`` and ``late``: how many there are, and how many of these; ``worst``: of which apps, with ``lines`` that wait,
            the ``seconds`` for which the oldest does, and ``lost`` lines.
        """
        at = time.time()
        lags = [(delivery.drain.app_id, delivery.lag()) for delivery in list(self.deliveries.values())]
        late = [(app_id, lag) for app_id, lag in lags if lag.lost or (lag.lines and at - lag.since > seconds)]
        late.sort(key=lambda found: found[1].since or at)
        worst = [
            {"app_id": app_id, "lines": lag.lines, "seconds": at - lag.since if lag.lines else 0.0, "lost": lag.lost}
            for app_id, lag in late[:WORST]
        ]
        return {"all": len(lags), "late": len(late), "worst": worst}

    def stop(self) -> None:
        """End all of it."""
        self._stopping = True
        self._look.set()
        self._thread.join(10)
        for delivery in self.deliveries.values():
            delivery.stop()
        for delivery in self.deliveries.values():
            delivery.join(END_SECONDS)

    def _run(self) -> None:
        looked = -LOOK
        while not self._stopping:
            try:
                if self._look.is_set() or time.monotonic() - looked >= LOOK:
                    self._look.clear()
                    looked = time.monotonic()
                    self._reconcile(self._read())
                if self._read_to:
                    self._follow()
                else:
                    self._look.wait(LOOK)
            except Exception as error:  # Redis or the database is away: later
                log.warning("drains wait", extra={"reason": f"{type(error).__name__}: {error}"})
                self._look.wait(2.0)

    def _reconcile(self, wanted: Sequence[Drain]) -> None:
        present = {drain.id: drain for drain in wanted}
        for id in [id for id, delivery in self.deliveries.items() if present.get(id) != delivery.drain]:
            self.deliveries.pop(id).stop()
        for id, drain in present.items():
            if id not in self.deliveries:
                self._begin(drain)
        if time.monotonic() - self._kept_notes >= KEEP:
            self._keep_notes()
            self._kept_notes = time.monotonic()
        apps = {drain.app_id for drain in wanted}
        self._read_to = {app_id: place for app_id, place in self._read_to.items() if app_id in apps}

    def _begin(self, drain: Drain) -> None:
        from logs.delivery import Delivery, Lost  # brings TLS and HTTP, which who has no drain does without

        kept = self._redis.execute_command("GET", _cursor_key(drain.id))
        start, lost = _resumed(kept.decode()) if kept else (places.newest(self._redis, drain.app_id), Lost())
        if not kept:  # a restart goes on from here also when nothing was taken until then
            self._settler(drain.id)(start, lost)
        read = self._read_to.get(drain.app_id, start)
        missed, lines = 0, list[tuple[Place, Line]]()
        if read != start:  # its app is read already, from elsewhere: what it lacks is read for it alone
            missed, lines = places.read_on(self._redis, drain.app_id, start, read)
        delivery = Delivery(drain, self._settler(drain.id), self._teller(drain.app_id), lost)
        self._read_to[drain.app_id], self.deliveries[drain.id] = read, delivery
        if missed or lines:
            delivery.put(lines, missed)

    def _follow(self) -> None:
        """Read what has come for all of their apps, and hand it out."""
        after = {app_id: place.id for app_id, place in self._read_to.items()}
        for app_id, found in stream.follow_many(self._redis, after, 1.0).items():
            until = places.newest(self._redis, app_id)
            missed, lines = places.read_on(self._redis, app_id, self._read_to[app_id], until, found)
            self._read_to[app_id] = lines[-1][0]
            for delivery in list(self.deliveries.values()):
                if delivery.drain.app_id == app_id:
                    delivery.put(lines, missed)

    def _keep_notes(self) -> None:
        """What is noted of a drain stays for as long as there is the drain, however long nothing is taken."""
        for id in self.deliveries:
            self._redis.execute_command("EXPIRE", _cursor_key(id), KEPT)

    def _settler(self, id: str) -> Callable[[Place, Lost], None]:
        def settle(place: Place, lost: Lost) -> None:
            try:
                words = f"{place.id} {place.number} {lost.count} {lost.since:.0f}"
                self._redis.execute_command("SET", _cursor_key(id), words, "EX", KEPT)
            except Exception as error:
                log.debug("a drain's place was not noted: %s", error)

        return settle

    def _teller(self, app_id: str) -> Callable[[str], None]:
        return lambda text: stream.emit(self._redis, app_id, [Line(now(), "heroku", "logplex", text)], wait=0)


def _cursor_key(id: str) -> str:
    return f"drains:{id}"


def _resumed(kept: str) -> tuple[Place, Lost]:
    """How far a drain had got, and what it had lost, from what was kept of it."""
    from logs.delivery import Lost

    words = kept.split()
    if len(words) != 4:  # an earlier Davit kept the line's id alone
        return Place(words[0], places.UNKNOWN), Lost()
    id, count, lost, since = words
    return Place(id, int(count)), Lost(int(lost), float(since))


def read_database() -> list[Drain]:
    """The drains in the database; SQLAlchemy is not loaded for it, and neither is anything else where there are none."""
    rows = _rows("SELECT id, app_id, token, url FROM log_drains")
    if not rows:
        return []
    from urllib.parse import urlsplit

    from state import vault

    urls: Mapping[str, str] = {row[0]: vault.reveal(bytes(row[3]))["url"] for row in rows}
    hosts = {id: (urlsplit(url).hostname or "").rstrip(".") for id, url in urls.items()}
    wanted = sorted(set(hosts.values()))
    marks = ", ".join("?" * len(wanted))
    own = {row[0] for row in _rows(f"SELECT hostname FROM domains WHERE hostname IN ({marks})", wanted)}  # noqa: S608
    return [Drain(row[0], row[1], row[2], urls[row[0]], hosts[row[0]] in own) for row in rows]


def _rows(question: str, values: Sequence[str] = ()) -> Sequence[Any]:
    """Of a SELECT with ``?`` for each of the values."""
    url = settings().database_url
    if url.startswith("sqlite:///"):
        import sqlite3

        file = url.removeprefix("sqlite:///")
        if not Path(file).exists():
            return []  # not migrated yet
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        try:
            return connection.execute(question, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []  # not migrated yet; another is passing trouble, and no word of the drains
            raise
        finally:
            connection.close()
    import psycopg

    with psycopg.connect(url.replace("postgres://", "postgresql://", 1), connect_timeout=5) as link:
        return link.execute(question.replace("?", "%s"), values).fetchall()
