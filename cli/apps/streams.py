"""Copying what the API streams to standard output."""

from __future__ import annotations

import sys

from cli.client import Client


def copy(client: Client, url: str) -> None:
    """Write a text stream to standard output as it comes, until its end."""
    with client.stream(url) as answer:
        while chunk := answer.read1(65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
