"""Run in a network namespace of its own: a host whose firewall refuses what is forwarded, a dyno behind it, the world beyond.

``python -m tests.runtime.behind_a_drop iptables|nftables|last-rule|last-rule-of-iptables``: prints a JSON object of what held at each step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cli.host import wayout
from runtime import firewall, passage
from runtime.instance import Instance

INSTANCE = Instance.numbered(7)
WORLD = "8.8.8.8"
FORBIDS = {
    "iptables": "iptables -P FORWARD DROP; iptables -A FORWARD -p tcp --dport 4444 -j DROP",
    "nftables": "nft add table inet host; nft add chain inet host passing '{ type filter hook forward priority 0; policy drop; }'; "
    "nft add rule inet host passing tcp dport 4444 drop",
    "last-rule": "nft add table inet host; nft add chain inet host passing '{ type filter hook forward priority 10; policy accept; }'; "
    "nft add rule inet host passing ct state established,related accept; nft add rule inet host passing tcp dport 4444 drop; "
    "nft add rule inet host passing counter log prefix refused reject with icmpx admin-prohibited",
    "last-rule-of-iptables": "iptables -A FORWARD -p tcp --dport 4444 -j DROP; iptables -A FORWARD -j REJECT",
}
_IPTABLES, _NFT = "iptables -S FORWARD", "nft --stateless list chain inet host passing"
SHOWS = {"iptables": _IPTABLES, "nftables": _NFT, "last-rule": _NFT, "last-rule-of-iptables": _IPTABLES}
HOST = f"""
mount -t tmpfs none /run && mkdir /run/netns
ip netns add dyno; ip netns add world
ip link set lo up
ip link add {INSTANCE.bridge} type bridge
ip addr add {INSTANCE.gateway}/20 dev {INSTANCE.bridge}
ip link set {INSTANCE.bridge} up
ip link add {INSTANCE.veth(1)} type veth peer name eth0 netns dyno
ip link set {INSTANCE.veth(1)} master {INSTANCE.bridge} up
ip -n dyno addr add {INSTANCE.address(1)}/20 dev eth0
ip -n dyno link set eth0 address {INSTANCE.mac(1)} up
ip -n dyno route add default via {INSTANCE.gateway}
ip link add out type veth peer name eth0 netns world
ip addr add 8.8.8.1/24 dev out
ip link set out up
ip -n world addr add {WORLD}/24 dev eth0
ip -n world link set eth0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
"""


def sh(line: str) -> str:
    return subprocess.run(["sh", "-ec", line], check=True, capture_output=True, text=True).stdout


def reaches(port: int, seconds: int) -> bool:
    call = f"import socket; socket.create_connection(('{WORLD}', {port}), {seconds})"
    return subprocess.run(["ip", "netns", "exec", "dyno", "python3", "-c", call], stderr=subprocess.DEVNULL).returncode == 0


def trial() -> bool:
    """What `davit doctor` tries: the host itself gets through."""
    called = wayout.target([f"http://{WORLD}/"])
    assert called is not None
    inside = ["ip", "netns", "exec", "dyno", "sh", "-c", "echo in; read line"]
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as dyno:
        assert dyno.stdout is not None and dyno.stdout.readline() == b"in\n" and dyno.stdin is not None
        with Path(f"/proc/{dyno.pid}/ns/net").open():  # as a runtime holds the networks of its next dynos
            dyno.stdin.close()
            return wayout.passes(called, wayout.networks(os.getpid()))


def main(kind: str) -> dict[str, object]:
    sh(HOST)
    sh(FORBIDS[kind])
    untouched = sh(SHOWS[kind])
    firewall.apply(INSTANCE, firewall.Policy())
    listen = (
        "import socket, time; "
        "a, b = (socket.create_server(('', port)) for port in (80, 4444)); print('ready', flush=True); time.sleep(600)"
    )
    world = subprocess.Popen(["ip", "netns", "exec", "world", "python3", "-c", listen], stdout=subprocess.PIPE)
    try:
        assert world.stdout is not None and world.stdout.readline()
        found: dict[str, object] = {
            "before": reaches(80, 1),
            "trial before": trial(),
            "missing before": [str(found.chain) for found in passage.shut(INSTANCE)],
        }
        passage.open(INSTANCE)
        once = sh(SHOWS[kind])
        passage.open(INSTANCE)
        found |= {"after": reaches(80, 60), "trial after": trial()}
        found |= {"refused by the host itself": not reaches(4444, 1), "once": sh(SHOWS[kind]) == once}
        found |= {"missing after": [str(found.chain) for found in passage.shut(INSTANCE)], "shown": once}
        passage.close(INSTANCE)
        return found | {"as before": sh(SHOWS[kind]) == untouched, "closed": not reaches(80, 1)}
    finally:
        world.kill()
        world.wait()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
