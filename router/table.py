"""Which app has which backend, and the runtime commands that lead from what is in force to what should be. Pure.

In a command ``@hosts`` and ``@states`` stand for the paths of the two maps, which each generation of HAProxy has of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from router.config import SERVER_OPTIONS, backend, map_value, server_address
from router.routes import GONE, Route

SPARE = 64
"""Spare backends at the least; every app to come takes one without a reload."""


def pool_size(apps: int) -> int:
    """How many backends a new configuration has for this many apps: a sixteenth more, so that growing stays rare."""
    return apps + max(SPARE, apps // 16)


class PoolExhausted(Exception):
    """No backend is free; HAProxy needs a configuration with more."""


@dataclass(frozen=True)
class Change:
    """A step to make: ``commands`` bring ``route`` (None: nothing) into force at ``slot``."""

    slot: int
    route: Route | None
    commands: tuple[str, ...]


@dataclass
class Table:
    """What HAProxy has in force.

    Attributes:
        pool: how many backends its configuration has.
        routes: slot → route in force.
        leaving: slot → servers that get nothing new, to be deleted when their last request is answered.
        gone: slots whose app is gone while states.map still says so, for requests that were on their way.
    """

    pool: int
    routes: dict[int, Route] = field(default_factory=dict)
    leaving: dict[int, set[str]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._slots = {route.app_id: slot for slot, route in self.routes.items()}
        self._hosts = {host: slot for slot, route in self.routes.items() for host in route.hosts}
        self._free = dict.fromkeys(slot for slot in range(self.pool) if slot not in self.routes)

    @property
    def free(self) -> int:
        """Spare backends left."""
        return len(self._free)

    def slot(self, app_id: str) -> int | None:
        """The app's backend."""
        return self._slots.get(app_id)

    def apps(self) -> list[str]:
        """The ids of the apps that have a backend."""
        return list(self._slots)

    def change(self, app_id: str, wanted: Route | None) -> Change | None:
        """The change that makes the app's route the wanted one (None: no route); None when it already is.

        Raises:
            PoolExhausted: it needs a backend and none is free.
        """
        slot = self._slots.get(app_id)
        if slot is None:
            if wanted is None:
                return None
            slot = self._unused()
            before = Route(app_id, wanted.name, frozenset(), GONE if slot in self.gone else None, frozenset())
        else:
            before = self.routes[slot]
        if before == wanted:
            return None
        return Change(slot, wanted, tuple(self._commands(slot, before, wanted)))

    def applied(self, change: Change) -> None:
        """Note that a change is in force."""
        slot, route = change.slot, change.route
        before = self.routes.pop(slot, None)
        if before:
            del self._slots[before.app_id]
            for host in before.hosts:
                if self._hosts.get(host) == slot:
                    del self._hosts[host]
            stays = route.targets if route else frozenset()
            leaving = {target.server for target in before.targets - stays}
            if leaving:
                self.leaving.setdefault(slot, set()).update(leaving)
        if route is None:
            self.gone.add(slot)
            self._free[slot] = None
            return
        for target in route.targets:
            self.deleted(slot, target.server)
        self._free.pop(slot, None)
        self.gone.discard(slot)
        self.routes[slot] = route
        self._slots[route.app_id] = slot
        for host in route.hosts:
            owner = self._hosts.get(host, slot)
            if owner != slot:
                self.routes[owner] = replace(self.routes[owner], hosts=self.routes[owner].hosts - {host})
            self._hosts[host] = slot

    def deleted(self, slot: int, server: str) -> None:
        """Note that a leaving server leaves no more: it has been deleted, or is wanted again."""
        self.leaving.get(slot, set()).discard(server)
        if not self.leaving.get(slot):
            self.leaving.pop(slot, None)

    def _unused(self) -> int:
        # A backend with a leaving server may still retry a request of its former app; it must not reach another app's dyno.
        for slot in self._free:
            if slot not in self.leaving:
                return slot
        raise PoolExhausted

    def _commands(self, slot: int, before: Route, wanted: Route | None) -> Iterable[str]:
        """New servers first, then the state, then the hosts, and last what goes: at no moment is there no answer."""
        name = backend(slot)
        targets = wanted.targets if wanted else frozenset()
        for target in sorted(targets - before.targets, key=lambda t: t.server):
            if target.server in self.leaving.get(slot, ()):
                yield f"set server {name}/{target.server} addr {target.address} port {target.port}"
            else:
                yield f"add server {name}/{target.server} {server_address(target)} {SERVER_OPTIONS}"
            yield f"set server {name}/{target.server} state ready"
        yield from _set("@states", name, before.state, wanted.state if wanted else GONE)
        yield from self._host_commands(slot, before, wanted)
        for target in sorted(before.targets - targets, key=lambda t: t.server):
            yield f"set server {name}/{target.server} state maint"

    def _host_commands(self, slot: int, before: Route, wanted: Route | None) -> Iterable[str]:
        hosts = wanted.hosts if wanted else frozenset()
        for host in sorted(hosts):
            taken = host in self._hosts and self._hosts[host] != slot
            old = map_value(slot, before.app_id, before.name, host) if host in before.hosts or taken else None
            new = map_value(slot, wanted.app_id, wanted.name, host) if wanted else None
            yield from _set("@hosts", host, old, new, force=taken)
        for host in sorted(before.hosts - hosts):
            yield from _set("@hosts", host, host, None)


def _set(map_name: str, key: str, before: str | None, after: str | None, *, force: bool = False) -> Iterable[str]:
    if before == after and not force:
        return
    if after is None:
        yield f"del map {map_name} {key}"
    else:
        yield f"{'add' if before is None else 'set'} map {map_name} {key} {after}"
