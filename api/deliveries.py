"""Delivering webhooks: a thread of the web process looks for what is due, a few more send it.

The web process does it because it is there, has the database open, and is up again within seconds when it dies; what was
under way then is sent again, under the same delivery id.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from foundation import outbound
from foundation.clock import now
from foundation.errors import DavitError, Unavailable
from state import domains, outbox, webhooks
from state.db import ask, snapshot, transaction
from state.models import WebhookDelivery, new_id

log = logging.getLogger("web")

LOOK_SECONDS = 2.0
"""From one look to the next; a change that this process makes is looked at once."""
SWEEP_SECONDS = 3600.0
TIMEOUT = 10.0
"""Seconds that the other side may take."""
AT_ONCE, EACH = 16, 2
"""Messages under way at once: in all, and of one app when half of the places are taken. There is one to each webhook, so that
a slow receiver holds up its own; and however many webhooks an app has at receivers that are dead, others' messages go out.
"""


class Deliverer:
    """Sends what is due.

    Args:
        going: whether to go on.
    """

    def __init__(self, going: Callable[[], bool]) -> None:
        self._going = going
        self._bell = threading.Event()
        self._lock = threading.Lock()
        self._under_way: dict[str, str] = {}  # webhook → its app
        self._pool = ThreadPoolExecutor(AT_ONCE, "webhook")
        self._swept = 0.0

    def start(self) -> None:
        """Begin, in threads that end with the process."""
        outbox.bell = self._bell.set
        threading.Thread(target=self.run, name="webhooks", daemon=True).start()

    def run(self) -> None:
        """Until the process ends."""
        while self._going():
            try:
                self.look()
            except (SQLAlchemyError, Unavailable):
                log.warning("webhooks wait: the database does not answer", exc_info=True)
            self._bell.wait(LOOK_SECONDS)
            self._bell.clear()

    def look(self) -> None:
        """Give what is due, and not under way, to the senders."""
        if not ask("SELECT id FROM webhooks UNION SELECT id FROM webhook_events LIMIT 1"):
            return
        if not self._swept or time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            with transaction() as session:
                webhooks.sweep(session, now())
        while self._give(*self._busy()):
            pass

    def _busy(self) -> tuple[list[str], list[str]]:
        """Webhooks, and apps, that get no further message now."""
        with self._lock:
            return list(self._under_way), [app for app in set(self._under_way.values()) if self._has_its_share(app)]

    def _has_its_share(self, app: str) -> bool:
        of_app = sum(one == app for one in self._under_way.values())
        return of_app >= EACH and len(self._under_way) >= AT_ONCE // 2

    def _give(self, hooks: list[str], apps: list[str]) -> bool:
        """Whether some of what is due was given to the senders: there may be more behind it, of other apps."""
        if len(hooks) >= AT_ONCE:
            return False
        with snapshot() as session:
            rows = webhooks.due(session, now(), hooks, apps)
        taken = [row for row in rows if self._take(row)]
        for row in taken:
            self._pool.submit(self._send, row)
        return bool(taken)

    def _take(self, row: WebhookDelivery) -> bool:
        with self._lock:
            full = len(self._under_way) >= AT_ONCE
            if full or row.webhook_id in self._under_way or self._has_its_share(row.app_id):
                return False
            self._under_way[row.webhook_id] = row.app_id
            return True

    def _send(self, row: WebhookDelivery) -> None:
        try:
            deliver(row)
        except Exception:
            log.exception("a webhook's delivery failed", extra={"delivery": row.id})
        finally:
            with self._lock:
                del self._under_way[row.webhook_id]
            self._bell.set()


def deliver(row: WebhookDelivery) -> None:
    """Send one message, and write down how that went."""
    code, error = None, None
    attempt = new_id()
    try:
        message = webhooks.message(row, attempt, _encode)
        place = domains.marked(message.place)
        code = outbound.exchange("POST", place, body=message.body, headers=message.headers, timeout=TIMEOUT).status
    except DavitError as problem:
        error = problem.id
    except Exception:  # counts as any other that failed, else it would be due again at once, for ever
        log.exception("a webhook's message cannot be sent", extra={"delivery": row.id})
        error = DavitError.id
    with transaction() as session:
        known = session.get(WebhookDelivery, row.id)
        if known is not None and known.next_attempt_at is not None:
            webhooks.record_attempt(session, known, attempt, code, error)


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
