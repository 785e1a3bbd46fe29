"""Several people on one Davit: logins elsewhere, collaborators, keys, tokens, and what is written down of what they do."""

from __future__ import annotations

import glob
import json
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.residue import home_database
from tests.e2e.world import DAVIT, App, Davit, Push, eventually, tiny


@dataclass
class Person(Davit):
    """Somebody on another machine: no DAVIT_HOME of this one, a home of their own."""

    email: str = ""
    token_given: str = ""

    @property
    def environment(self) -> dict[str, str]:
        hidden = ("DAVIT_HTTP", "DAVIT_API", "DAVIT_SSH", "DAVIT_STACKS")
        mine = {key: value for key, value in super().environment.items() if key not in hidden}
        return {**mine, "DAVIT_HOME": str(self.home / "none"), "HOME": str(self.home / "person")}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api}"

    def logs(self) -> str:
        return ""


def person(davit: Davit, email: str) -> Person:
    """A new account, logged in on a machine of its own."""
    token = davit.cli("accounts:create", email).stdout.strip()
    home = Path(tempfile.mkdtemp(prefix="dvq", dir="/tmp"))
    (home / "person").mkdir()
    (home / "person" / ".gitconfig").write_text((davit.home / "person" / ".gitconfig").read_text())
    made = Person(home, davit.http, davit.api, davit.ssh, {}, email, token)
    assert made.cli("login", made.url, input=f"{token}\n").stdout == f"Logged in as {email}\n"
    return made


@pytest.fixture(scope="module")
def bob(davit: Davit) -> Iterator[Person]:
    made = person(davit, "bob@example.com")
    yield made
    subprocess.run(["rm", "-rf", made.home])


@pytest.fixture
def shared(davit: Davit, bob: Person) -> Iterator[tuple[App, App]]:
    """An app of the owner's, and the same as Bob sees it, in a checkout of his own."""
    mine = davit.create()
    mine.deploy(tiny("first"))
    mine.cli("config:set", "SECRET=of the owner")
    place = Path(tempfile.mkdtemp(prefix="co", dir=bob.home / "person"))
    yield mine, App(bob, mine.name, place)
    mine.cli("apps:destroy", "--confirm", mine.name, check=False)


def start_checkout(app: App) -> None:
    """A commit in a checkout whose remote is written by hand, as somebody without access has to."""
    app.git("init", "-q")
    app.git("remote", "add", "davit", f"http://127.0.0.1:{app.davit.api}/{app.name}.git")
    app.git("config", f"credential.http://127.0.0.1:{app.davit.api}.helper", f"!{DAVIT} git:credentials")
    app.write(tiny("of bob"))
    app.git("add", "-A")
    app.git("commit", "-qm", "mine")


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0, done.stdout
    return done.stderr


def audited(davit: Davit, app: App) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(f"file:{home_database(davit)}?mode=ro", uri=True, timeout=10)) as connection:
        rows = connection.execute(
            "SELECT actor, action FROM audit_events WHERE app_id = (SELECT id FROM apps WHERE name = ?) ORDER BY created_at, rowid", (app.name,)
        )
        return [(actor, action) for actor, action in rows]


def test_a_person_elsewhere_logs_in_creates_pushes_and_runs(bob: Person) -> None:
    assert bob.cli("auth:whoami").stdout == "bob@example.com\n"
    assert bob.token_given not in (bob.home / "person" / ".gitconfig").read_text()
    app = bob.create()
    try:
        assert app.deploy(tiny("of bob")).accepted
        app.assert_serves("of bob")
        assert app.cli("run", "--", "echo hi").stdout == "hi\n"
        assert app.name in bob.cli("apps").stdout
    finally:
        app.cli("apps:destroy", "--confirm", app.name)


