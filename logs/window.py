"""What is kept of an app's lines, and how one loud source is kept from pushing out what the others said.

The newest :data:`WINDOW` lines are kept in the order in which they came. Before the oldest are taken away, the newest
:data:`RESERVE` of each *share* (the platform's, the router's, what dynos print) among them are put aside under their ids. So a
dyno that prints ten thousand lines a second takes the room of its own lines, and the platform's word on it is still there.
Whoever reads sees both as one window of at most :data:`WINDOW` lines.

Per app Redis holds at most :data:`WINDOW` + :data:`SLACK` lines and those on their way, and :data:`RESERVE` for each share. They
take no more memory than :data:`BYTES`, a slack, and :data:`RESERVE_BYTES` for each share. What all apps have together is bounded
in :mod:`logs.room`.
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
BYTES = 2 << 20
"""Memory that the lines of a window take in Redis: 1,500 lines of 1.3 KB, or 200 of the longest."""
RESERVE_BYTES = BYTES // 8
"""Memory that the lines take that are put aside, for each share."""
SLACK_BYTES = BYTES // 8
"""As :data:`SLACK`."""
LEAST_WITH_ASIDE = 64 << 10
"""Memory of an app's lines below which none are put aside: Redis takes 5 KiB for a single one."""
SHARES = ("platform", "router", "output")

_Entry = TypeVar("_Entry")

_TRIM = """
local lines, slack, reserve = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local bytes, slack_bytes, reserve_bytes = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local function size(name)
  local told = redis.pcall('MEMORY', 'USAGE', name, 'SAMPLES', 0)
  return type(told) == 'number' and told or 0
end
local count, over = redis.call('XLEN', KEYS[1]), size(KEYS[1]) - bytes
local extra = count - lines >= slack and count - lines or 0
if over < slack_bytes then over = 0 end
if extra == 0 and over <= 0 and slack_bytes > 0 then return 0 end

local oldest = extra > 0 and redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', extra) or {}
if over > 0 then
  local freed, from = 0, '-'
  for _, line in ipairs(oldest) do freed = freed + #line[2][2] + 24 end
  while freed < over and #oldest < count - 1 do
    if #oldest > 0 then
      local at, number = string.match(oldest[#oldest][1], '^(%d+)-(%d+)$')
      from = at .. '-' .. string.format('%.0f', number + 1)
    end
    for _, line in ipairs(redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', math.min(50, count - 1 - #oldest))) do
      if freed >= over then break end
      table.insert(oldest, line)
      freed = freed + #line[2][2] + 24
    end
  end
end

local kept, room = {{}, {}, {}}, {reserve_bytes, reserve_bytes, reserve_bytes}
for i = #oldest, 1, -1 do
  local source, process = string.match(oldest[i][2][2], '^%d+ (%S+) (%S+)')
  local share = 3
  if source == 'heroku' and process == 'router' then share = 2
  elseif source == 'heroku' or process == 'api' then share = 1 end
  if #kept[share] < reserve and room[share] > 0 then
    room[share] = room[share] - #oldest[i][2][2] - 24
    if room[share] >= 0 then table.insert(kept[share], oldest[i]) end
  end
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', count - #oldest)
for share = 1, 3 do
  for i = #kept[share], 1, -1 do
    local line = kept[share][i]
    redis.pcall('XADD', KEYS[1 + share], 'MAXLEN', reserve, line[1], line[2][1], line[2][2])
  end
  local taken = size(KEYS[1 + share])
  while taken > reserve_bytes do
    local fit = math.floor(redis.call('XLEN', KEYS[1 + share]) * reserve_bytes / taken)
    if fit == 0 then redis.call('DEL', KEYS[1 + share]) else redis.call('XTRIM', KEYS[1 + share], 'MAXLEN', fit) end
    taken = size(KEYS[1 + share])
  end
end
return #oldest
"""  # what XTRIM has freed first lets XADD pass in a Redis that is full


def key(app_id: str) -> str:
    """The stream of the app's newest lines."""
    return f"logs:{app_id}"


def aside(app_id: str) -> list[str]:
    """The streams of lines that were put aside, one for each of :data:`SHARES`; all older than what is in :func:`key`."""
    return [f"logs:{app_id}:{share}" for share in SHARES]


def trim(app_id: str) -> tuple[object, ...]:
    """The Redis command that takes away what is beyond the window, and puts aside the shares' part of it; both or neither."""
    return _trimming(app_id, BYTES, SLACK_BYTES, RESERVE_BYTES)


def shorten(app_id: str, size: int) -> tuple[object, ...]:
    """As :func:`trim`, to ``size`` bytes of memory with what is put aside: three eighths of it, or none where that is no room."""
    reserve = size // 8 if size >= LEAST_WITH_ASIDE else 0
    return _trimming(app_id, size - len(SHARES) * reserve, 0, reserve)


def _trimming(app_id: str, size: int, slack: int, reserve: int) -> tuple[object, ...]:
    return ("EVAL", _TRIM, 1 + len(SHARES), key(app_id), *aside(app_id), WINDOW, SLACK, RESERVE, size, slack, reserve)


def app_of(name: str) -> str:
    """The app whose lines the stream of that name has."""
    return name.split(":")[1]


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
