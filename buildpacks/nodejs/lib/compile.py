"""Builds a Node.js app: Node itself and the package manager from the npm registry, packages, build script, pruning.

Nothing of a downloaded tool is run to install it: tarballs are checked against the registry's digests and unpacked. A tar
of the installed node_modules is kept in the cache and used again while nothing that decides its content has changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import semver

FORMAT = "4"
"""Goes into every fingerprint: raise it when what is kept in the cache changes."""
DEFAULT_NODE = "24.x"
RESOLUTION_SECONDS = 24 * 3600
"""How long a range (22.x) keeps meaning the version that it was resolved to, unless package.json changes."""
LOCKS = {
    "package-lock.json": "npm",
    "npm-shrinkwrap.json": "npm",
    "yarn.lock": "yarn",
    "pnpm-lock.yaml": "pnpm",
    "bun.lock": "bun",
    "bun.lockb": "bun",
}
NPM_FOR_NODE = ((24, "11.6.2"), (18, "10.9.4"), (14, "8.19.4"), (0, "6.14.18"))
PNPM_FOR_LOCK = {"9": "10.20.0", "6": "8.15.9", "5": "7.33.7"}
YARN, BERRY = "1.22.22", "4.18.1"
INSTALL_SCRIPTS = (
    "preinstall", "install", "postinstall", "prepare", "prepublish", "preprepare", "postprepare", "heroku-prebuild", "pnpm:devPreinstall",
)  # fmt: skip
DEPENDENCIES = ("dependencies", "devDependencies", "optionalDependencies")
LOCAL = re.compile(r"(?:file|link|portal|workspace|patch):|\.{0,2}/|~/")
"""What a dependency's version begins with whose code is in the app."""
GENERATES = ("@prisma/client",)
"""Packages whose own install scripts make code out of the app's files."""
MANAGERS_OWN = re.compile(r"\.?(npm|yarn|pnpm|node-gyp|node|corepack|local|config)\b")
"""Directories of HOME in which package managers keep what nothing else reads."""
NOT_EXPORTED = re.compile(r"PATH|GIT_DIR|CPATH|CPPATH|LD_PRELOAD|LIBRARY_PATH|LD_LIBRARY_PATH|LANG|BUILD_DIR|HOME|STACK|BASH_ENV|ENV|IFS")


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
        self.cache = cache / "node"
        self.tmp = build.parent
        self.node = build / ".heroku" / "node"
        self.config = {file.name: file.read_text(errors="surrogateescape") for file in env.iterdir()} if env.is_dir() else {}
        self.package = self._read_package()
        self.environment = {
            **os.environ,
            "NODE_ENV": "production",
            "NPM_CONFIG_UPDATE_NOTIFIER": "false",
            "NPM_CONFIG_FUND": "false",
            "NPM_CONFIG_AUDIT": "false",
            "NPM_CONFIG_CACHE": str(self.tmp / "npm-cache"),
            "YARN_CACHE_FOLDER": str(self.tmp / "yarn-cache"),
            "YARN_ENABLE_GLOBAL_CACHE": "false",
            "YARN_ENABLE_TELEMETRY": "0",
            "COREPACK_ENABLE_STRICT": "0",
            "CI": "true",
            "NPM_CONFIG_NODEDIR": str(self.node),  # native modules are compiled with the headers that came with Node
            **{name: value for name, value in self.config.items() if not NOT_EXPORTED.fullmatch(name) and "\0" not in value},
            "PATH": f"{self.node}/bin:{build}/node_modules/.bin:{os.environ['PATH']}",
        }

    @cached_property
    def registry(self) -> str:
        """The npm registry: the config var's, else what the stack's own npm would ask."""
        chosen = self.config.get("NPM_CONFIG_REGISTRY")
        if not chosen:
            said = subprocess.run(["npm", "config", "get", "registry"], cwd="/", stdout=subprocess.PIPE, text=True, check=True)
            chosen = said.stdout.strip()
        return chosen.rstrip("/")

    def _read_package(self) -> dict[str, Any]:
        try:
            document = json.loads((self.build / "package.json").read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError:
            fail("package.json is not UTF-8 text. Save it as UTF-8 and push again.")
        except ValueError as error:
            fail(f"package.json is not valid JSON: {error}.")
        if not isinstance(document, dict):
            fail("package.json must hold a JSON object: { … }.")
        return document

    def has(self, name: str) -> bool:
        return (self.build / name).is_file()

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.package.get(key)
        return value if isinstance(value, dict) else {}

    def script(self, name: str) -> bool:
        return isinstance(self.mapping("scripts").get(name), str)

    def off(self, *names: str) -> bool:
        """Whether one of these config vars is ``false``."""
        return any(self.config.get(name, "").lower() == "false" for name in names)


def main(build: Path, cache: Path, env: Path) -> None:
    app = App(build, cache, env)
    manager = choose_manager(app)
    tools = Tools(app, manager)
    tools.install()
    packages = Packages(app, manager, tools)
    run_script(app, manager, "heroku-prebuild")
    packages.install()
    run_script(app, manager, "heroku-postbuild" if app.script("heroku-postbuild") else "build")
    packages.prune()
    run_script(app, manager, "heroku-cleanup")
    finish(app)


# --- which package manager ---


class Manager:
    """npm, yarn (classic), berry (yarn 2 and later) or pnpm, and the version that is wanted of it (a range)."""

    def __init__(self, name: str, version: str, lock: str | None) -> None:
        self.name, self.version, self.lock = name, version, lock

    @property
    def program(self) -> str:
        return "yarn" if self.name == "berry" else self.name


def choose_manager(app: App) -> Manager:
    locks = [name for name in LOCKS if app.has(name)]
    declared = str(app.package.get("packageManager", ""))
    name, _, version = declared.partition("@")
    version = version.split("+")[0]
    if name not in ("npm", "yarn", "pnpm"):
        name, version = "", ""
    kinds = {LOCKS[lock] for lock in locks}
    if name:
        locks = [lock for lock in locks if LOCKS[lock] == name]
    elif len(kinds) > 1:
        fail(
            f"There are lock files of several package managers: {', '.join(locks)}.\n"
            "Keep the one of the manager that you use, remove the others (git rm), and push again."
        )
    elif "bun" in kinds:
        fail("Bun's lock file cannot be read here. Commit a package-lock.json, yarn.lock or pnpm-lock.yaml instead.")
    lock = locks[0] if locks else None
    name = name or (LOCKS[lock] if lock else "npm")
    version = version or str(app.mapping("engines").get(name) or "")
    if name == "yarn":
        berry = lock is not None and "__metadata:" in (app.build / lock).read_text(errors="replace")[:4096]
        berry = berry or bool(re.match(r"[2-9]|\d\d", version))
        return Manager("berry", version or BERRY, lock) if berry else Manager("yarn", version or YARN, lock)
    if name == "pnpm":
        return Manager("pnpm", version or pnpm_for(app, lock), lock)
    return Manager("npm", version, lock)


def pnpm_for(app: App, lock: str | None) -> str:
    if lock is None:
        return PNPM_FOR_LOCK["9"]
    match = re.search(r"lockfileVersion:\s*'?(\d+)", (app.build / lock).read_text(errors="replace")[:1000])
    return PNPM_FOR_LOCK.get(match[1] if match else "9", PNPM_FOR_LOCK["9"])


# --- Node and the package manager ---


class Tools:
    """Node and the package manager, unpacked into the app: it runs with them."""

    def __init__(self, app: App, manager: Manager) -> None:
        self.app, self.manager = app, manager
        self.note, self.tar = app.cache / "tools.json", app.cache / "tools.tar"
        self.node_range = str(app.mapping("engines").get("node") or "").strip()
        self.versions: dict[str, str] = {}

    def install(self) -> None:
        if not self.node_range:
            say(f"No Node.js version was asked for: using {DEFAULT_NODE}")
            indent(f'To keep to it, put into package.json:  "engines": {{ "node": "{DEFAULT_NODE}" }}')
        wanted = {"format": FORMAT, "node": self.node_range or DEFAULT_NODE, "manager": [self.manager.name, self.manager.version]}
        wanted["registry"] = self.app.config.get("NPM_CONFIG_REGISTRY", "")
        if self._restored(wanted):
            say(f"Restored Node.js {self.versions['node']} and {self.manager.program} {self.versions['manager']} from the cache")
            return
        say(f"Installing Node.js {wanted['node']}")
        shutil.rmtree(self.app.node, ignore_errors=True)
        self.app.node.mkdir(parents=True)
        self.versions["node"] = self._install_node(wanted["node"])
        indent(f"Node.js {self.versions['node']}")
        self.versions["manager"] = self._install_manager()
        indent(f"{self.manager.program} {self.versions['manager']}")
        pack(self.app.node, self.tar)
        self.note.write_text(json.dumps({"wanted": wanted, "versions": self.versions, "at": time.time()}))

    def _restored(self, wanted: dict[str, Any]) -> bool:
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return False
        if note.get("wanted") != wanted or not 0 <= time.time() - note.get("at", 0) < RESOLUTION_SECONDS:
            return False
        self.versions = note["versions"]
        return unpack(self.tar, self.app.node)

    def _install_node(self, wanted: str) -> str:
        machine = {"x86_64": "x64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        if wanted.strip() in ("latest", "current", "node"):
            wanted = "*"
        elif wanted.strip() in ("lts", "lts/*"):
            wanted = DEFAULT_NODE
        version = self._fetch(f"node-linux-{machine}", wanted, self.app.node, "Node.js", "engines.node")
        for name in ("share", "package.json", "README.md", "CHANGELOG.md"):
            remove(self.app.node / name)
        (self.app.node / "bin" / "node").chmod(0o755)
        return version

    def _install_manager(self) -> str:
        """The app's own manager; npm beside any other: Node comes with it, and “npm start” is a habit whatever installs the packages."""
        manager = self.manager
        npm = next(version for node, version in NPM_FOR_NODE if int(self.versions["node"].split(".")[0]) >= node)
        if manager.name == "npm":
            return self._install_program("npm", "npm", manager.version or npm)
        indent(f"npm {self._install_program('npm', 'npm', npm)}")
        return self._install_program("@yarnpkg/cli-dist" if manager.name == "berry" else manager.name, manager.program, manager.version)

    def _install_program(self, package: str, program: str, version: str) -> str:
        target = self.app.node / "lib" / "node_modules" / program
        target.mkdir(parents=True)
        found = self._fetch(package, version, target, program, "packageManager or engines")
        for name, path in json.loads((target / "package.json").read_text()).get("bin", {}).items():
            script = target / path
            if script.is_file():
                script.chmod(0o755)
                link = self.app.node / "bin" / name
                remove(link)
                link.symlink_to(os.path.relpath(script, link.parent))
        return found

    def _fetch(self, package: str, wanted: str, target: Path, shown: str, where: str) -> str:
        """Unpack a package of the registry into ``target``; returns its version."""
        quoted = package.replace("/", "%2f")
        if semver.parse(wanted):
            document = self._json(f"{self.app.registry}/{quoted}/{wanted.strip().removeprefix('v')}")
        else:
            versions = self._json(f"{self.app.registry}/{quoted}").get("versions", {})
            try:
                version = semver.newest(wanted, versions)
            except semver.InvalidRange:
                fail(f"“{wanted}” ({where} in package.json) is no version range. An example: 22.x")
            document = versions.get(version, {})
            if not document:
                majors = sorted({v[0] for text in versions if (v := semver.parse(text))}, reverse=True)[:12]
                fail(f"There is no {shown} that fits “{wanted}” ({where} in package.json). There are: {', '.join(f'{m}.x' for m in majors)}")
        if "dist" not in document:
            fail(f"There is no {shown} {wanted} ({where} in package.json) in the npm registry.")
        archive = self.app.tmp / "tool.tgz"
        curl(document["dist"]["tarball"], archive, f"{shown} {document['version']}")
        verify(archive, document["dist"], f"{shown} {document['version']}")
        done = subprocess.run(["tar", "-xzf", archive, "-C", target, "--strip-components=1", "--no-same-owner"], stdin=subprocess.DEVNULL)
        archive.unlink()
        if done.returncode != 0:
            fail(f"{shown} {document['version']} could not be unpacked.")
        return str(document["version"])

    def _json(self, url: str) -> dict[str, Any]:
        file = self.app.tmp / "registry.json"
        if not curl(url, file, url, ["--header", "Accept: application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8"], missing=True):
            return {}
        document = json.loads(file.read_bytes())
        return document if isinstance(document, dict) else {}


def curl(url: str, target: Path, shown: str, options: list[str] | None = None, *, missing: bool = False) -> bool:
    argv = ["curl", "--silent", "--show-error", "--fail", "--location", "--compressed", "--retry", "3", "--connect-timeout", "30", "--max-time", "600"]
    done = subprocess.run([*argv, *(options or []), "--output", target, "--", url], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 22 and missing and " 404" in done.stderr:
        return False
    if done.returncode != 0:
        fail(f"{shown} could not be downloaded: {done.stderr.strip() or 'no reason given'}\nPush again; when it goes on, look at the host's network.")
    return True


def verify(archive: Path, dist: dict[str, Any], shown: str) -> None:
    """Compare a download with what the registry says of it (Subresource Integrity; old packages have only SHA-1)."""
    integrity = str(dist.get("integrity") or "")
    name, _, expected = integrity.partition("-")
    content = archive.read_bytes()
    if name in ("sha512", "sha384", "sha256"):
        good = base64.b64encode(hashlib.new(name, content).digest()).decode() == expected.split()[0]
    else:
        good = hashlib.sha1(content, usedforsecurity=False).hexdigest() == dist.get("shasum")
    if not good:
        fail(f"The download of {shown} is damaged: its digest is not the registry's. Push again.")


# --- packages ---


class Packages:
    """node_modules."""

    def __init__(self, app: App, manager: Manager, tools: Tools) -> None:
        self.app, self.manager = app, manager
        self.note, self.tar = app.cache / "modules.json", app.cache / "modules.tar"
        self.builds = app.script("build") or app.script("heroku-postbuild")
        self.prunes = (
            app.config.get("NODE_ENV", "production") == "production"
            and not app.off("NPM_CONFIG_PRODUCTION", "YARN_PRODUCTION", "PNPM_PRODUCTION")
            and "true" not in (app.config.get("PNPM_SKIP_PRUNING"), app.config.get("YARN2_SKIP_PRUNING"))
        )
        self.pruned = False
        self.fingerprint = self._fingerprint(tools)

    def _fingerprint(self, tools: Tools) -> str | None:
        """What decides the content of node_modules; None when files of the app itself do."""
        app = self.app
        if self.manager.lock is None or self.manager.name == "berry" or app.package.get("workspaces") or app.has("pnpm-workspace.yaml"):
            return None
        if any(app.script(name) for name in INSTALL_SCRIPTS) or (app.build / "node_modules").exists() or (app.build / "patches").exists():
            return None
        if any(LOCAL.match(str(version)) for key in DEPENDENCIES for version in app.mapping(key).values()):
            return None
        lock = (app.build / self.manager.lock).read_bytes()
        if any(name.encode() in lock for name in GENERATES):
            return None
        if re.search(rb'["@](?:file|link|portal):|(?:resolved|version|specifier):? "?(?:file|link):|"link": true', lock):
            return None
        digest = hashlib.sha256(json.dumps([FORMAT, tools.versions, self.manager.name, self.prunes, self.builds, os.environ.get("STACK")]).encode())
        for name in ("package.json", self.manager.lock, ".npmrc", ".yarnrc", ".pnpmfile.cjs"):
            digest.update((app.build / name).read_bytes() + b"\0" if app.has(name) else b"\0")
        settings = sorted((name, value) for name, value in app.config.items() if re.match(r"(?i)NPM_|YARN_|PNPM_|NODE_ENV", name))
        digest.update(repr(settings).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def install(self) -> None:
        if not any(self.app.package.get(key) for key in (*DEPENDENCIES, "workspaces")) and not self.manager.lock:
            indent("package.json names no packages")
            return
        if self._restored():
            return
        lock = self.manager.lock
        say(f"Installing packages with {self.manager.program}" + (f" from {lock}" if lock else " (there is no lock file)"))
        if lock is None:
            indent("Without a lock file each build may get other versions: commit package-lock.json")
        arguments = {
            "npm": ["npm", "ci" if lock else "install", "--include=dev", "--loglevel=error"],
            "yarn": ["yarn", "install", "--ignore-engines", "--production=false", "--no-progress", *(["--frozen-lockfile"] if lock else [])],
            "berry": ["yarn", "install", *(["--immutable"] if lock else [])],
            "pnpm": ["pnpm", "install", "--prod=false", "--reporter=append-only", *(["--frozen-lockfile"] if lock else [])],
        }[self.manager.name]
        if self.manager.name == "berry":
            self._choose_berry_cache()
        before = self._beside()
        self._run(arguments)
        complete = self._beside() == before  # a browser or generated code that an install script put elsewhere is not in the tar
        if not self.builds:
            self.prune()
        if self.fingerprint is not None and complete and (self.app.build / "node_modules").is_dir():
            pack(self.app.build / "node_modules", self.tar)
            self.note.write_text(json.dumps({"fingerprint": self.fingerprint}))
        else:
            for stale in (self.note, self.tar):
                stale.unlink(missing_ok=True)

    def _beside(self) -> set[tuple[str, int]]:
        """The app's files beside node_modules, with when they were written, and directories of HOME that are no package manager's own."""
        found = set()
        for directory, subdirectories, files in os.walk(self.app.build):
            subdirectories[:] = [name for name in subdirectories if name not in ("node_modules", ".git", ".heroku")]
            found |= {(path, os.lstat(path).st_mtime_ns) for name in files if (path := os.path.join(directory, name))}
        home = Path(os.environ["HOME"])
        for path in (*home.glob("*"), *home.glob(".cache/*")):
            if path.is_dir() and path.name != ".cache" and not MANAGERS_OWN.match(path.name):
                found.add((str(path), 0))
        return found

    def _choose_berry_cache(self) -> None:
        """With Plug'n'Play the app runs from Yarn's cache, which then belongs into the app; else only what it committed of one does."""
        if (self.app.build / ".yarn" / "cache").is_dir() or self._ask_berry("config", "get", "nodeLinker") == "pnp":
            self.app.environment.pop("YARN_CACHE_FOLDER", None)

    def _ask_berry(self, *arguments: str) -> str:
        done = subprocess.run(
            ["yarn", *arguments], cwd=self.app.build, env=self.app.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )  # fmt: skip
        return done.stdout.strip()

    def _restored(self) -> bool:
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return False
        if self.fingerprint is None or note.get("fingerprint") != self.fingerprint or not unpack(self.tar, self.app.build / "node_modules"):
            return False
        self.pruned = not self.builds
        say(f"Restored packages from the cache; package.json and {self.manager.lock} are unchanged")
        return True

    def prune(self) -> None:
        """Remove what only the build needed."""
        installed = (self.app.build / "node_modules").is_dir() or self.app.has(".pnp.cjs")
        if self.pruned or not self.prunes or not self.app.mapping("devDependencies") or not installed:
            return
        self.pruned = True
        say("Removing development packages")
        if self.manager.name == "berry" and self._ask_berry("--version").partition(".")[0] in ("2", "3"):
            self._prune_old_berry()
            self._drop_unused_archives()
            return
        arguments = {
            "npm": ["npm", "prune", "--omit=dev", "--ignore-scripts", "--loglevel=error"],
            "yarn": ["yarn", "install", "--production", "--ignore-scripts", "--ignore-engines", "--no-progress", "--prefer-offline"],
            "berry": ["yarn", "workspaces", "focus", "--all", "--production"],
            "pnpm": ["pnpm", "prune", "--prod", "--ignore-scripts"],
        }[self.manager.name]
        self._run(arguments)
        self._drop_unused_archives()

    def _drop_unused_archives(self) -> None:
        """With Plug'n'Play a package is an archive, which pruning leaves where it is."""
        if not self.app.has(".pnp.cjs"):
            return
        named = "".join((self.app.build / name).read_text(errors="replace") for name in (".pnp.cjs", ".pnp.data.json") if self.app.has(name))
        for archive in (self.app.build / ".yarn" / "cache").glob("*.zip"):
            if archive.name not in named:
                archive.unlink()

    def _prune_old_berry(self) -> None:
        """Yarn 2 and 3 can leave development packages out with a plugin only: here they install what package.json names without them."""
        listed = self._ask_berry("workspaces", "list", "--json").splitlines()
        manifests = [self.app.build / json.loads(line)["location"] / "package.json" for line in listed]
        originals = {path: path.read_bytes() for path in (*manifests, self.app.build / "yarn.lock")}
        for manifest in manifests:
            document = json.loads(originals[manifest].decode("utf-8-sig"))
            document.pop("devDependencies", None)
            manifest.write_text(json.dumps(document))
        self._run(["yarn", "install", "--no-immutable"])
        for path, content in originals.items():
            path.write_bytes(content)

    def _run(self, argv: list[str]) -> None:
        process = subprocess.Popen(
            argv, cwd=self.app.build, env=self.app.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            indent(line.rstrip("\n"))
        if process.wait() != 0:
            fail(explain("".join(printed), self.manager))


def explain(printed: str, manager: Manager) -> str:
    if missing := re.search(r"404\s+(?:Not Found - GET \S+/|'?)(@?[\w.%/-]+?)(?:@\S*)?'?\s+(?:- Not [Ff]ound|is not in)|\"?https?://\S+/([@\w.%-]+)\"?: Not found", printed):
        return f"There is no package named “{(missing[1] or missing[2]).replace('%2f', '/')}” in the npm registry. Is its name in package.json spelt right?"
    if re.search(r"can only install packages when your package.json and|not in sync|frozen-lockfile|lockfile would have been modified|OUTDATED_LOCKFILE", printed):
        return f"{manager.lock} does not fit package.json. Run `{manager.program} install`, commit {manager.lock} and push again."
    if "ERESOLVE" in printed:
        return "Packages ask for versions of each other that do not go together; npm names them above."
    if "ETARGET" in printed or "No matching version" in printed or "NO_MATCHING_VERSION" in printed:
        return "A package is asked for in a version that does not exist; it is named above."
    if re.search(r"ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ECONNREFUSED", printed):
        return "The npm registry did not answer (see above). Push again; when it goes on, look at the host's network."
    return f"{manager.program} could not install the packages; the reason is above."


def run_script(app: App, manager: Manager, name: str) -> None:
    if not app.script(name):
        return
    say(f"Running {name}")
    argv = [manager.program, "run", *([] if manager.name == "berry" else ["--silent"]), name]
    environment = {**app.environment, "NODE_ENV": app.config.get("NODE_ENV", "production")}
    if subprocess.run(argv, cwd=app.build, env=environment, stdin=subprocess.DEVNULL).returncode != 0:
        fail(f"The script “{name}” of package.json failed; what it printed is in the build's output.")


# --- small things ---


def finish(app: App) -> None:
    remove(app.node / "include")  # the app runs without Node's headers
    profile = app.build / ".profile.d" / "nodejs.sh"
    profile.parent.mkdir(exist_ok=True)
    shutil.copyfile(Path(__file__).parent / "profile.sh", profile)
    export = Path(__file__).resolve().parent.parent / "export"
    export.write_text(f'export PATH="{app.node}/bin:{app.build}/node_modules/.bin:$PATH"\n')
    if command := start_command(app):
        (app.node / "starts").write_text(command)
    elif not app.has("Procfile") and not app.has(".buildpacks"):
        indent("package.json has no script “start”, and there is no Procfile: nothing says how to serve this app.")
        indent("To serve what the build made, commit a file .buildpacks with two lines: heroku/nodejs and davit/static")


def start_command(app: App) -> str | None:
    """What starts the app without a Procfile: npm runs server.js where there is no script, and only Yarn finds what is not in node_modules."""
    if app.script("start"):
        return "yarn start" if app.has(".pnp.cjs") else "npm start"
    if app.has("server.js"):
        return "yarn node server.js" if app.has(".pnp.cjs") else "npm start"
    return None


def unpack(tar: Path, directory: Path) -> bool:
    """Whether the tar could be unpacked; what is left of it otherwise is removed."""
    if not tar.is_file():
        return False
    directory.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["tar", "-xf", tar, "-C", directory], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
        return True
    shutil.rmtree(directory, ignore_errors=True)
    return False


def pack(directory: Path, tar: Path) -> None:
    tar.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["tar", "-cf", tar, "-C", directory, "."], stdin=subprocess.DEVNULL).returncode != 0:
        tar.unlink(missing_ok=True)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
