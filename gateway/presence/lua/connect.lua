-- Register a connection for its user.
--
-- KEYS[7] node  [8] user  [9] recent  [10] the user's queue of notifications, of which only its existence is asked
-- ARGV[4] node  [5] user  [6] connection  [7] the connection as JSON  [8] its profile as JSON, or ''
-- Returns result(), followed by 1 if notifications wait for the user or 0. Error LEASE if the node holds no lease.

local node, id, connection = ARGV[4], ARGV[5], ARGV[6]
if not holds_lease(node) then
  return LEASE_LOST
end
local user = user_at(NOW, id, KEYS[8], KEYS[9])
local resumed = user.grace_until and NOW < grace_end(user)
if redis.call('HSETNX', KEYS[8], 'c:' .. connection, node) == 1 then
  redis.call('HSET', KEYS[7], connection, ARGV[7])
  user.connections = user.connections + 1
  set(user, 'grace_until', nil)
  set(user, 'ending', nil)
  set(user, 'lost_at', nil)
  set(user, 'opened', user.opened and user.opened + 1)
  note(user, {
    active_at = user.status == 'offline' and NOW or nil,
    profile = ARGV[8] ~= '' and ARGV[8] or nil,
  })
  opener = ARGV[7]
  -- Whoever is heard of late, of a node that was away, comes after they went.
  settle(user, math.max(NOW, user.status == 'offline' and user.gone_at or 0), 'connected')
end
save(user)
local answer = result(resumed)
answer[4] = redis.call('EXISTS', KEYS[10])
return answer
