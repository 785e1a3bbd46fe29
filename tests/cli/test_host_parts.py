"""The host commands' parts, each alone: Procfile, environment, log files, records, what the doctor reads."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from api import door
from cli.host import doctor, environment, home, logfiles, procfile, ready, record, registries, status, updown, waiting
from cli.host.processes import Identity
from cli.main import COMMANDS, cli
from foundation.clock import now
from foundation.settings import Address, from_environment
from runtime.dynodir import DynoDirectory, Record
from tests.e2e.errors_page import assert_says
from tests.runtime.test_stacks import a_version

CHECKOUT = Path(__file__).parents[2]


def settings_of(home: Path, **variables: str):  # type: ignore[no-untyped-def]
    return from_environment({"DAVIT_HOME": str(home), **variables})


# ---- Procfile


def test_comments_and_empty_lines_in_procfile_are_nothing() -> None:
    parsed = procfile.parse("# a\n\nweb: gunicorn app:app\n  ssh:   python -m x\n")
    assert parsed == {"web": "gunicorn app:app", "ssh": "python -m x"}


@pytest.mark.parametrize("text", ["web gunicorn", "web:", "web: a\nweb: b"])
def test_a_line_that_is_no_process_is_refused(text: str) -> None:
    with pytest.raises(procfile.ProcfileError, match="Line"):
        procfile.parse(text)


def test_a_value_with_spaces_stays_one_argument() -> None:
    assert procfile.arguments("run $X 'a b'", {"X": "1 2; rm"}) == ["run", "1 2; rm", "a b"]


def test_an_unknown_variable_is_named() -> None:
    with pytest.raises(procfile.ProcfileError, match="NOPE"):
        procfile.arguments("run $NOPE", {})


def test_doctor_and_status_say_how_full_redis_is(tmp_path: Path, redis_server: str) -> None:
    given = settings_of(tmp_path, REDIS_URL=redis_server)
    found = doctor.check_redis(given)
    assert found.level == "ok" and "MiB are used" in found.message
    assert status.redis_words(given) == f"Redis: {found.message}."
    away = settings_of(tmp_path, REDIS_URL=f"unix://{tmp_path}/nobody.sock")
    assert doctor.check_redis(away).level == "fail" and status.redis_words(away) is None
    assert doctor.check_redis(settings_of(tmp_path)).level == "ok", "Davit's own starts with Davit"


def test_redis_is_ours_only_when_none_is_given(tmp_path: Path) -> None:
    embedded = environment.build(settings_of(tmp_path), {})
    given = environment.build(settings_of(tmp_path, REDIS_URL="redis://elsewhere"), {})
    assert "redis" in procfile.wanted(CHECKOUT, embedded)
    assert "redis" not in procfile.wanted(CHECKOUT, given)


# ---- environment


def test_processes_get_settings_and_proxies_and_nothing_else_of_the_shell(tmp_path: Path) -> None:
    given = {"HTTPS_PROXY": "http://proxy:3128", "AWS_SECRET_ACCESS_KEY": "s", "SSH_AUTH_SOCK": "/x", "PYTHONPATH": "/evil"}
    built = environment.build(settings_of(tmp_path, DAVIT_DOMAIN="example.test"), given)
    assert built["DAVIT_DOMAIN"] == "example.test"
    assert built["DAVIT_API"] == "127.0.0.1:5000"
    assert built["HTTPS_PROXY"] == "http://proxy:3128"
    assert not {"AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "PYTHONPATH", "REDIS_URL", "DAVIT_HTTPS"} & built.keys()


def test_processes_read_the_same_settings_that_up_read(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, DAVIT_HTTP="[::]:80", DAVIT_BUILD_SLOTS="3")
    assert from_environment(environment.build(settings, {})) == settings
    allowed = settings_of(tmp_path, DAVIT_OUTBOUND_ALLOW="10.1.0.0/16, 127.0.0.1:9000,[fd00::/8]:514", DAVIT_DYNOS_ALLOW="10.1.0.5:5432")
    assert from_environment(environment.build(allowed, {})) == allowed


# ---- the home


def test_the_home_and_all_in_it_is_private(davit_home: Path) -> None:
    home.make_directories(davit_home / "davit")
    made = [davit_home / "davit", *(davit_home / "davit").iterdir()]
    assert len(made) > 5
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}


def test_the_apis_own_certificate_holds_for_every_name_at_which_it_is_opened(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, DAVIT_DOMAIN="apps.example.com", DAVIT_NAMES="davit.example.com,deploy.example.org")
    pem = Path(door.ensure_certificate(settings)).read_bytes()
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    held = names.get_values_for_type(x509.DNSName)
    assert {"davit.example.com", "deploy.example.org", "*.apps.example.com", "localhost"} <= set(held)


@pytest.mark.row("home-too-long")
def test_a_home_whose_sockets_would_have_too_long_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(home.HomeError) as refused:
        home.make_directories(tmp_path / ("x" * 60) / ("y" * 40))
    assert_says("home-too-long", refused.value.message)


@pytest.mark.row("not-answering")
def test_a_process_that_does_not_come_up_is_named_with_its_last_words(davit_home: Path) -> None:
    home.make_directories(davit_home / "davit")
    (davit_home / "davit" / "log" / "router.log").write_text("haproxy: cannot bind\n")
    with pytest.raises(ready.NotReady) as waited:
        ready.wait(["router"], settings_of(davit_home / "davit"), patience=0)
    assert_says("not-answering", waited.value.message)
    assert "router process" in waited.value.message and "cannot bind" in waited.value.message


# ---- the checkout


@pytest.mark.row("not-set-up")
def test_a_checkout_without_its_python_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(CHECKOUT / "bin" / "davit", tmp_path / "bin" / "davit")
    (tmp_path / "linked").symlink_to(tmp_path / "bin" / "davit")
    refused = subprocess.run([tmp_path / "linked", "up"], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert_says("not-set-up", refused.stderr)
    assert f"in {tmp_path}" in refused.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)  # as an interrupted set-up leaves it
    (tmp_path / "cli").symlink_to(CHECKOUT / "cli")
    refused = subprocess.run([tmp_path / "linked", "up"], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert_says("not-set-up", refused.stderr)


@pytest.mark.row("package-not-installed")
def test_a_package_that_is_not_installed_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\n")
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.modules['yaml'] = None; from cli.main import main; main()"
    words = [sys.executable, "-I", "-c", program, CHECKOUT, "host:check", tmp_path / "user-data"]
    refused = subprocess.run(words, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert_says("package-not-installed", refused.stderr)
    assert "“yaml”" in refused.stderr and "make setup" in refused.stderr


def test_the_commands_for_apps_need_only_what_getting_started_installs_on_another_machine() -> None:
    program = (
        "import importlib, sys; sys.path.insert(0, sys.argv[1]); from cli.main import COMMANDS\n"
        "for place in COMMANDS.values(): place.startswith('cli.apps') and importlib.import_module(place.partition(':')[0])\n"
        "import cli.apps.attached, cli.forwarder\n"
        "print(*{name.partition('.')[0] for name, module in sys.modules.items() if 'site-packages' in (getattr(module, '__file__', '') or '')})"
    )
    found = subprocess.run([sys.executable, "-I", "-c", program, CHECKOUT], capture_output=True, text=True, check=True)
    installed = re.search(r"pip install -c requirements\.lock (.+)", (CHECKOUT / "docs" / "getting-started.md").read_text())
    assert installed and {word for word in found.stdout.split() if not word.startswith("_")} - {"h11", "cffi"} <= set(installed[1].split())


def test_a_home_that_is_a_file_is_refused_with_a_sentence(davit_home: Path) -> None:
    (davit_home / "file").write_text("")
    with pytest.raises(home.HomeError, match="cannot be made ready"):
        home.make_directories(davit_home / "file" / "davit")


# ---- log files


def test_a_grown_log_file_is_put_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    with path.open("a") as writer:
        for round in range(5):
            writer.write(f"round {round} " + "x" * 100 + "\n")
            writer.flush()
            logfiles.rotate(path, largest=100)
        writer.write("after\n")
    assert path.read_text() == "after\n"
    assert [(tmp_path / f"web.log.{n}").read_text()[:7] for n in (1, 2, 3)] == ["round 4", "round 3", "round 2"]
    assert not (tmp_path / "web.log.4").exists()


def test_a_log_without_room_for_its_copy_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, older = tmp_path / "web.log", tmp_path / "web.log.1"
    path.write_text("x" * 200)
    older.write_text("older")

    def full(source: Path, target: Path) -> None:
        target.write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cli.host.logfiles.shutil.copyfile", full)
        logfiles.rotate(path, largest=100)
    assert path.read_text() == "x" * 200 and older.read_text() == "older"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["web.log", "web.log.1"]


def test_the_last_lines_of_a_log_are_quoted(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_text("".join(f"{n}\n" for n in range(100)))
    assert logfiles.last_lines(tmp_path / "web.log", 2) == ["98", "99"]
    assert logfiles.last_lines(tmp_path / "web.log", 9, since=(tmp_path / "web.log").stat().st_size - 6) == ["98", "99"]
    assert logfiles.last_lines(tmp_path / "none.log") == []


def test_the_terminal_shows_whole_new_lines_behind_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web, ssh = tmp_path / "web.log", tmp_path / "worker.log"
    web.write_text("before\n")
    echo = logfiles.Echo([web, ssh])
    with web.open("a") as file:
        file.write("one\nhal")
    ssh.write_text("two\n")
    echo.show()
    with web.open("a") as file:
        file.write("f\n")
    echo.show()
    assert capsys.readouterr().out.splitlines() == ["web    | one", "worker | two", "web    | half"]


# ---- the record


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    me = Identity.of(os.getpid())
    kept = record.Record(me, [record.Entry("web", "running", me, 1.5, 2, "ab"), record.Entry("ssh", "waiting")])
    record.write(tmp_path, kept)
    assert record.read(tmp_path) == kept
    assert [entry.name for entry in kept.living()] == ["web"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"entries": [{}]}'])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "supervisor.json").write_text(text)
    assert record.read(tmp_path) == record.Record(None, [])


def test_a_pid_that_was_used_again_is_another_process() -> None:
    me = Identity.of(os.getpid())
    assert me is not None and me.lives()
    assert not Identity(me.pid, me.started + 1, me.boot).lives()
    assert not Identity(me.pid, me.started, "an earlier boot").lives()


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (65, "1m"), (7300, "2h"), (200_000, "2d")])
def test_durations_are_said_as_people_do(seconds: int, text: str) -> None:
    assert status.ago(time.time() - seconds) == text


# ---- the doctor


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("HAProxy version 2.6.12-1+deb12u4 2025/10/03", (2, 6, 12)),
        ("git version 2.39.5", (2, 39, 5)),
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", (7, 0, 15)),
        ("6.18.44-fc", (6, 18, 44)),
        ("no number", ()),
    ],
)
def test_versions_are_found_in_what_programs_say(text: str, numbers: tuple[int, ...]) -> None:
    assert doctor.version(text) == numbers


def test_a_kernel_of_two_digits_is_newer_than_one_of_one() -> None:
    assert doctor.version("5.4.0") < doctor.KERNEL <= doctor.version("5.19.0-50-generic") < doctor.version("6.1.0")


def test_controllers_of_both_cgroup_versions_count() -> None:
    hybrid = (
        "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu,cpuacct\n"
        "32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    assert {"memory", "cpu"} <= doctor.controllers("", hybrid)
    assert "pids" not in doctor.controllers("", hybrid)
    assert doctor.controllers("cpuset cpu io memory pids\n", "") >= {"cpu", "memory", "pids"}


def test_a_port_that_another_has_fails_and_names_the_setting(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = settings_of(tmp_path, DAVIT_API=f"127.0.0.1:{port}", DAVIT_HTTP="127.0.0.1:0", DAVIT_SSH="127.0.0.1:0")
        points = {point.name: point for point in doctor.check_ports(settings)}
    assert points["DAVIT_API"].level == "fail"
    assert "DAVIT_API=HOST:PORT" in points["DAVIT_API"].remedy
    assert points["DAVIT_HTTP"].level == "ok"


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    assert doctor.cannot_bind(Address("192.0.2.1", 0)) == "cannot assign requested address"


def test_a_missing_program_is_named_with_its_package() -> None:
    point = doctor._tool(doctor.Tool("davit-no-such-program", "some-package"))
    assert (point.level, "some-package" in point.remedy) == ("fail", True)


def test_an_old_program_fails() -> None:
    assert doctor._tool(doctor.Tool("git", "git", (99,))).level == "fail"


def test_a_home_that_others_may_enter_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert doctor.check_home(settings_of(tmp_path)).level == "warn"


def test_the_clock_is_compared_with_a_server() -> None:
    assert doctor.clock_skew("Thu, 01 Jan 1970 00:01:00 GMT", 100.0) == 40.0
    assert doctor.clock_skew("yesterday", 100.0) is None


def test_names_that_lead_nowhere_here_or_elsewhere_are_told(tmp_path: Path) -> None:
    known = {"davit.example.com": ["192.0.2.7"], "davit-doctor.apps.example.com": ["127.0.0.1"]}
    given = settings_of(tmp_path, DAVIT_DOMAIN="apps.example.com", DAVIT_NAMES="davit.example.com,other.example.com,davit.localhost")
    asked = lambda name: known.get(name, [])  # noqa: E731
    elsewhere, missing, apps = doctor.check_own_names(given, asked, {})
    assert elsewhere.level == "ok" and "192.0.2.7, which is no address of this host's" in elsewhere.message
    assert missing.level == "warn" and "`other.example.com. A" in missing.remedy
    assert apps.level == "ok" and apps.message == "*.apps.example.com leads to this host (127.0.0.1)"
    del known["davit-doctor.apps.example.com"]
    *_, apps = doctor.check_own_names(given, asked, {})
    assert apps.level == "warn" and "so apps cannot be reached" in apps.message and "`*.apps.example.com. A" in apps.remedy
    *_, apps = doctor.check_own_names(given, asked, {"https_proxy": "http://proxy.example.com:3128"})
    assert apps.level == "warn" and "behind a proxy" in apps.message
    assert list(doctor.check_own_names(settings_of(tmp_path), asked, {})) == []


def test_an_old_stack_is_a_warning(tmp_path: Path) -> None:
    given = settings_of(tmp_path)
    a_version(given.stacks, f"13.8-{(now() - timedelta(days=3)):%Y%m%d%H%M%S}")
    assert doctor.check_stack(given).level == "ok" and doctor.check_stack(given).message.endswith(", 3 days old")
    a_version(given.stacks, f"13.8-{(now() - timedelta(days=61)):%Y%m%d%H%M%S}")
    assert doctor.check_stack(given).level == "warn" and "61 days old" in doctor.check_stack(given).message


def test_every_point_that_is_not_ok_says_what_to_do(tmp_path: Path) -> None:
    points = doctor.examine(settings_of(tmp_path), essential=True)
    assert points
    assert all(point.remedy for point in points if point.level != "ok")


@pytest.mark.parametrize(
    ("sources", "mirror"),
    [
        ("# deb http://commented.test/\ndeb [signed-by=/k] http://mirror.test/debian bookworm main\n", "http://mirror.test/debian"),
        ("Types: deb\nURIs: https://mirror.test/ubuntu\nSuites: noble\n", "https://mirror.test/ubuntu"),
        ("", None),
    ],
)
def test_the_mirror_is_the_one_that_apt_uses(sources: str, mirror: str | None) -> None:
    assert registries.apt_mirror(sources) == mirror


# ---- the command line


def test_every_command_in_the_table_loads() -> None:
    context = cli.make_context("davit", ["--help"], resilient_parsing=True)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None and command.help, name


def test_a_misspelled_command_gets_a_suggestion() -> None:
    result = CliRunner().invoke(cli, ["stauts"])
    assert result.exit_code == 2
    assert "Did you mean “status”?" in result.output


def test_set_up_says_first_what_the_doctor_says_of_an_old_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts").mkdir()
    setup = tmp_path / "scripts" / "setup"
    setup.write_text((Path(__file__).parents[2] / "scripts" / "setup").read_text())
    for release, refused in (("5.15.0-91-generic", True), ("5.19.0-1", False), ("6.1.0", False), ("4.19.0", True), ("10.0", False)):
        for program, says in (("uname", release), ("id", "0")):
            (tmp_path / program).write_text(f"#!/bin/sh\necho {says}\n")
            (tmp_path / program).chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DAVIT_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(["sh", setup], env=environment, capture_output=True, text=True, check=False)
        monkeypatch.setattr(os, "uname", lambda release=release: os.uname_result(("Linux", "h", release, "v", "x86_64")))
        point = doctor.check_kernel(from_environment({}))
        assert (point.level == "fail") is refused
        assert (f"setup: {point.message} {point.remedy}" in done.stderr) is refused, done.stderr
        assert refused or (tmp_path / "cache").exists()


# ---- Whom somebody waits for


def _dyno(run: Path, name: str, app_id: str, pid: int, boot: str | None = None) -> None:
    identity = Identity.of(pid)
    assert identity is not None
    directory = DynoDirectory(run / "dynos" / f"id-of-{name}")
    directory.path.mkdir(parents=True)
    directory.write(Record(directory.path.name, app_id, name, 1, "/none", boot or identity.boot, pid, identity.started))


def test_dynos_that_have_not_ended_are_named_with_their_apps(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as ends, subprocess.Popen(["sleep", "600"]) as stays:
        try:
            _dyno(tmp_path, "web.1", "a-1", ends.pid)
            _dyno(tmp_path, "worker.1", "a-2", stays.pid)
            _dyno(tmp_path, "web.2", "a-1", stays.pid, boot="another")
            (tmp_path / "dynos" / "half-made").mkdir()
            assert waiting.dynos(tmp_path, {"a-1": "shop"}) == ["web.1 of shop", "worker.1"]
            ends.kill()
            ends.wait()
            assert waiting.dynos(tmp_path, {"a-1": "shop"}) == ["worker.1"]
        finally:
            ends.kill()
            stays.kill()
    assert waiting.dynos(tmp_path, {}) == []


@pytest.mark.root
def test_down_gives_a_full_host_the_time_that_its_dynos_take(davit_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: dict[str, float] = {}
    monkeypatch.setattr(updown, "run", lambda words, timeout, **rest: allowed.update({words[2]: timeout}))
    settings = settings_of(davit_home)
    for number in range(1000):
        (settings.run / f"dynos/{number}").mkdir(parents=True)
    updown.down(settings, lambda line: None, keep_apps=False)
    assert allowed == {"router": 120, "runtime": 3120}


def test_processes_that_have_not_ended_are_named(tmp_path: Path) -> None:
    own = Identity.of(os.getpid())
    ended = Identity(own.pid, own.started - 1, own.boot) if own else None
    entries = [record.Entry("web", "running", own), record.Entry("ssh", "running", ended), record.Entry("worker")]
    record.write(tmp_path, record.Record(own, entries))
    assert waiting.processes(tmp_path) == ["web (answers its last requests)"]


def test_who_is_waited_for_is_said_when_it_lasts_and_when_it_changes() -> None:
    looks = iter([[], ["a", "b"], ["a", "b"], ["b"], []])
    said: list[str] = []
    over = threading.Event()

    def whom() -> list[str]:
        names = next(looks, None)
        if names is None:
            over.set()
        return names or []

    with waiting.told(said.append, whom, 30, every=0.01):
        assert over.wait(60)
    assert said == ["Waiting for a and b (30 seconds at most).", "Waiting for b (30 seconds at most)."]


def test_what_is_quick_is_not_spoken_of() -> None:
    said: list[str] = []
    with waiting.told(said.append, lambda: ["never asked"], 30, every=600):
        pass
    assert said == []


def test_of_many_who_are_waited_for_only_some_are_named() -> None:
    assert waiting.listed([f"web.{n}" for n in range(1, 8)]) == "web.1, web.2, web.3, web.4, web.5 and 2 more"
    assert waiting.listed(["web.1"]) == "web.1"
