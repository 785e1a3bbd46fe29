"""The bundled buildpacks on small apps, with the real uv and npm and the real registries."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pip._internal.models.index import PyPI

from tests.builder.building import REPOSITORY, Built, build_root, run_inside, tar_of, tar_of_directory
from tests.conftest import wait_until

sys.path.insert(0, str(REPOSITORY / "buildpacks" / "nodejs" / "lib"))
sys.path.insert(0, str(REPOSITORY / "buildpacks" / "python" / "lib"))
import ranges
import semver
import sources

PYTHON = ".".join(subprocess.run(["/usr/bin/python3", "-V"], capture_output=True, text=True).stdout.split()[1].split(".")[:2])
TINY = "itsdangerous==2.2.0\n"


@pytest.fixture
def root() -> Iterator[Path]:
    with build_root() as path:
        yield path


def build(root: Path, source: dict[str, str] | bytes, **more: object) -> Built:
    uv = Path(sys.executable).parent  # the stack has uv in its PATH
    # TMPDIR: Yarn leaves directories there, in a build as well, whose /tmp is its own
    environment = {"PATH": f"{uv}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": f"{root}/tmp"}
    return run_inside(root, source if isinstance(source, bytes) else tar_of(source), environment=environment, **more)  # type: ignore[arg-type]


def done(built: Built) -> Built:
    assert built.end["event"] == "done", built.output
    return built


def refused(built: Built) -> str:
    assert built.end["event"] == "failed", built.output
    return built.output


def as_home(built: Built) -> Path:
    """The built app where the build's HOME was."""
    home = built.root / "app"
    if not home.is_symlink():
        shutil.rmtree(home, ignore_errors=True)
        home.symlink_to(built.app)
    return home


def run(built: Built, command: str, **env: str) -> str:
    """A command in the built app, started as a dyno is: /app is where the build's HOME was."""
    home = as_home(built)
    script = f'cd "$HOME"; for f in .profile.d/*.sh; do . "./$f"; done; {command}'
    full = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", **env}
    return subprocess.run(["bash", "-c", script], env=full, check=True, capture_output=True, text=True, timeout=180).stdout.strip()


# --- python ---


def test_hooks_of_the_app_run_before_and_after_all(root: Path) -> None:
    hook = "#!/bin/sh\ncommand -v python > {0}.txt; echo says {0} $SECRET\n"
    source = {
        "requirements.txt": TINY, "bin/pre_compile": hook.format("pre"), "bin/post_compile": hook.format("post") + "exit 3\n"
    }  # fmt: skip
    said = refused(build(root, source, config={"SECRET": "5"}))
    assert said.index("Running pre_compile hook") < said.index("says pre 5") < said.index("itsdangerous") < said.index("says post 5")
    assert "bin/post_compile ended with status 3." in said


def test_flask_example_runs_from_its_slug(root: Path) -> None:
    files = {path.name: path.read_text() for path in (REPOSITORY / "examples/flask").iterdir() if path.name != ".python-version"}
    built = done(build(root, files))
    assert "-----> Python app detected" in built.output and " + flask==" in built.output
    assert built.content("procfile") == "web: gunicorn app:app\n"
    assert run(built, "gunicorn --version").startswith("gunicorn (version")
    assert (
        run(built, "echo $WEB_CONCURRENCY:$PYTHONUNBUFFERED:$(command -v python)", WEB_CONCURRENCY="7")
        == f"7:true:{root}/app/.heroku/python/bin/python"
    )


def test_unchanged_requirements_come_from_the_cache_without_the_network(root: Path) -> None:
    source = {"requirements.txt": TINY, "app.py": "1"}
    done(build(root, source))
    stamp = (root / "cache/python/environment.tar").stat().st_mtime_ns
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9"}
    built = done(
        run_inside(root, tar_of({**source, "app.py": "2"}), environment={"PATH": "/usr/bin:/bin", **offline})
    )  # no uv either
    assert "Restored 1 packages from the cache" in built.output
    assert run(built, "python -c 'import itsdangerous; print(1)'") == "1"
    assert (root / "cache/python/environment.tar").stat().st_mtime_ns == stamp


def test_changed_requirements_are_installed_and_what_is_no_longer_asked_for_goes(root: Path) -> None:
    done(build(root, {"requirements.txt": TINY}))
    built = done(build(root, {"requirements.txt": "-r more.txt\n", "more.txt": "blinker==1.9.0\n"}))
    assert "- itsdangerous==2.2.0" in built.output and "+ blinker==1.9.0" in built.output
    assert "Installing" in done(build(root, {"requirements.txt": "-r more.txt\n", "more.txt": TINY})).output


def test_a_damaged_cache_is_no_reason_to_fail(root: Path) -> None:
    done(build(root, {"requirements.txt": TINY}))
    (root / "cache/python/environment.tar").write_bytes(b"damaged" * 1000)
    assert "+ itsdangerous" in done(build(root, {"requirements.txt": TINY})).output
    (root / "cache/python/environment.json").write_text("{")
    assert "Installing" in done(build(root, {"requirements.txt": TINY})).output


