-- Read revocations in the order in which they were changed.
--
-- KEYS as put.lua has them
-- ARGV[1] the epoch that the caller knows  [2] the place of the last change that it knows  [3] its name
--     [4] how many are read at the most  [5] an epoch, where there is none
-- Returns the epoch; 1 where this goes on from what the caller knows, else 0, and it begins at the beginning;
-- 1 where there are more; then place, name and value of each, as one list.

local epoch = redis.call('HGET', KEYS[4], 'epoch')
if not epoch then
  epoch = ARGV[5]
  redis.call('HSET', KEYS[4], 'epoch', epoch)
end
local after, continues = ARGV[2], 1
if after ~= '0' or epoch ~= ARGV[1] then
  local place = redis.call('ZSCORE', KEYS[3], ARGV[3])
  if epoch ~= ARGV[1] or not place or tonumber(place) ~= tonumber(after) then
    after, continues = '0', 0
  end
end
local names = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[4])
local found = {}
for i = 1, #names, 2 do
  found[#found + 1] = string.format('%.0f', tonumber(names[i + 1]))
  found[#found + 1] = names[i]
  found[#found + 1] = redis.call('HGET', KEYS[1], names[i]) or ''
end
return { epoch, continues, #names / 2 == tonumber(ARGV[4]) and 1 or 0, found }
