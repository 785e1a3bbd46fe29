"""How a stack is made: Debian 13 by mmdebstrap, cleaned of everything that is this host's, sealed twice.

The run variant comes first; the build variant is a copy of it with compilers and headers added, so that what is compiled
on the one fits the other. All programs run in a process tree of their own that dies with this process, in mount and
process namespaces of their own, so nothing that happens to the builder leaves a mount or a process behind; what it leaves
on disk is a directory whose name starts with ``.building-``, which is no stack and which the next builder removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from foundation import disk
from foundation.clock import now
from foundation.errors import DavitError
from foundation.programs import ProgramFailed, run
from runtime.stacks import Progress, StackError, digest_of
from slugs.image import preferred_format, seal_system

SUITE = "trixie"
NEEDED = 3 << 30
"""Bytes of free disk space that building needs."""
OWN_KEYS = Path(__file__).with_name("debian-13-keys")
"""Debian 13's archive keys, for hosts whose own keyring is older (Ubuntu 22.04)."""

# The libraries are those that the build variant has headers for: what is compiled there must start here.
RUN_PACKAGES = tuple(
    """
    bash bzip2 ca-certificates curl file git iproute2 netbase openssl procps python-is-python3 python3 python3-venv
    tzdata unzip xz-utils zip zstd
    libcurl4t64 libevent-2.1-7t64 libevent-core-2.1-7t64 libevent-extra-2.1-7t64 libevent-openssl-2.1-7t64
    libevent-pthreads-2.1-7t64 libffi8 libgmpxx4ldbl libgomp1 libicu76 libjpeg62-turbo libmariadb3 libmemcached11t64
    libmemcachedutil2t64 libncurses6 libpng16-16t64 libpq5 libpython3.13 libreadline8t64 libsqlite3-0 libstdc++6 libuv1t64
    libxml2 libxslt1.1 libyaml-0-2
    """.split()
)
BUILD_PACKAGES = tuple(
    """
    autoconf automake bison build-essential cmake gettext gnupg jq less libtool nodejs npm openssh-client patch perl
    pkg-config python3-dev python3-pip rsync ruby wget
    default-libmysqlclient-dev libbz2-dev libcurl4-openssl-dev libevent-dev libffi-dev libgmp-dev libjpeg-dev liblzma-dev
    libmemcached-dev libncurses-dev libpng-dev libpq-dev libreadline-dev libsqlite3-dev libssl-dev libxml2-dev
    libxslt1-dev libyaml-dev zlib1g-dev
    """.split()
)
LEFT_OUT = ("man", "info", "locale", "doc", "doc-base", "lintian", "linda", "groff")

# What containers mount over; a user namespace cannot make them in the read-only root (name, is a directory).
MOUNT_POINTS = {
    "app": True,
    "cache": True,
    "davit": True,
    "proc": True,
    "sys": True,
    "dev": True,
    "tmp": True,
    "sbin/davit-init": False,
    "etc/resolv.conf": False,
    "etc/hosts": False,
    "etc/hostname": False,
}
HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
USER = {
    "passwd": "dyno:x:1000:1000:Dyno:/app:/bin/bash\n",
    "group": "dyno:x:1000:\n",
    "shadow": "dyno:*:20000:0:99999:7:::\n",
    "gshadow": "dyno:!::\n",
}
# Paths below the root that carry something of the building host, or that only grow the image.
REMOVED = (
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "etc/ssh/ssh_host_*",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/.pwd.lock",
    "etc/*-",
    "root/.*",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old",
    "var/cache/*",
    "var/log/*",
    "usr/sbin/policy-rc.d",
    "usr/share/doc/*/changelog*",
    "usr/share/doc/*/NEWS*",
    "dev/*",
    "run/*",
    "tmp/*",
)


UNREACHABLE = (
    r"Temporary failure|Could not resolve|Could not connect|Unable to connect|Failed to fetch|Connection (?:refused|timed out)"
    r"|Failed to establish a new connection|No matching distribution"
)


