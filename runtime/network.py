"""The dynos' network: one bridge per instance, and for each slot a network namespace with one cable to it.

A namespace is kept as a descriptor, not as a name under /run/netns: when the runtime is killed, those without a dyno
vanish with it and those with a dyno live exactly as long as the dyno does.

The kernel has one table of neighbours (ARP) for all namespaces, of a thousand entries, and throws others' away when one fills
it. So nothing is a dyno's neighbour but the gateway: its address is a network of its own, whatever it calls goes by way of the
gateway, and both know each other's hardware address for good (such entries do not count, and nobody asks for them by ARP).
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from foundation.errors import DavitError
from runtime.instance import Instance

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000  # <linux/if_tun.h>
_RTM_F_CLONED = 0x200  # rtnetlink(7): a cached path-MTU exception for one host of the internet, not a route
_NUD_NOARP, _NTF_MASTER = 0x40, 0x04  # <linux/neighbour.h>: an entry of the bridge's own table that does not age
_NUD_PERMANENT = 0x80
_LINK, _HOST, _LAST = 253, 254, 0xFFFFFFFF  # scopes of routes (<linux/rtnetlink.h>), and what is looked at last
log = logging.getLogger("runtime")
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


class NetworkFailed(DavitError):
    """The dynos' network could not be made."""

    id, status = "network_failed", 500


