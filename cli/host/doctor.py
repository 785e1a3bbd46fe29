"""``davit doctor``: looks at everything that Davit needs of its host, and says what to do about what is missing.

Each check is a small function from the settings to a :class:`Point`; what it decides on is read by the functions at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cli.host import keeper, processes, record, registries, wayout
from foundation.errors import DavitError, Unavailable
from foundation.memory import meminfo
from foundation.settings import Address, Settings

Level = Literal["ok", "warn", "fail"]

KERNEL = (5, 19)
"""The first Linux in which overlayfs works on idmapped mounts (mount_setattr(2), overlayfs documentation)."""
DISK_WANTED = 5 << 30
DISK_LEAST = 1 << 30
INODES_WANTED = 50_000
MEMORY_WANTED = 1 << 30
STACK_DAYS = 60
"""From when on a stack is told as old."""
CLOCK_TOLERANCE = 300.0
"""Seconds by which the clock may be wrong before certificates and package signatures are refused."""


@dataclass(frozen=True)
class Point:
    """One thing looked at: ``message`` says what was found, ``remedy`` what to do (empty when ok)."""

    name: str
    level: Level
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Tool:
    """A program that Davit runs: where it comes from and the version that it needs."""

    program: str
    package: str
    least: tuple[int, ...] = ()
    version_argument: str = "--version"
    level: Level = "fail"


TOOLS = (
    Tool("crun", "crun"),
    Tool("runc", "runc", level="warn"),
    Tool("haproxy", "haproxy", (2, 4, 13), "-v"),
    Tool("nft", "nftables"),
    Tool("git", "git", (2, 32)),
    Tool("tini", "tini"),
    Tool("mkfs.erofs", "erofs-utils", version_argument="-V", level="warn"),
    Tool("mksquashfs", "squashfs-tools", version_argument="-version"),
    Tool("mkfs.ext4", "e2fsprogs", version_argument="-V"),
    Tool("mmdebstrap", "mmdebstrap"),
)
EMBEDDED_REDIS = Tool("redis-server", "redis-server", (6, 0))


def examine(settings: Settings, *, essential: bool = False) -> list[Point]:
    """Look at everything; with ``essential`` only at what ``davit up`` cannot do without and that is quick to see."""
    checks: list[Callable[[Settings], Point | Iterable[Point]]] = [
        check_root, check_kernel, check_filesystems, check_namespaces, check_cgroups, check_tools, check_home, check_ports,
    ]  # fmt: skip
    if not essential:
        checks += [
            check_disk, check_memory, check_stack, check_microvm, check_osv, check_database, check_redis, check_passage,
            check_proxies, check_names, check_own_names, check_registries,
        ]  # fmt: skip
    points: list[Point] = []
    for check in checks:
        found = check(settings)
        points += [found] if isinstance(found, Point) else found
    return points


def check_root(settings: Settings) -> Point:
    """Dynos need namespaces and mounts."""
    if os.geteuid() == 0:
        return Point("root", "ok", "this is root")
    return Point("root", "fail", "this is not root; dynos need namespaces and mounts.", "Use sudo.")


def check_kernel(settings: Settings) -> Point:
    """The kernel's version, as uname gives it."""
    release = os.uname().release
    if version(release) >= KERNEL:
        return Point("kernel", "ok", f"Linux {release}")
    wanted = ".".join(map(str, KERNEL))
    return Point(
        "kernel", "fail", f"Linux {release} is older than {wanted}, which idmapped overlays need.",
        "Install a newer kernel (Debian 12: its own; Ubuntu 22.04: `apt-get install linux-generic-hwe-22.04`, on a cloud's"
        " machine linux-virtual-hwe-22.04 or its own flavour) and reboot.",
    )  # fmt: skip


def check_filesystems(settings: Settings) -> Iterator[Point]:
    """Overlay for dynos, one of erofs and squashfs for slugs, loop devices for images."""
    known = {line.split()[-1] for line in _read("/proc/filesystems").splitlines()}
    yield _filesystem("overlay", "overlay" in known or _module("overlay"), "overlay")
    images = [name for name in ("erofs", "squashfs") if name in known or _module(name)]
    yield Point("slug images", "ok", " and ".join(images)) if images else _filesystem("slug images", False, "squashfs")
    loop = Path("/dev/loop-control").exists() or _module("loop")
    yield _filesystem("loop devices", loop, "loop")


