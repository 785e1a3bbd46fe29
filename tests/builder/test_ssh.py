"""The SSH door: whom it lets in, and what it does not do."""

from __future__ import annotations

import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.ssh import GREETING, ensure_host_key, parse_command
from foundation.errors import BadRequest
from tests.builder.git_doors import Door, Doors, doors  # noqa: F401
from tests.e2e.errors_page import assert_says

# ruff: noqa: F811


class Shell:
    """What a person types at the door with ssh itself."""

    def __init__(self, doors: Doors) -> None:
        self.doors = doors
        self.door = Door(doors, "ssh")

    def run(self, *words: str, user: str = "alice", options: tuple[str, ...] = (), input: bytes = b"") -> tuple[int, str]:
        port = (self.doors.home / "ssh.port").read_text()
        ssh, *usual = self.door.ssh(user)
        done = subprocess.run(  # ssh heeds an option that it is given twice the first time
            [ssh, *options, *usual, "-p", port, "git@127.0.0.1", *words], input=input, capture_output=True, timeout=30,
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@pytest.fixture
def shell(doors: Doors) -> Shell:
    return Shell(doors)


@pytest.mark.parametrize("form", ["{}.git", "/{}.git", "{}", "~/{}.git", "/{}.git/"])
def test_every_form_of_the_path_names_the_app(doors: Doors, form: str) -> None:
    app = Door(doors, "ssh").app()
    port = (doors.home / "ssh.port").read_text()
    assert app.git("-c", f"core.sshCommand=ssh -p {port}", "ls-remote", f"ssh://git@127.0.0.1:{port}/{app.name}.git")
    options = " ".join(app.door.ssh()) + f" -p {port}"
    assert app.git("push", f"anyone@127.0.0.1:{form.format(app.name)}", "main", GIT_SSH_COMMAND=options)


@pytest.mark.parametrize(
    "command",
    [(), ("ls",), ("bash", "-i"), ("git-upload-archive 'alice-x.git'",), ("git-receive-pack",), ("git-receive-pack a b",),
     ("git-receive-pack 'alice-x.git'; id",), ("git-shell -c id",), ("scp -t /tmp",)],
)  # fmt: skip
def test_there_is_no_shell_and_no_other_command(shell: Shell, command: tuple[str, ...]) -> None:
    status, text = shell.run(*command)
    assert status != 0 and (GREETING in text), text


def test_a_terminal_is_refused_and_the_greeting_given(shell: Shell) -> None:
    status, text = shell.run(options=("-tt",))
    assert status != 0 and (GREETING in text or "PTY allocation request failed" in text)


def test_subsystems_are_refused(shell: Shell) -> None:
    status, text = shell.run("sftp", options=("-s",))
    assert status != 0 and "id" not in text.split()


def test_ports_are_not_forwarded(shell: Shell) -> None:
    elsewhere = f"127.0.0.1:{(shell.doors.home / 'http.port').read_text()}"
    status, text = shell.run(options=("-W", elsewhere), input=b"GET / HTTP/1.0\r\n\r\n")
    assert status != 0 and "HTTP" not in text
    backwards = ("-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1")
    status, text = shell.run("git-upload-pack 'alice-nosuch.git'", options=backwards)
    assert status == 255 and "forwarding failed" in text, text


@pytest.mark.row("ssh-key-unknown")
def test_a_strangers_key_and_a_password_are_refused(shell: Shell) -> None:
    status, text = shell.run("git-upload-pack 'alice-x.git'", user="stranger", options=("-o", "LogLevel=INFO"))
    listed = subprocess.run(["ssh-keygen", "-lf", shell.doors.home / "stranger.pub"], capture_output=True, text=True, check=True)
    assert status == 255 and text.count("Davit knows none of your SSH keys") == 1 and f"({listed.stdout.split()[1]})" in text
    assert_says("ssh-key-unknown", text)
    assert "Permission denied (publickey,keyboard-interactive)" in text


@pytest.mark.row("ssh-key-unknown")
def test_who_has_no_key_is_told_how_to_add_one(shell: Shell) -> None:
    status, text = shell.run("git-upload-pack 'alice-x.git'", options=("-o", "LogLevel=INFO", "-o", "PubkeyAuthentication=no"))
    assert status == 255 and "offered no key. Add one by: davit keys:add" in text
    assert_says("ssh-key-unknown", text)


def test_who_has_several_keys_is_told_nothing_when_one_is_known(shell: Shell) -> None:
    first = ("-o", "LogLevel=INFO", "-i", str(shell.doors.home / "stranger"))
    status, text = shell.run("git-upload-pack 'alice-x.git'", options=first, input=b"0000")
    assert status == 0 and text.startswith("0000") and "SSH keys" not in text and "Permission denied" not in text, text


@pytest.mark.row("ssh-host-key")
def test_another_host_key_than_the_known_one_is_the_clients_own_warning(shell: Shell) -> None:
    port = (shell.doors.home / "ssh.port").read_text()
    known = shell.doors.home / "known"
    known.write_text(f"[127.0.0.1]:{port} {(shell.doors.home / 'bob.pub').read_text()}")
    status, text = shell.run("id", options=("-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"))
    assert status == 255
    assert_says("ssh-host-key", text)


def test_a_key_that_cannot_be_looked_up_is_refused_with_the_reason(shell: Shell) -> None:
    away = shell.doors.home / "database-is-away"
    away.touch()
    try:
        status, text = shell.run("git-upload-pack 'alice-x.git'", options=("-o", "LogLevel=INFO"))
    finally:
        away.unlink()
    assert status == 255 and "The database does not answer at the moment; try again." in text
    assert "Permission denied (publickey,keyboard-interactive)" in text and "none of your SSH keys" not in text


def test_the_key_decides_who_it_is_not_the_user_name(doors: Doors) -> None:
    app = Door(doors, "ssh").app()
    pushed = app.push(user="bob")
    assert not pushed and "remote error: Couldn't find that app." in pushed.text
    assert app.push()


def test_an_environment_is_not_taken(shell: Shell) -> None:
    app = shell.door.app()
    assert app.push()
    trace = shell.doors.home / f"{app.name}.trace"
    options = ("-o", f"SetEnv=GIT_TRACE={trace} GIT_PROTOCOL=x\x01 LD_PRELOAD=/x")
    status, _ = shell.run(f"git-upload-pack '{app.name}.git'", options=options, input=b"0000")
    assert status == 0 and not trace.exists()


def test_a_client_that_says_nothing_more_is_let_go(shell: Shell) -> None:
    app = shell.door.app()
    status, _ = shell.run(f"git-receive-pack '{app.name}.git'")
    assert status == 0
    status, _ = shell.run(f"git-receive-pack '{app.name}.git'", input=b"garbage")
    assert status != 0


def test_the_host_key_stays_and_is_the_owners_only() -> None:
    home = Path(tempfile.mkdtemp(prefix="dvk", dir="/tmp"))
    try:
        path = home / "keys" / "ssh_host_ed25519"
        ensure_host_key(path)
        first = path.read_bytes()
        ensure_host_key(path)
        assert path.read_bytes() == first and b"OPENSSH PRIVATE KEY" in first
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [file.name for file in path.parent.iterdir()] == [path.name]
    finally:
        shutil.rmtree(home)


@given(st.text())
def test_any_command_is_parsed_or_refused_with_a_sentence(text: str) -> None:
    try:
        service, name = parse_command(text)
    except BadRequest as error:
        assert error.message.endswith((".", ".git"))
    else:
        assert service in ("git-receive-pack", "git-upload-pack") and name and "/" not in name
