"""Isolations: what stands between a dyno and everything else. The same slug runs in each."""

from __future__ import annotations

from foundation.errors import InvalidParams

CONTAINER, MICROVM, OSV = "container", "microvm", "osv"

ISOLATIONS = (CONTAINER, MICROVM, OSV)
"""A container shares the host's kernel; a microVM has a Linux kernel of its own; OSv is a unikernel: one program and its
kernel in one address space."""

DEFAULT = CONTAINER


def find(name: str) -> str:
    """The isolation with this name, in any case.

    Raises:
        InvalidParams: there is none; the sentence lists them.
    """
    key = name.strip().lower()
    if key not in ISOLATIONS:
        raise InvalidParams(f"There is no isolation “{name}”; the isolations are {', '.join(ISOLATIONS)}.")
    return key
