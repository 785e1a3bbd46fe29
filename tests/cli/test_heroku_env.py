"""heroku:env, and the forwarder to a Davit elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
from asyncio import selector_events
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli import forwarder, heroku
from cli.apps import heroku_env
from cli.client import Client
from tests.cli.living import ROOT, Davit, owner_app
from tests.conftest import wait_until

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
def elsewhere(davit: Davit, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What is set where this Davit is another machine's, reached by TLS and known by an authority of its own."""
    yield {
        "DAVIT_URL": davit.url.replace("http://", "https://"), "DAVIT_TOKEN": davit("auth:token").stdout.strip(),
        "DAVIT_HOME": str(tmp_path / "none"), "DAVIT_API": "127.0.0.1:1", "SSL_CERT_FILE": str(davit.home / "keys" / "ca.pem"),
    }  # fmt: skip
    _end_forwarder(tmp_path)


def _end_forwarder(home: Path) -> None:
    for note in home.rglob("forwarder/*.json"):
        told = json.loads(note.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(told["pid"], signal.SIGTERM)
        wait_until(lambda port=told["port"]: not _listens(port), "the forwarder's end")


def _listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def forwarded(davit: Davit, elsewhere: dict[str, str]) -> dict[str, str]:
    """The environment for it."""
    values = _exports(davit("heroku:env", **elsewhere).stdout)
    assert _exports(davit("heroku:env", **elsewhere).stdout) == values, "the same forwarder is used again"
    return values


def test_a_forwarder_outlives_a_moment_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = [OSError(24, "Too many open files")]
    accept = selector_events.BaseSelectorEventLoop.sock_accept

    async def sock_accept(loop: asyncio.AbstractEventLoop, listener: socket.socket) -> tuple[socket.socket, object]:
        if refused:
            raise refused.pop()
        return await accept(loop, listener)

    async def scene(listener: socket.socket) -> bytes:
        there = forwarder.Forwarder("http://127.0.0.1:1", ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), None)
        serving = asyncio.ensure_future(there.serve(listener))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET /.forwarder HTTP/1.1\r\n\r\n")
        answer = asyncio.ensure_future(reader.read())
        await asyncio.wait([serving, answer], return_when=asyncio.FIRST_COMPLETED)
        assert not serving.done()
        serving.cancel()
        writer.close()
        return await answer

    monkeypatch.setattr(selector_events.BaseSelectorEventLoop, "sock_accept", sock_accept)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert asyncio.run(scene(listener)).startswith(b"HTTP/1.1 200 OK")
    assert not refused


def test_checkouts_find_the_forwarder_where_it_was_before(davit: Davit, elsewhere: dict[str, str], forwarded: dict[str, str], tmp_path: Path) -> None:
    _end_forwarder(tmp_path)
    again = davit("heroku:env", **elsewhere)
    assert _exports(again.stdout) == forwarded and not again.stderr
    _end_forwarder(tmp_path)
    port = urlsplit(forwarded["HEROKU_HOST"]).port
    with socket.create_server(("127.0.0.1", port or 0)):
        moved = davit("heroku:env", **elsewhere)
    assert urlsplit(_exports(moved.stdout)["HEROKU_HOST"]).port != port
    assert "heroku git:remote -a APP" in moved.stderr
    assert not davit("heroku:env", **elsewhere).stderr, "it is told once"


def test_shells_that_begin_at_once_share_a_forwarder(davit: Davit, elsewhere: dict[str, str], tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as shells:
        printed = [shells.submit(davit, "heroku:env", **elsewhere) for _ in range(3)]
    assert len({one.result().stdout for one in printed}) == 1
    running = [word for word in _command_lines() if word[1:] == ["-m", "cli.forwarder", elsewhere["DAVIT_URL"]]]
    assert len(running) == 1, running


def _command_lines() -> Iterator[list[str]]:
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield process.read_bytes().decode(errors="replace").rstrip("\0").split("\0")


def test_a_forwarder_of_before_an_upgrade_is_followed_by_the_new_one(
    davit: Davit, elsewhere: dict[str, str], forwarded: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note,) = tmp_path.rglob("forwarder/*.json")
    before = json.loads(note.read_text())
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name, value in {"HOME": str(tmp_path), **elsewhere}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(forwarder, "_edition", lambda: "another")
    assert forwarder.ensure(elsewhere["DAVIT_URL"])[0] == forwarded["HEROKU_HOST"]
    after = json.loads(note.read_text())
    assert (after["port"], after["pid"] != before["pid"]) == (before["port"], True)


def test_a_forwarder_believes_what_is_trusted_where_it_was_asked_for_last(
    davit: Davit, elsewhere: dict[str, str], forwarded: dict[str, str], tmp_path: Path
) -> None:
    (note,) = tmp_path.rglob("forwarder/*.json")
    (another,) = tmp_path.rglob("forwarder/ca.pem")
    authority = Path(elsewhere["SSL_CERT_FILE"]).read_text()
    client = Client(forwarded["HEROKU_HOST"].replace("https:", "http:"), forwarded["HEROKU_API_KEY"])
    pids = [json.loads(note.read_text())["pid"]]
    for trusted in (authority, authority + "\n"):
        (tmp_path / "ca.pem").write_text(trusted)
        assert _exports(davit("heroku:env", **{**elsewhere, "SSL_CERT_FILE": "ca.pem"}).stdout) == forwarded
        assert client.get("/account"), "a relative path is the shell's"
        pids.append(json.loads(note.read_text())["pid"])
    assert len({*pids}) == 3
    (tmp_path / "ca.pem").write_text(another.read_text())
    done = davit("heroku:env", **{**elsewhere, "SSL_CERT_FILE": "ca.pem"})
    assert _exports(done.stdout) == forwarded and "cannot be reached" in done.stderr
    assert json.loads(note.read_text())["pid"] == pids[-1] and client.get("/account"), "who does not reach it takes it from nobody"


def test_a_davit_that_answered_once_and_does_not_now_holds_up_no_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(heroku_env, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"https://127.0.0.1:{silent.getsockname()[1]}", "a token")
        try:
            before = forwarder.ensure(client.url)
            assert heroku_env._forwarded(client) == before
        finally:
            _end_forwarder(tmp_path)
    assert "cannot be reached" in capsys.readouterr().err


def test_a_davit_elsewhere_is_reached_through_a_forwarder(davit: Davit, forwarded: dict[str, str]) -> None:
    secure = forwarded["HEROKU_HOST"]
    assert urlsplit(secure).scheme == "https" and urlsplit(secure).hostname == "localhost", "nobody else can have that certificate"
    here = secure.replace("https:", "http:")
    owner_app("afar")
    davit.has_code("afar")
    client = Client(here, forwarded["HEROKU_API_KEY"])
    assert client.get("/apps/afar")["name"] == "afar"
    session = client.post("/apps/afar/log-sessions", {"lines": 1})
    assert session["logplex_url"].startswith(f"{here}/streams/"), "what is handed out leads back through it"
    subprocess.run(["curl", "-sSf", "--cacert", forwarded["NODE_EXTRA_CA_CERTS"], secure], check=True, stdout=subprocess.DEVNULL)
    remote = f"{secure.replace('https://', 'https://heroku:' + forwarded['HEROKU_API_KEY'] + '@')}/afar.git"
    subprocess.run(["git", "ls-remote", remote], env={**davit.env, **forwarded}, cwd=davit.work, check=True, capture_output=True)
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