def test_a_stranger_sees_nothing_of_an_app(shared: tuple[App, App]) -> None:
    mine, his = shared
    for words in (["apps:info"], ["config"], ["ps"], ["logs"], ["releases"], ["run", "--", "true"], ["apps:destroy", "--confirm", mine.name]):
        assert "Couldn't find that app" in refusal(his.cli(*words, check=False)), words
    absent = refusal(his.davit.cli("apps:info", "-a", "no-such-app-here", check=False))
    assert absent.replace("no-such-app-here", mine.name) == refusal(his.cli("apps:info", check=False))
    start_checkout(his)
    push = his.push()
    assert not push.accepted and "find that app" in push.output
    assert mine.name not in his.davit.cli("apps").stdout
    mine.assert_serves("first")


def test_a_collaborator_with_view_alone_sees_and_changes_nothing(shared: tuple[App, App]) -> None:
    mine, his = shared
    mine.cli("access:add", "bob@example.com", "-p", "view")
    assert mine.name in his.cli("apps:info").stdout
    assert his.cli("ps").stdout and his.cli("releases").stdout
    for words in (
        ["config"], ["config:set", "A=1"], ["run", "--", "env"], ["run:detached", "--", "env"], ["ps:scale", "web=0"], ["ps:restart"],
        ["rollback"], ["maintenance:on"], ["domains:add", "bob.example.com"], ["buildpacks:set", "procfile"], ["builds:create"],
        ["access:add", "bob@example.com", "-p", "manage"], ["apps:rename", "bobs-own"], ["apps:destroy", "--confirm", mine.name],
    ):  # fmt: skip
        told = his.cli(*words, check=False)
        assert "You may not do that with" in refusal(told), (words, told)
        assert "of the owner" not in told.stdout + told.stderr
    start_checkout(his)
    push = his.push("--force", "main")
    assert not push.accepted and "of bob" not in mine.get().text, push.output
    assert "may not" in push.output, push.output
    assert "of the owner" not in his.cli("logs").stdout
    mine.assert_serves("first")


def test_a_collaborator_pushes_and_operates_until_he_is_removed(davit: Davit, shared: tuple[App, App]) -> None:
    mine, his = shared
    mine.cli("access:add", "bob@example.com")
    start_checkout(his)
    assert his.push("--force", "main").accepted
    mine.assert_serves("of bob")
    his.cli("config:set", "GREETING=bob")
    eventually(lambda: "of bob bob" in mine.get().text, "his config var is served")
    assert "bob@example.com" in mine.cli("releases").stdout
    assert "You may not" in refusal(his.cli("access:add", "bob@example.com", "-p", "manage", check=False))
    mine.cli("access:remove", "bob@example.com")
    assert "Couldn't find that app" in refusal(his.cli("ps", check=False))
    his.git("commit", "-q", "--allow-empty", "-m", "again")
    assert not his.push().accepted
    written = audited(davit, mine)
    for entry in (
        ("owner@localhost", "apps:create"), ("owner@localhost", "builds:create"), ("owner@localhost", "config:set"),
        ("owner@localhost", "access:add"), ("bob@example.com", "builds:create"), ("bob@example.com", "releases:create"),
        ("bob@example.com", "config:set"), ("owner@localhost", "access:remove"),
    ):  # fmt: skip
        assert entry in written, written


def test_every_change_is_written_down_and_no_secret_with_it(davit: Davit, app: App) -> None:
    app.deploy(tiny("first"))
    for words in (
        ["config:set", "PASSWORD=hunter22"], ["config:unset", "PASSWORD"], ["ps:scale", "web=2"], ["ps:restart"], ["maintenance:on"],
        ["maintenance:off"], ["domains:add", f"{app.name}.example.com"], ["domains:remove", f"{app.name}.example.com"],
        ["buildpacks:set", "procfile"], ["rollback", "v2"],
    ):  # fmt: skip
        app.cli(*words)
    done = [action for _, action in audited(davit, app)]
    for action in (
        "apps:create", "builds:create", "releases:create", "config:set", "ps:scale", "ps:restart", "maintenance:on", "maintenance:off",
        "domains:add", "domains:remove", "buildpacks:set", "releases:rollback",
    ):  # fmt: skip
        assert action in done, done
    assert done.count("config:set") == 2
    eventually(lambda: app.releases()[-1]["status"] != "pending", "the rollback is decided")
    for pattern in ("log/*", "davit.db*", "builds/*/*", "run/dynos/*/*"):
        for path in map(Path, glob.glob(f"{davit.home}/{pattern}")):
            with suppress(FileNotFoundError):  # dynos and builds come and go
                assert not path.is_file() or b"hunter22" not in path.read_bytes(), path
    assert "hunter22" not in app.log()


