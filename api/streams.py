"""Answers that go on for long: log tails, build output. Each holds a thread of the web process, so they are counted."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Response, request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from foundation.errors import DavitError, Forbidden, NotFound, Unauthorized
from foundation.places import Places
from foundation.settings import settings
from state.db import snapshot

EACH = 16
"""Streams that one account (or one secret URL's account) may have open at once."""
UPLOADS_EACH = 8
"""Tarballs that one account may send at once."""
RECHECK_SECONDS = 60.0
"""How often a stream asks whether its reader may still read it."""

working: Callable[[], bool] = lambda: True  # noqa: E731
"""Whether this process goes on; set by the server's configuration, so that streams end when it is told to stop."""


class TooManyStreams(DavitError):
    """All of the threads that streams may have are taken."""

    id, status = "too_many_streams", 503


class Slots(Places):
    """How many streams are open.

    Args:
        most: in all; half of the threads for other requests than pushes by default, so that the other half answers.
        each: of one account.
    """

    def __init__(self, most: Callable[[], int] = lambda: max(1, settings().web_threads // 2), each: int = EACH) -> None:
        self.each = each
        super().__init__(
            most, lambda: each,
            lambda _: TooManyStreams("Too many logs, outputs and dynos are being followed at the moment; try again later."),
            lambda each: TooManyStreams(f"You follow {each} logs, outputs and ports of dynos already; end one of them first."),
        )  # fmt: skip


slots = Slots()
uploads = Places(
    lambda: max(1, settings().web_threads // 4), lambda: UPLOADS_EACH,
    lambda _: TooManyStreams("Too many uploads are under way at the moment; try again later."),
    lambda each: TooManyStreams(f"You have {each} uploads under way already; wait until one of them has ended."),
)  # fmt: skip
"""Tarballs that come in: each is read by a thread for as long as its client takes."""
LOOKUPS_EACH = 4
"""Threads that may wait for name servers for one account."""
lookups = Places(
    lambda: max(1, settings().web_threads // 8), lambda: LOOKUPS_EACH,
    lambda _: TooManyStreams("Too many names are being looked up at the moment; try again later."),
    lambda each: TooManyStreams(f"{each} names are being looked up for you already; wait until that is done."),
)  # fmt: skip
"""What waits for name servers, which may never answer."""
logins = Slots(lambda: max(1, settings().web_threads // 4), each=8)
"""Command lines that wait to be logged in by a browser, by the address that they ask from: strangers hold none of the others."""


@contextmanager
def looking_up(session: Session, account_id: str) -> Iterator[None]:
    """What asks name servers is counted, and nothing of the database is held meanwhile.

    Raises:
        TooManyStreams: too much does so already, for this account or in all.
    """
    with lookups.taken(account_id):
        session.rollback()
        yield


def still(demand: Callable[[Session], object]) -> Callable[[], bool]:
    """Whether ``demand`` refuses nobody in the database as it is then; one that does not answer at the moment ends nothing."""

    def ask() -> bool:
        try:
            with snapshot() as session:
                demand(session)
        except (Unauthorized, Forbidden, NotFound):
            return False
        except (DavitError, SQLAlchemyError):
            return True
        return True

    return ask


def client_gone() -> Callable[[], bool]:
    """A check for the present request's client having hung up, for streams that have nothing to write for long."""
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    if connection is None:
        return lambda: False
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)  # POLLHUP and POLLERR are always told (poll(2))
    return lambda: bool(poll.poll(0))


def respond(
    pieces: Iterator[bytes | None], content_type: str, account_id: str, *, heartbeat: bytes = b"", of: Slots | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Response:
    """Stream ``pieces``.

    Args:
        pieces: bytes as they come; None at least every few seconds when there are none.
        heartbeat: written for a None, where the format has something that readers skip.
        of: what it counts among; :data:`slots` when None.
        may_go_on: whether its reader may still read it; asked every :data:`RECHECK_SECONDS`.
    """
    if request.method == "HEAD":
        return _headed(Response(content_type=content_type))
    give_back = (of or slots).take(account_id)
    gone = client_gone()

    def body() -> Iterator[bytes]:
        checked = time.monotonic()
        for piece in pieces:
            if not working() or (piece is None and gone()):
                return
            if time.monotonic() > checked + RECHECK_SECONDS:
                checked = time.monotonic()
                if not may_go_on():
                    return
            if piece or heartbeat:
                yield piece or heartbeat

    response = _headed(Response(body(), content_type=content_type))  # direct_passthrough would leave out what is called on close
    response.call_on_close(give_back)
    return response


def _headed(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response
