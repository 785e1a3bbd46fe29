"""A person who keeps asking an app while something is done to it."""

from __future__ import annotations

import threading

from tests.e2e.world import App


class Visitor:
    """Somebody who asks for a page again and again; every answer must be good.

    Args:
        pause: seconds between an answer and the next question.

    Attributes:
        asked, bad: how often, and what was wrong with an answer.
    """

    def __init__(self, app: App, pause: float = 0.05) -> None:
        self.app, self.bad, self.asked = app, [], 0  # type: tuple[App, list[str], int]
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Visitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(self._pause):
            self.asked += 1
            try:
                answer = self.app.get()
                if answer.status_code != 200:
                    self.bad.append(f"{answer.status_code} {answer.text[-200:]}")
            except Exception as error:
                self.bad.append(repr(error))
