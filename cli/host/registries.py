"""Where packages come from on this host, as its own tools are configured; Davit has no registry addresses of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_APT = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))
_DEBIAN = re.compile(r"^(?:deb\s+(?:\[[^]]*\]\s+)?|URIs:\s*)(https?://\S+)", re.M)


def urls(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of a name for people and the address that a host's tools would use."""
    python = environment.get("UV_INDEX_URL") or environment.get("PIP_INDEX_URL") or _pip_default()
    if python:
        yield "Python packages", python
    node = environment.get("NPM_CONFIG_REGISTRY") or environment.get("npm_config_registry")
    if node:
        yield "Node packages", node
    debian = environment.get("DAVIT_MIRROR") or apt_mirror(_apt_sources())
    if debian:
        yield "Debian packages", debian


def _pip_default() -> str | None:
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return None
    return str(PyPI.simple_url)


def _apt_sources() -> str:
    files = [
        path for place in _APT for path in ([place] if place.is_file() else sorted(place.glob("*")) if place.is_dir() else [])
    ]
    return "\n".join(path.read_text(errors="replace") for path in files)


def apt_mirror(sources: str) -> str | None:
    """The first mirror in apt's sources, in the one-line or the deb822 format (sources.list(5)); None when there is none."""
    match = _DEBIAN.search(sources)
    return match[1] if match else None
