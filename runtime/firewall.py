"""What dynos may reach: one nftables table per instance (and one for the bridge's ports), composed as text, replaced at once.

An app reaches the internet and DNS; it reaches no other app, not this host, no private or link-local network (cloud metadata
included), and none of the networks that this host is connected to. The router reaches apps: it speaks from the host itself; so
may whoever has an account here, but for the ports of :data:`OF_ROOT`.
What DAVIT_DYNOS_ALLOW names is open to the slots in the set ``dynos`` alone: a build, which has its address from the same
network, is in no set. Nothing is let through for being part of a known connection before it was asked where it leads: an
address is given to another one day, and what the kernel remembers of its connections must open nothing to that one.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from foundation import programs
from foundation.errors import DavitError
from foundation.outbound import PRIVATE
from foundation.settings import Address, Allowed, Settings
from runtime.instance import SLOTS, Instance

OF_ROOT = (8000, 65077)
"""Ports of dynos that this host's root alone may ask: OSv's REST server and the agent that raises signals know no password."""
CONNECTIONS = 8192
"""How many connections one dyno or build may have at once: the table in which the kernel keeps them (nf_conntrack_max) is one for
all, and the host's own are in it. They are counted anew when the rules change (a network of this host comes or goes, another name
server): those of before are not among them."""
FRESH = 2000
"""How many new ones it may begin in a second, beyond as many as it may have at once."""
_RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


class FirewallFailed(DavitError):
    """The firewall could not be put in force; without it no dyno is started."""

    id, status = "firewall_failed", 500


@dataclass(frozen=True)
class Policy:
    """What the rules depend on besides the instance.

    Attributes:
        resolvers: IPv4 addresses that may be asked for names.
        proxies: further (address, port) pairs that are allowed though private: the host's own HTTP proxy.
        local: networks that this host is connected to.
        router: (address or None for every address, port) at which apps may call each other by public name.
        allowed: private addresses that apps' dynos may reach, and builds may not.
    """

    resolvers: Sequence[str] = ()
    proxies: Sequence[tuple[str, int]] = ()
    local: Sequence[str] = ()
    router: Sequence[tuple[str | None, int]] = field(default_factory=tuple)
    allowed: Sequence[Allowed] = ()


def ruleset(instance: Instance, policy: Policy, dynos: Iterable[int] = ()) -> str:
    """The text that replaces the instance's table in one transaction; ``dynos`` are the slots of apps' dynos; pure.

    What one dyno sends to another comes to the host, its only neighbour, and is refused before the kernel looks for a way: it
    would say with each packet that there is a shorter one (an ICMP redirect), and then not that it is refused, for it says only
    so much.
    """
    t, br, net = instance.table, instance.bridge, str(instance.network)
    blocked = ", ".join(collapse([*PRIVATE, *policy.local, net]))
    dns = _set_rules("ip daddr", policy.resolvers, "{} meta l4proto {{ tcp, udp }} th dport 53 accept")
    proxies = "".join(f"    ip daddr {address} tcp dport {port} accept\n" for address, port in policy.proxies)
    doors = (f"ip daddr {address} tcp dport {port}" if address else f"tcp dport {port}" for address, port in policy.router)
    router = "".join(f"    {door} accept\n" for door in doors)
    # Of each flow the first packet alone is looked at (none that was let through is unconfirmed): kernels of before 2026 count
    # every one that nobody answers anew, and forget but so many in a second (nf_conncount), hence there are not to be more.
    first = "    ct state new ct status & confirmed == 0 add"
    few = (
        f"{first} @fresh {{ ip saddr limit rate over {FRESH}/second burst {CONNECTIONS} packets }} drop\n"
        f"{first} @connections {{ ip saddr ct count over {CONNECTIONS} }} reject with icmpx admin-prohibited\n"
    )
    beyond = "".join(map(_allows, policy.allowed))
    here = "".join(_allows(allowed) for allowed in policy.allowed if allowed.network.num_addresses == 1 and allowed.port)
    return f"""\
