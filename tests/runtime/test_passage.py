"""Dynos reach the internet also where the host's own firewall drops what is forwarded: real iptables, nftables and packets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.host import doctor
from runtime import passage


@pytest.mark.parametrize(("kind", "chain"), [("iptables", "ip filter FORWARD"), ("nftables", "inet host passing")])
def test_a_way_is_opened_once_behind_the_hosts_own_rules_and_taken_away_again(kind: str, chain: str) -> None:
    words = ["unshare", "--net", "--mount", "--propagation=private", sys.executable, "-m", "tests.runtime.behind_a_drop", kind]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    shown = found.pop("shown")
    assert found == {
        "before": False, "missing before": [chain], "after": True, "missing after": [], "refused by the host itself": True,
        "once": True, "as before": True, "closed": True,
    }  # fmt: skip
    assert shown.count("davit7") == 2


def test_other_chains_are_left_alone() -> None:
    def chain(**more: object) -> dict[str, object]:
        return {"chain": {"family": "ip", "table": "t", "name": "n"} | more}

    others = [
        chain(), chain(hook="forward", policy="accept"), chain(hook="input", policy="drop"),
        chain(family="ip6", hook="forward", policy="drop"), {"metainfo": {}},
    ]  # fmt: skip
    assert passage.closed(json.dumps({"nftables": others})) == []
    assert passage.closed(json.dumps({"nftables": [chain(hook="forward", policy="drop")]})) == [("ip", "t", "n")]


def test_the_doctor_names_the_commands_for_what_davit_does_not_change() -> None:
    assert doctor.passes_not("-P FORWARD ACCEPT\n", "davit0") == []
    lacking = doctor.passes_not("-P FORWARD DROP\n-A FORWARD -i davit0 -j ACCEPT\n", "davit0")
    assert lacking == ["iptables-legacy -A FORWARD -o davit0 -j ACCEPT"]


def test_the_doctor_says_which_proxy_builds_cannot_use() -> None:
    assert "loopback" in doctor.proxy("localhost", 3128, ["127.0.0.1"]).message
    assert "not found" in doctor.proxy("proxy.example", 3128, []).message
    assert doctor.proxy("proxy.example", 3128, ["10.0.0.7"]).level == "ok"
