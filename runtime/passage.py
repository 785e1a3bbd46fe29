"""The dynos' way through the host's own firewall, where that lets nothing be forwarded but what it names.

ufw and Docker give their forward chains the policy drop, firewalld and many rule sets written by hand end theirs with a rule
that refuses the rest. What one base chain drops no other can let pass (nft(8)), so two rules are put behind the host's own
ones, in each such chain: what comes from, and what goes to, this instance's bridge is accepted. The host's own refusals come
before, and :mod:`runtime.firewall` decides what dynos may reach all the same. The rules are of a form that ``iptables`` (nft)
reads, too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from foundation import programs
from runtime.instance import Instance

log = logging.getLogger("runtime")

_WAYS = ("iifname", "oifname")


class Chain(NamedTuple):
    """A chain, as nft names it."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return " ".join(self)


@dataclass(frozen=True)
class Closed:
    """A chain of the forward hook that refuses what no rule of it lets through.

    Attributes:
        chain: which.
        last: the handle of the rule that refuses the rest; None where the chain's policy does.
        there: ``iifname`` and ``oifname`` → the handle of our rule for it, where one is in force.
        dead: handles of rules of ours that nothing reaches, behind ``last``.
    """

    chain: Chain
    last: int | None
    there: dict[str, int] = field(default_factory=dict)
    dead: list[int] = field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether this instance's bridge is let through."""
        return set(self.there) == set(_WAYS)

    def commands(self, bridge: str) -> list[str]:
        """What lets the bridge through, as commands of nft."""
        before = f"insert rule {self.chain} handle {self.last}" if self.last is not None else f"add rule {self.chain}"
        return [f'{before} {way} "{bridge}" accept' for way in _WAYS if way not in self.there]


def forwarding(listing: str) -> dict[Chain, bool]:
    """The chains of the forward hook in ``nft -j list chains``, and whether their policy is drop; pure."""
    found = (item["chain"] for item in json.loads(listing)["nftables"] if "chain" in item)
    return {
        Chain(chain["family"], chain["table"], chain["name"]): chain.get("policy") == "drop"
        for chain in found
        if chain.get("hook") == "forward" and chain["family"] in ("ip", "inet")
    }


def closed(chain: Chain, drops: bool, listing: str, bridge: str) -> Closed | None:
    """What a chain does with a bridge's packets, None when it refuses nothing of itself; pure.

    Args:
        drops: whether its policy is drop.
        listing: ``nft -j -a list chain``.
    """
    last: int | None = None
    there: dict[str, int] = {}
    dead: list[int] = []
    for rule in (item["rule"] for item in json.loads(listing)["nftables"] if "rule" in item):
        match _plain(rule.get("expr", [])):
            case [{"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}}, {"accept": None}] if right == bridge:
                if last is None:
                    there[key] = rule["handle"]
                else:
                    dead.append(rule["handle"])
            case [{"drop": _}] | [{"reject": _}] | [{"xt": {"name": "REJECT"}}] if last is None:
                last = rule["handle"]
    return Closed(chain, last, there, dead) if drops or last is not None or there else None


def _plain(expressions: list[Any]) -> list[Any]:
    """Without what decides nothing: counters, which ``iptables`` adds, and lines for the log."""
    return [one for one in expressions if not (isinstance(one, dict) and one.keys() & {"counter", "log"})]


def shut(instance: Instance) -> list[Closed]:
    """The chains that refuse what is forwarded and do not let this instance's bridge through."""
    return [found for found in look(instance.bridge) if not found.open]


def open(instance: Instance) -> None:
    """Let the bridge through where a chain would refuse it; does nothing where that is so already.

    A chain that cannot be changed is logged: ``davit doctor`` says what to do then.
    """
    for found in shut(instance):
        lines = found.commands(instance.bridge) + [f"delete rule {found.chain} handle {handle}" for handle in found.dead]
        done = programs.run(["nft", "-f", "-"], input="\n".join([*lines, ""]).encode(), check=False)
        if done.returncode == 0:
            log.info("dynos are let through a firewall that refuses what is forwarded", extra={"chain": str(found.chain)})
        else:
            log.warning("dynos could not be let through the chain %s; `davit doctor` says what to do", found.chain)


def close(instance: Instance) -> None:
    """Take the rules away again."""
    lines = [
        f"delete rule {found.chain} handle {handle}\n"
        for found in look(instance.bridge)
        for handle in (*found.there.values(), *found.dead)
    ]
    if lines:
        programs.run(["nft", "-f", "-"], input="".join(lines).encode(), check=False)


def look(bridge: str) -> Iterator[Closed]:
    """The host's chains that refuse what is forwarded, and what they do with ``bridge``; none where nft cannot say."""
    listing = programs.run(["nft", "-j", "list", "chains"], check=False)
    chains = forwarding(listing.stdout.decode(errors="replace")) if listing.returncode == 0 else {}
    for chain, drops in chains.items():
        rules = programs.run(["nft", "-j", "-a", "list", "chain", *chain], check=False)
        if rules.returncode == 0:
            found = closed(chain, drops, rules.stdout.decode(errors="replace"), bridge)
            if found is not None:
                yield found
