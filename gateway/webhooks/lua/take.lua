-- Move events from the outbox into the queues of the endpoints that want them.
--
-- KEYS[1] outbox  [2] state, both as presence/lua/rules.lua has them  [3] state of channels
--     [4…] for each endpoint its queue and its dead letters
-- ARGV[4] the dead letter of an event whose queue was full, as JSON without the message
--     then for each event: its id in the outbox, the numbers of the endpoints that want it ('1 3'), the message as JSON
-- Returns {how many events were moved, how many the full outbox had dropped, how many became dead letters because a queue
-- was full, how many dead letters were dropped to make room}.

local moved, buried, dropped = 0, 0, 0
for i = 5, #ARGV, 3 do
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then -- otherwise another sender was quicker
    moved = moved + 1
    for endpoint in string.gmatch(ARGV[i + 1], '%d+') do
      redis.call('XADD', KEYS[2 + 2 * endpoint], '*', 'message', ARGV[i + 2])
    end
  end
end
for i = 4, #KEYS, 2 do
  local over = math.min(redis.call('XLEN', KEYS[i]) - QUEUE_LENGTH, 500) -- the rest with the next step
  if over > 0 then
    for _, entry in ipairs(redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', over)) do
      redis.call('XDEL', KEYS[i], entry[1])
      dropped = dropped + bury(KEYS[i + 1], ARGV[4], entry[2][2])
      buried = buried + 1
    end
  end
end
local let_go = 0
for i = 2, 3 do
  local here = redis.call('HGET', KEYS[i], 'outbox_dropped')
  if here then
    redis.call('HDEL', KEYS[i], 'outbox_dropped')
    let_go = let_go + tonumber(here)
  end
end
return { moved, let_go, buried, dropped }
