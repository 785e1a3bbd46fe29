"""Run in a network namespace of its own: a host with a database of its own, another on a private network beyond, and three
slots: an app's dyno, a build, and a dyno that has ended and whose address a build has now.

``python -m tests.runtime.beside_a_database``: prints a JSON object of what each reached.
"""

from __future__ import annotations

import json
import subprocess

from foundation.settings import from_environment
from runtime import firewall
from runtime.instance import Instance

INSTANCE = Instance.numbered(7)
DYNO, BUILD = 1, 2
DATABASE, HERE, OTHER = "10.9.0.5", "10.9.0.1", "10.9.0.6"
ALLOWED = f"{DATABASE}:5432, {HERE}:5433, 10.9.0.0/24:5434"
HOST = f"""
mount -t tmpfs none /run && mkdir /run/netns
ip netns add world
ip link set lo up
ip link add {INSTANCE.bridge} type bridge
ip addr add {INSTANCE.gateway}/20 dev {INSTANCE.bridge}
ip link set {INSTANCE.bridge} up
for slot in {DYNO} {BUILD}; do
  address=$(echo "{INSTANCE.address(1)} {INSTANCE.address(2)}" | cut -d' ' -f$slot)
  mac=$(echo "{INSTANCE.mac(1)} {INSTANCE.mac(2)}" | cut -d' ' -f$slot)
  ip netns add slot$slot
  ip link add {INSTANCE.veth(0)[:-1]}$slot type veth peer name eth0 address $mac netns slot$slot
  ip link set {INSTANCE.veth(0)[:-1]}$slot master {INSTANCE.bridge} up
  ip -n slot$slot addr add $address/20 dev eth0
  ip -n slot$slot link set eth0 up
  ip -n slot$slot route add default via {INSTANCE.gateway}
done
ip link add out type veth peer name eth0 netns world
ip addr add {HERE}/24 dev out
ip link set out up
ip -n world addr add {DATABASE}/24 dev eth0
ip -n world addr add {OTHER}/24 dev eth0
ip -n world link set eth0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
"""
LISTEN = """
import socket, threading
def echo(line):
    while data := line.recv(100):
        line.sendall(data)
def serve(server):
    while True:
        threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
for port in (22, 5432, 5433, 5434):
    threading.Thread(target=serve, args=(socket.create_server(('', port)),), daemon=False).start()
print('ready', flush=True)
"""
PLACES = [(DATABASE, 5432), (DATABASE, 22), (OTHER, 5432), (OTHER, 5434), (HERE, 5433), (HERE, 22), (HERE, 5434)]
CONNECT = f"""
import socket
for place in {PLACES}:
    try:
        socket.create_connection(place, 60)
    except OSError as error:
        print(place, error.errno)
    else:
        print(place, 'reached')
"""
STAY = f"""
import socket, sys
lines = [socket.create_connection(place, 60) for place in {[(DATABASE, 5432), (HERE, 5433)]}]
def echo(line, seconds):
    line.settimeout(seconds)
    try:
        line.sendall(b'x')
        return 'answered' if line.recv(1) else 'closed'
    except OSError:
        return 'silent'
print(*(echo(line, 60) for line in lines), flush=True)
sys.stdin.readline()
print(*(echo(line, 1) for line in lines), flush=True)
"""


def inside(slot: int, *words: str) -> list[str]:
    return ["ip", "netns", "exec", f"slot{slot}", *words]


def tried(slot: int) -> list[str]:
    """What comes of a connection to each of PLACES: reached, or the error's number."""
    done = subprocess.run(inside(slot, "python3", "-c", CONNECT), capture_output=True, text=True, check=True)
    return [line.rpartition(" ")[2] for line in done.stdout.splitlines()]


def main() -> dict[str, object]:
    subprocess.run(["sh", "-ec", HOST], check=True)
    settings = from_environment({"DAVIT_HOME": "/nowhere", "DAVIT_DYNOS_ALLOW": ALLOWED})
    policy = firewall.policy(settings, {}, ["10.9.0.0/24"])
    firewall.apply(INSTANCE, policy)
    servers = [
        subprocess.Popen([*where, "python3", "-c", LISTEN], stdout=subprocess.PIPE, text=True)
        for where in (["ip", "netns", "exec", "world"], [])
    ]
    try:
        for server in servers:
            assert server.stdout and server.stdout.readline() == "ready\n"
        found: dict[str, object] = {"before": tried(DYNO)}
        firewall.admit(INSTANCE, DYNO)
        firewall.admit(INSTANCE, DYNO)
        found |= {"dyno": tried(DYNO), "build": tried(BUILD)}
        firewall.apply(INSTANCE, policy, {DYNO})  # as another runtime process does
        found["adopted"] = tried(DYNO)
        found["connections"] = _connections_after_the_end()
        firewall.expel(INSTANCE, DYNO)
        found["ended"] = tried(DYNO)
        return found
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _connections_after_the_end() -> list[str]:
    """Whether connections that the kernel knows go on: while the slot is a dyno's, and when it is not any more."""
    words = inside(DYNO, "python3", "-c", STAY)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdin and held.stdout
        alive = held.stdout.readline().strip()
        firewall.expel(INSTANCE, DYNO)
        held.stdin.write("\n")
        held.stdin.flush()
        return [alive, held.stdout.readline().strip()]


if __name__ == "__main__":
    print(json.dumps(main()))
