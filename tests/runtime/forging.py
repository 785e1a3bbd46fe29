"""Run in a network namespace of its own: two dynos' cables on the real bridge behind the real rules, and one forges packets.

Prints a JSON object of what came of it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable

from runtime import firewall
from runtime.instance import Instance
from runtime.network import Network

INSTANCE = Instance.numbered(7)
FORGER, VICTIM = 5, 6
_ETHERNET, _IP, _ARP = "!6s6sH", 0x0800, 0x0806


def mac(slot: int) -> bytes:
    return bytes.fromhex(INSTANCE.mac(slot).replace(":", ""))


def arp(hardware: bytes, said: bytes, address: str) -> bytes:
    """“``address`` is at ``said``”, from ``hardware``, to everybody."""
    body = struct.pack("!HHBBH6s4s6s4s", 1, _IP, 6, 4, 2, said, socket.inet_aton(address), bytes(6), socket.inet_aton(address))
    return struct.pack(_ETHERNET, b"\xff" * 6, hardware, _ARP) + body


def ip(hardware: bytes, address: str) -> bytes:
    """A UDP packet to the host's port 53, from ``hardware`` and ``address``."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0, socket.inet_aton(address), socket.inet_aton(INSTANCE.gateway))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return struct.pack(_ETHERNET, mac(0), hardware, _IP) + head + struct.pack("!HHHH", 9, 53, 9, 0) + b"x"


class Port:
    """The dyno's end of a cable: a tap's descriptor."""

    def __init__(self, network: Network, slot: int) -> None:
        self.tap = network.tap(slot)

    def send(self, frame: bytes) -> None:
        os.write(self.tap, bytes(10) + frame)  # a virtio-net header comes first

    def hears(self, text: bytes) -> bool:
        """Whether ``text`` has come in until now."""
        found = False
        while True:
            try:
                found = text in os.read(self.tap, 65536) or found
            except BlockingIOError:
                return found


def entries() -> list[tuple[str, str]]:
    """Hardware addresses and the ports that the bridge believes them at, the dynos' only."""
    listing = json.loads(subprocess.run(["bridge", "-j", "fdb"], check=True, capture_output=True, text=True).stdout)
    macs = {INSTANCE.mac(FORGER), INSTANCE.mac(VICTIM)}
    return sorted({(entry["mac"], entry["ifname"]) for entry in listing if entry["mac"] in macs and "master" in entry})


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return met


def main() -> dict[str, object]:
    network = Network(INSTANCE)
    network.open()
    firewall.apply(INSTANCE, firewall.Policy(resolvers=[INSTANCE.gateway]))
    forger, victim = Port(network, FORGER), Port(network, VICTIM)
    before = entries()
    asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asked.bind((INSTANCE.gateway, 53))
    asked.setblocking(False)

    def arrived() -> list[str]:
        found = []
        while True:
            try:
                found.append(asked.recvfrom(100)[1][0])
            except BlockingIOError:
                return found

    forger.send(arp(mac(VICTIM), mac(VICTIM), INSTANCE.address(FORGER)))
    forger.send(arp(mac(FORGER), mac(VICTIM), INSTANCE.address(FORGER)))
    forger.send(arp(mac(FORGER), mac(FORGER), INSTANCE.address(VICTIM)))
    forger.send(ip(mac(VICTIM), INSTANCE.address(FORGER)))
    forger.send(ip(mac(FORGER), INSTANCE.address(VICTIM)))
    heard: list[str] = []
    honest = ip(mac(FORGER), INSTANCE.address(FORGER))  # what it may say gets through, and after what it said before

    def come() -> bool:
        forger.send(honest)
        heard.extend(arrived())
        return INSTANCE.address(FORGER) in heard

    until(come)
    asked.sendto(b"for the victim", (INSTANCE.address(VICTIM), 9))
    got = until(lambda: victim.hears(b"for the victim"))
    return {
        "heard from": sorted(set(heard)),
        "belongs": before == entries() == sorted([(INSTANCE.mac(s), INSTANCE.veth(s)) for s in (FORGER, VICTIM)]),
        "the victim gets its own": got,
        "the forger gets it": forger.hears(b"for the victim"),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
