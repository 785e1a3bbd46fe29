"""How this Davit is: does each process answer, do jobs wait, is there room, do certificates last."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import redis
from sqlalchemy import and_, func, select, text
from sqlalchemy.orm import Session

from foundation import wire
from foundation.clock import now
from foundation.errors import DavitError
from foundation.memory import meminfo
from foundation.settings import settings
from state import domains, notify, own_names
from state.models import Account, App, Build, Dyno, Release, WebhookDelivery

if TYPE_CHECKING:
    from cryptography import x509

Level = Literal["ok", "warn", "bad"]

PATIENCE = 2.0
"""Seconds that a process has to answer."""
REDIS_FULL, REDIS_BRIMFUL = 0.85, 0.97
"""Parts of Redis's bound: logs take no more than three quarters, so that more is something else's."""
ROOM_WANTED, ROOM_LEAST = 5 << 30, 1 << 30
CERTIFICATE_DAYS = 14
LATE = timedelta(minutes=5)
"""How long after its time a webhook's delivery may be under way."""
BEHIND = 60.0
"""Seconds for which a log drain's oldest line may wait."""


@dataclass(frozen=True)
class Point:
    """One thing that was looked at."""

    name: str
    level: Level
    words: str


@dataclass(frozen=True)
class Host:
    """A machine that runs dynos."""

    name: str
    cores: int
    load: tuple[float, float, float]
    memory_total: int
    memory_available: int
    disk_total: int
    disk_free: int
    dynos: int
    up_seconds: float


def processes() -> list[Point]:
    """Each of Davit's processes that can be asked; all at once, so that several that hang take no longer than one."""
    asked: list[Callable[[], Point]] = [partial(_answers, name, partial(_ping, name)) for name in ("runtime", "router", "logs")]
    asked += [_redis, partial(_answers, "ssh", _ssh), _worker]
    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(lambda ask: ask(), asked))
    return [Point("web", "ok", "answers: this is its answer"), *found]


def groups(session: Session) -> list[tuple[str, list[Point]]]:
    """Everything that is looked at, under titles; in a snapshot, of which nothing is held while processes are asked."""
    session.rollback()
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(_behind)
        answers = processes()
    work = [*jobs(session), *drains(session, asked.result())]
    return [
        ("Processes", answers), ("Work", work), ("Storage", storage(session)), ("Stacks", list(stacks())),
        ("Certificates", list(certificates())), *([("Names", taken)] if (taken := list(names(session))) else []),
    ]  # fmt: skip


def worst(found: Sequence[tuple[str, Sequence[Point]]]) -> Level:
    """How bad the worst of it is."""
    order: tuple[Level, ...] = ("ok", "warn", "bad")
    return max((point.level for _, points in found for point in points), key=order.index, default="ok")


def _answers(name: str, ask: Callable[[], object]) -> Point:
    started = time.monotonic()
    try:
        ask()
    except DavitError as error:
        return Point(name, "bad", error.message)
    except Exception as error:
        return Point(name, "bad", f"does not answer ({type(error).__name__})")
    return Point(name, "ok", f"answers in {(time.monotonic() - started) * 1000:.0f} ms")


def _ping(name: str) -> None:
    wire.call(settings().run / f"{name}.sock", "ping", {}, timeout=PATIENCE)


def _ssh() -> None:
    address = settings().ssh.reachable
    with socket.create_connection((address.host, address.port), PATIENCE) as connection:
        connection.settimeout(PATIENCE)
        if not connection.recv(4).startswith(b"SSH"):
            raise ConnectionError


def _redis() -> Point:
    found = _answers("redis", lambda: notify.redis_client().ping())
    if found.level != "ok":
        return found
    level, words = redis_memory(notify.redis_client())
    return Point("redis", level, f"{found.words}, {words}")