def test_uv_lock_is_installed_as_locked(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nname = "x"\nversion = "1"\nrequires-python = ">={PYTHON}"\ndependencies = ["itsdangerous<2.2"]\n[dependency-groups]\ndev = ["blinker"]\n'  # noqa: E501
    )
    subprocess.run(
        [Path(sys.executable).parent / "uv", "lock", "--quiet", "--python", "/usr/bin/python3"], cwd=tmp_path, check=True
    )
    source = {name: (tmp_path / name).read_text() for name in ("pyproject.toml", "uv.lock")}
    built = done(build(root, source))
    assert "+ itsdangerous==2.1.2" in built.output and "blinker" not in built.output
    assert "Restored" in done(build(root, source)).output
    stale = {**source, "pyproject.toml": source["pyproject.toml"].replace("<2.2", "<2.1")}
    assert "uv.lock does not fit pyproject.toml" in refused(build(root, stale))


POETRY_BACKEND = """[build-system]
requires = ["poetry-core"]
build-backend = "poetry.core.masonry.api"
"""
POETRY = {
    "pyproject.toml": """[project]
name = "shop"
version = "1"
requires-python = ">=3.10"
dependencies = ["itsdangerous (==2.1.2)", "mylib"]

[project.scripts]
shop = "shop:main"

[tool.poetry.dependencies]
mylib = {path = "libs/mylib"}

[tool.poetry.group.dev.dependencies]
blinker = "1.9.0"

"""
    + POETRY_BACKEND,
    "poetry.lock": """[[package]]
name = "blinker"
version = "1.9.0"
description = ""
optional = false
python-versions = ">=3.9"
groups = ["dev"]
files = []

[[package]]
name = "itsdangerous"
version = "2.1.2"
description = ""
optional = false
python-versions = ">=3.7"
groups = ["main"]
files = [
    {file = "itsdangerous-2.1.2-py3-none-any.whl", hash = "sha256:WHEEL"},
]

[[package]]
name = "mylib"
version = "1"
description = ""
optional = false
python-versions = "*"
groups = ["main"]
files = []
develop = false

[package.source]
type = "directory"
url = "libs/mylib"

[metadata]
lock-version = "2.1"
python-versions = ">=3.10"
content-hash = "fc627dc18a576dd43d2e8d188eeb6152d12beaf2dc2659e9d41325fe4aa8940b"
""".replace("WHEEL", "2c2349112351b88699d8d4b6b075022c0808887cb7ad10069318a8b0bc88db44"),
    "src/shop/__init__.py": "import mylib\n\ndef main():\n    print(mylib.VALUE)\n",
    "libs/mylib/pyproject.toml": f'[project]\nname = "mylib"\nversion = "1"\n{POETRY_BACKEND}',
    "libs/mylib/mylib.py": "VALUE = 'first'\n",
}


def test_poetry_lock_is_installed_as_locked_with_the_project_and_the_code_of_the_app(root: Path) -> None:
    built = done(build(root, POETRY))
    assert "+ itsdangerous==2.1.2" in built.output and "blinker" not in built.output
    assert run(built, "shop") == "first"
    assert json.loads((root / "cache/python/environment.json").read_text())["fingerprint"] is None  # mylib may change
    stale = {**POETRY, "pyproject.toml": POETRY["pyproject.toml"].replace("==2.1.2", "==2.2.0")}
    assert "Run `poetry lock`" in refused(build(root, stale))


SETUPTOOLS = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'


def test_code_of_the_app_that_pyproject_toml_names_is_installed_anew(root: Path) -> None:
    source = {
        "pyproject.toml": '[project]\nname = "x"\nversion = "1"\ndependencies = ["mylib"]\n[tool.uv.sources]\nmylib = {path = "libs/mylib"}\n',  # noqa: E501
        "libs/mylib/pyproject.toml": f'[project]\nname = "mylib"\nversion = "1"\n{POETRY_BACKEND}',
        "libs/mylib/mylib.py": "VALUE = 'first'\n",
    }
    done(build(root, source))
    built = done(build(root, {**source, "libs/mylib/mylib.py": "VALUE = 'second'\n"}))
    assert run(built, "python -c 'import mylib; print(mylib.VALUE)'") == "second"


def test_editable_packages_are_where_the_running_app_has_them(root: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "pyproject.toml").write_text(f'[project]\nname = "far"\nversion = "1"\n{SETUPTOOLS}')
    (repository / "far.py").write_text("")
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=1"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    source = {
        "requirements.txt": f"-e .\n-e ./near\n-e git+file://{repository}@{commit}#egg=far\n",
        "pyproject.toml": f'[project]\nname = "own"\nversion = "1"\n{SETUPTOOLS}', "src/own/__init__.py": "",
        "near/pyproject.toml": f'[project]\nname = "near"\nversion = "1"\n{SETUPTOOLS}', "near/near/__init__.py": "",
        "near/near/data.txt": "not in the package",
        "bin/post_compile": "#!/bin/sh\npython -c 'import own, near; print(\"found\", near.__file__)'\n",
    }  # fmt: skip
    built = done(build(root, source))
    assert f"found {root}/tmp/build_" in built.output
    assert (built.app / "requirements.txt").read_text() == source["requirements.txt"]
    program = "import own, near, far; print(*(module.__file__ for module in (own, near)))"
    assert run(built, f"cd /; python -c '{program}'", PYTHONPATH="/nowhere") == f"{root}/app/src/own/__init__.py {root}/app/near/near/__init__.py"
    assert not subprocess.run(["grep", "-rl", "/tmp/build_", built.app / ".heroku"], capture_output=True, text=True).stdout