def _filesystem(name: str, there: bool, module: str) -> Point:
    if there:
        return Point(name, "ok", "available")
    return Point(
        name, "fail", f"the kernel has no {module}.", f"Try `modprobe {module}`; in a container or small VM, ask for it."
    )


def check_namespaces(settings: Settings) -> Point:
    """User, network, pid and mount namespaces can be made (a container without privileges refuses)."""
    tried = _run(["unshare", "--user", "--map-root-user", "--net", "--pid", "--mount", "--fork", "true"])
    if tried is not None and tried.returncode == 0:
        return Point("namespaces", "ok", "user, network, pid and mount namespaces can be made")
    said = tried.stderr.strip() if tried else "unshare (package util-linux) is not installed"
    return Point(
        "namespaces",
        "fail",
        f"namespaces cannot be made: {said}.",
        "Set user.max_user_namespaces and kernel.unprivileged_userns_clone by sysctl; inside Docker, run privileged.",
    )


def check_cgroups(settings: Settings) -> Point:
    """Memory, CPU and process limits, by cgroups of either version."""
    unified = _read("/sys/fs/cgroup/cgroup.controllers")
    missing = {"cpu", "memory", "pids"} - controllers(unified, _read("/proc/self/mountinfo"))
    if not missing:
        return Point("cgroups", "ok", f"version {2 if unified else 1} with cpu, memory and pids")
    return Point(
        "cgroups",
        "fail",
        f"the controllers {', '.join(sorted(missing))} are missing.",
        "Boot with `cgroup_enable=memory swapaccount=1` on the kernel's command line, or mount /sys/fs/cgroup.",
    )


def controllers(unified: str, mountinfo: str) -> set[str]:
    """The cgroup controllers: cgroup.controllers of version 2 together with what version 1 has mounted."""
    found = set(unified.split())
    for line in mountinfo.splitlines():
        _, _, tail = line.partition(" - ")
        kind, *rest = tail.split()
        if kind == "cgroup" and len(rest) > 1:
            found |= set(rest[1].split(","))
    return found


def check_tools(settings: Settings) -> Iterator[Point]:
    """Programs and their versions."""
    for tool in TOOLS if settings.redis_url else (*TOOLS, EMBEDDED_REDIS):
        yield _tool(tool)


def _tool(tool: Tool) -> Point:
    if shutil.which(tool.program, path=_PATH) is None:
        return Point(tool.program, tool.level, "not installed.", f"`apt-get install {tool.package}`, or `make setup`.")
    said = _run([tool.program, tool.version_argument])
    found = version(said.stdout + said.stderr) if said else ()
    text = ".".join(map(str, found))
    if tool.least and found < tool.least:
        wanted = ".".join(map(str, tool.least))
        return Point(tool.program, "fail", f"version {text} is older than {wanted}.", f"Install a newer {tool.package}.")
    return Point(tool.program, "ok", text or "installed")


def check_home(settings: Settings) -> Point:
    """DAVIT_HOME holds keys: nobody else may read it."""
    home = settings.home
    if not home.exists():
        return Point("home", "ok", f"{home} will be made")
    mode = home.stat().st_mode & 0o777
    if mode & 0o077:
        return Point("home", "warn", f"{home} can be entered by others (mode {mode:o}).", f"`chmod 700 {home}`.")
    if not os.access(home, os.W_OK):
        return Point("home", "fail", f"{home} cannot be written.", "Use sudo, or choose another DAVIT_HOME.")
    return Point("home", "ok", f"{home} is private")