def redis_memory(client: redis.Redis) -> tuple[Level, str]:
    """How full Redis is, in words that a sentence can go on with."""
    try:
        told = client.info("memory")
        used, bound, policy = int(told["used_memory"]), int(told.get("maxmemory", 0)), str(told.get("maxmemory_policy", ""))
    except (redis.RedisError, KeyError, ValueError):
        return "ok", "does not tell how full it is"  # a managed one may not
    if not bound:
        return "ok", f"{used / (1 << 20):,.0f} MiB are used, without a bound of its own"
    part, words = used / bound, f"{used / bound:.0%} of {bound / (1 << 20):,.0f} MiB are used"
    if policy.startswith("allkeys"):
        return "warn", f"{words}, and when it is full it may forget builds that wait: set maxmemory-policy to noeviction"
    if part > REDIS_FULL:
        words += ", more than logs may take: when it is full, builds and log lines wait"
    return "bad" if part > REDIS_BRIMFUL else "warn" if part > REDIS_FULL else "ok", words


def _worker() -> Point:
    try:
        known = notify.worker_is_known()
    except Exception as error:
        return Point("worker", "bad", f"unknown: Redis does not answer ({type(error).__name__})")
    return Point("worker", "ok" if known else "bad", "looks for builds" if known else "has not been seen for half a minute")


def jobs(session: Session) -> list[Point]:
    """What waits."""
    waiting, running = (
        session.scalar(select(func.count()).select_from(Build).where(Build.status == "pending", condition)) or 0
        for condition in (Build.phase.in_(("waiting", "queued")), Build.phase.in_(("building", "releasing")))
    )
    releases = session.scalar(select(func.count()).select_from(Release).where(Release.status == "pending")) or 0
    crashed = session.scalar(select(func.count()).select_from(Dyno).where(Dyno.state == "crashed")) or 0
    messages = select(func.count()).select_from(WebhookDelivery)
    unsent, late, failed = (
        session.scalar(messages.where(condition)) or 0
        for condition in (
            WebhookDelivery.next_attempt_at.is_not(None), WebhookDelivery.next_attempt_at < now() - LATE,
            and_(WebhookDelivery.status == "failed", WebhookDelivery.updated_at > now() - timedelta(days=1)),
        )
    )  # fmt: skip
    return [
        Point("builds", "ok" if waiting < 20 else "warn", f"{running} under way, {waiting} waiting"),
        Point("releases", "ok", f"{releases} coming up"),
        Point("crashed dynos", "warn" if crashed else "ok", str(crashed)),
        Point(
            "webhook deliveries", "warn" if late else "ok",
            f"{unsent} waiting" + (f", {late} of them since long" if late else "") + f", {failed} given up in the last day",
        ),
    ]


def _behind() -> dict[str, Any] | None:
    """What ``logs`` tells of drains; None where it does not answer, of which there is a line already."""
    try:
        return wire.call(settings().run / "logs.sock", "drains.behind", {"seconds": BEHIND}, timeout=PATIENCE).result
    except DavitError:
        return None


def drains(session: Session, told: dict[str, Any] | None) -> Iterator[Point]:
    """Log drains that have not got what was said.

    Args:
        told: the answer of ``logs`` to ``drains.behind``; None when there is none.
    """
    if told is None:
        return
    words = f"{told['all']} in all"
    if told["late"]:
        asked = select(App.id, App.name).where(App.id.in_([one["app_id"] for one in told["worst"]]))
        called = {row.id: row.name for row in session.execute(asked)}
        lags = [f"{called.get(one['app_id'], 'a destroyed app')} ({_lag(one)})" for one in told["worst"]]
        words += f", {told['late']} behind: " + "; ".join(lags + ["…"] * (told["late"] > len(lags)))
    yield Point("log drains", "warn" if told["late"] else "ok", words)


def _lag(one: dict[str, Any]) -> str:
    waiting = [f"{one['lines']:,} lines waiting, the oldest for {_for(one['seconds'])}"] if one["lines"] else []
    return ", ".join(waiting + ([f"{one['lost']:,} lost"] if one["lost"] else []))


