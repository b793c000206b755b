-- End connections of a node whose lease ran out. When it has none left, the node is forgotten.
--
-- KEYS[7] dying, as in renew.lua  [8] node  [9…] user and recent of each connection, in turn
-- ARGV[4] node  [5] milliseconds that its users stay online
--     then for each connection: user, connection
-- Returns {position, 1 if the node has more connections or 0, transitions}, the others as in result().

local node, hold = ARGV[4], tonumber(ARGV[5])
local ran_out = tonumber(redis.call('ZSCORE', LEASES, node))
if ran_out and NOW >= delayed(ran_out) then
  redis.call('ZREM', LEASES, node)
  redis.call('ZADD', KEYS[7], ran_out, node)
end
ran_out = tonumber(redis.call('ZSCORE', KEYS[7], node))
if not ran_out then -- it came back, or another node was quicker
  return result(false)
end
for i = 0, (#KEYS - 8) / 2 - 1 do
  local id, connection = ARGV[6 + 2 * i], ARGV[7 + 2 * i]
  if redis.call('HDEL', KEYS[8], connection) == 1 then
    local user = load(id, KEYS[9 + 2 * i], KEYS[10 + 2 * i])
    forget(user, connection, 'node died', hold, delayed(ran_out))
    settle(user, NOW, 'node died')
    save(user)
  end
end
local more = redis.call('HLEN', KEYS[8]) > 0
if not more then
  redis.call('ZREM', KEYS[7], node)
end
return result(more)
