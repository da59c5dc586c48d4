-- The believed rows in a range of (subject, predicate, object): meta, then ids and rows.
touch()
local out = {}
for _, member in ipairs(redis.call('ZRANGEBYLEX', key('fb'), ARGV[2], ARGV[3])) do
  local id = string.sub(member, -16)
  out[#out + 1] = id
  out[#out + 1] = redis.call('HGET', key('fa'), id)
end
return { meta(), out }
