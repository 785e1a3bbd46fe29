"""Procfile lines become launches, or a sentence; nothing in between. Splitting is what a real shell does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slugs import osvcommand
from slugs.osvcommand import LIBRARIES, LOADER, CommandRefused, Launch
from slugs.view import View

ENVIRONMENT = {
    "PORT": "8080",
    "NAME": "value",
    "EMPTY": "",
    "SPACED": "a b",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/app",
}
BY_LOADER = (LOADER, "--library-path", LIBRARIES)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    """A stack and a slug whose programs are this host's own."""
    stack, app = tmp_path_factory.mktemp("stack"), tmp_path_factory.mktemp("app")
    put(stack / "usr/bin/python3.13", Path("/bin/true").read_bytes())
    (stack / "usr/bin/python3").symlink_to("python3.13")
    (stack / "bin").symlink_to("usr/bin")
    put(stack / "usr/bin/true", Path("/bin/true").read_bytes())
    put(app / ".heroku/python/bin/gunicorn", b"#!/app/.heroku/python/bin/python\nimport x\n")
    put(app / ".heroku/python/lib/python3.13/site-packages/uvicorn/__init__.py", b"")
    (app / ".heroku/python/bin/python3").symlink_to("/usr/bin/python3")
    (app / ".heroku/python/bin/python").symlink_to("python3")
    put(app / "server", Path("/bin/true").read_bytes())
    put(app / "script.sh", b"#!/bin/sh\nexit 0\n")
    put(app / "manage.py", b"#!/usr/bin/env python3\nprint(1)\n")
    put(app / "text", b"hello")
    put(
        app / "package.json",
        json.dumps(
            {"scripts": {"start": "server --port $PORT", "prestart": "x", "piped": "a | b", "loop": "npm run loop"}}
        ).encode(),
    )
    put(app / ".heroku/node/bin/node", Path("/bin/true").read_bytes())
    (app / "escape").symlink_to("../../../../../../../bin/true")
    (app / "circle").symlink_to("circle")
    put(app / ".heroku/static/serve", b"#!/bin/sh\n")
    put(app / ".profile.d/python.sh", b"")
    put(app / ".profile.d/other.sh", b"")
    return View(stack, app)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)


def translate(view: View, line: str) -> Launch:
    return osvcommand.translate(line, ENVIRONMENT, view)


PYTHON = (*BY_LOADER, "/usr/bin/python3.13")


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("./server --port $PORT", (*BY_LOADER, "/app/server", "--port", "8080")),
        ("MODE=fast exec ./server \"$NAME ${EMPTY:-x} ${NAME:+y}\" a\\ b", (*BY_LOADER, "/app/server", "value x y", "a b")),
        ("python app.py", (*PYTHON, "-m", "davit_launch", "app.py")),
        ("python3 -u -m http.server $PORT", (*PYTHON, "-m", "davit_launch", "-m", "http.server", "8080")),
        ("python -W ignore -c 'print(1)'", (*PYTHON, "-W", "ignore", "-m", "davit_launch", "-c", "print(1)")),
        ("python -OuWdefault -Xdev --check-hash-based-pycs never app.py -E", (*PYTHON, "-O", "-W", "default", "-X", "dev", "--check-hash-based-pycs", "never", "-m", "davit_launch", "app.py", "-E")),
        ("python -um http.server -I", (*PYTHON, "-m", "davit_launch", "-m", "http.server", "-I")),
        ("python -mhttp.server", (*PYTHON, "-m", "davit_launch", "-m", "http.server")),
        ("python -W error -bc '' x", (*PYTHON, "-W", "error", "-b", "-m", "davit_launch", "-c", "", "x")),
        ("./manage.py runserver", (*PYTHON, "-m", "davit_launch", "/app/manage.py", "runserver")),
        ("gunicorn app:app -w 4", (*PYTHON, "-m", "davit_launch", "-m", "davit_wsgi", "app:app", "-w", "4")),
        ("uvicorn app:app --workers 4", (*PYTHON, "-m", "davit_launch", "-m", "uvicorn", "app:app", "--port", "8080", "--loop", "asyncio")),
        *((line, (*PYTHON, "-m", "davit_launch", "-m", "uvicorn", "main:app", "--host", "0.0.0.0", "--port", "8080", "--loop", "asyncio")) for line in (
            "gunicorn -k uvicorn.workers.UvicornWorker --bind 0.0.0.0:$PORT main:app",
            "gunicorn main:app -w4 --preload --worker-class=uvicorn.workers.UvicornWorker -b 0.0.0.0:$PORT",
            "gunicorn -kuvicorn.workers.UvicornH11Worker --reload main:app --log-config x:y",
        )),
        ("gunicorn uvicorn_app:app", (*PYTHON, "-m", "davit_launch", "-m", "davit_wsgi", "uvicorn_app:app")),
        ("gunicorn -k uvicorn.workers.UvicornWorker app:app", (*PYTHON, "-m", "davit_launch", "-m", "uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8080", "--loop", "asyncio")),
        ("celery -A x worker --pool=threads", (*PYTHON, "-m", "davit_launch", "-m", "celery", "-A", "x", "worker", "--pool=threads")),
        ("node server.js", (*BY_LOADER, "/app/.heroku/node/bin/node", "server.js")),
        (".heroku/static/serve", (*PYTHON, "-m", "davit_launch", "-m", "davit_wsgi", "site_server:application")),
        ("./server # a comment", (*BY_LOADER, "/app/server")),
        ("./escape", (*BY_LOADER, "/app/escape")),
    ],
)  # fmt: skip
def test_what_a_line_becomes(view: View, line: str, argv: tuple[str, ...]) -> None:
    assert translate(view, line).argv == argv


