-- Takes the name off a user's counter, and lets no scope from before put it back. What was counted stays.
local more = sweep()
save()
local user, erased = key('u:' .. ARGV[6]), key('x:' .. ARGV[6])
local named = redis.call('HEXISTS', user, 'n')
redis.call('HDEL', user, 'n', 'u')
if (redis.call('GET', erased) or '') < ARGV[7] then redis.call('SET', erased, ARGV[7]) end
return { 0, 'done', named, redis.call('EXISTS', user) }
