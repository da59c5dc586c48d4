-- Every write but the erasure of everything: guards first, then the changes, all or nothing.
local mode, scope_epoch = ARGV[2], ARGV[3]
local known_kind, known_id = ARGV[4], ARGV[5]
local model, dim = ARGV[6], ARGV[7]
local expect_field, expected = ARGV[8], ARGV[9]
local namespace, user = ARGV[10], ARGV[11]
local newest, seed, search, partition = ARGV[12], ARGV[13], ARGV[14], ARGV[15]

local stored_epoch, generation = epoch()
if mode == 'erase' then
  if not newer(scope_epoch, stored_epoch) then return { 'conflict' } end
elseif newer(stored_epoch, scope_epoch) then
  return { 'erased' }
end
if known_kind ~= '' and redis.call('HEXISTS', key(known_kind), known_id) == 1 then return { 'known' } end
local m = meta()
if model ~= '' and m[1] and (m[1] ~= model or m[2] ~= dim) then return { 'space', m[1], m[2] } end
if expect_field == 'ver' and (m[3] or '') ~= expected then return { 'moved' } end
if expect_field == 'fver' and (m[4] or '') ~= expected then return { 'moved' } end
if mode == 'look' then return { 'ok' } end

local FIRST = 16
-- A memory that is full refuses the first command that needs room, and then nothing was done. An erasure has to work all
-- the same, so it begins with a command that is never refused; after it, none is.
if mode == 'erase' then redis.call('HDEL', key('m'), '-') end
local i = FIRST
while i <= #ARGV do
  local op, kind, field, value = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if op == 'set' then
    redis.call('HSET', key(kind), field, value)
  elseif op == 'setnx' then
    redis.call('HSETNX', key(kind), field, value)
  elseif op == 'del' then
    redis.call('HDEL', key(kind), field)
  elseif op == 'add' then
    redis.call('ZADD', key(kind), 0, field)
  elseif op == 'rem' then
    redis.call('ZREM', key(kind), field)
  elseif op == 'block' then
    -- Ten digits of place come before a block's text; a block that says none keeps its place.
    local old = redis.call('HGET', key('bl'), field)
    if not old and redis.call('HLEN', key('bl')) >= tonumber(kind) then return { 'full' } end
    if string.sub(value, 1, 10) == '----------' then
      value = (old and string.sub(old, 1, 10) or '0000000000') .. string.sub(value, 11)
    end
    redis.call('HSET', key('bl'), field, value)
  elseif op == 'copy' then
    local vector = redis.call('HGET', key(kind), value)
    if vector then redis.call('HSET', key(kind), field, vector) end
  elseif op == 'index' then
    -- In the search index a vector stands a second time, under a name without anything that a user chose.
    local vector = redis.call('HGET', key(kind == 'e' and 'ev' or 'fv'), field)
    if vector then
      local name = string.len(vector) / 4 .. ':' .. generation .. kind .. hex(field)
      redis.call('HSET', entry(search, name), 'p', partition, 'g', generation .. kind, 'v', vector)
      redis.call('SADD', key('vd'), name)
    end
  elseif op == 'unindex' and m[2] then
    local name = m[2] .. ':' .. generation .. kind .. hex(field)
    if redis.call('SREM', key('vd'), name) == 1 then redis.call('UNLINK', entry(search, name)) end
  end
  i = i + 4
end

if mode == 'erase' then redis.call('SET', key('e'), scope_epoch .. generation) end
if redis.call('HEXISTS', key('m'), 'n') == 0 then
  if mode == 'erase' then return { 'ok' } end
  redis.call('HSET', key('m'), 'n', namespace, 'ver', seed, 'fver', seed)
  if user ~= '' then redis.call('HSET', key('m'), 'u', string.sub(user, 2)) end
end
if model ~= '' then redis.call('HSET', key('m'), 'model', model, 'dim', dim) end
if newest ~= '' then
  redis.call('HSET', key('m'), 'newest', newest)
elseif mode == 'erase' then
  redis.call('HDEL', key('m'), 'newest')
end
redis.call('HINCRBY', key('m'), 'ver', 1)
if newest ~= '' or mode == 'erase' then redis.call('HINCRBY', key('m'), 'fver', 1) end
touch()
sweep(search, 64)
return { 'ok' }
