"""Where names lead, as name servers say. They take their time, so who asks is counted, and an answer is good for a minute."""

from __future__ import annotations

import socket
import threading
import time
from collections import OrderedDict
from contextlib import AbstractContextManager

from api.streams import TooManyStreams
from foundation.places import Places
from foundation.settings import settings

EACH = 4
"""Threads that may wait for name servers for one account."""
REMEMBERED_SECONDS = 60.0
_NAMES = 10_000

places = Places(
    lambda: max(1, settings().web_threads // 8), lambda: EACH,
    lambda _: TooManyStreams("Too many names are being looked up at the moment; try again later."),
    lambda each: TooManyStreams(f"{each} names are being looked up for you already; wait until that is done."),
)  # fmt: skip
_lock = threading.Lock()
_answers: OrderedDict[str, tuple[float, frozenset[str]]] = OrderedDict()


def counted(account_id: str) -> AbstractContextManager[None]:
    """What waits for name servers; nothing of a database may be held meanwhile.

    Raises:
        TooManyStreams: too much does so already, for this account or in all.
    """
    return places.taken(account_id)


def addresses(name: str) -> frozenset[str]:
    """The addresses that a name leads to; none for one that leads nowhere. Call it in :func:`counted`."""
    with _lock:
        asked, found = _answers.get(name, (-REMEMBERED_SECONDS, frozenset()))
    if time.monotonic() - asked < REMEMBERED_SECONDS:
        return found
    try:
        found = frozenset(str(info[4][0]) for info in socket.getaddrinfo(name.strip("[]"), None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        found = frozenset()
    with _lock:
        _answers[name] = (time.monotonic(), found)
        _answers.move_to_end(name)
        if len(_answers) > _NAMES:
            _answers.popitem(last=False)
    return found
