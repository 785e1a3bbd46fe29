"""A slug as a package of Capstan, OSv's image tool: the root file system with ``meta/package.yaml`` and ``meta/run.yaml``.

A package (``.mpm``) is a gzipped tar of what is to be the root, and of these two (Capstan's documentation, "Application
management" and "Configuration files"). Config vars are not in it: they are secrets, and a package is passed on.

Capstan writes each configuration as a runscript, unquoted: ``--env=NAME?=VALUE … COMMAND``; and the program starts in ``/``, for
only the kernel's own line can say another directory. Davit's modules in Python and Node.js go to /app by themselves, before
almost anything else (:func:`needs_its_directory`).
"""

from __future__ import annotations

import gzip
import io
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import yaml

from slugs import cpio, osvline
from slugs.osvcommand import Launch
from slugs.osvimage import APP, ImageFailed
from slugs.rofs import Disk, File, Folder, Link

CREATED = "1970-01-01 00:00"
"""A package says when it was made; ours does not, so that the same slug gives the same package."""


CANNOT_HOLD = "a blank, a quote, one of $ \\ ; & ! or what is no printable ASCII in its value, which Capstan cannot pass on"
"""What is wrong with a variable's value for which :func:`can_hold` is false."""
_PLAIN = re.compile(r"[^\x00-\x20\x7f-\U0010ffff\"'$\\;&!]*")

_NODE_CODE = frozenset(("-e", "--eval", "-p", "--print", "-pe", "-"))
_NODE_REQUIRES = frozenset(("-r", "--require"))
_NODE_READS = frozenset(("--env-file", "--env-file-if-exists"))
_NODE_VALUES = _NODE_REQUIRES | _NODE_READS | {
    "-C", "--conditions", "--cpu-prof-dir", "--cpu-prof-interval", "--cpu-prof-name", "--diagnostic-dir", "--disable-proto",
    "--disable-warning", "--dns-result-order", "--experimental-default-type", "--experimental-loader", "--heap-prof-dir",
    "--heap-prof-interval", "--heap-prof-name", "--heapsnapshot-near-heap-limit", "--heapsnapshot-signal", "--icu-data-dir",
    "--import", "--input-type", "--loader", "--localstorage-file", "--max-http-header-size",
    "--network-family-autoselection-attempt-timeout", "--openssl-config", "--redirect-warnings", "--report-dir",
    "--report-directory", "--report-filename", "--report-signal", "--secure-heap", "--secure-heap-min", "--snapshot-blob",
    "--title", "--tls-cipher-list", "--tls-keylog", "--trace-event-categories",
    "--trace-event-file-pattern", "--trace-require-module", "--unhandled-rejections", "--use-largepages", "--v8-pool-size",
    "--watch-path",
}  # fmt: skip
"""Node.js' options whose value may be a word of its own (``node --help``)."""


@dataclass(frozen=True)
class Package:
    """What a package says of itself.

    Attributes:
        name, title, author, version: as ``meta/package.yaml`` has them.
        launches: process type → what it starts; the first is the default.
        defaults: the buildpacks' own config vars, which are no secrets.
    """

    name: str
    title: str
    author: str
    version: str
    launches: Mapping[str, Launch]
    defaults: Mapping[str, str] = field(default_factory=dict)


def package_yaml(package: Package) -> str:
    """``meta/package.yaml``."""
    fields = {"name": package.name, "title": package.title, "author": package.author, "version": package.version}
    return yaml.safe_dump({**fields, "created": CREATED}, sort_keys=False)


def run_yaml(package: Package, port: int) -> str:
    """``meta/run.yaml``: a configuration for each process type.

    Args:
        port: what PORT is set to.

    Raises:
        ImageFailed: a launch holds what Capstan's boot commands cannot.
    """
    sets = {name: _config_set(name, launch, package.defaults, port) for name, launch in package.launches.items()}
    document = {"runtime": "native", "config_set": sets, "config_set_default": next(iter(sets))}
    return yaml.safe_dump(document, sort_keys=False, width=1 << 20)


def can_hold(value: str) -> bool:
    """Whether it arrives as a variable's value: Capstan, which refuses blanks, writes it without quotes into a runscript's line,
    and what that does with it, :mod:`slugs.osvline` says."""
    return _PLAIN.fullmatch(value) is not None


