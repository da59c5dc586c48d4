-- The key that says that the charge of a hold which the server never kept is counted.
local function marker_of(partition, id)
  local hex = string.gsub(id, '.', function(c) return string.format('%02x', string.byte(c)) end)
  return key('b:' .. partition .. ':' .. hex)
end
