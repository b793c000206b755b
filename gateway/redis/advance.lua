-- Let a position grow. They are compared as text of one length: a number of Lua's does not hold them.
--
-- KEYS[1] where it is, string
-- ARGV[1] the position
local at = redis.call('GET', KEYS[1])
if not at or at < ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1])
end
