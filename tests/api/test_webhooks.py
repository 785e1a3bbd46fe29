"""Webhooks: what is told, to whom, how it is signed, and what happens when nobody listens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from api import deliveries
from foundation import outbound
from foundation.clock import now
from foundation.errors import Conflict, DiskFull
from foundation.settings import settings
from runtime import records
from state import accounts, apps, db, outbox, releases, webhooks
from state.models import App, Dyno, Webhook, WebhookDelivery, WebhookEvent
from tests.api.conftest import Api, _forget, _make, give_code, use_home
from tests.conftest import wait_until


class Receiver:
    """A real HTTP server; ``heard`` is what it was sent, ``status`` what it answers."""

    def __init__(self) -> None:
        receiver = self
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.heard.append((dict(self.headers.items()), body))
                receiver.hold.wait(20)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://{self.address}/hook?x=1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.heard]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.hold.set()
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def api(davit_home: Path, migrated_sqlite: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API of a Davit that may call the receiver."""
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    use_home(davit_home, monkeypatch, DAVIT_OUTBOUND_ALLOW=receiver.address)
    yield _make(davit_home)
    _forget()


@pytest.fixture(params=["sqlite", "postgresql"])
def either_api(
    request: pytest.FixtureRequest, davit_home: Path, migrated_sqlite: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Api]:
    shutil.copy(migrated_sqlite, davit_home / "davit.db")
    more = {} if request.param == "sqlite" else {"DATABASE_URL": request.getfixturevalue("postgres_server").migrated()}
    use_home(davit_home, monkeypatch, DAVIT_OUTBOUND_ALLOW=receiver.address, **more)
    yield _make(davit_home)
    _forget()


def _hook(api: Api, receiver: Receiver, *include: str, level: str = "sync", **more: object) -> Any:
    made = api.post("/apps/timely/webhooks", {"url": receiver.url, "include": list(include), "level": level, **more})
    assert made.status_code == 201, made.text
    return made


def _deliver() -> int:
    """Send everything that is due, as the deliverer does; returns how many messages that were."""
    with db.snapshot() as session:
        rows = webhooks.due(session, now())
    for row, _ in rows:
        deliveries.deliver(row)
    return len(rows)


def test_a_message_is_signed_with_the_secret_that_was_shown_once(api: Api, receiver: Receiver) -> None:
    made = _hook(api, receiver, "api:app", authorization="Bearer of-mine")
    secret = made.headers["Heroku-Webhook-Secret"]
    assert secret not in made.text + api.get("/apps/timely/webhooks").text
    assert "Heroku-Webhook-Secret" not in api.get(f"/apps/timely/webhooks/{made.json['id']}").headers
    assert api.patch("/apps/timely", {"maintenance": True}).status_code == 200
    assert _deliver() == 1
    headers, body = receiver.heard[0]
    expected = base64.b64encode(hmac.new(secret.encode(), body, hashlib.sha256).digest()).decode()
    assert headers["Heroku-Webhook-Hmac-SHA256"] == expected
    assert headers["Authorization"] == "Bearer of-mine"
    told = json.loads(body)
    assert (told["resource"], told["action"], told["actor"]["email"]) == ("app", "update", "owner@example.com")
    assert (told["data"]["maintenance"], told["previous_data"]["maintenance"]) == (True, False)
    assert told["webhook_metadata"]["webhook"]["id"] == made.json["id"]
    with db.snapshot() as session:
        assert secret.encode() not in session.query(Webhook).one().credentials


