"""The ``#cloud-config`` that turns a blank Debian or Ubuntu cloud image into a Davit host. Pure: text out.

cloud-init runs most of it once per instance; what it runs is written so that running it again changes nothing.
Sources: cloud-init's module reference; systemd-networkd.service(8); apt.conf(5) of unattended-upgrades.
"""

from __future__ import annotations

import ipaddress
import shlex
from typing import Any
from urllib.parse import urlsplit

import yaml

from foundation.settings import from_environment
from hosts.plan import LISTENING, SSH_PORT, Host
from hosts.vocabulary import check

SETUP = "/usr/local/sbin/davit-host-setup"
CHECKOUT = "/opt/davit"
ENVIRONMENT = "/etc/davit/davit.env"
ENDED = "davit: cloud-init ended after"
"""How the console's last line begins."""

_SYSCTL = """\
# many dynos, each with processes, files and connections of its own
fs.inotify.max_user_instances = 8192
fs.inotify.max_user_watches = 1048576
kernel.pid_max = 4194304
net.core.somaxconn = 4096
net.ipv4.neigh.default.gc_thresh2 = 4096
net.ipv4.neigh.default.gc_thresh3 = 8192
vm.swappiness = 10
"""

_UPGRADES = """\
// Security upgrades, daily and without asking; never a reboot under running apps.
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
Unattended-Upgrade::Automatic-Reboot "false";
"""

_NEEDRESTART = """\
# An upgrade tells which services should be restarted; it restarts none that networks or apps hang on.
$nrconf{restart} = 'l';
$nrconf{override_rc}{qr(^(systemd-networkd|systemd-resolved|networking|NetworkManager|davit-))} = 0;
"""

_NETWORKD = """\
# Routes and rules that networkd did not make are not its to remove when an upgrade restarts it.
[Network]
ManageForeignRoutes=no
ManageForeignRoutingPolicyRules=no
"""

_BRIDGES = """\
# Davit's bridges and the cables of dynos are Davit's own.
[Match]
Name=davit* dv*

[Link]
Unmanaged=yes
"""

_FIREWALL = """\
#!/usr/sbin/nft -f
# What comes in from outside. Traffic of dynos is judged by Davit's own tables.
table inet davit_host
delete table inet davit_host
table inet davit_host {{
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
        iifname "davit*" accept
        meta l4proto {{ icmp, ipv6-icmp }} accept
        udp sport 67 udp dport 68 accept
        udp sport 547 udp dport 546 accept
        tcp dport {{ {ports} }} accept
    }}
}}
"""

_FIREWALL_UNIT = """\
# Before the network is up, and so before all that usually comes first: cloud-init waits for the network, and the rest of the boot
# for cloud-init.
[Unit]
Description=What comes in to this Davit host
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f /etc/davit/firewall.nft

[Install]
WantedBy=sysinit.target
"""

_SETUP = """\
#!/bin/sh
# Makes this machine a Davit host; may be run again and again: what is there is left as it is.
set -eu
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DAVIT_STACKS={stacks}
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt # what this host trusts, and no list of anybody else's
say() {{ printf '%s\\n' "davit-host-setup: $*"; }}

fetch() {{ # URL SHA256 FILE
    [ -e "$3" ] && echo "$2  $3" | sha256sum --check --status && return
    say "fetching $3"
    curl --fail --silent --show-error --location --retry 5 --retry-connrefused --output "$3.part" "$1"
    echo "$2  $3.part" | sha256sum --check --status || {{ say "$3 is not what its checksum says"; rm -f "$3.part"; exit 1; }}
    mv "$3.part" "$3"
}}

sysctl --quiet --load /etc/sysctl.d/60-davit.conf || say "some kernel settings are not known here"
mkdir -p /var/cache/davit

# what fetching takes; cloud images have most of it, and Davit's set-up installs all else in one go
missing=
for program in {programs}; do command -v "$program" >/dev/null || missing="$missing $program"; done
[ -e "$SSL_CERT_FILE" ] || missing="$missing ca-certificates"
if [ -n "$missing" ]; then
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Acquire::Languages=none update
    apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 --no-install-recommends install $missing
fi
{release}
{stack}
say "installing what Davit needs"
{installing}
systemctl enable --now davit-firewall.service
say "starting Davit"
{checkout}/bin/davit install --environment {environment} --start
say "this is a Davit host"
"""

_INSTALLING = "{checkout}/scripts/setup run host"
_INSTALLING_BESIDE = """\
SETUP_STACK=no {checkout}/scripts/setup run host
wait "$stack" # fetched meanwhile
trap - EXIT"""

_ARCHIVE = """\
if [ "$(cat {checkout}/.release 2>/dev/null)" != {sha256} ]; then
    fetch {url} {sha256} /var/cache/davit/release.tar
    say "unpacking Davit"
    mkdir -p {checkout}
    tar -xf /var/cache/davit/release.tar -C {checkout} --strip-components=1 --no-same-owner
    [ -x {checkout}/bin/davit ] || {{ say "the archive holds no directory with Davit in it"; exit 1; }}
    echo {sha256} >{checkout}/.release
    rm -f /var/cache/davit/release.tar
fi"""

_GIT = """\
[ -d {checkout}/.git ] || git clone --quiet {url} {checkout}
chmod 600 {checkout}/.git/config # the address may hold a token
if [ "$(cat {checkout}/.release 2>/dev/null)" != {ref} ]; then
    git -C {checkout} fetch --quiet --tags origin
    git -C {checkout} checkout --quiet {ref} || {{ say "the repository has no version" {ref}; exit 1; }}
    echo {ref} >{checkout}/.release
fi"""

