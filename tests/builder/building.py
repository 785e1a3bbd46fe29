"""A build without a container: the real build program, run as a child in directories of its own.

Stands in for the runtime process's sandbox (tests/e2e has the real one); isolation and limits are not tested with it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import buildpacks
from builder.sandbox import BOOTSTRAP, Ended, Feeder, Inlet, Sealed

REPOSITORY = Path(__file__).resolve().parents[2]


class LocalSandbox:
    """See :class:`builder.sandbox.Sandbox`. ``root`` holds app, cache, tmp and out as the container's / does."""

    def __init__(self, root: Path, program: Sequence[str] = ("/usr/bin/python3", "-I", "-S", "-c", BOOTSTRAP)) -> None:
        self.root = root
        paths = {name: str(root / name) for name in ("app", "cache", "tmp", "out")}
        (root / "tmp").mkdir(parents=True, exist_ok=True)
        stdin, ours = os.pipe2(os.O_CLOEXEC)
        self.stdin = Inlet(ours)
        self.report, report = os.pipe2(os.O_CLOEXEC)
        self.output, output = os.pipe2(os.O_CLOEXEC)
        self.process = subprocess.Popen(
            program, stdin=stdin, stdout=report, stderr=output, start_new_session=True,
            env={"PATH": os.environ["PATH"], "DAVIT_PATHS": json.dumps(paths)},
        )  # fmt: skip
        for descriptor in (stdin, report, output):
            os.close(descriptor)

    def wait(self) -> Ended:
        status = self.process.wait()
        return Ended(status if status >= 0 else 128 - status)

    def seal(self) -> Sealed:
        listing = sorted(str(path.relative_to(self.root / "out")) for path in (self.root / "out").rglob("*"))
        return Sealed("sha256:" + hashlib.sha256("\n".join(listing).encode()).hexdigest(), 1234567)

    def commit_cache(self) -> bool:
        return True

    def close(self) -> None:
        """Ends what still runs, as the container's end would."""
        self.stdin.close()
        for process in processes_below(self.root) | {self.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        for descriptor in (self.report, self.output):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def processes_below(root: Path) -> set[int]:
    """Processes whose working directory is below ``root``."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str((entry / "cwd").readlink()).startswith(f"{root}/"):
                    found.add(int(entry.name))
    return found


def tar_of(files: Mapping[str, str | bytes], modes: Mapping[str, int] | None = None) -> bytes:
    """A tar of files; a text that begins with ``->`` is a symlink."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = (modes or {}).get(name, 0o644), 1_700_000_000
            if isinstance(content, str) and content.startswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, content[2:]
                tar.addfile(info)
                continue
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_of_directory(directory: Path) -> bytes:
    """A directory's files as a tar."""
    return subprocess.run(["tar", "-cf", "-", "-C", directory, "."], check=True, capture_output=True).stdout


@dataclass
class Built:
    """What a build came to."""

    root: Path
    status: int | None
    output: str
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def end(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def app(self) -> Path:
        return self.root / "out" / "app"

    def content(self, name: str) -> str:
        return base64.b64decode(self.end[name] or "").decode()


def run_inside(
    root: Path,
    source: bytes,
    *,
    buildpacks_set: Sequence[str] = (),
    streams: Mapping[str, bytes] | None = None,
    config: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    **order: Any,
) -> Built:
    """Run the build program on ``source``, with ``streams`` as the host's buildpacks (``file://NAME``)."""
    for name in ("out", "tmp", "app"):
        if (root / name).is_symlink():
            (root / name).unlink()
        shutil.rmtree(root / name, ignore_errors=True)
    streams = dict(streams or {})
    full = {
        "stack": "davit-13",
        "stack_alias": "heroku-24",
        "source_version": "0123456789abcdef0123456789abcdef01234567",
        "request_id": "request",
        "buildpacks": list(buildpacks_set),
        "bundled": buildpacks.BUNDLED,
        "file_buildpacks": {f"file://{name}": name for name in streams},
        "config": dict(config or {}),
        "environment": dict(environment or {}),
        "submodules": [],
        "disk": 100,
        "streams": ["bundled", *streams, "source"],
        **order,
    }
    sandbox = LocalSandbox(root)
    try:
        feeder = Feeder(
            sandbox,
            json.dumps(full).encode(),
            iter([iter([part]) for part in (buildpacks.bundled_archive(), *streams.values(), source)]),
        )
        feeder.start()
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as reported:
            _drain({sandbox.output: printed, sandbox.report: reported}, sandbox)
            ended = sandbox.wait()
            printed.seek(0)
            reported.seek(0)
            events = [json.loads(line) for line in reported.read().splitlines()]
            return Built(root, ended.status, printed.read().decode(errors="replace"), events)
    finally:
        sandbox.close()


def _drain(into: Mapping[int, Any], sandbox: LocalSandbox) -> None:
    import selectors

    with selectors.DefaultSelector() as selector:
        for descriptor, file in into.items():
            selector.register(descriptor, selectors.EVENT_READ, file)
        while selector.get_map():
            ended = sandbox.process.poll() is not None
            ready = selector.select(0.1)
            if ended and not ready:
                return
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if data:
                    key.data.write(data)
                else:
                    selector.unregister(key.fd)


@contextlib.contextmanager
def build_root() -> Iterator[Path]:
    """A directory for a build, removed afterwards."""
    root = Path(tempfile.mkdtemp(prefix="dvb", dir="/tmp"))
    try:
        yield root
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", root], check=False)
        shutil.rmtree(root, ignore_errors=True)
