-- Read what was said in a channel, newest first.
--
-- KEYS[1] the id of the bus's last entry, string  [2] the same when channels began, string  [3] history, as in say.lua
-- ARGV[1] the id behind which to read  [2] how many entries at the most
-- Returns the first two keys, and the entries.

local position = redis.call('GET', KEYS[1]) or '0-0'
redis.call('SET', KEYS[2], position, 'NX')
return { position, redis.call('GET', KEYS[2]), redis.call('XREVRANGE', KEYS[3], '+', '(' .. ARGV[1], 'COUNT', ARGV[2]) }
