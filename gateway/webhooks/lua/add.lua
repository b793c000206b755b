-- Write events that no store commits into the outbox, until it is half full.
--
-- KEYS[1] outbox, as presence/lua/rules.lua has it
-- ARGV[4…] the events as JSON, oldest first
-- Returns how many there was no room for.

local room = math.max(1, math.floor(QUEUE_LENGTH / 2)) - redis.call('XLEN', KEYS[1])
local written = math.max(0, math.min(room, #ARGV - 3))
for i = 4, 3 + written do
  redis.call('XADD', KEYS[1], '*', 'message', ARGV[i])
end
return #ARGV - 3 - written