@pytest.fixture
def old_index(tmp_path: Path) -> Iterator[str]:
    """An index that has an old version of a package only."""
    page = tmp_path / "simple/itsdangerous/index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<a href='itsdangerous-1.0-py3-none-any.whl'>itsdangerous-1.0-py3-none-any.whl</a>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


def test_a_second_index_means_what_it_means_to_pip(root: Path, old_index: str) -> None:
    source = {"requirements.txt": f"--extra-index-url {old_index}\n{TINY}"}
    printed = refused(build(root, source, config={"UV_INDEX_STRATEGY": "first-index"}))
    assert f"“itsdangerous” is in the index {old_index}, but not in the version that is asked for" in printed
    assert "+ itsdangerous==2.2.0" in done(build(root, source)).output


def test_a_setup_cfg_alone_is_a_project_when_it_names_one(root: Path) -> None:
    project = "[metadata]\nname = x\nversion = 1\n[options]\npy_modules = m\ninstall_requires = itsdangerous==2.2.0\n"
    built = done(build(root, {"setup.cfg": project, "m.py": ""}))
    assert "+ itsdangerous==2.2.0" in built.output and not (built.app / "setup.py").exists()
    assert "no packages are installed" in done(build(root, {"setup.cfg": "[flake8]\nignore = E501\n"})).output


@pytest.mark.parametrize(
    ("line", "decides"),
    [
        ("flask==3.0.0", True), ("flask >= 2 ; python_version > '3'", True), ("-r more.txt", True), ("--no-binary :all:", True),
        ("--extra-index-url https://host/simple", True), ("https://host/x.whl", True), ("x @ https://host/x.zip ; extra == 'a'", True),
        ("-e .", False), ("./lib", False), ("libs/mylib", False), ("libs/mylib ; python_version > '3'", False), ("x-1-py3-none-any.whl", False),
        ("x @ file:///lib", False), ("x @ libs/mylib", False), ("--find-links wheels", False), ("-i file:///simple", False),
        ("-r https://host/more.txt", False), ("--constraint=https://host/pins.txt", False), ("-c pins.txt", True),
        ("git+https://host/x.git", False), ("x @ git+https://host/x@main", False), ("git+git@host:a/b.git", False),
        (f"git+https://host/x.git@{'a' * 40}", True), (f"-e git+https://host/x.git@{'a' * 40}#egg=x", True),
    ],
)  # fmt: skip
def test_only_lines_that_decide_what_is_installed_are_taken_from_the_cache(line: str, decides: bool) -> None:
    assert sources.line_decides(line) is decides


@pytest.mark.parametrize(
    ("range", "version", "fits"),
    [
        (">=3.11,<3.13", "3.13.5", False), (">=3.11,<3.13", "3.12.9", True), (">= 3.9", "3.13.0", True), (">=3.9 <3.12", "3.12.0", False),
        ("^3.11", "3.13.5", True), ("^3.11", "4.0.0", False), ("~3.11", "3.12.0", False), ("~=3.11", "3.13.5", True), ("~=3.11.2", "3.12.0", False),
        ("3.12.*", "3.12.1", True), ("==3.12.*", "3.13.0", False), ("!=3.13.*,>=3.9", "3.13.2", False), ("^3.9 || ^4", "3.13.0", True), ("*", "3.1.0", True),
        (">=3.14", "3.14.0rc1", True), ("!=3.13", "3.13.2", True), ("!=3.13", "3.13.0", False), ("==3.13", "3.13.2", True),
    ],
)  # fmt: skip
def test_ranges_of_python_mean_what_they_mean_to_their_tools(range: str, version: str, fits: bool) -> None:
    assert ranges.allows(range, version) is fits


