"""What the dynos of a formation are to be: row, environment, limits, images, health checks. Starts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from runtime import environment, health
from runtime.driver import DynoSpec
from runtime.life import Plan
from runtime.records import AppState, Wanted
from state.models import Dyno, Release, new_id
from state.releases import config_of


class Stacks(Protocol):
    """Where images are."""

    def version(self) -> str:
        """The newest stack's version."""

    def run_image(self, version: str) -> Path:
        """The run image of this version, or of the newest when it is gone."""

    def slug_image(self, digest: str) -> Path:
        """A slug's image."""


class Planner:
    """Composes the plans of an app's dynos.

    Args:
        stacks: where images are.
        domain: for the Host header of health checks.
        cores: CPUs that a dyno may use at the most.
    """

    def __init__(self, stacks: Stacks, domain: str, cores: int) -> None:
        self.stacks, self.domain, self.cores = stacks, domain, cores

    def plan(
        self, state: AppState, release: Release, wanted: Wanted, name: str, dyno_id: str, *, crashes: int, boot_seconds: float
    ) -> Plan:
        """A dyno of this release and name; ``crashes`` in a row are behind it, ``boot_seconds`` are before it."""
        line = release.process_types[wanted.type]
        assert release.slug is not None and release.slug.digest is not None
        port = environment.PORT if wanted.type == "web" else None
        row = Dyno(
            id=dyno_id, app_id=state.app.id, release_id=release.id, release_version=release.version, name=name, type=wanted.type,
            size=wanted.size.name, isolation=wanted.isolation, command=line, state="starting", leaving=False, routed=False,
            held=False, crashes=crashes, one_off=False, restart_requested=False, restarts=wanted.restarts,
        )  # fmt: skip
        defaults = release.slug.default_config | release.dyno_metadata
        env = environment.compose(wanted.size, name, config_of(release), defaults, port=port, extra={})
        spec = DynoSpec(
            id=dyno_id,
            name=name,
            app=state.app.name,
            app_id=state.app.id,
            stack=self.stacks.run_image(release.stack_version),
            slug=self.stacks.slug_image(release.slug.digest),
            command=environment.command(line),
            env=env,
            limits=environment.limits(wanted.size, self.cores),
            port=port,
            isolation=wanted.isolation,
            line=line,
            allowed=True,
        )
        return Plan(row, spec, f"{state.app.name}.{self.domain}", _checks(release, wanted.type), boot_seconds)

    def idle_row(self, state: AppState, release: Release, name: str) -> Dyno:
        """The row of a dyno that sleeps."""
        wanted = state.formation[name.rpartition(".")[0]]
        return Dyno(
            id=new_id(), app_id=state.app.id, release_id=release.id, release_version=release.version, name=name, type=wanted.type,
            size=wanted.size.name, isolation=wanted.isolation, command=release.process_types[wanted.type], state="idle",
            leaving=False, routed=False, held=False, crashes=0, one_off=False, restart_requested=False, restarts=wanted.restarts,
        )  # fmt: skip


def _checks(release: Release, type: str) -> list[health.Check]:
    assert release.slug is not None
    names = ("path", "attempts", "timeout", "wait", "content")
    found = (release.slug.healthchecks or {}).get(type, [])
    return [
        health.Check(**{name: check[name] for name in names if name in check}, delay=check.get("initialDelay", 0))
        for check in found
        if check.get("path") and check.get("type", "startup") == "startup"
    ]
