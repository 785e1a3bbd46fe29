"""Pages of lists by the ``Range`` header: ``Range: name ]last..; max=200, order=desc`` and ``Next-Range`` (Platform API)."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from foundation import clock
from foundation.errors import DavitError
from state.pages import AFTER_ALL_IDS, BEFORE_ALL_IDS, Bound, Page, Window

T = TypeVar("T")
USUAL, MOST = 200, 1000
"""Items of a page when nothing is said, and at the most."""
_ID = re.compile(r"(.*)~([0-9a-f-]{36})")
_BOUND = re.compile(r"[\]\[]?[^\x00-\x20;,]*")


class BadRange(DavitError):
    """A Range header asks for something that the list cannot be cut by."""

    id, status = "requested_range_not_satisfiable", 416


@dataclass(frozen=True)
class Tied:
    """Of an attribute that several items may have alike: its reader gives ``(value, id)``.

    A bound is the value alone, with all that have it, or ``VALUE~ID``, as ``Next-Range`` says it.
    """

    of: type


@dataclass(frozen=True)
class Order:
    """What a list can be sorted by: attribute → reader of the attribute; the first is the usual one.

    ``kinds`` says which bounds are numbers or times, and which are :class:`Tied`; the others are text.
    """

    attributes: Mapping[str, Callable[[Any], Any]]
    kinds: Mapping[str, type | Tied]
    usual_descending: bool = False

    @property
    def usual(self) -> str:
        """The attribute that the list is sorted by when nothing is said."""
        return next(iter(self.attributes))


BY_AGE = Order(
    {"created_at": lambda row: (row.created_at, row.id), "id": lambda row: row.id}, {"created_at": Tied(datetime)}
)  # fmt: skip
NEWEST_FIRST = Order(BY_AGE.attributes, BY_AGE.kinds, usual_descending=True)
SHOWN_BY_NAME = Order({"name": lambda row: row["name"], "id": lambda row: row["id"]}, {})
"""Of rows that are rendered already."""
BY_NAME = Order({"name": lambda row: (row.name, row.id), "id": lambda row: row.id}, {"name": Tied(str)})


def parse(header: str | None, order: Order) -> Window:
    """The window that a Range header asks for. Lenient: an unknown attribute or unit gives the usual order.

    Raises:
        BadRange: a bound is not of its attribute's kind, or ``max`` is no number.
    """
    first, _, rest = (header or "").replace(",", ";").partition(";")
    options = dict(_option(part) for part in rest.split(";"))
    attribute, _, bounds = first.strip().partition(" ")
    if attribute not in order.attributes:
        attribute, bounds = order.usual, ""
    start, _, end = bounds.strip().partition("..")
    if not (_BOUND.fullmatch(start) and _BOUND.fullmatch(end)):
        raise BadRange(f"Range {header!r} cannot be read; write it like “{attribute} ..; max=100, order=desc”.")
    maximum = options.get("max", str(USUAL))
    if not (maximum.isascii() and maximum.isdigit() and len(maximum) < 10 and int(maximum)):
        raise BadRange(f"max={maximum} in the Range header must be a number from 1 to {MOST}.")
    kind = order.kinds.get(attribute, str)
    descending = options["order"] == "desc" if "order" in options else order.usual_descending and not bounds
    after = start.startswith("]")
    return Window(
        attribute=attribute,
        start=_bound(kind, _unquoted(start.lstrip("[]")), behind=after != descending),
        end=_bound(kind, _unquoted(end.lstrip("[]")), behind=not descending),
        after=after,
        maximum=min(int(maximum), MOST),
        descending=descending,
    )


def _option(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name.strip(), value.strip()


def _unquoted(text: str) -> str:
    found = urllib.parse.unquote(text)
    if "\x00" in found:
        raise BadRange("A bound in the Range header may hold no NUL character.")
    return found


def _quoted(text: str) -> str:
    """A value so that it ends no bound, and no header: percent-encoded, dots too where they might be the range's two."""
    return re.sub(r"\.(?=\.|$)|^\.", "%2E", urllib.parse.quote(text, safe=":+@/"))


def _bound(kind: type | Tied, text: str, *, behind: bool) -> Bound:
    """A bound as it is compared; ``behind``: where no id says which of those alike, it comes after the last of them."""
    if not text:
        return None
    if isinstance(kind, Tied):
        found = _ID.fullmatch(text)
        value = _bound(kind.of, found[1] if found else text, behind=behind)
        if not isinstance(value, (str, datetime)):
            raise BadRange(f"“{text}” in the Range header has no value before its id.")
        return value, found[2] if found else AFTER_ALL_IDS if behind else BEFORE_ALL_IDS
    try:
        if kind is int:
            return max(-1, min(int(text), 2**31 - 1))
        if kind is datetime:
            return clock.read(text)
    except ValueError:
        raise BadRange(f"“{text}” in the Range header is not a bound of that attribute.") from None
    return text


def cut(rows: Sequence[T], order: Order, window: Window) -> Page[T]:
    """The window's part of a short list that is in memory anyway."""
    read = order.attributes[window.attribute]
    chosen = sorted(rows, key=read, reverse=window.descending)

    def reached(row: T) -> bool:
        if window.start is None:
            return True
        value = read(row)
        if value == window.start:
            return not window.after
        return bool((value < window.start) == window.descending)

    def within(row: T) -> bool:
        return window.end is None or bool(read(row) >= window.end if window.descending else read(row) <= window.end)

    chosen = [row for row in chosen if reached(row) and within(row)]
    return Page(chosen[: window.maximum], len(chosen) > window.maximum)


def headers(page: Page[Any], order: Order, window: Window) -> dict[str, str]:
    """The response headers that describe the page."""
    read = order.attributes[window.attribute]
    described = {"Accept-Ranges": ", ".join(order.attributes)}
    if page.items:
        first, last = _text(read(page.items[0])), _text(read(page.items[-1]))
        described["Content-Range"] = f"{window.attribute} {first}..{last}"
        if page.more:
            descending = ", order=desc" if window.descending else ""
            end = _end(window.end)
            described["Next-Range"] = f"{window.attribute} ]{last}..{end}; max={window.maximum}{descending}"
    return described


def _end(bound: Bound) -> str:
    if isinstance(bound, tuple) and bound[1] in (BEFORE_ALL_IDS, AFTER_ALL_IDS):  # no id was named; the order is the same again
        return _text(bound[0])
    return "" if bound is None else _text(bound)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "~".join(map(_text, value))
    return value.isoformat() if isinstance(value, datetime) else _quoted(str(value))
