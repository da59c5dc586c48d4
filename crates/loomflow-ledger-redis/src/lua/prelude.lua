-- What every script begins with: the time, the windows, the counters, and the holds whose lease ran out.
--
-- Numbers are doubles, exact up to MAX. Times are in microseconds. A window is a number, and a later window has a greater one.
--
-- KEYS[1] what all keys of the namespace begin with    ARGV[1] now, or '' for the server's time
-- ARGV[2] the kind of window, l h d m r                ARGV[3] microseconds of a slice, an hour or a day
-- ARGV[4] how long keys outlive their window           ARGV[5] the caps: entity, cap, limit and warning line of each
-- ARGV[6] the tenant's partition in hex                ARGV[7..] the operation's own
local base = KEYS[1]
local MAX = 9007199254740991
local SLICES = 60
-- How long the counter of a run outlives its last use, and estimates wait for an invoice: 35 days.
local LONG = 35 * 86400000000
-- Leases that ran out and are settled by one call; estimates that are kept of a user.
local SWEEP, KEEP = 64, 1000
-- For how long after a hold was drawn its end is remembered, so that one the server lost is told from one that was closed.
local LATE = 15 * 60000000
local floor, max, min = math.floor, math.max, math.min
local function key(kind) return base .. ':' .. kind end
local function text(n) return string.format('%.0f', n) end

local kind, size, outlive = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end

-- The caps of all users together, of a user and of a run: { number of the cap, limit, line }, in the order they are judged.
local caps, counts_all = { g = {}, u = {}, r = {} }, false
for entity, cap, limit, line in string.gmatch(ARGV[5], '(%a)(%d):(%d+):(%d+)') do
  local list = caps[entity]
  list[#list + 1] = { tonumber(cap), tonumber(limit), tonumber(line) }
  if entity == 'g' then counts_all = true end
end

-- Windows -------------------------------------------------------------------------------------------------------------

-- The first day of a month that is numbered year * 12 + month - 1, in days since 1970.
local function first_day(month)
  local y, m = floor(month / 12), month % 12 + 1
  if m <= 2 then y = y - 1 end
  local era = floor(y / 400)
  local yoe = y - era * 400
  local doy = floor((153 * (m > 2 and m - 3 or m + 9) + 2) / 5)
  return era * 146097 + yoe * 365 + floor(yoe / 4) - floor(yoe / 100) + doy - 719468
end

local function number(at)
  if kind == 'l' then return 0 end
  if kind ~= 'm' then return floor(at / size) end
  local z = floor(at / size) + 719468
  local era = floor(z / 146097)
  local doe = z - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local mp = floor((5 * (doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))) + 2) / 153)
  local m = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (m <= 2 and 1 or 0)) * 12 + m - 1
end

-- When nothing that was counted in this window counts any more.
local function ends(window)
  if kind == 'm' then return first_day(window + 1) * size end
  return (window + 1 + (kind == 'r' and SLICES or 0)) * size
end

local function ended(window, present, rolls)
  if rolls then return window < present - SLICES end
  return window < present
end

