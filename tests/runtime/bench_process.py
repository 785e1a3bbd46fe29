"""A runtime of its own for the contract: starts a dyno that says something and stays, tells of it, and waits to be killed.

python -m tests.runtime.bench_process MODULE:BENCH STACK SLUG TEXT      (DAVIT_HOME in the environment)
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from pathlib import Path

from foundation.settings import settings


def main(kind: str, stack: str, slug: str, text: str) -> None:
    """Start it."""
    module, _, name = kind.partition(":")
    bench = getattr(importlib.import_module(module), name)(asyncio.new_event_loop(), Path(stack), Path(slug))
    bench.home.rmdir()
    bench.settings = settings()
    bench.home = bench.settings.home
    bench.open(warm=0)
    dyno = bench.waiting(text)
    print(json.dumps([dyno.spec_id, dyno.slot, dyno.pid]), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
