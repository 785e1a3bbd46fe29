"""QEMU's command line for a unikernel (pure).

The kernel's own command line is not on it: it holds what of the environment cannot be said otherwise, and every user of the
host may read QEMU's arguments. QEMU waits (``--preconfig``) until the monitor has given it the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime import confine, qemu
from slugs import osvimage, osvline

MIB = 1 << 20
LEAST_MEMORY = 64 * MIB

# descriptors that QEMU is started with; the last three are there only to keep alive what is in the FIFOs
MONITOR, CONSOLE, ROOT, SLUG, CONFIG, TAP = range(3, 9)
KEPT_CONSOLE, KEPT_OUT, KEPT_ERR = range(9, 12)
DESCRIPTORS = 12


@dataclass(frozen=True)
class Machine:
    """A virtual machine.

    Attributes:
        name: for people who read process lists.
        memory: bytes.
        processors: how many.
        kvm: hardware acceleration; otherwise the processor is emulated.
        mac: its network card's address; None for no network.
        slug: whether there is one.
    """

    name: str
    memory: int
    processors: int = 1
    kvm: bool = False
    mac: str | None = None
    slug: bool = True


@dataclass(frozen=True)
class Network:
    """What the guest is told of its network: addresses as text."""

    address: str
    netmask: str
    gateway: str
    nameserver: str | None = None


def command(program: str, machine: Machine) -> list[str]:
    """The command line of ``machine``, with the descriptors above; the kernel is /data/kernel."""
    accel, processor = ("kvm", "host,+x2apic") if machine.kvm else ("tcg,thread=multi,tb-size=64", "max")
    return [
        program, "-name", machine.name.replace(",", ",,"), "-M", f"pc,usb=off,vmport=off,{qemu.PRIVATE}", "-accel", accel,
        "-cpu", processor, "-m", f"{granted(machine.memory) // MIB}", "-smp", str(machine.processors),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-sandbox", confine.SANDBOX, "--preconfig",
        "-add-fd", f"fd={CONSOLE},set={CONSOLE}",
        "-chardev", f"file,id=console,path=/dev/fdset/{CONSOLE},append=on", "-serial", "chardev:console",
        *qemu.monitor(MONITOR),
        "-kernel", "/data/kernel",
        *_disk("root", ROOT),
        *(_disk("slug", SLUG) if machine.slug else ()),
        *_disk("config", CONFIG),
        *qemu.network(machine.mac, TAP),
        "-device", "virtio-rng-pci",
    ]  # fmt: skip


def granted(memory: int) -> int:
    """Bytes that a machine really gets that is to have ``memory``."""
    return max(memory, LEAST_MEMORY) // MIB * MIB


def _disk(name: str, number: int) -> list[str]:
    return [*qemu.file_disk(name, number, "read-only=on"), "-device", f"virtio-blk-pci,drive={name}"]


def options(network: Network | None, slug: bool) -> list[str]:
    """The loader's options: disks are numbered in the order of the command line."""
    words: Sequence[tuple[str, str | None]] = [
        ("verbose", None),  # else the kernel does not tell how the app ended
        ("console", "serial"),
        ("rootfs", "rofs"),
        ("power-off-on-abort", None),
        *_addresses(network),
        *([("mount-fs", f"rofs,/dev/vblk1,{osvimage.APP}")] if slug else []),
        ("mount-fs", f"rofs,/dev/vblk{2 if slug else 1},{osvimage.CONFIG}"),
        ("cwd", osvimage.APP),
    ]
    return [osvline.option(name, value) for name, value in words]


def _addresses(network: Network | None) -> list[tuple[str, str | None]]:
    if network is None:
        return []
    words: list[tuple[str, str | None]] = [
        ("ip", f"eth0,{network.address},{network.netmask}"),
        ("defaultgw", network.gateway),
    ]
    return [*words, ("nameserver", network.nameserver)] if network.nameserver else words
