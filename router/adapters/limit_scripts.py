"""The scripts that count the limits of teams in Valkey or Redis, and their arguments and answers.

All keys of a call have the same hash tag, so that they are in one slot of a cluster; each of them expires; the time is
the server's. Routers of other versions may use the same store: what follows a known value is ignored, and another
meaning needs another `PREFIX`.
"""

from __future__ import annotations

from typing import NamedTuple

from router.core.teams.loan import Lent, Report

PREFIX = "or1"
MOST = 2**53 - 1
"""The largest number that a script tells from the next one."""
_NONE = -1

_START = f"""
local MOST = {MOST}
local time = redis.call('TIME')
local now_s = tonumber(time[1])
local now_ms = now_s * 1000 + math.floor(tonumber(time[2]) / 1000)
local bad = 0

-- Only digits: Lua reads more as numbers than the server does. What has grown beyond reason is the most, and is not
-- forgotten: a limit is not exceeded for that.
local function number(text)
  if type(text) ~= 'string' or not string.find(text, '^%d+$') then return nil end
  return math.min(tonumber(text), MOST)
end

local function text(n) return string.format('%.0f', math.min(n, MOST)) end

-- A key that somebody else has written, or that has grown beyond reason, is none.
local function is_there(key, kind, count)
  local found = redis.call('TYPE', key)['ok']
  if found == 'none' then return false end
  if found == kind and redis.call(count, key) <= 4096 then return true end
  redis.call('DEL', key)
  bad = bad + 1
  return false
end

local function expire(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end
"""

REPORT = f"""-- ollama-router: what one router uses of a team's limits, and what it is lent
{_START}
local requests_key, held_key, day_key = KEYS[1], KEYS[2], KEYS[3]
local router, arg = ARGV[1], {{}}
for i = 2, #ARGV do arg[i] = tonumber(ARGV[i]) end
local hold_ms, routers = arg[2], math.max(1, arg[3])
local seq, spent, returned, returned_at, late = arg[4], arg[5], arg[6], arg[7], arg[8]
local floor, floor_day = arg[9], arg[10]
local most_slots, running, waiting, spare = arg[11], arg[12], arg[13], arg[14]
local most_requests, most_tokens, reserved, wanted, spare_tokens = arg[15], arg[16], arg[17], arg[18], arg[19]

-- For those that wait, and beyond them at most a part of what is left, so that other routers find something, too.
local function lend(left, need, more)
  local n = math.min(left, need)
  return n + math.max(0, math.min(more - n, math.floor((left - n) / (2 * routers))))
end

-- 1. The day: what was taken counts once, by the number of the report.
local today, used, has_day = math.floor(now_s / 86400), 0, is_there(day_key, 'hash', 'HLEN')
local day = has_day and number(redis.call('HGET', day_key, 'day')) or nil
if day == today + 1 then today = day end -- the server's clock was a little ahead
if day == today then
  used = number(redis.call('HGET', day_key, 'used')) or 0
elseif has_day then
  local fields = redis.call('HGETALL', day_key)
  for i = 1, #fields, 2 do
    local last = number(string.match(fields[i + 1], '^%d+|(%d+)'))
    if last == nil or last < today - 1 or last > today + 1 then redis.call('HDEL', day_key, fields[i]) end
  end
end
local is_new = false
if seq > 0 then
  local last = has_day and redis.call('HGET', day_key, 'seq:' .. router) or ''
  last = number(string.match(last or '', '^(%d+)')) or 0
  is_new = seq > last or last > seq + 4096 -- which it has not written itself
  redis.call('HSET', day_key, 'seq:' .. router, string.format('%.0f|%.0f', seq, today))
end
if floor_day == today then used = math.max(used, floor) end
if is_new then used = used + spent end
used = math.min(used, MOST)
if most_tokens >= 0 or seq > 0 then
  redis.call('HSET', day_key, 'day', text(today), 'used', text(used))
  expire(day_key, 172800000)
end

-- 2. Requests: counts by second, for a minute, the second in which they are begun, and the one in which they are lent.
local lent, requests_left, wait_ms, reset_ms = 0, {_NONE}, 0, 0
if most_requests >= 0 then
  local rows, sum, now, here = {{}}, 0, text(now_s), 0
  local fields = is_there(requests_key, 'hash', 'HLEN') and redis.call('HGETALL', requests_key) or {{}}
  for i = 1, #fields, 2 do
    local at, n = number(fields[i]), number(fields[i + 1])
    if at ~= nil and n ~= nil and is_new and at == returned_at then
      n = math.max(0, n - returned)
      redis.call('HSET', requests_key, fields[i], text(n))
    end
    if at == nil or n == nil or at > now_s + 62 then
      redis.call('HDEL', requests_key, fields[i])
      bad = bad + 1
    elseif at <= now_s - 62 then
      redis.call('HDEL', requests_key, fields[i])
    elseif n > 0 then
      rows[#rows + 1] = {{at, n}}
      sum = sum + n
      if fields[i] == now then here = n end
    end
  end
  if not is_new then late = 0 end
  sum = sum + late
  local left = math.max(0, most_requests - sum)
  if waiting > 0 then lent = lend(left, waiting, spare) end
  if lent + late > 0 then
    redis.call('HSET', requests_key, now, text(here + lent + late))
    expire(requests_key, 63000)
    rows[#rows + 1] = {{now_s, lent + late}}
  end
  requests_left = left - lent
  table.sort(rows, function(a, b) return a[1] < b[1] end)
  local over = sum + lent - most_requests + 1 -- how many must be a minute old before the next one
  for _, row in ipairs(rows) do
    if over > 0 then wait_ms = (row[1] + 62) * 1000 - now_ms end
    over = over - row[2]
    reset_ms = (row[1] + 62) * 1000 - now_ms
  end
end

-- 3. Places and tokens of requests under way: of other routers as long as they are heard of.
local others_slots, others_tokens, has_own = 0, 0, false
if is_there(held_key, 'hash', 'HLEN') then
  local fields = redis.call('HGETALL', held_key)
  for i = 1, #fields, 2 do
    local slots, tokens, until_ms = string.match(fields[i + 1], '^(%d+)|(%d+)|(%d+)')
    slots, tokens, until_ms = number(slots), number(tokens), number(until_ms)
    if slots == nil or tokens == nil or until_ms == nil or until_ms > now_ms + 3600000 then
      redis.call('HDEL', held_key, fields[i])
      bad = bad + 1
    elseif until_ms <= now_ms then
      redis.call('HDEL', held_key, fields[i])
    elseif fields[i] == router then
      has_own = true
    else
      others_slots, others_tokens = others_slots + slots, others_tokens + tokens
    end
  end
end
local slots, slots_left = 0, {_NONE}
if most_slots >= 0 then
  local left = math.max(0, most_slots - others_slots - running)
  local more = lend(left, waiting, spare)
  slots, slots_left = running + more, left - more
end
local tokens, tokens_left, is_rest = 0, {_NONE}, 0
if most_tokens >= 0 then
  local left = math.max(0, most_tokens - used - others_tokens - reserved)
  local more = lend(left, wanted, spare_tokens)
  tokens, tokens_left = reserved + more, left - more
  if more > 0 and left < wanted and others_tokens == 0 and reserved == 0 then is_rest = 1 end
end
if slots > 0 or tokens > 0 then
  redis.call('HSET', held_key, router, string.format('%.0f|%.0f|%.0f', slots, tokens, now_ms + hold_ms))
  expire(held_key, hold_ms)
elseif has_own then
  redis.call('HDEL', held_key, router)
end
return {{now_s, today, slots, slots_left, lent, requests_left, wait_ms, reset_ms, tokens, tokens_left, used,
  (today + 1) * 86400000 - now_ms, is_rest, bad}}
"""

