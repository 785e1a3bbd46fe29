"""app.json: the health checks, which a build reads, and the rest, by which an app is set up, as on Heroku."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from foundation.errors import DavitError
from state.setups import Plan


class AppJsonError(DavitError):
    """app.json cannot be used; the sentence names the place."""

    id, status = "invalid_app_json", 422


class HealthCheck(Struct, frozen=True):
    """One check of a process type, with the names that other platforms use for the same in app.json.

    Attributes:
        type: ``startup`` decides whether a release is up; the other two are asked by nobody, which a build says
            (:func:`not_asked`).
        path: what is requested from the dyno; any answer from 200 to 399 is good.
        attempts: how often it may fail before the dyno counts as not up.
        timeout: seconds that an answer may take.
        wait: seconds between attempts.
        initialDelay: seconds before the first attempt.
        content: text that the answer has to hold.
    """

    type: Literal["startup", "readiness", "liveness"] = "startup"
    name: Annotated[str, Meta(max_length=100)] = ""
    path: Annotated[str, Meta(max_length=2000)] = "/"
    attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    timeout: Annotated[float, Meta(gt=0, le=300)] = 5
    wait: Annotated[float, Meta(ge=0, le=300)] = 5
    initialDelay: Annotated[float, Meta(ge=0, le=300)] = 0
    content: Annotated[str, Meta(max_length=10_000)] | None = None

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or any(char <= " " or char > "~" for char in self.path):
            raise ValueError("the path must begin with / and hold no blanks")


class EnvVar(Struct, frozen=True):
    """A config var that a setup gives the app: a value, one that is made up (``generator``), or one that somebody must give."""

    description: Annotated[str, Meta(max_length=10_000)] = ""
    value: Annotated[str, Meta(max_length=65_536)] | None = None
    required: bool = True
    generator: Literal["secret"] | None = None


class Quantity(Struct, frozen=True):
    """How many dynos of a process type, at which size."""

    quantity: Annotated[int, Meta(ge=0, le=100)] = 1
    size: Annotated[str, Meta(max_length=60)] | None = None


class Buildpack(Struct, frozen=True):
    """A buildpack by its URL or name."""

    url: Annotated[str, Meta(min_length=1, max_length=1000)]


class Command(Struct, frozen=True):
    """A command of ``scripts``."""

    command: Annotated[str, Meta(min_length=1, max_length=10_000)]


class Scripts(Struct, frozen=True):
    """Commands that run at certain times: postdeploy once, after the first release; a text is short for its object."""

    postdeploy: Command | Annotated[str, Meta(min_length=1, max_length=10_000)] | None = None


class _Rest(Struct, frozen=True):
    """What needs no look at its parts one by one."""

    scripts: Scripts = Scripts()
    addons: Annotated[list[Any], Meta(max_length=100)] = []
    stack: Annotated[str, Meta(max_length=60)] | None = None
    success_url: Annotated[str, Meta(max_length=2000)] | None = None


@dataclass(frozen=True)
class Manifest:
    """What an app is set up by; keys of app.json that are not here are ignored."""

    env: Mapping[str, EnvVar]
    formation: Mapping[str, Quantity]
    buildpacks: Sequence[Buildpack]
    postdeploy: str | None
    addons: Sequence[Any]
    success_url: str | None


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
        postdeploy=manifest.postdeploy,
        success_url=manifest.success_url,
    )


def parse_manifest(content: bytes) -> Manifest:
    """Read all of app.json, to set an app up by it.

    Raises:
        AppJsonError: it is no JSON object, or a value is of the wrong kind.
    """
    document = _document(content)
    rest = _as(_Rest, document)
    env = _mapping(document.get("env", {}), "env", 500)
    buildpacks = _list(document.get("buildpacks", []), "buildpacks", 50)
    postdeploy = rest.scripts.postdeploy
    return Manifest(
        env={name: _as(EnvVar, {"value": one} if isinstance(one, str) else one, "env", name) for name, one in env.items()},
        formation={
            name: _as(Quantity, one, "formation", name)
            for name, one in _mapping(document.get("formation", {}), "formation", 100).items()
        },
        buildpacks=[
            _as(Buildpack, {"url": one} if isinstance(one, str) else one, "buildpacks", n) for n, one in enumerate(buildpacks)
        ],
        postdeploy=postdeploy.command if isinstance(postdeploy, Command) else postdeploy,
        addons=rest.addons,
        success_url=rest.success_url,
    )


def healthchecks(content: bytes) -> dict[str, list[HealthCheck]]:
    """Read app.json as far as a build needs it: the checks of each process type.

    A list, or one check, without a process type is the web process's; one check need not be in a list.

    Raises:
        AppJsonError: it is no JSON object, or a value that we read is of the wrong kind.
    """
    where = "healthchecks"
    value = _document(content).get(where, {})
    if isinstance(value, list) or (isinstance(value, dict) and not value.keys().isdisjoint(HealthCheck.__struct_fields__)):
        value = {"web": value}
    return {
        type: [
            _as(HealthCheck, check, where, type, n)
            for n, check in enumerate(_list([one] if isinstance(one, dict) else one, f"{where}.{type}", 100))
        ]
        for type, one in _mapping(value, where, 100).items()
    }


def not_asked(checks: Mapping[str, Sequence[HealthCheck]]) -> list[str]:
    """A sentence for each check that Davit does not make."""
    return [
        f"The {check.type} check of {check.path} in app.json is not made: Davit checks a dyno when it starts (“type”: “startup”)."
        if type == "web"
        else f"The health check of {check.path} in app.json is not made: {type} is not the web process type, and serves nobody."
        for type, found in checks.items()
        for check in found
        if type != "web" or check.type != "startup"
    ]


def _document(content: bytes) -> dict[str, Any]:
    """The JSON object."""
    try:
        document = json.loads(content.decode("utf-8-sig"), parse_constant=_no_number)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise AppJsonError(f"app.json is not valid JSON{where}.") from None
    if not isinstance(document, dict):
        raise AppJsonError("app.json must hold a JSON object: { … }.")
    return document


def _no_number(word: str) -> None:
    """Refuse NaN and Infinity, which are Python's and not JSON's."""
    raise ValueError(word)


def _mapping(value: Any, where: str, most: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "expected an object")
    if len(value) > most:
        raise _wrong(where, f"expected at most {most} entries")
    return value


def _list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(where, "expected an array")
    if len(value) > most:
        raise _wrong(where, f"expected at most {most} entries")
    return value


Kind = TypeVar("Kind", bound=Struct)


def _as(kind: type[Kind], value: Any, *where: str | int) -> Kind:
    """The value as what it has to be; ``where`` it stands in app.json."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # msgspec says, for example: Expected `int` >= 1 - at `$.scripts[0].command`
        what, _, path = str(error).rpartition(" - at `$") if " - at `$" in str(error) else (str(error), "", "`")
        inner = re.findall(r"[^.\[\]]+", path.removesuffix("`"))
        raise _wrong(".".join(map(str, [*where, *inner])), what.replace("`", "")) from None


def _wrong(where: str, what: str) -> AppJsonError:
    """Both may quote app.json, which is a stranger's."""
    where, what = ("".join(char if char.isprintable() else "?" for char in text)[:200] for text in (where, what))
    return AppJsonError(f"app.json has a wrong value at {where}: {what[:1].lower()}{what[1:]}.")
