-- Ends a hold and counts what was really used; or puts what was invoiced in the place of an estimate.
local partition, id, invoiced, estimated = ARGV[6], ARGV[7], ARGV[8] == 'invoiced', ARGV[8] == 'estimated'
local used = {}
for i = 1, 8 do used[i] = tonumber(ARGV[8 + i]) end

sweep()
local user, rec = hold_of(partition, id)
if not rec then
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

local warnings, window, duplicate = {}, rec[10], 0
local present = enter(user, (counts_all or rec[12]) and all_users())
if is_open(rec) then
  window = present
  settle(partition, rec, used, window, warnings)
  take(user, key_of(rec))
  undue[#undue + 1] = partition .. id
else
  if not invoiced then duplicate = 1 end
  local charged = { unpack(rec, 14, 21) }
  -- An invoice says nothing of time.
  if invoiced then used[7] = charged[7] end
  everywhere(partition, rec, warnings, function(cell)
    uncharge(cell, window, charged)
    charge(cell, window, used)
  end)
end
if estimated then
  keep(partition, id, rec, 2, used, window)
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
