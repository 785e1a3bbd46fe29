"""What the driver composes and parses, without running anything."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.settings import Address, from_environment
from runtime import cgroups, firewall, oci, proctcp
from runtime.cgroups import Cgroup, Layout
from runtime.driver import Limits, Listener
from runtime.dynodir import Record
from runtime.instance import Instance, InstanceUnavailable

LIMITS = Limits(memory=512 << 20, memory_max=1 << 30, cpu_shares=2048, cpu_quota=1.5, pids=100)
CONTAINER = oci.Container(
    "/rootfs", "web.1", ["/bin/bash", "-c", "x"], {"A": "b"}, LIMITS, 0x10010000, "/davit0/app/id", "/proc/1/fd/9"
)


class TestConfiguration:
    def test_has_every_namespace_and_its_own_uid_range(self) -> None:
        linux = oci.compose(CONTAINER)["linux"]
        assert {n["type"] for n in linux["namespaces"]} == {"pid", "ipc", "uts", "mount", "user", "cgroup", "network"}
        assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 0x10010000, "size": 65536}]

    def test_gives_no_capability(self) -> None:
        process = oci.compose(CONTAINER)["process"]
        assert set(map(tuple, process["capabilities"].values())) == {()}
        assert process["noNewPrivileges"] is True
        assert process["user"]["uid"] == 1000
        assert process["args"][:2] == ["/sbin/davit-init", "--"]

    def test_sys_is_an_empty_readonly_tmpfs(self) -> None:
        (sys,) = [mount for mount in oci.compose(CONTAINER)["mounts"] if mount["destination"] == "/sys"]
        assert sys["type"] == "tmpfs"
        assert "ro" in sys["options"]

    def test_limits_are_those_of_the_dyno(self) -> None:
        resources = oci.resources(LIMITS, oci.Features(v2=True))
        assert resources["memory"] == {"limit": 1 << 30, "swap": 1 << 30}
        assert resources["cpu"] == {"shares": 2048, "quota": 150_000, "period": 100_000}
        assert resources["pids"] == {"limit": 100}
        assert resources["unified"] == {"memory.oom.group": "1"}

    def test_swap_is_left_out_where_the_kernel_does_not_count_it(self) -> None:
        assert "swap" not in oci.resources(LIMITS, oci.Features(swap=False))["memory"]

    def test_hosts_file_has_the_dynos_name_and_not_the_hosts_loopback(self) -> None:
        text = oci.hosts_file("127.0.1.1 myhost\n10.1.1.1 mirror.corp # m\n::1 localhost\nbroken\n", "web.1", "198.18.0.9")
        assert "198.18.0.9\tweb.1" in text
        assert "10.1.1.1\tmirror.corp" in text
        assert "myhost" not in text


class TestFirewall:
    def test_the_router_is_reachable_for_apps_only_when_it_listens_beyond_the_loopback(self) -> None:
        assert firewall.router_doors([Address("127.0.0.1", 8080), None]) == []
        assert firewall.router_doors([Address("0.0.0.0", 80), Address("192.0.2.7", 443)]) == [(None, 80), ("192.0.2.7", 443)]

    def test_loopback_resolvers_are_replaced_by_those_behind_them(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("nameserver 127.0.0.53\noptions edns0\n")
        (tmp_path / "b").write_text("nameserver 192.0.2.53\nnameserver 2001:db8::1\n")
        assert firewall.resolvers([tmp_path / "a", tmp_path / "b"]) == ["192.0.2.53"]
        assert (
            firewall.resolv_conf("nameserver 127.0.0.53\noptions edns0\n", ["192.0.2.53"])
            == "nameserver 192.0.2.53\noptions edns0\n"
        )

    def test_only_the_proxys_address_and_port_are_opened(self) -> None:
        environ = {
            "https_proxy": "http://user:pass@10.9.8.7:3128",
            "HTTP_PROXY": "http://proxy.example:80",
            "http_proxy": "127.0.0.1:1",
            "ALL_PROXY": "http://[",
        }
        assert firewall.proxies(environ, lambda host: {"proxy.example": ["10.1.1.1", "10.1.1.2"]}.get(host, [host])) == [
            ("10.9.8.7", 3128), ("10.1.1.1", 80), ("10.1.1.2", 80),
        ]  # fmt: skip
        assert firewall.proxies({"http_proxy": "http://localhost:3128"}) == []
        rules = firewall.ruleset(Instance.numbered(3), firewall.Policy(proxies=[("10.9.8.7", 3128)]))
        assert rules.index("ip daddr 10.9.8.7 tcp dport 3128 accept") < rules.index("10.0.0.0/8")
        assert "pass" not in rules

    def test_a_proxys_name_is_looked_up_again_and_an_outage_takes_no_proxy_away(self) -> None:
        answers = iter([["10.1.1.1"], ["10.1.1.2"], []])
        time = [0.0]
        names = firewall.Names(lambda host: next(answers), lambda: time[0])
        assert names("proxy") == names("proxy") == ["10.1.1.1"]
        time[0] = 61
        assert names("proxy") == ["10.1.1.2"]
        time[0] = 122
        assert names("proxy") == ["10.1.1.2"], "nobody answers"

    def test_what_is_allowed_is_open_to_dynos_alone_and_the_host_itself_only_by_its_very_address_and_port(self) -> None:
        allowed = from_environment({"DAVIT_DYNOS_ALLOW": "10.1.0.0/16, 10.2.0.1:5432,10.3.0.1"}).dynos_allow
        rules = firewall.ruleset(Instance.numbered(0), firewall.Policy(allowed=allowed), {2, 7})
        assert "elements = { 198.18.0.3, 198.18.0.8 }" in rules
        beyond, here = rules.split("chain forward")[1].split("chain input")
        assert beyond.count("ip saddr @dynos ip daddr 10.") == 3 and beyond.index("@dynos") < beyond.index("ip daddr {")
        assert [line.strip() for line in here.splitlines() if "@dynos" in line] == [
            "ip saddr @dynos ip daddr 10.2.0.1/32 meta l4proto { tcp, udp } th dport 5432 accept"
        ]

    def test_the_hosts_networks_are_blocked(self) -> None:
        rules = firewall.ruleset(Instance.numbered(0), firewall.Policy(local=["8.8.8.0/24"]))
        assert "8.8.8.0/24" in rules

    @given(st.lists(st.ip_addresses(v=4, network="8.0.0.0/6").map(lambda a: f"{a}/24"), max_size=8))
    def test_sets_never_overlap(self, networks: list[str]) -> None:
        found = [ipaddress.IPv4Network(n) for n in firewall.collapse(networks)]
        assert all(not a.overlaps(b) for a in found for b in found if a is not b)

    @given(st.text())
    def test_any_resolv_conf_is_read(self, text: str) -> None:
        for address in firewall.parse_resolvers(text):
            ipaddress.IPv4Address(address)


class TestInstance:
    def test_numbers_share_no_network_and_no_uid(self) -> None:
        every = [Instance.numbered(number) for number in range(32)]
        assert all(not a.network.overlaps(b.network) for a in every for b in every if a.number < b.number)
        assert all(a.uids(1023) + 65536 <= b.uid_base for a, b in pairwise(every))
        assert all(len(one.veth(1023)) <= 15 for one in every)

    def test_a_network_that_is_too_small_or_none_is_refused(self) -> None:
        for text in ("10.0.0.0/24", "10.0.0.1/20", "x"):
            with pytest.raises(InstanceUnavailable):
                Instance.numbered(0, text)

    def test_a_number_stays_with_its_home_and_a_dead_homes_is_taken_over(self, tmp_path: Path) -> None:
        registry = tmp_path / "instances"
        one, two = (from_environment({"DAVIT_HOME": str(tmp_path / name)}) for name in ("a", "b"))
        first, second = Instance.claim(one, registry), Instance.claim(two, registry)
        assert (first.number, second.number) == (0, 1)
        first.let_go()
        assert Instance.claim(one, registry).number == 0
        second.release(registry)
        assert not (registry / "1").exists()

    def test_the_lock_of_a_number_that_is_given_back_meanwhile_keeps_nobody_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two Davits with one number would share bridge, firewall and uids."""
        registry, lock = tmp_path / "instances", fcntl.flock
        one, two = (from_environment({"DAVIT_HOME": str(tmp_path / name)}) for name in ("a", "b"))
        running = [Instance.claim(one, registry)]

        def given_back_before(fd: int, operation: int) -> None:
            if running and operation & fcntl.LOCK_NB:
                running.pop().release(registry)
            lock(fd, operation)

        with monkeypatch.context() as between:
            between.setattr(fcntl, "flock", given_back_before)
            again = Instance.claim(one, registry)
        assert again.number == 0 and Instance.claim(two, registry).number == 1


