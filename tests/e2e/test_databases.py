"""A whole Davit on PostgreSQL and a Redis that is not its own, with HTTPS: a day in short, and what a build fetches."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import running
from tests.e2e.internet import ADDRESS, internet
from tests.e2e.sampler import SAMPLER
from tests.e2e.world import App, Davit, eventually, tiny
from tests.ports import free_port


@pytest.fixture(scope="module")
def outside(postgres_server: Callable[[], str], redis_server: str) -> Iterator[Davit]:
    """A Davit whose database and Redis are somebody else's."""
    home = Path(tempfile.mkdtemp(prefix="dvo", dir="/tmp"))
    extra = {
        "DATABASE_URL": postgres_server(), "REDIS_URL": redis_server, "DAVIT_HTTPS": f"127.0.0.1:{free_port()}",
        "no_proxy": f"{ADDRESS},127.0.0.1", "NO_PROXY": f"{ADDRESS},127.0.0.1",
    }  # fmt: skip
    with running(Davit(home, extra=extra)) as world:
        yield world


@pytest.fixture
def app(outside: Davit) -> Iterator[App]:
    made = outside.create()
    yield made
    made.cli("apps:destroy", "--confirm", made.name, check=False)


def test_nothing_of_its_own_runs_and_no_file_holds_the_truth(outside: Davit) -> None:
    assert "redis" not in outside.pids()
    assert not (outside.home / "davit.db").exists() and not (outside.home / "run" / "redis.sock").exists()
    assert outside.cli("doctor", check=False).stdout


def test_a_day_in_short(outside: Davit, app: App) -> None:
    app.deploy(tiny("first"))
    app.assert_serves("first")
    app.cli("config:set", "GREETING=hello")
    eventually(lambda: "hello" in app.get().text, "the config var is served")
    app.deploy(tiny("second"))
    app.cli("ps:scale", "web=2")
    eventually(lambda: {app.get().text for _ in range(4)} == {"second hello web.1", "second hello web.2"}, "two dynos answer")
    app.commit({"app.py": "raise SystemExit(3)\n"})
    push = app.push_refused()
    assert "(app did not start)" in push.output
    app.assert_serves("second")
    app.cli("rollback", "v2")
    eventually(lambda: app.get().text.startswith("first  web."), "v2 is served again")
    assert app.cli("run", "--", "cat", input="hi").stdout == "hi"
    eventually(lambda: "heroku[router]" in app.log() and "app[api]: Deploy" in app.log(), "the log is whole")
    versions = [(release["version"], release["status"]) for release in app.releases()]
    assert versions == [(1, "succeeded"), (2, "succeeded"), (3, "succeeded"), (4, "succeeded"), (5, "failed"), (6, "succeeded")]


def test_a_restart_finds_everything_again(outside: Davit, app: App) -> None:
    app.deploy(tiny("first"))
    (before,) = app.dynos()
    outside.stop()
    outside.start()
    eventually(lambda: app.get().status_code == 200, "the app is back")
    (after,) = app.dynos()
    assert after["name"] == before["name"] and after["release"] == before["release"]
    app.deploy(tiny("second"))
    app.assert_serves("second")


@pytest.mark.timeout(900)
def test_builds_fetch_submodules_and_buildpacks(outside: Davit, app: App) -> None:
    files = Path(tempfile.mkdtemp(prefix="dvf", dir="/tmp"))

    def git(*words: str, cwd: Path) -> str:
        return subprocess.run(["git", *words], cwd=cwd, env=outside.environment, check=True, capture_output=True, text=True).stdout.strip()

    def repository(name: str, content: dict[str, str]) -> str:
        """A published repository; returns its commit."""
        source = files / f"{name}-source"
        source.mkdir()
        for path, text in content.items():
            (source / path).parent.mkdir(exist_ok=True)
            (source / path).write_text(text)
        git("init", "-q", cwd=source)
        git("add", "-A", cwd=source)
        git("commit", "-qm", "published", cwd=source)
        git("tag", "v1", cwd=source)
        git("clone", "-q", "--bare", str(source), str(files / f"{name}.git"), cwd=files)
        git("update-server-info", cwd=files / f"{name}.git")
        return git("rev-parse", "HEAD", cwd=source)

    try:
        files.chmod(0o755)
        repository("inner", {"deep.txt": "from deep inside\n"})
        commit = repository("library", {"lib.txt": "from the library\n"})
        pack = {"bin/detect": "#!/bin/sh\necho Fetched\n", "bin/compile": '#!/bin/sh\necho compiled by v1; echo packed > "$1/packed.txt"\n'}
        repository("pack", pack)
        git("checkout", "-q", "-b", "newer", cwd=files / "pack-source")
        subprocess.run(["tar", "-czf", files / "pack.tgz", "-C", files / "pack-source", "bin"], check=True)
        with internet(files) as address:
            app.commit(SAMPLER)
            app.write({".gitmodules": "".join(
                f'[submodule "{path}"]\n\tpath = {path}\n\turl = {scheme}://{address}/library.git\n' for path, scheme in (("lib", "git"), ("more/lib", "http"))
            )})  # fmt: skip
            app.git("add", ".gitmodules")
            for path in ("lib", "more/lib"):
                app.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
            app.git("commit", "-qm", "submodules")
            push = app.push()
            assert push.accepted and "Fetching git submodules" in push.output, push.output
            assert app.cli("run", "--", "cat lib/lib.txt more/lib/lib.txt; ls -A lib").stdout == "from the library\n" * 2 + "lib.txt\n"
            for url in (f"git://{address}/pack.git#v1", f"http://{address}/pack.git#{commit_of(files / 'pack.git')}", f"http://{address}/pack.tgz"):
                app.cli("buildpacks:set", url)
                app.git("commit", "-q", "--allow-empty", "-m", url)
                push = app.push()
                assert push.accepted and "compiled by v1" in push.output, push.output
            assert app.cli("run", "--", "cat packed.txt").stdout == "packed\n"
            app.cli("buildpacks:set", f"git://{address}/pack.git#no-such-branch")
            app.git("commit", "-q", "--allow-empty", "-m", "no such branch")
            assert "no-such-branch" in app.push_refused().output
    finally:
        shutil.rmtree(files)


def commit_of(repository: Path) -> str:
    done = subprocess.run(["git", "-c", "safe.directory=*", "rev-parse", "v1"], cwd=repository, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_databases_may_go_away_and_come_back_for_apps(outside: Davit, app: App) -> None:
    """What a client sees of the API's JSON is the same as on SQLite."""
    app.deploy(tiny("first"))
    with outside.client() as client:
        for path in ("", "/releases", "/builds", "/dynos", "/formation", "/domains", "/config-vars", "/collaborators"):
            answer: httpx.Response = client.get(f"/apps/{app.name}{path}")
            assert answer.status_code == 200, (path, answer.text)
        page = client.get(f"/apps/{app.name}/releases", headers={"Range": "version ..; max=1, order=desc"})
        assert page.status_code == 206 and [row["version"] for row in page.json()] == [2]
