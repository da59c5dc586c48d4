-- Whose rows of a hash are, each owner once, and the next cursor: of the named rows, or of a page of all.
local kind, cursor, page = ARGV[2], ARGV[3], ARGV[4]
touch()
local rows, next = {}, '0'
if #ARGV > 4 then
  for i = 5, #ARGV do rows[#rows + 1] = redis.call('HGET', key(kind), ARGV[i]) or nil end
else
  local found = redis.call('HSCAN', key(kind), cursor, 'COUNT', page)
  next = found[1]
  for i = 2, #found[2], 2 do rows[#rows + 1] = found[2][i] end
end
local seen, out = {}, {}
for _, row in ipairs(rows) do
  -- The owner comes first. In a text of JSON a quote is escaped, so that this is where the record begins.
  local from, to = string.find(row, '{', 1, true), string.find(row, ',"v":', 1, true)
  local owner = from and to and string.sub(row, from, to - 1) .. ',"v":null}' or ''
  if not seen[owner] then
    seen[owner] = true
    out[#out + 1] = owner
  end
end
return { next, out }
