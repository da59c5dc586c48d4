-- What a user, or all users together, used and hold: the counter as it stands in the present window, and whose it is.
local more = sweep()
local cell, found
if ARGV[7] == 'all' then cell = all_users() else cell, found = user_of(ARGV[6], { 'n', 'u' }) end
save()
-- Looking changes nothing: it is moved on here, and not written.
roll(cell, number(now))
local out = { more, cell.made and 'nobody' or 'used', now, stands(cell) }
for i = 3, 15 do out[#out + 1] = cell.c[i] end
out[#out + 1] = found and found[1] or ''
out[#out + 1] = found and found[2] or ''
return out
