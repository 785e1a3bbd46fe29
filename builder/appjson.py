"""app.json: the health checks, which a build reads, and the rest, by which an app is set up, as on Heroku."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from foundation.errors import DavitError
from state.setups import Plan


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


class EnvVar(BaseModel):
    """A config var that a setup gives the app: a value, one that is made up (``generator``), or one that somebody must give."""

    model_config = ConfigDict(extra="ignore", strict=True)

    description: str = Field(default="", max_length=10_000)
    value: str | None = Field(default=None, max_length=65_536)
    required: bool = True
    generator: Literal["secret"] | None = None


class Quantity(BaseModel):
    """How many dynos of a process type, at which size."""

    model_config = ConfigDict(extra="ignore", strict=True)

    quantity: int = Field(default=1, ge=0, le=100)
    size: str | None = Field(default=None, max_length=60)


class Buildpack(BaseModel):
    """A buildpack by its URL or name."""

    model_config = ConfigDict(extra="ignore", strict=True)

    url: str = Field(min_length=1, max_length=1000)


class Command(BaseModel):
    """A command of ``scripts``."""

    model_config = ConfigDict(extra="ignore", strict=True)

    command: str = Field(min_length=1, max_length=10_000)


class Scripts(BaseModel):
    """Commands that run at certain times: postdeploy once, after the first release."""

    model_config = ConfigDict(extra="ignore", strict=True)

    postdeploy: Command | None = None

    @field_validator("postdeploy", mode="before")
    @classmethod
    def _command(cls, value: Any) -> Any:
        return {"command": value} if isinstance(value, str) else value


class Manifest(BaseModel):
    """What an app is set up by; keys that are not here are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    env: dict[str, EnvVar] = Field(default_factory=dict, max_length=500)
    formation: dict[str, Quantity] = Field(default_factory=dict, max_length=100)
    buildpacks: list[Buildpack] = Field(default_factory=list, max_length=50)
    scripts: Scripts = Field(default_factory=Scripts)
    addons: list[Any] = Field(default_factory=list, max_length=100)
    stack: str | None = Field(default=None, max_length=60)
    success_url: str | None = Field(default=None, max_length=2000)

    @field_validator("env", mode="before")
    @classmethod
    def _vars(cls, value: Any) -> Any:
        """A config var is an object, or its value."""
        if not isinstance(value, dict):
            return value
        return {name: {"value": one} if isinstance(one, str) else one for name, one in value.items()}

    @field_validator("buildpacks", mode="before")
    @classmethod
    def _buildpacks(cls, value: Any) -> Any:
        return [{"url": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value


def plan(manifest: Manifest, overrides: Mapping[str, str]) -> Plan:
    """What a setup does.

    Args:
        overrides: config vars that somebody gave, which go before app.json's.

    Raises:
        AppJsonError: a required config var has no value, or app.json asks for what Davit has not.
    """
    if manifest.addons:
        names = ", ".join(str(one.get("plan", one) if isinstance(one, dict) else one)[:60] for one in manifest.addons)
        raise AppJsonError(
            f"app.json asks for add-ons ({names}), which this version of Davit does not have. "
            "Take them out of it, and give the config vars that they would set (overrides.env)."
        )
    env: dict[str, str] = {}
    for name, wanted in manifest.env.items():
        if name in overrides:
            continue
        if wanted.value is not None:
            env[name] = wanted.value
        elif wanted.generator == "secret":
            env[name] = secrets.token_hex(32)
        elif wanted.required:
            raise AppJsonError(f"app.json requires the config var {name[:255]}; give it a value (overrides.env).")
    return Plan(
        env={**env, **overrides},
        formation={name: (one.quantity, one.size) for name, one in manifest.formation.items()},
        buildpacks=[one.url for one in manifest.buildpacks],
        postdeploy=manifest.scripts.postdeploy.command if manifest.scripts.postdeploy else None,
        success_url=manifest.success_url,
    )


def parse_manifest(content: bytes) -> Manifest:
    """Read all of app.json, to set an app up by it.

    Raises:
        AppJsonError: it is no JSON object, or a value is of the wrong kind.
    """
    return _read(content, Manifest)


def parse(content: bytes) -> AppJson:
    """Read app.json as far as a build needs it.

    Raises:
        AppJsonError: it is no JSON object, or a value that we read is of the wrong kind.
    """
    return _read(content, AppJson)


Model = TypeVar("Model", bound=BaseModel)


def _read(content: bytes, model: type[Model]) -> Model:
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise AppJsonError(f"app.json is not valid JSON{where}.") from None
    if not isinstance(document, dict):
        raise AppJsonError("app.json must hold a JSON object: { … }.")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise AppJsonError(f"app.json has a wrong value at {where}: {what[:1].lower()}{what[1:]}.") from None