def test_pipfile_lock_is_installed_as_locked(root: Path) -> None:
    digests = ["sha256:c6242fc49e35958c8b15141343aa660db5fc54d4f13a1db01a3f5891b98700ef"]
    lock = {
        "_meta": {
            "requires": {"python_version": PYTHON},
            "sources": [{"url": PyPI.simple_url, "verify_ssl": True, "name": "pypi"}],
        },
        "default": {"itsdangerous": {"hashes": digests, "version": "==2.2.0", "markers": "python_version >= '3.8'"}},
        "develop": {"blinker": {"version": "==1.9.0"}},
    }
    built = done(build(root, {"Pipfile": "", "Pipfile.lock": json.dumps(lock)}))
    assert (
        "asked for by Pipfile.lock" in built.output and "+ itsdangerous==2.2.0" in built.output and "blinker" not in built.output
    )
    shutil.rmtree(root / "cache")
    lock["default"]["itsdangerous"]["hashes"] = ["sha256:" + "0" * 64]  # type: ignore[index]
    assert "Hash mismatch" in refused(build(root, {"Pipfile.lock": json.dumps(lock)}))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"requirements.txt": "flsak-that-is-not-there\n"}, "There is no package named “flsak-that-is-not-there”"),
        ({"requirements.txt": "itsdangerous==99.0\n"}, "There is no itsdangerous==99.0"),
        ({"requirements.txt": "itsdangerous==2.2.0\nitsdangerous==2.1.2\n"}, "do not go together"),
        ({"requirements.txt": "this is no requirement\n"}, "has a line that is no requirement"),
        ({"requirment.txt": "x", "app.py": "", "Requirements.txt": TINY}, "rename it and push again"),
        ({"Pipfile": "x"}, "Run `pipenv lock`"),
        ({"pdm.lock": "x"}, "pdm export"),
        ({"pyproject.toml": "[project\n"}, "pyproject.toml is not valid TOML"),
        ({"pyproject.toml": '[tool.poetry.dependencies]\nflask = "*"\n'}, "Run `poetry lock`"),
        ({"runtime.txt": "Python 3\n"}, "runtime.txt holds “Python 3”, which is no Python version"),
        ({"Pipfile.lock": "{"}, "Pipfile.lock is not valid JSON"),
        ({"pyproject.toml": '[project]\nname = "x"\nversion = "1"\nrequires-python = "<3.10"\n'}, "asks for Python <3.10, and this app is built with"),
        ({"pyproject.toml": '[tool.poetry.dependencies]\npython = "^2.7"\n', "poetry.lock": ""}, "asks for Python ^2.7"),
    ],
)  # fmt: skip
def test_what_python_cannot_build_is_refused_with_a_remedy(root: Path, source: dict[str, str], sentence: str) -> None:
    assert sentence in refused(build(root, source))


def test_a_python_that_cannot_be_had_is_refused_with_what_there_is(root: Path) -> None:
    mirror = {"UV_PYTHON_INSTALL_MIRROR": "http://127.0.0.1:9"}
    printed = refused(build(root, {".python-version": "3.9\n", "app.py": ""}, config=mirror))
    assert "Python 3.9, which .python-version asks for, could not be had" in printed and f"comes with Python {PYTHON}" in printed


@pytest.mark.parametrize("text", [PYTHON, f"python-{PYTHON}.0", f"{PYTHON} # ours\n"])
def test_versions_of_the_stacks_python_are_understood(root: Path, text: str) -> None:
    name = "runtime.txt" if text.startswith("python-") else ".python-version"
    assert f"Using Python {PYTHON}" in done(build(root, {name: text, "app.py": ""})).output


DJANGO = {
    "requirements.txt": "django==5.2\n",
    "manage.py": "import os, sys\nos.environ['DJANGO_SETTINGS_MODULE'] = 'config'\nfrom django.core.management import execute_from_command_line\nexecute_from_command_line(sys.argv)\n",  # noqa: E501
    "config.py": "import os\nSECRET_KEY = os.environ['KEY']\nINSTALLED_APPS = ['django.contrib.staticfiles']\nSTATIC_URL = '/s/'\nSTATIC_ROOT = 'collected'\nSTATICFILES_DIRS = ['assets']\n",  # noqa: E501
    "assets/a.css": "a{}",
}


def test_django_collects_static_files_with_the_config_vars(root: Path) -> None:
    printed = refused(build(root, DJANGO))
    assert "KeyError: 'KEY'" in printed and "davit config:set DISABLE_COLLECTSTATIC=1" in printed
    built = done(build(root, DJANGO, config={"KEY": "k"}))
    assert "1 static file copied" in built.output and (built.app / "collected/a.css").read_text() == "a{}"
    assert "collectstatic" not in done(build(root, DJANGO, config={"DISABLE_COLLECTSTATIC": "1"})).output


# --- nodejs ---


def test_node_example_has_node_and_npm_of_the_registry(root: Path) -> None:
    source = {
        "package.json": '{"engines": {"node": "22.x"}, "scripts": {"start": "node server.js", "build": "node -p 1+1"}}',
        "server.js": "",
    }
    built = done(build(root, source))
    assert "Running build\n2\n" in built.output
    assert "web: npm start" in built.content("release")
    assert run(built, "node -v").startswith("v22.") and run(built, "npm -v").startswith("10.")
    assert run(built, "echo $NODE_ENV") == "production"
    again = done(
        run_inside(root, tar_of(source), environment={"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"})
    )
    assert "from the cache" in again.output


