-- Count a connection for its user.
--
-- KEYS[6] node  [7] user  [8] recent
-- ARGV[4] node  [5] user  [6] connection  [7] the connection as JSON  [8] its profile as JSON, or ''
-- Returns result(whether a running grace was resumed from); LEASE where the node holds none.

local node, id, connection = ARGV[4], ARGV[5], ARGV[6]
if not holds_lease(node) then
  return LEASE_LOST
end
local user = user_at(NOW, id, KEYS[7], KEYS[8])
local resumed = user.grace_until and NOW < delayed(user.grace_until)
if redis.call('HSETNX', KEYS[7], 'c:' .. connection, node) == 1 then
  redis.call('HSET', KEYS[6], connection, ARGV[7])
  user.connections = user.connections + 1
  set(user, 'grace_until', nil)
  set(user, 'ending', nil)
  note(user, {
    active_at = user.status == 'offline' and NOW or nil,
    profile = ARGV[8] ~= '' and ARGV[8] or nil,
  })
  settle(user, NOW, 'connected')
end
save(user)
return result(resumed)
