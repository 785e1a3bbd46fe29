"""Sources that cannot be built, or look as if they could not: each push gets its sentence, and what served serves on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.errors_page import assert_says
from tests.e2e.residue import assert_nothing_left
from tests.e2e.world import TINY, App, Davit, eventually, tiny


@pytest.fixture(scope="module")
def serving(strict: Davit) -> Iterator[App]:
    """An app that serves “first”; a refused push changes nothing, so one is enough for all of them."""
    app = strict.create()
    app.deploy(tiny("first"))
    yield app
    app.cli("apps:destroy", "--confirm", app.name, check=False)


@pytest.fixture
def fresh(strict: Davit) -> Iterator[App]:
    """A fresh app."""
    app = strict.create()
    yield app
    app.cli("apps:destroy", "--confirm", app.name)


REFUSED = {
    "no-buildpack": {"README": "Nothing here says how to run it.\n"},
    "requirements-conflict": {**TINY, "requirements.txt": "itsdangerous==2.2.0\nitsdangerous==2.1.2\n"},
    "package-missing": {**TINY, "requirements.txt": "this-package-does-not-exist-davit==1.0\n"},
    "procfile-name": {**TINY, "Procfile": "web: python3 app.py\nwéb/1: python3 app.py\n"},
    "procfile-not-text": {**TINY, "Procfile": b"web: python3 \xff\xfe app.py\n"},
    "app-json": {**TINY, "app.json": "{healthchecks: 1}"},
    "empty-commit": {},
}
"""Row → the files of the commit."""


@pytest.mark.row(*REFUSED)
@pytest.mark.parametrize("row", REFUSED)
def test_a_source_that_cannot_be_built_is_refused_with_a_sentence(serving: App, row: str) -> None:
    serving.git("rm", "-rq", "--ignore-unmatch", ".")
    serving.commit(REFUSED[row])
    push = serving.push_refused()
    assert_says(row, push.output)
    assert "main -> main (build failed)" in push.output
    serving.assert_serves("first")


@pytest.mark.row("nothing-to-push")
def test_a_repository_without_a_commit_has_nothing_to_push(fresh: App) -> None:
    fresh.git("init", "-q")
    fresh.davit.cli("git:remote", "-a", fresh.name, cwd=fresh.checkout)
    push = fresh.push()
    assert push.status == 1
    assert_says("nothing-to-push", push.output)


@pytest.mark.row("procfile-without-web", "no-web-process")
def test_an_app_without_a_web_process_is_deployed_and_visitors_are_told(fresh: App) -> None:
    push = fresh.deploy({**TINY, "Procfile": "worker: sleep 1000\n"})
    assert_says("procfile-without-web", push.output)
    page, answer = fresh.get(), fresh.get(accept="application/json")
    assert page.status_code == answer.status_code == 503
    assert_says("no-web-process", page.text)
    assert answer.json()["code"] == "H14" and "web:" in answer.json()["message"]
    eventually(lambda: "code=H14" in fresh.log(), "H14 is in the log")
    fresh.cli("ps:scale", "worker=1")
    eventually(lambda: [dyno["state"] for dyno in fresh.dynos()] == ["up"], "the worker runs")


@pytest.mark.row("procfile-doubtful")
def test_a_procfile_with_tabs_a_byte_order_mark_and_doubtful_lines_is_read_with_warnings(fresh: App) -> None:
    lines = [b"\xef\xbb\xbfweb:\texit 1", b"web:\t python3 -u app.py", b"# a comment", b"idle:", b"clock\tsleep 1000", b""]
    push = fresh.deploy({**TINY, "Procfile": b"\r\n".join(lines)})
    assert_says("procfile-doubtful", push.output)
    for sentence in ("declares “web” more than once", "declares “idle” without a command", "no colon after “clock”"):
        assert sentence in push.output
    assert "Procfile declares types -> web, clock" in push.output
    fresh.assert_serves("first")


@pytest.mark.row("file-names")
def test_file_names_with_newlines_and_bytes_that_are_no_text_arrive_as_they_are(fresh: App) -> None:
    fresh.commit(TINY)
    folder = os.fsencode(fresh.checkout) + b"/d\n\xff"
    os.mkdir(folder)
    names = [b"new\nline", b"\xff\xfe.txt", b"-rf *", b"$(touch pwned)", b"tab\tand\x01control", b" "]
    for name in names:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"x")
    fresh.commit()
    push = fresh.push()
    assert push.accepted, push.output
    assert_says("file-names", push.output)
    shown = fresh.cli("run", "--", "python3 -c 'import os; print(sorted(os.listdir(b\"d\\n\\xff\"))); print(os.listdir(\".\"))'").stdout
    assert repr(sorted(names)) in shown and "pwned'" not in shown.splitlines()[-1]
    fresh.assert_serves("first")


@pytest.mark.row("links-outside")
def test_links_that_lead_outside_lead_to_the_dynos_own_files_and_never_to_the_hosts(fresh: App) -> None:
    fresh.commit(TINY)
    for name, target in {
        "token": fresh.davit.home / "owner-token", "up": "../../../../../../../../etc/hostname", "root": "/", "loop": "loop",
        "database": fresh.davit.home / "davit.db", "proc": "/proc/1/root/etc/hostname",
    }.items():  # fmt: skip
        os.symlink(target, fresh.checkout / name)
    fresh.commit()
    push = fresh.push()
    assert push.accepted, push.output
    assert_says("links-outside", push.output)
    shown = fresh.cli("run", "--", "cat token database up 2>&1; readlink loop; ls root/davit root/work 2>&1; true").stdout
    assert fresh.davit.token not in shown and "SQLite" not in shown
    assert shown.count("No such file or directory") >= 2
    assert os.uname().nodename not in shown.split()
    fresh.assert_serves("first")


@pytest.mark.row("procfile-without-web")
def test_a_procfile_that_is_a_link_out_of_the_app_reads_nothing_of_the_host(fresh: App) -> None:
    fresh.commit({"app.py": TINY["app.py"]})
    os.symlink(fresh.davit.home / "owner-token", fresh.checkout / "Procfile")
    fresh.commit()
    push = fresh.push()
    assert push.accepted and fresh.davit.token not in push.output
    assert_says("procfile-without-web", push.output)


@pytest.mark.row("push-too-large")
def test_a_push_that_is_too_large_is_refused_before_it_is_built(serving: App) -> None:
    serving.git("rm", "-rq", "--ignore-unmatch", ".")
    serving.commit({**TINY, "big": os.urandom(25 << 20)})
    push = serving.push()
    assert push.status == 1 and "unpacker error" in push.output
    assert_says("push-too-large", push.output)
    assert "-----> Building" not in push.output
    serving.git("reset", "-q", "--hard", "HEAD~1")
    serving.assert_serves("first")


@pytest.mark.row("too-many-refs")
def test_a_push_of_more_branches_than_an_app_may_have_is_refused(fresh: App) -> None:
    fresh.commit(TINY)
    many = [f"HEAD:refs/heads/topic-{number}" for number in range(41)]
    push = fresh.push(*many)
    assert push.status == 1 and "too many refs" in push.output
    assert_says("too-many-refs", push.output)
    assert fresh.push(*many[:40]).accepted
    assert not fresh.push("HEAD:refs/heads/one-more").accepted
    assert fresh.push(":refs/heads/topic-0", "HEAD:refs/heads/one-more").accepted


@pytest.mark.row("repository-full")
def test_a_push_beyond_what_an_apps_repository_may_take_is_refused_until_there_is_room(fresh: App) -> None:
    fresh.commit({**TINY, "big": os.urandom(16 << 20)})
    assert fresh.push("HEAD:refs/heads/first").accepted
    fresh.git("checkout", "-q", "--orphan", "other")
    fresh.commit({**TINY, "big": os.urandom(16 << 20)})
    push = fresh.push("HEAD:refs/heads/second")
    assert push.status == 1 and "repository is full" in push.output
    assert_says("repository-full", push.output)
    assert fresh.push(":refs/heads/first").accepted
    assert fresh.push("HEAD:refs/heads/second").accepted


def test_nothing_of_all_this_is_left(strict: Davit, serving: App) -> None:
    serving.cli("apps:destroy", "--confirm", serving.name)
    assert_nothing_left(strict)