SEVEN = "41Cifkg6e8TylSpdtTpeLVMqvSBEVzTttHvERD741+pnZ8ANv0004MRL43QKPDlK9cGvNp6NZWZUBlbGXYxxng=="
SIX = "Wu1VHeILBK8KAWJUAiSZQX94GmOE45Rg6/538fKwiloUu21KncEkYGPqob2oSZ5mUT73vLGrHQjKw3KMPwfDzg=="
ODD = "CQpnWPrDwmP1+SMHXZhtLtJv90yiyVfluGsX5iNCVkrhQtU3TQHsUWPG9wkdk9Lgd5yNpAg9jQEo90CBaXgWMA=="
NPM_LOCK = json.dumps(
    {
        "name": "x", "lockfileVersion": 3, "requires": True,
        "packages": {
            "": {"name": "x", "dependencies": {"is-number": "7.0.0"}, "devDependencies": {"is-odd": "3.0.1"}, "engines": {"node": "22.x"}},  # noqa: E501
            "node_modules/is-number": {"version": "7.0.0", "integrity": f"sha512-{SEVEN}"},
            "node_modules/is-odd": {"version": "3.0.1", "integrity": f"sha512-{ODD}", "dev": True, "dependencies": {"is-number": "^6.0.0"}},  # noqa: E501
            "node_modules/is-odd/node_modules/is-number": {"version": "6.0.0", "integrity": f"sha512-{SIX}", "dev": True},
        },
    }
)  # fmt: skip
YARN_LOCK = f"""# yarn lockfile v1

is-number@7.0.0:
  version "7.0.0"
  integrity sha512-{SEVEN}

is-number@^6.0.0:
  version "6.0.0"
  integrity sha512-{SIX}

is-odd@3.0.1:
  version "3.0.1"
  integrity sha512-{ODD}
  dependencies:
    is-number "^6.0.0"
"""
PNPM_LOCK = f"""lockfileVersion: '9.0'
settings:
  autoInstallPeers: true
  excludeLinksFromLockfile: false
importers:
  .:
    dependencies:
      is-number:
        specifier: 7.0.0
        version: 7.0.0
    devDependencies:
      is-odd:
        specifier: 3.0.1
        version: 3.0.1
packages:
  is-number@6.0.0:
    resolution: {{integrity: sha512-{SIX}}}
  is-number@7.0.0:
    resolution: {{integrity: sha512-{SEVEN}}}
  is-odd@3.0.1:
    resolution: {{integrity: sha512-{ODD}}}
snapshots:
  is-number@6.0.0: {{}}
  is-number@7.0.0: {{}}
  is-odd@3.0.1:
    dependencies:
      is-number: 6.0.0
"""
LOCKED = {
    "name": "x", "private": True, "dependencies": {"is-number": "7.0.0"}, "devDependencies": {"is-odd": "3.0.1"},
    "engines": {"node": "22.x"},
    "scripts": {"start": "node server.js", "build": "node -e \"require('is-odd');require('fs').writeFileSync('made','')\""},
}  # fmt: skip
SERVER = "console.log('is-number', require('is-number')(7))\n"


def process_of(built: Built) -> str:
    """The command of the default process type."""
    return built.content("release").partition("web: ")[2].strip()


@pytest.mark.parametrize(
    ("lock", "content", "manager"),
    [("package-lock.json", NPM_LOCK, "npm"), ("yarn.lock", YARN_LOCK, "yarn"), ("pnpm-lock.yaml", PNPM_LOCK, "pnpm")],
)
def test_each_package_manager_installs_by_its_lock_prunes_and_starts(root: Path, lock: str, content: str, manager: str) -> None:
    source = {"package.json": json.dumps(LOCKED), lock: content, "server.js": SERVER}
    built = done(build(root, source))
    modules = built.app / "node_modules"
    assert (built.app / "made").exists() and (modules / "is-number").exists() and not (modules / "is-odd").exists()
    again = done(build(root, source))
    assert "Restored packages from the cache" in again.output and not (again.app / "node_modules/is-odd").exists()
    assert "is-number true" in run(again, process_of(again))
    assert run(again, "npm -v").startswith("10.") and run(again, f"{manager} --version")
    stale = {**source, "package.json": json.dumps({**LOCKED, "dependencies": {"is-number": "6.0.0"}})}
    assert "does not fit package.json" in refused(build(root, stale))


def berry_lock(version: str, prefix: str) -> str:
    """A lock file of Yarn 2 and later, without the checksums of its archives, which are another version's every time."""
    parts = [
        '# This file is generated by running "yarn install" inside your project.\n# Manual changes might be lost - proceed with caution!\n',
        f"__metadata:\n  version: {version}\n",
    ]
    for wanted, name, found, dependencies in (
        ("is-number@npm:7.0.0", "is-number", "7.0.0", ""), ("is-number@npm:^6.0.0", "is-number", "6.0.0", ""),
        ("is-odd@npm:3.0.1", "is-odd", "3.0.1", f"  dependencies:\n    is-number: {prefix.format('^6.0.0')}\n"),
    ):  # fmt: skip
        parts.append(f'"{wanted}":\n  version: {found}\n  resolution: "{name}@npm:{found}"\n{dependencies}  languageName: node\n  linkType: hard\n')  # noqa: E501
    needs = f"    is-number: {prefix.format('7.0.0')}\n    is-odd: {prefix.format('3.0.1')}\n"
    parts.append(f'"x@workspace:.":\n  version: 0.0.0-use.local\n  resolution: "x@workspace:."\n  dependencies:\n{needs}  languageName: unknown\n  linkType: soft\n')  # noqa: E501
    return "\n".join(parts)


