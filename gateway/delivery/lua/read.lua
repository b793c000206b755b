-- Delete what has expired, and read what is left.
--
-- ARGV[3] how many items to read at the most
-- Returns {how many had expired, the items as bodies has them, in order}.

local expired = expire()
if expired > 0 then
  settle()
end
local ids = tonumber(ARGV[3]) > 0 and redis.call('ZRANGE', ORDER, 0, ARGV[3] - 1) or {}
return { expired, #ids > 0 and redis.call('HMGET', BODIES, unpack(ids)) or {} }