def test_a_python_app_finds_its_packages_and_the_shims(view: View) -> None:
    launch = translate(view, "python app.py")
    assert launch.runtime == "python"
    assert launch.environment["PYTHONHOME"] == "/usr"
    assert launch.environment["PYTHONPATH"].split(":") == ["/etc/davit/python", "/app"]
    assert launch.environment[".site"] == "/app/.heroku/python/lib/python3.13/site-packages"
    assert launch.environment["PATH"].startswith("/app/.heroku/python/bin:/app/.heroku/node/bin:")


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("PYTHONPATH=src gunicorn app:app", ["/app/src"]),
        ("PYTHONPATH=/app/src:$PYTHONPATH python app.py", ["/app/src", "/app"]),
        ("PYTHONPATH=./src/:../lib:/x exec env LANG=de_DE.UTF-8 ./manage.py", ["/app/src", "/lib", "/x"]),
        ("PYTHONPATH= LANG= python app.py", ["/app"]),
        (".heroku/static/serve", ["/app/.heroku/static/packages", "/app/.heroku/static"]),
    ],
)
def test_what_is_assigned_before_a_python_command_reaches_it(view: View, line: str, path: list[str]) -> None:
    """An entry is seen from /app, as in a container, and an empty one is /app."""
    environment = translate(view, line).environment
    assert environment["PYTHONPATH"].split(":") == ["/etc/davit/python", *path]
    assert environment["LANG"] == ("de_DE.UTF-8" if "de_DE" in line else "C.UTF-8")


def test_uvicorn_is_found_where_an_assignment_says(view: View, tmp_path: Path) -> None:
    put(tmp_path / "vendor/uvicorn/__init__.py", b"")
    put(tmp_path / "gunicorn", b"#!/usr/bin/python3\n")
    launch = translate(View(view.stack, tmp_path), "PATH=/app:$PATH PYTHONPATH=vendor gunicorn -k uvicorn.workers.UvicornWorker app:app")
    assert launch.argv[4:8] == ("-m", "davit_launch", "-m", "uvicorn")
    assert launch.environment["PYTHONPATH"] == "/etc/davit/python:/app/vendor"


def test_a_node_app_gets_the_module_that_takes_signals(view: View) -> None:
    launch = osvcommand.translate("node server.js", {**ENVIRONMENT, "NODE_OPTIONS": "--max-old-space-size=99"}, view)
    assert launch.runtime == "node"
    assert launch.environment["NODE_OPTIONS"] == "--require=/etc/davit/node/davit_signals.cjs --max-old-space-size=99"


