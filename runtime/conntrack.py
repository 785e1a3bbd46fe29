"""The connections that the kernel remembers (conntrack): those of an address go when nobody has it any more.

A container's end closes its sockets, and the kernel sees that. A machine that is killed or put to sleep tells nobody: its
connections would be remembered for five days (``nf_conntrack_tcp_timeout_established``), count against whoever has the address
next, and let their peers' packets through to that one. What the host itself has begun is left: it is counted for no dyno, and
ends with the host's sockets.

Messages of ctnetlink (<linux/netfilter/nfnetlink_conntrack.h>) are read and written as bytes, without a library: one address may
have thousands of connections, and who reads each into objects keeps the runtime's other threads waiting for a second.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator

_NETFILTER = 12  # NETLINK_NETFILTER (<linux/netlink.h>)
_GET, _DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, _DELETE
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_NESTED, _KIND = 0x8000, 0x3FFF
_TUPLE, _ID, _ZONE, _FILTER = 1, 12, 18, 25  # CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE, CTA_FILTER
_IP, _FROM, _FLAGS = 1, 1, 1  # CTA_TUPLE_IP, CTA_IP_V4_SRC, CTA_FILTER_ORIG_FLAGS
_BY_FROM = 1 << 0  # CTA_FILTER_F_CTA_IP_SRC
_OF_FAMILY = struct.pack("BBH", socket.AF_INET, 0, 0)  # struct nfgenmsg
_PATIENCE = 10.0  # seconds for an answer of the kernel
_TOGETHER = 100  # deletions in one message


def forget(address: str) -> int:
    """Forget all connections that an address began; blocking: the kernel looks through its table for some ten milliseconds.

    Returns:
        how many there were.

    Raises:
        OSError: the kernel refuses, or has no ctnetlink.
    """
    packed = socket.inet_aton(address)
    return _forget(lambda beginner: beginner == packed, _begun_by(packed))


def forget_strays(network: ipaddress.IPv4Network, used: Iterable[str]) -> int:
    """Forget all connections that addresses of ``network`` began, but for those ``used``; blocking.

    Returns:
        how many there were.

    Raises:
        OSError: the kernel refuses, or has no ctnetlink.
    """
    low, high = network.network_address.packed, network.broadcast_address.packed
    kept = set(map(socket.inet_aton, used))
    return _forget(lambda beginner: low <= beginner <= high and beginner not in kept)


def _forget(wanted: Callable[[bytes], bool], condition: bytes = b"") -> int:
    """Forget those whose beginner is ``wanted``.

    Args:
        condition: for the kernel to tell only those (since Linux 5.8; an older one tells all, hence each is looked at here, too).
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as kernel:
        kernel.settimeout(_PATIENCE)
        kernel.send(_message(_GET, _REQUEST | _DUMP, 0, condition))
        names = [name for beginner, name in _told(kernel) if wanted(beginner)]
        for start in range(0, len(names), _TOGETHER):
            some = names[start : start + _TOGETHER]
            kernel.send(b"".join(_message(_DELETE, _REQUEST | _ACK, number, name) for number, name in enumerate(some, start)))
            _hear(kernel, start + len(some) - 1)
        return len(names)


def _told(kernel: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Of each connection that the kernel tells, its beginner's address and the attributes by which it is named."""
    for kind, _, body in _messages(kernel):
        if kind == _DONE:
            return
        if kind == _ERROR:
            _check(body)
        parts = dict(_attributes(body[len(_OF_FAMILY) :]))
        addresses = dict(_attributes(dict(_attributes(parts[_TUPLE]))[_IP]))
        if _FROM in addresses:
            name = b"".join(_attribute(kind, parts[kind]) for kind in (_TUPLE, _ID, _ZONE) if kind in parts)
            yield addresses[_FROM], name


def _hear(kernel: socket.socket, last: int) -> None:
    """Read the answers to some deletions, up to that with the number ``last``; what had gone by itself is no error."""
    for _, number, body in _messages(kernel):
        _check(body, errno.ENOENT)
        if number == last:
            return


def _messages(kernel: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Kind, number and content of what the kernel answers."""
    while True:
        data = memoryview(kernel.recv(1 << 17))
        while data:
            size, kind, _, number, _ = struct.unpack_from("=IHHII", data)
            yield kind, number, bytes(data[16:size])
            data = data[size + -size % 4 :]


def _check(body: bytes, *fine: int) -> None:
    code = -struct.unpack_from("=i", body)[0]
    if code and code not in fine:
        raise OSError(code, os.strerror(code))


def _message(kind: int, flags: int, number: int, attributes: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(_OF_FAMILY) + len(attributes), kind, flags, number, 0) + _OF_FAMILY + attributes


def _begun_by(address: bytes) -> bytes:
    beginner = _attribute(_TUPLE | _NESTED, _attribute(_IP | _NESTED, _attribute(_FROM, address)))
    return beginner + _attribute(_FILTER | _NESTED, _attribute(_FLAGS, struct.pack("=I", _BY_FROM)))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        yield kind & _KIND, data[4:size]
        data = data[size + -size % 4 :]
