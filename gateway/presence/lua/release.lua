-- End a user's TTL and grace.
--
-- KEYS[7] user  [8] recent
-- ARGV[4] user
-- Returns result().

local user = user_at(NOW, ARGV[4], KEYS[7], KEYS[8])
set(user, 'grace_until', nil)
set(user, 'ending', nil)
local news = user.connections > 0 and user.ttl_until
set(user, 'ttl_until', nil)
if news and user.shown then
  keep_private(user)
elseif news then
  append({ user = user.id, version = user.version, ttl_until = 0 })
end
settle(user, NOW, 'released')
save(user)
return result()
