-- Append messages of one sender to a stream, once each.
--
-- KEYS[1] stream: prev, the id of the entry before, and body  [2] the id of its last entry, string
-- KEYS[3] the number of the sender's last message, string
-- ARGV[1] how many entries the stream keeps, about  [2] the number of the first message
--     [3] milliseconds that a sender who is silent is remembered  [4…] messages
-- Returns the id of the last entry.

local position = redis.call('GET', KEYS[2]) or '0-0'
local first, last = tonumber(ARGV[2]), tonumber(redis.call('GET', KEYS[3]) or 0)
for i = 4, #ARGV do
  local number = first + i - 4
  if number > last then -- otherwise it came, and its answer was lost
    position = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'prev', position, 'body', ARGV[i])
    last = number
  end
end
redis.call('SET', KEYS[2], position)
redis.call('SET', KEYS[3], last, 'PX', ARGV[3])
return position
