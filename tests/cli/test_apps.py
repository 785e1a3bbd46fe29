"""The app commands against a Davit that answers."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from sqlalchemy import select as sql_select

from cli.host import record
from cli.host.processes import Identity
from foundation.settings import settings
from logs import stream
from state import builds, db, releases
from state.models import App, Release
from tests.cli.living import ROOT, Davit
from tests.conftest import PATIENCE, wait_until

pytestmark = pytest.mark.usefixtures("_own_directory")


def test_the_owner_of_the_machine_needs_no_login(davit: Davit) -> None:
    assert davit("auth:whoami").stdout == "owner@localhost\n"
    assert davit("auth:token").stdout.strip() == (davit.home / "owner-token").read_text().strip()


def test_an_app_lives_from_its_creation_to_its_end(davit: Davit) -> None:
    made = davit("apps:create", "lifetime")
    assert made.stderr == "Creating ⬢ lifetime... done\n"
    assert made.stdout == f"http://lifetime.localhost:8080/ | {davit.url}/lifetime.git\n"
    assert "lifetime" in davit("apps").stdout.split()
    assert "=== owner@localhost Apps" in davit("apps").stdout
    assert "lifetime" in [row["name"] for row in json.loads(davit("apps", "--json").stdout)]
    shown = davit("apps:info", "-a", "lifetime").stdout
    assert shown.startswith("=== lifetime\n\n")
    assert "Web URL:" in shown and "davit-13" in shown
    davit("apps:rename", "-a", "lifetime", "lifetime2")
    assert davit("apps:destroy", "-a", "lifetime2", "--confirm", "other", check=False).returncode == 1
    gone = davit("apps:destroy", "-a", "lifetime2", "--confirm", "lifetime2")
    assert gone.stderr.endswith("... done\n")
    assert davit("info", "-a", "lifetime2", check=False).stderr == " ▸    Couldn't find that app (lifetime2).\n"


def test_failures_are_one_sentence_and_an_exit_status(davit: Davit) -> None:
    missing = davit("ps", "-a", "nothing-here", check=False)
    assert (missing.returncode, missing.stdout, missing.stderr) == (2, "", " ▸    Couldn't find that app (nothing-here).\n")
    unnamed = davit("ps", check=False)
    assert (unnamed.returncode, "-a APP" in unnamed.stderr) == (1, True)
    for name in ("a/../b", "..", "a?b", "a%2fb", "\x1b[31mred", "ä"):
        odd = davit("ps", "-a", name, check=False)
        assert odd.returncode == 2 and odd.stderr.startswith(" ▸    Couldn't find that app (") and "\x1b" not in odd.stderr, odd
    taken = davit("create", "api", check=False)
    assert (taken.returncode, taken.stderr.splitlines()[0]) == (2, "Creating ⬢ api... !")


def test_what_was_not_found_is_named_and_cannot_steer_the_terminal(davit: Davit) -> None:
    davit("create", "namely")
    for words, said in (
        (["releases:info", "v77"], "Couldn't find that release (v77)."),
        (["builds:info", "no-such"], "Couldn't find that build (no-such)."),
        (["builds:info", "\x1b[31m" + "x" * 100], f"Couldn't find that build (\ufffd[31m{'x' * 55}…)."),
    ):
        assert davit(*words, "-a", "namely", check=False).stderr == f" ▸    {said}\n"


def test_misuse_is_told_in_the_same_way(davit: Davit) -> None:
    for words, said in (
        (["logs", "-n", "2000"], "2000 is not in the range"), (["lgs"], "Did you mean “logs”?"), (["ps", "--nope"], "--nope"),
    ):  # fmt: skip
        done = davit(*words, check=False)
        assert done.returncode == 2 and said in done.stderr and done.stdout == ""
        assert all(line.startswith(" ▸    ") for line in done.stderr.splitlines()), done.stderr
    for url in ("http://[", "http://a:x", "http://\u2100.com"):
        done = davit("apps", check=False, DAVIT_URL=url, DAVIT_TOKEN="x")
        assert (done.returncode, done.stdout) == (1, "") and "is not the URL of a Davit" in done.stderr, done
    assert "`davit logs --help`" in davit("logs", "-n", "2000", check=False).stderr
    assert davit("logs", "--help").stdout.startswith("Usage: davit logs") and davit("--version").stdout
    assert davit(check=False).stderr.startswith("Usage: davit")


def test_a_davit_that_is_down_is_told_with_its_remedy(davit: Davit) -> None:
    down = davit("apps", check=False, DAVIT_API="127.0.0.1:9")
    told = " ▸    Davit is not running here (nobody answers at http://127.0.0.1:9); start it with `davit up`.\n"
    assert (down.returncode, down.stderr) == (1, told)
    nobody = davit("apps", check=False, DAVIT_HOME=str(davit.work / "none"))
    assert "davit up" in nobody.stderr and "davit login" in nobody.stderr


def test_a_davit_at_another_address_than_the_commands_is_told_with_it(davit: Davit) -> None:
    with subprocess.Popen(["sleep", "600"], env=davit.env) as supervisor:
        record.write(davit.home / "run", record.Record(Identity.of(supervisor.pid), []))
        try:
            asked = davit("apps:create", "elsewhere", check=False, DAVIT_API="127.0.0.1:9")
        finally:
            (davit.home / "run" / "supervisor.json").unlink()
            supervisor.kill()
    said = f"Davit runs here, but not at http://127.0.0.1:9, where this command asked: set DAVIT_API={davit.env['DAVIT_API']}, as it was there."
    assert said in asked.stderr


def test_config_vars(davit: Davit) -> None:
    davit("create", "conf")
    done = davit("config:set", "-a", "conf", "A=1", "LONG_NAME=x=y z")
    assert done.stderr == "Setting A, LONG_NAME and restarting ⬢ conf... done, v2\n"
    assert done.stdout == "A:         1\nLONG_NAME: x=y z\n"
    assert davit("config", "-a", "conf").stdout == "=== conf Config Vars\n\nA:         1\nLONG_NAME: x=y z\n"
    assert davit("config:get", "A", "-a", "conf").stdout == "1\n"
    assert davit("config", "-a", "conf", "-s").stdout == "A=1\nLONG_NAME='x=y z'\n"
    secret = davit("config:set", "-a", "conf", "--stdin", "SECRET", input="very\nsecret\n")
    assert "secret" not in secret.stdout + secret.stderr
    assert davit("config:get", "SECRET", "-a", "conf").stdout == "very\nsecret\n"
    assert davit("config:unset", "A", "-a", "conf").stderr == "Unsetting A and restarting ⬢ conf... done, v4\n"
    assert davit("config:set", "-a", "conf", "nonsense", check=False).returncode == 1
    assert "not valid" in davit("config:set", "-a", "conf", "1A=b", check=False).stderr


def test_scaling(davit: Davit) -> None:
    davit("create", "scaled")
    davit.has_code("scaled")
    assert davit("ps:scale", "-a", "scaled").stdout == "web=1:Basic worker=0:Basic\n"
    done = davit("ps:scale", "-a", "scaled", "web=2", "worker+1:standard-2x")
    assert done.stderr == "Scaling dynos... done, now running web at 2:Basic, worker at 1:Standard-2X\n"
    assert davit("ps:scale", "web-1", "-a", "scaled").stderr.endswith("web at 1:Basic\n")
    for wrong in ("web=abc", "web=10000", "clock=1", "=1", "web"):
        assert davit("ps:scale", "-a", "scaled", wrong, check=False).returncode in (1, 2), wrong
    assert davit("ps:scale", "-a", "scaled").stdout == "web=1:Basic worker=1:Standard-2X\n"
    assert "eco" in davit("ps:type", "-a", "scaled", "web=eco").stdout.lower()
    assert davit("ps:restart", "-a", "scaled").stderr == "Restarting all dynos on ⬢ scaled... done\n"
    assert davit("ps:restart", "web", "-a", "scaled").stderr == "Restarting all web dynos on ⬢ scaled... done\n"
    assert davit("ps", "-a", "scaled").stdout == "No dynos on ⬢ scaled\n"


def test_what_dynos_use(davit: Davit) -> None:
    davit("create", "used")
    assert davit("ps:usage", "-a", "used").stdout == "No dyno runs on ⬢ used\n"
    used = {"memory": 30_000_000, "disk": 4_000, "cpu": 1.54, "pids": 2}
    davit.processes.used = {"web.1": {**used, "uptime": 7500.0}, "worker.1": {**used, "uptime": None}}
    try:
        assert [line.split() for line in davit("ps:usage", "-a", "used").stdout.splitlines()[-2:]] == [
            ["web.1", "30", "MB", "4", "KB", "1.5", "s", "2", "2h"], ["worker.1", "30", "MB", "4", "KB", "1.5", "s", "2"],
        ]  # fmt: skip
        assert "web.1" not in davit("ps:usage", "worker", "-a", "used").stdout
        assert json.loads(davit("ps:usage", "web", "--json", "-a", "used").stdout)[0]["uptime"] == 7500.0
    finally:
        davit.processes.used = {}


def test_releases_and_rollback(davit: Davit) -> None:
    davit("create", "released")
    davit.has_code("released")
    davit("config:set", "-a", "released", "A=1", "--no-wait")
    davit.has_code("released")
    listed = davit("releases", "-a", "released").stdout
    assert listed.startswith("=== released Releases - Current: v4\n\nv4")
    assert [row["version"] for row in json.loads(davit("releases", "-n", "2", "--json", "-a", "released").stdout)] == [4, 3]
    back = davit("rollback", "v2", "-a", "released", "--no-wait")
    assert back.stderr.startswith("Rolling back ⬢ released to v2... done, v5\n")
    assert "Rollback to v2" in davit("releases:info", "-a", "released").stdout
    assert davit("rollback", "v1", "-a", "released", check=False).returncode == 2


def decided(name: str, failure: str | None = None) -> Release:
    """As the runtime does: the app's pending release is live, or failed."""
    with db.transaction() as session:
        app_id = session.scalar(sql_select(App.id).where(App.name == name))
        release = releases.next_pending(session, app_id or "")
        assert release is not None
        if failure:
            releases.fail(session, release, "app did not start", failure)
        else:
            releases.succeed(session, release)
        return release