@pytest.mark.parametrize(
    ("version", "linker", "lock", "start"),
    [
        ("3.6.4", "node-modules", berry_lock("6", "{}"), "npm start"),
        ("4.18.1", "pnp", berry_lock("10\n  cacheKey: 10c0", '"npm:{}"'), "yarn start"),
    ],
)
def test_later_yarns_install_by_their_lock_prune_and_start(root: Path, version: str, linker: str, lock: str, start: str) -> None:
    package = {**LOCKED, "packageManager": f"yarn@{version}"}
    source = {"package.json": json.dumps(package), "yarn.lock": lock, ".yarnrc.yml": f"nodeLinker: {linker}\nchecksumBehavior: ignore\n", "server.js": SERVER}  # noqa: E501
    built = done(build(root, source))
    assert (built.app / "made").exists() and process_of(built) == start
    assert json.loads((built.app / "package.json").read_text()) == package and "is-odd@npm" in (built.app / "yarn.lock").read_text()
    shutil.rmtree(root / "tmp")  # where the build's own caches were
    assert "is-number true" in run(built, start)
    if linker == "node-modules":
        assert not (built.app / "node_modules/is-odd").exists() and not (built.app / ".yarn/cache").exists()
    else:
        assert not list((built.app / ".yarn/cache").glob("is-odd*"))


def loaded(name: str) -> ModuleType:
    """A buildpack's program as a module: two of them have the same name."""
    spec = importlib.util.spec_from_file_location(f"{name}_compile", REPOSITORY / f"buildpacks/{name}/lib/compile.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node_packages(directory: Path, files: dict[str, str], config: dict[str, str]) -> Any:
    """The packages of an app that is not built."""
    nodejs = loaded("nodejs")
    for place, contents in (("app", files), ("env", config)):
        (directory / place).mkdir()
        for name, content in contents.items():
            (directory / place / name).write_text(content)
    app = nodejs.App(directory / "app", directory / "cache", directory / "env")
    return nodejs.Packages(app, nodejs.choose_manager(app), SimpleNamespace(versions={}))


@pytest.mark.parametrize(
    ("config", "prunes"),
    [({}, True), ({"NODE_ENV": "production"}, True), ({"NODE_ENV": "staging"}, False), ({"YARN_PRODUCTION": "false"}, False)],
)
def test_development_packages_stay_where_the_config_vars_say_so(tmp_path: Path, config: dict[str, str], prunes: bool) -> None:
    assert node_packages(tmp_path, {"package.json": "{}"}, config).prunes is prunes


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"package.json": '{"scripts": {"start": "x"}}'}, "npm start"), ({"package.json": "{}", "server.js": ""}, "npm start"),
        ({"package.json": '{"scripts": {"start": "x"}}', ".pnp.cjs": ""}, "yarn start"),
        ({"package.json": "{}", "server.js": "", ".pnp.cjs": ""}, "yarn node server.js"), ({"package.json": "{}"}, None),
    ],
)  # fmt: skip
def test_what_starts_a_node_app_without_a_procfile(tmp_path: Path, files: dict[str, str], command: str | None) -> None:
    assert loaded("nodejs").start_command(node_packages(tmp_path, files, {}).app) == command


@pytest.mark.parametrize(
    ("package", "lock", "cached"),
    [
        ({"dependencies": {"x": "~1.0.0"}}, ("yarn.lock", 'x@~1.0.0:\n  version "1.0.0"\n'), True),
        ({"dependencies": {"@prisma/client": "6.0.0"}}, ("package-lock.json", '{"packages": {"node_modules/@prisma/client": {}}}'), False),
        ({"dependencies": {"x": "file:./x"}}, ("yarn.lock", '"x@file:./x":\n  version "1.0.0"\n'), False),
        ({"dependencies": {"x": "../x"}}, ("package-lock.json", "{}"), False),
        ({"resolutions": {"x": "file:./x"}}, ("yarn.lock", '"x@1", "x@file:./x":\n  version "1.0.0"\n'), False),
        ({"scripts": {"postinstall": "patch-package"}}, ("package-lock.json", "{}"), False),
    ],
)  # fmt: skip
def test_node_packages_that_the_apps_code_decides_are_not_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: dict[str, object], lock: tuple[str, str], cached: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    packages = node_packages(tmp_path, {"package.json": json.dumps(package), lock[0]: lock[1]}, {})
    assert (packages.fingerprint is not None) is cached
    before = packages._beside()
    for unimportant in ("home/.cache/pnpm", "home/.npm/_logs", "app/node_modules/x"):
        (tmp_path / unimportant).mkdir(parents=True)
    assert packages._beside() == before
    (tmp_path / "home/.cache/puppeteer").mkdir()
    assert packages._beside() != before


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"package.json": "{"}, "package.json is not valid JSON"),
        ({"package.json": "[]"}, "must hold a JSON object"),
        ({"package.json": "{}", "yarn.lock": "", "package-lock.json": "{}"}, "lock files of several package managers: package-lock.json, yarn.lock"),  # noqa: E501
        ({"package.json": "{}", "bun.lock": ""}, "Bun's lock file"),
        ({"package.json": '{"engines": {"node": "3.x"}}'}, "There is no Node.js that fits “3.x”"),
        ({"package.json": '{"engines": {"node": "twelve"}}'}, "is no version range"),
        ({"package.json": '{"engines": {"node": "22.99.99"}}'}, "There is no Node.js 22.99.99"),
    ],
)  # fmt: skip
def test_what_node_cannot_build_is_refused_with_a_remedy(root: Path, source: dict[str, str], sentence: str) -> None:
    assert sentence in refused(build(root, source))