class StackBuilder:
    """Builds one version of a stack below ``folder`` (``ROOT/NAME``); the caller holds the lock ``lock_fd``."""

    def __init__(self, folder: Path, name: str, mirror: str | None, progress: Progress, lock_fd: int) -> None:
        self.folder = folder
        self.name = name
        self.mirror = mirror
        self.progress = progress
        self.lock_fd = lock_fd
        self.work = folder / f".building-{os.getpid()}"
        self.run_tree = self.work / "run"
        self.build_tree = self.work / "build"
        self.sealed = self.work / "sealed"
        self.form = ""

    def build(self) -> None:
        """Make the version and let ``current`` point to it.

        Raises:
            StackError: why it could not be built.
        """
        try:
            self._check_host()
            self._clear_leftovers()
            self._install_run_variant()
            self._install_build_variant()
            self._seal()
            self._publish()
        except StackError:
            raise
        except (DavitError, OSError) as failed:
            raise StackError(explain(str(failed), [])) from failed
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def _check_host(self) -> None:
        if self.name != "davit-13":
            raise StackError(f"There is no stack called {self.name}; this version of Davit builds davit-13.")
        if os.geteuid() != 0:
            raise StackError("Building a stack needs root.")
        for program, package in (("mmdebstrap", "mmdebstrap"), ("setpriv", "util-linux"), ("unshare", "util-linux")):
            if shutil.which(program) is None:
                raise StackError(f"The program {program} is not installed: apt-get install {package}.")
        free = shutil.disk_usage(self.folder).free
        if free < NEEDED:
            raise StackError(
                f"Building a stack needs {NEEDED >> 30} GB of free disk space in {self.folder}, "
                f"and there are {free / 2**30:.1f} GB."
            )
        self.form = preferred_format()

    def _clear_leftovers(self) -> None:
        for pattern in (".building-*", ".removing-*"):
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
        self.sealed.mkdir(parents=True)

    def _install_run_variant(self) -> None:
        release = os_release(Path("/etc/os-release"))
        sources = sources_for(self.mirror, Path("/etc/apt"), release, default_mirror(_program_text("mmdebstrap")), reachable)
        self.progress("The run variant: fetching and installing Debian 13 (first its base, then about 110 packages).")
        self._watched(mmdebstrap_command(self.run_tree, sources, keyring(), apt_options()), "the run variant")
        settle(self.run_tree)

    def _install_build_variant(self) -> None:
        self.progress("The build variant: adding compilers, headers and tools (about 500 packages).")
        run(["cp", "-a", "--reflink=auto", self.run_tree, self.build_tree], timeout=600)
        scratch = self.build_tree / "tmp"
        (self.build_tree / "etc/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
        (self.build_tree / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (self.build_tree / "usr/sbin/policy-rc.d").chmod(0o755)
        with suppress(FileNotFoundError):
            shutil.copy("/etc/ssl/certs/ca-certificates.crt", scratch / "ca.crt")
        options = [word for option in apt_options() for word in ("-o", option)]
        script = install_script(options, BUILD_PACKAGES, ca=(scratch / "ca.crt").exists())
        self._watched(["chroot", str(self.build_tree), "/bin/sh", "-euc", script], "the build variant")
        self._install_uv()
        settle(self.build_tree)

    def _install_uv(self) -> None:
        self.progress("The build variant: fetching uv.")
        wheels = self.work / "wheels"
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(wheels), "uv"]
        try:
            run([sys.executable, *command], timeout=600)
        except ProgramFailed as failed:
            raise StackError(explain("uv could not be fetched with pip", failed.stderr.splitlines())) from failed
        (wheel,) = wheels.glob("uv-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
            target = self.build_tree / "usr/local/bin/uv"
            with archive.open(member) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            target.chmod(0o755)

    def _seal(self) -> None:
        for variant, tree in (("run", self.run_tree), ("build", self.build_tree)):
            self.progress(f"Sealing the {variant} variant ({self.form}).")
            seal_system(tree, self.sealed / f"{variant}.{self.form}", form=self.form)

    def _publish(self) -> None:
        debian = (self.run_tree / "etc/debian_version").read_text().strip()
        version = f"{debian}-{now():%Y%m%d%H%M%S}"
        described = describe(self.name, version, debian, self.form, self.sealed, [self.run_tree, self.build_tree])
        (self.sealed / "stack.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
        disk.sync(*self.sealed.iterdir(), self.sealed)
        self.sealed.chmod(0o755)
        self.sealed.rename(self.folder / version)
        draft = self.folder / ".current"
        draft.unlink(missing_ok=True)
        draft.symlink_to(version)
        disk.sync(self.folder)
        draft.replace(self.folder / "current")
        disk.sync(self.folder)

    def _watched(self, command: Sequence[str], what: str) -> None:
        """Run a program in namespaces of its own, telling how far it is; it ends when this process ends."""
        guard = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # The lock goes with it: should anything survive after all, the next builder waits for it.
        child = subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(os.environ),
            pass_fds=(self.lock_fd,),
        )
        assert child.stdout is not None
        last: deque[str] = deque(maxlen=40)
        counter = PackageCount(what)
        try:
            for raw in child.stdout:
                line = raw.decode(errors="replace").rstrip()
                last.append(line)
                if (told := counter.read(line)) is not None:
                    self.progress(told)
            status = child.wait()
        finally:
            child.kill()
            child.wait()
        if status != 0:
            raise StackError(explain(f"Installing {what} failed", last))


class PackageCount:
    """Reads what apt and dpkg print and says now and then how far they are; pure.

    Args:
        what: named in every line.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.total = 0
        self.done: dict[str, int] = {}
        self.told: dict[str, int] = {}

    def read(self, line: str) -> str | None:
        """Take in one line; a sentence when another quarter of a phase is done."""
        if counted := re.match(r"\d+ upgraded, (\d+) newly installed", line):
            self.total, self.done, self.told = int(counted[1]), {}, {}
            return None
        for start, phase in (("Get:", "fetched"), ("Unpacking ", "unpacked"), ("Setting up ", "set up")):
            if line.startswith(start) and self.total:
                return self._step(phase)
        return None

    def _step(self, phase: str) -> str | None:
        done = self.done[phase] = self.done.get(phase, 0) + 1
        quarter = done * 4 // self.total
        if done > self.total or quarter == self.told.get(phase, 0):
            return None
        self.told[phase] = quarter
        return f"  {self.what}: {done} of {self.total} packages {phase}"


def mmdebstrap_command(tree: Path, sources: Sequence[str], keys: Path, options: Sequence[str]) -> list[str]:
    """The argv that makes the run variant in ``tree``.

    Args:
        sources: one-line apt sources; none for mmdebstrap's own default.
        keys: the keyring (a file or a directory of them) that the sources are signed by.
        options: apt.conf settings for the time of the installation, ``Name=value``.
    """
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
    kept = ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    settings = [f'--aptopt={name} "{value}"' for name, _, value in (option.partition("=") for option in options)]
    start = ["mmdebstrap", "--verbose", "--mode=root", "--variant=minbase", "--format=directory", f"--keyring={keys}"]
    return [*start, *settings, *excluded, *kept, f"--include={','.join(RUN_PACKAGES)}", SUITE, str(tree), *sources]


def install_script(options: Sequence[str], packages: Sequence[str], ca: bool) -> str:
    """The shell script that adds packages to a tree, run with that tree as its root and a mount namespace of its own."""
    trust = " -o Acquire::https::CaInfo=/tmp/ca.crt" if ca else ""
    apt = f"apt-get -y {' '.join(options)}{trust}"
    return (
        "mount -t proc proc /proc; export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; "
        f"{apt} update; {apt} install --no-install-recommends {' '.join(packages)}; apt-get clean"
    )


def sources_for(
    mirror: str | None, apt: Path, release: Mapping[str, str], default: str | None, is_there: Callable[[str], bool]
) -> list[str]:
    """The apt sources to build from.

    Args:
        mirror: what the operator chose; its security archive is taken to be beside it, at ``MIRROR-security``.
        apt: the host's /etc/apt: on a Debian host its mirrors are used when the operator chose none.
        release: the host's os-release.
        default: the mirror for everybody else.
        is_there: asked with a URL whether it can be fetched.

    Returns:
        One-line sources, Debian's security archive among them where it is known; empty when no mirror is known at all.
    """
    main, security = (mirror, None) if mirror else host_mirrors(apt, release)
    main = main or default
    if not main:
        return []
    main = main.rstrip("/")
    security = security.rstrip("/") if security else f"{main}-security"
    lines = [f"deb {main} {SUITE} main", f"deb {main} {SUITE}-updates main"]
    if not mirror or is_there(f"{security}/dists/{SUITE}-security/InRelease"):
        lines.append(f"deb {security} {SUITE}-security main")
    return lines


def default_mirror(program: str) -> str | None:
    """mmdebstrap's default mirror, out of its source text.

    Asking it to choose by itself would do, but for the versions that are older than Debian 13 (Ubuntu 22.04's): they take
    its security archive to be where Debian 10's was.
    """
    found = re.search(r"""['"](https?://[^'"\s]+/debian)/?['"]""", program)
    return found[1] if found else None


def _program_text(name: str) -> str:
    path = shutil.which(name)
    return _text(Path(path)) if path else ""


def host_mirrors(apt: Path, release: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The Debian mirror and security mirror that a Debian host uses itself; None for what it has not."""
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        return None, None
    main = security = None
    for uri, suites in _sources(apt):
        if uri.startswith(("http://", "https://")):
            main = main or (uri if codename in suites else None)
            security = security or (uri if f"{codename}-security" in suites else None)
    return main, security


def _sources(apt: Path) -> Iterable[tuple[str, list[str]]]:
    """(URI, suites) of every binary source in both of apt's formats (sources.list(5))."""
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]:
        for line in _text(path).splitlines():
            if found := re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", line):
                yield found[1], [found[2]]
    for path in sorted((apt / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n", "", _text(path))):
            fields = {key.lower(): value.split() for key, value in re.findall(r"(?m)^([\w-]+):\s*(.*)$", stanza)}
            if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
                for uri in fields.get("uris", []):
                    yield uri, fields.get("suites", [])


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def os_release(path: Path) -> dict[str, str]:
    """os-release(5) as a mapping."""
    return {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in _text(path).splitlines())}


def reachable(url: str) -> bool:
    """Whether a URL can be fetched, through the proxy of the environment if there is one."""
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def keyring() -> Path:
    """The host's Debian keyring where it knows Debian 12's keys or newer (they sign Debian 13 too), else our copy."""
    host = Path("/usr/share/keyrings")
    recent = any(any(host.glob(f"debian-archive-{release}-automatic.*")) for release in ("bookworm", SUITE))
    whole = host / "debian-archive-keyring.gpg"
    return whole if recent and whole.exists() else OWN_KEYS


def apt_options() -> list[str]:
    """What of the host's apt configuration must hold in the tree too, as ``Name=value``: how patient apt is."""
    found = {"Acquire::Retries": "3", "APT::Install-Recommends": "false"}
    with suppress(ProgramFailed):
        told = run(["apt-config", "dump", "--format=%f=%v%n", "Acquire"]).stdout.decode(errors="replace")
        wanted = {"Acquire::Check-Valid-Until", "Acquire::Check-Date"}
        found.update(line.split("=", 1) for line in told.splitlines() if line.split("=", 1)[0] in wanted)  # type: ignore[misc]
    return [f"{name}={value}" for name, value in found.items()]


def environment(host: Mapping[str, str]) -> dict[str, str]:
    """The environment for mmdebstrap and apt: a path, and the host's proxies (apt's own setting where there is no variable)."""
    proxies = {k: v for k, v in host.items() if k.lower() in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")}
    for scheme in ("http", "https"):
        if f"{scheme}_proxy" not in proxies:
            with suppress(ProgramFailed):
                told = run(["apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy"]).stdout.decode(errors="replace")
                if found := re.fullmatch(r"PROXY='(.+)'\s*", told):
                    proxies[f"{scheme}_proxy"] = found[1]
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **proxies}


def settle(tree: Path) -> None:
    """Make a freshly installed tree nobody's: nothing of the host in it, the dyno's user and every mount point there."""
    for pattern in REMOVED:
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, is_directory in MOUNT_POINTS.items():
        _make_mount_point(tree / name, is_directory)
    (tree / "etc/hosts").write_text(HOSTS)
    (tree / "tmp").chmod(0o1777)
    for name, line in USER.items():
        _add_line(tree / "etc" / name, line)
    os.chown(tree / "app", 1000, 1000)
    os.chown(tree / "cache", 1000, 1000)
    _settle_sources(tree / "etc/apt")


def _make_mount_point(path: Path, is_directory: bool) -> None:
    if is_directory:
        path.mkdir(exist_ok=True)
    else:
        path.unlink(missing_ok=True)
        path.write_bytes(b"")
        path.chmod(0o644)


def _add_line(path: Path, line: str) -> None:
    text = path.read_text() if path.exists() else ""
    if line not in text:
        path.write_text(text + line)


def _settle_sources(apt: Path) -> None:
    # Buildpacks read both places and fail where one is empty.
    signed = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    text = re.sub(r"(?m)^deb +(?:\[[^\]]*\] *)?", signed, _text(apt / "sources.list"))
    text = "".join(f"{line}\n" for line in text.splitlines() if line.strip())
    if text:
        (apt / "sources.list").write_text(text)
    (apt / "sources.list.d/davit.list").write_text("# Further sources go here; Debian's own are in ../sources.list.\n")


def describe(name: str, version: str, debian: str, form: str, sealed: Path, trees: Sequence[Path]) -> dict[str, object]:
    """What stack.json holds; ``trees`` are the variants' directories, ``sealed`` holds an image named after each."""
    images = {tree.name: sealed / f"{tree.name}.{form}" for tree in trees}
    return {
        "name": name,
        "version": version,
        "debian": debian,
        "format": form,
        "recipe": recipe(),
        "built_at": f"{now():%Y-%m-%dT%H:%M:%SZ}",
        "images": {v: {"file": p.name, "size": p.stat().st_size, "digest": digest_of(p)} for v, p in images.items()},
        "packages": {tree.name: installed(_text(tree / "var/lib/dpkg/status")) for tree in trees},
    }


def recipe() -> str:
    """A short digest of everything in this module that decides what is in a stack."""
    parts = [SUITE, RUN_PACKAGES, BUILD_PACKAGES, LEFT_OUT, sorted(MOUNT_POINTS), HOSTS, sorted(USER.items()), REMOVED]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def installed(status: str) -> dict[str, str]:
    """Package to version, from dpkg's status file."""
    stanzas = (dict(re.findall(r"(?m)^(Package|Version|Status): (.*)$", stanza)) for stanza in status.split("\n\n"))
    return {s["Package"]: s["Version"] for s in stanzas if s.get("Status") == "install ok installed"}


def explain(what: str, output: Iterable[str]) -> str:
    """A person's sentence for a failure, from the last lines that the programs printed."""
    lines = [re.sub(r"//[^/@\s]+@", "//", line).strip() for line in output if line.strip()]
    text = "\n".join([what, *lines])
    if "No space left on device" in text:
        return f"The disk is full: building a stack needs {NEEDED >> 30} GB. Free some space and build again."
    if re.search(UNREACHABLE, text):
        return (
            f"{what}: the package servers cannot be reached. Check this host's network and DNS; behind a proxy set http_proxy and"
            " https_proxy, and set DAVIT_MIRROR to use another Debian mirror."
        )
    reasons = [line for line in lines if re.match(r"(?i)(e:|error|dpkg: error)", line)] or lines
    return f"{what}: {reasons[0] if reasons else 'it gave no reason'}"[:700]
