-- A page of an order, newest first: members, each with the head of its entry in the index.
local order, max, min, count = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
touch()
local out = {}
for _, member in ipairs(redis.call('ZREVRANGEBYLEX', key(order), max, min, 'LIMIT', 0, count)) do
  out[#out + 1] = member
  out[#out + 1] = string.sub(redis.call('HGET', key('ix'), string.sub(member, -16)) or '', 1, 29)
end
return { meta(), out }
