-- Turn an event into a dead letter.
--
-- KEYS[1] an endpoint's queue  [2] its dead letters
-- ARGV[4] its id in the queue  [5] the letter, as JSON
-- Returns how many older letters were dropped to make room.

local found = redis.call('XRANGE', KEYS[1], ARGV[4], ARGV[4])[1]
if not found then -- another sender has done it, or this is a repetition because the first answer was lost
  return 0
end
redis.call('XDEL', KEYS[1], ARGV[4])
return bury(KEYS[2], ARGV[5], found[2][2])
