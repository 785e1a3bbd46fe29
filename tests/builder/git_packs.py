"""Packs made by hand, for what no honest client sends, and the requests around them."""

from __future__ import annotations

import hashlib
import http.client
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass

ZERO = b"0" * 40
COMMIT, TREE, BLOB, TAG, REF_DELTA = 1, 2, 3, 4, 7


def sha(kind: bytes, data: bytes) -> bytes:
    """An object's id, in hex."""
    return hashlib.sha1(kind + b" %d\0" % len(data) + data).hexdigest().encode()


def header(kind: int, size: int) -> bytes:
    """A packed object's header (gitformat-pack(5))."""
    byte, size = kind << 4 | size & 15, size >> 4
    out = bytearray()
    while size:
        out.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    out.append(byte)
    return bytes(out)


def pack(*objects: tuple[int, bytes], base: bytes | None = None) -> bytes:
    """A pack of (kind, data); a REF_DELTA's base is ``base``."""
    body = b"PACK" + struct.pack(">II", 2, len(objects))
    for kind, data in objects:
        on = bytes.fromhex((base or ZERO).decode()) if kind == REF_DELTA else b""
        body += header(kind, len(data)) + on + zlib.compress(data)
    return body + hashlib.sha1(body).digest()


def tree(*entries: tuple[bytes, bytes, bytes]) -> bytes:
    """A tree of (mode, name, id in hex)."""
    return b"".join(mode + b" " + name + b"\0" + bytes.fromhex(target.decode()) for mode, name, target in entries)


def commit(root: bytes, *parents: bytes) -> bytes:
    """A commit of the tree ``root``."""
    lines = b"".join(b"parent " + parent + b"\n" for parent in parents)
    return b"tree " + root + b"\n" + lines + b"author A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n"


def pkt(line: bytes) -> bytes:
    return b"%04x" % (len(line) + 4) + line


CAPABILITIES = b"report-status side-band-64k"


def push(new: bytes, data: bytes, *, ref: bytes = b"refs/heads/main", capabilities: bytes = CAPABILITIES) -> bytes:
    """A receive-pack request's body with one command that makes a ref."""
    return pkt(ZERO + b" " + new + b" " + ref + b"\0 " + capabilities) + b"0000" + data


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    reason: str


def request(
    port: int, path: str, body: bytes | None = None, *, token: str | None = "alice-token", **headers: str
) -> Answer:
    """One HTTP request, as the headers say; ``chunked="yes"`` sends the body in chunks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    chunked = headers.pop("chunked", None)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        sent.setdefault("Authorization", "Basic " + b64encode(f"x:{token}".encode()).decode())
    if body is not None:
        sent.setdefault("Content-Type", f"application/x-{path.rsplit('/', 1)[1]}-request")
    try:
        if chunked and body is not None:
            pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
            connection.request("POST", path, pieces, {**sent, "Transfer-Encoding": "chunked"}, encode_chunked=True)
        else:
            connection.request("GET" if body is None else "POST", path, body, sent)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read(), answer.reason)
    finally:
        connection.close()
