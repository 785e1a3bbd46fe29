"""Builds a static site: finds the folder, makes compressed copies, puts a small server beside it.

The server is WhiteNoise under gunicorn on the stack's own Python: two well-kept packages without dependencies of weight,
fetched from PyPI by digest and kept in the cache.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
ROOTS = ("public", "dist", "build", "out", "_site")
COMPRESSIBLE = {".html", ".htm", ".css", ".js", ".mjs", ".json", ".xml", ".svg", ".txt", ".map", ".wasm", ".ico", ".webmanifest", ".md", ".csv"}
KNOWN = {
    "root", "clean_urls", "routes", "redirects", "headers", "error_page", "encoding", "https_only", "basic_auth", "canonical_host",
    "logging", "debug", "worker_connections", "resolver", "port",
}  # fmt: skip
"""Keys of static.json: those that are obeyed, and those that only Heroku's nginx needs."""
SMALLEST = 860
"""Bytes below which compression gains nothing."""


def say(text: str) -> None:
    print(f"-----> {text}", flush=True)


def indent(text: str) -> None:
    print(f"       {text}", flush=True)


def fail(text: str) -> NoReturn:
    print(f" !\n !     {text}\n !", flush=True)
    sys.exit(1)


def main(build: Path, cache: Path, env: Path) -> None:
    settings = read_settings(build)
    root = find_root(build, settings)
    settings["root"] = os.path.relpath(root, build)
    check_settings(settings, env)
    say("Serving the folder " + ("of the repository itself" if root == build else settings["root"] + "/"))
    drop_node(build, root)
    install_server(build, cache / "static", settings)
    compress(root)


def read_settings(build: Path) -> dict[str, Any]:
    """static.json, or what a Staticfile says of the folder."""
    if (build / "static.json").is_file():
        try:
            settings = json.loads((build / "static.json").read_text(encoding="utf-8-sig"))
        except ValueError as error:
            fail(f"static.json is not valid JSON: {error}.")
        if not isinstance(settings, dict):
            fail("static.json must hold a JSON object: { … }.")
        for key in ("headers", "routes", "redirects"):
            if not isinstance(settings.get(key, {}), dict):
                fail(f"“{key}” in static.json must be an object: {{ … }}.")
        return settings
    for name in ("Staticfile", ".static"):
        if (build / name).is_file() and (match := re.search(r"^\s*root:\s*[\"']?([^\"'\n#]+)", (build / name).read_text(errors="replace"), re.MULTILINE)):
            return {"root": match[1].strip()}
    return {}


def check_settings(settings: dict[str, Any], env: Path) -> None:
    """Say what of static.json is not obeyed, and refuse a protected site that everybody would see or nobody."""
    for name in sorted(set(settings) - KNOWN):
        indent(f"WARNING: static.json's “{name}” means nothing here" + (": nothing is passed on to another server" * (name == "proxies")))
    missing = [name for name in ("BASIC_AUTH_USERNAME", "BASIC_AUTH_PASSWORD") if not (env / name).is_file() or not (env / name).read_bytes()]
    if settings.get("basic_auth") and missing:
        fail(f"static.json asks for basic_auth, and there is no {' and no '.join(missing)}. Set them (davit config:set) and push again.")


def find_root(build: Path, settings: dict[str, Any]) -> Path:
    named = settings.get("root")
    if named is not None:
        root = (build / str(named).strip("/")).resolve()
        if not root.is_relative_to(build.resolve()):
            fail(f"The folder “{named}” leads out of the app.")
        if not root.is_dir():
            fail(f"The folder “{named}”, which is to be served, is not there. If a build makes it, name that buildpack before this one.")
        return build.resolve() / root.relative_to(build.resolve())
    if (build / "public").is_dir() and (build / "static.json").is_file() and not (build / "public_html").is_dir():
        return build / "public"
    if (build / "public_html").is_dir():
        return build / "public_html"
    return next((build / name for name in ROOTS if (build / name / "index.html").is_file()), build)


def drop_node(build: Path, root: Path) -> None:
    """A front end that was built needs neither Node nor node_modules to be served."""
    if root == build or (build / "Procfile").exists() or not (build / ".heroku" / "node").is_dir():
        return
    indent("Leaving Node.js and node_modules out of the slug; only the folder is served")
    for path in (build / ".heroku" / "node", build / "node_modules"):
        shutil.rmtree(path, ignore_errors=True)
    (build / ".profile.d" / "nodejs.sh").unlink(missing_ok=True)


def install_server(build: Path, cache: Path, settings: dict[str, Any]) -> None:
    home = build / ".heroku" / "static"
    packages = home / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    wanted = hashlib.sha256((HERE / "requirements.txt").read_bytes() + platform.python_version().encode()).hexdigest()
    tar, note = cache / "packages.tar", cache / "packages.txt"
    fresh = not (note.is_file() and note.read_text() == wanted and unpack(tar, packages))
    if fresh:
        say("Installing the server (gunicorn and WhiteNoise)")
        environment = {**os.environ, "UV_CACHE_DIR": str(build.parent / "uv-cache"), "UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never", "UV_COMPILE_BYTECODE": "1"}
        argv = ["uv", "pip", "install", "--quiet", "--no-progress", "--no-deps", "--require-hashes", "--python", "/usr/bin/python3"]
        argv += ["--target", packages, "--requirements", HERE / "requirements.txt"]
        done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            fail(f"The server could not be installed: {done.stderr.strip()}")
        cache.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["tar", "-cf", tar, "-C", packages, "."], stdin=subprocess.DEVNULL).returncode == 0:
            note.write_text(wanted)
    for name in ("site_server.py", "serve"):
        shutil.copyfile(HERE / name, home / name)
    (home / "serve").chmod(0o755)
    (home / "site.json").write_text(json.dumps(settings))


def unpack(tar: Path, directory: Path) -> bool:
    return tar.is_file() and subprocess.run(["tar", "-xf", tar, "-C", directory], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def compress(root: Path) -> None:
    """A .gz beside every file that is worth it; the server gives it to whoever accepts it."""
    made = saved = 0
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".") and name != "node_modules"]
        for name in files:
            path = Path(directory, name)
            copy = path.with_name(name + ".gz")
            if path.suffix.lower() not in COMPRESSIBLE or path.is_symlink() or copy.exists() or path.stat().st_size < SMALLEST:
                continue
            content = path.read_bytes()
            packed = gzip.compress(content, 9, mtime=0)
            if len(packed) < 0.95 * len(content):
                copy.write_bytes(packed)
                made, saved = made + 1, saved + len(content) - len(packed)
    if made:
        indent(f"Compressed {made} file{'s' * (made != 1)}, {saved >> 10} KB less to send")
