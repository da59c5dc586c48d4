-- The charges of a user that are estimates and that an invoice can correct, oldest hold first, and whose they are.
local more = sweep()
save()
local ids = redis.call('ZRANGE', key('e:' .. ARGV[6]), 0, -1)
local name = redis.call('HMGET', key('u:' .. ARGV[6]), 'n', 'u')
local out = {}
for _, id in ipairs(ids) do
  local packed = redis.call('HGET', key('u:' .. ARGV[6]), 'h' .. id)
  local rec = packed and cmsgpack.unpack(packed)
  if rec and rec[1] >= 2 and rec[15] + rec[16] + rec[17] + rec[18] + rec[19] + rec[20] > 0 then
    out[#out + 1] = { id, rec[2], rec[3], rec[1] == 3 and 1 or 0, unpack(rec, 15, 22) }
  end
end
return { more, 'estimates', name[1] or '', name[2] or '', out }