table inet {t}
delete table inet {t}
table inet {t} {{
{_set_of_dynos(instance, dynos)}  set connections {{
    type ipv4_addr
    size 65535
    flags dynamic
  }}
  set fresh {{
    type ipv4_addr
    size 65535
    flags dynamic,timeout
    timeout 1m
  }}
  chain prerouting {{
    type filter hook prerouting priority filter; policy accept;
    iifname "{br}" ip saddr {net} ip daddr {net} ip daddr != {instance.gateway} reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname != "{br}" oifname != "{br}" return
    iifname "{br}" oifname "{br}" drop
    oifname "{br}" ct state established,related accept
    oifname "{br}" drop
    meta nfproto != ipv4 drop
    ip saddr != {net} drop
    ct state invalid drop
{few}{dns}{proxies}{beyond}    ip daddr {{ {blocked} }} reject with icmpx admin-prohibited
    ct state established,related accept
    tcp dport 25 reject with icmpx admin-prohibited
    accept
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != "{br}" return
    meta nfproto != ipv4 drop
    ip saddr != {net} drop
    ct direction reply ct state established,related accept
{few}{dns}{proxies}{router}{here}    reject with icmpx admin-prohibited
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{br}" tcp dport {{ {", ".join(map(str, OF_ROOT))} }} meta skuid != 0 reject with tcp reset
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {net} oifname != "{br}" masquerade
  }}
}}
"""


def port_ruleset(instance: Instance) -> str:
    """Which addresses, of hardware and of IP, may speak on which port of the bridge: a dyno cannot take another's, whatever
    runs in it; pure."""
    t = instance.table
    ports = ", ".join(f'"{instance.veth(slot)}" . {instance.mac(slot)} . {instance.address(slot)}' for slot in SLOTS)
    return f"""\
table bridge {t}
delete table bridge {t}
table bridge {t} {{
  set ports {{
    type ifname . ether_addr . ipv4_addr
    elements = {{ {ports} }}
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname != "{instance.veth(0)[:-1]}*" return
    ether type ip iifname . ether saddr . ip saddr @ports accept
    ether type arp iifname . ether saddr . arp saddr ip @ports iifname . arp saddr ether . arp saddr ip @ports accept
    drop
  }}
}}
"""


def _set_of_dynos(instance: Instance, slots: Iterable[int]) -> str:
    addresses = ", ".join(map(instance.address, sorted(slots)))
    elements = f"    elements = {{ {addresses} }}\n" if addresses else ""
    return f"  set dynos {{\n    type ipv4_addr\n{elements}  }}\n"


def _allows(allowed: Allowed) -> str:
    port = f" meta l4proto {{ tcp, udp }} th dport {allowed.port}" if allowed.port else ""
    return f"    ip saddr @dynos ip daddr {allowed.network}{port} accept\n"


def _set_rules(match: str, addresses: Iterable[str], rule: str) -> str:
    joined = ", ".join(sorted(set(addresses)))
    return f"    {rule.format(f'{match} {{ {joined} }}')}\n" if joined else ""


def collapse(networks: Iterable[str]) -> list[str]:
    """The networks without overlaps, which a set of nftables must not have."""
    parsed = (ipaddress.IPv4Network(network, strict=False) for network in networks)
    return [str(network) for network in ipaddress.collapse_addresses(parsed)]


def parse_resolvers(text: str) -> list[str]:
    """The IPv4 name servers of a resolv.conf."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(str(ipaddress.IPv4Address(words[1])))
            except ValueError:
                continue  # IPv6: dynos have none
    return found


def resolvers(files: Sequence[Path] = _RESOLV_CONF) -> list[str]:
    """The name servers that dynos can ask: the host's, or those behind its loopback resolver."""
    for file in files:
        try:
            found = parse_resolvers(file.read_text())
        except OSError:
            continue
        usable = [address for address in found if not ipaddress.IPv4Address(address).is_loopback]
        if usable:
            return usable
    return []


def resolv_conf(host: str, servers: Sequence[str]) -> str:
    """A dyno's resolv.conf: the host's search list and options with the name servers that the dyno can reach; pure."""
    kept = [line for line in host.splitlines() if line.split()[:1] in (["search"], ["domain"], ["options"])]
    return "".join(f"{line}\n" for line in [*(f"nameserver {server}" for server in servers), *kept])


PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""The variables that name the host's proxies."""
NAMES_LAST = 60.0
"""Seconds after which a proxy's name is looked up again."""


