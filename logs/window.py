"""What is kept of an app's lines, and how one loud source is kept from pushing out what the others said.

The newest :data:`WINDOW` lines are kept in the order in which they came. Before the oldest are taken away, the newest
:data:`RESERVE` of each *share* (the platform's, the router's, what dynos print) among them are put aside under their ids. So a
dyno that prints ten thousand lines a second takes the room of its own lines, and the platform's word on it is still there.
Whoever reads sees both as one window of at most :data:`WINDOW` lines.

Per app Redis holds at most :data:`WINDOW` + :data:`SLACK` lines and those on their way, and :data:`RESERVE` for each share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

WINDOW = 1500
"""Lines per app that are shown, as on Heroku."""
RESERVE = 250
"""Lines of its own that each share has in the window, however many the others write."""
SLACK = 500
"""Lines beyond the window that come together before they are sorted: fewer would be sorted more often than they are worth."""
BACKSTOP = 2 * (WINDOW + SLACK)
"""Lines at which Redis trims by itself, whatever they are: for a Redis in which no script may run."""
SHARES = ("platform", "router", "output")

_Entry = TypeVar("_Entry")

_TRIM = """
local extra = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1])
local reserve = tonumber(ARGV[2])
if extra < tonumber(ARGV[3]) then return 0 end
local kept = {{}, {}, {}}
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', extra)
for i = #oldest, 1, -1 do
  local source, process = string.match(oldest[i][2][2], '^%d+ (%S+) (%S+)')
  local share = 3
  if source == 'heroku' and process == 'router' then share = 2
  elseif source == 'heroku' or process == 'api' then share = 1 end
  if #kept[share] < reserve then table.insert(kept[share], oldest[i]) end
end
for share = 1, 3 do
  for i = #kept[share], 1, -1 do
    local line = kept[share][i]
    redis.pcall('XADD', KEYS[1 + share], 'MAXLEN', reserve, line[1], line[2][1], line[2][2])
  end
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[1])
return extra
"""


def key(app_id: str) -> str:
    """The stream of the app's newest lines."""
    return f"logs:{app_id}"


def aside(app_id: str) -> list[str]:
    """The streams of lines that were put aside, one for each of :data:`SHARES`; all older than what is in :func:`key`."""
    return [f"logs:{app_id}:{share}" for share in SHARES]


def trim(app_id: str) -> tuple[object, ...]:
    """The Redis command that takes away what is beyond the window, and puts aside the shares' part of it; both or neither."""
    return ("EVAL", _TRIM, 1 + len(SHARES), key(app_id), *aside(app_id), WINDOW, RESERVE, SLACK)


def share(source: str, process: str) -> str:
    """Which of :data:`SHARES` a line counts to."""
    if source == "heroku" and process == "router":
        return "router"
    return "platform" if source == "heroku" or process == "api" else "output"


def fair(entries: Iterable[_Entry], share: Callable[[_Entry], str]) -> list[_Entry]:
    """The entries that are shown: :data:`WINDOW` at most, the newest, but of each share its newest :data:`RESERVE` in any case.

    Args:
        entries: oldest first.
        share: tells an entry's share.
    """
    named = [(share(entry), entry) for entry in entries]
    free = WINDOW - sum(min(count, RESERVE) for count in Counter(name for name, _ in named).values())
    taken: Counter[str] = Counter()
    shown = []
    for name, entry in reversed(named):
        taken[name] += 1
        if taken[name] > RESERVE:
            free -= 1
            if free < 0:
                continue
        shown.append(entry)
    return shown[::-1]
