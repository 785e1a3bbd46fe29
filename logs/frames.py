"""Lines as drains get them: octet-counted syslog frames, as Heroku writes them. Pure.

``LEN SP <PRI>1 TIME HOST APPNAME PROCID - MSG``: RFC 6587 (octet counting) around RFC 5424, whose structured data is left out
as Heroku leaves it out. Priorities are Heroku's: ``app`` local7.info, the router local3.info, the platform syslog.notice.
"""

from __future__ import annotations

from datetime import timezone

from logs.stream import Line

APP, ROUTER, PLATFORM = 190, 158, 45


def priority(line: Line) -> int:
    """The syslog priority of a line."""
    if line.source == "app":
        return APP
    return ROUTER if line.process == "router" else PLATFORM


def frame(line: Line, host: str) -> bytes:
    """A line as a frame; its count is of bytes.

    Args:
        host: the HOST field: ``host`` over HTTPS, the drain's token over syslog.
    """
    at = line.at.astimezone(timezone.utc).isoformat(timespec="microseconds")
    message = f"<{priority(line)}>1 {at} {host} {line.source} {line.process} - {line.text}\n".encode()
    return b"%d %b" % (len(message), message)
