"""heroku:env, and the forwarder to a Davit elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli import heroku
from cli.client import Client
from tests.cli.living import ROOT, Davit, owner_app

pytestmark = pytest.mark.usefixtures("_own_directory")


def _exports(text: str) -> dict[str, str]:
    """What a shell makes of them."""
    done = subprocess.run(["env", "-i", "sh", "-c", f"{text}\nenv"], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if line.split("=")[0] not in ("PWD", "_", "SHLVL"))


def test_a_local_davit_is_pointed_at_directly(davit: Davit) -> None:
    values = _exports(davit("heroku:env").stdout)
    assert values["HEROKU_HOST"] == davit.url and values["HEROKU_API_KEY"] == davit("auth:token").stdout.strip()
    secure = davit.url.replace("http://", "https://")
    assert values["GIT_CONFIG_KEY_0"] == f"http.{secure}/.sslCAInfo" and values["GIT_CONFIG_COUNT"] == "1"
    bundle = values["NODE_EXTRA_CA_CERTS"]
    assert "PRIVATE" not in Path(bundle).read_text()
    subprocess.run(["curl", "-sSf", "--cacert", bundle, secure], check=True, stdout=subprocess.DEVNULL)
    again = _exports(davit("heroku:env", **values).stdout)
    assert {**values, **again} == values, "a second time changes nothing"


def test_git_pushes_over_tls_with_what_is_exported(davit: Davit) -> None:
    owner_app("overtls")
    values = _exports(davit("heroku:env").stdout)
    secure = davit.url.replace("http://", "https://").replace("https://", f"https://heroku:{values['HEROKU_API_KEY']}@")
    done = subprocess.run(
        ["git", "-c", f"http.{davit.url.replace('http', 'https')}/.sslCAInfo={values['NODE_EXTRA_CA_CERTS']}", "ls-remote", f"{secure}/overtls.git"],
        capture_output=True, text=True, env={**davit.env, **values}, cwd=davit.work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_the_user_trusts_already_stays_trusted(davit: Davit, tmp_path: Path) -> None:
    other = (davit.home / "keys" / "api.pem").read_text()
    mine = tmp_path / "mine.pem"
    mine.write_text(other)
    values = _exports(davit("heroku:env", NODE_EXTRA_CA_CERTS=str(mine), GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="a.b", GIT_CONFIG_VALUE_0="c").stdout)
    text = Path(values["NODE_EXTRA_CA_CERTS"]).read_text()
    assert text.count("BEGIN CERTIFICATE") == 2 and "PRIVATE" not in text
    assert values["GIT_CONFIG_COUNT"] == "2" and "GIT_CONFIG_KEY_1" in values


@pytest.mark.parametrize(("url", "takes"), [("http://127.0.0.1:5000", True), ("https://localhost:1", True), ("https://davit.example.com", False),
                                           ("http://10.0.0.1:5000", False), ("http://127.0.0.1.example.com", False)])  # fmt: skip
def test_which_hosts_the_heroku_command_takes(url: str, takes: bool) -> None:
    assert heroku.pointable(url) is takes


@pytest.fixture
def forwarded(davit: Davit, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for a Davit that is not this machine's own: as for one on another machine."""
    elsewhere = {
        "DAVIT_URL": davit.url, "DAVIT_TOKEN": davit("auth:token").stdout.strip(),
        "DAVIT_HOME": str(tmp_path / "none"), "DAVIT_API": "127.0.0.1:1",
    }  # fmt: skip
    values = _exports(davit("heroku:env", **elsewhere).stdout)
    try:
        assert _exports(davit("heroku:env", **elsewhere).stdout) == values, "the same forwarder is used again"
        yield values
    finally:
        for note in tmp_path.rglob("forwarder/*.json"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(json.loads(note.read_text())["pid"], signal.SIGTERM)


def test_a_davit_elsewhere_is_reached_through_a_forwarder(davit: Davit, forwarded: dict[str, str]) -> None:
    here = forwarded["HEROKU_HOST"]
    assert here != davit.url and urlsplit(here).hostname == "127.0.0.1"
    owner_app("afar")
    davit.has_code("afar")
    client = Client(here, forwarded["HEROKU_API_KEY"])
    assert client.get("/apps/afar")["name"] == "afar"
    session = client.post("/apps/afar/log-sessions", {"lines": 1})
    assert session["logplex_url"].startswith(f"{here}/streams/"), "what is handed out leads back through it"
    subprocess.run(
        ["curl", "-sSf", "--cacert", forwarded["NODE_EXTRA_CA_CERTS"], here.replace("http:", "https:")], check=True, stdout=subprocess.DEVNULL
    )
    dyno = client.post("/apps/afar/dynos", {"command": "read word; echo got $word", "attach": True, "force_no_tty": True})
    url = urlsplit(dyno["attach_url"])
    assert url.port == urlsplit(here).port
    context = ssl.create_default_context(cafile=forwarded["NODE_EXTRA_CA_CERTS"])
    with socket.create_connection(("127.0.0.1", url.port or 0), 30) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as line:
        line.sendall(url.path[1:].encode() + b"\r\n")
        assert line.recv(100) == b"rendezvous\r\n"
        line.sendall(b"this\n\x04")
        said = b""
        with contextlib.suppress(ssl.SSLEOFError):
            while piece := line.recv(1000):
                said += piece
    assert said == b"got this\n"


def test_a_davit_that_does_not_answer_is_a_sentence(davit: Davit, tmp_path: Path) -> None:
    done = davit("heroku:env", check=False, DAVIT_URL="http://127.0.0.1:1", DAVIT_TOKEN="x")
    assert done.returncode == 1 and "cannot be reached" in done.stderr and ROOT.exists()