def test_a_package_that_does_not_exist_and_a_failing_build_script_are_named(root: Path) -> None:
    node = {"engines": {"node": "22.x"}}
    printed = refused(build(root, {"package.json": json.dumps({**node, "dependencies": {"davit-no-such-package-x": "1"}})}))
    assert "There is no package named “davit-no-such-package-x”" in printed
    printed = refused(build(root, {"package.json": json.dumps({**node, "scripts": {"build": "exit 3"}})}))
    assert "The script “build” of package.json failed" in printed


@pytest.mark.parametrize(
    ("range", "version"),
    [
        ("22.x", "22.9.1"), ("^22", "22.9.1"), ("~22.1", "22.1.5"), (">=20 <22", "20.3.0"), ("20 || 18", "20.3.0"), ("*", "24.0.0"), ("", "24.0.0"),  # noqa: E501
        ("18.0.0 - 20", "20.3.0"), ("<=22.1.0", "22.1.0"), (">22.1.5", "24.0.0"), ("v20.3.0", "20.3.0"), ("=20.x", "20.3.0"), (">= 20", "24.0.0"),  # noqa: E501
        ("^0.1.0", "0.1.9"), ("^0.0.3", "0.0.3"), ("23", None), (">24", None), ("~22", "22.9.1"), ("20.x.x", "20.3.0"), ("<20, >=18", "18.1.0"),  # noqa: E501
    ],
)  # fmt: skip
def test_ranges_mean_what_they_mean_to_npm(range: str, version: str | None) -> None:
    known = ["0.0.3", "0.0.4", "0.1.0", "0.1.9", "18.1.0", "20.3.0", "22.1.0", "22.1.5", "22.9.1", "24.0.0", "25.0.0-rc.1"]
    assert semver.newest(range, known) == version


@given(st.text("0123456789.xX*^~<>=|- v", max_size=20))
def test_no_range_makes_the_parser_fail_otherwise(range: str) -> None:
    try:
        semver.newest(range, ["1.2.3"])
    except semver.InvalidRange:
        pass


# --- static and procfile ---


@pytest.fixture
def serving(root: Path) -> Iterator[httpx.Client]:
    page = "<h1>Hello</h1>" + "x" * 2000
    source = {
        "static.json": json.dumps({"root": "site", "clean_urls": True, "routes": {"/app/**": "index.html"}, "redirects": {"/old": {"url": "/new"}}, "headers": {"/assets/**": {"X-Mine": "yes"}}, "basic_auth": True, "proxies": {}}),  # noqa: E501
        "site/index.html": page, "site/about.html": "about", "site/404.html": "my own page", "site/assets/main.4f9a8b7c6d.js": "1;" * 1000,  # noqa: E501
        "site/.env": "SECRET", "site/.well-known/security.txt": "mail", "site/link": "->/etc/passwd",
        "site/Procfile-guide.html": "guide", "site/app.json": "{}", "site/img/team-photo-2024.jpg": "jpg",
    }  # fmt: skip
    assert "there is no BASIC_AUTH_USERNAME and no BASIC_AUTH_PASSWORD" in refused(build(root, source))
    credentials = {"BASIC_AUTH_USERNAME": "me", "BASIC_AUTH_PASSWORD": "geheim: ü"}
    built = done(build(root, source, config=credentials))
    assert "static.json's “proxies” means nothing here" in built.output
    assert "default_process_types" in built.content("release") and ".heroku/static/serve" in built.content("release")
    home = as_home(built)
    port = 20_000 + os.getpid() % 10_000
    process = subprocess.Popen(
        [".heroku/static/serve"],
        cwd=home,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PORT": str(port), "WEB_CONCURRENCY": "1", **credentials},
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("me", "geheim: ü")) as client:

            def answers() -> bool:
                try:
                    return client.get("/").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(answers, "the site answering")
            yield client
    finally:
        process.terminate()
        process.wait(30)


