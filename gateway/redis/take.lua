-- Hold a lease, or renew it.
--
-- KEYS[1] the lease: its holder's name, string
-- ARGV[1] node  [2] milliseconds
-- Returns 1, or 0 where another node holds it.

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
