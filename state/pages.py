"""Pages of long lists: a page costs what it shows, however long the list is (keyset paging)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, and_, or_
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


Column = InstrumentedAttribute[Any] | tuple[InstrumentedAttribute[Any], InstrumentedAttribute[Any]]
"""What a list is sorted by: a column that is unique within it, or one that is not, with the identifier that decides then."""
BEFORE_ALL_IDS, AFTER_ALL_IDS = "", "~"
"""In the place of an id in a :data:`Bound`."""


def page(session: Session, kind: type[T], query: Select[Any], columns: Mapping[str, Column], window: Window) -> Page[T]:
    """The part of ``query`` that ``window`` asks for.

    Args:
        kind: the entity that the query selects.
        query: selects it, with conditions but without an order.
        columns: what it can be sorted by, by name.
    """
    column = columns[window.attribute]
    by = column if isinstance(column, tuple) else (column,)
    query = query.order_by(None).order_by(*(one.desc() if window.descending else one.asc() for one in by))
    if window.start is not None:
        query = query.where(_beyond(column, window.start, window.descending, strict=window.after))
    if window.end is not None:
        query = query.where(_beyond(column, window.end, not window.descending, strict=False))
    rows: list[T] = list(session.scalars(query.limit(window.maximum + 1)))
    return Page(rows[: window.maximum], len(rows) > window.maximum)


def _beyond(column: Column, bound: Bound, descending: bool, *, strict: bool) -> ColumnElement[bool]:
    if not isinstance(column, tuple):
        return _past(column, bound, descending, strict)
    if not isinstance(bound, tuple):
        return _past(column[0], bound, descending, strict)
    value, id = bound
    if id in (BEFORE_ALL_IDS, AFTER_ALL_IDS):  # where ids of letters and digits end depends on the database's collation
        return _past(column[0], value, descending, strict=(id == AFTER_ALL_IDS) != descending)
    further = or_(_past(column[0], value, descending, strict=True), _past(column[1], id, descending, strict))
    return and_(_past(column[0], value, descending, strict=False), further)


def _past(column: InstrumentedAttribute[Any], value: object, descending: bool, strict: bool) -> ColumnElement[bool]:
    if descending:
        return column < value if strict else column <= value
    return column > value if strict else column >= value
