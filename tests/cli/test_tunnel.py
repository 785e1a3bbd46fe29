"""The SSH server of ``heroku ps:exec``: a real SSH client, with the tickets that the API gives."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from sqlalchemy.orm import Session

from api import dyno_files, streams, tunnel
from cli.client import ApiError, Client
from state import accounts, apps, db
from state.models import Account, App
from tests.cli.living import Davit, echoing, owner_app
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says
from tests.ports import free_port


def further_settings() -> dict[str, str]:
    """Where SSH is."""
    return {"DAVIT_EXEC": f"127.0.0.1:{free_port()}"}


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


def _friend(session: Session, app: str) -> tuple[str, App]:
    """The token of somebody new, named after the app, and the app."""
    friend = accounts.create(session, None, f"{app}@example.com")
    return accounts.issue_token(session, friend, "test")[0], session.query(App).filter_by(name=app).one()


def test_a_stranger_gets_no_ticket_and_one_who_lost_the_permission_no_shell(davit: Davit, app: str, key: asyncssh.SSHKey) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    with db.transaction() as session:
        token, found = _friend(session, app)
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


def test_a_window_that_changes_its_size_is_told_to_the_command(davit: Davit, app: str, key: asyncssh.SSHKey) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})

    async def widen(line: asyncssh.SSHClientConnection) -> str:
        process = await line.create_process("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done", term_type="vt100", term_size=(80, 24))
        assert "ready" in await process.stdout.readline()
        process.change_terminal_size(77, 33)
        return str(await process.stdout.readline())

    assert "33 77" in _connect(davit, _way(davit, app, running["name"], key), key, widen)


@pytest.mark.row("exec-files")
def test_a_dynos_files_are_copied_and_nothing_can_be_written(davit: Davit, app: str, key: asyncssh.SSHKey, tmp_path: Path) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    content = bytes(range(256)) * 3000 + b"the end"
    there, here = tmp_path / "a file's name; $(touch x)", tmp_path / "copy"
    there.write_bytes(content)
    there.chmod(0o640)

    async def copy(line: asyncssh.SSHClientConnection) -> None:
        async with line.start_sftp_client() as files:
            await files.get(str(there), str(here))
            seen = await files.stat(str(there))
            assert (seen.size, (seen.permissions or 0) & 0o777) == (len(content), 0o640)
            async with files.open(str(there), "rb") as file:
                assert await file.read(10, len(content) - 7) == b"the end"
                assert await file.read(4, 0) == b"\0\1\2\3"
            assert await files.realpath("x/../y") == "/app/y"
            for name, why in ((f"{there}.not", "no such file"), (str(tmp_path), "no file"), ("/dev/zero", "no file")):
                with pytest.raises(asyncssh.SFTPNoSuchFile, match=why):
                    await files.open(name, "rb")
            with pytest.raises(asyncssh.SFTPNoSuchFile, match="No such file"):
                await files.stat(f"{there}.not")
            for attempt in (
                files.put(str(here), str(there)), files.remove(str(there)), files.mkdir(f"{there}.d"), files.listdir(str(tmp_path)),
                files.rename(str(there), f"{there}.2"), files.symlink("/etc/passwd", f"{there}.l"), files.chmod(str(there), 0),
            ):  # fmt: skip
                with pytest.raises(asyncssh.SFTPError) as refused:
                    await attempt
                assert_says("exec-files", refused.value.reason)

    _connect(davit, _way(davit, app, running["name"], key), key, copy)
    assert davit.processes.recorded.count(running["id"]) == 1, "the files that somebody reads of a dyno are one thing on record"
    assert here.read_bytes() == there.read_bytes() == content
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([there.name, "copy"])


def test_the_davit_command_copies_a_file_out_of_a_dyno(davit: Davit, app: str, tmp_path: Path) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    there, here = tmp_path / "it's a file", tmp_path / "copy"
    there.write_bytes(bytes(range(256)) * 2000)
    where = ("-a", app, "-d", running["name"])
    davit("ps:copy", *where, str(there), "--output", str(here))
    assert here.read_bytes() == there.read_bytes()
    again = davit("ps:copy", *where, str(there), "--output", str(here), check=False)
    assert again.returncode == 1 and "already exists" in again.stderr
    gone = davit("ps:copy", *where, f"{there}.not", "--output", str(tmp_path / "other"), check=False)
    assert gone.returncode == 1 and "No such file" in gone.stderr and "could not be copied" in gone.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy", "it's a file"]


def test_no_operation_of_the_librarys_reaches_the_hosts_files() -> None:
    """Also of a later version: what is not written anew is refused."""
    own = vars(dyno_files.DynoFiles)
    theirs = {name for name in dir(asyncssh.SFTPServer) if not name.startswith("_")} - dyno_files._LIBRARYS_OWN
    assert theirs <= own.keys() and {"open56", "write", "statvfs", "readlink", "posix_rename"} <= theirs
    assert {name for name in theirs if own[name] is not dyno_files._refuse} == {
        "open", "read", "fstat", "close", "stat", "lstat", "realpath", "scandir", "exit",
    }  # fmt: skip


async def _echo(line: asyncssh.SSHClientConnection, host: str, port: int) -> bytes:
    reader, writer = await line.open_connection(host, port)
    writer.write(b"hello")
    writer.write_eof()
    return bytes(await reader.read())


@pytest.mark.row("exec-elsewhere", "exec-gone")
def test_a_port_of_the_dyno_is_reached_and_nothing_else(davit: Davit, app: str, key: asyncssh.SSHKey) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    with echoing() as port:
        nobody = free_port()

        async def reach(line: asyncssh.SSHClientConnection) -> None:
            for host in ("127.0.0.1", "localhost", "0.0.0.0"):
                assert await _echo(line, host, port) == b"HELLO", "and the end of what is sent is told"
            with pytest.raises(asyncssh.ChannelOpenError) as alone:
                await _echo(line, "127.0.0.1", nobody)
            assert_says("exec-gone", alone.value.reason)
            for host in ("10.0.0.1", "169.254.169.254", "example.com", "::1", "127.0.0.2", ""):
                with pytest.raises(asyncssh.ChannelOpenError) as refused:
                    await _echo(line, host, port)
                assert refused.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, host
                assert_says("exec-elsewhere", refused.value.reason)
            with pytest.raises(asyncssh.ChannelOpenError):
                await line.open_unix_connection("/run/davit.sock")
            with pytest.raises(asyncssh.ChannelListenError):
                await line.forward_remote_port("", 0, "localhost", 80)

        _connect(davit, _way(davit, app, running["name"], key), key, reach)


@pytest.mark.row("exec-many")
def test_one_account_has_only_so_many_ways_open_and_gets_back_those_that_it_closes(davit: Davit, app: str, key: asyncssh.SSHKey) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        port = listener.getsockname()[1]

        async def crowd(line: asyncssh.SSHClientConnection) -> None:
            many = [await line.open_connection("127.0.0.1", port) for _ in range(64)]
            with pytest.raises(asyncssh.ChannelOpenError) as refused:
                await line.open_connection("127.0.0.1", port)
            assert_says("exec-many", refused.value.reason)
            for _, writer in many:
                writer.close()
            for _, writer in many:
                await writer.channel.wait_closed()
            assert (await line.run("echo hello")).stdout == "hello\n"

        _connect(davit, _way(davit, app, running["name"], key), key, crowd)


def test_one_accounts_shells_close_nobody_elses_and_one_too_many_is_told(davit: Davit, app: str, key: asyncssh.SSHKey) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    with db.transaction() as session:
        token, found = _friend(session, app)
        apps.add_collaborator(session, _admin(session), found, f"{app}@example.com", ["operate"])

    async def fill(line: asyncssh.SSHClientConnection) -> None:
        held = [await line.create_process("echo here; read line") for _ in range(tunnel.EACH)]
        assert [(await one.stdout.readline()).strip() for one in held] == ["here"] * tunnel.EACH
        refused = await line.run("echo hello")
        assert refused.exit_status == 1
        assert_says("exec-many", str(refused.stdout))
        other = await asyncio.to_thread(_connect, davit, _way(davit, app, running["name"], key, token), key, lambda theirs: theirs.run("echo hello"))
        assert other.stdout == "hello\n"
        for one in held:
            one.stdin.write_eof()
        for one in held:
            await one.wait()
        assert (await line.run("echo hello")).stdout == "hello\n"

    assert tunnel.EACH * 4 <= tunnel.SESSIONS and tunnel.EACH_ASKING * 4 <= tunnel.ASKING
    _connect(davit, _way(davit, app, running["name"], key), key, fill)


def test_a_connection_ends_when_whose_it_is_may_not_have_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECHECK_SECONDS", 0.01)
    answers = iter([True, True, False])

    async def run() -> bytes:
        theirs, ours = socket.socketpair()
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(lambda: tunnel._Forwarder(lambda: None), sock=ours)

        async def may() -> bool:
            return next(answers)

        theirs.setblocking(False)
        await asyncio.wait_for(tunnel._until_forbidden(line, may), 30)
        with theirs:
            return await asyncio.wait_for(loop.sock_recv(theirs, 1), 30)

    assert asyncio.run(run()) == b"" and next(answers, None) is None


@pytest.mark.parametrize("how", ["taken away", "renewed"])
def test_a_ticket_opens_nothing_when_its_token_has_been_taken_away_or_renewed(
    davit: Davit, app: str, key: asyncssh.SSHKey, how: str
) -> None:
    running = _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})
    made = _owner(davit).post("/oauth/authorizations", {"description": "for a while"})
    way = _way(davit, app, running["name"], key, made["access_token"]["token"])
    if how == "renewed":
        _owner(davit).post(f"/oauth/authorizations/{made['id']}/actions/regenerate-tokens")
    else:
        _owner(davit).delete(f"/oauth/authorizations/{made['id']}")

    async def everything(line: asyncssh.SSHClientConnection) -> Any:
        with pytest.raises(asyncssh.ChannelOpenError, match="Invalid credentials"):
            await _echo(line, "127.0.0.1", 80)
        async with line.start_sftp_client() as files:
            with pytest.raises(asyncssh.SFTPError, match="Invalid credentials"):
                await files.stat("/etc/hostname")
        return await line.run("echo hello")

    refused = _connect(davit, way, key, everything)
    assert refused.exit_status == 1 and "Invalid credentials" in refused.stdout and "hello" not in refused.stdout


def test_bytes_that_are_no_ssh_end_their_connection_and_nothing_else(davit: Davit) -> None:
    with socket.create_connection(("127.0.0.1", _port(davit)), 30) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"SSH-2.0-Davit" in line.recv(100)
    assert urllib.request.urlopen(davit.url, timeout=30).status == 200
