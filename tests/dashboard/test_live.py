"""The stream that keeps pages current: what it costs, what it says, and that nothing comes twice or is missed."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError

from api.door import Plain
from dashboard import live, watching
from foundation.clock import now
from logs import stream, window
from state import accounts, apps, audit, config, db, formation, vault, web_sessions
from state.models import Account, App, Build, Dyno
from tests.api.conftest import give_code, use_home
from tests.cli.living import Davit, owner_app, serving
from tests.conftest import wait_until
from tests.dashboard import scenery
from tests.dashboard.conftest import Desk


@pytest.fixture
def davit(davit_home: Path, migrated_sqlite: Path, redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Davit]:
    """A Davit that answers, on a database of its own."""
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    use_home(davit_home, monkeypatch, REDIS_URL=redis_server)
    with serving(davit_home, tmp_path, redis_server) as served:
        yield served


@pytest.fixture
def database(davit_home: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty database of this process's own, on SQLite."""
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    use_home(davit_home, monkeypatch)
    vault.ensure_keys()


class Listener:
    """A page's stream, read by hand."""

    def __init__(self, davit: Davit, query: str, secret: str, cursor: str = "") -> None:
        host, _, port = davit.url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), 30)
        self.socket.settimeout(30)
        again = f"Last-Event-ID: {cursor}\r\n" if cursor else ""
        head = f"GET /dashboard/live?{query} HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: davit_session={secret}\r\n{again}\r\n"
        self.socket.sendall(head.encode())
        self.buffer = b""
        self.cursor = cursor

    def event(self) -> tuple[str, object]:
        """The next event: its name and data."""
        while True:
            while b"\n\n" not in self.buffer:
                data = self.socket.recv(65536)
                assert data, f"the stream ended: {self.buffer[-300:]!r}"
                self.buffer += data
            raw, self.buffer = self.buffer.split(b"\n\n", 1)
            lines = dict(re.findall(r"^(id|event|data): (.*)$", raw.decode(), re.M))
            if "event" in lines:
                self.cursor = lines["id"]
                return lines["event"], json.loads(lines["data"])

    def until(self, name: str) -> object:
        """The data of the next event of that name."""
        while True:
            found, data = self.event()
            if found == name:
                return data

    def close(self) -> None:
        self.socket.close()


def signed_in() -> str:
    """A cookie of the owner's."""
    with db.transaction() as session:
        account = session.query(Account).filter(Account.is_admin).first()
        assert account
        return web_sessions.start(session, account, "a test")[0]


