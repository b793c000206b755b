-- End a connection.
--
-- KEYS[7] node  [8] user  [9] recent
-- ARGV[4] node  [5] user  [6] connection  [7] how it ended  [8] milliseconds that the user stays online
--     [9] when the user was last active, or '' if that is known
-- Returns result(). Error LEASE if the node holds no lease.

local node, id, connection = ARGV[4], ARGV[5], ARGV[6]
if not holds_lease(node) then
  return LEASE_LOST
end
local user = user_at(NOW, id, KEYS[8], KEYS[9])
if redis.call('HDEL', KEYS[7], connection) == 1 then
  note(user, { active_at = tonumber(ARGV[9]) })
  forget(user, connection, ARGV[7], tonumber(ARGV[8]), NOW)
  settle(user, NOW, ARGV[7])
end
save(user)
return result()