def test_what_happens_to_an_app_is_told_to_who_asked_for_it(either_api: Api, receiver: Receiver) -> None:
    api = either_api
    _hook(api, receiver, "api:release", "api:domain", "api:collaborator", "api:formation")
    api.patch("/apps/timely/config-vars", {"SECRET_VAR": "secret-value"})
    give_code(api.app_id)
    api.patch("/apps/timely/formation/web", {"quantity": 3})
    api.post("/apps/timely/domains", {"hostname": "www.example.com"})
    api.delete("/apps/timely/domains/www.example.com")
    api.post("/apps/timely/collaborators", {"user": "stranger@example.com"})
    api.delete("/apps/timely/collaborators/stranger@example.com")
    api.patch("/apps/timely", {"maintenance": True})
    api.patch("/apps/timely/formation/web", {"quantity": 3})
    while _deliver():
        pass
    told = [(one["resource"], one["action"]) for one in receiver.said()]
    assert sorted(told) == sorted(
        [("release", "create"), ("release", "create"), ("formation", "create"), ("formation", "create"), ("formation", "update"),
         ("domain", "create"), ("domain", "destroy"), ("collaborator", "create"), ("collaborator", "destroy")]
    )  # fmt: skip
    assert b"secret-value" not in b"".join(body for _, body in receiver.heard)
    scaled = next(one for one in receiver.said() if (one["resource"], one["action"]) == ("formation", "update"))
    assert (scaled["data"]["quantity"], scaled["previous_data"]["quantity"]) == (3, 1)
    assert [row["status"] for row in api.get("/apps/timely/webhook-deliveries").json] == ["succeeded"] * len(told)


def test_dynos_and_releases_are_told_by_the_process_that_moves_them(api: Api, receiver: Receiver) -> None:
    _hook(api, receiver, "dyno", "api:release")
    with db.transaction() as session:
        app = session.get(App, api.app_id)
        assert app
        release = releases.create(session, app, app.owner, kind="other", description="By hand")
    row = Dyno(id="d" * 36, app_id=api.app_id, name="web.1", type="web", size="basic", command="x", release_id=release.id)
    records.insert(row)
    records.switch([row.id], [])
    records.change([row.id], slot=5)
    records.change([row.id], state="crashed")
    records.remove([row.id])
    while _deliver():
        pass
    told = [(one["action"], one["data"].get("state"), one["actor"]["email"]) for one in receiver.said() if one["resource"] == "dyno"]
    assert told == [
        ("create", "starting", "davit"), ("update", "up", "davit"), ("update", "crashed", "davit"), ("destroy", "crashed", "davit"),
    ]  # fmt: skip


def test_the_end_of_an_app_is_told_even_when_nothing_of_it_is_left(api: Api, receiver: Receiver) -> None:
    _hook(api, receiver, "api:app", "api:domain")
    assert api.delete("/apps/timely").status_code == 200
    with db.transaction() as session:
        apps.forget(session, api.app_id)
    assert _deliver() == 1
    assert (receiver.said()[0]["action"], receiver.said()[0]["data"]["name"]) == ("destroy", "timely")
    with db.transaction() as session:
        webhooks.sweep(session, now())
        assert session.query(Webhook).count() == session.query(WebhookDelivery).count() == 0


def test_a_change_that_is_rolled_back_is_not_told(api: Api, receiver: Receiver) -> None:
    _hook(api, receiver, "api:app")
    with pytest.raises(ZeroDivisionError), db.transaction() as session:
        app = session.get(App, api.app_id)
        assert app
        apps.set_maintenance(session, app.owner, app, True)
        session.flush()
        _ = 1 / 0
    assert _deliver() == 0


def test_nothing_is_written_for_who_does_not_listen(api: Api, receiver: Receiver) -> None:
    api.post("/apps", {"name": "quiet-app"})
    _hook(api, receiver, "api:domain")
    api.patch("/apps/quiet-app", {"maintenance": True})
    api.patch("/apps/timely", {"maintenance": True})
    with db.snapshot() as session:
        assert session.query(WebhookEvent).count() == 0