def test_two_hundred_pages_hold_no_thread_and_all_hear_of_a_change(davit: Davit) -> None:
    app_id = owner_app("watched")
    assert live.MOST >= 200
    people = []
    with db.transaction() as session:
        for number in range(200 // live.EACH + 1):
            account = accounts.create(session, None, f"p{number}@example.com", admin=True)
            people.append(web_sessions.start(session, account, "a test")[0])
    pages = [Listener(davit, f"app={app_id}", people[number % len(people)]) for number in range(200)]
    try:
        for page in pages:
            assert page.until("app")
        assert davit("apps").returncode == 0, "16 threads, 200 pages: somebody else is still served"
        with db.transaction() as session:
            app = session.get(App, app_id)
            assert app
            config.change(session, app.owner, app, {"A": "1"})
        for page in pages:
            assert page.until("app")
    finally:
        for page in pages:
            page.close()


def test_a_page_that_comes_back_is_told_what_it_missed_and_only_that(davit: Davit) -> None:
    app_id, secret = owner_app("watched"), signed_in()
    page = Listener(davit, f"app={app_id}&apps=1", secret)
    page.until("apps")
    page.close()
    give_code(app_id)
    again = Listener(davit, f"app={app_id}&apps=1", secret, page.cursor)
    again.until("app")
    again.until("apps")
    again.close()
    quiet = Listener(davit, f"app={app_id}&apps=1", secret, again.cursor)
    with db.transaction() as session:
        app = session.get(App, app_id)
        assert app
        formation.scale(session, app.owner, app, [{"type": "web", "quantity": 2}])
    first, _ = quiet.event()
    assert first in ("app", "apps")
    quiet.close()


def test_build_output_comes_whole_and_once_over_reconnects_and_a_restart_of_the_server(davit: Davit) -> None:
    app_id, secret = owner_app("built"), signed_in()
    with db.transaction() as session:
        app = session.get(App, app_id)
        assert app
        build = Build(app_id=app_id, account_id=app.owner_id, commit="a" * 40, stack="davit-13", phase="building")
        session.add(build)
    path = scenery.output_of(build.id, "", done=False)
    expected = [f"\x1b[31mline {number}" if number % 7 == 0 else f"line {number}" for number in range(60)]
    ready = threading.Event()

    def write() -> None:
        with path.open("a") as file:
            for number, line in enumerate(expected):
                file.write(line[:5])
                file.flush()
                file.write(line[5:] + "\n")
                file.flush()
                if number % 20 == 10:
                    ready.wait(5)
                    ready.clear()
        (path.parent / "output.done").write_text('{"status": "succeeded"}')

    writer = threading.Thread(target=write)
    writer.start()
    html, cursor = "", ""
    for _ in range(100):
        page = Listener(davit, f"app={app_id}&build={build.id}", secret, cursor)
        name, data = page.event()
        while name not in ("build", "build-over"):
            name, data = page.event()
        html, cursor = html + str(data), page.cursor
        page.close()
        ready.set()
        if name == "build-over":
            break
    writer.join(20)
    text = re.sub(r"<[^>]+>", "", html)
    assert text.splitlines() == [re.sub("\x1b.*?m", "", line) for line in expected]
    assert html.count('class="a1"') >= 50, "a colour goes on over pieces and reconnects"


def test_log_lines_come_once(davit: Davit, redis_server: str) -> None:
    app_id, secret = owner_app("logged"), signed_in()
    redis = stream.connect(redis_server)
    page = Listener(davit, f"log={app_id}&app={app_id}", secret, "log=0-0")
    page.until("app")
    seen: list[str] = []
    for number in range(30):
        stream.emit(redis, app_id, [stream.Line(now(), "app", "web.1", f"line {number} <b>")])
        if number % 10 == 9:
            while len(seen) <= number:
                seen += re.findall(r"</b> (line \d+) &lt;b&gt;", str(page.until("log")))
            page.close()
            page = Listener(davit, f"log={app_id}&app={app_id}", secret, page.cursor)
    page.close()
    assert seen == [f"line {number}" for number in range(30)]


def test_who_comes_back_to_a_log_after_its_lines_were_taken_away_is_told(davit: Davit, redis_server: str) -> None:
    app_id, secret = owner_app("noisy"), signed_in()
    redis = stream.connect(redis_server)
    stream.emit(redis, app_id, [stream.Line(now(), "app", "web.1", f"line {number}") for number in range(20)])
    assert stream.flush(redis)
    first, tenth = (stream.recent(redis, app_id)[number][0] for number in (0, 10))
    redis.execute_command("XTRIM", window.key(app_id), "MAXLEN", "15")
    for cursor, missed in ((first, True), (tenth, False)):
        page = Listener(davit, f"log={app_id}", secret, f"log={cursor}")
        assert ("Lines may be missing here" in str(page.until("log"))) == missed
        page.close()


def test_who_may_not_see_an_app_hears_nothing_of_it(davit: Davit) -> None:
    app_id = owner_app("hidden")
    with db.transaction() as session:
        other = accounts.create(session, None, "other@example.com")
        secret = web_sessions.start(session, other, "a test")[0]
    for query in (f"app={app_id}", f"log={app_id}", f"app={app_id}&build=1"):
        page = Listener(davit, query, secret)
        assert b"404" in page.socket.recv(100)
        page.close()


def test_permissions_are_looked_at_again(database: None) -> None:
    with db.transaction() as session:
        owner, guest = (accounts.create(session, None, f"{name}@example.com") for name in ("owner", "guest"))
        app = apps.create(session, owner, "shared")
        apps.add_collaborator(session, owner, app, guest.email, ["view"])
        secret, row = web_sessions.start(session, guest, "a test")
    watched = live.Watched(guest.id, secret, app=app.id)
    with db.snapshot() as session:
        assert live.may_watch(session, watched)
    with db.transaction() as session:
        apps.remove_collaborator(session, session.get(Account, owner.id), session.get(App, app.id), guest.email)  # type: ignore[arg-type]
    with db.snapshot() as session:
        assert not live.may_watch(session, watched)
        assert live.may_watch(session, live.Watched(guest.id, secret, every=True))
    with db.transaction() as session:
        web_sessions.end(session, session.get(Account, guest.id), row.id)  # type: ignore[arg-type]
    with db.snapshot() as session:
        assert not live.may_watch(session, live.Watched(guest.id, secret, every=True))


def test_everything_that_a_page_shows_changes_its_fingerprint(database: None) -> None:
    with db.transaction() as session:
        owner = accounts.create(session, None, "owner@example.com")
        app = apps.create(session, owner, "watched")
    give_code(app.id)

    def fingerprints() -> tuple[str, str]:
        with db.snapshot() as session:
            return watching.apps(session, [app.id])[app.id], watching.every(session, [owner.id])[owner.id]

    before = fingerprints()
    assert fingerprints() == before
    changes = [
        lambda session, app: formation.scale(session, owner, app, [{"type": "web", "quantity": 3}]),
        lambda session, app: scenery.dyno(session, app, "web.1", "starting"),
        lambda session, app: setattr(formation.dynos(session, app)[0], "state", "crashed"),
        lambda session, app: session.delete(formation.dynos(session, app)[0]),
        lambda session, app: apps.set_maintenance(session, owner, app, True),
        lambda session, app: apps.rename(session, owner, app, "renamed"),
    ]
    for change in changes:
        with db.transaction() as session:
            change(session, session.get(App, app.id))
        after = fingerprints()
        assert after[0] != before[0] and after[1] != before[1]
        before = after
    with db.transaction() as session:
        scenery.dyno(session, apps.create(session, accounts.create(session, None, "else@example.com"), "elsewhere"), "web.1", "up")
    assert fingerprints() == before, "nobody is told of what they do not see"
    with db.transaction() as session:
        admin = accounts.create(session, None, "admin@example.com", admin=True).id
    with db.snapshot() as session:
        found = watching.every(session, [admin, owner.id])
        assert found[admin] != found[owner.id]


def who_look(app_id: str) -> tuple[str, str]:
    """The app's owner and the administrator, who see it in their lists."""
    with db.snapshot() as session:
        return session.get_one(App, app_id).owner_id, session.scalars(select(Account.id).where(Account.is_admin)).one()


@pytest.mark.parametrize("where", ["desk", "desk_on_postgresql"])
def test_what_is_committed_after_something_of_a_later_moment_is_told(request: pytest.FixtureRequest, where: str) -> None:
    id = request.getfixturevalue(where).app_id
    whose = who_look(id)

    def fingerprints() -> tuple[str, ...]:
        with db.snapshot() as session:
            return (watching.apps(session, [id])[id], *(watching.every(session, [who])[who] for who in whose))

    def write(name: str, moment: timedelta) -> None:
        with db.transaction() as session:
            session.execute(update(Dyno).where(Dyno.app_id == id, Dyno.name == name).values(updated_at=start + moment))

    start = now()
    with db.transaction() as session:
        app = session.get_one(App, id)
        for name in ("web.1", "web.2"):
            scenery.dyno(session, app, name, "up")
    write("web.2", timedelta(seconds=10))
    seen = [fingerprints()]
    for moment in (timedelta(seconds=1), timedelta(seconds=1, microseconds=1), timedelta(days=-400)):
        write("web.1", moment)
        seen.append(fingerprints())
    write("web.2", timedelta(seconds=9))
    seen.append(fingerprints())
    for found in zip(*seen, strict=True):
        assert len({*found}) == len(seen), "each is told: to who looks at the app, at a list, and at the list of all"
    assert fingerprints() == seen[-1]


def test_who_looks_is_told_of_both_of_two_changes_at_once_whichever_goes_into_force_first(
    desk_on_postgresql: Desk, seats: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LISTS_SECONDS", 0.0)
    id, feed = desk_on_postgresql.app_id, "/apps/timely/activity"
    owner, admin = who_look(id)
    with db.snapshot() as session:
        operator = session.scalars(select(Account.id).where(Account.email == "operator@example.com")).one()
    pages = [
        (seats.opens(owner, app=id), b"event: app\n"), (seats.opens(owner, every=True), b"event: apps\n"),
        (seats.opens(admin, every=True), b"event: apps\n"),
    ]  # fmt: skip

    def hear() -> str:
        for page, word in pages:
            assert word in until(page, word)
        return desk_on_postgresql.person("owner").get(feed).text

    hear()
    with db.transaction() as early:
        who, app = early.get_one(Account, operator), early.get_one(App, id)
        scenery.dyno(early, app, "web.1", "up")
        audit.record(early, who, "ps:restart", app, target="the-earlier")
        early.flush()
        with db.transaction() as late:
            app = late.get_one(App, id)
            scenery.dyno(late, app, "web.2", "up")
            audit.record(late, late.get_one(Account, operator), "ps:restart", app, target="the-later")
        told = hear()
        assert "the-later" in told and "the-earlier" not in told, "it is not in force yet"
    told = hear()
    assert "the-later" in told and "the-earlier" in told


@pytest.mark.parametrize("where", ["desk", "desk_on_postgresql"])
def test_lists_tell_of_a_build_that_ends_while_another_begins(request: pytest.FixtureRequest, where: str) -> None:
    id = request.getfixturevalue(where).app_id
    whose = who_look(id)
    with db.transaction() as session:
        app = session.get_one(App, id)
        second = apps.create(session, app.owner, "second").id
        session.add(Build(app_id=id, account_id=app.owner_id, commit="a" * 40, stack="davit-13", phase="building"))
    lists = watching.Lists()
    with db.snapshot() as session:
        before = lists.look(session, whose)
    with db.transaction() as session:
        ended = session.scalars(select(Build)).one()
        ended.status = "failed"
        session.add(Build(app_id=second, account_id=ended.account_id, commit="b" * 40, stack="davit-13", phase="building"))
    with db.snapshot() as session:
        after = lists.look(session, whose)
    assert not any(after[account] == before[account] for account in whose)


def test_what_lists_cost_does_not_grow_with_the_accounts_that_look(database: None) -> None:
    with db.transaction() as session:
        people = [accounts.create(session, None, f"p{number}@example.com") for number in range(30)]
        owned = [apps.create(session, person, f"app-{number}") for number, person in enumerate(people)]
        apps.add_collaborator(session, people[0], owned[0], people[1].email, ["view"])
    ids, statements = [person.id for person in people], []
    event.listen(db.engine(), "before_cursor_execute", lambda *given: statements.append(given[2]))
    lists = watching.Lists()

    def look(of: watching.Lists, count: int = 30) -> tuple[dict[str, str], int]:
        with db.snapshot() as session:
            session.connection()
            statements.clear()
            return of.look(session, ids[:count]), len(statements)

    few, of_few = look(watching.Lists(), 2)
    every, of_every = look(lists)
    assert of_every == of_few and few.items() <= every.items()
    again, unchanged = look(lists)
    assert (again, unchanged) == (every, 2)
    with db.transaction() as session:
        scenery.dyno(session, session.get(App, owned[0].id), "web.1", "up")
    after, _ = look(lists)
    assert {id for id in ids if after[id] != every[id]} == set(ids[:2]), "its owner and who works on it hear of it, nobody else"
    assert after == look(watching.Lists())[0]
    with db.transaction() as session:
        session.get_one(Account, ids[2]).is_admin = True
    assert look(lists)[0][ids[2]] == look(watching.Lists())[0][ids[2]] != after[ids[2]]


def test_after_the_last_page_a_new_one_is_served(davit: Davit) -> None:
    app_id, secret = owner_app("watched"), signed_in()
    for _ in range(3):
        page = Listener(davit, f"app={app_id}", secret)
        page.until("app")
        page.close()


class Audience:
    """Pages served by this process, and what each has received."""

    def __init__(self) -> None:
        self.live = live.Live()
        self.ours: list[socket.socket] = []

    def opens(self, account: str = "account", **watched: object) -> socket.socket:
        """Another page."""
        theirs, ours = socket.socketpair()
        ours.settimeout(30)
        self.ours.append(ours)
        self.live.add(live.Page(Plain.adopt(theirs), live.Watched(account, "secret", **watched)))  # type: ignore[arg-type]
        return ours

    def leave(self) -> None:
        for ours in self.ours:
            ours.close()
        wait_until(lambda: self.live.count == 0 and self.live._thread is None, "the thread ending")


def until(page: socket.socket, word: bytes) -> bytes:
    """What the page receives until ``word``, or to its end."""
    data = b""
    while word not in data and (more := page.recv(65536)):
        data += more
    return data


@pytest.fixture
def seats(monkeypatch: pytest.MonkeyPatch) -> Iterator[Audience]:
    """An audience that looks at the database that the test chose."""
    monkeypatch.setattr(live, "may_watch", lambda session, watched: True)
    monkeypatch.setattr(live, "AGAIN_SECONDS", 0.05)
    audience = Audience()
    yield audience
    audience.leave()


@pytest.fixture
def audience(database: None, seats: Audience) -> Audience:
    return seats


def failing(times: int, function: Any) -> Any:
    """``function``, which fails with what nobody expects the first times."""
    left = [times]

    def called(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise ZeroDivisionError("on purpose")
        return function(*given, **named)

    return called


def test_pages_are_served_although_the_thread_could_not_begin(audience: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.selectors, "DefaultSelector", failing(3, live.selectors.DefaultSelector))
    assert b"event: apps" in until(audience.opens(every=True), b"event: apps")


def test_a_database_that_is_away_costs_no_page(audience: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, left = live.engine, [3]

    def away() -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OperationalError("SELECT 1", {}, Exception("away"))
        return engine()

    monkeypatch.setattr(live, "engine", away)
    assert b"event: apps" in until(audience.opens(every=True), b"event: apps")
    assert audience.live.count == 1


def test_the_thread_goes_on_after_a_failure_that_nobody_expected(audience: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching.Lists, "look", failing(1, watching.Lists.look))
    assert b"event: apps" not in until(audience.opens(every=True), b"event: apps"), "this one has to come back"
    assert b"event: apps" in until(audience.opens(every=True), b"event: apps")
    assert audience.live.count == 1


def test_a_page_that_cannot_be_served_takes_no_other_with_it(audience: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    news = live.build_news

    def read(id: str, place: str) -> tuple[str, str, bool]:
        return news(id, place) if id != "bad" else failing(1, news)()

    monkeypatch.setattr(live, "build_news", read)
    good = audience.opens(build="good")
    assert b"event: build" not in until(audience.opens(build="bad"), b"event: build"), "its connection ended"
    scenery.output_of("good", "a line\n", done=True)
    assert b"a line" in until(good, b"event: build-over")
