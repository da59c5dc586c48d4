-- Counts what was granted during an outage, once: in the window it was closed in, or in none if that ended. Says whether a cap
-- is exceeded now.
local partition, id, run, seq = ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
local closed, estimated, granted = tonumber(ARGV[10]), ARGV[11], tonumber(ARGV[12])
local namespace, name, epoch = ARGV[13], ARGV[14], ARGV[15]
local used = {}
for i = 1, 8 do used[i] = tonumber(ARGV[15 + i]) end

sweep()
local user, found = user_of(partition, { 'n' })
local all = counts_all and all_users()
enter(user, all)
local life = #caps.r > 0 and run_of(partition, run)
local marker = marker_of(partition, id)
local known = redis.call('EXISTS', marker) == 1
if not known then
  if life and not life.c[17] then life.c[17] = id end
  local window = number(closed)
  local rec = { 0, run, seq, '', granted, 0, 0, 0, closed, window, closed, counts_all, life and life.c[17], windows }
  everywhere(partition, rec, nil, function(cell) charge(cell, window, used) end)
  if estimated ~= '' then keep(partition, id, rec, tonumber(estimated), used) end
  if not found[1] and (redis.call('GET', key('x:' .. partition)) or '') <= epoch then
    put(user, 'n', namespace)
    put(user, 'u', name)
  end
end
save()
if not known then redis.call('SET', marker, '', 'PX', text(LONG / 1000)) end

local exceeded = 0
for _, cell in ipairs({ user, all or nil, life or nil }) do
  for _, cap in ipairs(cell.caps) do
    if level(cell.c, cap[1]) > cap[2] then exceeded = 1 end
  end
end
return { 0, known and 'known' or 'done', exceeded }
