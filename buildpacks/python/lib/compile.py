"""Builds a Python app: an interpreter, a virtual environment in /app/.heroku/python, Django's static files.

Packages come by uv. A tar of the finished environment is kept in the cache: while interpreter and requirements are the
same, it is unpacked again and nothing is asked of the network.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import editable
import ranges
import sources

FORMAT = "4"
"""Goes into every fingerprint: raise it when what is kept in the cache changes."""
MANAGERS = {
    "uv.lock": "uv",
    "poetry.lock": "Poetry",
    "Pipfile.lock": "Pipenv",
    "requirements.txt": "pip's format",
    "pyproject.toml": "pyproject.toml",
    "setup.py": "setup.py",
    "setup.cfg": "setup.cfg",
}
"""What says which packages to install, the first that is there; with the name of its format."""
MISSPELT = (
    "requirement.txt", "Requirements.txt", "requirements.text", "requirements", "requirments.txt", "requriements.txt",
    "requirements.txt.txt",
)  # fmt: skip
POETRY = ("poetry>=2.1,<3", "poetry-plugin-export>=1.9")
NOT_EXPORTED = re.compile(
    r"PATH|CPATH|CPPATH|LD_PRELOAD|LIBRARY_PATH|LD_LIBRARY_PATH|PYTHONHOME|PYTHONPATH|VIRTUAL_ENV|HOME|STACK|GIT_DIR|UV_CACHE_DIR"
    r"|UV_PROJECT_ENVIRONMENT|UV_PYTHON|BASH_ENV|ENV|IFS"
)
INDEX_SETTINGS = re.compile(r"(UV|PIP)_")


def say(text: str) -> None:
    print(f"-----> {text}", flush=True)


def indent(text: str) -> None:
    print(f"       {text}", flush=True)


def fail(text: str) -> NoReturn:
    print(" !", flush=True)
    for line in text.splitlines():
        print(f" !     {line}", flush=True)
    print(" !", flush=True)
    sys.exit(1)


class App:
    """The app being built, and the directories of the build."""

    def __init__(self, build: Path, cache: Path, env: Path) -> None:
        self.build = build
        self.cache = cache / "python"
        self.tmp = build.parent
        self.home = build / ".heroku" / "python"
        # Paths inside the environment are those of the running app: HOME is /app in both.
        self.final = Path(os.environ["HOME"]) / ".heroku" / "python"
        self.config = {file.name: file.read_text(errors="surrogateescape") for file in env.iterdir()} if env.is_dir() else {}
        self.environment = {
            **os.environ,
            **{name: value for name, value in self.config.items() if not NOT_EXPORTED.fullmatch(name) and "\0" not in value},
            "PATH": f"{self.final}/bin:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.final),
            "UV_CACHE_DIR": str(self.tmp / "uv-cache"),
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_COMPILE_BYTECODE": "1",
            "UV_PROJECT_ENVIRONMENT": str(self.final),
            "UV_NO_CONFIG": self.config.get("UV_NO_CONFIG", "0"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name, own in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_EXTRA_INDEX_URL", "UV_INDEX")):
            if name in self.config:
                self.environment.setdefault(own, self.config[name])

    def also_import_from(self, directories: list[str]) -> None:
        """Packages that stay where they are in the app are found there by what still runs in this build."""
        if directories:
            self.environment["PYTHONPATH"] = os.pathsep.join(directories)

    def text(self, name: str) -> str:
        return (self.build / name).read_text(errors="replace").lstrip("\ufeff")

    def has(self, name: str) -> bool:
        return (self.build / name).is_file()

    def link(self) -> None:
        """Let the environment be at its final path already while it is built."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.final.parent.mkdir(parents=True, exist_ok=True)
        if self.final.is_symlink():
            self.final.unlink()
        if not self.final.exists():
            self.final.symlink_to(self.home)


