"""A backup is taken while Davit runs and builds; on a new DAVIT_HOME it is a Davit that serves the same apps."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.e2e.conftest import running
from tests.e2e.residue import rows_unfinished
from tests.e2e.test_power_cut import newest, pushing
from tests.e2e.world import App, Davit, eventually, tiny


def test_what_a_backup_holds_serves_elsewhere_and_takes_the_next_push(davit: Davit, app: App) -> None:
    app.deploy(tiny("first"))
    app.cli("config:set", "GREETING=hello")
    eventually(lambda: app.get().text.startswith("first hello"), "the config var is served")
    commit = app.git("rev-parse", "HEAD").stdout.strip()
    app.use_buildpack("echo it builds; while ! test -e /tmp/never; do sleep 0.1; done")
    app.commit(tiny("second"))
    push = pushing(app)
    push.says("it builds")
    file = davit.home / "person" / "davit.tar"
    try:
        davit.cli("backup", str(file))
    finally:
        app.cli("builds:cancel")
    assert "cancelled" in push.ends()

    home = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
    twin = Davit(home)
    try:
        assert "Restored into" in twin.cli("restore", str(file)).stdout
        with running(twin):
            other = App(twin, app.name, app.checkout)
            eventually(lambda: other.get().status_code == 200, "the app serves", 60)
            assert other.get().text.startswith("first hello")
            eventually(lambda: not list(rows_unfinished(twin)), "what was under way is decided", 60)
            assert newest(other)[1] == "failed", "the build that was under way was a push's, whose pusher has gone"
            other.cli("buildpacks:clear")
            twin.cli("git:remote", "-a", app.name, cwd=app.checkout)
            assert other.git("ls-remote", "davit", "main").stdout.split()[:1] == [commit]
            other.deploy(tiny("third"))
            other.assert_serves("third hello")
            refused = twin.cli("restore", str(file), check=False)
            assert refused.returncode == 1 and "There is a Davit in" in refused.stderr
            davit.cli("git:remote", "-a", app.name, cwd=app.checkout)
    finally:
        shutil.rmtree(home, ignore_errors=True)