-- Counters ------------------------------------------------------------------------------------------------------------
-- A counter is a hash. Its field `c` is an array: 1 window, 2 warnings given (a bit for each cap), 3..10 used, 11..14 held,
-- 15 open holds, 16 the oldest slice of a rolling window (false: none), 17 the id of the hold that began it (a run's), 18 the
-- kind of its windows, 19 until when estimates keep it, 20 the end of its key that was set last (false: none), 21 what it was
-- converted from: the kind, the oldest window that counted, and the window that counts it now. A run has no windows; its 16
-- says when its time to live was set.
-- Used: input, cached, cache write, output, reasoning, cost, wall clock, estimated. Held: input, output, cost, wall clock.
-- A slice is the field `s` with its number.
local touched, counters = {}, {}
local windows = kind .. ARGV[3]

local function put(cell, field, value)
  cell.set[#cell.set + 1] = field
  cell.set[#cell.set + 1] = value
  cell.dirty = true
end
local function take(cell, field)
  cell.del[#cell.del + 1] = field
  cell.dirty = true
end

-- The budget's window was changed: what was used stays used until the present window of the new kind ends.
local function convert(cell)
  local c = cell.c
  for at = c[16] or 1, c[16] and c[1] or 0 do cell.del[#cell.del + 1] = 's' .. text(at) end
  c[21] = { c[18], string.sub(c[18], 1, 1) == 'r' and c[1] - SLICES or c[1], number(now) }
  c[1], c[16], c[18], cell.moved = number(now), false, windows, true
  if not cell.rolls then return end
  local s = { unpack(c, 3, 10) }
  cell.slices[c[1]], c[16] = s, c[1]
  put(cell, 's' .. text(c[1]), cmsgpack.pack(s))
end

local function counter(name, entity, fields)
  local cell = counters[name]
  if cell then
    if #fields == 0 then return cell, fields end
    return cell, redis.call('HMGET', name, unpack(fields))
  end
  local found = redis.call('HMGET', name, 'c', unpack(fields))
  local packed = table.remove(found, 1)
  local run = entity == 'r'
  cell = { name = name, caps = caps[entity], rolls = kind == 'r' and not run, run = run, made = not packed,
    set = {}, del = {}, slices = {} }
  if packed then
    cell.c = cmsgpack.unpack(packed)
    if not run and cell.c[18] ~= windows then convert(cell) end
  else
    cell.c = { run and 0 or number(now), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, false, false, windows, 0, false, false }
  end
  counters[name] = cell
  touched[#touched + 1] = cell
  return cell, found
end
local NONE = {}
local function all_users() return (counter(key('all'), 'g', NONE)) end
local function user_of(partition, fields)
  local cell, found = counter(key('u:' .. partition), 'u', fields or NONE)
  cell.partition = partition
  return cell, found
end
local function run_of(partition, run) return (counter(key('r:' .. partition .. ':' .. run), 'r', NONE)) end

-- What a cap has used and what is held.
local function numbers(c, cap)
  if cap == 1 then return min(c[3] + c[6], MAX), min(c[11] + c[12], MAX) end
  if cap == 2 then return c[3], c[11] end
  if cap == 3 then return c[6], c[12] end
  if cap == 4 then return c[8], c[13] end
  return c[9], c[14]
end
local function level(c, cap)
  local used, held = numbers(c, cap)
  return used + held
end
-- What the client reads off when a counter's quota comes back: the oldest slice, or the window it stands in.
local function stands(cell)
  if cell.rolls then return cell.c[16] or '' end
  return cell.c[1]
end
local function bit_of(cap) return bit.lshift(1, cap - 1) end

local function slice(cell, at)
  local found = cell.slices[at]
  if found == nil then
    local packed = redis.call('HGET', cell.name, 's' .. text(at))
    found = packed and cmsgpack.unpack(packed) or false
    cell.slices[at] = found
  end
  return found
end

-- Lets go of the slices that ended; warnings are armed again for what came below its line.
local function drop(cell, from, to)
  local c = cell.c
  local sum, front = { 0, 0, 0, 0, 0, 0, 0, 0 }, false
  for at = c[16], from do
    local s = slice(cell, at)
    if s and ended(at, to, true) then
      cell.slices[at] = false
      cell.del[#cell.del + 1] = 's' .. text(at)
    elseif s then
      front = front or at
      for i = 1, 8 do sum[i] = min(sum[i] + s[i], MAX) end
    end
  end
  for i = 1, 8 do c[2 + i] = sum[i] end
  c[16] = front
  for _, cap in ipairs(cell.caps) do
    if level(c, cap[1]) < cap[3] then c[2] = bit.band(c[2], bit.bnot(bit_of(cap[1]))) end
  end
end

-- Moves a counter on to a window, never back.
local function roll(cell, to)
  local c = cell.c
  local from = c[1]
  if to <= from then return end
  c[1] = to
  cell.moved = true
  if cell.rolls then
    if c[16] and ended(c[16], to, true) then drop(cell, from, to) end
  elseif kind ~= 'l' then
    for i = 2, 10 do c[i] = 0 end
  end
end

local function is_zero(used)
  for i = 1, 8 do
    if used[i] ~= 0 then return false end
  end
  return true
end

local function charge(cell, window, used)
  local c = cell.c
  local at = cell.run and 0 or min(window, c[1])
  if is_zero(used) or ended(at, c[1], cell.rolls) then return end
  for i = 1, 8 do c[2 + i] = min(c[2 + i] + used[i], MAX) end
  if not cell.rolls then return end
  local s = slice(cell, at) or { 0, 0, 0, 0, 0, 0, 0, 0 }
  for i = 1, 8 do s[i] = min(s[i] + used[i], MAX) end
  cell.slices[at] = s
  put(cell, 's' .. text(at), cmsgpack.pack(s))
  if not c[16] or at < c[16] then c[16] = at end
end

-- Names every cap whose use, held included, reached its line for the first time in this window.
local function warn(cell, entity, out)
  local c = cell.c
  for _, cap in ipairs(cell.caps) do
    local mark = bit_of(cap[1])
    if bit.band(c[2], mark) == 0 then
      local at = level(c, cap[1])
      if at >= cap[3] then
        c[2] = bit.bor(c[2], mark)
        out[#out + 1] = { entity, cap[1], cap[2], min(at, MAX) }
      end
    end
  end
end

-- Holds ---------------------------------------------------------------------------------------------------------------
-- A hold is the field `h` with its id in its user's hash, an array: 1 state (0 held, 1 sent, 2 estimated by its caller,
-- 3 expired), 2 run in hex, 3 number in the run, 4 terms, 5..8 granted, 9 end of the lease, 10 window, 11 when it was made,
-- 12 whether all users together are counted, 13 which life of the run (false: runs are not counted), 14 the kind of 10,
-- 15..22 what was charged, of one that is not open. The field `k` with run and number says which id is open.
local function is_open(rec) return rec[1] < 2 end

-- Calls `change` on every counter that a hold is kept in.
local function everywhere(partition, rec, warnings, change)
  if rec[12] then
    local all = all_users()
    change(all)
    all.dirty, all.counted = true, true
    if warnings then warn(all, 'g', warnings) end
  end
  local user = user_of(partition)
  change(user)
  user.dirty, user.counted = true, true
  if warnings then warn(user, 'u', warnings) end
  if rec[13] then
    local run = run_of(partition, rec[2])
    if run.c[17] == rec[13] then
      change(run)
      run.dirty, run.counted = true, true
      if warnings then warn(run, 'r', warnings) end
    end
  end
end

-- Moves the counters on to the present window. A clock that was set back leads into no old one.
local function enter(user, all)
  local window = max(number(now), user.c[1])
  if all then
    window = max(window, all.c[1])
    roll(all, window)
    all.dirty = all.dirty or all.moved and not all.made
  end
  roll(user, window)
  user.dirty = user.dirty or user.moved and not user.made
  return window
end

local function settle(partition, rec, used, window, warnings)
  everywhere(partition, rec, warnings, function(cell)
    local c = cell.c
    for i = 11, 14 do c[i] = max(c[i] - rec[i - 6], 0) end
    c[15] = max(c[15] - 1, 0)
    charge(cell, window, used)
  end)
end

-- Keeps a hold that ended with an estimate, the newest of a user.
local function keep(partition, id, rec, state, charged)
  local user = user_of(partition)
  rec[1] = state
  for i = 1, 8 do rec[14 + i] = charged[i] end
  put(user, 'h' .. id, cmsgpack.pack(rec))
  if not is_zero(charged) then user.c[19] = max(user.c[19], now + LONG) end
  user.estimates = user.estimates or {}
  user.estimates[#user.estimates + 1] = { text(rec[11]), id }
end

local undue, over = {}, {}
local function key_of(rec) return 'k' .. rec[2] .. text(rec[3]) end

-- Ends an open hold: what it keeps aside is given back, and `used` is counted in `window`.
local function finish(partition, id, rec, used, window, warnings)
  settle(partition, rec, used, window, warnings)
  take(user_of(partition), key_of(rec))
  undue[#undue + 1] = partition .. id
  over[#over + 1] = id
  rec[10], rec[14] = window, windows
end

-- The minute an id was drawn in, which stands in it below its proof.
local function minute_of(id)
  local a, b, c, d = string.byte(id, 7, 10)
  return floor((((a * 256 + b) * 256 + c) * 256 + d) / 60)
end

-- Remembers which holds ended, by the minute they were drawn in, and lets go of what is older than LATE, now and then some of
-- it. Up to which minute that was done is kept: what was let go is never read off a clock, which may be set back.
local function remember()
  local ended, past, tidy = {}, key('past'), false
  for i, id in ipairs(over) do
    ended[2 * i - 1], ended[2 * i] = text(minute_of(id)), id
    tidy = tidy or string.byte(id, 16) < 16
  end
  redis.call('ZADD', key('ended'), unpack(ended))
  if not tidy then
    redis.call('PEXPIRE', key('ended'), text(LONG / 1000))
    return
  end
  local oldest = text(floor((now - LATE) / 60000000) - 1)
  local old = redis.call('ZRANGEBYSCORE', key('ended'), '-inf', oldest, 'WITHSCORES', 'LIMIT', 0, 64)
  if #old > 0 then
    local ids = {}
    for i = 1, #old, 2 do ids[#ids + 1] = old[i] end
    redis.call('SET', past, text(max(tonumber(old[#old]), tonumber(redis.call('GET', past) or 0))))
    redis.call('ZREM', key('ended'), unpack(ids))
  end
  for _, name in ipairs({ key('ended'), past }) do redis.call('PEXPIRE', name, text(LONG / 1000)) end
end

-- Closes a hold whose lease ran out, as of the moment it did.
local function expire(partition, id, rec)
  local user = user_of(partition)
  enter(user, rec[12] and all_users())
  local charged = { 0, 0, 0, 0, 0, 0, 0, 0 }
  if rec[1] == 1 then
    charged = { rec[5], 0, 0, rec[6], 0, rec[7], rec[8], min(rec[5] + rec[6], MAX) }
  end
  local window = number(rec[9])
  -- Not before the hold was made: a clock that was set back must not carry the charge into an ended window.
  if rec[14] == windows then window = max(window, rec[10]) end
  finish(partition, id, rec, charged, window, nil)
  keep(partition, id, rec, 3, charged)
end

-- Settles the holds of the namespace that are due, a bounded number of them; 1 when there may be more.
local function sweep()
  local due = redis.call('ZRANGEBYSCORE', key('due'), '-inf', text(now), 'LIMIT', 0, SWEEP)
  for _, member in ipairs(due) do
    local partition, id = string.sub(member, 1, 64), string.sub(member, 65)
    local _, found = user_of(partition, { 'h' .. id })
    if found[1] then
      expire(partition, id, cmsgpack.unpack(found[1]))
    else
      undue[#undue + 1] = member
    end
  end
  return #due == SWEEP and 1 or 0
end

-- The hold with this id as it stands now: one that is due is closed first.
local function hold_of(partition, id)
  local user, found = user_of(partition, { 'h' .. id })
  -- The sweep of this very call may have changed it.
  for i = #user.set - 1, 1, -2 do
    if user.set[i] == 'h' .. id then
      found[1] = user.set[i + 1]
      break
    end
  end
  if not found[1] then return user, nil end
  local rec = cmsgpack.unpack(found[1])
  if is_open(rec) and rec[9] <= now then expire(partition, id, rec) end
  return user, rec
end

-- When the keys of a counter may go; false: not at all. Not while a hold of it is open, however long nobody calls. Then a
-- while after its window, or with its last estimate: use alone prolongs nothing, and what a counter says never depends on it.
local function goes(c)
  if kind == 'l' or c[15] > 0 then return false end
  return max(ends(c[1]) + outlive, c[19])
end

local function set_end(name, at)
  if at then
    redis.call('PEXPIRE', name, text(max(math.ceil((at - now) / 1000), 1)))
  else
    redis.call('PERSIST', name)
  end
end

-- A user who used nothing needs no memory, and a refund leaves nothing behind.
local function is_blank(cell)
  local c = cell.c
  if c[2] ~= 0 or c[16] then return false end
  for i = 3, 15 do
    if c[i] ~= 0 then return false end
  end
  return true
end

-- Writes what was touched, and nothing before: a server that is full refuses the first write that needs room, and then
-- nothing was done. What only takes away comes first, so that a close gets through.
local function save()
  for i = 1, #undue, 500 do redis.call('ZREM', key('due'), unpack(undue, i, min(i + 499, #undue))) end
  for _, cell in ipairs(touched) do
    if cell.dirty and #cell.del > 0 then redis.call('HDEL', cell.name, unpack(cell.del)) end
  end
  for _, cell in ipairs(touched) do
    if cell.dirty then
      local list = cell.partition and key('e:' .. cell.partition)
      local c, moved = cell.c, false
      -- A hold that is merely sent or extended changes no counter.
      if cell.counted or cell.moved then
        if cell.run then
          moved = not (c[16] and now - c[16] <= LONG / 35)
          if moved then c[16] = now end
        else
          local at = goes(c)
          moved = at ~= c[20]
          c[20] = at
        end
        put(cell, 'c', cmsgpack.pack(c))
      end
      redis.call('HSET', cell.name, unpack(cell.set))
      for _, one in ipairs(cell.estimates or NONE) do redis.call('ZADD', list, one[1], one[2]) end
      if cell.unlisted then redis.call('ZREM', list, unpack(cell.unlisted)) end
      if cell.estimates then
        local over = redis.call('ZCARD', list) - KEEP
        local old = over > 0 and redis.call('ZPOPMIN', list, over) or NONE
        for i = 1, #old, 2 do redis.call('HDEL', cell.name, 'h' .. old[i]) end
      end
      if cell.run then
        if moved then redis.call('PEXPIRE', cell.name, text(LONG / 1000)) end
      else
        if moved then set_end(cell.name, c[20]) end
        if list and (moved or cell.estimates) then set_end(list, c[20]) end
      end
      if list and is_blank(cell) and redis.call('HLEN', cell.name) <= 3 and redis.call('EXISTS', list) == 0 then
        redis.call('UNLINK', cell.name)
      end
    end
  end
  if #over > 0 then remember() end
end