_STACK = """\
take_stack() {{
    [ ! -e {stacks}/davit-13/current/stack.json ] || return 0
    fetch {url} {sha256} /var/cache/davit/stack.tar
    mkdir -p {stacks}
    tar -xf /var/cache/davit/stack.tar -C {stacks} --no-same-owner
    rm -f /var/cache/davit/stack.tar
    say "the stack is there"
}}
take_stack & stack=$!
trap 'kill "$stack" 2>/dev/null' EXIT"""


def user_data(host: Host) -> str:
    """The whole user-data.

    Raises:
        InvalidParams: the host cannot be made; the sentence says why.
    """
    host.check()
    document = compose(host)
    check(document)
    return "#cloud-config\n" + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as people write them."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def compose(host: Host) -> dict[str, Any]:
    """The document as a value."""
    document: dict[str, Any] = {
        "users": ["default", _admin(host)] if host.admin_keys else ["default"],
        "ssh_pwauth": False,
        "ssh_genkeytypes": ["ed25519", "ecdsa"],  # an RSA key takes a slow machine a minute, and no client needs it
        "locale": "C.UTF-8",
        "write_files": _files(host),
        "runcmd": [[SETUP]],
        "final_message": f"{ENDED} $UPTIME seconds; `cloud-init status --long` says how",  # said of a set-up that failed, too
    }
    if host.hostname:
        document["hostname"] = host.hostname
        document["manage_etc_hosts"] = "localhost"  # else sudo looks for the name in the DNS, and complains
    if host.swap:
        document["swap"] = {"filename": "/swapfile", "size": host.swap << 20, "maxsize": host.swap << 20}
    if host.certificates:
        document["ca_certs"] = {"trusted": [text + "\n" for text in host.authorities]}
    if host.mirror:
        # Debian 13's image keeps its list of sources unless told otherwise
        where = {"primary": host.mirror, "security": security(host.mirror)}
        document["apt"] = {"preserve_sources_list": False} | {
            name: [{"arches": ["default"], "uri": uri}] for name, uri in where.items()
        }
    return document


def security(mirror: str) -> str:
    """Where a mirror's security archive is: Debian's is beside its archive, Ubuntu's in it.

    cloud-init takes the archive for both when it is told of one only; Debian's has no security updates, and apt fails.
    """
    path = urlsplit(mirror).path.rstrip("/")
    return mirror if "ubuntu" in path.rpartition("/")[2] else f"{mirror.rstrip('/')}-security"


def _admin(host: Host) -> dict[str, Any]:
    return {
        "name": "admin",
        "groups": ["adm", "sudo"],
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh_authorized_keys": [key.strip() for key in host.admin_keys],
    }


def _files(host: Host) -> list[dict[str, Any]]:
    texts = {
        "/etc/sysctl.d/60-davit.conf": _SYSCTL,
        "/etc/apt/apt.conf.d/52davit-upgrades": _UPGRADES,
        "/etc/needrestart/conf.d/davit.conf": _NEEDRESTART,
        "/etc/systemd/networkd.conf.d/davit.conf": _NETWORKD,
        "/etc/systemd/network/05-davit.network": _BRIDGES,
        "/etc/davit/firewall.nft": _FIREWALL.format(ports=", ".join(map(str, ports(host)))),
        "/etc/systemd/system/davit-firewall.service": _FIREWALL_UNIT,
    }
    files = [{"path": path, "content": text} for path, text in texts.items()]
    files.append({"path": ENVIRONMENT, "content": environment(host), "permissions": "0600"})
    files.append({"path": SETUP, "content": setup(host), "permissions": "0700"})  # an address in it may hold a token
    return files


def ports(host: Host) -> list[int]:
    """What the host's firewall lets in: its SSH server, and all at which Davit listens (apps, API, git over SSH)."""
    settings = from_environment(host.environment)
    addresses = [one for name in LISTENING if (one := getattr(settings, name)) is not None]
    return sorted({SSH_PORT, *(one.port for one in addresses if one.port and not _is_loopback(one.host))})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def environment(host: Host) -> str:
    """The settings, as systemd reads an EnvironmentFile."""
    escaped = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in host.environment.items()}
    return "".join(f'{name}="{value}"\n' for name, value in escaped.items())


def setup(host: Host) -> str:
    """The script that does the rest."""
    quoted = shlex.quote
    if host.release is not None:
        release = _ARCHIVE.format(url=quoted(host.release.url), sha256=host.release.sha256, checkout=CHECKOUT)
    else:
        release = _GIT.format(url=quoted(host.git or ""), ref=quoted(host.ref), checkout=CHECKOUT)
    stacks = quoted(host.environment["DAVIT_STACKS"])
    stack = _STACK.format(url=quoted(host.stack.url), sha256=host.stack.sha256, stacks=stacks) if host.stack else ""
    installing = (_INSTALLING_BESIDE if host.stack else _INSTALLING).format(checkout=CHECKOUT)
    programs = {"git": host.git, "curl": host.release or host.stack}
    return _SETUP.format(
        programs=" ".join(name for name, wanted in programs.items() if wanted),
        release=release,
        stack=stack,
        installing=installing,
        checkout=CHECKOUT,
        environment=ENVIRONMENT,
        stacks=stacks,
    )
