"""How Davit's own processes log: one line of ``key=value`` pairs on standard error, by the standard logging module."""

from __future__ import annotations

import logging
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _KeyValue(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        pairs = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        text = record.getMessage() + "".join(f" {key}={_value(value)}" for key, value in pairs.items())
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return f"{at} {record.levelname.lower()} {record.name}: {text}"


def _value(value: object) -> str:
    text = str(value)
    return f'"{text}"' if " " in text or not text else text


def start(process: str, level: int = logging.INFO) -> logging.Logger:
    """Set logging up for this process and return its logger.

    Args:
        process: the process's name in Procfile; the logger's name.

    Log with ``logger.info("dyno started", extra={"app": name, "dyno": "web.1"})``; values are never secrets.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_KeyValue())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("pyroute2", "asyncssh", "rq.worker", "alembic", "dulwich"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return logging.getLogger(process)
