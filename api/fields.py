"""What a request's body may hold: declared beside its endpoint, once. The same declaration reads the body and is published.

    @resource.on("POST", "/apps", needs="account", takes=Fields(name=Text(most=30), region=Reference()), gives=shapes.APP)

:meth:`Fields.read` checks the whole body before the view runs, and every refusal names its field; :meth:`Fields.schema` is what
``GET /schema`` shows of it (JSON Schema, draft 04). A field that is null counts as absent, and what is not declared is ignored
and told (see :mod:`api.routing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from api.body import Body
from foundation import line
from foundation.errors import InvalidParams

Json = dict[str, Any]


def _refuse(where: str, what: str) -> NoReturn:
    raise InvalidParams(f"Field {where} {what}.")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One value.

    Attributes:
        needed: whether it must be there.
    """

    needed: bool = False

    @property
    def first(self) -> str:
        """The way to the first field in it that must be there, when it is missing itself."""
        return ""

    def read(self, value: Any, where: str) -> Any:
        """The value as views take it.

        Args:
            where: the field's name, with the path to it.

        Raises:
            InvalidParams: it is not what is declared.
        """
        raise NotImplementedError

    def schema(self) -> Json:
        """What it may be, null aside."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Text(Field):
    """A string of at most ``most`` characters, without NUL; one that is needed is not empty.

    Attributes:
        line: whether it is one line (:mod:`foundation.line`). The operation that keeps it asks, too; here it has its path.
    """

    most: int = 10_000
    line: bool = False

    def read(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            _refuse(where, "must be a string")
        if "\x00" in value:
            _refuse(where, "contains a NUL character")
        if self.line and not line.is_one(value):
            _refuse(where, line.RULE)
        if len(value) > self.most:
            _refuse(where, f"must have at most {self.most} characters")
        if self.needed and not value:
            _refuse(where, "is required")
        return value

    def schema(self) -> Json:
        return {"type": ["string"], "maxLength": self.most, **({"minLength": 1} if self.needed else {})}


@dataclass(frozen=True, kw_only=True)
class Flag(Field):
    """``true`` or ``false``; the strings are taken, too, and 1 and 0, which heroku3 sends."""

    def read(self, value: Any, where: str) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, (str, int)) and value in ("true", "false", 1, 0):
            return value in ("true", 1)
        _refuse(where, "must be true or false")

    def schema(self) -> Json:
        return {"enum": [True, False, "true", "false", 1, 0]}


@dataclass(frozen=True, kw_only=True)
class Whole(Field):
    """A whole number from ``least`` to ``most``; a string of digits is taken, too."""

    least: int = 0
    most: int

    def read(self, value: Any, where: str) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= self.most:
            _refuse(where, f"must be a whole number from {self.least} to {self.most}")
        return value

    def schema(self) -> Json:
        return {"type": ["integer", "string"], "minimum": self.least, "maximum": self.most, "pattern": "^[0-9]{1,18}$"}


@dataclass(frozen=True, kw_only=True)
class Count(Field):
    """How many dynos: 2, "2", "+1" or "-1". What it comes to is seen where the dynos are counted."""

    def read(self, value: Any, where: str) -> Any:
        return value

    def schema(self) -> Json:
        return {"type": ["integer", "string"]}


@dataclass(frozen=True, kw_only=True)
class Texts(Field):
    """An object whose values are strings, or whole numbers (as heroku sends a window's size)."""

    def read(self, value: Any, where: str) -> dict[str, str]:
        if not isinstance(value, dict):
            _refuse(where, "must be an object of strings")
        read = {key: str(one) if isinstance(one, int) and not isinstance(one, bool) else one for key, one in value.items()}
        for key, one in read.items():
            if not isinstance(one, str) or "\x00" in one or "\x00" in key:
                _refuse(f"{where}.{key}", "must be a string without NUL")
        return read

    def schema(self) -> Json:
        return {"type": ["object"], "additionalProperties": {"type": ["string", "integer"]}}


@dataclass(frozen=True, kw_only=True)
class Reference(Field):
    """What names another thing: ``"web"``, or ``{"name": …}`` or ``{"id": …}`` as the public schema has it; ``number``: or 7."""

    number: bool = False
    most: int = 300

    def read(self, value: Any, where: str) -> str:
        if self.number and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, dict):
            name = value.get("name")
            if name is None or name == "":
                name = value.get("id")
            if name is None:
                _refuse(where, "needs a name or an id")
            return self._text(name, f"{where}.{'name' if value.get('name') else 'id'}")
        return self._text(value, where)

    def _text(self, value: Any, where: str) -> str:
        return Text(needed=self.needed, most=self.most).read(value, where)

    def schema(self) -> Json:
        text = {"type": ["string", "null"], "maxLength": self.most}
        made: Json = {"type": ["string", "object"], "maxLength": self.most, "properties": {"id": text, "name": text}}
        if self.number:
            made["type"].append("integer")
        return made


