"""``python -m logs``: collects what dynos print; see :mod:`logs.collector`."""

from __future__ import annotations

import fcntl
import os
import signal
import sys

from foundation import journal
from foundation.settings import settings
from logs import stream
from logs.collector import Collector
from logs.drains import Drains


def main() -> int:
    """Run until SIGTERM or SIGINT; 1 when another collector serves the same DAVIT_HOME."""
    log = journal.start("logs")
    run = settings().run
    run.mkdir(mode=0o711, parents=True, exist_ok=True)
    lock = os.open(run / "logs.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two collectors would share the lines out between them
    except BlockingIOError:
        log.error("another logs process serves this DAVIT_HOME")
        return 1
    drains = Drains(stream.connect(settings().effective_redis_url))
    collector = Collector(run / "dynos", stream.connect(settings().effective_redis_url), run / "logs.sock", drains)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: collector.stop())
    log.info("collecting", extra={"from": run / "dynos"})
    drains.start()
    collector.run()
    drains.stop()
    collector.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
