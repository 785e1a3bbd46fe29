"""ps:forward and ps:socks: the command, the API, and a server in what stands for a dyno."""

from __future__ import annotations

import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from cli.client import ApiError, Client
from state import accounts, db
from tests.cli.living import ROOT, Davit, echoing, owner_app
from tests.conftest import wait_until
from tests.e2e.errors_page import assert_says
from tests.ports import free_port


@pytest.fixture
def dyno(davit: Davit, request: pytest.FixtureRequest) -> tuple[str, str]:
    """An app and the name of its dyno, which runs."""
    app = f"led-{abs(hash(request.node.name)) % 10**8}"
    owner_app(app)
    davit.has_code(app)
    return app, _owner(davit).post(f"/apps/{app}/dynos", {"command": "sleep 600"})["name"]


def _owner(davit: Davit) -> Client:
    return Client(davit.url, (davit.home / "owner-token").read_text().strip())


@contextmanager
def _leading(davit: Davit, *words: str) -> Iterator[subprocess.Popen[str]]:
    """``davit WORDS``, once it listens; ended with Control-C."""
    process = subprocess.Popen(
        [ROOT / "bin" / "davit", *words], cwd=davit.work, env=davit.env, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    assert process.stderr
    try:
        said = ""
        while "Use CTRL+C" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process
    finally:
        process.send_signal(2)
        assert process.wait(30) == 130
        process.stderr.close()


def _echo(line: socket.socket, data: bytes) -> bytes:
    line.sendall(data)
    line.shutdown(socket.SHUT_WR)
    got = b""
    while piece := line.recv(65536):
        got += piece
    return got


def test_a_port_of_this_machine_leads_to_a_dynos(davit: Davit, dyno: tuple[str, str]) -> None:
    app, name = dyno
    here, alone, nobody = free_port(), free_port(), free_port()
    with echoing() as there, _leading(davit, "ps:forward", f"{here}:{there},{alone}:{nobody}", "-a", app, "-d", name) as process:
        for data in (b"hello", b"more of it " * 50_000):
            with socket.create_connection(("127.0.0.1", here), 60) as line:
                assert _echo(line, data) == data.upper()
        with socket.create_connection(("127.0.0.1", alone), 60) as line:
            assert line.recv(1) == b"", "nobody listens there"
        assert process.stderr
        assert_says("exec-gone", process.stderr.readline())


def test_a_connection_that_cannot_be_taken_ends_no_other(davit: Davit, dyno: tuple[str, str]) -> None:
    """As when more descriptors are open than the process may have."""
    app, name = dyno
    here = free_port()

    def slept() -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])

    with echoing() as there, _leading(davit, "ps:forward", f"{here}:{there}", "-a", app, "-d", name) as process:
        with socket.create_connection(("127.0.0.1", here), 60) as line:
            assert _echo(line, b"hello") == b"HELLO"
        before, usual = slept(), resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
        with socket.create_connection(("127.0.0.1", here), 60) as line:
            wait_until(lambda: slept() > before + 1 or process.poll() is not None, "its having tried twice")
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
            assert _echo(line, b"hello") == b"HELLO"


def test_a_proxy_on_this_machine_leads_to_the_dyno_and_to_nothing_else(davit: Davit, dyno: tuple[str, str]) -> None:
    app, name = dyno
    here, nobody = free_port(), free_port()
    with echoing() as there, _leading(davit, "ps:socks", "-p", str(here), "-a", app, "-d", name):
        for host, port, status in (
            ("127.0.0.1", there, 0), ("localhost", there, 0), ("::1", there, 0),
            ("10.0.0.1", there, 2), ("2001:db8::1", there, 2), ("127.0.0.1", nobody, 1),
        ):  # fmt: skip
            with socket.create_connection(("127.0.0.1", here), 60) as line:
                line.sendall(b"\x05\x01\x00")
                assert line.recv(2) == b"\x05\x00"
                named = b"\x03" + bytes([len(host)]) + host.encode()
                line.sendall(b"\x05\x01\x00" + (b"\x04" + IPv6Address(host).packed if ":" in host else named) + port.to_bytes(2, "big"))
                assert line.recv(10, socket.MSG_WAITALL)[:2] == bytes([5, status]), (host, port)
                if status == 0:
                    assert _echo(line, b"hello") == b"HELLO"


def test_what_cannot_be_led_to_is_told_before_anybody_connects(davit: Davit, dyno: tuple[str, str]) -> None:
    app, name = dyno
    for words, said in (
        (("ps:forward", "x:1"), "“x:1” is no port"), (("ps:forward", "1:2:3"), "is no port"), (("ps:forward", "70000"), "is no port"),
        (("ps:forward", "0000801234567"), "is no port"), (("ps:forward", "8080:0000801234567"), "is no port"),
        (("ps:forward", "9000", "-d", "web.77"), "find that process (web.77)"), (("ps:socks", "-d", "web.77"), "find that process"),
    ):  # fmt: skip
        refused = davit(*words[:2], *(words[2:] or ("-d", name)), "-a", app, check=False)
        assert refused.returncode in (1, 2) and said in refused.stderr, (words, refused.stderr)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = davit("ps:forward", f"{port}:9000", "-a", app, "-d", name, check=False)
        assert f"Port {port} of this machine cannot be listened on" in refused.stderr


def test_who_may_not_run_commands_in_an_app_reaches_no_port_of_its_dynos(davit: Davit, dyno: tuple[str, str]) -> None:
    app, name = dyno
    with db.transaction() as session:
        friend = accounts.create(session, None, f"{app}@example.com")
        token = accounts.issue_token(session, friend, "test")[0]
    theirs = Client(davit.url, token)
    path = f"/apps/{app}/dynos/{name}/ports/80"
    with pytest.raises(ApiError, match="find that app"):
        theirs.get(path)
    _owner(davit).post(f"/apps/{app}/collaborators", {"user": f"{app}@example.com", "permissions": ["view", "deploy"]})
    with pytest.raises(ApiError, match="operate"):
        theirs.get(path)
    with pytest.raises(ApiError, match="WebSocket"):
        _owner(davit).get(path)
    for port in ("0", "65536", "x", "-1", "0000801234567"):
        with pytest.raises(ApiError, match="from 1 to 65535"):
            _owner(davit).get(f"/apps/{app}/dynos/{name}/ports/{port}")
