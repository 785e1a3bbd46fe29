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
from typing import Any

from foundation import outbound
from foundation.clock import now
from foundation.errors import DavitError
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
"""Messages under way at once: in all; of one app when half of the places are taken, and of one account when three quarters are.
There is one to each webhook, so that a slow receiver holds up its own. Accounts take turns: however many webhooks at receivers
that are dead one has, and in however many apps, others' messages go out.
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
        self._under_way: dict[str, tuple[str, str]] = {}  # webhook → its app and account
        self._served: set[str] = set()  # accounts that had their turn in this round
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
            except Exception as error:  # the database is full, busy or away, there is no thread left: later
                log.warning("webhooks wait", extra={"reason": f"{type(error).__name__}: {error}"})
            self._bell.wait(LOOK_SECONDS)
            self._bell.clear()

    def look(self) -> None:
        """Give what is due, and not under way, to the senders."""
        if not ask("SELECT id FROM webhooks UNION SELECT id FROM webhook_events LIMIT 1"):
            return
        if not self._swept or time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            self._sweep()
        while self._has_room() and (self._give() or self._begin_round()):
            pass

    def _sweep(self) -> None:
        try:
            with transaction() as session:
                webhooks.sweep(session, now())
        except Exception as error:  # what is old can wait for an hour; what is due cannot
            log.warning("old webhook events stay for now", extra={"reason": f"{type(error).__name__}: {error}"})

    def _has_room(self) -> bool:
        with self._lock:
            return len(self._under_way) < AT_ONCE

    def _begin_round(self) -> bool:
        """Every account may have a turn again; whether one had its turn in the round before."""
        had, self._served = bool(self._served), set()
        return had

    def _give(self) -> bool:
        """Whether one message of each of some accounts was given to a sender: there may be more behind them."""
        with self._lock:
            hooks, pairs = list(self._under_way), set(self._under_way.values())
            apps = [app for app, account in pairs if self._has_its_share(app, None)]
            accounts = {account for _, account in pairs if self._has_its_share(None, account)} | self._served
        with snapshot() as session:
            rows = webhooks.due(session, now(), hooks, apps, sorted(accounts))
        return any([self._begin(row, account) for row, account in rows])

    def _has_its_share(self, app: str | None, account: str | None) -> bool:
        taken, places = len(self._under_way), list(self._under_way.values())
        of_app, of_account = sum(one == app for one, _ in places), sum(one == account for _, one in places)
        return (of_app >= EACH and taken >= AT_ONCE // 2) or (of_account >= EACH and taken >= AT_ONCE * 3 // 4)

    def _begin(self, row: WebhookDelivery, account: str) -> bool:
        """Whether it is under way now."""
        with self._lock:
            full = len(self._under_way) >= AT_ONCE or self._has_its_share(row.app_id, account)
            if full or row.webhook_id in self._under_way or account in self._served:
                return False
            self._under_way[row.webhook_id] = (row.app_id, account)
        try:
            threading.Thread(target=self._send, args=[row], name="webhook").start()
        except RuntimeError:  # the system gives no further thread
            self._end(row)
            raise
        self._served.add(account)
        return True

    def _end(self, row: WebhookDelivery) -> None:
        with self._lock:
            del self._under_way[row.webhook_id]

    def _send(self, row: WebhookDelivery) -> None:
        try:
            deliver(row, self._going)
        finally:
            self._end(row)
            self._bell.set()


def deliver(row: WebhookDelivery, going: Callable[[], bool] = lambda: True) -> None:
    """Send one message, and write down how that went.

    Where it cannot be written that is tried until it can, or ``going`` says that the process ends: a message that is still due
    would be sent again at once, for ever. Meanwhile nothing more is sent to this webhook.
    """
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
    told = False
    while True:
        try:
            with transaction() as session:
                known = session.get(WebhookDelivery, row.id)
                if known is not None and known.next_attempt_at is not None:
                    webhooks.record_attempt(session, known, attempt, code, error)
            return
        except Exception as problem:
            if not going():
                return
            if not told:
                reason = f"{type(problem).__name__}: {problem}"
                log.warning("how a webhook's delivery went is not written yet", extra={"delivery": row.id, "reason": reason})
            told = True
            time.sleep(LOOK_SECONDS)


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
