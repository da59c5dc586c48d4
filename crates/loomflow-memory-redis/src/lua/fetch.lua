-- The named rows of a hash, and their vectors.
local kind, vectors = ARGV[2], ARGV[3]
local ids = {}
for i = 4, #ARGV do ids[#ids + 1] = ARGV[i] end
touch()
local with = false
if vectors ~= '' then with = redis.call('HMGET', key(vectors), unpack(ids)) end
local rows = false
if kind ~= '' then rows = redis.call('HMGET', key(kind), unpack(ids)) end
return { rows, with, redis.call('HGET', key('m'), 'model') }