class TestCgroups:
    V2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"
    HYBRID = (
        "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "33 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
        "34 24 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    )

    def test_layouts(self) -> None:
        assert cgroups.parse_layout(self.V2) == Layout(Path("/sys/fs/cgroup"), {})
        hybrid = cgroups.parse_layout(self.HYBRID)
        assert hybrid.unified is None
        assert hybrid.controllers["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
        assert len(hybrid.directories("/davit0")) == 3

    def test_to_hasten_is_to_write_oneself_where_one_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = Path("/proc/self/cgroup").read_text()
        file = cgroups._own_processes()
        assert file is not None and str(os.getpid()) in file.read_text().split()
        cgroups.hasten()
        assert Path("/proc/self/cgroup").read_text() == before
        monkeypatch.setattr(cgroups, "layout", lambda: Layout(None, {}))
        assert cgroups._own_processes() is None
        cgroups.hasten()

    def test_what_crun_leaves_where_version_2_was_is_removed_whenever_the_layout_was_looked_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
        monkeypatch.setattr(cgroups, "parse_layout", lambda text: Layout(None, {}))
        left = tmp_path / "unified/davit9/app/dyno"
        left.mkdir(parents=True)
        with monkeypatch.context() as host:
            host.setattr(Path, "is_mount", lambda path: path == tmp_path / "unified")
            where = cgroups.layout.__wrapped__()
            cgroups.remove_tree("/davit9", where)
            assert left.exists(), "version 2's own, while it is mounted"
        cgroups.Cgroup("/davit9/app/dyno", where).remove()
        assert not left.exists()
        cgroups.remove_tree("/davit9", where)
        assert not (tmp_path / "unified/davit9").exists()

    def test_version_2_is_read_and_written(self, tmp_path: Path) -> None:
        directory = tmp_path / "davit0/app/id"
        directory.mkdir(parents=True)
        files = {
            "memory.current": "1000", "memory.stat": "anon 500\nfile 400\nshmem 100\n", "memory.events": "oom 2\noom_kill 1\n",
            "cpu.stat": "usage_usec 2500000\n", "pids.current": "3", "cgroup.procs": "1\n2\n",
            "memory.max": "", "cpu.max": "", "cpu.weight": "", "pids.max": "",
        }  # fmt: skip
        for name, text in files.items():
            (directory / name).write_text(text)
        group = Cgroup("/davit0/app/id", Layout(tmp_path, {}))
        assert (group.memory(), group.ooms(), group.cpu(), group.tasks(), group.pids()) == (700, 1, 2.5, 3, [1, 2])
        group.update(LIMITS)
        assert (directory / "memory.max").read_text() == str(1 << 30)
        assert (directory / "cpu.max").read_text() == "150000 100000"
        assert (directory / "cpu.weight").read_text() == str(cgroups.weight(2048))

    def test_weight_is_the_oci_runtimes_conversion(self) -> None:
        assert (cgroups.weight(2), cgroups.weight(1024), cgroups.weight(262144)) == (1, 39, 10000)


def test_tcp_tables() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0200A8C0:0050 00000000:0000 01 00000000:00000000\n"
    )
    table6 = "h\n   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0\n"
    assert proctcp.parse(table) == [Listener("127.0.0.1", 8080)]
    assert proctcp.parse(table6) == [Listener("::", 80)]


def test_of_a_dyno_with_many_sockets_those_that_listen_are_read_alone() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server, ExitStack() as all:
        for _ in range(300):
            all.enter_context(socket.create_connection(server.getsockname()))
            all.enter_context(server.accept()[0])
        port = server.getsockname()[1]
        table = os.open("/proc/self/net/tcp", os.O_RDONLY)
        read = proctcp.beginning(table)
        rest = os.read(table, 4096)
        os.close(table)
        assert rest and read.count(" 01 ") < 64, "the kernel was not asked for the others"
        assert Listener("127.0.0.1", port) in proctcp.parse(read)
        assert Listener("127.0.0.1", port) in proctcp.listeners(os.getpid())


def test_no_more_listeners_than_anybody_needs_are_read() -> None:
    line = b"   0: 0100007F:%04X 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n"
    with tempfile.TemporaryFile() as file:
        file.write(b"  sl  local_address rem_address   st tx_queue rx_queue\n" + b"".join(line % port for port in range(1, 5000)))
        file.seek(0)
        read = proctcp.beginning(file.fileno())
    assert len(read) <= 64 << 10
    assert [one.port for one in proctcp.parse(read)] == list(range(1, read.count("\n") + 1))


@given(st.text())
def test_any_half_written_record_is_told_from_a_whole_one(text: str) -> None:
    assert Record.parse(text) is None
