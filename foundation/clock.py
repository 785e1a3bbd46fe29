"""One way to read time."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(timezone.utc)


def read(text: str) -> datetime:
    """The moment that an ISO 8601 text names, aware, in UTC; one that names no zone is in UTC already.

    Raises:
        ValueError: it names none, or one that in UTC lies before the year 1 or after the year 9999.
    """
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    try:
        return found.astimezone(timezone.utc) if found.tzinfo else found.replace(tzinfo=timezone.utc)
    except OverflowError as error:
        raise ValueError(str(error)) from error
