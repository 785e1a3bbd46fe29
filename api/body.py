"""A request's JSON body: hostile input. What its fields may be is declared by :mod:`api.fields`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from foundation.errors import BadRequest

T = TypeVar("T")

LIMIT = 1 << 20
"""Bytes of a JSON body at the most."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse(raw: bytes) -> dict[str, Any]:
    """The body, which must be a JSON object; nothing at all counts as an empty one.

    Raises:
        BadRequest: it is not JSON, not an object, nested too deeply, or holds text that is not Unicode.
    """
    if not raw.strip():
        return {}
    try:
        values = json.loads(raw, parse_constant=_no_constant)
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("The request body holds half of a surrogate pair, which is not valid Unicode.") from None
    except (ValueError, RecursionError) as error:
        detail = f" ({error})" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"The request body is not valid JSON{detail}.") from None
    if not isinstance(values, dict):
        raise BadRequest('The request body must be a JSON object, for example {"name": "example"}.')
    return values


class Body:
    """The fields of a JSON object, checked by the declaration that it was read with (:mod:`api.fields`).

    A field that is null counts as absent. Asking for one that is not declared, or not of that kind, is a mistake of ours.

    Attributes:
        values: the object as it was sent.
    """

    def __init__(self, values: Mapping[str, Any], read: Mapping[str, Any], known: frozenset[str] | None) -> None:
        self.values = values
        self._read = read
        self._known = known

    def unknown(self) -> list[str]:
        """The fields that are not declared, with the path to them: a client's misspelling, or what Davit does not know."""
        names = [] if self._known is None else [name for name in self.values if name not in self._known]
        found = [name for name in names if self.values[name] is not None]
        for name, read in self._read.items():
            inner = {f"{name}[{number}]": one for number, one in enumerate(read)} if isinstance(read, list) else {name: read}
            found += [f"{place}.{one}" for place, body in inner.items() if isinstance(body, Body) for one in body.unknown()]
        return found

    def _of(self, name: str, kind: type[T]) -> T | None:
        if self._known is not None and name not in self._known:
            raise KeyError(f"{name} is not declared.")
        value = self._read.get(name)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is declared as something else.")
        return value

    def text(self, name: str) -> str | None:
        """A string."""
        return self._of(name, str)

    def need(self, name: str) -> str:
        """A string that must be there."""
        value = self._of(name, str)
        if value is None:
            raise TypeError(f"{name} is not declared as needed.")
        return value

    reference = text

    def flag(self, name: str) -> bool | None:
        """``true`` or ``false``."""
        return self._of(name, bool)

    def whole(self, name: str) -> int | None:
        """A whole number."""
        return self._of(name, int)

    def any(self, name: str) -> Any:
        """A value as it was sent."""
        return self._of(name, object)

    def items(self, name: str) -> list[Any] | None:
        """A list; of objects, their bodies."""
        return self._of(name, list)

    def texts(self, name: str) -> dict[str, str]:
        """An object of strings; empty when absent."""
        return self._of(name, dict) or {}

    def inner(self, name: str) -> Body | None:
        """An object with fields of its own."""
        return self._of(name, Body)

    def inside(self, name: str) -> Body:
        """An object with fields of its own that must be there."""
        value = self._of(name, Body)
        if value is None:
            raise TypeError(f"{name} is not declared as needed.")
        return value
