-- Delete what has expired, and read what is left.
--
-- ARGV[3] how many to read at the most
-- Returns how many expired, how many were put aside, and of the others, in order, the ids and what `bodies` has.

local expired = expire()
if expired + put_aside > 0 then
  settle()
end
local ids = tonumber(ARGV[3]) > 0 and redis.call('ZRANGE', ORDER, 0, ARGV[3] - 1) or {}
return { expired, put_aside, ids, #ids > 0 and redis.call('HMGET', BODIES, unpack(ids)) or {} }