def _for(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def storage(session: Session) -> list[Point]:
    """The database and the disk."""
    started = time.monotonic()
    if session.get_bind().dialect.name == "sqlite":
        size = session.scalar(text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")) or 0
        kind = "SQLite"
    else:
        size, kind = session.scalar(text("SELECT pg_database_size(current_database())")) or 0, "PostgreSQL"
    took = (time.monotonic() - started) * 1000
    free = shutil.disk_usage(settings().home).free
    level: Level = "ok" if free >= ROOM_WANTED else ("warn" if free >= ROOM_LEAST else "bad")
    return [
        Point("database", "ok", f"{kind}, {size / (1 << 20):,.1f} MiB, answers in {took:.0f} ms"),
        Point("disk", level, f"{free / (1 << 30):,.1f} GiB free in {settings().home}"),
    ]


def stacks() -> Iterator[Point]:
    """What apps run on."""
    places = sorted(settings().stacks.glob("*/current/stack.json"))
    if not places:
        yield Point("Stacks", "bad", "none is installed: no app can be built or started")
    for place in places:
        try:
            version = json.loads(place.read_text()).get("version", "unknown")
        except (OSError, ValueError):
            version = "cannot be read"
        yield Point(place.parents[1].name, "ok", f"version {version}")


def certificates() -> Iterator[Point]:
    """How long the certificates last that the router serves: Davit's own, the administrator's (``tls.d``), and those that were
    uploaded for apps, of which only the ones that end soon have a line of their own."""
    keys = settings().home / "keys"
    for path in [*sorted(keys.glob("*.pem")), *sorted((keys / "tls.d").glob("*.pem"))]:
        if point := _lasting(path, str(path.relative_to(keys))):
            yield point
    uploaded = [point for path in sorted((keys / "endpoints").glob("*.pem")) if (point := _lasting(path))]
    yield from (point for point in uploaded if point.level != "ok")
    if good := sum(point.level == "ok" for point in uploaded):
        yield Point("Uploaded for apps", "ok", f"{good} of {len(uploaded)} last longer than {CERTIFICATE_DAYS} days")


def names(session: Session) -> Iterator[Point]:
    """Names of Davit's own that an app has: nobody can open the dashboard there. Own names of apps that another app has."""
    for domain, app in own_names.taken(session):
        given_up = f"domains:remove -a {app.name} {domain.hostname}"
        remedy = f"apps:rename -a {app.name} NEW-NAME" if domain.kind == "heroku" else given_up
        yield Point(domain.hostname, "bad", f"is Davit's own and leads to {app.name}: davit {remedy}")
    for hostname, name, other in domains.claimed(session):
        remedy = f"davit domains:remove -a {other} {hostname}, and start Davit again"
        yield Point(hostname, "bad", f"is the own name of {name} and leads to {other}, too: {remedy}")
    for hostname, name in domains.withheld(session):
        remedy = f"davit apps:rename -a {name} NEW-NAME"
        yield Point(hostname, "bad", f"is Davit's own, so {name} keeps the name that it had: {remedy}")


def _lasting(path: Path, name: str = "") -> Point | None:
    """How long a file's first certificate lasts.

    Args:
        name: what it is called; else the host names that are in it.
    """
    pem = path.read_bytes()
    if b"BEGIN CERTIFICATE" not in pem:
        return None
    from cryptography import x509  # several MiB that only this page needs

    try:
        found = x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERTIFICATE") :])
        expires, hosts = found.not_valid_after_utc, _hosts(found)
    except ValueError:
        return Point(name or path.name, "bad", "cannot be read")
    days = (expires - now()).days
    level: Level = "bad" if days < 0 else ("warn" if days < CERTIFICATE_DAYS else "ok")
    return Point(name or ", ".join(hosts[:3]) or path.name, level, f"{'expired' if days < 0 else 'expires'} {expires:%Y-%m-%d}")


def _hosts(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def host(session: Session) -> Host:
    """This machine."""
    memory = meminfo()
    disk = shutil.disk_usage(settings().home)
    dynos = session.scalar(select(func.count()).select_from(Dyno).where(Dyno.leaving.is_(False))) or 0
    with open("/proc/uptime") as file:
        up = float(file.read().split()[0])
    return Host(
        socket.gethostname(), os.cpu_count() or 1, os.getloadavg(), memory["MemTotal"], memory["MemAvailable"], disk.total,
        disk.free, dynos, up,
    )  # fmt: skip


def counts(session: Session) -> dict[str, int]:
    """How much there is."""
    return {
        "apps": session.scalar(select(func.count()).select_from(App).where(App.destroying.is_(False))) or 0,
        "people": session.scalar(select(func.count()).select_from(Account)) or 0,
    }
