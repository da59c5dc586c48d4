-- What every script begins with. KEYS[1] is what all keys of the tenant begin with; ARGV[1] is the idle time to live in
-- milliseconds, '0' for none.
local base = KEYS[1]
local function key(kind) return base .. ':' .. kind end
local DATA = { 'm', 'ep', 'ix', 'or', 'os', 'ev', 'bl', 'fa', 'fb', 'fv' }
local function hex(bytes) return (string.gsub(bytes, '.', function(c) return string.format('%02x', string.byte(c)) end)) end

-- Everything of a tenant expires together; the epoch never does.
local function touch()
  if ARGV[1] == '0' then return end
  for _, kind in ipairs(DATA) do redis.call('PEXPIRE', key(kind), ARGV[1]) end
end

-- model, dimensions, version, version of facts, newest known_from
local function meta() return redis.call('HMGET', key('m'), 'model', 'dim', 'ver', 'fver', 'newest') end

-- The epoch, and that of the last erasure of everything: 20 decimal digits each.
local function epoch()
  local stored = redis.call('GET', key('e'))
  if not stored then return '00000000000000000000', '00000000000000000000' end
  return string.sub(stored, 1, 20), string.sub(stored, 21, 40)
end

-- A number of Lua is exact below 2^53, so 20 digits are compared in two halves.
local function newer(a, b)
  local a1, b1 = tonumber(string.sub(a, 1, 10)), tonumber(string.sub(b, 1, 10))
  if a1 ~= b1 then return a1 > b1 end
  return tonumber(string.sub(a, 11, 20)) > tonumber(string.sub(b, 11, 20))
end

-- Where an entry of the search index lies: `dim:rest`, as the list of entries names it.
local function entry(search, name)
  local dim, rest = string.match(name, '^(%d+):(.*)$')
  return search .. dim .. ':' .. string.match(base, '{.*}') .. ':' .. rest
end

-- Removes at most `n` entries of the search index that an erasure left behind; true while there are more.
local function sweep(search, n)
  local first = redis.call('LINDEX', key('t'), 0)
  if not first then return false end
  local list = key('t' .. first)
  for _, name in ipairs(redis.call('SPOP', list, n)) do redis.call('UNLINK', entry(search, name)) end
  if redis.call('EXISTS', list) == 0 then redis.call('LPOP', key('t')) end
  return redis.call('EXISTS', key('t')) == 1
end
