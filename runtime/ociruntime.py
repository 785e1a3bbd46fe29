"""The OCI runtime's command lines, and which one of crun and runc works on this host."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from foundation import programs
from foundation.errors import DavitError
from runtime import cgroups, oci, userns
from runtime.driver import Limits

_WAYS = (("crun", True), ("crun", False), ("runc", False))
"""Names, and whether they join a user namespace."""
_TRIAL_UIDS = 0x0FFF0000
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
"""Davit's own environment has secrets that are none of the OCI runtime's business."""


class NoOciRuntime(DavitError):
    """Neither crun nor runc can start a container on this host."""

    id, status = "no_oci_runtime", 503


@dataclass
class OciRuntime:
    """crun or runc.

    Attributes:
        path: the program.
        root: where it keeps the containers' states.
        init: the static init that is bound into every container.
        features: what the host's kernel offers.
        joins: whether it takes the user namespace that it is given; else it makes one of root's. runc does not, nor crun where
            root lacks CAP_SYS_NICE (it may be in a container of Docker's), without which nobody but a namespace's owner moves
            what is in it to a cpuset.
        environment: the program's whole environment.
        copy: a descriptor of :func:`_sealed_copy`, to which a link leads; None: the file itself is executed.
    """

    path: str
    root: Path
    init: Path
    features: oci.Features
    joins: bool = False
    environment: dict[str, str] = field(default_factory=lambda: dict(_ENVIRONMENT))
    copy: int | None = None

    @property
    def _link(self) -> Path:
        """Its name is what a list of processes shows."""
        return self.root.with_name("crun-copy")

    @property
    def program(self) -> str:
        """What is executed."""
        return self.path if self.copy is None else str(self._link)

    def hold(self, copy: int) -> None:
        """From now on execute this copy."""
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(f"/proc/{os.getpid()}/fd/{copy}")
        self.copy = copy

    def close(self) -> None:
        """Give the copy up; idempotent."""
        if self.copy is not None:
            self._link.unlink(missing_ok=True)
            os.close(self.copy)
            self.copy = None

    @property
    def is_crun(self) -> bool:
        """Whether it is crun."""
        return Path(self.path).name == "crun"

    def users(self, namespace: int) -> str | None:
        """What a configuration names for a user namespace, of which this is a descriptor; None where it makes one itself."""
        return f"/proc/{os.getpid()}/fd/{namespace}" if self.joins else None

    def _global(self, log: Path) -> list[str]:
        manager = ["--cgroup-manager", "cgroupfs"] if self.is_crun else []
        return [self.path, "--root", str(self.root), *manager, "--log", str(log), "--log-format", "json"]

    def run_argv(self, id: str, bundle: Path, pid_file: Path, console: Path | None, log: Path) -> list[str]:
        """Create and start a container in one program run, which ends as soon as the container's command runs.

        Measured against `create` and `start`: one program start less, and the cgroup stays for us to read all the same.
        """
        terminal = ["--console-socket", str(console)] if console else []
        return [*self._global(log), "run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), *terminal, id]

    def exec_argv(self, id: str, work: Path, terminal: bool) -> list[str]:
        """Run ``work``/process.json in a container; its pid goes to ``work``/pid, its terminal to ``work``/console."""
        console = ["--console-socket", str(work / "console")] if terminal else []
        files = ["--process", str(work / "process.json"), "--pid-file", str(work / "pid")]
        return [*self._global(work / "log"), "exec", "--detach", *files, *console, id]

    def reason(self, log: Path) -> str:
        """The last error that it logged, as a sentence."""
        try:
            lines = log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        if not lines:
            return f"{Path(self.path).name} gave no reason."
        try:
            message = str(json.loads(lines[-1])["msg"])
        except (ValueError, KeyError, TypeError):
            message = lines[-1]
        return re.sub(r"\s+", " ", message).strip().rstrip(".") + "."

    def scrub(self, id: str) -> None:
        """Take the environment out of the copy of the configuration that crun keeps: it holds config vars.

        `exec` gets its own environment; it needs the copy for everything else.
        """
        path = self.root / id / "config.json"
        try:
            config = json.loads(path.read_text())
            config["process"]["env"] = []
            fresh = path.with_name("config.json.new")
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps(config))
            os.rename(fresh, path)
        except (OSError, ValueError, KeyError, TypeError):
            return

    def forget(self, id: str) -> None:
        """Delete the state of a container that has ended."""
        shutil.rmtree(self.root / id, ignore_errors=True)


def choose(root: Path, work: Path, cgroup: str, wanted: str | None = None) -> OciRuntime:
    """The first OCI runtime that runs a trial container with the very options that dynos get.

    Args:
        root: where states are kept.
        work: a directory to make, in the private mount namespace.
        cgroup: the instance's cgroup.
        wanted: try only this one.

    Raises:
        NoOciRuntime: none does; the sentence has the last one's reason.
    """
    init = _static_init()
    reasons = []
    for name, joins in [way for way in _WAYS if wanted in (None, way[0])]:
        path = shutil.which(name, path=_ENVIRONMENT["PATH"])
        if path is None:
            continue
        candidate = OciRuntime(path, root, init, _features(), joins)
        try:
            _try(candidate, work, cgroup)
            if candidate.is_crun and (copy := _sealed_copy(path)) is not None:
                candidate.hold(copy)
            return candidate
        except (programs.ProgramFailed, OSError) as error:
            reasons.append(f"{name}: {candidate.reason(work / 'log') if (work / 'log').exists() else error}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
    why = " ".join(reasons) or "neither is installed"
    raise NoOciRuntime(f"Neither crun nor runc can start a container on this host ({why}); `davit doctor` says what is missing.")


def _sealed_copy(path: str) -> int | None:
    """A copy of crun in memory that nobody can write to; None where the host executes no such file.

    crun must not be written to by a container that it sets up (CVE-2019-5736), so it executes a copy of itself each time,
    unless it runs from a fully sealed file as it is (src/libcrun/cloned_binary.c): that spares a mount, its removal, for which
    the kernel waits, and a program start.
    """
    fd = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb") as source, open(os.dup(fd), "wb") as target:
            shutil.copyfileobj(source, target)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        programs.run([f"/proc/{os.getpid()}/fd/{fd}", "--version"], env=_ENVIRONMENT, timeout=20)
        return fd
    except (OSError, programs.ProgramFailed):  # for example vm.memfd_noexec
        os.close(fd)
        return None


def _static_init() -> Path:
    for name in ("tini-static", "docker-init"):
        found = shutil.which(name, path=_ENVIRONMENT["PATH"])
        if found:
            return Path(found).resolve()
    raise NoOciRuntime("The program tini-static is not installed; `apt-get install tini` has it.")


def _features() -> oci.Features:
    layout = cgroups.layout()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if layout.unified is not None:
        return oci.Features(swap=True, v2=True, files=files)
    memory = layout.controllers.get("memory")
    return oci.Features(swap=memory is not None and (memory / "memory.memsw.limit_in_bytes").exists(), v2=False, files=files)


def _try(candidate: OciRuntime, work: Path, cgroup: str) -> None:
    root = work / "rootfs"
    for name in ("proc", "dev", "sys", "app", "sbin"):
        (root / name).mkdir(parents=True)
    (root / "sbin/davit-init").touch()
    work.chmod(0o711)
    limits = Limits(memory=64 << 20, memory_max=64 << 20, cpu_quota=1.0, pids=16)
    bind = oci.Mounted(str(candidate.init), oci.INIT)
    command = [oci.INIT, "--version"]
    path = f"{cgroup}/probe"
    namespace = userns.create(_TRIAL_UIDS)
    users = candidate.users(namespace)
    container = oci.Container(
        str(root), "probe", command, {}, limits, _TRIAL_UIDS, path, users, binds=[bind], features=candidate.features
    )
    (work / "config.json").write_text(json.dumps(oci.compose(container)))
    id = f"probe-{os.getpid()}"
    try:
        argv = [*candidate._global(work / "log"), "run", "--bundle", str(work), id]
        programs.run(argv, input=b"", env=candidate.environment, timeout=20)  # crun would give /dev/null away: Host.null
    finally:
        os.close(namespace)
        candidate.forget(id)
        cgroups.Cgroup(path).remove(0.5)
