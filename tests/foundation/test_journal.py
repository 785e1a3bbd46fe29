"""What a process writes into its log."""

from __future__ import annotations

import subprocess
import sys

SAYS = """
import logging
from foundation import journal
journal.start("web").info("started", extra={"app": "timely"})
logging.getLogger("dulwich.server").info("Client capabilities: []")
logging.getLogger("dulwich.server").warning("a pack is broken")
"""


def test_libraries_speak_up_only_when_something_is_wrong() -> None:
    shown = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, check=True).stderr
    assert "info web: started app=timely" in shown and "warning dulwich.server: a pack is broken" in shown
    assert "capabilities" not in shown
