"""URLs that are secrets: whoever has one may read one stream until it expires. Signed, so nothing has to be remembered."""

from __future__ import annotations

from flask import request

from state.signatures import read, sign

__all__ = ["base_url", "build_output", "read", "release_output", "sign"]

LOG_SECONDS = 3600
OUTPUT_SECONDS = 12 * 3600


def base_url() -> str:
    """The API's base URL as this caller reached it."""
    return request.host_url.rstrip("/")


def build_output(build_id: str) -> str:
    """Where a build's output is read."""
    return f"{base_url()}/streams/builds/{sign('build', {'build': build_id}, OUTPUT_SECONDS, steady=True)}"


def release_output(release_id: str) -> str:
    """Where the output of a release's command is read."""
    return f"{base_url()}/streams/releases/{sign('release', {'release': release_id}, OUTPUT_SECONDS, steady=True)}"