def waits(davit: Davit, app: str, *words: str) -> subprocess.Popen[str]:
    """A command that has made a release of ``app`` and waits for it."""

    def pending() -> bool:
        with db.snapshot() as session:
            app_id = session.scalar(sql_select(App.id).where(App.name == app))
            return releases.next_pending(session, app_id or "") is not None

    command = subprocess.Popen(
        [ROOT / "bin" / "davit", *words, "-a", app], cwd=davit.work, env=davit.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: pending() or command.poll() is not None, "the release is made")
    assert command.poll() is None, command.communicate()
    return command


def test_done_is_said_when_the_release_is_live(davit: Davit) -> None:
    davit("create", "awaited")
    davit.has_code("awaited")
    for words, said in ((["config:set", "A=1"], "done, v3\n"), (["rollback", "v2"], "done, v4\n"), (["releases:retry"], "done, v5\n")):
        command = waits(davit, "awaited", *words)
        decided("awaited")
        _, err = command.communicate(timeout=60 * PATIENCE)
        assert command.returncode == 0 and said in err, err


def test_a_release_that_fails_is_told_in_its_own_words(davit: Davit) -> None:
    davit("create", "unlucky")
    davit.has_code("unlucky")
    for version, words in enumerate((["config:set", "BAD=1"], ["config:unset", "BAD"], ["rollback", "v2"], ["releases:retry"]), 3):
        command = waits(davit, "unlucky", *words)
        decided("unlucky", "web.1 ended before it listened on $PORT, with status 5.")
        out, err = command.communicate(timeout=60 * PATIENCE)
        assert (command.returncode, out) == (1, ""), words
        assert f"... !\n ▸    Release v{version} failed: web.1 ended before it listened on $PORT, with status 5.\n" in err
    assert davit("config:set", "A=1", "-a", "unlucky", "--no-wait").stderr.endswith("done, v7\n")
    decided("unlucky", "web.1 ended.")
    again = davit("config:set", "A=1", "-a", "unlucky")  # it is set already: that release is not this command's
    assert again.stderr.endswith("done, v7\n")


