-- End a user's TTL and grace.
--
-- KEYS[6] user  [7] recent
-- ARGV[4] user
-- Returns result().

local user = user_at(NOW, ARGV[4], KEYS[6], KEYS[7])
set(user, 'grace_until', nil)
set(user, 'ending', nil)
if user.connections > 0 and user.ttl_until then
  append({ user = user.id, version = user.version, ttl_until = 0 })
end
set(user, 'ttl_until', nil)
settle(user, NOW, 'released')
save(user)
return result()