def check_ports(settings: Settings) -> Iterator[Point]:
    """Each address is free, or this Davit's own."""
    proxies = processes.haproxies(settings.home)
    kept_by = keeper.find(settings)
    kept = {one.name: one for one in keeper.survey(settings, kept_by)} if kept_by is not None else {}
    running = {entry.name for entry in record.read(settings.run).living()}

    def ours(name: str, address: Address) -> bool:
        if name == "haproxy" and kept_by is not None and not proxies:  # in another pid namespace; the router answers for it
            return "router" in kept and kept["router"].works
        if name == "haproxy":
            return processes.listen(proxies, address.port)
        return name in running if kept_by is None else keeper.listens(kept.get(name), address)

    for variable, address, name in (
        ("DAVIT_HTTP", settings.http, "haproxy"),
        ("DAVIT_HTTPS", settings.https, "haproxy"),
        ("DAVIT_API", settings.api, "web"),
        ("DAVIT_SSH", settings.ssh, "ssh"),
        ("DAVIT_EXEC", settings.exec, "web"),
    ):
        if address is not None:
            yield Point(variable, "ok", f"{address} is Davit's") if ours(name, address) else _port(variable, address)


def _port(variable: str, address: Address) -> Point:
    problem = cannot_bind(address)
    if problem is None:
        return Point(variable, "ok", f"{address} is free")
    remedy = f"Stop what uses it (`ss -ltnp` shows it), or set {variable}=HOST:PORT."
    return Point(variable, "fail", f"{address} cannot be used: {problem}.", remedy)


def cannot_bind(address: Address) -> str | None:
    """Why nothing can listen on ``address``; None when something can."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except socket.gaierror:
            return f"there is no address named {address.host}"
        except OSError as error:
            return (error.strerror or "unknown reason").lower()
    return None


def check_disk(settings: Settings) -> Iterator[Point]:
    """Space and inodes where the home is (or will be)."""
    place = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    usage = os.statvfs(place)
    free = usage.f_bavail * usage.f_frsize
    level: Level = "ok" if free >= DISK_WANTED else "warn" if free >= DISK_LEAST else "fail"
    remedy = "" if level == "ok" else "Builds and slugs need 5 GiB: free some, or put DAVIT_HOME on another disk."
    yield Point("disk", level, f"{free / 2**30:.1f} GiB free for {settings.home}{'.' * bool(remedy)}", remedy)
    if usage.f_files and usage.f_favail < INODES_WANTED:
        yield Point("inodes", "warn", f"only {usage.f_favail} inodes are free for {settings.home}.", "Remove many small files.")


def check_memory(settings: Settings) -> Point:
    """Memory that processes could get now."""
    available = 0
    with contextlib.suppress(OSError):
        available = meminfo().get("MemAvailable", 0)
    if available >= MEMORY_WANTED:
        return Point("memory", "ok", f"{available / 2**30:.1f} GiB available")
    found = f"only {available / 2**20:.0f} MiB are available; builds may be ended for want of it."
    return Point("memory", "warn", found, "Add memory or swap.")


def check_stack(settings: Settings) -> Point:
    """There is a stack to run slugs on, and it is not old."""
    from runtime import stacks

    try:
        stack = stacks.current(settings.stacks)
    except DavitError as error:
        return Point("stack", "warn", error.message, "`davit up` builds it by itself, too.")
    found, days = f"{stack.name} {stack.version} in {settings.stacks}", stacks.age(stack)
    if days is not None and days > STACK_DAYS:
        return Point(
            "stack", "warn", f"{found} is {days:.0f} days old: what Debian has mended since is not in it.",
            "`davit stack:build` makes a new one, which each app has with its next release.",
        )  # fmt: skip
    return Point("stack", "ok", found + ("" if days is None else f", {max(days, 0):.0f} days old"))


def check_osv(settings: Settings) -> Point:
    """Unikernels need a kernel that the host's owner brings; whether it is one shows when it boots."""
    import asyncio
    import tempfile

    from runtime import qemu
    from runtime.osv import driver, kernel

    if settings.osv_kernel is None:
        return Point("OSv kernel", "ok", f"none is given; only process types isolated as osv need one. {kernel.WHERE}.")
    try:
        program, number = qemu.find(driver.QEMU)
        with tempfile.TemporaryDirectory(prefix="davit-doctor-") as place:
            kept = kernel.keep(settings.osv_kernel, Path(place))
            Path(place).chmod(0o755)
            if os.geteuid() != 0:
                return Point("OSv kernel", "ok", f"{settings.osv_kernel} looks like one; only root can try to boot it")
            found = asyncio.run(kernel.find_out(program, qemu.dotted(number), kept))
            trial = asyncio.run(kernel.boot(program, kept, kvm=found.kvm))
    except DavitError as error:
        return Point("OSv kernel", "warn", error.message, "Until then no process type can be isolated as osv.")
    if not trial.banner:
        message = f"{settings.osv_kernel} does not boot: {trial.failure or 'it said nothing'}."
        return Point("OSv kernel", "warn", message, kernel.WHERE + ".")
    return Point("OSv kernel", "ok", f"{trial.banner} booted in {trial.seconds:.1f} s; unikernels run {found}")


