"""A request's JSON body: hostile input, read field by field; every refusal names its field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from foundation.errors import BadRequest, InvalidParams

LIMIT = 1 << 20
"""Bytes of a JSON body at the most."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse(raw: bytes) -> Body:
    """The body, which must be a JSON object; nothing at all counts as an empty one.

    Raises:
        BadRequest: it is not JSON, not an object, nested too deeply, or holds text that is not Unicode.
    """
    if not raw.strip():
        return Body({})
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
    return Body(values)


class _Fields(Mapping[str, Any]):
    """The fields themselves; remembers which ones were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._asked: set[object] = set()
        self._read_whole = False

    def __getitem__(self, name: str) -> Any:
        self._asked.add(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        self._asked.add(name)
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        self._read_whole = True
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def unasked(self) -> list[str]:
        """The fields with a value that nobody has asked for."""
        if self._read_whole:
            return []
        return [name for name, value in self._values.items() if value is not None and name not in self._asked]


class Body:
    """The fields of a JSON object; a field that is null counts as absent."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = _Fields(values)
        self._where = where

    def unknown(self) -> list[str]:
        """The fields that nobody has asked for: a client's misspelling, or what Davit does not know."""
        return self.values.unasked()

    def _refuse(self, name: str, what: str) -> NoReturn:
        raise InvalidParams(f"Field {self._where}{name} {what}.")

    def text(self, name: str, *, most: int = 10_000) -> str | None:
        """A string of at most ``most`` characters, without NUL."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            self._refuse(name, "must be a string")
        if "\x00" in value:
            self._refuse(name, "contains a NUL character")
        if len(value) > most:
            self._refuse(name, f"must have at most {most} characters")
        return value

    def need(self, name: str, *, most: int = 10_000) -> str:
        """A string that must be there and not be empty."""
        value = self.text(name, most=most)
        if not value:
            self._refuse(name, "is required")
        return value

    def flag(self, name: str) -> bool | None:
        """``true`` or ``false``; the strings are taken, too, and 1 and 0, which heroku3 sends."""
        value = self.values.get(name)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, (str, int)) and value in ("true", "false", 1, 0):
            return value in ("true", 1)
        self._refuse(name, "must be true or false")

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number between ``least`` and ``most``; a string of digits is taken, too."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self._refuse(name, f"must be a whole number from {least} to {most}")
        return value

    def items(self, name: str, *, most: int = 1000) -> list[Any]:
        """A list that must be there."""
        value = self.values.get(name)
        if not isinstance(value, list):
            self._refuse(name, "must be a list")
        if len(value) > most:
            self._refuse(name, f"must have at most {most} items")
        return value

    def objects(self, name: str, *, most: int = 1000) -> list[Body]:
        """A list of objects that must be there."""
        found = []
        for number, value in enumerate(self.items(name, most=most)):
            if not isinstance(value, dict):
                self._refuse(f"{name}[{number}]", "must be an object")
            found.append(Body(value, f"{self._where}{name}[{number}]."))
        return found

    def texts(self, name: str) -> dict[str, str]:
        """An object whose values are strings, or whole numbers (as heroku sends a window's size); empty when absent."""
        value = self.values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._refuse(name, "must be an object of strings")
        value = {key: str(one) if isinstance(one, int) and not isinstance(one, bool) else one for key, one in value.items()}
        for key in value:
            if not isinstance(value[key], str) or "\x00" in value[key] or "\x00" in key:
                self._refuse(f"{name}.{key}", "must be a string without NUL")
        return value

    def reference(self, name: str) -> str | None:
        """What names another thing: ``"web"``, or ``{"name": …}`` or ``{"id": …}`` as the public schema has it."""
        value = self.values.get(name)
        if isinstance(value, dict):
            inner = Body(value, f"{self._where}{name}.")
            return inner.text("name", most=300) or inner.text("id", most=300) or self._refuse(name, "needs a name or an id")
        return self.text(name, most=300)
