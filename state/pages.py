"""Pages of long lists: a page costs what it shows, however long the list is (keyset paging on a unique column)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

T = TypeVar("T")
Bound = str | int | datetime | tuple[str | datetime, str] | None
"""The last: a value that several items may have, and the id of one."""


@dataclass(frozen=True)
class Window:
    """What part of a list is wanted.

    Attributes:
        attribute: the sort column; must be one of the list's.
        start, end: inclusive bounds in the order asked for; None for open.
        after: leave ``start`` itself out (it was the last of the page before).
        maximum: items at the most.
        descending: from the greatest to the least.
    """

    attribute: str
    start: Bound = None
    end: Bound = None
    after: bool = False
    maximum: int = 200
    descending: bool = False


@dataclass(frozen=True)
class Page(Generic[T]):
    """Items of one page, and whether the list goes on after the last."""

    items: list[T]
    more: bool


def page(
    session: Session, kind: type[T], query: Select[Any], columns: Mapping[str, InstrumentedAttribute[Any]], window: Window
) -> Page[T]:
    """The part of ``query`` that ``window`` asks for.

    Args:
        kind: the entity that the query selects.
        query: selects it, with conditions but without an order.
        columns: sort columns by name; each is unique within the list.
    """
    column = columns[window.attribute]
    query = query.order_by(None).order_by(column.desc() if window.descending else column.asc())
    if window.start is not None:
        query = query.where(_beyond(column, window.start, window.descending, strict=window.after))
    if window.end is not None:
        query = query.where(_beyond(column, window.end, not window.descending, strict=False))
    rows: list[T] = list(session.scalars(query.limit(window.maximum + 1)))
    return Page(rows[: window.maximum], len(rows) > window.maximum)


def _beyond(column: InstrumentedAttribute[Any], value: object, descending: bool, *, strict: bool) -> ColumnElement[bool]:
    if descending:
        return column < value if strict else column <= value
    return column > value if strict else column >= value