def main(build: Path, cache: Path, env: Path) -> None:
    app = App(build, cache, env)
    run_hook(app, "pre_compile")
    manager = choose_manager(app)
    version, asked_by = asked_version(app)
    interpreter = Interpreter(app)
    interpreter.choose(version, asked_by)
    check_range(app, manager, interpreter)
    app.link()
    kept = Kept(app, interpreter, manager)
    if not kept.restore():
        install(app, manager, interpreter, kept)
        kept.keep()
    write_profile(app)
    write_export(app)
    collect_static(app)
    run_hook(app, "post_compile")


def run_hook(app: App, name: str) -> None:
    """An app's own steps: Heroku's classic Python buildpack runs bin/pre_compile before all and bin/post_compile after all."""
    hook = app.build / "bin" / name
    if not hook.is_file():
        return
    say(f"Running {name} hook")
    hook.chmod(hook.stat().st_mode | 0o111)
    try:
        status = subprocess.run([hook], cwd=app.build, env=app.environment).returncode
    except OSError as error:
        fail(f"bin/{name} cannot be run: {error.strerror}. Does it begin with a line such as #!/usr/bin/env bash?")
    if status:
        fail(f"bin/{name} ended with status {status}.")


def choose_manager(app: App) -> str | None:
    """The file that says which packages to install."""
    found = [name for name in MANAGERS if app.has(name)]
    if "pyproject.toml" in found and not lists_dependencies(app):
        found.remove("pyproject.toml")
    if "setup.cfg" in found and not names_project(app):
        found.remove("setup.cfg")
    if not found:
        for name in MISSPELT:
            if app.has(name):
                fail(f"There is a file named “{name}”. Python's packages are listed in “requirements.txt”; rename it and push again.")
        if app.has("Pipfile"):
            fail("There is a Pipfile but no Pipfile.lock. Run `pipenv lock`, commit Pipfile.lock and push again.")
        if app.has("pdm.lock"):
            fail("PDM's lock file cannot be read here. Run `pdm export -o requirements.txt --prod`, commit it and push again.")
    return found[0] if found else None


def lists_dependencies(app: App) -> bool:
    document = toml(app, "pyproject.toml")
    tools = document.get("tool", {})
    if "project" not in document and "poetry" in tools and not app.has("poetry.lock") and not app.has("requirements.txt"):
        fail("pyproject.toml is Poetry's, but there is no poetry.lock. Run `poetry lock`, commit poetry.lock and push again.")
    return "project" in document


def names_project(app: App) -> bool:
    """Whether setup.cfg is setuptools', and not only what flake8 or another tool keeps there."""
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(app.text("setup.cfg"))
    except configparser.Error:
        return False
    return parser.has_option("metadata", "name") or parser.has_option("options", "install_requires")


