-- The bounds of what waits for endpoints. Put before each script of this folder.
--
-- ARGV[1] now, Unix milliseconds  [2] how many events a queue keeps  [3] how many dead letters  [4…] the script's own
--
-- A queue is a stream: message, as JSON. Dead letters are a stream: letter, as JSON but for the message, and message.
-- KEYS are each script's own. All keys have one hash tag, and a key that a script touches is among its KEYS.

local NOW, QUEUE_LENGTH, DEAD_LENGTH = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- Add a dead letter; returns how many older ones were dropped to make room.
local function bury(dead, letter, message)
  redis.call('XADD', dead, '*', 'letter', letter, 'message', message)
  if redis.call('XLEN', dead) > DEAD_LENGTH then
    return redis.call('XTRIM', dead, 'MAXLEN', DEAD_LENGTH)
  end
  return 0
end
