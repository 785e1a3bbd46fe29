"""Run in a network namespace of its own: a host whose firewall drops what is forwarded, a dyno behind it, the world beyond.

``python -m tests.runtime.behind_a_drop iptables|nftables``: prints a JSON object of what held at each step.
"""

from __future__ import annotations

import json
import subprocess
import sys

from runtime import firewall, passage
from runtime.instance import Instance

INSTANCE = Instance.numbered(7)
WORLD = "8.8.8.8"
FORBIDS = {
    "iptables": "iptables -P FORWARD DROP; iptables -A FORWARD -p tcp --dport 4444 -j DROP",
    "nftables": "nft add table inet host; nft add chain inet host passing '{ type filter hook forward priority 0; policy drop; }'; "
    "nft add rule inet host passing tcp dport 4444 drop",
}
SHOWS = {"iptables": "iptables -S FORWARD", "nftables": "nft list chain inet host passing"}
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
ip -n dyno link set eth0 up
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
            "missing before": [str(chain) for chain in passage.missing(INSTANCE)],
        }
        passage.open(INSTANCE)
        once = sh(SHOWS[kind])
        passage.open(INSTANCE)
        found |= {"after": reaches(80, 60), "refused by the host itself": not reaches(4444, 1), "once": sh(SHOWS[kind]) == once}
        found |= {"missing after": [str(chain) for chain in passage.missing(INSTANCE)], "shown": once}
        passage.close(INSTANCE)
        return found | {"as before": sh(SHOWS[kind]) == untouched, "closed": not reaches(80, 1)}
    finally:
        world.kill()
        world.wait()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
