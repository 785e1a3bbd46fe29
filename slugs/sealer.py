"""The process that seals a tree: sees the tree, the image and /usr, has no network, no privileges, and then becomes mkfs.

Run by :mod:`slugs.image` in a bare interpreter (``python -I -S``), with one argument, a dictionary by marshal in hexadecimal
(every build waits for this process to start, and to load json or pathlib takes longer than all that it does itself):

``tree`` and ``image``: descriptors; ``uid``: what to become (null: stay); ``confine``: whether to leave the host's file
system (needs root); ``open_up``: first give the owner read access everywhere; ``limit``: bytes of the image at the most;
``tree_limit``: bytes that the tree may claim to hold; ``seconds``: of CPU time at the most; ``command``: argv, where
``{tree}`` and ``{image}`` stand for their paths; ``env``: its environment.
"""

from __future__ import annotations

import marshal
import os
import resource
import stat
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # noqa: PTH120

from slugs import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TREE_TOO_LARGE = 77
"""The exit status that says so."""


def main(order: dict[str, Any]) -> None:
    """Do what the module says; never returns when all goes well."""
    tree, image = (_confine if order["confine"] else _in_place)(order["tree"], order["image"])
    _drop_privileges(order["uid"])
    if order["open_up"]:
        os.chdir(tree)
        open_up(".")
        os.chdir("/")
    if claimed_size(tree) > order["tree_limit"]:
        os._exit(TREE_TOO_LARGE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    resource.setrlimit(resource.RLIMIT_CPU, (order["seconds"], order["seconds"] + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    argv = [word.format(tree=tree, image=image) for word in order["command"]]
    os.execve(argv[0], argv, order["env"])  # noqa: S606


def _in_place(tree: int, image: int) -> tuple[str, str]:
    os.set_inheritable(tree, True)
    os.set_inheritable(image, True)
    return f"/proc/self/fd/{tree}/", f"/proc/self/fd/{image}"


def _confine(tree: int, image: int) -> tuple[str, str]:
    usr = os.open("/usr", os.O_PATH | os.O_CLOEXEC)
    mounts = {"tree": kernel.clone_mount(tree), "image": kernel.clone_mount(image), "usr": kernel.clone_mount(usr)}
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("sealer", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")  # noqa: S108
    new = "/tmp"  # noqa: S108
    for name in ("tree", "usr"):
        os.mkdir(f"{new}/{name}")  # noqa: PTH102
    os.close(os.open(f"{new}/image", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    for name in ("bin", "lib", "lib64"):  # Debian 12+ and Ubuntu 22.04+ are all merged into /usr
        os.symlink(f"usr/{name}", f"{new}/{name}")  # noqa: PTH211
    for name, descriptor in mounts.items():
        kernel.attach_mount(descriptor, f"{new}/{name}")
    kernel.pivot_into(new)
    return "/tree", "/image"


def _drop_privileges(uid: int | None) -> None:
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    kernel.no_new_privileges()


def claimed_size(tree: str) -> int:
    """The bytes that all files below ``tree`` claim to hold, hard links counted once; 0 when they cannot be counted."""
    # du, because it takes a twentieth of what a walk in Python takes, and every deploy waits for this.
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    argv = ["du", "--summarize", "--apparent-size", "--block-size=1", tree]
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_CLOSE, 2)]
    child = os.posix_spawn("/usr/bin/du", argv, {}, file_actions=actions)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        words = answer.read().split()
    os.waitpid(child, 0)
    return int(words[0]) if words else 0


def open_up(top: str) -> None:
    """Give the owner read access to every file, and read and search access to every directory, below the relative path
    ``top``; follows no symlink. What belongs to somebody else stays as it is."""
    status = os.stat(top)  # noqa: PTH116
    if status.st_uid == os.geteuid():
        os.chmod(top, stat.S_IMODE(status.st_mode) | 0o500)
    # Top down: a directory's own mode is mended while its parent is visited, before it is listed itself.
    for _, folders, files, here in os.fwalk(top):
        for name in (*folders, *files):
            _open_up(name, here)


def _open_up(name: str, here: int) -> None:
    try:
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        wanted = 0o500 if stat.S_ISDIR(status.st_mode) else 0o400
        if (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)) and status.st_mode & wanted != wanted:
            os.chmod(name, stat.S_IMODE(status.st_mode) | wanted, dir_fd=here)
    except PermissionError:
        pass


if __name__ == "__main__":
    main(marshal.loads(bytes.fromhex(sys.argv[1])))  # noqa: S302 - from its parent, which made it
