"""The environment of Davit's own processes: the settings, what networks need, and nothing else of the caller's shell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields

from cli.host.start import search_path
from foundation.settings import Settings

_PASSED_ON = re.compile(
    r"HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR"  # who and where we are
    r"|\w+_PROXY|\w+_proxy"  # the way out through a company's proxy
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS|GIT_SSL_CAINFO"  # and its certificates
    r"|(PIP|UV|NPM_CONFIG|npm_config)_\w+"  # package registries that builds use instead of the public ones
)


def build(settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    """The environment for every process of Procfile.

    Args:
        settings: each is passed on under its variable with its default filled in, those without a value left out.
        given: the environment of ``davit up``, from which only what processes need is taken.
    """
    environment = {name: value for name, value in given.items() if _PASSED_ON.fullmatch(name)}
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if isinstance(value, tuple):
            value = ",".join(map(str, value)) or None
        if value is not None:
            environment[field.metadata["variable"]] = str(value)
    environment["PATH"] = search_path(given)
    environment.setdefault("LANG", "C.UTF-8")
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONNOUSERSITE"] = "1"
    environment["MALLOC_ARENA_MAX"] = "2"  # glibc gives each thread an arena otherwise; memory, for no gain under the GIL
    return environment
