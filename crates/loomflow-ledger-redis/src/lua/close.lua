-- Ends a hold and counts what was really used; or puts what was invoiced in the place of an estimate.
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
