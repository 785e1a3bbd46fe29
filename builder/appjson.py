"""app.json, as far as a build reads it: the health checks. (The rest of it is for setting an app up, as on Heroku.)"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from foundation.errors import DavitError


class AppJsonError(DavitError):
    """app.json cannot be used; the sentence names the place."""

    id, status = "invalid_app_json", 422


class HealthCheck(BaseModel):
    """One check of a process type, with the names that other platforms use for the same in app.json.

    Attributes:
        type: ``startup`` decides whether a release is up; the other two are kept for those who read them.
        path: what is requested from the dyno; any answer from 200 to 399 is good.
        attempts: how often it may fail before the dyno counts as not up.
        timeout: seconds that an answer may take.
        wait: seconds between attempts.
        initialDelay: seconds before the first attempt.
        content: text that the answer has to hold.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["startup", "readiness", "liveness"] = "startup"
    name: str = Field(default="", max_length=100)
    path: str = Field(default="/", max_length=2000)
    attempts: int = Field(default=3, ge=1, le=100)
    timeout: float = Field(default=5, gt=0, le=300)
    wait: float = Field(default=5, ge=0, le=300)
    initialDelay: float = Field(default=0, ge=0, le=300)
    content: str | None = Field(default=None, max_length=10_000)

    @field_validator("path")
    @classmethod
    def _is_path(cls, path: str) -> str:
        if not path.startswith("/") or any(char <= " " or char > "~" for char in path):
            raise ValueError("it must begin with / and hold no blanks")
        return path


class AppJson(BaseModel):
    """The keys that a build reads; all others are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    healthchecks: dict[str, list[HealthCheck]] = Field(default_factory=dict, max_length=100)

    @field_validator("healthchecks", mode="before")
    @classmethod
    def _with_types(cls, value: Any) -> Any:
        """A list, or one check, without a process type is the web process's; one check need not be in a list."""
        if isinstance(value, list):
            return {"web": value}
        if isinstance(value, dict) and any(key in HealthCheck.model_fields for key in value):
            return {"web": [value]}
        if isinstance(value, dict):
            return {name: [checks] if isinstance(checks, dict) else checks for name, checks in value.items()}
        return value


def parse(content: bytes) -> AppJson:
    """Read app.json.

    Raises:
        AppJsonError: it is no JSON object, or a value that we read is of the wrong kind.
    """
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise AppJsonError(f"app.json is not valid JSON{where}.") from None
    if not isinstance(document, dict):
        raise AppJsonError("app.json must hold a JSON object: { … }.")
    try:
        return AppJson.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise AppJsonError(f"app.json has a wrong value at {where}: {what[:1].lower()}{what[1:]}.") from None
