"""``python -m tests.runtime.osv_other_process STACK SLUG TEXT``: a runtime that starts a unikernel which says TEXT, tells of it,
and waits to be killed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from tests.runtime.test_osv_driver import OsvBench


def main() -> None:
    """Start it."""
    stack, slug, text = sys.argv[1:]
    bench = OsvBench(asyncio.new_event_loop(), Path(stack), Path(slug))
    from foundation.settings import settings

    bench.settings = settings()
    bench.open()
    dyno = bench.begin(text)
    print(json.dumps([dyno.spec_id, dyno.slot, dyno.pid]), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
