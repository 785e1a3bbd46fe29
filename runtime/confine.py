"""How QEMU is started so that a guest that breaks out of it has nothing (pure: composes a command line).

Its own mount namespace with nothing but /usr read-only in it, an empty network namespace (its tap comes as a descriptor), a
cgroup with limits from its first instruction on, an unprivileged uid that nobody else has, no capability and no way to one,
no core file (it would hold the guest's memory); QEMU's own seccomp filter (``-sandbox``) comes on top. The process id stays the
same from the first program to QEMU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_SCRIPT = """
root=$1 uid=$2 kvm=$3 groups=$4 shown=$5
shift 5
ulimit -c 0
for group in $groups; do echo $$ > "$group/cgroup.procs"; done
mount -t tmpfs -o mode=0755,nosuid,size=256k davit "$root"
cd "$root"
mkdir usr etc dev old data proc
mount --bind /proc proc
mount --bind -o ro /usr usr
for name in bin sbin lib lib32 lib64; do
  if [ -L /$name ]; then ln -s usr/$name $name
  elif [ -d /$name ]; then mkdir $name; mount --bind -o ro /$name $name; fi
done
for name in ld.so.cache alternatives; do
  if [ -d /etc/$name ]; then mkdir etc/$name; mount --bind -o ro /etc/$name etc/$name
  elif [ -f /etc/$name ]; then touch etc/$name; mount --bind -o ro /etc/$name etc/$name; fi
done
if [ -n "$shown" ]; then mount --bind -o ro "$shown" data; fi
for name in null zero urandom; do touch dev/$name; mount --bind /dev/$name dev/$name; done
if [ "$kvm" = yes ]; then mknod dev/kvm c 10 232; chmod 666 dev/kvm; fi
mount -o remount,ro,bind . .
pivot_root . old
cd /
umount -l /old
umount -l /proc
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""All that QEMU finds in its environment."""


def argv(
    qemu: Sequence[str], *, root: Path, uid: int, cgroups: Sequence[Path], shown: Path | None = None, kvm: bool = False
) -> list[str]:
    """The command line that runs ``qemu``, a command line itself, in confinement.

    Args:
        root: an empty directory to build its root file system on (in its own mount namespace; nothing stays).
        uid: what it runs as.
        cgroups: the directories of its cgroup, which exist.
        shown: a directory that it finds, read-only, at /data.
        kvm: whether it gets /dev/kvm.
    """
    groups = " ".join(str(directory) for directory in cgroups)
    arguments = [str(root), str(uid), "yes" if kvm else "no", groups, str(shown or "")]
    namespaces = ["/usr/bin/unshare", "--mount", "--net", "--ipc", "--uts", "--propagation", "private", "--"]
    return [*namespaces, "/bin/sh", "-euc", _SCRIPT, "davit-vm", *arguments, *qemu]