def test_static_sites_are_served_with_caching_compression_and_their_own_404(serving: httpx.Client) -> None:
    page = serving.get("/", headers={"Accept-Encoding": "gzip"})
    assert (
        page.headers["content-encoding"] == "gzip"
        and page.text.startswith("<h1>Hello</h1>")
        and "max-age=60" in page.headers["cache-control"]
    )
    assert serving.get("/", headers={"If-Modified-Since": page.headers["last-modified"]}).status_code == 304
    about = serving.get("/about.html")
    assert serving.get("/about.html", headers={"If-None-Match": about.headers["etag"]}).status_code == 304
    assert serving.get("/", headers={"Range": "bytes=0-3", "Accept-Encoding": "identity"}).content == b"<h1>"
    script = serving.get("/assets/main.4f9a8b7c6d.js")
    assert "immutable" in script.headers["cache-control"] and script.headers["x-mine"] == "yes"
    for answer in (page, script):  # who knows no password gets it from no shared cache either
        assert "private" in answer.headers["cache-control"] and "public" not in answer.headers["cache-control"]
    missing = serving.get("/nothing")
    assert missing.status_code == 404 and missing.text == "my own page"
    assert serving.get("/about").text == "about" and serving.get("/app/deep/link").text.startswith("<h1>Hello")
    assert serving.get("/old").headers["location"] == "/new" and serving.post("/").status_code == 405
    assert serving.get("/Procfile-guide.html").text == "guide" and serving.get("/app.json").text == "{}"
    assert "max-age=60" in serving.get("/img/team-photo-2024.jpg").headers["cache-control"]
    for wrong in (None, ("me", "geheim"), ("", "")):
        strange = httpx.get(f"{serving.base_url}/assets/main.4f9a8b7c6d.js", auth=wrong)
        assert strange.status_code == 401 and "Basic" in strange.headers["www-authenticate"] and "1;" not in strange.text
    assert httpx.get(serving.base_url, headers={"Authorization": "Basic ü".encode("latin-1")}).status_code == 401
    for hidden in ("/.env", "/static.json", "/../static.json", "/%2e%2e/static.json", "/link", "/.heroku/static/site.json"):
        assert serving.get(hidden).status_code == 404, hidden
    assert serving.get("/.well-known/security.txt").text == "mail"


NAMES = """
import json, sys
from site_server import CONFIGURATION, DOTTED, HttpsOnly, application, never_changes
for asked in ("/a?b", "http://other.example.com/a?b", "HTTP://other.example.com"):
    for serve, scheme in ((application, "https"), (HttpsOnly(None), "http")):
        request = {"REQUEST_METHOD": "GET", "RAW_URI": asked, "HTTP_HOST": "other.example.com", "HTTP_X_FORWARDED_PROTO": scheme}
        serve(request, lambda status, headers: print(dict(headers)["Location"], end=" "))
print()
print(json.dumps([[bool(never_changes(name)), bool(DOTTED.search(name) or CONFIGURATION.search(name))] for name in sys.argv[1:]]))
"""


def test_only_names_with_a_digest_are_kept_for_ever_and_only_its_configuration_is_hidden(root: Path) -> None:
    source = {"index.html": "", "static.json": '{"root": ".", "canonical_host": "www.example.com"}'}
    home = as_home(done(build(root, source)))
    lasting = [
        "/assets/index-C4kL9x2a.js", "/static/js/main.4f9a8b7c.js", "/static/css/main.4f9a8b7c6d.css.map", "/main-5FQKXJ3A.js",
        "/img/logo.0a1b2c3d4e5f60718293.png", "/_next/static/chunks/0a1b.js", "/_app/immutable/entry/start.js",
    ]  # fmt: skip
    plain = [
        "/img/team-photo-2024.jpg", "/screenshot-dashboard-2.png", "/IMG_20240101.jpg", "/hero_background2.jpg", "/js/Main-controller.js",
        "/img/hero-myPhotos.png", "/img/banner-SUMMER24.png", "/js/jquery-VERSION2.js", "/img/house-facade12.png", "/app.jsonld",
        "/Procfile-guide.html", "/Staticfiles.html", "/.well-known/security.txt",
    ]  # fmt: skip
    hidden = ["/Procfile", "/app.json", "/static.json", "/.env", "/a/.git/config", "/node_modules/x.js"]
    answer = subprocess.run(
        ["/usr/bin/python3", "-c", NAMES, *lasting, *plain, *hidden], check=True, capture_output=True, text=True,
        env={"HOME": str(home), "PYTHONPATH": f"{home}/.heroku/static/packages:{home}/.heroku/static"},
    )  # fmt: skip
    moved, _, answers = answer.stdout.partition("\n")
    expected_places = [f"https://{host}.example.com/{rest}" for rest in ("a?b", "a?b", "") for host in ("www", "other")]
    assert moved.split() == expected_places
    expected = [*([True, False] for _ in lasting), *([False, False] for _ in plain), *([False, True] for _ in hidden)]
    assert [*zip([*lasting, *plain, *hidden], json.loads(answers), strict=True)] == [*zip([*lasting, *plain, *hidden], expected, strict=True)]  # noqa: E501


def test_a_built_front_end_is_served_without_node(root: Path) -> None:
    built = done(build(root, tar_of_directory(REPOSITORY / "examples/frontend")))
    assert built.end["buildpacks"] == ["heroku/nodejs", "davit/static"]
    assert (built.app / "dist/index.html").exists() and not (built.app / ".heroku/node").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ('{"root": "../.."}', "leads out of the app"),
        ('{"root": "none"}', "is not there"),
        ("{", "not valid JSON"),
        ('{"routes": []}', "must be an object"),
    ],
)
def test_what_static_cannot_serve_is_refused_with_a_remedy(root: Path, settings: str, sentence: str) -> None:
    assert sentence in refused(build(root, {"static.json": settings}))


def test_a_procfile_alone_is_enough(root: Path) -> None:
    built = done(build(root, {"Procfile": "web: ./serve\n"}))
    assert "-----> Procfile app detected" in built.output and built.end["buildpacks"] == ["procfile"]
