"""Python on OSv: a few calls that glibc makes in a way that this kernel does not know, made in another way.

Found by Python itself, through PYTHONPATH; it lies on the disk of the dyno's configuration, not in the slug. Runs on whatever
Python the app brings. Each replacement is as narrow as the fault: with a kernel that has learnt the call, it is not needed and
does no harm.
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import os
import select
import signal
import site
import socket
import sys
import threading
import time
from typing import Any

_real_wakeup = signal.set_wakeup_fd
_LONGEST_WAIT = 0.5


def _sleep(seconds: float) -> None:
    """clock_nanosleep until an absolute time is refused (ENOTSUP)."""
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    end = time.monotonic() + seconds
    while True:  # in pieces: no signal wakes a thread that waits in the kernel
        select.select([], [], [], max(0.0, min(end - time.monotonic(), _LONGEST_WAIT)))
        if time.monotonic() >= end:
            return


def _socketpair(family: int | None = None, type: int = socket.SOCK_STREAM, proto: int = 0) -> tuple[socket.socket, socket.socket]:
    """There are no socket pairs: two ends of a connection over the loopback, each of which has checked who the other is."""
    if type != socket.SOCK_STREAM or proto != 0:
        raise ValueError("only stream socket pairs can be made on OSv")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        here = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            here.connect(listener.getsockname())
            while True:
                there, name = listener.accept()
                if name == here.getsockname():
                    break
                there.close()
        except BaseException:
            here.close()
            raise
    for end in (here, there):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return here, there


def _set_blocking(fd: int, blocking: bool) -> None:
    """FIONBIO is refused for pipes."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK if blocking else flags | os.O_NONBLOCK)


def _get_blocking(fd: int) -> bool:
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


def _set_wakeup_fd(fd: int, **options: Any) -> int:
    """What FIONBIO set does not show in F_GETFL, where Python looks whether the descriptor blocks."""
    if fd != -1:
        _set_blocking(fd, False)
    return _real_wakeup(fd, **options)


def _take_signals(port: int) -> None:
    """Signals from outside come over TCP, a number a line. OSv would run a handler on a thread that the C library knows nothing
    of, where it can fault; here it is Python's own doing, on its main thread."""
    with socket.create_server(("0.0.0.0", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError, ValueError):
                connection.settimeout(2)
                number = int(connection.recv(16) or b"0")
                connection.sendall(b"ok\n")
                _deliver(number)


def _deliver(number: int) -> None:
    if number <= 0 or signal.getsignal(number) is signal.SIG_IGN:
        return
    if callable(signal.getsignal(number)):
        _thread.interrupt_main(signal.Signals(number))
    else:
        os.kill(os.getpid(), number)


def _close_input() -> None:
    """Nobody types at the console: who reads from it would wait for ever."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _install() -> None:
    _close_input()
    time.sleep = _sleep  # type: ignore[assignment]
    socket.socketpair = _socketpair
    os.set_blocking = _set_blocking
    os.get_blocking = _get_blocking
    signal.set_wakeup_fd = _set_wakeup_fd


def _add_site() -> None:
    """The app's packages, as its virtual environment would add them."""
    place = os.environ.pop(".site", "")
    if place:
        sys.path = [entry for entry in sys.path if not entry.endswith(("/dist-packages", "/site-packages"))]
        site.addsitedir(place)


if sys.platform == "linux" and "OSV_VERSION" in os.environ:
    _install()
    _add_site()
    if _port := os.environ.pop(".signals", ""):
        threading.Thread(target=_take_signals, args=(int(_port),), name="signals", daemon=True).start()
    for _name in [name for name in os.environ if name.startswith(".")]:  # Davit's own; no config var has such a name
        del os.environ[_name]