def test_a_message_that_is_not_taken_is_sent_again_later_and_later(api: Api, receiver: Receiver) -> None:
    _hook(api, receiver, "api:app")
    receiver.status = 500
    api.patch("/apps/timely", {"maintenance": True})
    assert _deliver() == 1
    row = api.get("/apps/timely/webhook-deliveries").json[0]
    assert (row["status"], row["num_attempts"], row["last_attempt"]["code"]) == ("retrying", 1, 500)
    assert row["next_attempt_at"] and _deliver() == 0
    with db.transaction() as session:
        session.query(WebhookDelivery).update({"next_attempt_at": now() - timedelta(seconds=1)})
    receiver.status = 204
    assert _deliver() == 1
    row = api.get(f"/apps/timely/webhook-deliveries/{row['id']}").json
    assert (row["status"], row["num_attempts"], row["next_attempt_at"]) == ("succeeded", 2, None)
    first, second = receiver.said()
    assert first["webhook_metadata"]["delivery"] == second["webhook_metadata"]["delivery"]
    assert first["webhook_metadata"]["attempt"] != second["webhook_metadata"]["attempt"]


def test_a_message_that_cannot_be_made_has_failed_and_is_not_due_again_at_once(api: Api, receiver: Receiver) -> None:
    _hook(api, receiver, "api:app")
    with db.transaction() as session:
        session.query(Webhook).one().credentials = b"sealed with a key that nobody has"
    api.patch("/apps/timely", {"maintenance": True})
    assert (_deliver(), _deliver(), receiver.heard) == (1, 0, [])
    row = api.get("/apps/timely/webhook-deliveries").json[0]
    assert (row["status"], row["num_attempts"], row["last_attempt"]["code"]) == ("retrying", 1, None)


def test_patience_ends_after_three_days_and_at_the_level_notify_at_once(api: Api, receiver: Receiver) -> None:
    assert [webhooks.pause_after(n).total_seconds() for n in (1, 2, 3, 30)] == [30, 60, 120, 6 * 3600]
    _hook(api, receiver, "api:app", level="notify")
    receiver.status = 302
    api.patch("/apps/timely", {"maintenance": True})
    _deliver()
    assert api.get("/apps/timely/webhook-deliveries").json[0]["status"] == "failed", "a redirect is not followed"
    with db.transaction() as session:
        row = session.query(WebhookDelivery).one()
        row.status, row.next_attempt_at, row.webhook.level = "retrying", now(), "sync"
        row.created_at = now() - webhooks.PATIENCE
    _deliver()
    assert api.get("/apps/timely/webhook-deliveries").json[0]["status"] == "failed"


def test_deliveries_are_picked_by_their_status(either_api: Api, receiver: Receiver) -> None:
    """As `heroku webhooks:deliveries --status` asks for them."""
    api = either_api
    _hook(api, receiver, "api:app", level="notify")
    receiver.status = 302
    api.patch("/apps/timely", {"maintenance": True})
    _deliver()
    api.patch("/apps/timely", {"maintenance": False})
    path = "/apps/timely/webhook-deliveries"
    picked = {status: api.get(path, query_string={"eq[status]": status}).json for status in ("failed", "pending", "succeeded", "x")}
    assert {status: len(rows) for status, rows in picked.items()} == {"failed": 1, "pending": 1, "succeeded": 0, "x": 0}
    assert picked["failed"][0]["status"] == "failed" and len(api.get(path).json) == 2


def test_a_place_that_turned_private_is_refused_when_it_is_called(api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    _hook(api, receiver, "api:app")
    monkeypatch.delenv("DAVIT_OUTBOUND_ALLOW")
    settings.cache_clear()
    api.patch("/apps/timely", {"maintenance": True})
    _deliver()
    row = api.get("/apps/timely/webhook-deliveries").json[0]
    assert (row["status"], row["last_attempt"]["error_class"]) == ("retrying", "destination_refused")
    assert receiver.heard == []


def test_a_name_that_became_an_apps_domain_is_not_called_any_more(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = {"url": "https://www.example.com/", "include": ["api:app"], "level": "sync"}
    assert api.post("/apps/timely/webhooks", hook).status_code == 201
    assert api.post("/apps/timely/domains", {"hostname": "www.example.com"}).status_code == 201
    api.patch("/apps/timely", {"maintenance": True})
    leads = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 443))]  # Davit's own names, too
    outbound._addresses.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: leads)
        _deliver()
    outbound._addresses.cache_clear()
    row = api.get("/apps/timely/webhook-deliveries").json[0]
    assert (row["status"], row["last_attempt"]["error_class"]) == ("retrying", "destination_refused")