def test_a_release_command_prints_while_it_is_waited_for(davit: Davit) -> None:
    davit("create", "migrated")
    davit.has_code("migrated", {"web": "python app.py", "release": "migrate"})
    command = waits(davit, "migrated", "config:set", "A=1")
    assert command.stderr is not None
    assert command.stderr.readline() == "Setting A and restarting ⬢ migrated... running release command...\n"
    with db.transaction() as session:
        app_id = session.scalar(sql_select(App.id).where(App.name == "migrated"))
        release = releases.next_pending(session, app_id or "")
        assert release is not None
        place = settings().home / "releases" / release.id / "output"
        place.parent.mkdir(parents=True)
        place.write_bytes(b"migrating\n")
        releases.set_phase(session, release.id, "boot")
    decided("migrated")
    _, err = command.communicate(timeout=60 * PATIENCE)
    assert (command.returncode, err) == (0, "migrating\nWaiting for v3... done, v3\n")


def test_domains_buildpacks_maintenance_access(davit: Davit) -> None:
    davit("create", "varied")
    assert "varied.localhost" in davit("domains:add", "www.example.com", "-a", "varied").stderr
    assert "www.example.com" in davit("domains", "-a", "varied").stdout
    davit("domains:remove", "www.example.com", "-a", "varied")
    assert "www.example.com" not in davit("domains", "-a", "varied").stdout
    assert davit("buildpacks", "-a", "varied").stdout == "varied has no Buildpacks.\n"
    assert "will use heroku/python." in davit("buildpacks:set", "heroku/python", "-a", "varied").stdout
    davit("buildpacks:add", "heroku/nodejs", "-i", "1", "-a", "varied")
    assert davit("buildpacks", "-a", "varied").stdout == "=== varied Buildpacks\n\n1. heroku/nodejs\n2. heroku/python\n"
    davit("buildpacks:remove", "heroku/python", "-a", "varied")
    davit("buildpacks:clear", "-a", "varied")
    davit("maintenance:on", "-a", "varied")
    assert davit("maintenance", "-a", "varied").stdout == "on\n"
    davit("maintenance:off", "-a", "varied")
    token = davit("accounts:create", "friend@example.com").stdout.strip()
    davit("access:add", "friend@example.com", "-a", "varied", "-p", "view,deploy")
    assert "friend@example.com  collaborator  view, deploy" in davit("access", "-a", "varied").stdout
    as_friend = {"DAVIT_URL": davit.url, "DAVIT_TOKEN": token}
    assert davit("auth:whoami", **as_friend).stdout == "friend@example.com\n"
    assert "owner@localhost" in davit("apps", **as_friend).stdout
    assert davit("ps:restart", "-a", "varied", check=False, **as_friend).returncode == 2
    davit("access:remove", "friend@example.com", "-a", "varied")
    assert davit("apps", **as_friend).stdout == "You have no apps.\n"


