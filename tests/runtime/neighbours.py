"""Run in a network namespace of its own: two dynos' cables on the real bridge behind the real rules, and in one somebody who asks
for as many neighbours as there are addresses, and begins as many connections as there may be.

Prints a JSON object of what came of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from runtime import conntrack, firewall
from runtime.instance import Instance
from runtime.network import Network

INSTANCE = Instance.numbered(7)
DYNO, OTHER, LATER = 5, 6, 9
FEW = 20
"""How many connections a dyno may have here."""
ASKS_ONCE = f"""
import socket
question = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
question.sendto(b"others do", ("{INSTANCE.gateway}", 53))
"""
ASKS_WHAT_IT_HEARS = f"""
import socket
question = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
question.connect(("{INSTANCE.gateway}", 53))
question.settimeout(1)
for _ in range(60):  # that it is refused it hears once a second at the most
    try:
        question.send(b"who is new here")
        print(question.recv(9).decode())
    except TimeoutError: continue
    except OSError as error: print(error.errno)
    break
"""
ASKS = f"""
import json, os, socket
os.setuid(65534)
wide = [f"198.18.{{112 + i // 256}}.{{i % 256}}" for i in range(20, 340)]
groups = [f"239.1.{{i // 256}}.{{i % 256}}" for i in range(320)]
def send(addresses, flags=0, *options):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        for option in options: line.setsockopt(*option)
        for address in addresses:
            try: line.sendto(b"", flags, (address, 9))
            except OSError: pass
card, index = (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0"), socket.htonl(socket.if_nametoindex("eth0"))
send(wide), send(wide, 0, card), send(wide, socket.MSG_DONTROUTE), send(wide, socket.MSG_DONTROUTE, card)
send(wide, socket.MSG_DONTROUTE, (socket.IPPROTO_IP, 50, index))  # IP_UNICAST_IF
send(groups), send(groups, 0, card)
line = socket.socket()
line.settimeout(60)
print(json.dumps(line.connect_ex(("{INSTANCE.address(OTHER)}", 80))), flush=True)
question = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
question.sendto(b"?", ("{INSTANCE.gateway}", 53))
print(json.dumps(question.recv(9).decode()), flush=True)
for _ in range({FEW}): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("{INSTANCE.gateway}", 53))
question = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
question.connect(("{INSTANCE.gateway}", 53))
question.settimeout(1)
for _ in range(60):  # it hears so once a second at the most
    try:
        question.send(b"once more")
        heard = question.recv(9).decode()
    except TimeoutError: continue
    except OSError as error: heard = error.errno
    break
print(json.dumps(heard), flush=True)
server = socket.create_server(("0.0.0.0", 5000))
print(json.dumps("listens"), flush=True)
server.accept()
"""


def inside(namespace: int, *words: str) -> list[str]:
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}", *words]


def neighbours(*within: str) -> list[tuple[str, str, str]]:
    """Addresses, hardware addresses and states of whom a namespace knows, or asks for, by ARP, but for what there is one of: the loopback, IGMP."""
    listing = subprocess.run([*within, "ip", "-4", "-json", "neigh", "show", "nud", "all"], check=True, capture_output=True)
    found = [(entry["dst"], entry.get("lladdr", ""), *entry["state"]) for entry in json.loads(listing.stdout or "[]")]
    return sorted(entry for entry in found if not entry[0].startswith(("224.0.0.", "0.0.0.0")))


def for_good(*slots: int) -> list[tuple[str, str, str]]:
    return sorted((INSTANCE.address(slot), INSTANCE.mac(slot), "PERMANENT") for slot in slots)


def main() -> dict[str, object]:
    firewall.CONNECTIONS = FEW
    network = Network(INSTANCE)
    network.open()
    firewall.apply(INSTANCE, firewall.Policy(resolvers=[INSTANCE.gateway]))
    Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").write_text("600")  # else a slow machine forgets some meanwhile
    dyno, other = network.connect(DYNO), network.connect(OTHER)
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind((INSTANCE.gateway, 53))
    resolver.settimeout(120)
    found: dict[str, object] = {"the host knows both": neighbours() == for_good(DYNO, OTHER)}
    with subprocess.Popen(inside(dyno, sys.executable, "-c", ASKS), stdout=subprocess.PIPE) as app:
        assert app.stdout
        found["another dyno"] = json.loads(app.stdout.readline())
        _, asker = resolver.recvfrom(9)
        resolver.sendto(b"answered", asker)
        found["the resolver"] = json.loads(app.stdout.readline())
        found["a connection too many"] = json.loads(app.stdout.readline())
        subprocess.run(inside(other, sys.executable, "-c", ASKS_ONCE), check=True)
        heard = []
        while heard[-1:] != [b"others do"]:
            heard.append(resolver.recv(9))
        found["those before"] = set(heard[:-1]) == {b""} and len(heard) < FEW + 1
        found["neighbours"] = neighbours(*inside(dyno)) == for_good(0) or neighbours(*inside(dyno))[:5]
        assert json.loads(app.stdout.readline()) == "listens"
        socket.create_connection((INSTANCE.address(DYNO), 5000), 60).close()
    found["the host still does"] = neighbours() == for_good(DYNO, OTHER)
    network.forget(OTHER)
    network.forget(OTHER)
    found["one has gone"] = neighbours() == for_good(DYNO)
    network.keep_neighbours({OTHER, LATER})
    found["those that another process finds"] = neighbours() == for_good(OTHER, LATER)
    os.close(dyno), os.close(other)
    return found | remembered(network, resolver)


def remembered(network: Network, resolver: socket.socket) -> dict[str, object]:
    """What comes of the connections of a dyno that is no more, for the next one with its address and for another's."""

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                said, asker = resolver.recvfrom(100)
                if said.startswith(b"who"):
                    resolver.sendto(b"answered", asker)

    def heard() -> str:
        return subprocess.run(inside(dyno, sys.executable, "-c", ASKS_WHAT_IT_HEARS), check=True, capture_output=True).stdout.decode()

    threading.Thread(target=answer, daemon=True).start()
    network.disconnect(DYNO)
    dyno = network.connect(DYNO)
    found: dict[str, object] = {"the next has none": heard().strip()}
    found["they are forgotten"] = conntrack.forget(INSTANCE.address(DYNO)) >= FEW
    found["no other's are"] = conntrack.forget(INSTANCE.address(OTHER))
    found["the next has its own"] = heard().strip()
    kept = [INSTANCE.gateway, INSTANCE.address(OTHER)]
    found["strays"] = [conntrack.forget_strays(INSTANCE.network, used) for used in ([*kept, INSTANCE.address(DYNO)], kept, kept)]
    os.close(dyno)
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
