"""The SSH server of ``heroku ps:exec``: a real SSH client, with the tickets that the API gives."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from cli.client import ApiError, Client
from state import accounts, apps, db
from state.models import Account, App
from tests.api.conftest import _forget, use_home
from tests.cli.living import Davit, owner_app, serving
from tests.conftest import wait_until
from tests.ports import free_port


@pytest.fixture(scope="module")
def davit(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Davit]:
    home = Path(tempfile.mkdtemp(prefix="dv", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        use_home(home, patch, REDIS_URL=redis_server)
        db.upgrade()
        with serving(home, tmp_path_factory.mktemp("work"), redis_server, DAVIT_EXEC=f"127.0.0.1:{free_port()}") as living:
            yield living
        _forget()
    shutil.rmtree(home)


@pytest.fixture
def app(davit: Davit, request: pytest.FixtureRequest) -> str:
    name = f"dug-{abs(hash(request.node.name)) % 10**8}"
    owner_app(name)
    davit.has_code(name)
    return name


def _owner(davit: Davit) -> Client:
    return Client(davit.url, (davit.home / "owner-token").read_text().strip())


@pytest.fixture(scope="module")
def key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-rsa", key_size=2048)


def _way(davit: Davit, app: str, dyno: str, key: asyncssh.SSHKey, token: str | None = None) -> Any:
    """As the heroku command asks: the app as Basic authentication's user."""
    client = Client(davit.url, None)
    sent = {"client_key": key.export_public_key("openssh").decode()}
    return client.call("PUT", f"/api/v2/{dyno}", sent, basic=(app, token or _owner(davit).token or ""))


def _port(davit: Davit) -> int:
    return int(davit.env["DAVIT_EXEC"].rpartition(":")[2])


def _connect(davit: Davit, way: Any, key: asyncssh.SSHKey, then: Callable[[asyncssh.SSHClientConnection], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        trusted = f"[127.0.0.1]:{_port(davit)} {way['proxy_public_key']}\n".encode()
        async with asyncssh.connect(
            "127.0.0.1", _port(davit), username=way["client_user"], client_keys=[key], known_hosts=asyncssh.import_known_hosts(trusted.decode()),
            config=None, agent_path=None,
        ) as line:  # fmt: skip
            return await asyncio.wait_for(then(line), 60)

    return asyncio.run(run())


def test_a_command_runs_in_the_dyno_with_a_terminal_or_without_and_its_status_comes_back(
    davit: Davit, app: str, key: asyncssh.SSHKey
) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    way = _way(davit, app, running["name"], key)
    assert way["tunnel_host"] == "127.0.0.1"

    async def both(line: asyncssh.SSHClientConnection) -> list[Any]:
        plain = await line.run("echo in $INSIDE; read word; echo got $word; exit 4", input="it\n")
        shown = await line.run("stty size; echo $TERM; exit 3", term_type="vt100", term_size=(77, 33))
        return [plain, shown]

    plain, shown = _connect(davit, way, key, both)
    assert (plain.stdout, plain.exit_status) == (f"in {running['id']}\ngot it\n", 4)
    assert (shown.stdout, shown.exit_status) == ("33 77\r\nvt100\r\n", 3)

    async def shell(line: asyncssh.SSHClientConnection) -> Any:
        return await line.run(None, input="echo the $((40 + 2)); exit\n", term_type="vt100")

    assert "the 42" in _connect(davit, _way(davit, app, running["id"], key), key, shell).stdout
    assert running["name"] in [row["dyno_name"] for row in _status(davit, app)]


def _status(davit: Davit, app: str) -> Any:
    return Client(davit.url, None).call("GET", "/api/v2", basic=(app, _owner(davit).token or ""))


def test_who_has_no_ticket_or_anothers_key_is_not_let_in(davit: Davit, app: str, key: asyncssh.SSHKey) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    way = _way(davit, app, running["name"], key)

    async def true(line: asyncssh.SSHClientConnection) -> Any:
        return await line.run("true")

    another = asyncssh.generate_private_key("ssh-ed25519")
    for user, shown in ((way["client_user"], another), ("root", key), ("", key), (way["client_user"][:-2] + "xx", key)):
        with pytest.raises(asyncssh.PermissionDenied):
            _connect(davit, {**way, "client_user": user}, shown, true)
    with pytest.raises(ApiError, match="must be a public key"):
        Client(davit.url, None).call("PUT", f"/api/v2/{running['name']}", {"client_key": "x"}, basic=(app, _owner(davit).token or ""))


def test_a_stranger_gets_no_ticket_and_one_who_lost_the_permission_no_shell(davit: Davit, app: str, key: asyncssh.SSHKey) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    with db.transaction() as session:
        friend = accounts.create(session, None, f"{app}@example.com")
        token = accounts.issue_token(session, friend, "test")[0]
        found = session.query(App).filter_by(name=app).one()
    with pytest.raises(ApiError, match="find that app"):
        _way(davit, app, running["name"], key, token)
    with db.transaction() as session:
        apps.add_collaborator(session, _admin(session), session.merge(found), f"{app}@example.com", ["operate"])
    way = _way(davit, app, running["name"], key, token)
    _owner(davit).delete(f"/apps/{app}/collaborators/{app}@example.com")

    async def hello(line: asyncssh.SSHClientConnection) -> Any:
        return await line.run("echo hello")

    refused = _connect(davit, way, key, hello)
    assert refused.exit_status == 1 and "find that app" in refused.stdout and "hello" not in refused.stdout


def _admin(session: Any) -> Account:
    return session.query(Account).filter_by(is_admin=True).first()  # type: ignore[no-any-return]


def test_a_client_that_vanishes_ends_its_command(davit: Davit, app: str, key: asyncssh.SSHKey, tmp_path: Path) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    begun, over = tmp_path / "begun", tmp_path / "over"

    async def vanish(line: asyncssh.SSHClientConnection) -> None:
        await line.create_process(f"trap 'touch {over}; exit' HUP; touch {begun}; while :; do sleep 0.1; done", term_type="vt100")
        while not begun.exists():
            await asyncio.sleep(0.05)
        line.abort()

    _connect(davit, _way(davit, app, running["name"], key), key, vanish)
    wait_until(over.exists, "the command got SIGHUP")


def test_bytes_that_are_no_ssh_end_their_connection_and_nothing_else(davit: Davit) -> None:
    with socket.create_connection(("127.0.0.1", _port(davit)), 30) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"SSH-2.0-Davit" in line.recv(100)
    assert urllib.request.urlopen(davit.url, timeout=30).status == 200