def test_java_is_the_one_that_the_buildpack_has_put_into_the_slug(view: View, tmp_path: Path) -> None:
    put(tmp_path / "app/.jdk/bin/java", Path("/bin/true").read_bytes())
    java = (LOADER, "--library-path", f"/app/.jdk/lib/server:/app/.jdk/lib:{LIBRARIES}", "/app/.jdk/bin/java")
    launch = translate(View(view.stack, tmp_path / "app"), "java -jar app.jar")
    assert launch.argv == (*java, "-Xint", "-XX:-UsePerfData", "-jar", "app.jar")
    assert (launch.runtime, launch.environment["JAVA_HOME"]) == ("java", "/app/.jdk")
    assert any("with -Xmixed in the command" in note for note in launch.notes)
    compiling = translate(View(view.stack, tmp_path / "app"), "java -Xmixed -jar app.jar")
    assert (compiling.argv, compiling.notes) == ((*java, "-XX:-UsePerfData", "-Xmixed", "-jar", "app.jar"), ())


def test_people_are_told_what_is_done_otherwise(view: View) -> None:
    notes = translate(view, "gunicorn app:app").notes
    assert any("gunicorn forks workers, which OSv cannot" in note for note in notes)
    assert any(".profile.d/other.sh is not run" in note and "python.sh" not in note for note in notes)


def test_uvicorns_options_are_left_out_for_a_reason(view: View) -> None:
    notes = translate(view, "uvicorn app:app --workers 4 --loop uvloop").notes
    assert any("--workers is left out: OSv has one process" in note for note in notes)
    assert any("--loop is left out: on OSv it runs on Python's own event loop" in note for note in notes)


@pytest.mark.parametrize("line", ["./server {a,b}", "./server x{1..3}", "A=~/x ./server", "PATH=/bin:~/x ./server"])
def test_what_only_a_shell_would_expand_is_refused(line: str) -> None:
    with pytest.raises(CommandRefused, match="which needs a shell"):
        osvcommand.split(line, ENVIRONMENT)
    assert osvcommand.split("./server {a} {} x~", ENVIRONMENT)[1:] == ["{a}", "{}", "x~"]


def test_npm_start_is_what_package_json_says(view: View, tmp_path: Path) -> None:
    package = {"scripts": {"start": "./server --port $PORT", "prestart": "x", "piped": "a | b", "loop": "npm run loop"}}
    (tmp_path / "package.json").write_text(json.dumps(package))
    shutil.copy("/bin/true", tmp_path / "server")
    mine = View(view.stack, tmp_path)
    launch = translate(mine, "npm start -- --more")
    assert launch.argv == (*BY_LOADER, "/app/server", "--port", "8080", "--more")
    assert any("would start a shell" in note for note in launch.notes) and any("prestart" in note for note in launch.notes)
    for line, why in (
        ("npm run piped", r"with \|"),
        ("yarn loop", "in a circle"),
        ("npm run none", "no script"),
        ("npm install", "further processes"),
    ):
        with pytest.raises(CommandRefused, match=why):
            translate(mine, line)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a && b", "joins commands with &&"), ("a || b", r"with \|\|"), ("a | b", r"pipes one program into another with \|"),
        ("a; b", "with ;"), ("a &", "in the background"), ("a > /tmp/x", "redirects output"), ("a < x", "redirects input"),
        ("a `b`", "backquotes"), ("a $(b)", r"in \$\(…\)"), ('a "$(b)"', r"in \$\(…\)"), ("(a)", "subshell"), ("ls *.py", "file pattern"),
        ("ls ~", "a ~"), ("a 'b", "quote ' without its end"), ('a "b', 'quote " without its end'), ("a ${X//y/z}", "needs a shell"),
        ("./server $SPACED", r"\$SPACED without quotes"), ("./server \"$NAME $$\"", r"has \$\$"), ("server", "no program “server”"), ("./server ${X:?must be set}", "wants X, which is not set: must be set"),
        ("sh start.sh", "starts the shell sh"), ("bash -c x", "starts the shell bash"), ("cd web && x", "&&"), ("cd web", "a shell's own command"),
        ("./script.sh", "is a script of sh"), ("honcho start", "further processes"), ("npx serve", "further processes"),
        ("celery worker", "celery's workers fork"), ("nothing-there", "no program “nothing-there”"), ("./text", "neither ELF nor"),
        ("python", "without a script"), ("python -I app.py", "option -I keeps Davit's modules"), ("python -uEs app.py", "option -E .* as microvm"), ("python -W error -Sm x", "option -S "),
        ("python -m", "option -m has no value"), ("python -uX", "option -X has no value"), ("python -u --", "without a script"),
        ("python -", "standard input"), ("./circle", "no program"), ("", "names no program"), ("java -jar x", "no program “java”"),
    ],
)  # fmt: skip
def test_what_needs_a_shell_or_a_fork_is_refused_with_a_sentence(view: View, line: str, why: str) -> None:
    with pytest.raises(CommandRefused, match=why):
        translate(view, line)