def test_logging_in_and_out(davit: Davit) -> None:
    token = davit("accounts:create", "person@example.com").stdout.strip()
    elsewhere = {"DAVIT_HOME": str(davit.work / "elsewhere"), "DAVIT_API": "127.0.0.1:9"}
    assert davit("login", davit.url, input=token + "\n", **elsewhere).stdout == "Logged in as person@example.com\n"
    stored = davit.work / ".config" / "davit" / "logins.json"
    assert stored.stat().st_mode & 0o777 == 0o600
    assert davit("auth:whoami", **elsewhere).stdout == "person@example.com\n"
    assert davit("login", davit.url, input="wrong\n", check=False, **elsewhere).returncode == 2
    davit("logout", **elsewhere)
    assert davit("auth:whoami", check=False, **elsewhere).returncode == 1


def test_ssh_keys(davit: Davit) -> None:
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-C", "me@here", "-f", davit.work / "key"], check=True)
    davit("keys:add", "key.pub")
    assert "me@here" in davit("keys").stdout
    assert "private key" in davit("keys:add", "key", check=False).stderr
    davit("keys:remove", "me@here")
    assert "me@here" not in davit("keys").stdout


def test_a_checkouts_remotes_come_with_the_first_app_and_go_with_theirs(davit: Davit) -> None:
    davit.git("init", "-q")
    davit("create", "first-one")
    second = davit("create", "second-one")
    assert "The git remote davit stays as it is; make another with davit git:remote -a second-one -r NAME." in second.stderr
    assert davit("info").stdout.startswith("=== first-one\n"), "a second app does not take the first one's pushes"
    davit("git:remote", "-a", "second-one", "-r", "staging")
    davit.git("remote", "add", "elsewhere", "https://other.example.com/first-one.git")
    davit("apps:rename", "first-one-renamed")
    assert davit.git("remote", "get-url", "elsewhere") == "https://other.example.com/first-one.git\n"
    davit("apps:destroy", "--confirm", "first-one-renamed")
    assert davit.git("remote").split() == ["elsewhere", "staging"]
    davit("apps:destroy", "-a", "second-one", "--confirm", "second-one")
    assert davit.git("remote").split() == ["elsewhere"]