class Network:
    """The bridge of an instance and the cables to it.

    All calls to the kernel are made by one thread: IPRoute is bound to the thread and to the namespace it was opened in,
    and that thread is the only one that ever changes its namespace.
    """

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._thread = ThreadPoolExecutor(1, "network")
        self._ip: Any = None
        self._bridge = 0
        self._home = -1
        self._mtu = 1500

    def call(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` in the network thread."""
        return self._thread.submit(work).result()

    def open(self) -> None:
        """Make the bridge (or take the one that is there), and let packets through it.

        Raises:
            NetworkFailed: the network overlaps one that the host already has, or the kernel refuses.
        """
        self.call(self._open)

    def keep_neighbours(self, slots: set[int]) -> None:
        """Know the hardware addresses of ``slots`` for good, and of no others: those of earlier runtime processes' dynos, which
        may have ended meanwhile or been started by a version that did not do it.

        Raises:
            NetworkFailed: the kernel refuses.
        """
        try:
            self.call(lambda: self._keep_neighbours(slots))
        except NetlinkError as error:
            raise NetworkFailed(f"The neighbours on the bridge {self.instance.bridge} could not be set: {error}.") from None

    def _keep_neighbours(self, slots: set[int]) -> None:
        wanted = {self.instance.address(slot) for slot in slots}
        for entry in self._ip.get_neighbours(family=2, ifindex=self._bridge):
            if entry["state"] & _NUD_PERMANENT and entry.get_attr("NDA_DST") not in wanted:
                self._ip.neigh("del", ifindex=self._bridge, dst=entry.get_attr("NDA_DST"))
        for slot in slots:
            self._ip.neigh("replace", **self._neighbour(self._bridge, slot))

    def _neighbour(self, index: int, slot: int) -> dict[str, Any]:
        """``slot`` (0: the gateway) as somebody on the other end of ``index`` is to know it, without asking and for good."""
        instance = self.instance
        address = instance.address(slot)
        return {"ifindex": index, "dst": address, "lladdr": instance.mac(slot), "state": _NUD_PERMANENT}

    def forget(self, slot: int) -> None:
        """Nobody has ``slot`` any more: who calls its address is to hear so, instead of waiting."""
        self.call(lambda: self._forget(slot))

    def _forget(self, slot: int) -> None:
        try:
            self._ip.neigh("del", ifindex=self._bridge, dst=self.instance.address(slot))
        except NetlinkError as error:
            if error.code not in (2, 19):  # ENOENT, ENODEV: it is gone already
                raise

    def _open(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._ip = IPRoute()
        name = self.instance.bridge
        self._refuse_overlap()
        self._mtu = self._way_out_mtu()
        try:
            if not self._ip.link_lookup(ifname=name):
                self._ip.link("add", ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0)
                # a bridge without an address of its own takes its ports' and changes it as they come and go,
                # and every dyno would lose its gateway until its ARP entry expires
                self._ip.link("set", ifname=name, address=self.instance.mac(0), mtu=self._mtu)
            self._bridge = self._ip.link_lookup(ifname=name)[0]
            try:
                size = self.instance.network.prefixlen
                self._ip.addr("add", index=self._bridge, address=self.instance.gateway, prefixlen=size)
            except NetlinkError as error:
                if error.code != 17:  # EEXIST: an earlier runtime gave it
                    raise
            _sysctl(f"ipv6/conf/{name}/disable_ipv6", 1)
            self._ip.link("set", index=self._bridge, state="up")
        except (NetlinkError, IndexError) as error:
            raise NetworkFailed(f"The bridge {name} could not be made: {error}.") from None
        self._forward()

    def _way_out_mtu(self) -> int:
        sizes: list[int] = [self._ip.get_links(i)[0].get_attr("IFLA_MTU") for i in self._ways_out()]
        return min([1500, *sizes])

    def _ways_out(self) -> list[int]:
        indices = (route.get_attr("RTA_OIF") for route in self._ip.get_default_routes(family=2))
        return [index for index in indices if index]

    def _refuse_overlap(self) -> None:
        for name, network in self._routes():
            if name != self.instance.bridge and network.prefixlen >= 8 and network.overlaps(self.instance.network):
                raise NetworkFailed(
                    f"The dynos' network {self.instance.network} overlaps {network}, which this host reaches through {name}; "
                    "set DAVIT_NETWORK to a free /20."
                )

    def _forward(self) -> None:
        """Forwarding for the bridge and the way out only: the host does not become a router between its other networks."""
        _sysctl(f"ipv4/conf/{self.instance.bridge}/forwarding", 1)
        for index in self._ways_out():
            _sysctl(f"ipv4/conf/{self._ip.get_links(index)[0].get_attr('IFLA_IFNAME')}/forwarding", 1)

    def _routes(self) -> list[tuple[str, ipaddress.IPv4Network]]:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in self._ip.get_links()}
        found = []
        for route in self._ip.get_routes(family=2, table=254):
            destination = route.get_attr("RTA_DST")
            if destination and not route["flags"] & _RTM_F_CLONED:
                network = ipaddress.IPv4Network(f"{destination}/{route['dst_len']}", strict=False)
                found.append((names.get(route.get_attr("RTA_OIF"), "?"), network))
        return found

    def local_networks(self) -> list[str]:
        """The networks that this host reaches otherwise than by its default route (halves of the internet, as a VPN's
        redirect makes them, excepted)."""
        return self.call(
            lambda: [str(net) for name, net in self._routes() if net.prefixlen >= 8 and name != self.instance.bridge]
        )

    def connect(self, slot: int) -> int:
        """Make a namespace for ``slot`` with its address and default route, cabled to the bridge.

        Returns:
            a descriptor of the namespace; the namespace ends with its last user.

        Raises:
            NetworkFailed: the kernel refuses; nothing is left behind.
        """
        try:
            namespace: int = self.call(lambda: self._connect(slot))
            return namespace
        except (NetlinkError, OSError) as error:
            log.warning("a dyno's network could not be made", exc_info=True)  # which step of it was refused
            self.disconnect(slot)
            raise NetworkFailed(f"The network of slot {slot} could not be made: {_reason(error)}.") from None

    def _connect(self, slot: int) -> int:
        self._delete(self.instance.veth(slot))
        namespace: int = self._inside_new(lambda ip: self._inside(ip, slot))
        try:
            self._plug_in(slot)
        except BaseException:
            os.close(namespace)
            raise
        return namespace

    def _plug_in(self, slot: int) -> None:
        """The cable becomes a port of the bridge, to which the dyno's own hardware address belongs and no other, for ever:
        what the bridge learns from packets, a dyno that sends forged ones could teach it."""
        name = self.instance.veth(slot)
        index = socket.if_nametoindex(name)
        _sysctl(f"ipv6/conf/{name}/disable_ipv6", 1)
        self._ip.link("set", index=index, mtu=self._mtu, master=self._bridge)
        self._ip.brport("set", index=index, isolated=1, learning=0, unicast_flood=0)
        self._ip.fdb("add", ifindex=index, lladdr=self.instance.mac(slot), state=_NUD_NOARP, flags=_NTF_MASTER)
        self._ip.link("set", index=index, state="up")
        self._ip.neigh("replace", **self._neighbour(self._bridge, slot))

    def _inside_new(self, work: Callable[[Any], None]) -> int:
        if _libc.unshare(_CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                with IPRoute() as ip:
                    work(ip)
            except BaseException:
                os.close(namespace)
                raise
        finally:
            if _libc.setns(self._home, _CLONE_NEWNET) < 0:
                os._exit(70)  # a thread that is lost in a dyno's network must not go on
        return namespace

    def _inside(self, ip: Any, slot: int) -> None:
        _sysctl("ipv6/conf/all/disable_ipv6", 1)
        _sysctl("ipv6/conf/default/disable_ipv6", 1)
        _sysctl("ipv4/ip_unprivileged_port_start", 0)
        _sysctl("ipv4/conf/all/accept_redirects", 0)  # one would make the dyno it names a neighbour
        _sysctl("ipv4/conf/default/accept_redirects", 0)
        peer = {"ifname": self.instance.veth(slot), "net_ns_fd": self._home, "mtu": self._mtu}
        ip.link("add", ifname="eth0", kind="veth", address=self.instance.mac(slot), mtu=self._mtu, peer=peer, state="up")
        index, gateway = socket.if_nametoindex("eth0"), self.instance.gateway
        ip.addr("add", index=index, address=self.instance.address(slot), prefixlen=32)
        ip.link("set", index=1, state="up")
        ip.neigh("add", **self._neighbour(index, 0))
        ip.route("add", dst=f"{gateway}/32", oif=index, scope=_LINK)
        ip.route("add", dst="default", gateway=gateway, oif=index)
        # where there is no route but a device is named, Linux takes every address for a neighbour's: who wants none but
        # neighbours (MSG_DONTROUTE), or a multicast group, gets the own loopback, else each address would have its entry
        ip.route("add", dst="0.0.0.0/0", oif=index, type="local", scope=_HOST, priority=_LAST)
        ip.route("add", dst="224.0.0.0/4", oif=index, type="local", scope=_HOST)

    def line_inside(self, namespace: int) -> socket.socket:
        """A TCP socket in another namespace: whatever it is connected to is reached from there.

        Args:
            namespace: a descriptor of it.
        """

        def make() -> socket.socket:
            if _libc.setns(namespace, _CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns")
            try:
                return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            finally:
                if _libc.setns(self._home, _CLONE_NEWNET) < 0:
                    os._exit(70)  # a thread that is lost in a dyno's network must not go on

        return self.call(make)

    def tap(self, slot: int) -> int:
        """Make a virtual machine's cable for ``slot``: a tap on the bridge under the name that the firewall knows.

        Returns:
            its descriptor, for QEMU; the tap ends with its last descriptor.

        Raises:
            NetworkFailed: the kernel refuses; nothing is left behind.
        """
        try:
            descriptor: int = self.call(lambda: self._tap(slot))
            return descriptor
        except (NetlinkError, OSError) as error:
            log.warning("a dyno's network could not be made", exc_info=True)
            hint = " (is the module tun loaded? `modprobe tun`)" if isinstance(error, FileNotFoundError) else ""
            raise NetworkFailed(f"The tap of slot {slot} could not be made: {_reason(error)}{hint}.") from None

    def _tap(self, slot: int) -> int:
        name = self.instance.veth(slot)
        self._delete(name)
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            self._plug_in(slot)
        except BaseException:
            os.close(tap)
            raise
        return tap

    def disconnect(self, slot: int) -> None:
        """Pull the cable of ``slot``, if there is one."""
        self.call(lambda: self._delete(self.instance.veth(slot)))

    def _delete(self, name: str) -> None:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return
        try:
            self._ip.link("del", index=index)
        except NetlinkError as error:
            if error.code != 19:  # ENODEV: its namespace ended meanwhile
                raise

    def cables(self) -> set[int]:
        """The slots whose cable is there."""
        prefix = self.instance.veth(0)[:-1]
        names = self.call(lambda: [link.get_attr("IFLA_IFNAME") for link in self._ip.get_links()])
        return {int(name[len(prefix) :]) for name in names if name.startswith(prefix) and name[len(prefix) :].isdigit()}

    def remove(self) -> None:
        """Take the bridge away."""
        self.call(lambda: self._delete(self.instance.bridge))

    def close(self) -> None:
        """End the thread; what it made stays."""

        def end() -> None:
            if self._ip is not None:
                self._ip.close()
            if self._home >= 0:
                os.close(self._home)

        self.call(end)
        self._thread.shutdown()


def _reason(error: NetlinkError | OSError) -> str:
    """In the kernel's words."""
    code = error.code if isinstance(error, NetlinkError) else error.errno
    return os.strerror(code) if code else str(error)


def _sysctl(name: str, value: int) -> None:
    """Set a network sysctl in the calling thread's namespace (a host without IPv6 has no such file, and needs none)."""
    try:
        with open(f"/proc/sys/net/{name}", "w") as file:
            file.write(str(value))
    except FileNotFoundError:
        if not name.startswith("ipv6/"):
            raise