BEAT = f"""-- ollama-router: a router is there, or leaves; how many are, and before it; since when the store knows
{_START}
local key, router, hold_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
if is_there(key, 'zset', 'ZCARD') then
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now_ms)
  redis.call('ZREMRANGEBYSCORE', key, now_ms + 3600000, '+inf')
end
if hold_ms > 0 then
  redis.call('ZADD', key, now_ms + hold_ms, router)
  expire(key, hold_ms)
else
  redis.call('ZREM', key, router)
end
local since = redis.call('TYPE', KEYS[2])['ok'] == 'string' and number(redis.call('GET', KEYS[2])) or nil
if since == nil then
  since = now_s * 1000000 + tonumber(time[2])
  redis.call('SET', KEYS[2], text(since))
end
redis.call('PEXPIRE', KEYS[2], 172800000)
local all, before = redis.call('ZRANGE', key, 0, -1), 0
for _, other in ipairs(all) do
  if other < router then before = before + 1 end
end
return {{#all, before, since, bad}}
"""


class Script(NamedTuple):
    """One call of a script, whose answer is a list of at least `answers` integers."""

    text: str
    keys: tuple[str, ...]
    arguments: tuple[str | int, ...]
    answers: int


def keys_of(team: str) -> tuple[str, str, str]:
    """Return the keys of a team: its requests by second, what routers hold, its day."""
    return f"{PREFIX}:{{{team}}}:req", f"{PREFIX}:{{{team}}}:held", f"{PREFIX}:{{{team}}}:day"


def report_script(report: Report, router: str, routers: int, hold_s: float) -> Script:
    """Return the call that tells the store a report."""
    limits = report.team.limits
    arguments = (
        *(router, int(hold_s * 1000), routers),
        *(report.seq, report.spent, report.returned, report.returned_at, report.late),
        *(report.floor, report.floor_day),
        *(_most(limits.concurrent), report.running, report.waiting, report.spare),
        _most(limits.requests_per_minute),
        *(_most(limits.tokens_per_day), report.reserved, report.tokens, report.spare_tokens),
    )
    return Script(REPORT, keys_of(report.team.name), arguments, 14)


def beat_script(router: str, hold_s: float) -> Script:
    """Return the call that says that a router is there for `hold_s`, or leaves (0)."""
    keys = f"{PREFIX}:{{routers}}:beat", f"{PREFIX}:{{routers}}:since"
    return Script(BEAT, keys, (router, int(hold_s * 1000)), 4)


def lent_of(answer: list[int]) -> tuple[Lent, int]:
    """Return the answer to a report, and how many values in the store were not the router's."""
    at, day, slots, slots_left, requests, requests_left, wait_ms, reset_ms = answer[:8]
    tokens, tokens_left, used, midnight_ms, is_rest, bad = answer[8:14]
    times_s = wait_ms / 1000, reset_ms / 1000
    lent = Lent(at, day, slots, slots_left, requests, requests_left, *times_s, tokens, tokens_left, used,
                midnight_ms / 1000, bool(is_rest))  # fmt: skip
    return lent, bad


def _most(limit: int | None) -> int:
    return _NONE if limit is None else limit
