"""HAProxy's access lines, read and turned into Heroku's. Pure.

A line is hostile input: path, forwarded chain and method are the client's choice. HAProxy encodes control characters and
quotes of the path as ``#XX`` (configuration.txt, 8.6); what is left is made harmless here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from router.codes import CODES
from router.routes import dyno_name

_FIELDS = 19
_ENCODED = re.compile(r"#([0-9A-F]{2})")
_UNSAFE_PATH = re.compile(r"[^!#-\[\]-~]")
_UNSAFE_CHAIN = re.compile(r"[^0-9A-Za-z.:,\[\] _-]")
_UNSAFE_WORD = re.compile(r"[^!#-~]")


@dataclass(frozen=True)
class Access:
    """One request as the app's log shows it."""

    app_id: str
    at: datetime
    text: str


def read(line: str) -> Access | None:
    """Read a line of :data:`router.config.LOG_FORMAT`; None when it belongs to no app (or is no such line)."""
    fields = line.split("\t", _FIELDS - 1)
    if len(fields) != _FIELDS:
        return None
    (
        route,
        server,
        ending,
        status,
        size,
        queued,
        connect,
        _,
        total,
        method,
        ms,
        request_id,
        client,
        code,
        tls,
        _,
        host,
        path,
        chain,
    ) = fields
    parts = route.split("/")
    if len(parts) != 3 or not ms.isdigit():
        return None
    head, status, sock = _verdict(ending, status, code)
    dyno = "" if server.startswith("<") or server == "-" else dyno_name(server)
    waited = connect.lstrip("+")
    reached = waited.isdigit()
    spent = max(0, int(total.lstrip("+-") or 0) - max(0, _number(queued)) - max(0, _number(waited)))
    text = (
        f'{sock}{head} method={_word(method, 20)} path="{_path(path)}" host={host} request_id={request_id} '
        f'fwd="{_chain(chain, client)}" dyno={dyno} connect={waited + "ms" if reached else ""} '
        f"service={f'{spent}ms' if dyno else ''} status={status} bytes={size if status != '499' or size != '0' else ''} "
        f"protocol={'http' if tls == '-' else 'https'}"
    )
    if tls != "-":
        text += f" tls_version={tls.lower().replace('tlsv', 'tls')}"
    return Access(parts[1], datetime.fromtimestamp(int(ms) / 1000, timezone.utc), text)


def _verdict(ending: str, status: str, code: str) -> tuple[str, str, str]:
    """``at=…`` with code and desc, the status that the log shows, and ``sock=… `` where a side broke off.

    Args:
        ending: how the session ended (configuration.txt, 8.5): the first letter says who, the second when.
        code: the code whose page the client got, or ``-``.
    """
    sock = ""
    if code == "-":
        code = _broken_off(ending, status)
        sock = {"H18": "sock=backend ", "H27": "sock=client ", "H28": "sock=client "}.get(code, "")
    elif code == "H13" and ending[:2] == "PH":
        code = "H17"  # the answer could not be parsed; HAProxy makes no difference when it writes the page
    elif code in ("H19", "H21"):
        code = "H19" if ending[:1] == "s" else "H21"  # the page can only judge by the time that it took
    elif ending[:1] == "C" and status in ("-1", "0"):
        code, sock = "H27", "sock=client "
    entry = CODES.get(code)
    if entry is None:
        return "at=info" if code in ("", "-") else "at=error", status if status.isdigit() and status != "0" else "499", ""
    return f'at={entry.at} code={entry.code} desc="{entry.desc}"', str(entry.status), sock


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
    plain = _ENCODED.sub(r"%\1", text)
    return _UNSAFE_PATH.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode(errors="replace")), plain)


def _chain(chain: str, client: str) -> str:
    earlier = "" if chain in ("", "-") else _UNSAFE_CHAIN.sub("?", chain)[:300] + ", "
    return earlier + client


def _word(text: str, limit: int) -> str:
    return _UNSAFE_WORD.sub("?", text)[:limit]
