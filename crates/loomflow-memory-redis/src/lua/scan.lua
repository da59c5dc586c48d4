-- A hash whole while it is small, else a page of it: meta, generation, next cursor, entries, vectors (of a small one).
local kind, cursor, page, vectors, room = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
touch()
local m = meta()
local _, generation = epoch()
if cursor == '' and redis.call('HLEN', key(kind)) <= page then
  local with = false
  if vectors ~= '' and m[2] and redis.call('HLEN', key(vectors)) * tonumber(m[2]) * 4 <= room then
    with = redis.call('HGETALL', key(vectors))
  end
  return { m, generation, '0', redis.call('HGETALL', key(kind)), with }
end
if cursor == '' then cursor = '0' end
local found = redis.call('HSCAN', key(kind), cursor, 'COUNT', page)
return { m, generation, found[1], found[2], false }
