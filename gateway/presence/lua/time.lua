-- Read Redis's clock. As a script, so that in a Cluster it is that of the node which has the keys.
--
-- KEYS and ARGV: none of its own
-- Returns {seconds, microseconds}.

return redis.call('TIME')
