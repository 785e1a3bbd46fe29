"""Where names lead, as name servers say. They take their time, so an answer is good for a minute."""

from __future__ import annotations

import socket
import threading
import time
from collections import OrderedDict

REMEMBERED_SECONDS = 60.0
_NAMES = 10_000

_lock = threading.Lock()
_answers: OrderedDict[str, tuple[float, frozenset[str]]] = OrderedDict()


def addresses(name: str) -> frozenset[str]:
    """The addresses that a name leads to; none for one that leads nowhere. Call it in :func:`api.streams.looking_up`."""
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