def test_a_checkout_tells_which_app_is_meant(davit: Davit) -> None:
    davit.git("init", "-q")
    davit("create", "pointed")
    assert davit.git("remote", "-v").splitlines()[0].startswith(f"davit\t{davit.url}/pointed.git")
    assert davit("apps:info").stdout.startswith("=== pointed\n")
    davit("create", "other-one", "--no-remote")
    assert davit("git:remote", "-a", "other-one", "-r", "staging").stdout.startswith("set git remote staging to ")
    davit("git:remote", "-a", "other-one", "named")
    assert [line.split()[0] for line in davit.git("remote", "-v").splitlines()[::2]] == ["davit", "named", "staging"]
    assert davit("info", "-r", "staging").stdout.startswith("=== other-one\n")
    assert davit("info").stdout.startswith("=== pointed\n")
    assert davit("info", DAVIT_APP="other-one").stdout.startswith("=== other-one\n")


def _fill(davit: Davit, work: Path, url: str) -> dict[str, str]:
    asked = f"protocol=http\nhost={url.removeprefix('http://')}\n\n"
    done = subprocess.run(
        ["git", "credential", "fill"], input=asked, capture_output=True, text=True, cwd=work, env=davit.env, timeout=30
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_git_gets_the_token_without_anybody_being_asked_and_no_secret_is_written_down(davit: Davit) -> None:
    davit.git("init", "-q")
    davit("create", "secretless")
    token = (davit.home / "owner-token").read_text().strip()
    assert _fill(davit, davit.work, davit.url)["password"] == token
    assert token not in (davit.work / ".git" / "config").read_text()
    helpers = davit.git("config", "--local", "--get-all", f"credential.{davit.url}.helper").split("\n")
    assert helpers[0] == "", "another helper would be asked first, and told the token"
    assert davit.git("ls-remote", "davit") == ""  # git's own door takes it
    assert "password" not in _fill(davit, davit.work, "http://127.0.0.1:9")


def test_elsewhere_git_asks_davit_for_the_token(davit: Davit) -> None:
    token = davit("accounts:create", "pusher@example.com").stdout.strip()
    elsewhere = {"DAVIT_HOME": str(davit.work / "elsewhere"), "DAVIT_API": "127.0.0.1:9"}
    davit("login", davit.url, input=token, **elsewhere)
    davit.git("init", "-q")
    davit("create", "from-afar", **elsewhere)
    assert "git:credentials" in (davit.work / ".git" / "config").read_text()
    assert _fill(davit, davit.work, davit.url)["password"] == token


def _say(davit: Davit, name: str, *lines: tuple[str, str, str]) -> None:
    with db.snapshot() as session:
        from sqlalchemy import select

        app_id = session.scalar(select(App.id).where(App.name == name))
    assert app_id
    client = stream.connect(settings().effective_redis_url)
    stream.emit(client, app_id, [stream.Line(datetime.now(timezone.utc), *line) for line in lines], wait=5)


def test_logs_show_what_happened(davit: Davit) -> None:
    davit("create", "logged")
    _say(davit, "logged", ("app", "web.1", "hello"), ("heroku", "router", "at=info"), ("app", "worker.1", "busy"))
    everything = davit("logs", "-a", "logged").stdout
    assert "app[api]: Initial release by user owner@localhost" in everything
    assert everything.splitlines()[-1].endswith(" app[worker.1]: busy")
    assert [line.split(" ", 1)[1] for line in davit("logs", "-a", "logged", "-d", "web").stdout.splitlines()] == [
        "app[web.1]: hello"
    ]
    assert len(davit("logs", "-a", "logged", "-n", "2").stdout.splitlines()) == 2
    assert "heroku[router]: at=info" in davit("logs", "-a", "logged", "-s", "heroku").stdout


def test_a_log_line_does_not_steer_the_terminal(davit: Davit) -> None:
    davit("create", "steering")
    hostile = "a\x1b]0;title\x07b\x1b[2Jc\x1b[31mred\x1bP+q\x1b\\d\x08\x9b1me\tf"
    _say(davit, "steering", ("app", "web.1", hostile), ("app", "web.1", "end"))
    for words in (["logs"], ["logs", "--tail"]):
        terminal = Terminal(davit, *words, "-a", "steering")
        shown = terminal.expect(b"end\r\n")
        assert b"abc\x1b[31mredd" in shown and b"e\tf\x1b[0m\r\n" in shown, shown
        assert not any(control in shown for control in (b"title", b"\x1b[2J", b"\x1bP", b"\x08", b"\x9b")), shown
        os.kill(terminal.pid, signal.SIGKILL)
        terminal.status()
    assert "title" in davit("logs", "-a", "steering").stdout  # a file or another program gets what the app wrote


def test_a_tail_shows_new_lines_as_they_come(davit: Davit) -> None:
    davit("create", "tailed")
    with subprocess.Popen(
        [ROOT / "bin" / "davit", "logs", "-t", "-a", "tailed", "-d", "web"], cwd=davit.work, env=davit.env, stdout=subprocess.PIPE
    ) as tail:
        assert tail.stdout
        for text in ("one", "two"):
            _say(davit, "tailed", ("app", "web.1", text))
            assert select.select([tail.stdout], [], [], 20)[0]
            assert tail.stdout.readline().decode().endswith(f"app[web.1]: {text}\n")
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10 * PATIENCE) == -signal.SIGINT


