-- Ends a hold and counts what was really used; or puts what was invoiced in the place of an estimate.

local function uncharge(cell, window, used)
  local c = cell.c
  local at = cell.run and 0 or min(window, c[1])
  if ended(at, c[1], cell.rolls) then return end
  for i = 1, 8 do c[2 + i] = max(c[2 + i] - used[i], 0) end
  local s = cell.rolls and slice(cell, at)
  if not s then return end
  for i = 1, 8 do s[i] = max(s[i] - used[i], 0) end
  put(cell, 's' .. text(at), cmsgpack.pack(s))
end

-- Puts `used` in the place of what a hold was charged, in the window it was charged in. Where the budget's windows were
-- changed since, that is the window which counts it now; one that is over counts no more.
local function correct(partition, rec, charged, used, warnings)
  everywhere(partition, rec, warnings, function(cell)
    local window, from = rec[10], cell.c[21]
    if not cell.run and rec[14] ~= windows then
      if not from or from[1] ~= rec[14] or window < from[2] then return end
      window = from[3]
    end
    uncharge(cell, window, charged)
    charge(cell, window, used)
  end)
end

local function unlist(user, id)
  user.unlisted = user.unlisted or {}
  user.unlisted[#user.unlisted + 1] = id
end

-- Whether a hold that was granted and is not here never ended: the server lost it with its last writes. Only for as long as
-- ends are remembered; after that whatever is not here counts as closed.
local function was_lost(id)
  local minute = minute_of(id)
  if (minute + 1) * 60000000 + LATE <= now or minute <= tonumber(redis.call('GET', key('past')) or 0) then return false end
  return not redis.call('ZSCORE', key('ended'), id)
end

local partition, id, invoiced, estimated = ARGV[6], ARGV[7], ARGV[8] == 'invoiced', ARGV[8] == 'estimated'
local used = {}
for i = 1, 8 do used[i] = tonumber(ARGV[8 + i]) end
local granted = ARGV[17] == '1'

sweep()
local user, rec = hold_of(partition, id)
local warnings, duplicate = {}, 0

-- Charges a hold that was granted and that the server does not know: it was lost, or is not booked yet. Its run is not known.
local function charge_unknown(marker)
  local window = enter(user, counts_all and all_users())
  rec = { 0, '', 0, '', 0, 0, 0, 0, now, window, now, counts_all, false, windows }
  everywhere(partition, rec, warnings, function(cell) charge(cell, window, used) end)
  save()
  redis.call('SET', marker, '', 'PX', text(LONG / 1000))
  return { 0, 'settled', 0, min(used[1] + used[4], MAX), warnings }
end

if not rec then
  if granted and was_lost(id) then
    local marker = marker_of(partition, id)
    if redis.call('EXISTS', marker) == 0 then return charge_unknown(marker) end
  end
  save()
  return { 0, 'gone' }
end
if invoiced and is_open(rec) then
  save()
  return { 0, 'open' }
end
if rec[1] == 2 and not invoiced then
  save()
  return { 0, 'settled', 1, 0, {} }
end

local present = enter(user, (counts_all or rec[12]) and all_users())
if is_open(rec) then
  finish(partition, id, rec, used, present, warnings)
else
  if not invoiced then duplicate = 1 end
  local charged = { unpack(rec, 15, 22) }
  -- An invoice says nothing of time.
  if invoiced then used[7] = charged[7] end
  correct(partition, rec, charged, used, warnings)
end
if estimated then
  keep(partition, id, rec, 2, used)
else
  for i = #user.set - 1, 1, -2 do
    if user.set[i] == 'h' .. id then
      table.remove(user.set, i + 1)
      table.remove(user.set, i)
    end
  end
  take(user, 'h' .. id)
  if not is_open(rec) then unlist(user, id) end
end
save()
local excess = max(used[1] + used[4] - (rec[5] + rec[6]), 0)
return { 0, 'settled', duplicate, min(excess, MAX), warnings }
