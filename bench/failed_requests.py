"""Requests that fail while Davit works: ``DAVIT_HOME=… python -m bench.failed_requests``.

Wants a running Davit (the same DAVIT_* environment as its processes) and makes an app of its own there. The exit status is
1 when a request failed or a change did not come into force.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from bench.tables import Figure, hand_over
from tests.e2e.chaos import Plan, Platform, run


def main() -> int:
    """Run the plan and print the table."""
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("deploys", "configs", "rollbacks", "scales", "restarts", "overlaps", "kills"):
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name), help=f"default {getattr(usual, name)}")
    parser.add_argument("--rate", type=float, default=usual.rate, help="requests per second")
    plan = Plan(**vars(parser.parse_args()))
    report = asyncio.run(run(Platform.here(), plan, progress=lambda text: print(f"  {text}", file=sys.stderr, flush=True)))
    print(report.table())
    deploys = f"{len(report.rows)} kinds of events, {sum(len(row.seconds) for row in report.rows.values())} in all"
    hand_over([Figure("failed_requests", f"failed during {deploys}", str(report.failed), goal="0", met=not report.failed)])
    print(f"\n{report.failed} requests failed of {sum(row.tally.sent for row in report.rows.values())}.")
    return 1 if report.failed or report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
