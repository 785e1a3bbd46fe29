"""Backends and commands. Hypothesis plays HAProxy: whatever changes come, what its commands made is what should be."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.readback import parse_table
from router.routes import GONE, Route, Target
from router.table import PoolExhausted, Table, pool_size

POOL = 40


@dataclass
class Pretended:
    """HAProxy's maps and servers, as its runtime API changes them (management.txt, 9.3)."""

    hosts: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    servers: dict[str, tuple[str, str]] = field(default_factory=dict)

    def run(self, commands: Iterable[str]) -> None:
        for command in commands:
            words = command.split(" ")
            if words[1] == "map":
                entries = self.hosts if words[2] == "@hosts" else self.states
                assert (words[3] in entries) is (words[0] != "add"), command
                if words[0] == "del":
                    del entries[words[3]]
                else:
                    entries[words[3]] = words[4]
            elif words[:2] == ["add", "server"]:
                assert words[2] not in self.servers, command
                self.servers[words[2]] = (words[3], "maint")
            elif words[3] == "addr":
                self.servers[words[2]] = (f"{words[4]}:{words[6]}", "maint")
            else:
                assert words[:2] == ["set", "server"] and words[3] == "state"
                self.servers[words[2]] = (self.servers[words[2]][0], words[4])

    def route_of(self, host: str) -> tuple[str, str | None, set[str]] | None:
        if host not in self.hosts:
            return None
        backend, app_id, _, known_as = self.hosts[host].split("/")
        assert known_as == host
        ready = {
            address for name, (address, state) in self.servers.items() if name.startswith(f"{backend}/") and state == "ready"
        }
        return app_id, self.states.get(backend), ready

    def show(self) -> tuple[str, str, str]:
        header = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_port\n"
        lines = [
            f"3 {name.replace('/', ' 1 ')} {address.rpartition(':')[0]} 2 {int(state == 'maint')} {address.rpartition(':')[2]}"
            for name, (address, state) in self.servers.items()
        ]
        maps = ["\n".join(f"0x{number:x} {k} {v}" for number, (k, v) in enumerate(m.items())) for m in (self.hosts, self.states)]
        return maps[0], maps[1], header + "\n".join(lines)


apps = st.sampled_from(["a", "b", "c"])
targets = st.frozensets(st.builds(lambda n: Target(f"web.{n}.id{n}", "198.18.0.9", 5000 + n), st.integers(1, 3)))
states = st.sampled_from([None, None, "maintenance", "starting:50", "crashed"])
wanted = st.tuples(
    apps, st.one_of(st.none(), st.tuples(st.frozensets(st.sampled_from(["x.example", "y.example"])), states, targets))
)


@settings(max_examples=150)
@given(st.lists(wanted, max_size=12), st.booleans())
def test_the_commands_lead_where_they_should(
    steps: list[tuple[str, tuple[frozenset[str], str | None, frozenset[Target]] | None]], again: bool
) -> None:
    table, haproxy = Table(POOL), Pretended()
    truth: dict[str, Route] = {}
    for app, want in steps:
        if want is None:
            truth.pop(app, None)
        else:
            hosts, state, goes_to = want
            # a host has one owner: the database sees to it
            truth = {id: Route(id, id, one.hosts - hosts, one.state, one.targets) for id, one in truth.items()}
            truth[app] = Route(app, app, hosts | {f"{app}.localhost"}, state, goes_to)
        for id in [app, *{*table.apps(), *truth} - {app}]:
            change = table.change(id, truth.get(id))
            if change:
                haproxy.run(change.commands)
                table.applied(change)
        for slot, servers in list(table.leaving.items()):
            for server in list(servers):  # HAProxy lets go of every second one at once
                if again:
                    del haproxy.servers[f"b{slot}/{server}"]
                    table.deleted(slot, server)
        served = {host: one for one in truth.values() for host in one.hosts}
        assert set(haproxy.hosts) == set(served)
        for host, one in served.items():
            assert haproxy.route_of(host) == (one.app_id, one.state, {f"{t.address}:{t.port}" for t in one.targets})
    read = parse_table(POOL, *haproxy.show())
    assert (read.routes, read.gone) == (table.routes, table.gone)
    assert {slot: names for slot, names in read.leaving.items() if names} == table.leaving


def test_a_new_server_is_ready_before_the_state_opens_and_the_old_leaves() -> None:
    old, new = Target("web.1.old", "198.18.0.1", 1), Target("web.1.new", "198.18.0.2", 2)
    before = Route("a", "a", frozenset({"a.localhost"}), "starting:50", frozenset({old}))
    table = Table(2, {0: before})
    change = table.change("a", Route("a", "a", before.hosts, None, frozenset({new})))
    assert change
    order = [re.sub(r" (pool|198).*", "", command) for command in change.commands]
    assert order == [
        "add server b0/web.1.new",
        "set server b0/web.1.new state ready",
        "del map @states b0",
        "set server b0/web.1.old state maint",
    ]


def test_a_backend_that_still_answers_for_an_app_goes_to_no_other() -> None:
    dyno = Target("web.1.x", "198.18.0.1", 1)
    table = Table(1, {0: Route("a", "a", frozenset({"a.localhost"}), None, frozenset({dyno}))})
    change = table.change("a", None)
    assert change and change.commands[0] == f"add map @states b0 {GONE}"
    table.applied(change)
    with pytest.raises(PoolExhausted):
        table.change("b", Route("b", "b", frozenset({"b.localhost"}), None, frozenset()))
    table.deleted(0, "web.1.x")
    assert table.change("b", Route("b", "b", frozenset({"b.localhost"}), None, frozenset()))


def test_the_pool_grows_in_proportion() -> None:
    assert pool_size(0) == 64 and pool_size(10) == 74 and pool_size(16_000) == 17_000
