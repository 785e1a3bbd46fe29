"""What :mod:`bench.vms` found, and the figures that are made of it: a container is what virtual machines stand beside."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.tables import Figure, mib, ms

ISOLATIONS = ("container", "microvm", "osv")


@dataclass
class Measured:
    """Of one isolation's driver: seconds, bytes; lists have a value for each run; None is what was not measured."""

    starts: list[float] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)
    memory: int | None = None
    pause: float | None = None
    grow: float | None = None
    shrink: float | None = None
    aside: float | None = None
    resumed: float | None = None
    root: float | None = None
    image: float | None = None


@dataclass
class Served:
    """Of one isolation behind a Davit: requests a second; seconds; dynos that run and bytes of the host that each takes, why
    there are no more, and for how many there is room when the host was not filled."""

    rate: float | None = None
    wake: float | None = None
    pause: float | None = None
    held: float | None = None
    longest: float | None = None
    dynos: int | None = None
    each: float | None = None
    why: str = ""
    room: float | None = None


@dataclass
class Found:
    """All of it, by isolation.

    Attributes:
        acceleration: of virtual machines: KVM or TCG.
        seal: seconds for each MB of the slug whose images are timed, which has ``slug_mib``.
    """

    alone: dict[str, Measured] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)
    acceleration: dict[str, str] = field(default_factory=dict)
    seal: float | None = None
    slug_mib: float = 0.0


def figures(found: Found) -> list[Figure]:
    """What is reported of what there is."""
    shown: list[Figure] = []
    if found.seal is not None:
        beside = f"a slug of {found.slug_mib:.0f} MiB"
        shown.append(Figure("vms", "the slug sealed, once for all isolations, each MB", ms(found.seal), beside))
    for isolation, one in found.alone.items():
        shown += _of(isolation, found, one, found.served.get(isolation, Served()))
    return shown


def _of(isolation: str, found: Found, one: Measured, app: Served) -> list[Figure]:
    shown: list[Figure] = []
    named = f"{isolation}, {found.acceleration[isolation]}" if isolation in found.acceleration else isolation
    container = isolation == "container"
    base, base_app = (Measured(), Served()) if container else (found.alone.get("container", Measured()), _served(found))

    def say(what: str, value: float | None, other: float | None, form: Callable[[float], str]) -> None:
        if value is None:
            return
        ratio = value / other if other else None
        shown.append(Figure("vms", f"{named}: {what}", form(value), form(other) if other else "", ratio))

    say("start to the first 200", _middle(one.starts), _middle(base.starts), ms)
    say("SIGTERM to gone", _middle(one.stops), _middle(base.stops), ms)
    if one.memory is not None and base.memory is not None:
        say("memory beyond a container's", one.memory - base.memory, None, mib)
    else:
        say(f"memory of its own, the server's{'' if container else ' and all of QEMU'}", one.memory, None, mib)
    size = "its share of the processors, live" if isolation == "osv" else "size, live"
    say(f"twice {size}", one.grow, base.grow, ms)
    say(f"half {size}", one.shrink, base.shrink, ms)
    if isolation == "osv":
        say("its image of the slug, each MB", one.image, None, ms)
    elif found.seal is not None:
        shown.append(Figure("vms", f"{named}: its image of the slug", "none: it mounts the sealed slug"))
    say("root of Python, once for each stack", one.root, None, ms)
    say("pause of a move to another QEMU", one.pause, None, ms)
    say("written to a file", one.aside, None, ms)
    say("from that file to the first 200, beside a start", one.resumed, _middle(one.starts), ms)
    say("requests a second through the router", app.rate, base_app.rate, lambda value: f"{value:.0f}/s")
    say("the request that wakes it, held and answered", app.wake, base_app.wake, ms)
    say("pause of ps:migrate", app.pause, None, ms)
    say("requests held by the router meanwhile", app.held, None, ms)
    say("longest that a visitor waited meanwhile", app.longest, None, ms)
    say(f"dynos that run at once ({app.why})", app.dynos, None, _number)
    say("for how many there is room, by what each takes", app.room, None, _number)
    say("of the host's memory, each of them", _positive(app.each), _positive(base_app.each), mib)
    return shown


def _served(found: Found) -> Served:
    return found.served.get("container", Served())


def _middle(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _positive(value: float | None) -> float | None:
    """What else runs on the host may have given back more than they took."""
    return value if value is not None and value > 0 else None


def _number(value: float) -> str:
    return f"{value:.0f}"
