-- The erasure of everything: a fixed number of keys, whose memory the server frees in the background. Entries of the search
-- index are named by generation, so they are out of reach from here on, and listed for `sweep`.
local scope_epoch = ARGV[2]
local stored_epoch = epoch()
if not newer(scope_epoch, stored_epoch) then return { 'conflict' } end
local counts = { redis.call('HLEN', key('ep')), redis.call('HLEN', key('fa')), redis.call('HLEN', key('bl')) }
for _, kind in ipairs(DATA) do redis.call('UNLINK', key(kind)) end
redis.call('SET', key('e'), scope_epoch .. scope_epoch)
local left = redis.call('EXISTS', key('vd'))
if left == 1 then
  redis.call('RENAME', key('vd'), key('t' .. scope_epoch))
  redis.call('RPUSH', key('t'), scope_epoch)
end
return { 'ok', counts[1], counts[2], counts[3] }