def check_microvm(settings: Settings) -> Point:
    """QEMU and the kernel for dynos as microVMs, and whether they run with KVM; a host that runs none needs none."""
    import asyncio

    from runtime import qemu
    from runtime.microvm import acceleration, driver, kernel

    try:
        program, number = qemu.find(driver.QEMU)
        boots = kernel.current(settings.stacks)
    except DavitError as error:
        absent = "not installed" in error.message or "no kernel for microVMs yet" in error.message
        return Point("microvm", "ok" if absent else "warn", error.message)
    there = f"QEMU {qemu.dotted(number)}, kernel {boots.version}"
    if os.geteuid() != 0:
        return Point("microvm", "ok", f"{there}; only root can try whether they run with KVM")
    found = asyncio.run(acceleration.find_out(program, qemu.dotted(number), boots))
    return Point("microvm", "ok", f"{there}; microVMs run {found}")


def check_database(settings: Settings) -> Point:
    """The database answers, and is this home's; an SQLite file that is not there yet will be made."""
    from state import identity

    try:
        if os.access(settings.home, os.R_OK | os.X_OK):
            identity.check(settings)
    except identity.WrongDatabase as error:
        return Point("database", "fail", error.message)
    except Unavailable:
        return Point("database", "fail", "the database of DATABASE_URL does not answer.", "Start it, or correct DATABASE_URL.")
    if settings.database_url.startswith("sqlite"):
        path = settings.home / "davit.db"
        return Point("database", "ok", f"SQLite, {path}" + ("" if path.exists() else " (will be made)"))
    import sqlalchemy

    from state import db

    try:
        with db.make_engine(settings.database_url).connect():
            return Point("database", "ok", "PostgreSQL answers")
    except sqlalchemy.exc.SQLAlchemyError:
        return Point("database", "fail", "the database of DATABASE_URL does not answer.", "Start it, or correct DATABASE_URL.")


def check_redis(settings: Settings) -> Point:
    """Redis answers and has room; Davit's own starts with Davit."""
    import redis

    from state import health

    try:
        with redis.Redis.from_url(settings.effective_redis_url, socket_timeout=5, socket_connect_timeout=5) as client:
            client.ping()
            level, words = health.redis_memory(client)
    except (redis.RedisError, ValueError):
        if settings.redis_url is None:
            return Point("redis", "ok", "Davit's own; it answers while Davit runs")
        return Point("redis", "fail", "the Redis of REDIS_URL does not answer.", "Start it, or correct REDIS_URL.")
    if level == "ok":
        return Point("redis", "ok", words)
    own = "`redis-cli -s DAVIT_HOME/run/redis.sock --memkeys` shows what fills it."
    remedy = "Give it more memory (maxmemory), or have other programs use another." if settings.redis_url else own
    return Point("redis", "warn", words + ".", "" if "noeviction" in words else remedy)


def check_passage(settings: Settings) -> Iterator[Point]:
    """The host's own firewall lets through what dynos send; Davit sees to that itself where the chains are nftables'."""
    from runtime import passage
    from runtime.instance import Instance

    instance = Instance.running(settings)
    bridge = instance.bridge if instance is not None else "davit0"
    closed = list(passage.look(bridge)) if shutil.which("nft") else []
    kept_by = keeper.find(settings)
    pids = [entry.process.pid for entry in record.read(settings.run).living() if entry.name == "runtime" and entry.process]
    pids += [kept_by.pids["runtime"]] if kept_by is not None and kept_by.pids.get("runtime") else []
    shut = [found for found in closed if not found.open] if instance is not None and pids else []
    for found in shut:
        commands = "; ".join(f"nft {command}" for command in found.commands(bridge))
        message = f"the chain {found.chain} refuses what is forwarded, so builds and dynos have no internet."
        yield Point("forwarding", "fail", message, f"`{commands}`")
    legacy = _run(["iptables-legacy", "-S", "FORWARD"]) if "filter" in _read("/proc/net/ip_tables_names").split() else None
    lacking = passes_not(legacy.stdout, bridge) if legacy is not None else []
    if lacking:
        message = "iptables (legacy) drops what is forwarded, so builds and dynos have no internet."
        yield Point("forwarding", "fail", message, f"`{'; '.join(lacking)}`")
    if not shut and not lacking:
        yield way_out(pids if instance is not None else [], bridge, [str(found.chain) for found in closed])


