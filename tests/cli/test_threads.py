"""The web process's threads, as its own configuration has them: whatever stands still, everything else is answered."""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from cli.client import Client
from tests.builder.git_packs import request
from tests.cli.living import Davit, owner_app
from tests.conftest import wait_until


def further_settings() -> dict[str, str]:
    """One place for pushes, one for clones and fetches, one for uploads; and one thread more than these hold."""
    return {"DAVIT_WEB_THREADS": "2", "DAVIT_PUSHES": "1"}


@contextmanager
def _standing_still(port: int, asked: str, *headers: str) -> Iterator[None]:
    """A client that asks for something and sends the first bytes of it."""
    with socket.create_connection(("127.0.0.1", port), 60) as line:
        line.sendall("\r\n".join((f"{asked} HTTP/1.1", "Host: x", *headers, "Content-Length: 1000", "", "0011")).encode())
        yield


def _fetches(davit: Davit) -> bool:
    """Whether git serves a clone or fetch there."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes()
        except OSError:  # it has ended
            continue
        if b"upload-pack" in words and bytes(davit.home) in words:
            return True
    return False


def test_a_push_a_fetch_and_an_upload_that_stand_still_keep_nobody_waiting(davit: Davit) -> None:
    owner_app("still")
    port, token = urlsplit(davit.url).port, (davit.home / "owner-token").read_text().strip()
    assert port
    owner = Client(davit.url, token)
    secret = f"Authorization: Basic {b64encode(f'x:{token}'.encode()).decode()}"
    put = urlsplit(owner.post("/sources", {})["source_blob"]["put_url"]).path
    with ExitStack() as stack:
        for service in ("git-receive-pack", "git-upload-pack"):
            kind = f"Content-Type: application/x-{service}-request"
            stack.enter_context(_standing_still(port, f"POST /still.git/{service}", secret, kind))
        stack.enter_context(_standing_still(port, f"PUT {put}"))
        refs = "/still.git/info/refs?service=git-receive-pack"
        wait_until(lambda: request(port, refs, token=token).status == 503, "the push having its place")
        wait_until(lambda: _fetches(davit), "the fetch being served")
        wait_until(lambda: any((davit.home / "sources").glob("*.new")), "the upload being received")
        for _ in range(3):
            assert owner.get("/")["name"] == "davit"
        assert request(port, "/still.git/info/refs?service=git-upload-pack", token=token).status == 200
