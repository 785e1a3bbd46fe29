"""Which image formats this kernel really mounts, tried with tiny images in a throw-away mount namespace.

Run by :mod:`slugs.image` in a bare interpreter, with a JSON object ``{"images": {format: path}}``;
prints ``{format: {"mounts": bool, "idmaps": bool}}``. ``idmaps`` says whether the mount's owners can be mapped (erofs: kernel
5.19, squashfs: 6.2), which is how one image serves every dyno's uid range.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slugs import kernel
from slugs.mounting import mount


def main(images: dict[str, str]) -> dict[str, dict[str, bool]]:
    """Try each image."""
    namespace = _user_namespace()
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    return {name: _try(Path(path), namespace) for name, path in images.items()}


def _try(image: Path, namespace: int | None) -> dict[str, bool]:
    target = image.with_suffix(".mounted")
    target.mkdir()
    try:
        mount(image, target)
    except OSError:
        return {"mounts": False, "idmaps": False}
    here = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if namespace is None:
            return {"mounts": True, "idmaps": False}
        kernel.idmap(kernel.clone_mount(here), namespace)
        return {"mounts": True, "idmaps": True}
    except OSError:
        return {"mounts": True, "idmaps": False}


def _user_namespace() -> int | None:
    """A user namespace with a plain mapping, as a descriptor; None where the kernel gives none."""
    ready_read, ready_write = os.pipe()
    end_read, end_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end_write)
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(ready_write, b"1")
            os.read(end_read, 1)
        finally:
            os._exit(0)
    os.close(ready_write)
    try:
        if not os.read(ready_read, 1):
            return None
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text("0 100000 65536\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(end_write)
        os.waitpid(child, 0)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1])["images"])))
