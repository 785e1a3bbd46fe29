"""Scenes that are played at the same time, each on an app of its own, because most of what they do is wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.world import App, Davit

Scene = Callable[[App], None]


@dataclass
class Together:
    """The scenes of a module, in the order in which they begin.

    Attributes:
        at_once: how many are played at the same time.
    """

    at_once: int = 4
    scenes: dict[str, Scene] = field(default_factory=dict)

    def __call__(self, scene: Scene) -> Scene:
        """Decorator: ``scene`` is one of them."""
        self.scenes[scene.__name__] = scene
        return scene

    def parameters(self) -> list[Any]:
        """For ``pytest.mark.parametrize("scene", …)``, with the scenes' own marks."""
        return [pytest.param(name, marks=getattr(scene, "pytestmark", ())) for name, scene in self.scenes.items()]

    def begin(self, davit: Davit) -> tuple[ThreadPoolExecutor, dict[str, Future[None]]]:
        """Play them all; a scene's future has its failure."""
        threads = ThreadPoolExecutor(self.at_once, "scene")
        return threads, {name: threads.submit(_play, davit, scene) for name, scene in self.scenes.items()}


def _play(davit: Davit, scene: Scene) -> None:
    app = davit.create()
    try:
        scene(app)
    finally:
        app.cli("apps:destroy", "--confirm", app.name, check=False)