def way_out(pids: Sequence[int], bridge: str, opened: Sequence[str]) -> Point:
    """One connection from a dyno's network, where it can be tried; else what was looked at.

    Args:
        pids: of the runtime process.
        opened: chains that would refuse what is forwarded, and in which Davit's own rules let the bridge through.
    """
    looked = f"Davit opens a way through {', '.join(opened)}" if opened else "no chain ends in refusing all that is forwarded"
    if not pids:
        return Point("forwarding", "ok", f"{looked}; whether packets pass can be tried while Davit runs")
    namespaces = [namespace for pid in pids for namespace in wayout.networks(pid)]
    called = wayout.target(url for _, url in registries.urls(os.environ)) if namespaces else None
    if called is None:
        return Point("forwarding", "ok", f"{looked}; not tried, as nothing public answers this host directly")
    if wayout.passes(called, namespaces):
        return Point("forwarding", "ok", f"{looked}; a connection from a dyno's network to {called.host} came about")
    return Point(
        "forwarding", "warn",
        f"this host reaches {called.host} ({called.address}), a dyno's network does not, though {looked}.",
        f"`nft list ruleset` and `iptables-save` show what refuses it: let pass what comes from and goes to {bridge}.",
    )  # fmt: skip


def passes_not(listing: str, bridge: str) -> list[str]:
    """The commands that let a bridge through what ``iptables-legacy -S FORWARD`` shows; none when nothing is refused."""
    rules = [line.removeprefix("-A ") for line in listing.splitlines() if line.startswith("-A FORWARD ")]
    last = next((number for number, rule in enumerate(rules) if re.match(r"FORWARD -j (DROP|REJECT)\b", rule)), None)
    if last is None and "-P FORWARD DROP" not in listing.splitlines():
        return []
    wanted = (f"FORWARD -i {bridge} -j ACCEPT", f"FORWARD -o {bridge} -j ACCEPT")
    lacking = [rule for rule in wanted if rule not in rules[:last]]
    if last is None:
        return [f"iptables-legacy -A {rule}" for rule in lacking]
    return [f"iptables-legacy -I {rule.replace('FORWARD', f'FORWARD {last + 1}', 1)}" for rule in lacking]


def check_proxies(settings: Settings) -> Iterator[Point]:
    """Builds use the host's proxies, from a network of their own: the host's loopback is not theirs."""
    from runtime import firewall

    for host, port in firewall.named_proxies(os.environ):
        yield proxy(host, port, firewall.addresses_of(host))


def proxy(host: str, port: int, addresses: list[str]) -> Point:
    """What builds can do with the proxy at ``host``, which has these IPv4 addresses."""
    if not addresses:
        found = f"{host}:{port} is not found, or has no IPv4 address; builds cannot use it."
        return Point("proxy", "warn", found, "Correct http_proxy and https_proxy, or look at /etc/resolv.conf.")
    if all(address.startswith("127.") for address in addresses):
        found = f"{host}:{port} is this host's loopback, which builds and dynos cannot reach."
        remedy = "Have it listen on an address of the host, and name that in http_proxy and https_proxy."
        return Point("proxy", "warn", found, remedy)
    return Point("proxy", "ok", f"{host}:{port} is let through to builds and dynos")


