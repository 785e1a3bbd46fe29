"""A user's day with Davit, on the real thing."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.world import App, Davit, eventually, tiny


def test_a_push_is_live_and_the_next_push_replaces_it(app: App) -> None:
    push = app.deploy(tiny("first"))
    assert "Released v2" in push.output and f"{app.name}.localhost" in push.output
    app.assert_serves("first")
    app.deploy(tiny("second"))
    app.assert_serves("second")


def test_a_second_push_with_nothing_new_is_up_to_date(app: App) -> None:
    app.deploy(tiny("first"))
    assert "Everything up-to-date" in app.push().output


def test_a_push_that_does_not_build_is_refused_and_changes_nothing(app: App) -> None:
    app.deploy(tiny("first"))
    before = app.releases()
    app.commit({"requirements.txt": "this-package-does-not-exist-davit==1.0\n"})
    push = app.push()
    assert not push.accepted and "[remote rejected] main -> main (build failed)" in push.output
    app.assert_serves("first")
    assert app.releases() == before
    assert app.git("ls-remote", "davit", "main").stdout.split()[0] == app.git("rev-parse", "HEAD~1").stdout.strip()


def test_a_push_whose_app_does_not_start_is_refused_and_the_old_one_serves_on(app: App) -> None:
    app.deploy(tiny("first"))
    app.commit({"app.py": "raise SystemExit(3)\n"})
    push = app.push()
    assert not push.accepted and "(app did not start)" in push.output and "status 3" in push.output
    app.assert_serves("first")
    assert app.releases()[-1]["status"] == "failed"


def test_config_vars_reach_the_app_and_rolling_back_takes_them_back(app: App) -> None:
    app.deploy(tiny("first"))
    app.cli("config:set", "GREETING=hello")
    eventually(lambda: "hello" in app.get().text, "the new config var is served")
    app.deploy(tiny("second"))
    app.assert_serves("second hello")
    app.cli("rollback", "v2")
    eventually(lambda: app.get().text.startswith("first  web.1"), "v2 is served again")
    assert app.releases()[-1]["description"] == "Rollback to v2"


def test_scaling_starts_and_stops_dynos_and_requests_reach_them_all(app: App) -> None:
    app.deploy(tiny("first"))
    app.cli("ps:scale", "web=3")
    eventually(lambda: {app.get().text for _ in range(6)} == {f"first  web.{n}" for n in (1, 2, 3)}, "three dynos answer")
    app.cli("ps:scale", "web=0")
    eventually(lambda: app.get().status_code == 503, "nobody answers")
    assert "H14" in app.log()


def test_the_log_has_what_the_app_the_router_and_the_platform_said(app: App) -> None:
    app.deploy(tiny("first"))
    app.get("/some/path?x=1")
    eventually(lambda: 'path="/some/path?x=1"' in app.log(), "the router's line is in the log")
    log = app.log()
    assert "app[web.1]: listening" in log
    assert "heroku[web.1]: State changed from starting to up" in log
    eventually(lambda: "app[api]: Release v2 created by user" in app.log(), "what the platform did is in the log")


def test_a_one_off_dyno_prints_and_ends_as_the_command_does(app: App) -> None:
    app.deploy({**tiny("first"), "data.txt": "from the slug\n"})
    done = app.cli("run", "--", "cat data.txt; echo $DYNO; exit 7", check=False)
    assert done.returncode == 7 and "from the slug" in done.stdout and "run." in done.stdout


def test_maintenance_shows_its_page_and_the_app_comes_back(app: App) -> None:
    app.deploy(tiny("first"))
    app.cli("maintenance:on")
    eventually(lambda: app.get().status_code == 503, "maintenance")
    app.cli("maintenance:off")
    eventually(lambda: app.get().status_code == 200, "back")


def test_another_branch_is_stored_and_not_deployed(app: App) -> None:
    app.deploy(tiny("first"))
    app.git("checkout", "-q", "-b", "feature")
    app.commit(tiny("feature"))
    push = app.push("feature")
    assert push.accepted and "deploy" in push.output
    app.assert_serves("first")


def test_a_push_to_an_app_that_does_not_exist_says_so(davit: Davit, app: App) -> None:
    app.commit(tiny("first"))
    app.git("remote", "set-url", "davit", f"http://127.0.0.1:{davit.api}/no-such-app-here.git")
    push = app.push()
    assert not push.accepted and "find that app" in push.output


def test_a_worker_runs_beside_the_web_dyno_and_its_crash_is_shown(app: App) -> None:
    app.deploy({**tiny("first"), "Procfile": "web: python3 -u app.py\nworker: echo working; sleep 1000\n"})
    app.cli("ps:scale", "worker=1")
    eventually(lambda: "app[worker.1]: working" in app.log(), "the worker works")
    app.assert_serves("first")


def test_a_release_command_that_fails_refuses_the_push(app: App) -> None:
    app.deploy(tiny("first"))
    app.commit({"Procfile": "web: python3 -u app.py\nrelease: echo migrating; exit 1\n"})
    push = app.push()
    assert not push.accepted and "(release phase failed)" in push.output and "migrating" in push.output
    app.assert_serves("first")


def test_a_request_under_way_is_answered_by_the_old_dyno_while_the_new_one_takes_over(app: App) -> None:
    """The app dies of SIGTERM at once: only waiting for its requests before the signal can save them."""
    app.deploy(tiny("first"))
    with ThreadPoolExecutor(1) as pool:
        for version in ("second", "third"):
            slow = pool.submit(app.get, "/slow")
            app.deploy(tiny(version))
            app.assert_serves(version)
            assert slow.result().status_code == 200
    assert slow.result().text.startswith("second")


def test_a_push_over_ssh_is_live_and_a_foreign_key_sees_nothing(davit: Davit, app: App) -> None:
    app.deploy(tiny("first"))
    key = app.checkout.with_name(f"{app.checkout.name}-key")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", app.name, "-f", key], check=True)
    ssh = {"GIT_SSH_COMMAND": f"ssh -i {key} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"}
    app.git("remote", "add", "ssh", f"ssh://git@127.0.0.1:{davit.ssh}/{app.name}.git")
    app.commit(tiny("second"))
    refused = app.git("push", "ssh", "main", check=False, environment=ssh)
    assert refused.returncode != 0 and "Davit knows none of your SSH keys (SHA256:" in refused.stderr, refused.stderr
    davit.cli("keys:add", f"{key}.pub")
    done = app.git("push", "ssh", "main", check=False, environment=ssh)
    assert done.returncode == 0, done.stderr
    app.assert_serves("second")
    davit.cli("keys:remove", app.name)