@contextmanager
def _held_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver beside the other that answers nobody until this ends."""
    silent = Receiver()
    try:
        silent.hold.clear()
        monkeypatch.setattr(deliveries, "TIMEOUT", 600.0)  # silent for as long as a test takes
        monkeypatch.setenv("DAVIT_OUTBOUND_ALLOW", f"{receiver.address},{silent.address}")
        settings.cache_clear()
        yield silent
    finally:
        outbox.bell = None
        silent.hold.set()
        silent.server.shutdown()
        silent.server.server_close()


def _wait_for(receiver: Receiver, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(receiver.heard) < count and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_deliverer_sends_what_is_due_and_slow_receivers_hold_up_only_their_own(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _held_up(receiver, monkeypatch) as slow:
        _hook(api, receiver, "api:app")
        with db.transaction() as session:
            other = session.query(Webhook).one()
            for _ in range(deliveries.EACH + 1):
                session.add(Webhook(app_id=other.app_id, url=slow.url, include=["api:app"], level="sync", credentials=other.credentials))
        going = True
        try:
            deliveries.Deliverer(lambda: going).start()
            for on in (True, False, True):
                api.patch("/apps/timely", {"maintenance": on})
            _wait_for(receiver, 3)
            assert [one["data"]["maintenance"] for one in receiver.said()] == [True, False, True]
        finally:
            going = False


def test_an_app_whose_receivers_are_dead_holds_up_no_other_app(api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    going = True
    with _held_up(receiver, monkeypatch) as dead:
        try:
            _hook(api, receiver, "api:app")
            with db.transaction() as session:
                hook = session.query(Webhook).one()
                other = apps.create(session, session.get(App, hook.app_id).owner, "other")
                for _ in range(20):
                    session.add(Webhook(app_id=other.id, url=dead.url, include=["api:app"], level="sync", credentials=hook.credentials))
            for on in (True, False, True):
                api.patch("/apps/other", {"maintenance": on})
            api.patch("/apps/timely", {"maintenance": True})
            deliveries.Deliverer(lambda: going).start()
            _wait_for(receiver, 1)
            assert [one["data"]["app"]["name"] if "app" in one["data"] else one["data"]["name"] for one in receiver.said()] == ["timely"]
        finally:
            going = False


def _messages(app: App, like: Webhook, session: db.Session, *, hooks: int, each: int, minutes: int) -> None:
    """So many webhooks of an app, each with so many messages that have been due for so long."""
    event = WebhookEvent(app_id=app.id, include="api:app", action="update", resource="app", data={}, previous_data={}, actor={})
    session.add(event)
    for _ in range(hooks):
        hook = Webhook(app_id=app.id, url=like.url, include=["api:app"], level="sync", credentials=like.credentials)
        session.add(hook)
        session.flush()
        at = now() - timedelta(minutes=minutes)
        session.add_all(WebhookDelivery(webhook_id=hook.id, event_id=event.id, app_id=app.id, next_attempt_at=at) for _ in range(each))


class _Given(deliveries.Deliverer):
    """A deliverer that only notes what it would send."""

    def __init__(self) -> None:
        super().__init__(lambda: True)
        self.rows: list[WebhookDelivery] = []

    def _send(self, row: WebhookDelivery) -> None:
        self.rows.append(row)

    def has(self, count: int) -> bool:
        return len(self.rows) >= count

    def over(self, row: WebhookDelivery) -> None:
        """One was sent."""
        with db.transaction() as session:
            session.delete(session.get(WebhookDelivery, row.id))
        self._end(row)


def test_an_account_whose_receivers_are_dead_leaves_places_to_others_however_many_apps_it_has(api: Api, receiver: Receiver) -> None:
    _hook(api, receiver, "api:app")
    with db.transaction() as session:
        like = session.query(Webhook).one()
        mine = session.get(App, like.app_id)
        dead = accounts.create(session, None, "dead@example.com")
        for n in range(12):
            _messages(apps.create(session, dead, f"dead-{n}"), like, session, hooks=2, each=1, minutes=60)
        _messages(mine, like, session, hooks=1, each=1, minutes=1)
    deliverer = _Given()
    deliverer.look()
    wait_until(lambda: deliverer.has(len(deliverer._under_way)), "what was given to senders")
    assert sum(row.app_id == mine.id for row in deliverer.rows) == 1


def test_accounts_take_turns_at_a_place_that_is_free_again(api: Api, receiver: Receiver) -> None:
    _hook(api, receiver, "api:app")
    with db.transaction() as session:
        like = session.query(Webhook).one()
        mine = session.get(App, like.app_id)
        for n in range(20):
            dead = accounts.create(session, None, f"dead-{n}@example.com")
            _messages(apps.create(session, dead, f"dead-{n}"), like, session, hooks=2, each=40, minutes=60)
        _messages(mine, like, session, hooks=1, each=1, minutes=1)
    deliverer = _Given()
    deliverer.look()
    for freed in range(21):
        wait_until(lambda count=deliveries.AT_ONCE + freed: deliverer.has(count), "what was given to senders")
        if deliverer.rows[-1].app_id == mine.id:
            return
        deliverer.over(deliverer.rows[freed])
        deliverer.look()
    pytest.fail("every place that was free again went to those who had one before")


def test_what_cannot_be_written_down_is_not_sent_again_meanwhile(api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    _hook(api, receiver, "api:app")
    api.patch("/apps/timely", {"maintenance": True})
    attempts: list[int] = []
    going = full = True
    write = deliveries.transaction

    @contextmanager
    def transaction() -> Iterator[Any]:
        if full:
            attempts.append(1)
            raise DiskFull()
        with write() as session:
            yield session

    monkeypatch.setattr(deliveries, "transaction", transaction)
    monkeypatch.setattr(deliveries, "LOOK_SECONDS", 0.02)
    thread = threading.Thread(target=deliveries.Deliverer(lambda: going).run)
    thread.start()
    try:
        wait_until(lambda: len(attempts) > 10, "attempts to write")
        assert len(receiver.heard) == 1
        full = False
        wait_until(lambda: api.get("/apps/timely/webhook-deliveries").json[0]["status"] == "succeeded", "the outcome")
        assert len(receiver.heard) == 1
    finally:
        going = full = False
        thread.join(30)


def test_the_deliverer_outlives_a_thread_that_does_not_start_and_a_database_that_is_in_the_way(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hook(api, receiver, "api:app")
    api.patch("/apps/timely", {"maintenance": True})
    going = True
    trouble: list[Exception] = [RuntimeError("can't start new thread"), Conflict("Others were faster.")]
    start, look = threading.Thread.start, webhooks.due

    def begin(thread: threading.Thread) -> None:
        if thread.name == "webhook" and len(trouble) == 2:
            raise trouble.pop(0)
        start(thread)

    def due(*words: Any) -> Any:
        if len(trouble) == 1:
            raise trouble.pop()
        return look(*words)

    def sweep(*words: Any) -> None:
        raise DiskFull()

    monkeypatch.setattr(threading.Thread, "start", begin)
    monkeypatch.setattr(webhooks, "due", due)
    monkeypatch.setattr(webhooks, "sweep", sweep)
    monkeypatch.setattr(deliveries, "LOOK_SECONDS", 0.02)
    thread = threading.Thread(target=deliveries.Deliverer(lambda: going).run)
    thread.start()
    try:
        wait_until(lambda: receiver.heard, "the message's arrival")
        assert not trouble
    finally:
        going = False
        thread.join(30)


@pytest.mark.parametrize(
    ("sent", "words"),
    [({}, "Field url"), ({"url": "https://example.com"}, "Field include"), ({"url": "https://example.com", "include": []}, "Field level"),
     ({"url": "https://example.com", "include": [], "level": "sync"}, "Field include"),
     ({"url": "https://example.com", "include": ["api:addon"], "level": "sync"}, "no events of api:addon"),
     ({"url": "https://example.com", "include": ["everything", 5], "level": "sync"}, "Field include"),
     ({"url": "https://example.com", "include": ["api:app"], "level": "loud"}, "Field level"),
     ({"url": "ftp://example.com", "include": ["api:app"], "level": "sync"}, "Field url"),
     ({"url": "https://user:pass@example.com", "include": ["api:app"], "level": "sync"}, "user name or password"),
     ({"url": "https://example.com", "include": ["api:app"], "level": "sync", "authorization": "a\r\nX-Evil: 1"}, "Field authorization")],
)  # fmt: skip
def test_a_webhook_that_cannot_be_is_refused_by_its_field(api: Api, sent: dict[str, object], words: str) -> None:
    answer = api.post("/apps/timely/webhooks", sent)
    assert (answer.status_code, words in answer.json["message"]) == (422, True), answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"])
def test_a_webhook_to_davit_itself_the_host_or_a_private_network_is_refused(api: Api, host: str) -> None:
    answer = api.post("/apps/timely/webhooks", {"url": f"http://{host}/", "include": ["api:app"], "level": "sync"})
    assert answer.status_code == 422
    assert answer.json["id"] in ("destination_refused", "invalid_params")
    assert api.get("/apps/timely/webhooks").json == []


def test_webhooks_are_changed_listed_and_taken_away(api: Api, receiver: Receiver) -> None:
    made = _hook(api, receiver, "api:app", secret="of my own")
    assert "Heroku-Webhook-Secret" not in made.headers
    path = f"/apps/timely/webhooks/{made.json['id']}"
    assert api.patch(path, {"include": ["dyno"], "level": "notify"}).json["include"] == ["dyno"]
    assert api.patch(path, {"url": "http://10.0.0.1/"}).json["id"] == "destination_refused"
    for role, status in (("viewer", 403), ("stranger", 404)):
        assert api.patch(path, {"level": "sync"}, as_=role).status_code == status
        assert api.delete(path, as_=role).status_code == status
    api.post("/apps", {"name": "other-app"})
    assert api.get(f"/apps/other-app/webhooks/{made.json['id']}").status_code == 404
    assert [row["id"] for row in api.get("/apps/timely/webhooks", as_="viewer").json] == [made.json["id"]]
    assert api.delete(path).status_code == 200
    assert api.delete(path).status_code == 404


def test_events_are_shown_and_forgotten_after_a_week(api: Api, receiver: Receiver) -> None:
    _hook(api, receiver, "api:app")
    api.patch("/apps/timely", {"maintenance": True})
    event = api.get("/apps/timely/webhook-events").json[0]
    assert event["payload"]["data"]["maintenance"] is True
    assert api.get(f"/apps/timely/webhook-events/{event['id']}").json == event
    with db.transaction() as session:
        webhooks.sweep(session, now() + webhooks.KEPT + timedelta(seconds=1))
    assert api.get("/apps/timely/webhook-events").json == api.get("/apps/timely/webhook-deliveries").json == []
    assert len(api.get("/apps/timely/webhooks").json) == 1


def test_an_app_has_so_many_webhooks_and_no_more(api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "MOST", 1)
    _hook(api, receiver, "api:app")
    assert "remove one" in api.post("/apps/timely/webhooks", {"url": receiver.url, "include": ["dyno"], "level": "sync"}).json["message"]
