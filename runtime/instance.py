"""Which Davit of this machine this is: a number, and everything that is named or counted by it.

The number is claimed by a lock on ``/run/davit/instances/N``, which holds the DAVIT_HOME it belongs to. A killed runtime
lets go of the lock but its file stays, so that the same DAVIT_HOME finds its dynos under the same number again.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from foundation import lockfile
from foundation.errors import DavitError
from foundation.settings import Settings
from runtime import cgroups

INSTANCES = Path("/run/davit/instances")
NUMBERS = range(32)
SLOTS = range(1, 1024)
UID_RANGE = 65536
PATIENCE_SECONDS = 6.0
"""How long the lock of a Davit that was just killed is waited for: what it was starting may hold it for some seconds more
(:mod:`runtime.userns`)."""
_NETWORKS = ipaddress.IPv4Network("198.18.0.0/15")  # RFC 2544: routed nowhere, and unlike 10/8 used by hardly any network


class InstanceUnavailable(DavitError):
    """No number can be claimed for this DAVIT_HOME."""

    id, status = "instance_unavailable", 503


@dataclass(frozen=True)
class Instance:
    """One Davit on this machine.

    Attributes:
        number: 0..31.
        bridge: the name of its bridge.
        network: the dynos' IPv4 network; the gateway is its first address.
        uid_base: the first uid of slot 0's range.
        table: the name of its nftables tables.
        cgroup: its parent cgroup, absolute from each hierarchy's root.
        lock: the descriptor that holds the claim.
    """

    number: int
    bridge: str
    network: ipaddress.IPv4Network
    uid_base: int
    table: str
    cgroup: str
    lock: int = field(default=-1, compare=False)

    @property
    def gateway(self) -> str:
        """The bridge's own address."""
        return str(self.network.network_address + 1)

    @property
    def directory(self) -> Path:
        """What this instance keeps outside DAVIT_HOME, because socket paths must be short: 0700, root's."""
        return Path(f"/run/davit/{self.number}")

    def address(self, slot: int) -> str:
        """The IPv4 address of ``slot``."""
        return str(self.network.network_address + 1 + slot)

    def mac(self, slot: int) -> str:
        """The hardware address of ``slot`` (0: the bridge): fixed, so that a neighbour's memory of it is never wrong."""
        return f"02:da:71:{self.number:02x}:{slot >> 8:02x}:{slot & 255:02x}"

    def uids(self, slot: int) -> int:
        """The host's uid that is root in ``slot``."""
        return self.uid_base + slot * UID_RANGE

    def veth(self, slot: int) -> str:
        """The host's end of ``slot``'s network cable (15 characters at the most)."""
        return f"dv{self.number}s{slot}"

    @classmethod
    def numbered(cls, number: int, network: str | None = None, lock: int = -1) -> Instance:
        """The instance that ``number`` decides; pure.

        Raises:
            InstanceUnavailable: ``network`` cannot hold all slots.
        """
        name = f"davit{number}"
        return cls(number, name, _network(number, network), 0x10000000 + number * 0x4000000, name, f"/{name}", lock)

    @classmethod
    def claim(cls, settings: Settings, directory: Path = INSTANCES) -> Instance:
        """Claim a number for ``settings.home``: its own of earlier, else a free one, else one that nobody uses any more.

        Raises:
            InstanceUnavailable: another runtime process runs for this DAVIT_HOME, or all numbers are in use.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = str(settings.home)
        with _Registry(directory):
            number, lock = _choose(directory, home)
            os.ftruncate(lock, 0)
            os.pwrite(lock, home.encode(), 0)
        return cls.numbered(number, settings.network, lock)

    @classmethod
    def running(cls, settings: Settings, directory: Path = INSTANCES) -> Instance | None:
        """The instance of ``settings.home``, whether its runtime process runs or not; None when it has no number."""
        for number in NUMBERS:
            try:
                if (directory / str(number)).read_text() == str(settings.home):
                    return cls.numbered(number, settings.network)
            except OSError:
                continue
        return None

    def release(self, directory: Path = INSTANCES) -> None:
        """Give the number back; nothing that is named by it may be left on the host."""
        (directory / str(self.number)).unlink(missing_ok=True)
        self.let_go()

    def let_go(self) -> None:
        """Drop the lock but keep the number for this DAVIT_HOME (its dynos run on); idempotent."""
        lock = self.lock
        object.__setattr__(self, "lock", -1)  # its number is another descriptor's the next time
        if lock >= 0:
            os.close(lock)


def _network(number: int, chosen: str | None) -> ipaddress.IPv4Network:
    if chosen is None:
        return ipaddress.IPv4Network((int(_NETWORKS.network_address) + number * 4096, 20))
    try:
        network = ipaddress.IPv4Network(chosen)
    except ValueError:
        raise InstanceUnavailable(f"DAVIT_NETWORK is “{chosen}”; it must be an IPv4 network such as 10.77.0.0/20.") from None
    if network.prefixlen > 21:
        raise InstanceUnavailable(f"DAVIT_NETWORK {chosen} is too small: 1,023 dynos need a /21 or larger.")
    return network


class _Registry:
    """All claims are made one after the other."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"

    def __enter__(self) -> None:
        self.fd = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _owner(path: Path) -> str | None:
    """The DAVIT_HOME of a number; None when it is nobody's."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _locked_soon(path: Path) -> int | None:
    """The lock, with patience: what a killed runtime had forked and not yet executed holds its lock a little longer."""
    until = time.monotonic() + PATIENCE_SECONDS
    while (lock := lockfile.take(path)) is None and time.monotonic() < until:
        time.sleep(0.05)
    return lock


def _choose(directory: Path, home: str) -> tuple[int, int]:
    owners = {number: owner for number in NUMBERS if (owner := _owner(directory / str(number))) is not None}
    for number, owner in owners.items():
        if owner == home:
            lock = _locked_soon(directory / str(number))
            if lock is None:
                raise InstanceUnavailable(f"Another runtime process already runs for {home}.")
            return number, lock
    stale = [n for n in owners if not Path(owners[n]).exists()] + [n for n in owners if Path(owners[n]).exists()]
    for number in [n for n in NUMBERS if n not in owners] + stale:
        if number in owners and cgroups.populated(f"/davit{number}"):
            continue  # a killed runtime's dynos still run under it
        lock = lockfile.take(directory / str(number))
        if lock is not None:
            return number, lock
    raise InstanceUnavailable(f"All {len(NUMBERS)} instance numbers of this machine are in use; see {directory}.")
