"""The system calls that no dyno may make: a deny list, because apps are of every kind and the user namespace with no
capabilities already refuses most of what is refused here. What it adds is kernel surface that stays out of reach."""

from __future__ import annotations

import errno
from typing import Any

_NEVER = (
    "acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init finit_module fsconfig "
    "fsmount fsopen fspick get_kernel_syms init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie "
    "mount mount_setattr move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open "
    "pivot_root query_module quotactl quotactl_fd reboot request_key setdomainname sethostname setns settimeofday "
    "swapoff swapon sysfs syslog umount umount2 unshare uselib userfaultfd ustat vhangup vm86 vm86old chroot"
).split()
_ABSENT = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup")
"""Answered with ENOSYS, so that programs fall back: clone3's flags are in memory, where seccomp cannot look, and the number of
asynchronous operations (fs.aio-max-nr) is one for all dynos and the host."""

_CLONE_NEWUSER = 0x10000000
"""The one namespace that can be made without a capability; each further rule here costs every start some 0.2 ms."""
_FAMILIES = ((0xFF, 3), (0xFC, 4), (0xFE, 8), (0xFF, 11), (0xFC, 12))
"""(mask, value) pairs for 3 to 9 and 11 to 15: all but unix, inet, inet6 and netlink below AF_PACKET."""
_AF_NETLINK, _AF_PACKET, _TIOCSTI, _TIOCLINUX = 16, 17, 0x5412, 0x541C


def profile() -> dict[str, Any]:
    """The ``linux.seccomp`` object of an OCI configuration; pure.

    Sockets are left to the families unix, inet, inet6 and netlink's routing protocol (getifaddrs needs it). A terminal's
    input cannot be written by a program that reads it (TIOCSTI).
    """
    denied = errno.EPERM
    rules = [_rule(_NEVER, denied), _rule(_ABSENT, errno.ENOSYS)]
    rules.append(_rule(["clone"], denied, _masked(0, _CLONE_NEWUSER)))
    rules += [_rule(["socket"], errno.EAFNOSUPPORT, _masked(0, mask, family)) for mask, family in _FAMILIES]
    rules.append(_rule(["socket"], errno.EAFNOSUPPORT, _compare(0, _AF_PACKET, "SCMP_CMP_GE")))
    rules.append(_rule(["socket"], errno.EAFNOSUPPORT, _compare(0, _AF_NETLINK), _compare(2, 0, "SCMP_CMP_NE")))
    rules += [_rule(["ioctl"], denied, _masked(1, 0xFFFFFFFF, request)) for request in (_TIOCSTI, _TIOCLINUX)]
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}


def _rule(names: list[str] | tuple[str, ...], number: int, *args: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    return {**rule, "args": list(args)} if args else rule


def _masked(index: int, mask: int, value: int | None = None) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": mask if value is None else value, "op": "SCMP_CMP_MASKED_EQ"}


def _compare(index: int, value: int, op: str = "SCMP_CMP_EQ") -> dict[str, Any]:
    return {"index": index, "value": value, "op": op}
