"""Copying what the API streams, to standard output as a rule."""

from __future__ import annotations

import sys
from typing import BinaryIO

from cli.client import Client


def copy(client: Client, url: str, to: BinaryIO | None = None) -> None:
    """Write a text stream to ``to`` (standard output when None) as it comes, until its end."""
    out = to or sys.stdout.buffer
    with client.stream(url) as answer:
        while chunk := answer.read1(65536):
            out.write(chunk)
            out.flush()
