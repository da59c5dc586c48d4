-- Sets aside what a call may cost, against every cap at once, or refuses without setting anything aside.
local partition, id, run, seq, terms = ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10]
local lease, input, output = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local least, wall, least_wall = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
-- The price: '?' where money is spent and nobody knows how much.
local price = { ARGV[17] ~= '?' and tonumber(ARGV[17]) or false, tonumber(ARGV[18]), tonumber(ARGV[19]) }
local namespace, name, epoch = ARGV[20], ARGV[21], ARGV[22]

local more = sweep()
local field = 'k' .. run .. text(seq)
local user, found = user_of(partition, { field, 'n' })
if found[1] then
  local _, rec = hold_of(partition, found[1])
  if rec and is_open(rec) then
    save()
    if rec[4] ~= terms then return { more, 'conflict' } end
    return { more, 'held', found[1], rec[6], rec[8] }
  end
end

local all = counts_all and all_users()
local window = enter(user, all)
local life = #caps.r > 0 and run_of(partition, run)
local levels = { { 'g', all }, { 'u', user }, { 'r', life } }

local function refuse(why, entity, cell, cap, needed)
  save()
  local used, held = numbers(cell.c, cap[1])
  return { more, why, entity, cap[1], cap[2], used, held, needed, now, stands(cell) }
end

if ARGV[17] == '?' then
  for _, at in ipairs(levels) do
    for _, cap in ipairs(caps[at[1]]) do
      if cap[1] == 4 then return refuse('unpriced', at[1], at[2], cap, 0) end
    end
  end
end
local function beyond()
  save()
  return { more, 'beyond' }
end

local least_cost = cost(price, least)
if not least_cost then return beyond() end
local needs = { input + least, input, least, least_cost, least_wall }
for _, at in ipairs(levels) do
  local cell = at[2]
  for _, cap in ipairs(caps[at[1]]) do
    if needs[cap[1]] > max(cap[2] - level(cell.c, cap[1]), 0) then
      return refuse('exhausted', at[1], cell, cap, needs[cap[1]])
    end
  end
  for _, cap in ipairs(caps[at[1]]) do
    local which, room = cap[1], max(cap[2] - level(cell.c, cap[1]), 0)
    if which == 1 then output = min(output, room - input)
    elseif which == 3 then output = min(output, room)
    elseif which == 4 then output = affordable(price, room, output)
    elseif which == 5 then wall = min(wall, room) end
  end
end

local amounts = { input, output, cost(price, output), wall }
if not amounts[3] then return beyond() end
for _, at in ipairs(levels) do
  if at[2] then
    local c = at[2].c
    local used = { c[3], c[6], c[8], c[9] }
    for i = 1, 4 do
      if used[i] + c[10 + i] + amounts[i] > MAX then return beyond() end
    end
    if level(c, 1) + input + output > MAX then return beyond() end
  end
end

if life and not life.c[17] then life.c[17] = id end
local expires = now + lease
local rec = { 0, run, seq, terms, amounts[1], amounts[2], amounts[3], amounts[4], expires, window, now, counts_all,
  life and life.c[17], windows }
local warnings = {}
everywhere(partition, rec, warnings, function(cell)
  local c = cell.c
  for i = 1, 4 do c[10 + i] = c[10 + i] + amounts[i] end
  c[15] = c[15] + 1
end)
put(user, 'h' .. id, cmsgpack.pack(rec))
put(user, field, id)
-- The name goes beside the counter, but for a scope from before the user's erasure.
if not found[2] and (redis.call('GET', key('x:' .. partition)) or '') <= epoch then
  put(user, 'n', namespace)
  put(user, 'u', name)
end
save()
redis.call('ZADD', key('due'), text(expires), partition .. id)
return { more, 'held', id, amounts[2], amounts[4], warnings }
