"""Reads out of a running HAProxy which routes are in force."""

from __future__ import annotations

from router.generation import Generation
from router.routes import GONE, Route, Target
from router.table import Table

_MAINTENANCE = 0x01
"""In srv_admin_state: put into maintenance by a command (management.txt, "show servers state")."""


async def read_table(one: Generation) -> Table:
    """The table that is in force in a generation.

    Raises:
        ControlFailed: it does not answer.
        ValueError: it says something that was never told it.
    """
    hosts, states, servers = await one.control.run(
        f"show map {one.directory}/hosts.map", f"show map {one.directory}/states.map", "show servers state"
    )
    return parse_table(one.facts["pool"], hosts, states, servers)


def parse_table(pool: int, hosts: str, states: str, servers: str) -> Table:
    """:func:`read_table`'s answers, parsed.

    A server whose backend belongs to no app was added by a change that was cut off: it is to leave.
    """
    owners: dict[int, tuple[str, str]] = {}
    names: dict[int, set[str]] = {}
    for host, value in _entries(hosts):
        backend, app_id, name, _ = value.split("/")
        slot = int(backend[1:])
        owners[slot] = (app_id, name)
        names.setdefault(slot, set()).add(host)
    why = {int(key[1:]): state for key, state in _entries(states)}
    ready, leaving = _servers(servers)
    routes = {
        slot: Route(app_id, name, frozenset(names[slot]), why.get(slot), frozenset(ready.pop(slot, ())))
        for slot, (app_id, name) in owners.items()
    }
    for slot, targets in ready.items():
        leaving.setdefault(slot, set()).update(target.server for target in targets)
    gone = {slot for slot, state in why.items() if state == GONE and slot not in routes}
    return Table(pool, routes, leaving, gone)


def _entries(text: str) -> list[tuple[str, str]]:
    entries = []
    for line in filter(None, text.splitlines()):
        _, key, value = line.split(" ", 2)
        entries.append((key, value))
    return entries


def _servers(text: str) -> tuple[dict[int, set[Target]], dict[int, set[str]]]:
    lines = [line for line in text.splitlines() if line]
    header = next((line.lstrip("# ").split(" ") for line in lines if line.startswith("# ")), [])
    ready: dict[int, set[Target]] = {}
    leaving: dict[int, set[str]] = {}
    for line in lines:
        fields = dict(zip(header, line.split(" "), strict=False))
        backend = fields.get("be_name", "")
        if not (backend.startswith("b") and backend[1:].isdigit()):
            continue
        slot, server = int(backend[1:]), fields["srv_name"]
        if int(fields["srv_admin_state"]) & _MAINTENANCE:
            leaving.setdefault(slot, set()).add(server)
        else:
            ready.setdefault(slot, set()).add(Target(server, fields["srv_addr"], int(fields["srv_port"])))
    return ready, leaving
