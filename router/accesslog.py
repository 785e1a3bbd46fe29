"""HAProxy's access lines, read and turned into Heroku's. Pure.

A line is hostile input: path, forwarded chain and method are the client's choice. HAProxy encodes control characters and
quotes of the path as ``#XX`` (configuration.txt, 8.6); what is left is made harmless here.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import NamedTuple

from router.codes import CODES
from router.routes import dyno_name

_ABSOLUTE = re.compile(r"https?://[^/?]*", re.IGNORECASE)
_ENCODED = re.compile(r"#([0-9A-F]{2})")
_UNSAFE_PATH = re.compile(r"[^!#-\[\]-~]")
_UNSAFE_CHAIN = re.compile(r"[^0-9A-Za-z.:,\[\] _-]")
_UNSAFE_WORD = re.compile(r"[^!#-~]")


class Access(NamedTuple):
    """One request as the app's log shows it; ``status`` and ``seconds`` (what the dyno took for it) are for figures."""

    app_id: str
    at: datetime
    text: str
    status: int = 0
    seconds: float = 0.0


class _Fields(NamedTuple):
    """The fields of router.config.LOG_FORMAT, in its order (configuration.txt, 8.2.4); times in milliseconds, -1 for none.

    ``began`` and ``lasted`` count from when the connection was free for the request, ``total`` from the request's first byte.
    ``said`` is the request's id and, after a slash, the forwarded chain that the client sent; ``-`` for most requests.
    """

    route: str
    server: str
    ending: str
    status: str
    size: str
    queued: str
    connect: str
    total: str
    method: str
    began: str
    lasted: str
    request_id: str
    client: str
    code: str
    tls: str
    path: str
    said: str


_TABS = len(_Fields._fields) - 1


def read(line: str) -> Access | None:
    """Read a line of :data:`router.config.LOG_FORMAT`; None when it belongs to no app (or is no such line)."""
    fields = line.split("\t", _TABS)
    if len(fields) <= _TABS:
        return None
    one = _Fields._make(fields)
    parts = one.route.split("/")
    if len(parts) != 4 or not parts[1] or not one.began.isdigit():
        return None
    head, status = _verdict(one.ending, one.status, one.code)
    dyno = "" if one.server.startswith("<") or one.server == "-" else dyno_name(one.server)
    tls = "" if one.tls == "-" else f" tls_version={one.tls.lower().replace('tlsv', 'tls')}"
    connect = f"{one.connect}ms" if one.connect.isdigit() else ""
    taken = _taken(one)
    service = f"{taken}ms" if dyno else ""
    request_id, chain = (one.request_id, one.client) if one.said == "-" else _said(one)
    text = (
        f'{head} method={_word(one.method, 20)} path="{_path(one.path)}" host={parts[3]} request_id={request_id} '
        f'fwd="{chain}" dyno={dyno} connect={connect} service={service} '
        f"status={status} bytes={one.size} protocol={'https' if tls else 'http'}{tls}"
    )
    at = datetime.fromtimestamp((int(one.began) + _number(one.lasted)) / 1000, timezone.utc)
    return Access(parts[1], at, text, _number(status), taken / 1000)


def _said(one: _Fields) -> tuple[str, str]:
    """The request's id and the forwarded chain, where the client had something to say about one of them."""
    own_id, _, chain = one.said.partition("/")
    earlier = "" if chain in ("", "-") else _UNSAFE_CHAIN.sub("?", chain)[:300] + ", "
    return _word(own_id, 200) or one.request_id, earlier + one.client


def _taken(one: _Fields) -> int:
    """Milliseconds that the dyno took: everything but waiting for a dyno and for the connection."""
    return max(0, _number(one.total) - max(0, _number(one.queued)) - max(0, _number(one.connect)))


def _verdict(ending: str, status: str, code: str) -> tuple[str, str]:
    """The line's beginning (``at=…`` with code and desc, after ``sock=… `` where a side broke off) and the status it shows.

    Args:
        ending: how the session ended (configuration.txt, 8.5): the first letter says who, the second when.
        code: the code whose page the client got, or ``-``.
    """
    if code == "-" and ending[:2] == "--":
        return "at=info", status  # as nearly every request ends
    sock = ""
    if code == "-":
        code = _broken_off(ending, status)
        sock = {"H18": "sock=backend ", "H27": "sock=client ", "H28": "sock=client "}.get(code, "")
    elif code == "H13" and ending[:2] == "PH":
        code = "H17"  # the answer could not be parsed; HAProxy makes no difference when it writes the page
    elif code == "H26" and ending[:1] in "Cc":
        code = "H28" if ending[:1] == "c" else "H27"  # HAProxy writes the same page for a client that has gone
        sock = "sock=client "
    elif code in ("H19", "H21"):
        code = "H19" if ending[:1] == "s" else "H21"  # the page can only judge by the time that it took
    entry = CODES.get(code)
    if entry:
        return f'{sock}at={entry.at} code={entry.code} desc="{entry.desc}"', str(entry.status)
    return "at=error" if code.isdigit() else "at=info", status


def _broken_off(ending: str, status: str) -> str:
    if status == "101" or ending[:2] in ("--", "LR"):
        return ""
    who, when = ending[:1], ending[1:2]
    if who == "C":
        return "H27"
    if who == "c":
        return "H28"
    if who == "s":
        return "H15" if when in "DL" else "H12"
    if who == "S":
        return "H18" if when in "DL" else "H13"
    return "H17" if who == "P" and when in "HD" else ""


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _path(text: str) -> str:
    """The path and query of a request's target; a target in absolute form (RFC 9112, 3.2.2) names its host before them."""
    plain = _ENCODED.sub(r"%\1", text) if "#" in text else text
    if not plain.startswith("/"):
        absolute = _ABSOLUTE.match(plain)
        plain = "/" + plain[absolute.end() :].removeprefix("/") if absolute else plain
    return _UNSAFE_PATH.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode(errors="replace")), plain)


def _word(text: str, limit: int) -> str:
    return _UNSAFE_WORD.sub("?", text)[:limit]
