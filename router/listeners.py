"""The listening sockets. They belong to no single process: this one opens them, every HAProxy inherits them.

So a connection that arrives while HAProxy is being replaced, or is dead, waits in the socket's queue and is lost to
nobody. After a restart of this process they are taken back out of the running HAProxy (pidfd_getfd(2)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from pathlib import Path

from foundation.errors import DavitError
from foundation.settings import Address

_PIDFD_GETFD = 438
"""pidfd_getfd(2)'s number, the same on all architectures."""
_PR_SET_PTRACER = 0x59616D61
_libc = ctypes.CDLL(None, use_errno=True)
_OPEN_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class AddressInUse(DavitError):
    """Another program listens where the router should, or the port is root's alone."""

    id, status = "address_in_use", 500


def listen(address: Address, variable: str) -> socket.socket:
    """Listen on an address.

    Args:
        variable: the setting that it comes from, for the error's sentence.

    Raises:
        AddressInUse: something else listens there, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and address.host != "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address.host, address.port))
        listener.listen(4096)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reasons = {
            errno.EADDRINUSE: "another program listens there already",
            errno.EADDRNOTAVAIL: "this machine does not have that address",
            errno.EACCES: f"ports below {_lowest_open_port()} need root here (sysctl net.ipv4.ip_unprivileged_port_start)",
        }
        reason = reasons.get(error.errno or 0, os.strerror(error.errno or 0))
        raise AddressInUse(f"The router cannot listen on {address}: {reason}. {variable} sets the address.") from None
    return listener


def _lowest_open_port() -> int:
    """Which ports are everybody's to listen on: those from this one on (ip-sysctl, IPv6 included)."""
    try:
        return int(_OPEN_PORTS.read_text())
    except (OSError, ValueError):
        return 1024


def take(pid: int, fd: int) -> socket.socket | None:
    """A copy of another process's listening socket; None when the kernel does not let us have it."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        copy = _libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
    finally:
        os.close(pidfd)
    if copy < 0:
        return None
    try:
        taken = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    if not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        taken.close()
        return None
    return taken


def allow_taking() -> None:
    """Let processes of the same user take descriptors out of this one, also where Yama restricts that (Ubuntu).

    Runs between fork and exec; the permission survives exec.
    """
    _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
