-- Write what has changed of a node's sessions, unless a later change has come already.
--
-- KEYS[1] the node's sessions: hash, private id -> session  [2] the number of the last change, string
-- ARGV[1] the number of this change, which grows  [2] milliseconds that both are kept
--     [3] how many sessions go  [4…] their ids, then each that is to be there, as id and text
-- Returns 0 where there was no change or no session before, as where they are lost; else 1.

local last = redis.call('GET', KEYS[2])
if last and tonumber(ARGV[1]) < tonumber(last) then
  return 1 -- it was on its way when its sender gave it up: what it says is no longer so
end
local known = last and redis.call('EXISTS', KEYS[1]) or 0
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local there = 4 + tonumber(ARGV[3])
for i = 4, there - 1 do
  redis.call('HDEL', KEYS[1], ARGV[i])
end
for i = there, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return known