def toml(app: App, name: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(app.text(name))
    except tomllib.TOMLDecodeError as error:
        fail(f"{name} is not valid TOML: {error}.")


# --- the interpreter ---


def asked_version(app: App) -> tuple[str | None, str]:
    """The Python that the app asks for (``3.12``, ``3.12.4``), and the file that does."""
    for name, prefix in (("runtime.txt", "python-"), (".python-version", "")):
        if not app.has(name):
            continue
        lines = [line.split("#")[0].strip() for line in app.text(name).splitlines()]
        lines = [line for line in lines if line]
        text = lines[0].removeprefix(prefix).removeprefix("python-").removeprefix("cpython-") if lines else ""
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?", text):
            example = f"{prefix}{platform.python_version().rpartition('.')[0]}"
            fail(f"{name} holds “{lines[0][:60] if lines else ''}”, which is no Python version. It should hold, for example: {example}")
        return text, name
    if app.has("Pipfile.lock"):
        requires = pipfile(app).get("_meta", {}).get("requires", {})
        if version := requires.get("python_full_version") or requires.get("python_version"):
            return version, "Pipfile.lock"
    return None, ""


def check_range(app: App, manager: str | None, interpreter: Interpreter) -> None:
    """Refuse a Python that the project excludes: installers pass over every package that such a project lists, without a word."""
    if manager not in ("uv.lock", "poetry.lock", "pyproject.toml"):
        return
    document = toml(app, "pyproject.toml") if app.has("pyproject.toml") else {}
    poetry = document.get("tool", {}).get("poetry", {}).get("dependencies", {}) if manager == "poetry.lock" else {}
    for wanted in (document.get("project", {}).get("requires-python"), poetry.get("python")):
        try:
            if not isinstance(wanted, str) or ranges.allows(wanted, interpreter.version):
                continue
        except ranges.UnknownRange:
            continue  # the installer's to say
        fail(
            f"pyproject.toml asks for Python {wanted}, and this app is built with Python {interpreter.version}.\n"
            "Commit a file .python-version with a version that fits, or let pyproject.toml allow this one (and lock again)."
        )


class Interpreter:
    """The Python that the app runs on: the stack's, or one that uv fetched into the app."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.path = Path("/usr/bin/python3")
        self.version = platform.python_version()
        self.minor = self.version.rpartition(".")[0]
        self.own = False

    def choose(self, version: str | None, asked_by: str) -> None:
        if version is None:
            say(f"No Python version was asked for: using the stack's, Python {self.version}")
            indent(f"To keep to it, commit a file named .python-version that holds {self.minor}")
        elif version in (self.version, self.minor):
            say(f"Using Python {self.version}, asked for by {asked_by}")
        elif version.startswith(self.minor + "."):
            say(f"Using Python {self.version}: {asked_by} asks for {version}, and the stack has a later patch of {self.minor}")
        else:
            self._fetch(version, asked_by)

    def _fetch(self, version: str, asked_by: str) -> None:
        say(f"Installing Python {version}, asked for by {asked_by}")
        app = self.app
        directory, kept = app.build / ".heroku" / "pythons", app.cache / f"python-{version}.tar"
        directory.mkdir(parents=True, exist_ok=True)
        if kept.is_file():
            unpack(kept, directory)
        else:
            self._download(version, asked_by, directory)
        found = next((path for path in sorted(directory.glob("*/bin/python3")) if not path.parent.parent.is_symlink()), None)
        if found is None:
            fail(f"Python {version} was installed, but its program is not where it should be.")
        if not kept.is_file():
            pack(directory, kept)
        final = Path(os.environ["HOME"]) / ".heroku" / "pythons"
        if not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            final.symlink_to(directory)
        self.path, self.own = final / found.relative_to(directory), True
        self.version = subprocess.run([found, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True).stdout.strip()
        self.minor = self.version.rpartition(".")[0]

    def _download(self, version: str, asked_by: str, directory: Path) -> None:
        environment = {**self.app.environment, "UV_PYTHON_DOWNLOADS": "manual", "UV_PYTHON_INSTALL_BIN": "0", "UV_HTTP_TIMEOUT": "60"}
        done = subprocess.run(
            ["uv", "python", "install", "--install-dir", str(directory), version],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode == 0:
            return
        for line in done.stderr.splitlines()[:6]:
            indent(line)
        fail(
            f"Python {version}, which {asked_by} asks for, could not be had.\n"
            f"The stack {os.environ.get('STACK', '')} comes with Python {self.version}; others are downloaded by uv from its mirror,\n"
            f"which did not work (see above). Ask for {self.minor} in {asked_by}, or make the download possible\n"
            "(the config var UV_PYTHON_INSTALL_MIRROR names another mirror)."
        )


# --- packages ---


class Kept:
    """The environment as the cache keeps it."""

    def __init__(self, app: App, interpreter: Interpreter, manager: str | None) -> None:
        self.app = app
        self.tar = app.cache / "environment.tar"
        self.note = app.cache / "environment.json"
        self.manager = manager
        self.base = {"format": FORMAT, "python": interpreter.version, "machine": platform.machine(), "stack": os.environ.get("STACK", "")}
        self.fingerprint = fingerprint(app, manager, self.base)

    def restore(self) -> bool:
        """Unpack what was kept; whether it is exactly what this app needs."""
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return False
        if note.get("base") != self.base or not unpack(self.tar, self.app.home):
            return False
        if self.fingerprint is not None and note.get("fingerprint") == self.fingerprint:
            say(f"Restored {note.get('packages', 'the')} packages from the cache; {self.manager or 'the app'} is unchanged")
            self.app.also_import_from([str(self.app.build / name) for name in note.get("import_from", [])])
            return True
        return False

    def keep(self) -> None:
        import_from = settle_editable(self.app)
        self.app.also_import_from(import_from)
        pack(self.app.home, self.tar)
        note = {
            "base": self.base, "fingerprint": self.fingerprint,
            "packages": len(list(self.app.home.glob("lib/python*/site-packages/*.dist-info"))),
            "import_from": [os.path.relpath(name, self.app.build) for name in import_from],
        }  # fmt: skip
        self.note.write_text(json.dumps(note))


def settle_editable(app: App) -> list[str]:
    home = app.final.parent.parent
    return [name for packages in app.home.glob("lib/python*/site-packages") for name in editable.settle(packages, app.build, home)]


def fingerprint(app: App, manager: str | None, base: dict[str, str]) -> str | None:
    """What decides which packages are installed; None when files of the app itself do."""
    digest = hashlib.sha256(json.dumps([base, manager], sort_keys=True).encode())
    settings = sorted((name, value) for name, value in app.config.items() if INDEX_SETTINGS.match(name))
    digest.update(repr(settings).encode(errors="surrogateescape"))
    if manager is None:
        return digest.hexdigest()
    uv = uv_settings(app)
    if not sources.settings_decide(uv):
        return None
    digest.update(json.dumps(uv, sort_keys=True, default=str).encode())
    if manager == "requirements.txt":
        contents = requirement_files(app, app.build / manager)
        if not all(sources.line_decides(line) for content in contents.values() for line in sources.lines_of(content)):
            return None
        for path in sorted(contents):
            digest.update(f"{os.path.relpath(path, app.build)}\0".encode() + contents[path] + b"\0")
        return digest.hexdigest()
    if not list_decides(app, manager):
        return None
    for name in (manager, "pyproject.toml"):
        if app.has(name):
            digest.update((app.build / name).read_bytes() + b"\0")
    if manager == "poetry.lock" and is_package(app):  # where Poetry finds its code: at the top or in src/
        digest.update(repr(sorted(entry.name for directory in (app.build, app.build / "src") for entry in directory.glob("*"))).encode())
    return digest.hexdigest()


def list_decides(app: App, manager: str) -> bool:
    """Whether what is installed is decided by the list of packages alone (see :mod:`sources`)."""
    if manager == "uv.lock":
        return sources.uv_lock_decides(toml(app, manager))
    if manager == "poetry.lock":
        return sources.poetry_lock_decides(toml(app, manager)) and not built_by_code(app)
    if manager == "Pipfile.lock":
        return sources.pipfile_lock_decides(pipfile(app))
    return manager == "pyproject.toml" and sources.pyproject_decides(toml(app, manager))


def uv_settings(app: App) -> dict[str, Any]:
    """What the app's files tell uv: uv.toml, else [tool.uv]. A pyproject.toml that is no TOML says nothing; who needs it refuses it."""
    import tomllib

    try:
        if app.has("uv.toml"):
            return tomllib.loads(app.text("uv.toml"))
        return tomllib.loads(app.text("pyproject.toml")).get("tool", {}).get("uv", {}) if app.has("pyproject.toml") else {}
    except tomllib.TOMLDecodeError:
        return {}


def requirement_files(app: App, path: Path, seen: dict[Path, bytes] | None = None) -> dict[Path, bytes]:
    """A requirements file and those that it includes."""
    seen = {} if seen is None else seen
    path = Path(os.path.normpath(path))
    if path in seen or len(seen) > 100:
        return seen
    try:
        seen[path] = path.read_bytes()
    except OSError:
        return seen  # uv says it better
    for line in sources.lines_of(seen[path]):
        if included := sources.included_by(line):
            requirement_files(app, path.parent / included, seen)
    return seen


def install(app: App, manager: str | None, interpreter: Interpreter, kept: Kept) -> None:
    if not (app.home / "pyvenv.cfg").is_file():
        quiet(app, ["uv", "venv", "--quiet", "--allow-existing", "--no-project", "--python", str(interpreter.path), str(app.final)])
    if manager is None:
        indent("There is no requirements.txt (or uv.lock, poetry.lock, Pipfile.lock): no packages are installed")
        return
    say(f"Installing packages from {manager} with uv")
    if manager == "uv.lock":
        frozen = ["uv", "sync", "--locked", "--no-default-groups", "--no-editable", "--python", str(interpreter.path)]
        run_uv(app, frozen, manager)
        return
    if manager == "pyproject.toml":
        run_uv(app, ["uv", "pip", "install", "--exact", "--requirements", manager], manager)
        return
    ask_indexes_as_pip_does(app)
    if manager == "poetry.lock":
        run_uv(app, ["uv", "pip", "install", "--exact", "--requirements", str(from_poetry(app))], manager)
        install_project(app)
    elif manager == "Pipfile.lock":
        run_uv(app, ["uv", "pip", "install", "--exact", "--requirements", str(from_pipfile(app))], manager)
    elif manager == "requirements.txt":
        with repositories_not_editable(app):
            run_uv(app, ["uv", "pip", "install", "--exact", "--requirements", manager], manager)
    else:
        with setup_py(app):
            run_uv(app, ["uv", "pip", "install", "--exact", "."], manager)


def ask_indexes_as_pip_does(app: App) -> None:
    """These lists are written for pip, which takes the best version of all indexes; uv asks the first that knows the name."""
    if "index-strategy" not in {**uv_settings(app), **uv_settings(app).get("pip", {})}:
        app.environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")


@contextmanager
def repositories_not_editable(app: App) -> Iterator[None]:
    """Take `-e` from repositories' lines, as `pip freeze` writes them, while uv reads the files: it knows that of directories only."""
    written = {path: content for path, content in requirement_files(app, app.build / "requirements.txt").items() if editable.of_repositories(content) != content}
    for path, content in written.items():
        path.write_bytes(editable.of_repositories(content))
    yield
    for path, content in written.items():
        path.write_bytes(content)


@contextmanager
def setup_py(app: App) -> Iterator[None]:
    """A project that has only a setup.cfg gets the setup.py that installers look for while it is installed."""
    script = app.build / "setup.py"
    if script.exists() or app.has("pyproject.toml"):
        yield
        return
    script.write_text("import setuptools\n\nsetuptools.setup()\n")
    yield
    script.unlink()


def is_package(app: App) -> bool:
    """Whether Poetry installs the project itself beside its dependencies: its package mode, which is on unless it is turned off."""
    document = toml(app, "pyproject.toml") if app.has("pyproject.toml") else {}
    return "build-system" in document and document.get("tool", {}).get("poetry", {}).get("package-mode", True) is not False


def built_by_code(app: App) -> bool:
    """Whether code of the app decides what is installed of the project itself."""
    if not is_package(app):
        return False
    document = toml(app, "pyproject.toml")
    own = str(document["build-system"].get("build-backend", "")).startswith("poetry.")
    return not own or "build" in document.get("tool", {}).get("poetry", {})


def install_project(app: App) -> None:
    """The project itself, where it is: a src/ folder is found, and its scripts are commands."""
    if not is_package(app):
        return
    argv = ["uv", "pip", "install", "--no-deps", "--editable", "."]
    done = subprocess.run(
        argv, cwd=app.build, env=app.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )  # fmt: skip
    if done.returncode and "No file/folder found for package" in done.stdout:
        indent("The project itself is not installed: Poetry finds no package in it (package-mode = false would say that there is none)")
        return
    for line in done.stdout.splitlines():
        indent(line.replace(str(app.build), "."))
    if done.returncode:
        fail(explain(done.stdout, "pyproject.toml"))


def from_poetry(app: App) -> Path:
    listing = app.tmp / "poetry-requirements.txt"
    main, *plugins = POETRY
    argv = ["uv", "tool", "run", "--quiet", "--from", main]
    for plugin in plugins:
        argv += ["--with", plugin]
    argv += ["poetry", "export", "--quiet", "--only=main", "--format=requirements.txt", f"--output={listing}"]
    environment = {name: value for name, value in app.environment.items() if name not in ("VIRTUAL_ENV", "UV_COMPILE_BYTECODE")}
    done = subprocess.run(argv, cwd=app.build, env={**environment, "POETRY_VIRTUALENVS_CREATE": "false"}, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        fail("poetry.lock could not be read (see above). Run `poetry lock`, commit poetry.lock and push again.")
    return listing


def pipfile(app: App) -> dict[str, Any]:
    try:
        document = json.loads(app.text("Pipfile.lock"))
    except ValueError:
        fail("Pipfile.lock is not valid JSON. Run `pipenv lock`, commit it and push again.")
    return document if isinstance(document, dict) else {}


def from_pipfile(app: App) -> Path:
    """Pipfile.lock's default section as a requirements file (what `pipenv requirements --hash` prints)."""
    document = pipfile(app)
    sources = [source["url"] for source in document.get("_meta", {}).get("sources", []) if "url" in source]
    lines = [f"{'--extra-index-url' if number else '--index-url'} {os.path.expandvars(url)}" for number, url in enumerate(sources)]
    hashed = all("hashes" in entry for entry in document.get("default", {}).values())
    for name, entry in document.get("default", {}).items():
        extras = f"[{','.join(entry['extras'])}]" if entry.get("extras") else ""
        if "git" in entry:
            line = f"{name}{extras} @ git+{entry['git']}@{entry.get('ref', 'HEAD')}"
        elif "path" in entry:
            line = f"{'-e ' if entry.get('editable') else ''}{entry['path']}{extras}"
        elif "file" in entry:
            line = f"{name}{extras} @ {entry['file']}"
        else:
            line = f"{name}{extras}{entry.get('version', '').replace('*', '')}"
        marker = f" ; {entry['markers']}" if entry.get("markers") else ""
        hashes = "".join(f" --hash={digest}" for digest in entry.get("hashes", [])) if hashed else ""
        lines.append(line + marker + hashes)
    listing = app.build / ".davit-pipfile-requirements.txt"  # beside Pipfile.lock: its paths are relative to that
    listing.write_text("\n".join(lines) + "\n")
    return listing


def run_uv(app: App, argv: list[str], manager: str) -> None:
    """Run uv, show what it prints, and add to a failure what a person can do about it."""
    process = subprocess.Popen(
        argv, cwd=app.build, env=app.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )  # fmt: skip
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        indent(line.rstrip("\n").replace(str(app.build) + "/", ""))
    (app.build / ".davit-pipfile-requirements.txt").unlink(missing_ok=True)
    if process.wait() != 0:
        fail(explain("".join(printed), manager))


def explain(printed: str, manager: str) -> str:
    printed = " ".join(re.sub(r"[│╰├─▶×]", " ", printed).split())
    if elsewhere := re.search(r"`(\S+)` was found on (\S+?),? but not at the requested version", printed):
        return (
            f"“{elsewhere[1]}” is in the index {elsewhere[2]}, but not in the version that is asked for, and uv asks no other for it then.\n"
            "The config var UV_INDEX_STRATEGY=unsafe-best-match lets it take the best version of all indexes, as pip does."
        )
    if missing := re.search(r"[Bb]ecause (\S+) was not found in the (?:package registry|provided package locations)", printed):
        return f"There is no package named “{missing[1]}”. Is its name in {manager} spelt as on PyPI?"
    if re.search(r"lockfile (at `[^`]*` )?needs to be updated", printed):
        return "uv.lock does not fit pyproject.toml. Run `uv lock`, commit uv.lock and push again."
    if gone := re.search(r"[Bb]ecause there is no version of (\S+?==[^\s,]+)", printed):
        return f"There is no {gone[1]}. PyPI's page of it lists the versions there are; change it in {manager}."
    if "No solution found" in printed:
        return f"The packages in {manager} do not go together: uv says above which ask for what. Loosen one of them."
    if "Failed to build" in printed or "failed to build" in printed:
        return "A package could not be compiled (see above). Often a newer version of it comes compiled for this Python."
    if re.search(r"Couldn't parse requirement|Expected .* found|Unexpected", printed):
        return f"{manager} has a line that is no requirement; uv names it above."
    if re.search(r"Failed to fetch|dns error|error sending request", printed):
        return "The package index did not answer (see above). Push again; when it goes on, look at the host's network."
    return f"The packages in {manager} could not be installed; the reason is above."


def quiet(app: App, argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=app.tmp, env=app.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{' '.join(argv[:2])} failed: {done.stderr.strip()}")


def unpack(tar: Path, directory: Path) -> bool:
    """Whether the tar could be unpacked; what is left of it otherwise is removed."""
    if not tar.is_file():
        return False
    directory.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["tar", "-xf", tar, "-C", directory], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
        return True
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    return False


def pack(directory: Path, tar: Path) -> None:
    tar.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["tar", "-cf", tar, "-C", directory, "."], stdin=subprocess.DEVNULL).returncode != 0:
        tar.unlink(missing_ok=True)


# --- what comes after ---


def write_profile(app: App) -> None:
    profile = app.build / ".profile.d" / "python.sh"
    profile.parent.mkdir(exist_ok=True)
    shutil.copyfile(Path(__file__).parent / "profile.sh", profile)


def write_export(app: App) -> None:
    export = Path(__file__).resolve().parent.parent / "export"
    lines = [f'export PATH="{app.final}/bin:$PATH"', f'export VIRTUAL_ENV="{app.final}"']
    if import_from := app.environment.get("PYTHONPATH"):
        lines.append(f'export PYTHONPATH="{import_from}${{PYTHONPATH:+:$PYTHONPATH}}"')
    export.write_text("\n".join(lines) + "\n")


def collect_static(app: App) -> None:
    if app.config.get("DISABLE_COLLECTSTATIC", "0") not in ("", "0"):
        return
    if not any(app.home.glob("lib/python*/site-packages/django/__init__.py")):
        return
    manage = next((app.build / p for p in ("manage.py",) if app.has(p)), None) or next(iter(sorted(app.build.glob("*/manage.py"))), None)
    if manage is None:
        return
    say("$ python " + os.path.relpath(manage, app.build) + " collectstatic --noinput")
    paths = [str(app.build), app.environment.get("PYTHONPATH"), app.config.get("PYTHONPATH")]
    environment = {**app.environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    done = subprocess.run(
        ["python", manage, "collectstatic", "--noinput", "--traceback"],
        cwd=app.build, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    if "Unknown command: 'collectstatic'" in done.stdout:
        indent("django.contrib.staticfiles is not installed; there is nothing to collect")
        return
    for line in done.stdout.splitlines():
        if line.strip():
            indent(line)
    if done.returncode != 0:
        fail(
            "Collecting Django's static files failed; the reason is above.\n"
            "Config vars that the app needs to start must be set before the push.\n"
            "To build without this step: davit config:set DISABLE_COLLECTSTATIC=1"
        )
