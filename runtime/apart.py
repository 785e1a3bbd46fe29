"""Blocking work that lasts has a thread of its own.

Those of :meth:`runtime.host.Host.in_thread` are few, and every dyno's start waits for one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")


def apart(work: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
    """Begin blocking work in a thread of its own, for which nothing waits when this process ends.

    Returns:
        its result, once it is there. To give up waiting does not end the work.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        try:
            result = work(*args)
        except BaseException as error:
            _tell(loop, done, partial(done.set_exception, error))
        else:
            _tell(loop, done, partial(done.set_result, result))

    threading.Thread(target=run, name="apart", daemon=True).start()
    return done


def _tell(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], say: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(lambda: None if done.done() else say())
