-- Let a lease go, if it is the node's own.
--
-- KEYS[1] the lease: its holder's name, string
-- ARGV[1] node

if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
