"""Dynos reach the internet also where the host's own firewall drops what is forwarded: real iptables, nftables and packets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.host import doctor
from runtime import passage


@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("iptables", "ip filter FORWARD"), ("nftables", "inet host passing"),
        ("last-rule", "inet host passing"), ("last-rule-of-iptables", "ip filter FORWARD"),
    ],
)  # fmt: skip
def test_a_way_is_opened_once_behind_the_hosts_own_rules_and_taken_away_again(kind: str, chain: str) -> None:
    words = ["unshare", "--net", "--mount", "--propagation=private", sys.executable, "-m", "tests.runtime.behind_a_drop", kind]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    shown = found.pop("shown")
    assert found == {
        "before": False, "missing before": [chain], "after": True, "missing after": [], "refused by the host itself": True,
        "once": True, "as before": True, "closed": True, "trial before": False, "trial after": True,
    }  # fmt: skip
    assert shown.count("davit7") == 2


def test_other_chains_are_left_alone() -> None:
    def chain(**more: object) -> dict[str, object]:
        return {"chain": {"family": "ip", "table": "t", "name": "n"} | more}

    others = [
        chain(), chain(hook="input", policy="drop"), chain(family="ip6", hook="forward", policy="drop"), {"metainfo": {}},
    ]  # fmt: skip
    assert passage.forwarding(json.dumps({"nftables": others})) == {}
    assert passage.forwarding(json.dumps({"nftables": [chain(hook="forward", policy="drop")]})) == {CHAIN: True}
    assert passage.forwarding(json.dumps({"nftables": [chain(hook="forward", policy="accept")]})) == {CHAIN: False}


CHAIN = passage.Chain("ip", "t", "n")
ACCEPT = [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "davit0"}}, {"accept": None}]


def found(*rules: list[object], drops: bool = False) -> passage.Closed | None:
    listing = {"nftables": [{"rule": {"handle": number, "expr": rule}} for number, rule in enumerate(rules, 1)]}
    return passage.closed(CHAIN, drops, json.dumps(listing), "davit0")


def test_only_a_rule_that_refuses_everything_closes_a_chain() -> None:
    matched = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}
    assert found() is None
    assert found([matched, {"drop": None}], [{"counter": {}}, {"accept": None}]) is None
    closed = found([matched, {"drop": None}], [{"counter": {}}, {"log": {}}, {"reject": {"type": "icmpx"}}])
    assert closed is not None and closed.last == 2 and not closed.open
    assert closed.commands("davit0") == [f'insert rule ip t n handle 2 {way} "davit0" accept' for way in ("iifname", "oifname")]


def test_our_rule_behind_the_one_that_refuses_everything_does_not_count() -> None:
    assert found(ACCEPT, [{"drop": None}]) == passage.Closed(CHAIN, 2, {"iifname": 1})
    assert found([{"drop": None}], ACCEPT) == passage.Closed(CHAIN, 1, dead=[2])


def test_the_doctor_names_the_commands_for_what_davit_does_not_change() -> None:
    assert doctor.passes_not("-P FORWARD ACCEPT\n", "davit0") == []
    lacking = doctor.passes_not("-P FORWARD DROP\n-A FORWARD -i davit0 -j ACCEPT\n", "davit0")
    assert lacking == ["iptables-legacy -A FORWARD -o davit0 -j ACCEPT"]
    rules = ["-P FORWARD ACCEPT", "-A FORWARD -i eth0 -j DROP", "-A FORWARD -i davit0 -j ACCEPT", "-A FORWARD -j REJECT --reject-with x"]
    assert doctor.passes_not("\n".join(rules), "davit0") == ["iptables-legacy -I FORWARD 3 -o davit0 -j ACCEPT"]
    assert doctor.passes_not("\n".join([*rules[:1], rules[3], rules[2]]), "davit0")[0].startswith("iptables-legacy -I FORWARD 1 -i")


def test_the_doctor_does_not_say_more_than_it_looked_at() -> None:
    assert "can be tried while Davit runs" in doctor.way_out([], "davit0", []).message
    # this process holds no dyno's network
    assert "not tried" in doctor.way_out([os.getpid()], "davit0", ["ip filter FORWARD"]).message


def test_the_doctor_says_which_proxy_builds_cannot_use() -> None:
    assert "loopback" in doctor.proxy("localhost", 3128, ["127.0.0.1"]).message
    assert "not found" in doctor.proxy("proxy.example", 3128, []).message
    assert doctor.proxy("proxy.example", 3128, ["10.0.0.7"]).level == "ok"
