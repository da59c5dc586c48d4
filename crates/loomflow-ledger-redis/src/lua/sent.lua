-- Records that the request is about to leave.
sweep()
local id = ARGV[7]
local user, rec = hold_of(ARGV[6], id)
local open = rec and is_open(rec)
if open then
  rec[1] = 1
  put(user, 'h' .. id, cmsgpack.pack(rec))
end
save()
return { 0, open and 'done' or 'gone' }
