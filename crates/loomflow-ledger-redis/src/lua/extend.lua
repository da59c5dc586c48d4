-- Moves the end of a lease.
sweep()
local id, lease = ARGV[7], tonumber(ARGV[8])
local user, rec = hold_of(ARGV[6], id)
local open = rec and is_open(rec)
if open then
  rec[9] = now + lease
  put(user, 'h' .. id, cmsgpack.pack(rec))
end
save()
if open then redis.call('ZADD', key('due'), text(rec[9]), ARGV[6] .. id) end
return { 0, open and 'done' or 'gone' }
