-- Write what has changed of a node's sessions, unless a later change has come already.
--
-- KEYS[1] the node's sessions: hash, private id -> session  [2] the number of the last change, string
-- ARGV[1] the number of this change, which grows  [2] milliseconds that both are kept
--     [3] how many sessions go  [4…] their ids, then each that is to be there, as id and text
-- Returns whether there are any, and 0 for a change that comes too late.

local number = tonumber(ARGV[1])
if number < tonumber(redis.call('GET', KEYS[2]) or 0) then
  return 0 -- it was on its way when its sender gave it up: what it says is no longer so
end
redis.call('SET', KEYS[2], number, 'PX', ARGV[2])
local there = 4 + tonumber(ARGV[3])
for i = 4, there - 1 do
  redis.call('HDEL', KEYS[1], ARGV[i])
end
for i = there, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
