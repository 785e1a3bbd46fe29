"""How the bench that fills a host asks for more dynos than one process type can have, and hears of requests that fail."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench import vm_apps
from builder.procfile import parse
from state.formation import MOST


@pytest.mark.parametrize("dynos", [1, MOST - 1, MOST, MOST + 1, 10 * MOST])
def test_so_many_dynos_are_spread_over_process_types_that_the_app_has(dynos: int) -> None:
    asked = dict(words.split("=") for words in vm_apps.spread(dynos))
    assert sum(map(int, asked.values())) == dynos
    assert all(1 <= int(number) <= MOST for number in asked.values())
    files = vm_apps.same_in_many_types(10 * MOST)
    assert set(asked) <= set(parse(files["Procfile"].encode()).types)
    assert 'os.environ["PORT"]' not in files["app.py"], "no dyno but a web dyno is given one"


def test_a_request_that_fails_while_others_are_asked_fails_the_bench() -> None:
    statuses = iter([200, 200, 503])
    app = SimpleNamespace(get=lambda: SimpleNamespace(status_code=next(statuses), text="No dyno is there"))
    with pytest.raises(AssertionError, match="a request failed meanwhile: 503 No dyno"), vm_apps.asking(app) as waits:  # type: ignore[arg-type]
        while len(waits) < 2:
            pass
