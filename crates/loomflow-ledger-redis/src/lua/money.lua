-- Money, exact in doubles. A price is: nano-dollars and left-over pico-dollars of the prompt, pico-dollars for each
-- generated token (below 9e12). `price[1]` is false where it is not known.

-- The most that a call with `n` generated tokens can cost, rounded up once; false beyond MAX.
local function cost(price, n)
  if not price[1] then return 0 end
  local whole, rest = floor(price[3] / 1000), price[3] % 1000
  if whole > 0 and n > floor(MAX / whole) then return false end
  local nano = price[1] + n * whole
  if nano > MAX then return false end
  nano = nano + math.ceil((price[2] + n * rest) / 1000)
  return nano <= MAX and nano
end

-- The most generated tokens, up to `wanted`, whose cost is within `room`.
local function affordable(price, room, wanted)
  local rate = price[3]
  if not price[1] or rate == 0 then return wanted end
  local left = room - price[1]
  if left < 0 then return 0 end
  local q, r = floor(left / rate), left % rate
  if q > wanted then return wanted end
  return max(0, min(wanted, q * 1000 + floor((r * 1000 - price[2]) / rate)))
end
