-- Whose it is, and how much of it there is.
touch()
local whose = redis.call('HMGET', key('m'), 'n', 'u')
local last = redis.call('ZREVRANGEBYLEX', key('or'), '+', '-', 'LIMIT', 0, 1)
return { whose, redis.call('HLEN', key('ep')), redis.call('HLEN', key('fa')), redis.call('HLEN', key('bl')), last }