def test_most_refusals_say_what_to_do_instead(view: View) -> None:
    with pytest.raises(CommandRefused, match=r"microvm \(`davit ps:isolation TYPE=microvm`\)"):
        translate(view, "a | b")


PARTS = st.sampled_from(
    [
        "a",
        "-x",
        "=",
        "'b c'",
        '"d $NAME"',
        "$NAME",
        "${NAME}",
        "${NAME:-z}",
        "${NONE:-z}",
        "${EMPTY-z}",
        "${NONE+z}",
        '"${NAME:+z}"',
        "\\ ",
        "\\$NAME",
        '"\\$x"',
        '"\\a"',
        "'$NAME'",
        '""',
        "''",
        " ",
        "  ",
        "$PORT",
        "é",
        "%",
        "$",
        '"$"',
    ]
)


@given(st.lists(PARTS, min_size=1, max_size=8).map("".join))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_words_are_those_of_a_real_shell(line: str) -> None:
    try:
        words = osvcommand.split(line, ENVIRONMENT)
    except CommandRefused:
        return
    shell = subprocess.run(["/bin/bash", "-c", f"printf '%s\\0' {line}"], env=ENVIRONMENT, capture_output=True)
    expected = [word.decode() for word in shell.stdout.split(b"\0")[:-1]]
    assert words == (expected if words or expected != [""] else [])


def test_symlinks_lead_nowhere_outside(tmp_path: Path) -> None:
    stack, app = tmp_path / "stack", tmp_path / "app"
    put(stack / "etc/inside", b"inside")
    put(tmp_path / "outside", b"outside")
    app.mkdir()
    (app / "up").symlink_to("../../../../../etc/inside")
    (app / "absolute").symlink_to("/etc/inside")
    (app / "out").symlink_to(str(tmp_path / "outside"))
    (app / "dir").symlink_to(str(tmp_path))
    view = View(stack, app)
    assert view.read("/app/up", 99) == view.read("/app/absolute", 99) == b"inside"
    assert view.read("/app/out", 99) == b"" and view.directory("/app/dir") == [] and view.read("/app/dir/outside", 9) == b""


def test_a_static_go_program_is_refused_because_it_would_hang(view: View, tmp_path: Path) -> None:
    """A static ELF with Go's build id, made here: no Go compiler needed."""
    program = bytearray(Path("/bin/true").read_bytes()[:4096])
    program[56:58] = (0).to_bytes(2, "little")  # no segments, so no interpreter
    program[2048:2061] = b"Go build ID: "
    put(tmp_path / "go", bytes(program))
    with pytest.raises(CommandRefused, match="static Go program, which hangs"):
        translate(View(view.stack, tmp_path), "./go")


def test_the_outlook_before_there_is_a_slug() -> None:
    assert "gunicorn forks workers" in (osvcommand.outlook("gunicorn app:app -b 0.0.0.0:$PORT", {}) or "")
    for line, why in (
        ("a | b", "needs a shell"),
        ("sh x.sh", "the shell sh"),
        ("cd web", "shell's own"),
        ("honcho start", "further processes"),
    ):
        assert why in (osvcommand.outlook(line, {}) or ""), line
    assert osvcommand.outlook("A=1 exec python app.py --port ${PORT:-1}", {}) is None