def named_proxies(environ: Mapping[str, str]) -> list[tuple[str, int]]:
    """Host (a name or an address) and port of each proxy that the environment names; never its credentials; pure."""
    found: list[tuple[str, int]] = []
    for name in PROXIES:
        value = environ.get(name)
        try:
            parts = urlsplit(value if not value or "://" in value else f"http://{value}")
            pair = (str(parts.hostname or ""), parts.port or (443 if parts.scheme == "https" else 80))
        except ValueError:
            continue
        if pair[0] and pair not in found:
            found.append(pair)
    return found


def addresses_of(host: str) -> list[str]:
    """The IPv4 addresses of a name or address now; none when it cannot be resolved."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(entry[4][0]) for entry in found})


class Names:
    """Names and their addresses. What cannot be resolved for a while keeps the addresses it had.

    Args:
        resolve: asks for the addresses of a name.
        clock: seconds that only grow.
    """

    def __init__(
        self, resolve: Callable[[str], list[str]] = addresses_of, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._resolve, self._clock = resolve, clock
        self._known: dict[str, tuple[float, list[str]]] = {}

    def __call__(self, host: str) -> list[str]:
        at, known = self._known.get(host, (-NAMES_LAST, []))
        if self._clock() - at < NAMES_LAST and known:
            return known
        known = self._resolve(host) or known
        self._known[host] = (self._clock(), known)
        return known


def proxies(environ: Mapping[str, str], resolve: Callable[[str], list[str]] = addresses_of) -> list[tuple[str, int]]:
    """The IPv4 addresses and ports of the host's HTTP proxies; those on the loopback are of no use to dynos."""
    found: list[tuple[str, int]] = []
    for host, port in named_proxies(environ):
        for address in resolve(host):
            if not ipaddress.IPv4Address(address).is_loopback and (address, port) not in found:
                found.append((address, port))
    return found


def router_doors(addresses: Iterable[Address | None]) -> list[tuple[str | None, int]]:
    """Where apps may reach the router: nowhere while it listens on the loopback only."""
    doors: list[tuple[str | None, int]] = []
    for address in addresses:
        if address is None:
            continue
        if address.host in ("0.0.0.0", "::", "", "*"):
            doors.append((None, address.port))
            continue
        try:
            ip = ipaddress.ip_address(address.host)
        except ValueError:
            continue
        if ip.version == 4 and not ip.is_loopback:
            doors.append((str(ip), address.port))
    return doors


def policy(
    settings: Settings, environ: Mapping[str, str], local: Sequence[str], resolve: Callable[[str], list[str]] = addresses_of
) -> Policy:
    """The policy of this host now."""
    doors = router_doors([settings.http, settings.https])
    return Policy(resolvers(), proxies(environ, resolve), local, doors, settings.dynos_allow)


def apply(instance: Instance, rules: Policy, dynos: Iterable[int] = ()) -> None:
    """Put the rules in force, replacing earlier ones in one transaction.

    Args:
        dynos: the slots of apps' dynos.

    Raises:
        FirewallFailed: nft refuses; what was in force stays in force.
    """
    _nft(ruleset(instance, rules, dynos))
    _nft(port_ruleset(instance))


def admit(instance: Instance, slot: int) -> None:
    """A slot is an app's dyno's from now on; once more does no harm.

    Raises:
        FirewallFailed: nft refuses.
    """
    _nft(f"add element inet {instance.table} dynos {{ {instance.address(slot)} }}\n")


def expel(instance: Instance, slot: int) -> None:
    """A slot is nobody's; no error when it was before.

    Raises:
        FirewallFailed: nft refuses.
    """
    element = f"element inet {instance.table} dynos {{ {instance.address(slot)} }}\n"
    _nft(f"add {element}delete {element}")


def _nft(text: str) -> None:
    try:
        programs.run(["nft", "-f", "-"], input=text.encode())
    except programs.ProgramFailed as failure:
        reason = failure.stderr.strip().splitlines()[0] if failure.stderr.strip() else failure.message
        raise FirewallFailed(
            f"The firewall for dynos could not be put in force: {reason}. `davit doctor` checks nftables."
        ) from None


def remove(instance: Instance) -> None:
    """Take the instance's tables away; no error when there are none."""
    for family in ("inet", "bridge"):
        text = f"table {family} {instance.table}\ndelete table {family} {instance.table}\n"
        programs.run(["nft", "-f", "-"], input=text.encode(), check=False)