def test_a_builds_output_is_followed_to_its_end(davit: Davit) -> None:
    from sqlalchemy import select

    from builder.output import Outcome, Output

    davit("create", "built")
    with db.transaction() as session:
        app = session.scalar(select(App).where(App.name == "built"))
        assert app
        build = builds.create(session, app, app.owner, commit="ab" * 20)
    out = Output(build.id)
    out.heading("Python app detected")
    with subprocess.Popen(
        [ROOT / "bin" / "davit", "builds:output", "-a", "built"], cwd=davit.work, env=davit.env, stdout=subprocess.PIPE
    ) as follower:
        assert follower.stdout
        assert follower.stdout.readline() == b"-----> Python app detected\n"
        out.heading("Launching...")
        assert follower.stdout.readline() == b"-----> Launching...\n"
        out.finish(Outcome("succeeded"))
        out.close()
        assert follower.wait(20) == 0
    assert davit("builds:cancel", "-a", "built").stderr.endswith("... done\n")
    with db.transaction() as session:
        builds.fail(session, build.id, "cancelled", "Cancelled.")
    assert "failed" in davit("builds", "-a", "built").stdout


def test_run_passes_input_output_errors_and_the_exit_status_on(davit: Davit) -> None:
    davit("create", "runner")
    done = davit("run", "-a", "runner", "--", "cat; echo oops >&2; exit 3", input="given\n" * 5000, check=False)
    assert done.returncode == 3
    assert done.stdout == "given\n" * 5000
    assert done.stderr.startswith("Running cat; echo oops >&2; exit 3 on ⬢ runner... up, run.")
    assert done.stderr.endswith("oops\n")
    quoted = davit("run", "-a", "runner", "-e", "GREETING=hi there", "--", "sh", "-c", 'echo "$GREETING" "$1"', "sh", "a  b")
    assert quoted.stdout == "hi there a  b\n"
    assert davit("run", "-a", "runner", "--", "kill -9 $$", check=False).returncode == 137


