-- Holds a request while its app boots or sleeps (then it asks for it to be woken, by a line where access lines go), until the app's state changes, the backlog is full, or the time is up.
-- One Lua state serves all threads (lua-load), so the counts below are exact; it runs only for requests that wait.

local states = Map.new(os.getenv("DAVIT_STATES"), Map._str)
local patience = tonumber(os.getenv("DAVIT_HOLD_MS")) / 1000
local held = {}
local total = 0

-- Waiting requests look again every 10 ms; when very many wait, less often, so that waiting stays cheap.
local function pause()
    return math.max(10, math.min(250, total // 20))
end

local function now()
    local t = core.now()
    return t.sec + t.usec / 1000000
end

-- A generation that stops hears of no more changes; its successor does.
local function stopping(txn)
    local value = txn.f:stopping()
    return value == true or value == 1
end

-- How many may wait while the app is in this state; nil when nobody waits.
local function room(state)
    return tonumber(string.match(state or "", "^starting:(%d+)$") or string.match(state or "", "^asleep:(%d+)$"))
end

local function leave(slot)
    total = total - 1
    held[slot] = held[slot] - 1
    if held[slot] == 0 then held[slot] = nil end
end

-- When its client goes, HAProxy drops a waiting request without another word; its place is free once Lua has collected what it left.
local place = { __gc = function(self) if self.slot then leave(self.slot) end end }
local refused, swept = 0, 0
local function sweep()
    refused = refused + 1
    if refused % 8 ~= 0 and now() < swept then return end
    collectgarbage()
    swept = now() + 0.5
end

core.register_action("hold", { "http-req" }, function(txn)
    local slot = string.match(txn:get_var("txn.route"), "^[^/]*")
    local state = txn:get_var("txn.state")
    local limit = room(state)
    if limit == nil then return end
    if (held[slot] or 0) >= limit then sweep() end
    if (held[slot] or 0) >= limit then
        txn:set_var("txn.state", "full")
        return
    end
    held[slot] = (held[slot] or 0) + 1
    total = total + 1
    local mine = setmetatable({ slot = slot }, place)
    local deadline = now() + patience
    local asked = 0
    repeat
        if string.sub(state, 1, 6) == "asleep" and now() >= asked then
            txn:log(core.info, "wake " .. txn:get_var("txn.route"))
            asked = now() + 1
        end
        core.msleep(pause())
        state = states:lookup(slot)
        if stopping(txn) then state = "elsewhere" end
    until room(state) == nil or now() >= deadline
    mine.slot = nil
    leave(slot)
    if state == nil then
        txn:unset_var("txn.state")
        -- the clock that tells H12 from H13 starts when the request goes on
        txn:set_var("txn.t", core.now().sec * 1000 + core.now().usec // 1000)
    elseif room(state) then
        txn:set_var("txn.state", "timeout")
    else
        txn:set_var("txn.state", state)
    end
end, 0)
