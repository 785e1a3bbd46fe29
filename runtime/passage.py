"""The dynos' way through the host's own firewall: ufw and Docker give their forward chains the policy drop.

What one base chain drops no other can let pass (nft(8)), so two rules are put behind the host's own ones, in each such chain:
what comes from, and what goes to, this instance's bridge is accepted. The host's own refusals come before, and
:mod:`runtime.firewall` decides what dynos may reach all the same. The rules are of a form that ``iptables`` (nft) reads, too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
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


def closed(listing: str) -> list[Chain]:
    """The chains of the forward hook whose policy is drop, in ``nft -j list chains``; pure."""
    found = (item["chain"] for item in json.loads(listing)["nftables"] if "chain" in item)
    return [
        Chain(chain["family"], chain["table"], chain["name"])
        for chain in found
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["family"] in ("ip", "inet")
    ]


def ours(listing: str, bridge: str) -> dict[str, int]:
    """``iifname`` and ``oifname`` → the handle of our rule for it, in ``nft -j -a list chain``; pure."""
    found: dict[str, int] = {}
    for rule in (item["rule"] for item in json.loads(listing)["nftables"] if "rule" in item):
        match _plain(rule.get("expr", [])):
            case [{"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}}, {"accept": None}] if right == bridge:
                found[key] = rule["handle"]
    return found


def _plain(expressions: list[Any]) -> list[Any]:
    """Without the counters that ``iptables`` adds."""
    return [one for one in expressions if not (isinstance(one, dict) and "counter" in one)]


def missing(instance: Instance) -> list[Chain]:
    """The chains that drop what is forwarded and do not let this instance's bridge through."""
    return [chain for chain, there in _look(instance) if set(there) < set(_WAYS)]


def open(instance: Instance) -> None:
    """Let the bridge through where a chain would drop it; does nothing where that is so already.

    A chain that cannot be changed is logged: ``davit doctor`` says what to do then.
    """
    for chain, there in _look(instance):
        lines = [f'add rule {chain} {way} "{instance.bridge}" accept\n' for way in _WAYS if way not in there]
        if not lines:
            continue
        done = programs.run(["nft", "-f", "-"], input="".join(lines).encode(), check=False)
        if done.returncode == 0:
            log.info("dynos are let through a firewall that drops what is forwarded", extra={"chain": str(chain)})
        else:
            log.warning("dynos could not be let through the chain %s; `davit doctor` says what to do", chain)


def close(instance: Instance) -> None:
    """Take the rules away again."""
    lines = [f"delete rule {chain} handle {handle}\n" for chain, there in _look(instance) for handle in there.values()]
    if lines:
        programs.run(["nft", "-f", "-"], input="".join(lines).encode(), check=False)


def _look(instance: Instance) -> Iterator[tuple[Chain, dict[str, int]]]:
    listing = programs.run(["nft", "-j", "list", "chains"], check=False)
    for chain in closed(listing.stdout.decode(errors="replace")) if listing.returncode == 0 else []:
        there = programs.run(["nft", "-j", "-a", "list", "chain", *chain], check=False)
        if there.returncode == 0:
            yield chain, ours(there.stdout.decode(errors="replace"), instance.bridge)