def test_run_carries_megabytes_both_ways_byte_for_byte(davit: Davit) -> None:
    davit("create", "carrier")
    data = os.urandom(3 << 20)
    done = subprocess.run(
        [ROOT / "bin" / "davit", "run", "-a", "carrier", "--", "cat"], input=data, capture_output=True, cwd=davit.work,
        env=davit.env, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout == data


class Terminal:
    """A davit command on a terminal of its own."""

    def __init__(self, davit: Davit, *words: str) -> None:
        from tests.cli.living import _resize

        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(davit.work)
            os.execve(ROOT / "bin" / "davit", ["davit", *words], {**davit.env, "TERM": "xterm"})
        _resize(self.fd, 33, 101)
        self.seen = b""

    def expect(self, text: bytes) -> bytes:
        """What it shows until ``text`` comes."""
        deadline = time.monotonic() + 20 * PATIENCE
        while text not in self.seen:
            assert select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0], self.seen
            try:
                self.seen += os.read(self.fd, 65536)
            except OSError:
                pytest.fail(f"ended without {text!r}: {self.seen!r}")
        shown, ends, self.seen = self.seen.partition(text)
        return shown + ends

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def status(self) -> int:
        while True:  # what it still prints must be read, or it waits for ever
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code


def test_run_gives_a_terminal_with_its_size_and_passes_keys_on(davit: Davit) -> None:
    from tests.cli.living import _resize

    davit("create", "terminal")
    shell = Terminal(davit, "run", "-a", "terminal", "sh")
    shell.expect(b"up, run.")
    shell.type(b"stty size; tty >/dev/null && echo is-a-$((1+1))-tty; echo $TERM\r")
    shell.expect(b"33 101")
    shell.expect(b"is-a-2-tty")
    shell.expect(b"xterm")
    _resize(shell.fd, 44, 122)
    os.kill(shell.pid, signal.SIGWINCH)
    shell.type(b"for i in 1 2 3 4 5 6 7 8 9; do stty size; sleep 0.1; done\r")
    shell.expect(b"44 122")
    shell.type(b"sleep 1000\r")
    shell.expect(b"sleep 1000")
    shell.type(b"\x03")
    shell.type(b"exit 7\r")
    assert shell.status() == 7


def test_a_dyno_whose_client_goes_away_gets_a_hangup(davit: Davit) -> None:
    davit("create", "lonely")
    client = subprocess.Popen(
        [ROOT / "bin" / "davit", "run", "-a", "lonely", "--", "echo here; exec sleep 1000"], cwd=davit.work, env=davit.env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout and client.stdin
    assert select.select([client.stdout], [], [], 20)[0]
    assert client.stdout.readline() == b"here\n"
    dyno = list(davit.processes.running.values())[-1]
    client.kill()
    client.communicate()
    wait_until(lambda: dyno.poll() is not None, "the dyno's end")
    assert dyno.returncode == -signal.SIGHUP


def test_another_account_cannot_attach_to_a_waiting_dyno(davit: Davit) -> None:
    davit("create", "guarded")
    token = davit("accounts:create", "intruder@example.com").stdout.strip()
    davit("access:add", "intruder@example.com", "-a", "guarded")
    from cli.apps.attached import attach
    from cli.client import Client
    from foundation.errors import DavitError

    owner = Client(davit.url, (davit.home / "owner-token").read_text().strip())
    dyno = owner.post("/apps/guarded/dynos", {"command": "cat", "attach": True, "force_no_tty": True}, headers={"Accept": "application/json; attach=websocket"})
    with pytest.raises(DavitError, match="waits for you"):
        attach(Client(davit.url, token), dyno["attach_url"], False)
    owner.post(f"/apps/guarded/dynos/{dyno['id']}/actions/stop")
    wait_until(lambda: davit.processes.running[dyno["id"]].poll() is not None, "the dyno's end")


def test_run_detached_says_where_its_output_goes(davit: Davit) -> None:
    davit("create", "detached")
    done = davit("run:detached", "-a", "detached", "sleep 1000")
    assert "... done, run." in done.stderr
    assert "davit logs --app detached --dyno run." in done.stderr
    name = done.stderr.split("done, ")[1].split()[0]
    assert f"{name} (Basic): up" in davit("ps", "-a", "detached").stdout
    assert davit("ps:stop", name, "-a", "detached").stderr == f"Stopping {name} dyno on ⬢ detached... done\n"


def test_every_command_explains_itself(davit: Davit) -> None:
    from cli.main import COMMANDS

    listed = davit("--help").stdout
    for name, place in COMMANDS.items():
        if place.startswith("cli.apps.") and name != "git:credentials":
            assert name in listed
