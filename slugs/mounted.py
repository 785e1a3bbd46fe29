"""Run a program that sees an image mounted: ``mounted.py IMAGE DIRECTORY PROGRAM [ARGUMENT…]``, in a bare interpreter.

The mount is in a mount namespace of its own and ends with the program, however that ends. Needs root.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slugs import kernel
from slugs.mounting import mount

if __name__ == "__main__":
    image, directory, *command = sys.argv[1:]
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    mount(Path(image), Path(directory))
    os.execvp(command[0], command)  # noqa: S606