def check_names(settings: Settings) -> Iterator[Point]:
    """Builds look names up; behind a proxy the proxy does, and there is nothing to see here."""
    if any(os.environ.get(name) for name in _PROXIES):
        return
    hosts = {urlsplit(url).hostname or "" for _, url in registries.urls(os.environ)}
    for host in sorted(hosts):
        if _resolved(host):
            yield Point("DNS", "ok", f"{host} is found")
        else:
            yield Point("DNS", "warn", f"{host} is not found; builds cannot fetch from there.", "Look at /etc/resolv.conf.")


def check_own_names(
    settings: Settings, resolve: Callable[[str], list[str]] | None = None, environment: Mapping[str, str] = os.environ
) -> Iterator[Point]:
    """Apps' names and Davit's own lead to this host.

    Args:
        resolve: the addresses of a name; none where it is not found.
    """
    asked = [(name, name, "the API and the dashboard") for name in settings.names if not _is_local(name)]
    if not _is_local(settings.domain):
        asked.append((f"davit-doctor.{settings.domain}", f"*.{settings.domain}", "apps"))
    for name, shown, what in asked:
        yield own_name(shown, what, (resolve or _resolved)(name), proxied=any(environment.get(one) for one in _PROXIES))


def own_name(shown: str, what: str, addresses: list[str], *, proxied: bool) -> Point:
    """What the addresses of a record mean for what is to be reached by it.

    Args:
        shown: the record's name.
        what: is reached by it, in words.
        proxied: this host reaches others by a proxy, and may not know public names.
    """
    kind = "AAAA" if ":" in (mine := _way_out_address()) else "A"
    remedy = f"Make the record `{shown}. {kind} {mine}`, or with the address by which others reach this host."
    if not addresses and proxied:
        return Point("DNS", "warn", f"{shown} is not found here, behind a proxy; look from elsewhere whether it is.", remedy)
    if not addresses:
        return Point("DNS", "warn", f"{shown} is not found, so {what} cannot be reached by it.", remedy)
    if any(cannot_bind(Address(address, 0)) is None for address in addresses):
        return Point("DNS", "ok", f"{shown} leads to this host ({addresses[0]})")
    where = f"{shown} leads to {', '.join(addresses[:3])}, which is no address of this host's"
    return Point("DNS", "ok", f"{where}: a proxy, a load balancer or NAT there has to pass it on")


def _is_local(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _resolved(name: str) -> list[str]:
    """Its addresses of either family; none when it is not found, or no name can be like this."""
    try:
        return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)))
    except (OSError, UnicodeError):
        return []


def _way_out_address() -> str:
    """The address that this host calls others from (nothing is sent); words where it has none."""
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    return "ADDRESS"


def check_registries(settings: Settings) -> Iterator[Point]:
    """Package registries answer, and their clocks agree with ours."""
    import httpx

    skew: float | None = None
    trust = ssl.create_default_context()  # this host's authorities, a company's own among them; not those that come with httpx
    for name, url in registries.urls(os.environ):
        try:
            answer = httpx.head(url, timeout=10, follow_redirects=True, verify=trust)
        except (httpx.HTTPError, OSError, ValueError):
            yield Point(
                name,
                "warn",
                "cannot be reached; builds that need it fail.",
                "Look at the network, at HTTPS_PROXY and SSL_CERT_FILE.",
            )
            continue
        yield Point(name, "ok", "answers")
        skew = skew if skew is not None else clock_skew(answer.headers.get("date", ""), time.time())
    if skew is not None and abs(skew) > CLOCK_TOLERANCE:
        yield Point(
            "clock", "warn", f"this clock is off by {skew:.0f} s.", "Install an NTP client: `apt-get install systemd-timesyncd`."
        )
    elif skew is not None:
        yield Point("clock", "ok", "agrees with the registries'")


def clock_skew(date: str, here: float) -> float | None:
    """Seconds that our clock is ahead of an HTTP ``Date`` header; None when that cannot be read."""
    from email.utils import parsedate_to_datetime

    try:
        return here - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def version(text: str) -> tuple[int, ...]:
    """The first dotted number in a text, as numbers: ``HAProxy version 2.6.12-1`` → (2, 6, 12); empty when there is none."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _run(argv: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=10, env={**os.environ, "PATH": _PATH}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _module(name: str) -> bool:
    """Whether the kernel has a module of that name, loaded on the way."""
    done = _run(["modprobe", name])
    return done is not None and done.returncode == 0
