-- Replace the details of a registered connection; one that is not registered is ignored.
--
-- KEYS[7] node
-- ARGV[4] connection  [5] the connection as JSON
-- Returns result().

if redis.call('HEXISTS', KEYS[7], ARGV[4]) == 1 then
  redis.call('HSET', KEYS[7], ARGV[4], ARGV[5])
end
return result()