def test_keys_open_the_ssh_door_to_ones_own_apps_only(davit: Davit, bob: Person, shared: tuple[App, App]) -> None:
    mine, his = shared
    key = bob.home / "person" / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bobs", "-f", key], check=True)
    bob.cli("keys:add", f"{key}.pub")
    assert "bobs" in bob.cli("keys").stdout
    start_checkout(his)
    his.git("remote", "set-url", "davit", f"ssh://git@127.0.0.1:{davit.ssh}/{mine.name}.git")
    options = f"-i {key} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"

    def push() -> Push:
        done = his.git("push", "-f", "davit", "main", check=False, environment={"GIT_SSH_COMMAND": f"ssh {options}"})
        return Push(done.returncode, done.stdout + done.stderr)

    assert "find that app" in push().output
    mine.cli("access:add", "bob@example.com")
    assert push().accepted
    mine.assert_serves("of bob")
    shell = subprocess.run(["ssh", *options.split(), "-p", str(davit.ssh), "git@127.0.0.1", "id"], capture_output=True, text=True, timeout=60)
    assert shell.returncode != 0 and "uid=" not in shell.stdout
    bob.cli("keys:remove", "bobs")
    his.git("commit", "-q", "--allow-empty", "-m", "again")
    assert not push().accepted


def test_a_token_that_was_taken_back_opens_nothing(davit: Davit, app: App) -> None:
    carol = person(davit, "carol@example.com")
    with davit.client(carol.token_given) as client:
        made = client.post("/oauth/authorizations", json={"description": "a second one"}).raise_for_status().json()
        second = made["access_token"]["token"]
    app.deploy(tiny("first"))
    app.cli("access:add", "carol@example.com")
    with davit.client(second) as client:
        assert client.get(f"/apps/{app.name}").status_code == 200
    app.commit(tiny("second"))
    url = f"http://127.0.0.1:{davit.api}/{app.name}.git"
    assert app.push_to(url, second).accepted
    with davit.client(carol.token_given) as client:
        client.delete(f"/oauth/authorizations/{made['id']}").raise_for_status()
    with davit.client(second) as client:
        assert client.get(f"/apps/{app.name}").status_code == 401
    app.commit(tiny("third"))
    assert not app.push_to(url, second).accepted
    app.assert_serves("second")
    assert carol.token_given not in json.dumps(davit.cli("accounts", "--json").stdout)
    davit.cli("accounts:remove", "carol@example.com")
    assert "credentials" in refusal(carol.cli("apps", check=False)).lower()
    assert "carol@example.com" not in davit.cli("accounts").stdout
    with davit.client() as client:
        (author,) = {row["user"]["email"] for row in client.get(f"/apps/{app.name}/releases").json() if row["version"] == 3}
    assert author.startswith("carol@example.com")
    again = person(davit, "carol@example.com")
    assert "Couldn't find that app" in refusal(again.cli("ps", "-a", app.name, check=False))
    davit.cli("accounts:remove", "carol@example.com")
    subprocess.run(["rm", "-rf", again.home])
    subprocess.run(["rm", "-rf", carol.home])


def test_accounts_are_the_admins_business(bob: Person) -> None:
    for words in (["accounts"], ["accounts:create", "eve@example.com"], ["accounts:create", "eve@example.com", "--admin"]):
        assert refusal(bob.cli(*words, check=False))
    assert "file://" in refusal(bob.cli("apps:create", "bobs-app-of-file", "-b", "file:///etc", check=False))
    bob.cli("apps:destroy", "-a", "bobs-app-of-file", "--confirm", "bobs-app-of-file")
