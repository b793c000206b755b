-- Append an item to a queue.
--
-- KEYS[6] the user, as presence/lua/rules.lua has it
-- ARGV[3] the node that asks, whose own connections do not count  [4] 1 to leave it alone where the user is connected
--     [5] until when it is kept  [6] how many a queue may hold  [7] and how many bytes  [8] id
--     [9] bytes that it counts for  [10] the item as JSON
-- Returns whether it is queued, which other nodes the user is connected to, how many were dropped, how many
-- expired, and how many were put aside.

local nodes, seen = {}, {}
local fields = redis.call('HGETALL', KEYS[6])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 2) == 'c:' and fields[i + 1] ~= ARGV[3] then
    if not seen[fields[i + 1]] then
      seen[fields[i + 1]] = true
      table.insert(nodes, fields[i + 1])
    end
  end
end
if #nodes > 0 and ARGV[4] == '1' then
  return { 0, nodes, 0, 0, 0 }
end
local expired, dropped = expire(), 0
if not redis.call('ZSCORE', ORDER, ARGV[8]) then -- otherwise this is a repetition: the first answer was lost
  local last = redis.call('ZREVRANGE', ORDER, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', ORDER, tonumber(last or 0) + 1, ARGV[8])
  redis.call('HSET', BODIES, ARGV[8], ARGV[5] .. ' ' .. ARGV[9] .. ' ' .. ARGV[10])
  redis.call('HINCRBY', BODIES, '', ARGV[9])
  while redis.call('ZCARD', ORDER) > tonumber(ARGV[6]) or tonumber(redis.call('HGET', BODIES, '')) > tonumber(ARGV[7]) do
    dropped = dropped + remove((first()))
  end
end
settle()
return { 1, nodes, dropped, expired, put_aside }
