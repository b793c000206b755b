-- Let an endpoint that was stopped be sent to again.
--
-- KEYS[1] endpoints, hash: name -> why nothing is sent to it, or ''
-- ARGV[4] name
-- Returns 1 if it was stopped, otherwise 0.

local why = redis.call('HGET', KEYS[1], ARGV[4])
if why and why ~= '' then
  redis.call('HSET', KEYS[1], ARGV[4], '')
  return 1
end
return 0
