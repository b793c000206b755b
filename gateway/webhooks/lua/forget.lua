-- Delete an endpoint, with its queue and its dead letters.
--
-- KEYS[1] endpoints, hash: name -> why nothing is sent to it, or ''  [2] its queue  [3] its dead letters
-- ARGV[4] name
-- Returns {how many events waited, how many dead letters there were}; nil if the endpoint was not known.

if redis.call('HDEL', KEYS[1], ARGV[4]) == 0 then
  return false
end
local lengths = { redis.call('XLEN', KEYS[2]), redis.call('XLEN', KEYS[3]) }
redis.call('UNLINK', KEYS[2], KEYS[3])
return lengths
