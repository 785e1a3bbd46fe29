"""QEMU's command line for a microVM (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from runtime import confine, qemu

MIB = 1 << 20
FORM = 2
"""What a guest finds in the machine that is composed here: raised with whatever changes that, for a machine that runs or sleeps
can go on in no other. 2: nobody tells its network card to announce itself."""
RESERVE = 96 * MIB
"""What the guest's kernel and agent take: a dyno has its size's memory for itself."""
LARGEST = 16 << 30
"""Memory that can be plugged in while it runs, at the most."""

MOST_PROCESSORS = 64
"""Of one machine; QEMU's q35 ends at 255."""

# descriptors that QEMU is started with; what it never hears of is there to be found again by a later runtime process
AGENT, MONITOR, STACK, SLUG, SCRATCH, TAP, OUT, ERR, INCOMING = range(3, 12)
KEPT_OUT, KEPT_ERR, KEPT_STACK, KEPT_SLUG, KEPT_SCRATCH = range(12, 17)
DESCRIPTORS = 17

# of the guest's memory nothing goes into a core file, and no page is shared with another machine (which could be measured)
_TYPE = f"q35,usb=off,vmport=off,smbus=off,sata=off,i8042=off,{qemu.PRIVATE}"
# a machine whose kernel gives up or powers off stands still, so that one can read what it said last
_ENDS = ("-action", "reboot=shutdown,shutdown=pause")
_KERNEL_WORDS = (
    "console=ttyS0 8250.nr_uarts=1 quiet loglevel=3 panic=-1 oops=panic random.trust_cpu=on no_timer_check"
    " swiotlb=noforce memhp_default_state=online memory_hotplug.online_policy=auto-movable cgroup_no_v1=all rdinit=/init"
)


@dataclass(frozen=True)
class Machine:
    """A virtual machine.

    Attributes:
        name: for people who read process lists.
        memory: bytes that it boots with.
        pluggable: bytes that can be plugged in while it runs.
        processors: that it boots with.
        most_processors: that it has; those beyond rest until they are wanted, which costs nothing. (Plugging them into a
            running QEMU does the same for the guest, but an emulating QEMU 7.2 was seen to die of it.)
        kvm: hardware acceleration; otherwise the processor is emulated.
        mac: its network card's address; None for no network.
        slug: whether there is a slug.
        scratch: whether there is a writable layer.
        fifos: whether its output goes to FIFOs.
        incoming: whether it begins as another machine ended.
    """

    name: str
    memory: int
    pluggable: int
    processors: int
    most_processors: int
    kvm: bool = False
    mac: str | None = None
    slug: bool = True
    scratch: bool = True
    fifos: bool = True
    incoming: bool = False


def rounded(size: int, step: int = 2 * MIB) -> int:
    """Bytes, rounded up to what can be plugged in."""
    return -(-size // step) * step


def command(program: str, machine: Machine) -> list[str]:
    """The command line of ``machine``, with the descriptors above; the kernel is in /data."""
    return [
        program,
        *_base(machine),
        *_kernel(machine),
        *_ports(machine),
        *_disk("stack", STACK, readonly=True),
        *(_disk("slug", SLUG, readonly=True) if machine.slug else ()),
        *(_disk("scratch", SCRATCH, readonly=False) if machine.scratch else ()),
        *qemu.network(machine.mac, TAP),
        *_memory(machine),
        "-device", "virtio-rng-pci",
        # it does not run by itself when it has come in: only one of two machines may, and who moves it says when
        *(["-S", "-incoming", f"fd:{INCOMING}"] if machine.incoming else []),
    ]  # fmt: skip


def probe(program: str) -> list[str]:
    """The smallest machine that boots into the guest agent, accelerated: does KVM keep what it promises?"""
    machine = Machine("acceleration-probe", 256 * MIB, 0, 1, 1, kvm=True, fifos=False)
    return [program, *_base(machine), *_kernel(machine), *_ports(machine)]


def _base(machine: Machine) -> list[str]:
    accel = "kvm" if machine.kvm else "tcg,thread=multi,tb-size=96"
    name = machine.name.replace(",", ",,")
    smp = f"cpus={machine.most_processors},sockets={machine.most_processors},cores=1,threads=1"
    size = f"size={machine.memory // MIB}M"
    if machine.pluggable:
        size += f",maxmem={(machine.memory + machine.pluggable) // MIB}M"
    return [
        "-name", name, "-M", _TYPE, "-accel", accel,
        "-cpu", "host" if machine.kvm else "max,monitor=off", "-smp", smp, "-m", size,
        "-nodefaults", "-no-user-config", *_ENDS, "-display", "none", "-sandbox", confine.SANDBOX,
        "-chardev", "ringbuf,id=serial,size=32768", "-serial", "chardev:serial",
        *qemu.monitor(MONITOR),
    ]  # fmt: skip


def _kernel(machine: Machine) -> list[str]:
    # a guest runs one app: what one of its programs may learn of another by the processor is its own affair
    words = f"{_KERNEL_WORDS} maxcpus={machine.processors}" + ("" if machine.kvm else " mitigations=off")
    return ["-kernel", "/data/vmlinux", "-initrd", "/data/initramfs", "-append", words]


def _ports(machine: Machine) -> list[str]:
    outputs = []
    for name, number in (("out", OUT), ("err", ERR)):
        if machine.fifos:
            outputs += ["-add-fd", f"fd={number},set={number}"]
            outputs += ["-chardev", f"file,id={name},path=/dev/fdset/{number},append=on"]
        else:
            outputs += ["-chardev", f"null,id={name}"]
        outputs += ["-device", f"virtserialport,chardev={name},name=davit.{name}"]
    return [
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=ctl,fd={AGENT},server=on,wait=off", "-device", "virtserialport,chardev=ctl,name=davit.ctl",
        *outputs,
    ]  # fmt: skip


def _disk(name: str, number: int, *, readonly: bool) -> list[str]:
    mode = "read-only=on" if readonly else "read-only=off,discard=unmap,detect-zeroes=off"
    return [*qemu.file_disk(name, number, mode), "-device", f"virtio-blk-pci,drive={name},serial={name}"]


def _memory(machine: Machine) -> list[str]:
    words = ["-device", "virtio-balloon-pci,id=balloon,deflate-on-oom=on,free-page-reporting=on"]
    if machine.pluggable:
        words += ["-object", f"memory-backend-ram,id=pluggable,size={machine.pluggable}"]
        words += ["-device", "virtio-mem-pci,id=plugged,memdev=pluggable,requested-size=0"]
    return words