def from_anywhere(launch: Launch, is_file: Callable[[str], bool]) -> Launch:
    """``launch`` for a start in ``/``: the script or archive that it names in the slug, by its whole path.

    Node.js makes its script's path absolute before Davit's module takes it to /app, whether there is such a file (it may be a
    directory, or have no ending) or not.

    Args:
        is_file: whether a path is a file's.
    """
    words = list(launch.argv)
    if launch.runtime == "node":
        number = _node_script(words)
    elif launch.runtime == "java":
        number = next((at for at, word in enumerate(words) if not word.startswith(("/", "-")) and is_file(_whole(word))), None)
    else:
        number = None
    if number is not None:
        words[number] = _whole(words[number])
    return replace(launch, argv=tuple(words))


def needs_its_directory(launch: Launch) -> bool:
    """Whether nothing of Davit's takes the program to /app before it looks for files there."""
    return launch.runtime in ("native", "java") or (launch.runtime == "node" and _looks_for_files_early(launch.argv))


def _whole(path: str) -> str:
    return posixpath.normpath(posixpath.join(APP, path))


def _node_words(words: Sequence[str]) -> int:
    """Where the words behind ``node`` begin."""
    return next((at for at, word in enumerate(words, 1) if word.rsplit("/", 1)[-1] == "node"), len(words))


def _node_script(words: Sequence[str]) -> int | None:
    """Where Node.js' script is; None when it is given code."""
    at = _node_words(words)
    while at < len(words) and words[at].startswith("-"):
        if words[at].partition("=")[0] in _NODE_CODE:
            return None
        if words[at] == "--":
            return at + 1 if at + 1 < len(words) else None
        at += 2 if words[at] in _NODE_VALUES else 1
    return at if at < len(words) else None


def _looks_for_files_early(words: Sequence[str]) -> bool:
    """Node.js reads ``--env-file`` before any module, and looks for packages of ``-r`` from where it began."""
    script = _node_script(words)
    options = list(words[_node_words(words) : script])
    for option, following in zip(options, [*options[1:], ""], strict=False):
        name, equals, value = option.partition("=")
        value = value if equals else following
        if name in _NODE_READS and not value.startswith("/"):
            return True
        if name in _NODE_REQUIRES and not value.startswith(("/", "./", "../")):
            return True
    return False


def _config_set(name: str, launch: Launch, defaults: Mapping[str, str], port: int) -> dict[str, object]:
    environment = {**defaults, "PORT": str(port), "HOME": "/app", **launch.environment}
    for variable, value in environment.items():
        if not can_hold(value):
            raise ImageFailed(f"{variable} of “{name}” has {CANNOT_HOLD}.")
    try:
        words = [
            word if word.isascii() and word.replace("/", "").replace("-", "a").isalnum() else osvline.word(word)
            for word in launch.argv
        ]
    except ValueError as error:
        raise ImageFailed(f"The command of “{name}” cannot be written as a boot command: {error}.") from None
    return {"bootcmd": " ".join(words), "env": {key: value for key, value in environment.items() if value}}


def write_package(package: Package, root: Folder, stream: BinaryIO, port: int = 8080) -> int:
    """Write the package; returns how many entries it has. Streams: memory does not grow with the files.

    Args:
        root: what is to be the root file system, the slug at ``app``; its ``meta`` is ours.
    """
    meta = {"meta/package.yaml": package_yaml(package), "meta/run.yaml": run_yaml(package, port)}
    count = 0
    with (
        gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=3, mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18) as archive,
    ):
        for name, content in meta.items():
            archive.addfile(_member(name, size=len(content.encode())), io.BytesIO(content.encode()))
        for path, node in cpio.entries(root):
            count += 1
            if isinstance(node, Link):
                member = _member(path, kind=tarfile.SYMTYPE)
                member.linkname = os.fsdecode(node.target)
                archive.addfile(member)
            elif isinstance(node, File):
                with node.open() as source:
                    archive.addfile(_member(path, size=node.size), source)
            elif isinstance(node, Folder | Disk):
                archive.addfile(_member(path, kind=tarfile.DIRTYPE))
    return count


def _member(path: str, *, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.size, member.type, member.mode = size, kind, 0o755
    return member