@dataclass(frozen=True, kw_only=True)
class Items(Field):
    """A list of at most ``most`` values of one kind."""

    of: Field
    most: int = 1000

    def read(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            _refuse(where, "must be a list")
        if len(value) > self.most:
            _refuse(where, f"must have at most {self.most} items")
        return [self.of.read(one, f"{where}[{number}]") for number, one in enumerate(value)]

    def schema(self) -> Json:
        return {"type": ["array"], "maxItems": self.most, "items": self.of.schema()}


@dataclass(frozen=True, kw_only=True)
class Object(Field):
    """An object with fields of its own; ``short``: a string is its id."""

    fields: Fields
    short: bool = False

    @property
    def first(self) -> str:
        return next((f".{name}{field.first}" for name, field in self.fields.known.items() if field.needed), "")

    def read(self, value: Any, where: str) -> Body:
        if self.short and isinstance(value, str):
            value = {"id": value}
        if not isinstance(value, dict):
            _refuse(where, "must be an object")
        return self.fields.read(value, f"{where}.")

    def schema(self) -> Json:
        made = self.fields.schema()
        if self.short:
            made["type"] = ["object", "string"]
        return made


@dataclass(frozen=True, kw_only=True)
class Setting(Field):
    """A config var's value: a string, or null to unset it."""

    def read(self, value: Any, where: str) -> str | None:
        if value is not None and not isinstance(value, str):
            raise InvalidParams(f"The value of config var {where} must be a string, or null to unset it.")
        return value

    def schema(self) -> Json:
        return {"type": ["string"]}


class Fields:
    """The fields of an object; with ``rest``, any other name is a field of that kind."""

    def __init__(self, rest: Field | None = None, /, **known: Field) -> None:
        self.known: Mapping[str, Field] = known
        self.rest = rest

    def read(self, values: Mapping[str, Any], where: str = "") -> Body:
        """The object, checked.

        Raises:
            InvalidParams: a field is wrong, or one that is needed is missing.
        """
        read: dict[str, Any] = {}
        for name, field in self.known.items():
            value = values.get(name)
            if value is not None:
                read[name] = field.read(value, f"{where}{name}")
            elif field.needed:
                _refuse(f"{where}{name}{field.first}", "is required")
        if self.rest is not None:
            read |= {name: self.rest.read(values[name], f"{where}{name}") for name in values if name not in self.known}
        return Body(values, read, known=None if self.rest else frozenset(self.known))

    def schema(self) -> Json:
        """What the object may hold."""
        made: Json = {"type": ["object"], "properties": {name: _or_null(field) for name, field in self.known.items()}}
        if self.rest:
            made["additionalProperties"] = _or_null(self.rest)
        if needed := sorted(name for name, field in self.known.items() if field.needed):
            made["required"] = needed
        return made


def _or_null(field: Field) -> Json:
    made = field.schema()
    if field.needed:
        return made
    if "enum" in made:
        return {**made, "enum": [*made["enum"], None]}
    return {**made, "type": [*made["type"], "null"]}


NONE = Fields()
"""A body that nothing is read of."""
