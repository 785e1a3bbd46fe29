"""Prints the tests that failed in the last run, one a line, as pytest's cache has them."""

from __future__ import annotations

import json
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "v" / "cache" / "lastfailed"

if __name__ == "__main__":
    print("\n".join(json.loads(CACHE.read_text())))
