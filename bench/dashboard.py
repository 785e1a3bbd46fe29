"""What the dashboard costs: ``python -m bench.dashboard``.

A real web process on SQLite with 1,000 apps that have releases, dynos and figures, some in pipelines: bytes that the first
page takes with everything it loads, the time to the list of apps and the CPU of it, for an administrator and for somebody who
works on a tenth of the apps; then 200 pages that are open and kept current, each somebody else's, half of them administrators':
memory, CPU while nothing happens and while an app changes every second, the time until all have heard of a change, how a
request does meanwhile; and what it takes when all load themselves anew.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import os
import re
import shutil
import socket
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from bench.api import Web, milliseconds, own_home, populate
from bench.tables import Figure, ms, report
from tests.dashboard.scenery import figures

APPS, PAGES = 1_000, 200
MOST_BYTES, MOST_SECONDS = 100 << 10, 0.2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    home = own_home()
    populate(APPS)
    _furnish()
    web = Web(home)
    try:
        report([*_first_page(web, rounds), *_open_pages(web), *_reloads(web)])
    finally:
        web.process.terminate()
        web.process.wait()
        shutil.rmtree(home)


def _furnish() -> None:
    """Give each app what its row shows: three releases, a build, two process types, three dynos, an hour of figures; and every
    tenth three a pipeline together with its neighbours."""
    from sqlalchemy import select, update

    from foundation.clock import now
    from foundation.settings import settings
    from state import db, pipelines
    from state.models import App, Build, Dyno, Formation, Release, Slug, new_id

    types = {"web": "gunicorn app:app", "worker": "python work.py"}
    with db.transaction() as session:
        every = list(session.scalars(select(App).order_by(App.name)))
        for app in every:
            slug = Slug(
                id=new_id(), app_id=app.id, digest="sha256:" + "ab" * 32, size=41_000_000, stack=app.stack, process_types=types
            )  # fmt: skip
            session.add(slug)
            session.flush()
            made = [
                Release(
                    id=new_id(), app_id=app.id, version=version, kind="deploy" if version > 1 else "other", status="succeeded",
                    description=f"Deploy {version:08}", account_id=app.owner_id, slug_id=slug.id if version > 1 else None,
                    config=app.config, process_types=types if version > 1 else {},
                )
                for version in (1, 2, 3)
            ]  # fmt: skip
            session.add_all(made)
            session.flush()
            build = Build(app_id=app.id, account_id=app.owner_id, status="succeeded", phase="done", commit="1" * 40)
            build.stack, build.release_id, build.slug_id, build.finished_at = app.stack, made[-1].id, slug.id, now()
            session.add(build)
            session.add_all(Formation(app_id=app.id, type=type, quantity=2 if type == "web" else 1) for type in types)
            session.add_all(
                Dyno(
                    app_id=app.id, name=name, type=name.partition(".")[0], size="basic", command="x", state="up",
                    release_id=made[-1].id, release_version=3, started_at=now(),
                )
                for name in ("web.1", "web.2", "worker.1")
            )  # fmt: skip
        session.execute(update(App).values(released_at=now()))
        for first in range(0, len(every) - 2, 30):
            project = pipelines.create(session, every[first].owner, f"project-{first}")
            for app, stage in zip(every[first : first + 3], ("development", "staging", "production"), strict=True):
                pipelines.couple(session, app.owner, project, app, stage)
        ids = [app.id for app in every]
    home = settings().home
    figures(ids[0])
    for id in ids[1:]:
        shutil.copytree(home / "metrics" / ids[0], home / "metrics" / id, dirs_exist_ok=True)


def _reloads(web: Web) -> list[Figure]:
    """What 200 people pay, and wait for, whose page loads itself anew at the same moment: as many at once as browsers would."""
    from sqlalchemy import select

    from state import db
    from state.models import App

    with db.snapshot() as session:
        name = session.scalar(select(App.name).order_by(App.name).limit(1))
    cookies, made = _sessions(PAGES), []
    for what, path in (("overviews", f"/dashboard/apps/{name}"), ("lists of apps", "/dashboard/")):
        used, started = _cpu(web), time.monotonic()
        with ThreadPoolExecutor(PAGES) as people:
            for done in [people.submit(_get, web, path, cookie) for cookie in cookies]:
                done.result()
        took, cost = time.monotonic() - started, _cpu(web) - used
        words = f"{PAGES} open {what} that load themselves at once"
        made += [
            Figure("dashboard", f"{words}: until the last has it", ms(took)),
            Figure("dashboard", f"{words}: CPU of each", ms(cost / PAGES)),
        ]
    return made


def _sessions(count: int) -> list[str]:
    """Cookies of so many accounts: an admin's, then that of somebody who works on a tenth of the apps, the first among them, and
    so on in turn."""
    from sqlalchemy import insert, select

    from state import accounts, db, web_sessions
    from state.models import App, Collaborator, new_id

    with db.transaction() as session:
        ids = list(session.scalars(select(App.id).order_by(App.name)))[::10]
        emails = [f"p-{new_id()[:8]}@example.com" for _ in range(count)]
        people = [accounts.create(session, None, email, admin=number % 2 == 0) for number, email in enumerate(emails)]
        session.flush()
        rows = [{"app_id": id, "account_id": one.id, "permissions": ["view"]} for one in people if not one.is_admin for id in ids]
        if rows:
            session.execute(insert(Collaborator), rows)
        return [web_sessions.start(session, person, "bench")[0] for person in people]


def _get(web: Web, path: str, cookie: str) -> tuple[dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    connection.request("GET", path, headers={"Cookie": f"davit_session={cookie}", "Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, (path, answer.status)
    return {name.lower(): value for name, value in answer.getheaders()}, body


def _first_page(web: Web, rounds: int) -> list[Figure]:
    admin, other = _sessions(2)
    before = web.pss()
    headers, body = _get(web, "/dashboard/", admin)
    html = (gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body).decode()
    loaded = set(re.findall(r'(?:src|href)="(/dashboard/static/[^"]+)"', html))
    transferred = len(body) + sum(len(_get(web, path, admin)[1]) for path in loaded)
    grown = web.pss() - before
    kilobytes, goal = f"{transferred / 1024:.0f} KB", f"≤ {MOST_BYTES >> 10} KB"
    return [
        Figure("dashboard", "the first page with all it loads", kilobytes, goal=goal, met=transferred <= MOST_BYTES),
        *_list(web, rounds, "an administrator", admin),
        *_list(web, rounds, "somebody who works on a tenth of them", other),
        Figure("dashboard", "memory that the first page brings in", f"{grown:.1f} MiB"),
    ]


def _list(web: Web, rounds: int, who: str, cookie: str) -> list[Figure]:
    """The list of apps, request to answer, and what it takes of the processor, however busy that is with other things."""
    used = _cpu(web)
    took = milliseconds(lambda: _get(web, "/dashboard/", cookie), rounds) / 1000
    cost, words = (_cpu(web) - used) / rounds, f"the list of {APPS:,} apps for {who}"
    return [
        Figure("dashboard", f"{words}, request to answer", ms(took), goal=f"≤ {ms(MOST_SECONDS)}", met=took <= MOST_SECONDS),
        Figure("dashboard", f"{words}: CPU", ms(cost), goal=f"≤ {ms(MOST_SECONDS)}", met=cost <= MOST_SECONDS),
    ]


def _cpu(web: Web) -> float:
    """Seconds of CPU that the server's processes have used."""
    children = Path(f"/proc/{web.process.pid}/task/{web.process.pid}/children").read_text().split()
    ticks = 0
    for pid in children:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _open_pages(web: Web) -> list[Figure]:
    from sqlalchemy import select

    from state import config, db
    from state.models import App, new_id

    cookies = _sessions(PAGES)
    with db.snapshot() as session:
        app = session.scalar(select(App).order_by(App.name).limit(1))
    assert app
    before = web.pss()
    pages = [_open(web, f"/dashboard/live?app={app.id}&apps=1", cookie) for cookie in cookies]
    for page in pages:
        _hear(page)
    taken = web.pss() - before
    waited: list[float] = []
    quiet = _share(web, waited, lambda: None)

    def change() -> None:
        with db.transaction() as session:
            found = session.get_one(App, app.id)
            config.change(session, found.owner, found, {"A": new_id()})

    busy = _share(web, waited, change)
    for page in pages:
        _forget(page)
    change()
    changed = time.monotonic()
    for page in pages:
        _hear(page)
    heard = time.monotonic() - changed
    for page in pages:
        page.close()
    return [
        Figure("dashboard", f"memory of {PAGES} open pages", f"{taken:.1f} MiB"),
        Figure("dashboard", f"CPU while {PAGES} pages are open and nothing happens", f"{quiet:.1%} of a core"),
        Figure("dashboard", f"CPU while {PAGES} pages are open and an app changes every second", f"{busy:.1%} of a core"),
        Figure("dashboard", f"until all {PAGES} have heard of a change", ms(heard)),
        Figure("dashboard", "a request meanwhile, median", ms(statistics.median(waited))),
    ]


def _share(web: Web, waited: list[float], act: Callable[[], None]) -> float:
    """The part of a core that the server takes for ten seconds, in each of which something is done; ``waited`` gets the seconds
    that requests took meanwhile."""
    used, started = _cpu(web), time.monotonic()
    for second in range(10):
        act()
        while time.monotonic() < started + second + 1:
            waited.append(milliseconds(lambda: web.get("/", ""), 1) / 1000)
            time.sleep(0.2)
    return (_cpu(web) - used) / (time.monotonic() - started)


def _open(web: Web, path: str, cookie: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", web.port), 30)
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\nCookie: davit_session={cookie}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def _forget(connection: socket.socket) -> None:
    """Read what has come so far."""
    connection.settimeout(0.01)
    with suppress(TimeoutError):
        while connection.recv(65536):
            pass
    connection.settimeout(30)


def _hear(connection: socket.socket) -> None:
    """Read until an event has come."""
    data = b""
    while b"\ndata: " not in data:
        more = connection.recv(65536)
        assert more, "a stream ended"
        data += more


if __name__ == "__main__":
    main()
