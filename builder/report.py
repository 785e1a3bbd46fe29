"""The report of the program in the sandbox, read as what it is: bytes from a stranger."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from foundation import yamltext
from foundation.errors import DavitError, InvalidParams

LINE_LIMIT = 1 << 20
LINES_LIMIT = 2000
CONFIG_VARS = 100
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}")
"""More than a config var may be called: what a container takes, and a unikernel's command line can carry."""


class ReportError(DavitError):
    """The sandbox reported something that no build program of ours reports."""

    id, status = "build_failed", 422


class ReleaseError(DavitError):
    """What a buildpack's bin/release printed cannot be used."""

    id, status = "build_failed", 422


_Name = Annotated[str, Meta(max_length=2000)]


class Step(Struct, frozen=True, forbid_unknown_fields=True, tag_field="event", tag="step"):
    """The build reached a step; what to name when it hangs there."""

    step: Literal["checkout", "submodules", "fetch", "detect", "compile", "release", "pack"]
    buildpack: _Name

    def __str__(self) -> str:
        script = f"bin/{self.step} of {self.buildpack}"
        return {
            "checkout": "checking the source out",
            "submodules": "fetching git submodules",
            "fetch": f"fetching the buildpack {self.buildpack}",
            "pack": "putting the result together",
        }.get(self.step, script)


class Detected(Struct, frozen=True, forbid_unknown_fields=True, tag_field="event", tag="detected"):
    """A buildpack said yes."""

    buildpack: _Name
    name: _Name


class Failed(Struct, frozen=True, forbid_unknown_fields=True, tag_field="event", tag="failed"):
    """The build failed, with the sentence for the person."""

    message: Annotated[str, Meta(max_length=20_000)]


class Done(Struct, frozen=True, forbid_unknown_fields=True, tag_field="event", tag="done"):
    """The build is in place; what the host has to read is base64."""

    release: Annotated[str, Meta(max_length=100_000)]
    procfile: Annotated[str, Meta(max_length=100_000)] | None
    app_json: Annotated[str, Meta(max_length=400_000)] | None
    buildpacks: Annotated[list[str], Meta(max_length=20)]
    names: Annotated[list[str], Meta(max_length=20)]


Event = Step | Detected | Failed | Done
_EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


@dataclass
class Reader:
    """Takes the report's bytes as they come and gives its events."""

    _rest: bytes = b""
    _lines: int = 0
    ended: bool = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes.

        Raises:
            ReportError: a line is too long, is no event, or comes after the end.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += len(lines)
        if len(self._rest) > LINE_LIMIT or self._lines > LINES_LIMIT:
            raise ReportError("The build's report is longer than any that Davit's build program writes; the build was ended.")
        return [self._event(line) for line in lines]

    def _event(self, line: bytes) -> Event:
        try:
            event = _EVENTS.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ReportError("The build wrote something into Davit's report of it; the build was ended.") from None
        if self.ended:
            raise ReportError("The build reported more than one end; it was ended.")
        self.ended = isinstance(event, Failed | Done)
        return event


def content(text: str | None) -> bytes | None:
    """A base64 field's bytes.

    Raises:
        ReportError: it is no base64.
    """
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ReportError("The build's report is damaged; the build was ended.") from None


@dataclass
class BuildpackRelease:
    """What the last buildpack's bin/release said: default process types, default config vars (lowest precedence)."""

    types: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)


def parse_release(printed: bytes, buildpack: str) -> BuildpackRelease:
    """Read the YAML that bin/release printed; nothing at all, ``---`` and ``{}`` all mean nothing to say.

    Raises:
        ReleaseError: it is no YAML mapping, or what we read of it is of the wrong kind.
    """
    try:
        document = yamltext.load(printed.decode("utf-8-sig"), "What it printed")
    except (UnicodeDecodeError, InvalidParams):
        raise ReleaseError(f"What bin/release of the buildpack {buildpack} printed is not YAML.") from None
    if document is None:
        return BuildpackRelease()
    if not isinstance(document, dict):
        raise ReleaseError(f"What bin/release of the buildpack {buildpack} printed is YAML, but no mapping.")
    types = _strings(document.get("default_process_types"), "default_process_types", buildpack)
    config = _strings(document.get("config_vars"), "config_vars", buildpack)
    for name in config:
        if not _VARIABLE.fullmatch(name):
            raise ReleaseError(
                f"config_vars in what bin/release of the buildpack {buildpack} printed has {name[:80]!r}, which cannot be an"
                " environment variable: it must begin with a letter or underscore; digits, dashes and points may follow."
            )
    return BuildpackRelease(types, config)


def _strings(value: Any, key: str, buildpack: str) -> dict[str, str]:
    if value is None:
        return {}
    good = isinstance(value, dict) and all(isinstance(v, str | int | float | bool) for v in value.values())
    if not good or len(value) > CONFIG_VARS:
        raise ReleaseError(f"{key} in what bin/release of the buildpack {buildpack} printed is no mapping of names to texts.")
    try:
        read = {str(name): json.dumps(text) if isinstance(text, bool) else str(text) for name, text in value.items()}
        read = {name: text for name, text in read.items() if text}
        sound = all(b"\0" not in (name + text).encode() for name, text in read.items())
    except ValueError:  # a lone surrogate; a number of more digits than Python writes
        sound = False
    if not sound:
        raise ReleaseError(f"{key} in what bin/release of the buildpack {buildpack} printed has what no environment can hold.")
    return read
