-- GCRA by the server's clock, for one user and all users of the namespace together: all limits, or none.
-- KEYS[1]: the namespace's base. ARGV: 'take', 'settle' or 'look'; the partition; then five for each limit:
--   'u' or 'g' | the field | nanoseconds a unit | the capacity in nanoseconds | what is asked (take), corrected by (settle)
-- A time is kept as seconds and nanoseconds: a number of Lua counts whole nanoseconds for a hundred days, and not since
-- 1970. Levels and capacities are below that; Rust sees to it.
local time = redis.call('TIME')
local second, nano = tonumber(time[1]), tonumber(time[2]) * 1000
local keys = { u = KEYS[1] .. ':' .. ARGV[2], g = KEYS[1] .. ':all' }

local function level(key, field, capacity)
  local kept = redis.call('HGET', key, field)
  if not kept then return 0 end
  local s, n = string.match(kept, '^(%d+):(%d+)$')
  local ahead = (tonumber(s) - second) * 1e9 + (tonumber(n) - nano)
  -- No debt is deeper: a clock that was set back delays nobody for longer.
  return math.max(0, math.min(ahead, 2 * capacity))
end

local function put(key, field, ahead)
  if ahead <= 0 then
    redis.call('HDEL', key, field)
    return
  end
  local sum = nano + ahead
  local seconds = math.floor(sum / 1e9)
  redis.call('HSET', key, field, string.format('%.0f:%.0f', second + seconds, sum - seconds * 1e9))
  -- The key goes when the last of its limits is whole again, and no sooner.
  local millis = math.ceil(ahead / 1e6) + 1
  if redis.call('PTTL', key) < millis then
    redis.call('PEXPIRE', key, string.format('%.0f', millis))
  end
end

local levels, changes, refused = {}, {}, false
for i = 3, #ARGV, 5 do
  local key, field = keys[ARGV[i]], ARGV[i + 1]
  local capacity, change = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
  local ahead = level(key, field, capacity)
  local over = 0
  if ARGV[1] == 'take' then
    over = math.max(0, ahead + change - capacity)
    refused = refused or over > 0
    ahead = ahead + change
  elseif ARGV[1] == 'settle' then
    ahead = math.max(0, math.min(ahead + change, 2 * capacity))
  end
  changes[#changes + 1] = { key, field, ahead }
  levels[#levels + 1] = string.format('%.0f', ARGV[1] == 'look' and ahead or over)
end
if ARGV[1] ~= 'look' and not refused then
  for _, change in ipairs(changes) do
    put(change[1], change[2], change[3])
  end
end
return levels
